"""Progress on disk: part files while a run goes on, one sorted LeRobot-shaped parquet at its end.

A part row is one scored chunk: its computed frames as a bitmap, and per head the progress and stage probabilities of
those frames. The final file has one row per frame: index, episode_index, frame_index int64, progress_<head> float32.
"""

import functools
import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.core.episodes import BITMAP_BYTES, Chunks, frames_of
from sarm_ray.core.progress import interpolate_progress
from sarm_ray.data import storage
from sarm_ray.errors import DatasetError

ROWS_PER_GROUP = 2**20
PARTS_PREFIX = "parts-"
PART_KEYS = ["episode_index", "start", "num_holes"]
FAILED_SCHEMA = pa.schema(
    [
        ("episode_index", pa.int64()),
        ("camera", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int64()),
    ]
)


def part_schema(heads: tuple[str, ...]) -> pa.Schema:
    """Columns of part files; `num_holes` counts windows that scored NaN; a chunk with any is scored again next time."""
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


def commit_scores(scored: pa.Table, folder: str, heads: tuple[str, ...]) -> pa.Table:
    """Scored chunks in; they are in a part when their status rows come out.

    Args:
        scored: part_schema's columns and what else is to be reported.
        folder: of the parts.
        heads: in the table.

    Returns:
        The other columns, with num_frames.
    """
    names = part_schema(heads).names
    write_part(folder, uuid.uuid4().hex, scored.select(names))
    num_frames = [len(frames_of(bitmap, 0)) for bitmap in scored["frames"].to_pylist()]
    return scored.drop_columns(names).append_column("num_frames", pa.array(num_frames, type=pa.int64()))


def read_done(folder: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the parts hold: episode_index (R,), start (R,) and num_holes (R,), int64 each."""
    tables = _read_parts(folder, PART_KEYS)
    if not tables:
        return (np.zeros(0, dtype=np.int64),) * 3
    table = pa.concat_tables(tables)
    return table["episode_index"].to_numpy(), table["start"].to_numpy(), table["num_holes"].to_numpy()


def remove_parts(run_folder: str) -> None:
    """Remove the parts of a run that is done, and of runs with other options that never ended."""
    fs, root = storage.open_filesystem(run_folder)
    for path in fs.ls(root, detail=False) if fs.exists(root) else []:
        if path.rstrip("/").rsplit("/", 1)[-1].startswith(PARTS_PREFIX):
            fs.rm(path, recursive=True)


def merge_parts(
    folder: str,
    heads: tuple[str, ...],
    chunks: Chunks,
    episode_index: np.ndarray,
    lengths: np.ndarray,
    from_index: np.ndarray,
) -> Iterator[pa.Table]:
    """Rows of the final file, in order, about ROWS_PER_GROUP at a time.

    Args:
        folder: the parts; every chunk must be in one.
        heads: which columns.
        chunks: C chunks of the run, in order.
        episode_index, lengths, from_index: (E,) int64 of the dataset, which `chunks.row` points into.

    Yields:
        Tables with the final columns, and `probabilities_<head>` lists (null for frames that were interpolated).
    """
    places = _locate_chunks(folder)
    for row, start in zip(chunks.row.tolist(), chunks.start.tolist(), strict=True):
        if (int(episode_index[row]), start) not in places:
            raise DatasetError(
                f"{folder}: episode {episode_index[row]}, frames {start} and on, were scored but are not there for this "
                "process; put --output where all nodes reach it"
            )
    read = functools.lru_cache(maxsize=64)(functools.partial(_read_part, folder))
    pending: list[pa.Table] = []
    num_rows = 0
    bounds = np.flatnonzero(np.diff(chunks.row, prepend=-1, append=-1))
    for first, last in itertools.pairwise(bounds):
        row = int(chunks.row[first])
        episode, length = int(episode_index[row]), int(lengths[row])
        scored = []
        for start in chunks.start[first:last].tolist():
            name, position = places[episode, start]
            scored.append(read(name).slice(position, 1))
        pending.append(_episode_rows(pa.concat_tables(scored), heads, episode, length, int(from_index[row])))
        num_rows += length
        if num_rows >= ROWS_PER_GROUP:
            yield pa.concat_tables(pending)
            pending, num_rows = [], 0
    if pending:
        yield pa.concat_tables(pending)


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
    text = (json.dumps(value, indent=2) + "\n").encode()
    storage.write_atomically(location, lambda stream: stream.write(text))


def write_text(location: str, text: str) -> None:
    storage.write_atomically(location, lambda stream: stream.write(text.encode()))


def write_failed(location: str, failures: list[dict]) -> None:
    """failed.parquet: one row per chunk that could not be read or scored; no file where there is none."""
    if not failures:
        storage.remove_file(location)
        return
    table = pa.Table.from_pylist(failures, schema=FAILED_SCHEMA)
    storage.write_atomically(location, lambda stream: pq.write_table(table, stream))


def _episode_rows(scored: pa.Table, heads: tuple[str, ...], episode: int, length: int, from_index: int) -> pa.Table:
    starts = scored["start"].to_pylist()
    computed = np.concatenate([frames_of(b, s) for b, s in zip(scored["frames"].to_pylist(), starts, strict=True)])
    frame = np.arange(length)
    columns = {"index": from_index + frame, "episode_index": np.full(length, episode), "frame_index": frame}
    for head in heads:
        values = scored[f"progress_{head}"].combine_chunks().flatten().to_numpy()
        columns[f"progress_{head}"] = interpolate_progress(computed, values, length)
    table = pa.table(columns)
    for head in heads:
        flat = scored[f"probabilities_{head}"].combine_chunks().flatten()
        table = table.append_column(f"probabilities_{head}", _scatter_lists(flat, computed, length))
    return table


def _scatter_lists(flat: pa.Array, computed: np.ndarray, length: int) -> pa.Array:
    """Lists of equal size at the computed frames, null elsewhere."""
    present = np.zeros(length, dtype=bool)
    present[computed] = True
    offsets = np.concatenate([[0], np.cumsum(present * (len(flat) // len(computed)))])
    return pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), flat, mask=pa.array(~present))


def _locate_chunks(folder: str) -> dict[tuple[int, int], tuple[str, int]]:
    """Chunk -> its part and row; of several the one with the fewest holes, because features are only ever added."""
    names = _part_names(folder)
    places: dict[tuple[int, int], tuple[str, int]] = {}
    fewest: dict[tuple[int, int], int] = {}
    for name, table in zip(names, _read_parts(folder, PART_KEYS), strict=True):
        for position, row in enumerate(table.to_pylist()):
            chunk = (row["episode_index"], row["start"])
            if chunk not in places or row["num_holes"] < fewest[chunk]:
                places[chunk], fewest[chunk] = (name, position), row["num_holes"]
    return places


def _read_parts(folder: str, columns: list[str]) -> list[pa.Table]:
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda name: _read_part(folder, name, columns), _part_names(folder)))


def _read_part(folder: str, name: str, columns: list[str] | None = None) -> pa.Table:
    with storage.open_input(storage.join(folder, name)) as stream:
        return pq.read_table(stream, columns=columns)


def _part_names(folder: str) -> list[str]:
    return sorted(path for path in storage.list_files(folder) if path.endswith(".parquet"))
