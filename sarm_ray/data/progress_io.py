"""Progress on disk: part files while a run goes on, one sorted LeRobot-shaped parquet at its end.

A part row is one scored chunk: its computed frames as a bitmap, and per head the progress and stage probabilities of
those frames. The final file has one row per frame: index, episode_index, frame_index int64, progress_<head> float32.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sarm_ray.core.episodes import BITMAP_BYTES, frames_of
from sarm_ray.data import storage
from sarm_ray.errors import DatasetError, name_list

ROWS_PER_GROUP = 2**20
PROGRESS_FILE = "sarm_progress.parquet"  # LeRobot's name for it
PARTS_PREFIX = "parts-"
PART_KEYS = ["episode_index", "start", "num_holes"]


def part_schema(heads: tuple[str, ...]) -> pa.Schema:
    """Columns of part files; `num_holes` counts windows that scored NaN, and is 1 at least where the chunk has a failure to
    report; a chunk with any is scored again next time.
    """
    fields = [
        ("episode_index", pa.int64()),
        ("start", pa.int64()),
        ("num_holes", pa.int64()),
        ("frames", pa.binary(BITMAP_BYTES)),
    ]
    for head in heads:
        fields += [(f"progress_{head}", pa.list_(pa.float32())), (f"probabilities_{head}", pa.list_(pa.float32()))]
    return pa.schema(fields)


def progress_schema(heads: tuple[str, ...], metadata: dict[str, str]) -> pa.Schema:
    """LeRobot's sarm_progress.parquet; metadata has `reward_model_path` and ours."""
    fields = [(name, pa.int64()) for name in ("index", "episode_index", "frame_index")]
    fields += [(f"progress_{head}", pa.float32()) for head in heads]
    return pa.schema(fields, metadata=metadata)


def write_part(folder: str, name: str, table: pa.Table) -> None:
    storage.write_atomically(storage.join(folder, f"{name}.parquet"), lambda stream: pq.write_table(table, stream))


def commit_scores(scored: pa.Table, folders: list[str], heads: tuple[str, ...]) -> Iterator[pa.Table]:
    """Scored chunks in; when their status rows come out, they are in parts.

    Args:
        scored: part_schema's columns, `dataset`, and what else is to be reported.
        folders: of the datasets' parts; the chunks of each dataset go into one.
        heads: in the table.

    Yields:
        The other columns, with num_frames.
    """
    names = part_schema(heads).names
    for number in scored["dataset"].unique().to_pylist():
        own = scored.filter(pc.equal(scored["dataset"], number))
        write_part(folders[number], uuid.uuid4().hex, own.select(names))
        num_frames = [len(frames_of(bitmap, 0)) for bitmap in own["frames"].to_pylist()]
        yield own.drop_columns(names).append_column("num_frames", pa.array(num_frames, type=pa.int64()))


def read_done(folder: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the parts hold: episode_index (R,), start (R,) and num_holes (R,), int64 each."""
    rows = np.concatenate([np.zeros((0, len(PART_KEYS)), dtype=np.int64), *read_keys(folder, part_names(folder))])
    return rows[:, 0], rows[:, 1], rows[:, 2]


def remove_files(folder: str, prefix: str) -> None:
    """Remove a run folder's files and folders whose names begin so: parts of a run that is done, and of runs with other
    options that never ended; what killed runs left.
    """
    for name in storage.list_names(folder):
        if name.startswith(prefix):
            storage.remove_folder(storage.join(folder, name))


@dataclass(frozen=True)
class ProgressBlock:
    """Whole episodes of a progress file, one after the other.

    Args:
        index: (n,) int64, global frame index.
        episode_index: (n,) int64.
        lengths: (e,) int64, frames of each episode, n together.
        progress: (n,) float, NaN where there is none.
    """

    index: np.ndarray
    episode_index: np.ndarray
    lengths: np.ndarray
    progress: np.ndarray


def read_progress_blocks(location: str, head: str, num_rows: int = ROWS_PER_GROUP) -> Iterator[ProgressBlock]:
    """A progress file, LeRobot's or ours, about `num_rows` rows at a time and never less than an episode.

    Raises:
        DatasetError: not a readable parquet file, no such head, rows that are not the frames of episodes in order, or
            progress that is infinite.
    """
    columns = ["index", "episode_index", f"progress_{head}"]
    held: list[pa.RecordBatch] = []
    before = -1  # index of the last row that was yielded
    try:
        # with pre_buffer all that was read stays in memory until the file is closed
        with storage.open_input(location) as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                found = name_list(file.schema_arrow.names)
                raise DatasetError(f"{location}: no column {missing[0]!r}; it has {found}")
            for batch in file.iter_batches(min(num_rows, 2**16), columns=columns):
                held.append(batch)
                if sum(each.num_rows for each in held) >= num_rows:
                    table = pa.Table.from_batches(held).combine_chunks()
                    episode = table["episode_index"].to_numpy()
                    whole = len(episode) - int((episode[::-1] != episode[-1]).argmax())
                    if episode[0] != episode[-1]:  # the last one may go on in the next batch
                        yield _progress_block(location, table.slice(0, whole), head, before)
                        before, table = table["index"][whole - 1].as_py(), table.slice(whole)
                    held = table.to_batches()
    except FileNotFoundError:
        raise DatasetError(f"{location}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{location}: not a readable parquet file ({str(error).splitlines()[0]})") from error
    if held:
        yield _progress_block(location, pa.Table.from_batches(held), head, before)


def read_episode_progress(location: str, head: str, first: int, length: int) -> np.ndarray:
    """Progress of one episode from a progress file.

    Args:
        location: the file.
        head: `sparse` or `dense`.
        first: global index of the episode's first frame.
        length: L, its frames.

    Returns:
        (L,) float, NaN where there is none.

    Raises:
        DatasetError: the file cannot be read, or does not have these frames or this head.
    """
    return _episode_column(location, f"progress_{head}", first, length).to_numpy(zero_copy_only=False)


def read_episode_probabilities(location: str, head: str, first: int, length: int) -> np.ndarray | None:
    """Stage probabilities of one episode from stage_probabilities.parquet; arguments and errors as for its progress.

    Returns:
        (L, K) float32, NaN rows for frames that were interpolated; None where there is no frame with any.
    """
    lists = _episode_column(location, head, first, length)
    present = lists.is_valid().to_numpy(zero_copy_only=False)
    if not present.any():
        return None
    flat = lists.drop_null().flatten().to_numpy(zero_copy_only=False)
    probabilities = np.full((length, len(flat) // int(present.sum())), np.nan, dtype=np.float32)
    probabilities[present] = flat.reshape(int(present.sum()), -1)
    return probabilities


def _episode_column(location: str, column: str, first: int, length: int) -> pa.Array:
    """Only row groups that can hold the frames are read."""
    frames = [("index", ">=", first), ("index", "<", first + length)]
    try:
        with storage.open_input(location) as stream:
            table = pq.read_table(stream, columns=["index", column], filters=frames).sort_by("index")
    except FileNotFoundError:
        raise DatasetError(f"{location}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{location}: {column!r} cannot be read ({str(error).splitlines()[0]})") from error
    if table.num_rows != length:
        raise DatasetError(f"{location}: has {table.num_rows} of the frames {first} to {first + length - 1}")
    return table[column].combine_chunks()


def _progress_block(location: str, table: pa.Table, head: str, before: int) -> ProgressBlock:
    index, episode = table["index"].to_numpy(), table["episode_index"].to_numpy()
    progress = table[f"progress_{head}"].to_numpy()  # a null becomes NaN
    ends = np.flatnonzero(np.diff(episode, append=episode[-1:] + 1)) + 1
    step = np.diff(index, prepend=before)
    if (step < 1).any() or (step[1:][np.diff(episode) == 0] != 1).any():
        raise DatasetError(f"{location}: its rows are not every frame of its episodes, sorted by index")
    if np.isinf(progress).any():
        raise DatasetError(f"{location}: progress_{head} is infinite at index {index[np.isinf(progress).argmax()]}")
    return ProgressBlock(index, episode, np.diff(ends, prepend=0), progress)


def write_progress(output: str, tables: Callable[[], Iterator[pa.Table]], schema: pa.Schema) -> int:
    """Write the final file, whole or not at all; returns its rows."""
    num_rows = 0

    def write(stream: IO[bytes]) -> None:
        nonlocal num_rows
        with pq.ParquetWriter(stream, schema) as writer:
            for table in tables():
                writer.write_table(table.select(schema.names).cast(schema))
                num_rows += table.num_rows

    storage.write_atomically(output, write)
    return num_rows


def write_probabilities(location: str, heads: tuple[str, ...], tables: Callable[[], Iterator[pa.Table]]) -> None:
    """stage_probabilities.parquet: index int64, <head> list<float32>, null for frames that were interpolated."""
    schema = pa.schema([("index", pa.int64()), *((head, pa.list_(pa.float32())) for head in heads)])
    columns = ["index", *(f"probabilities_{head}" for head in heads)]
    write_progress(location, lambda: (t.select(columns).rename_columns(schema.names) for t in tables()), schema)


def write_json(location: str, value: dict) -> None:
    storage.write_file(location, (json.dumps(value, indent=2) + "\n").encode())


def read_keys(folder: str, names: list[str]) -> list[np.ndarray]:
    """PART_KEYS of each part: (R, 3) int64."""

    def read(name: str) -> np.ndarray:
        table = read_part(folder, name, PART_KEYS)
        return np.stack([table[key].to_numpy() for key in PART_KEYS], axis=1)

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(read, names))


def read_part(folder: str, name: str, columns: list[str] | None = None) -> pa.Table:
    # ParquetFile, since read_table takes several times as long for a small file
    with storage.open_input(storage.join(folder, name)) as stream, pq.ParquetFile(stream) as file:
        return file.read(columns=columns, use_threads=False)


def part_names(folder: str) -> list[str]:
    return sorted(path for path in storage.list_files(folder) if path.endswith(".parquet"))
