"""Rows of a dataset: columns of an episode in the order of its frames, its task text, statistics of a feature."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sarm_ray.data import storage
from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import DatasetError, name_list


def read_rows(dataset: Dataset, row: int, columns: list[str]) -> dict[str, np.ndarray]:
    """Columns of one episode, in the order of its frames.

    Args:
        dataset: the dataset.
        row: position of the episode in the table.
        columns: feature names with numbers in them.

    Returns:
        column -> (L,) for scalars, (L, D) for vectors; dtypes as stored.

    Raises:
        DatasetError: file or column missing, or another number of rows than the episode's length.
    """
    path, episode = dataset.data_files.path(row), int(dataset.episode_index[row])
    table = read_episode_table(dataset.location(path), columns, episode if dataset.version == "v3.0" else None)
    if table.num_rows != dataset.length[row]:
        raise DatasetError(
            f"{path}: episode {episode} has {table.num_rows} rows, the metadata say {dataset.length[row]}"
        )
    return {name: column_array(table[name]) for name in columns}


def episode_texts(dataset: Dataset, rows: np.ndarray, override: str | None = None) -> list[str]:
    """The task text of each episode: its first frame's task, or `override` for all.

    Raises:
        DatasetError: naming the episode that has none.
    """
    if override is not None:
        return [override] * len(rows)
    by_index = _read_task_table(dataset) if any(len(set(dataset.tasks[row])) > 1 for row in rows) else {}
    texts = []
    for row in rows:
        names = dataset.tasks[row]
        if len(set(names)) > 1:
            first = int(read_rows(dataset, row, ["task_index"])["task_index"][0])
            names = (by_index[first],) if first in by_index else ()
        if not names or not names[0].strip():
            raise DatasetError(
                f"{dataset.name}: episode {dataset.episode_index[row]} has no task text; give one with --task TEXT"
            )
        texts.append(names[0])
    return texts


def state_statistics(dataset: Dataset, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a feature over the dataset: (D,) float64 each.

    From meta/stats.json; else the aggregate of meta/episodes_stats.jsonl weighted by frames (equal to v3's to 1e-8);
    else from the rows themselves.
    """
    stats = storage.read_json(dataset.root, "meta/stats.json", missing={}).get(key, {})
    if "mean" in stats and "std" in stats:
        return np.ravel(stats["mean"]).astype(np.float64), np.ravel(stats["std"]).astype(np.float64)
    episodes = [
        entry["stats"][key]
        for entry in storage.read_jsonl(dataset.root, "meta/episodes_stats.jsonl", missing=True)
        if key in entry.get("stats", {})
    ]
    if episodes:
        count = np.array([np.ravel(entry["count"])[0] for entry in episodes], dtype=np.float64)[:, None]
        mean = np.array([np.ravel(entry["mean"]) for entry in episodes], dtype=np.float64)
        variance = np.array([np.ravel(entry["std"]) for entry in episodes], dtype=np.float64) ** 2
    else:
        rows = [read_rows(dataset, row, [key])[key] for row in range(len(dataset.length))]
        values = [np.asarray(value, dtype=np.float64).reshape(len(value), -1) for value in rows]
        count = dataset.length.astype(np.float64)[:, None]
        mean, variance = np.array([v.mean(0) for v in values]), np.array([v.var(0) for v in values])
    share = count / count.sum()
    total_mean = (share * mean).sum(0)
    return total_mean, np.sqrt((share * (variance + (mean - total_mean) ** 2)).sum(0))


def read_episode_table(location: str, columns: list[str], episode: int | None) -> pa.Table:
    """Columns of one episode's rows in a data file, by frame_index. `episode` None takes every row of the file."""
    try:
        with storage.open_input(location) as stream, pq.ParquetFile(stream) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise DatasetError(f"{location}: no column {missing[0]!r}; it has {name_list(file.schema_arrow.names)}")
            order = [name for name in ("episode_index", "frame_index") if name in file.schema_arrow.names]
            groups = _row_groups_of(file, episode)
            table = file.read_row_groups(groups, columns=list(dict.fromkeys([*columns, *order])))
    except FileNotFoundError:
        raise DatasetError(f"{location}: no such file") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(f"{location}: not a readable parquet file ({str(error).splitlines()[0]})") from error
    if episode is not None and "episode_index" in order:
        table = table.filter(pc.equal(table["episode_index"], episode))
    return table.sort_by("frame_index") if "frame_index" in order else table


def column_array(column: pa.ChunkedArray) -> np.ndarray:
    """A parquet column of numbers as (L,) or (L, D): LeRobot stores vectors as fixed-size or variable lists."""
    array = column.combine_chunks()
    if not pa.types.is_list(array.type) and not pa.types.is_fixed_size_list(array.type):
        return array.to_numpy(zero_copy_only=False)
    flat = array.flatten()
    while pa.types.is_list(flat.type) or pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
    return flat.to_numpy(zero_copy_only=False).reshape(len(array), -1)


def _row_groups_of(file: pq.ParquetFile, episode: int | None) -> list[int]:
    """Row groups that can hold an episode, by their statistics."""
    groups = list(range(file.metadata.num_row_groups))
    if episode is None or "episode_index" not in file.schema_arrow.names:
        return groups
    leaf = next(i for i in range(file.metadata.num_columns) if file.schema.column(i).path == "episode_index")
    spans = [file.metadata.row_group(group).column(leaf).statistics for group in groups]
    return [
        g for g, s in zip(groups, spans, strict=True) if s is None or not s.has_min_max or s.min <= episode <= s.max
    ]


def _read_task_table(dataset: Dataset) -> dict[int, str]:
    if dataset.version != "v3.0":
        return {entry["task_index"]: entry["task"] for entry in storage.read_jsonl(dataset.root, "meta/tasks.jsonl")}
    with storage.open_input(dataset.location("meta/tasks.parquet")) as stream:
        table = pq.read_table(stream)
    text = next(name for name in table.column_names if name != "task_index")
    return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))
