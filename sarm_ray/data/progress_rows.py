"""Rows of a progress file that is there: which episodes it holds, and taking some of them over into the next one."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sarm_ray.data import storage
from sarm_ray.data.progress_io import ROWS_PER_GROUP
from sarm_ray.errors import DatasetError, StoreError

BATCH_ROWS = 2**16


@dataclass(frozen=True)
class ScoredEpisodes:
    """What a progress file holds.

    Args:
        metadata: of its schema.
        heads: of its columns progress_<head>.
        episode_index: (e,) int64, in the order of the file.
        first: (e,) int64, index of each one's first row.
        lengths: (e,) int64, its rows.
        num_nan: (e,) int64, its rows without progress in some head.
    """

    metadata: dict[str, str]
    heads: tuple[str, ...]
    episode_index: np.ndarray
    first: np.ndarray
    lengths: np.ndarray
    num_nan: np.ndarray

    def places(self, episode_index: np.ndarray, first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Where each of a dataset's episodes stands in the file: (E,) int64 each -> (E,) int64 into ours.

        -1 where it is not there, or there with other rows: the dataset was edited since.
        """
        if not len(self.episode_index):
            return np.full(len(episode_index), -1)
        order = np.argsort(self.episode_index, kind="stable")
        place = np.searchsorted(self.episode_index[order], episode_index)
        place = order[np.minimum(place, len(order) - 1)]
        same = (self.episode_index[place] == episode_index) & (self.first[place] == first)
        return np.where(same & (self.lengths[place] == lengths), place, -1)


def read_scored_episodes(location: str) -> ScoredEpisodes | None:
    """What a progress file holds, a batch of rows in memory at a time; None where there is no file.

    Raises:
        DatasetError: not a progress file, or its rows are not the frames of episodes, sorted by index.
    """
    try:
        with storage.open_input(location) as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
            names = file.schema_arrow.names
            columns = [name for name in names if name.startswith("progress_")]
            missing = [name for name in ("index", "episode_index") if name not in names]
            if missing or not columns:
                raise DatasetError(f"{location}: no column {(missing or ['progress_sparse'])[0]!r}")
            metadata = {
                key.decode(errors="replace"): value.decode(errors="replace")
                for key, value in (file.schema_arrow.metadata or {}).items()
            }
            batches = file.iter_batches(BATCH_ROWS, columns=["index", "episode_index", *columns])
            runs = [_runs(batch, columns) for batch in batches if batch.num_rows]
    except FileNotFoundError:
        return None
    except StoreError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{location}: not a readable parquet file ({str(error).splitlines()[0]})") from error
    heads = tuple(name.removeprefix("progress_") for name in columns)
    return ScoredEpisodes(metadata, heads, *_join(location, np.concatenate([np.zeros((0, 5), np.int64), *runs])))


def _runs(batch: pa.RecordBatch, columns: list[str]) -> np.ndarray:
    """Rows of one episode that follow each other: (r, 5) int64 of episode, first index, last index, rows, NaN rows."""
    index, episode = batch["index"].to_numpy(), batch["episode_index"].to_numpy()
    nan = np.zeros(len(index), dtype=np.int64)
    for name in columns:
        nan |= np.isnan(batch[name].to_numpy(zero_copy_only=False))  # a null becomes NaN
    begins = np.flatnonzero(np.diff(episode, prepend=episode[0] - 1))
    lengths = np.diff(begins, append=len(episode))
    ends = begins + lengths - 1
    return np.stack([episode[begins], index[begins], index[ends], lengths, np.add.reduceat(nan, begins)], axis=1)


def _join(location: str, runs: np.ndarray) -> tuple[np.ndarray, ...]:
    """Runs of a file, maybe several of one episode, as episodes: (e,) int64 of number, first index, rows, NaN rows."""
    begins = np.flatnonzero(np.diff(runs[:, 0], prepend=runs[:1, 0] - 1))
    if not len(begins):
        return (np.zeros(0, dtype=np.int64),) * 4
    ends = np.append(begins[1:], len(runs)) - 1
    episode, first, last = runs[begins, 0], runs[begins, 1], runs[ends, 2]
    lengths, num_nan = np.add.reduceat(runs[:, 3], begins), np.add.reduceat(runs[:, 4], begins)
    if (last - first + 1 != lengths).any() or (first[1:] <= last[:-1]).any() or len(np.unique(episode)) < len(episode):
        raise DatasetError(f"{location}: its rows are not every frame of its episodes, sorted by index")
    return episode, first, lengths, num_nan


def kept_rows(location: str, columns: list[str], first: np.ndarray, lengths: np.ndarray) -> Iterator[pa.Table]:
    """The rows of some episodes from a file that is sorted by `index`.

    Args:
        location: a progress file or stage_probabilities.parquet.
        columns: of it; `index` first.
        first, lengths: (K,) int64, index of each episode's first row, ascending, and its rows.
    """
    with storage.open_input(location) as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            index = batch["index"].to_numpy()
            place = np.searchsorted(first, index, side="right") - 1
            own = (place >= 0) & (index < first[place] + lengths[place])
            yield pa.Table.from_batches([batch]).filter(pa.array(own)).select(columns)


def merge_by_index(ours: Iterator[pa.Table], theirs: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Two streams of tables of the same columns, each sorted by `index`, as one, about ROWS_PER_GROUP rows at a time."""
    pending: list[pa.Table] = []
    for table in _alternate(ours, theirs):
        pending.append(table)
        if sum(each.num_rows for each in pending) >= ROWS_PER_GROUP:
            yield pa.concat_tables(pending)
            pending = []
    if pending:
        yield pa.concat_tables(pending)


def _alternate(ours: Iterator[pa.Table], theirs: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Slices of both streams, in order."""
    streams = [(table for table in stream if table.num_rows) for stream in (ours, theirs)]
    held = [next(stream, None) for stream in streams]
    while held[0] is not None and held[1] is not None:
        begins = [table["index"][0].as_py() for table in held if table is not None]
        lower = int(begins[1] < begins[0])
        table = held[lower]
        assert table is not None
        num_rows = int(pc.sum(pc.less(table["index"], begins[1 - lower])).as_py())
        if not num_rows:
            raise DatasetError(f"two episodes have rows with the index {begins[0]}; correct dataset_from_index")
        yield table.slice(0, num_rows)
        rest = table.slice(num_rows)
        held[lower] = rest if rest.num_rows else next(streams[lower], None)
    for table, stream in zip(held, streams, strict=True):
        if table is not None:
            yield table
            yield from stream
