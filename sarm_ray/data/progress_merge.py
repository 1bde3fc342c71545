"""From parts, in whatever order they were scored, to the rows of the final progress file, in the order of the dataset."""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from sarm_ray.core.episodes import BITMAP_BYTES, Chunks, chunk_keys
from sarm_ray.core.progress import interpolate_progress
from sarm_ray.data.progress_io import ROWS_PER_GROUP, part_names, read_keys, read_part
from sarm_ray.errors import DatasetError


def merge_parts(
    folder: str,
    heads: tuple[str, ...],
    chunks: Chunks,
    episode_index: np.ndarray,
    lengths: np.ndarray,
    from_index: np.ndarray,
    probabilities: bool = True,
    num_rows: int = ROWS_PER_GROUP,
) -> Iterator[pa.Table]:
    """Rows of the final file, in order, about `num_rows` at a time and never less than an episode.

    Args:
        folder: the parts; every chunk must be in one.
        heads: which columns.
        chunks: C chunks of the run, in order.
        episode_index, lengths, from_index: (E,) int64 of the dataset, which `chunks.row` points into.
        probabilities: whether to read them too.

    Yields:
        Tables with the final columns, and `probabilities_<head>` lists (null for frames that were interpolated).
    """
    names, part, position = _locate_chunks(folder, chunk_keys(episode_index[chunks.row], chunks.start))
    lost = np.flatnonzero(part < 0)
    if len(lost):
        row, start = chunks.row[lost[0]], chunks.start[lost[0]]
        raise DatasetError(
            f"{folder}: episode {episode_index[row]}, frames {start} and on, were scored but are not there for this process"
            "; put --output where all nodes reach it"
        )
    kinds = ("progress", "probabilities") if probabilities else ("progress",)
    columns = ["frames", *(f"{kind}_{head}" for head in heads for kind in kinds)]
    read = functools.lru_cache(maxsize=64)(functools.partial(read_part, folder, columns=columns))
    begins = np.flatnonzero(np.diff(chunks.row, prepend=-1))  # the first chunk of each episode
    rows, ends = chunks.row[begins], np.append(begins[1:], len(chunks))
    total = np.cumsum(lengths[rows])
    first = 0
    while first < len(rows):
        before = total[first - 1] if first else 0
        last = min(int(np.searchsorted(total, before + num_rows)) + 1, len(rows))
        own = slice(begins[first], ends[last - 1])
        table = _gather_rows(read, names, part[own], position[own])
        offset = np.repeat(total[first:last] - lengths[rows[first:last]] - before, (ends - begins)[first:last])
        yield _frame_rows(table, offset + chunks.start[own], rows[first:last], episode_index, lengths, from_index)
        first = last


def _gather_rows(read: Callable[[str], pa.Table], names: list[str], part: np.ndarray, position: np.ndarray) -> pa.Table:
    """Rows out of several parts, each opened once: (n,) int64 places in `names`, and the row in each -> n rows."""
    order = np.argsort(part, kind="stable")
    begins = np.flatnonzero(np.diff(part[order], prepend=-1))
    taken = [read(names[part[own[0]]]).take(position[own]) for own in np.split(order, begins[1:])]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.concat_tables(taken).combine_chunks().take(back)


def _frame_rows(
    scored: pa.Table,
    place: np.ndarray,
    rows: np.ndarray,
    episode_index: np.ndarray,
    lengths: np.ndarray,
    from_index: np.ndarray,
) -> pa.Table:
    """Every frame of whole episodes, one after the other.

    Args:
        scored: columns of their n chunks, in order.
        place: (n,) int64, where each chunk begins among the frames.
        rows: (e,) int64, the episodes, as positions in the three (E,) columns of the dataset.
    """
    length = lengths[rows]
    ends = np.cumsum(length)
    frame = np.arange(ends[-1]) - np.repeat(ends - length, length)
    columns = {
        "index": np.repeat(from_index[rows], length) + frame,
        "episode_index": np.repeat(episode_index[rows], length),
        "frame_index": frame,
    }
    bitmaps = np.frombuffer(b"".join(scored["frames"].to_pylist()), dtype=np.uint8).reshape(-1, BITMAP_BYTES)
    chunk, bit = np.nonzero(np.unpackbits(bitmaps, axis=1, bitorder="little"))
    computed = place[chunk] + bit
    flat = {
        name: column.combine_chunks().flatten()
        for name, column in zip(scored.column_names, scored.columns, strict=True)
        if name != "frames"
    }
    # the first and the last frame of an episode are computed, so that nothing is interpolated from one into the next
    progress = {
        n: interpolate_progress(computed, v.to_numpy(), len(frame))
        for n, v in flat.items()
        if n.startswith("progress_")
    }
    lists = {n: _scatter_lists(v, computed, len(frame)) for n, v in flat.items() if n.startswith("probabilities_")}
    return pa.table({**columns, **progress, **lists})


def _scatter_lists(flat: pa.Array, computed: np.ndarray, length: int) -> pa.Array:
    """Lists of equal size at the computed frames, null elsewhere."""
    present = np.zeros(length, dtype=bool)
    present[computed] = True
    offsets = np.concatenate([[0], np.cumsum(present * (len(flat) // len(computed)))])
    return pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), flat, mask=pa.array(~present))


def _locate_chunks(folder: str, wanted: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The part of each wanted chunk, and its row in there: file names, (C,) int64 into them (-1 where there is none), (C,)
    int64. Of several rows of a chunk the one with the fewest holes counts, because features are only ever added.
    """
    names = part_names(folder)
    keys_by_part = read_keys(folder, names)
    counts = [len(keys) for keys in keys_by_part]
    if not sum(counts):
        return names, np.full(len(wanted), -1), np.zeros(len(wanted), dtype=np.int64)
    rows = np.concatenate(keys_by_part)
    part = np.repeat(np.arange(len(names)), counts)
    position = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    keys = chunk_keys(rows[:, 0], rows[:, 1])
    order = np.lexsort((rows[:, 2], keys))
    ordered = keys[order]
    place = np.minimum(np.searchsorted(ordered, wanted), len(keys) - 1)
    return names, np.where(ordered[place] == wanted, part[order][place], -1), position[order][place]
