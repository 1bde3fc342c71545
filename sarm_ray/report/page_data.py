"""Scores of a dataset as the page carries them: figures per episode, and curves at a few hundred frames of each.

Progress is stored as uint16 (0 to 65534; NO_VALUE where there is none), deltas as int16 (DELTA_SCALE per unit, the sign
kept where rounding would lose it; NO_DELTA where there is none). Which frames of an episode are stored follows from its
length and their number, see `point_frames`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.core.rabc import DeltaDistribution, progress_deltas
from sarm_ray.data import storage
from sarm_ray.data.lerobot import Dataset
from sarm_ray.data.progress_io import ProgressBlock, read_progress_blocks
from sarm_ray.errors import DatasetError
from sarm_ray.report.flags import Flag, drawdown, find_flags

MAX_POINTS = 10**6  # of a page: 5 MB of curves and deltas
FEWEST_POINTS = 40  # of an episode, however many there are
PROGRESS_SCALE, NO_VALUE = 65534, 65535
DELTA_SCALE, NO_DELTA = 32000, -32768


@dataclass(frozen=True)
class Curves:
    """E scored episodes, in the order of the progress file. P points are stored, each episode's after the one before.

    Args:
        rows: (E,) int64, positions in the dataset's table.
        final: (E,) float64, progress of the last frame; NaN where it is not scored.
        highest, drawdown: (E,) float64; NaN where nothing is scored.
        flags: of each episode, by its curve.
        num_points: (E,) int64.
        progress: (P,) uint16.
        deltas: (P,) int16, progress within the horizon of each stored frame.
        distribution: the deltas of all frames.
    """

    rows: np.ndarray
    final: np.ndarray
    highest: np.ndarray
    drawdown: np.ndarray
    flags: tuple[tuple[Flag, ...], ...]
    num_points: np.ndarray
    progress: np.ndarray
    deltas: np.ndarray
    distribution: DeltaDistribution


@dataclass
class _Gathered:
    """Curves on their way: one entry per episode."""

    rows: list[int] = field(default_factory=list)
    final: list[float] = field(default_factory=list)
    highest: list[float] = field(default_factory=list)
    drawdown: list[float] = field(default_factory=list)
    flags: list[tuple[Flag, ...]] = field(default_factory=list)
    progress: list[np.ndarray] = field(default_factory=list)
    deltas: list[np.ndarray] = field(default_factory=list)


def read_metadata(location: str) -> dict[str, str]:
    """What a progress file says of itself: `progress_schema`'s metadata; of LeRobot's file, reward_model_path.

    Raises:
        DatasetError: not a parquet file.
    """
    try:
        with storage.open_input(location) as stream:
            metadata = pq.read_schema(stream).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{location}: not a readable parquet file ({str(error).splitlines()[0]})") from error
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in metadata.items()}


def point_frames(length: int, num_points: int) -> np.ndarray:
    """Frames of an episode that are stored, spread evenly, first and last among them: (num_points,) int64."""
    return np.arange(num_points) * (length - 1) // max(num_points - 1, 1)


def read_curves(location: str, head: str, dataset: Dataset, chunk_size: int) -> Curves:
    """Read a progress file once, block by block; what is kept does not grow with the length of episodes.

    Args:
        location: the file.
        head: `sparse` or `dense`.
        dataset: that was scored.
        chunk_size: horizon of RA-BC, frames.

    Raises:
        DatasetError: a file that cannot be read, has no rows, or whose episodes are not the dataset's.
    """
    return gather_curves(read_progress_blocks(location, head), location, dataset, chunk_size)


def gather_curves(blocks: Iterable[ProgressBlock], location: str, dataset: Dataset, chunk_size: int) -> Curves:
    """The same of blocks, wherever they come from; `location` is for messages."""
    distribution, gathered = DeltaDistribution(), _Gathered()
    row_of = {number: row for row, number in enumerate(dataset.episode_index.tolist())}
    max_points = max(MAX_POINTS // len(dataset.length), FEWEST_POINTS)
    for block in blocks:
        deltas = progress_deltas(block.progress, block.lengths, chunk_size)
        distribution.add(deltas)
        _gather(gathered, block, deltas, location, dataset, row_of, max_points)
    if not gathered.rows:
        raise DatasetError(f"{location}: no rows")
    return Curves(
        rows=np.array(gathered.rows, dtype=np.int64),
        final=np.array(gathered.final),
        highest=np.array(gathered.highest),
        drawdown=np.array(gathered.drawdown),
        flags=tuple(gathered.flags),
        num_points=np.array([len(points) for points in gathered.progress], dtype=np.int64),
        progress=np.concatenate(gathered.progress),
        deltas=np.concatenate(gathered.deltas),
        distribution=distribution,
    )


def quantize_progress(progress: np.ndarray) -> np.ndarray:
    """(n,) float in 0..1 -> (n,) uint16, NO_VALUE for NaN."""
    known = np.isfinite(progress)
    codes = np.rint(np.clip(np.where(known, progress, 0.0), 0.0, 1.0) * PROGRESS_SCALE)
    return np.where(known, codes, NO_VALUE).astype(np.uint16)


def quantize_deltas(deltas: np.ndarray) -> np.ndarray:
    """(n,) float in -1..1 -> (n,) int16, NO_DELTA for NaN; what is not 0 does not become 0."""
    known = np.isfinite(deltas)
    scaled = np.where(known, deltas, 0.0) * DELTA_SCALE
    codes = np.sign(scaled) * np.maximum(np.rint(np.abs(scaled)), scaled != 0)
    return np.where(known, np.clip(codes, -DELTA_SCALE, DELTA_SCALE), NO_DELTA).astype(np.int16)


def _gather(
    gathered: _Gathered,
    block: ProgressBlock,
    deltas: np.ndarray,
    location: str,
    dataset: Dataset,
    row_of: dict[int, int],
    max_points: int,
) -> None:
    start = 0
    for length in block.lengths.tolist():
        number = int(block.episode_index[start])
        row = row_of.get(number)
        if row is None or length != dataset.length[row]:
            has = "no such episode" if row is None else f"{dataset.length[row]:,} in it"
            raise DatasetError(
                f"{location}: episode {number} has {length:,} frames, but {dataset.name} has {has}: the file belongs to "
                "another dataset, or to another version of it; score it again"
            )
        progress = block.progress[start : start + length]
        frames = point_frames(length, min(length, max_points))
        gathered.rows.append(row)
        gathered.final.append(float(progress[-1]))
        gathered.highest.append(float(np.fmax.reduce(progress)))
        gathered.drawdown.append(drawdown(progress))
        gathered.flags.append(find_flags(progress, dataset.fps))
        gathered.progress.append(quantize_progress(progress[frames]))
        gathered.deltas.append(quantize_deltas(deltas[start : start + length][frames]))
        start += length
