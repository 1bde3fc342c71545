"""Rows of a dataset: columns of an episode in the order of its frames, its task text, statistics of a feature."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sarm_ray.data import node_cache, storage
from sarm_ray.data.json_files import read_json, read_json_blocks, read_jsonl
from sarm_ray.data.lerobot import Dataset, fetch_files
from sarm_ray.errors import DatasetError, name_list

READERS = 16


def read_rows(dataset: Dataset, row: int, columns: list[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Columns of one episode, in the order of its frames.

    Args:
        dataset: the dataset.
        row: position of the episode in the table.
        columns: feature names with numbers in them.
        optional: more of them, left out where the file has no such column.

    Returns:
        column -> (L,) for scalars, (L, D) for vectors; dtypes as stored.

    Raises:
        DatasetError: file or column missing, or another number of rows than the episode's length.
    """
    location, episode = dataset.location(dataset.data_files.path(row)), int(dataset.episode_index[row])
    table = read_episode_table(location, columns, episode if dataset.version == "v3.0" else None, optional)
    if table.num_rows != dataset.length[row]:
        raise DatasetError(
            f"{location}: episode {episode} has {table.num_rows} rows, the metadata say {dataset.length[row]}"
        )
    values = {}
    for name in [*columns, *(name for name in optional if name in table.column_names)]:
        try:
            values[name] = column_array(table[name])
        except ValueError as error:
            raise DatasetError(f"{location}: episode {episode}: column {name!r}: {error}") from error
    return values


def episode_texts(dataset: Dataset, rows: np.ndarray, override: str | None = None) -> list[str]:
    """The task text of each episode: its first frame's task, or `override` for all.

    Raises:
        DatasetError: naming the episode that has none.
    """
    if override is not None:
        return [override] * len(rows)
    names = [dataset.tasks[row] for row in rows.tolist()]
    unclear = [place for place, own in enumerate(names) if len(set(own)) != 1]
    by_index = read_task_table(dataset) if unclear else {}
    if by_index:
        with ThreadPoolExecutor(READERS) as pool:  # a file each: mostly waiting
            first = list(pool.map(functools.partial(_first_task, dataset), rows[unclear].tolist()))
        for place, index in zip(unclear, first, strict=True):
            names[place] = (by_index[index],) if index in by_index else ()
    for row, own in zip(rows.tolist(), names, strict=True):
        if not own or not own[0].strip():
            raise DatasetError(
                f"{dataset.name}: episode {dataset.episode_index[row]} has no task text; give one with --task TEXT"
            )
    return [own[0] for own in names]


def state_statistics(dataset: Dataset, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a feature over the dataset: (D,) float64 each.

    v2.1: the aggregate of meta/episodes_stats.jsonl weighted by frames (equal to v3.0's to 1e-8); otherwise, or where that
    does not cover every episode, meta/stats.json; where there is neither, the rows themselves.

    Raises:
        DatasetError: statistics that are not numbers.
    """
    moments = _episode_statistics(dataset, key) if dataset.version == "v2.1" else None
    stats = read_json(dataset.root, "meta/stats.json", missing={}).get(key, {})
    try:
        if moments is not None:
            mean, std = _pool_moments(*moments)
        elif "mean" in stats and "std" in stats:
            mean, std = np.ravel(stats["mean"]).astype(np.float64), np.ravel(stats["std"]).astype(np.float64)
        else:
            fetch_files(dataset, np.arange(len(dataset.length)))
            mean, std = _pool_moments(*_row_moments(dataset, key))
    except (TypeError, ValueError, KeyError) as error:
        raise DatasetError(f"{dataset.root}/meta: malformed statistics of {key} ({error})") from error
    return mean, std


def read_episode_table(
    location: str, columns: Sequence[str], episode: int | None, optional: Sequence[str] = ()
) -> pa.Table:
    """Columns of one episode's rows in a data file, by frame_index. `episode` None takes every row of the file."""
    try:
        with node_cache.open_input(location) as stream, pq.ParquetFile(stream) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise DatasetError(f"{location}: no column {missing[0]!r}; it has {name_list(file.schema_arrow.names)}")
            order = [name for name in (*optional, "episode_index", "frame_index") if name in file.schema_arrow.names]
            groups = row_groups_of(file, episode)
            table = file.read_row_groups(groups, columns=list(dict.fromkeys([*columns, *order])))
        if episode is not None and "episode_index" in order:
            table = table.filter(pc.equal(table["episode_index"], episode))
        return table.sort_by("frame_index") if "frame_index" in order else table
    except FileNotFoundError:
        raise DatasetError(f"{location}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{location}: not a readable parquet file ({str(error).splitlines()[0]})") from error


def column_array(column: pa.ChunkedArray) -> np.ndarray:
    """A parquet column of numbers as (L,) or (L, D): LeRobot stores vectors as fixed-size or variable lists.

    Raises:
        ValueError: missing rows, rows of different length, or something other than numbers.
    """
    array = column.combine_chunks()
    flat = array
    while pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type) or pa.types.is_fixed_size_list(flat.type):
        if flat.null_count:
            raise ValueError(f"{flat.null_count} rows are missing")
        if len(pc.list_value_length(flat).unique()) > 1:
            raise ValueError("rows differ in length")
        flat = flat.flatten()
    if not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type) or pa.types.is_boolean(flat.type)):
        raise ValueError(f"{flat.type} instead of numbers")
    if flat.null_count and not pa.types.is_floating(flat.type):
        raise ValueError(f"{flat.null_count} values are missing")
    values = flat.to_numpy(zero_copy_only=False)  # a missing float is NaN
    return values if flat is array else values.reshape(len(array), -1)


def row_groups_of(file: pq.ParquetFile, episode: int | None) -> list[int]:
    """Row groups that can hold an episode, by their statistics."""
    groups = list(range(file.metadata.num_row_groups))
    if episode is None or "episode_index" not in file.schema_arrow.names:
        return groups
    leaf = next(i for i in range(file.metadata.num_columns) if file.schema.column(i).path == "episode_index")
    spans = [file.metadata.row_group(group).column(leaf).statistics for group in groups]
    return [
        g for g, s in zip(groups, spans, strict=True) if s is None or not s.has_min_max or s.min <= episode <= s.max
    ]


def _first_task(dataset: Dataset, row: int) -> int:
    """task_index of an episode's first frame."""
    return int(read_rows(dataset, row, ["task_index"])["task_index"][0])


def read_task_table(dataset: Dataset) -> dict[int, str]:
    """task_index -> text; empty where the dataset has no table of tasks."""
    place = "meta/tasks.parquet" if dataset.version == "v3.0" else "meta/tasks.jsonl"
    try:
        if dataset.version != "v3.0":
            entries = read_jsonl(dataset.root, place, missing=True)
            return {int(entry["task_index"]): str(entry["task"]) for entry in entries}
        with storage.open_input(dataset.location(place)) as stream:
            table = pq.read_table(stream)
        text = next(name for name in table.column_names if name != "task_index")
        return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))
    except FileNotFoundError:
        return {}
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise DatasetError(f"{dataset.location(place)}: malformed table of tasks ({error!r})") from error


def _episode_statistics(dataset: Dataset, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Count (E, 1), mean and variance (E, D) of each episode from episodes_stats.jsonl; None unless all are there."""
    quick = _scan_statistics(dataset, key)
    if quick is not None:
        count, mean, std = quick
        return count[:, :1], mean, std**2
    entries = read_jsonl(dataset.root, "meta/episodes_stats.jsonl", missing=True)
    stats = [entry["stats"][key] for entry in entries if key in entry.get("stats", {})]
    if len(stats) != len(dataset.length):
        return None
    count = np.array([np.ravel(each["count"])[0] for each in stats], dtype=np.float64)[:, None]
    mean = np.array([np.ravel(each["mean"]) for each in stats], dtype=np.float64)
    return count, mean, np.array([np.ravel(each["std"]) for each in stats], dtype=np.float64) ** 2


def _scan_statistics(dataset: Dataset, key: str) -> list[np.ndarray] | None:
    """Count, mean and std of a feature, (E, k) float64 each, where every episode has them in the usual form; else None.

    The file holds all statistics of all features, 3 kB per episode: this reads 10 times as fast as json, which is left
    to tell what is wrong with the others.
    """
    lists = pa.struct([(name, pa.list_(pa.float64())) for name in ("count", "mean", "std")])
    schema = pa.schema([("stats", pa.struct([(key, lists)]))])
    blocks = []
    try:
        for table in read_json_blocks(dataset.location("meta/episodes_stats.jsonl"), schema):
            stats = pc.struct_field(table["stats"], [key]).combine_chunks()
            if stats.null_count:
                return None
            blocks.append([column_array(pa.chunked_array([stats.field(name)])) for name in ("count", "mean", "std")])
        columns = [
            np.concatenate(column) for column in zip(*blocks, strict=True)
        ]  # one after the other, of equal width
    except (FileNotFoundError, pa.ArrowException, ValueError):
        return None
    whole = all(len(column) == len(dataset.length) and np.isfinite(column).all() for column in columns)
    return columns if columns and whole else None


def _row_moments(dataset: Dataset, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same from the rows, READERS episodes in memory at a time."""

    def moments_of(row: int) -> tuple[np.ndarray, np.ndarray]:
        values = read_rows(dataset, row, [key])[key].astype(np.float64).reshape(int(dataset.length[row]), -1)
        return values.mean(0), values.var(0)

    with ThreadPoolExecutor(READERS) as pool:
        moments = list(pool.map(moments_of, range(len(dataset.length))))
    mean, variance = (np.array(part) for part in zip(*moments, strict=True))
    return dataset.length.astype(np.float64)[:, None], mean, variance


def _pool_moments(count: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over all episodes, (D,) float64 each."""
    share = count / count.sum()
    total = (share * mean).sum(0)
    return total, np.sqrt((share * (variance + (mean - total) ** 2)).sum(0))
