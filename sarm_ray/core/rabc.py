"""RA-BC: how much each frame counts in imitation learning, from the progress made over the next frames.

LeRobot's RABCWeights (its equations 8 and 9), vectorised. A frame's delta is the progress at the horizon minus the progress
now; deltas above kappa weigh 1, falling ones 0, those between a share that grows with the delta, and frames without a
delta 1. A dataset of any size is read once: `DeltaDistribution` takes it block by block and keeps a histogram whose edges
are the values that kappa can take, so that the mean weight is known at each of them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

EPSILON = 1e-6  # LeRobot's: smallest standard deviation, and added to the width of the soft range
FALLBACK_WEIGHT = 1.0  # LeRobot's, of a frame whose delta is NaN
HEALTHY_MEAN_WEIGHT = (0.3, 0.8)
TARGET_MEAN_WEIGHTS = (0.3, 0.5, 0.7)
AUTO_SHARE = 0.75
EDGES_PER_UNIT = 10**6  # kappa counts to six decimals
TARGET_TOLERANCE = 0.02
LEROBOT_KAPPA = 0.01  # its default
# the kappas that its documentation recommends, each more selective than the one before: mean + n std of the deltas
LEROBOT_RULES = {"mean": 0, "mean + std": 1, "mean + 2 std": 2}
HISTOGRAM_ROWS = 14
HISTOGRAM_SHARE = 0.99  # of the deltas above the first row, and as many below the last


def progress_deltas(progress: np.ndarray, lengths: np.ndarray, chunk_size: int) -> np.ndarray:
    """Progress made within the horizon of each frame.

    Args:
        progress: (N,) float, whole episodes one after the other; NaN where there is none.
        lengths: (E,) int64, frames of each episode, N together.
        chunk_size: the horizon in frames, at least 1: the policy's chunk_size.

    Returns:
        (N,) float64, progress[min(t + chunk_size, last frame of the episode)] - progress[t], not rescaled where the
        horizon is cut short (the last frame has 0); NaN where either end is.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 frame, not {chunk_size}")
    last = np.repeat(np.cumsum(lengths) - 1, lengths)
    ahead = np.minimum(np.arange(len(progress)) + chunk_size, last)
    return progress[ahead].astype(np.float64) - progress


def rabc_weights(
    deltas: np.ndarray,
    mean: float,
    std: float,
    kappa: float,
    epsilon: float = EPSILON,
    fallback_weight: float = FALLBACK_WEIGHT,
) -> np.ndarray:
    """Weights as LeRobot gives them before it normalises a batch, to the bit.

    Args:
        deltas: (N,) float, from `progress_deltas`.
        mean: `DeltaDistribution.mean`, of the whole dataset.
        std: `DeltaDistribution.std`, of the whole dataset.
        kappa: deltas above it weigh 1.
        epsilon: added to the width of the soft range.
        fallback_weight: of a frame whose delta is NaN.

    Returns:
        (N,) float32 in [0, 1], but for the fallback weight.
    """
    deltas = deltas.astype(np.float32)
    weights = np.where(deltas > kappa, np.float32(1), _soft_weights(deltas, mean, std, epsilon))
    weights[deltas < 0] = 0
    weights[np.isnan(deltas)] = fallback_weight
    return weights


def _soft_weights(deltas: np.ndarray, mean: float, std: float, epsilon: float) -> np.ndarray:
    """Weights of deltas in 0..kappa: from 0 at mean - 2 std to 1 at mean + 2 std, in the dtype of `deltas`."""
    return np.clip((deltas - (mean - 2 * std)) / (4 * std + epsilon), 0.0, 1.0)


def grade_weights(
    weights: np.ndarray, episodes: np.ndarray, lengths: np.ndarray, grades: Mapping[int, float]
) -> np.ndarray:
    """Weights times the grade of their episode: nothing is learnt from a failure, however well it went for a while.

    Args:
        weights: (N,) float32, whole episodes one after the other.
        episodes: (E,) int64, their episode_index.
        lengths: (E,) int64, frames of each episode, N together.
        grades: episode -> 0 (failure) to 1 (success); the weights of an episode that is not in it stay as they are.

    Returns:
        (N,) float32.
    """
    factors = np.array([grades.get(episode, 1.0) for episode in episodes.tolist()], dtype=np.float32)
    return weights * np.repeat(factors, lengths)


@dataclass(frozen=True)
class DeltaHistogram:
    """Deltas counted between round edges; empty where there are none.

    Args:
        edges: R - 1 of them in equal steps of 1, 2 or 5 times a power of ten, 0 among them.
        counts: R; deltas up to the first edge, those above it up to the second, ..., those above the last. A delta of 0
            counts with those above 0.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class DeltaDistribution:
    """The deltas of a dataset, added block by block.

    Moments and counts are exact. Deltas of at least 0 are counted between the edges 0, 1e-6, 2e-6, ... 1 with LeRobot's
    comparison (float32 delta > float32 kappa), so what depends on a kappa of six decimals is exact too, but for the
    rounding of soft weights: all deltas between two edges get that of their mean. 28 MB, however many.

    Args:
        epsilon: smallest standard deviation, and added to the width of the soft range.
    """

    def __init__(self, epsilon: float = EPSILON) -> None:
        self._epsilon = epsilon
        edges = (np.arange(EDGES_PER_UNIT + 1) / EDGES_PER_UNIT).astype(np.float32)
        self._ends = np.append(edges, np.float32(np.inf))  # of each bin
        self.num_frames = 0
        self.num_nan = 0
        self.num_falling = 0
        self._mean, self._squares = 0.0, 0.0  # of those that are not NaN; squares are of distances from the mean
        # bin 0 holds deltas of 0, bin j those in (edge j - 1, edge j], the last one those above 1
        self._count = np.zeros(len(self._ends), dtype=np.int64)
        self._sum = np.zeros(len(self._ends))
        # for the histogram alone: entry j holds falling deltas from edge j downwards, the last one those of -1 and less
        self._falling = np.zeros(len(edges), dtype=np.int64)

    def add(self, deltas: np.ndarray) -> None:
        """Add a block of deltas: (n,) float64 from `progress_deltas`."""
        valid = deltas[~np.isnan(deltas)]
        before = self.num_valid
        self.num_frames += len(deltas)
        self.num_nan += len(deltas) - len(valid)
        if not len(valid):
            return
        mean = float(valid.mean())
        apart = mean - self._mean
        self._squares += float(np.square(valid - mean).sum()) + apart**2 * before * len(valid) / self.num_valid
        self._mean += apart * len(valid) / self.num_valid
        rising = valid[valid >= 0].astype(np.float32)
        self.num_falling += len(valid) - len(rising)
        bins = self._bins_of(rising)
        np.add.at(self._count, bins, 1)
        np.add.at(self._sum, bins, rising.astype(np.float64))
        np.add.at(self._falling, (np.minimum(-valid[valid < 0], 1) * EDGES_PER_UNIT).astype(np.int64), 1)

    def _bins_of(self, deltas: np.ndarray) -> np.ndarray:
        """The first bin whose end is not below each delta: (n,) float32, none negative -> (n,) int64."""
        bins = (np.minimum(deltas, 1) * EDGES_PER_UNIT).astype(np.int64) - 1  # at most 3 too few: 10x a binary search
        np.maximum(bins, 0, out=bins)
        for _ in range(3):
            bins += self._ends[bins] < deltas
        return bins

    @property
    def num_valid(self) -> int:
        """Frames whose delta is not NaN."""
        return self.num_frames - self.num_nan

    @property
    def mean(self) -> float:
        """Mean delta as LeRobot uses and logs it: at least 0."""
        return max(self._mean, 0.0)

    @property
    def std(self) -> float:
        """Population standard deviation of the deltas, at least epsilon."""
        return max(math.sqrt(self._squares / max(self.num_valid, 1)), self._epsilon)

    def quantile(self, share: float) -> float:
        """The smallest edge that at least this share of the deltas does not exceed; 0 where that many are negative."""
        cumulated = self.num_falling + np.cumsum(self._count)
        place = int(np.searchsorted(cumulated, share * self.num_valid))
        return float(min(place, EDGES_PER_UNIT) / EDGES_PER_UNIT)

    def histogram(self) -> DeltaHistogram:
        """The deltas in at most HISTOGRAM_ROWS rows, and two more for the outermost."""
        if not self.num_valid:
            return DeltaHistogram((), ())
        cumulated = np.cumsum(np.concatenate([self._falling[::-1], self._count]))
        zero = len(self._falling) - 1  # up to here they fall
        first, last = np.searchsorted(cumulated, np.array([1 - HISTOGRAM_SHARE, HISTOGRAM_SHARE]) * self.num_valid)
        low = max(min(int(first) - zero - 1, 0), -EDGES_PER_UNIT)
        high = min(max(int(last) - zero - 1, 1), EDGES_PER_UNIT)
        widths = (digit * 10**power for power in range(6) for digit in (1, 2, 5))
        width = next(width for width in widths if -(-high // width) - low // width <= HISTOGRAM_ROWS)
        edges = width * np.arange(low // width, -(-high // width) + 1)
        counts = np.diff(cumulated[zero + edges + (edges > 0)], prepend=0, append=self.num_valid)
        return DeltaHistogram(tuple((edges / EDGES_PER_UNIT).tolist()), tuple(counts.tolist()))

    def soft_weights(self) -> np.ndarray:
        """The weight that each bin's deltas have where kappa is not below them: (bins,) float64."""
        return _soft_weights(self._sum / np.maximum(self._count, 1), self.mean, self.std, self._epsilon)

    def count_above(self) -> np.ndarray:
        """Deltas above each edge: (edges,) int64."""
        return self._count[::-1].cumsum()[::-1][1:]

    def mean_weights(self) -> np.ndarray:
        """The mean weight that each edge would give as kappa: (edges,) float64, not increasing; NaN frames weigh 1."""
        soft = np.cumsum(self.soft_weights() * self._count)[:-1]
        total = self.num_nan * FALLBACK_WEIGHT + self.count_above() + soft
        return np.minimum.accumulate(total / max(self.num_frames, 1))

    def count_soft(self, value: float, kappa_edge: int) -> int:
        """Deltas between 0 and an edge, inclusive, whose soft weight is `value`."""
        return int(self._count[: kappa_edge + 1][self.soft_weights()[: kappa_edge + 1] == value].sum())


@dataclass(frozen=True)
class RabcSummary:
    """What RA-BC makes of a dataset's progress.

    Args:
        kappa: that was asked about, to six decimals.
        num_frames: of the dataset.
        delta_mean, delta_std: what LeRobot logs under these names.
        mean_weight: over all frames.
        share_zero, share_full: frames that weigh 0, and frames whose delta makes them weigh 1.
        share_falling: frames whose progress falls within the horizon; no kappa gives them weight.
        num_nan: frames without a delta, which weigh 1.
        auto_kappa: the 75th percentile of the deltas (at least 0), and
        auto_mean_weight: what it would give.
        rules: LeRobot's `default` and LEROBOT_RULES: kappa (at most 1) and the mean weight that it gives.
        kappa_for: for each of TARGET_MEAN_WEIGHTS the kappa that gives it (within TARGET_TOLERANCE), or None.
        reachable: the lowest and the highest mean weight that any kappa gives.
    """

    kappa: float
    num_frames: int
    delta_mean: float
    delta_std: float
    mean_weight: float
    share_zero: float
    share_full: float
    share_falling: float
    num_nan: int
    auto_kappa: float
    auto_mean_weight: float
    rules: dict[str, tuple[float, float]]
    kappa_for: dict[float, float | None]
    reachable: tuple[float, float]

    @property
    def is_healthy(self) -> bool:
        return is_healthy(self.mean_weight)


def is_healthy(mean_weight: float) -> bool:
    """Whether RA-BC with this mean weight tells frames apart and yet learns from enough of them."""
    return HEALTHY_MEAN_WEIGHT[0] <= mean_weight <= HEALTHY_MEAN_WEIGHT[1]


def summarize_weights(distribution: DeltaDistribution, kappa: float) -> RabcSummary:
    """What a kappa gives, and which would be better.

    Raises:
        ValueError: a negative kappa, or no frames.
    """
    if not kappa >= 0:
        raise ValueError(f"kappa must be at least 0, not {kappa}")
    if not distribution.num_frames:
        raise ValueError("no frames")
    edge = _edge_of(kappa)
    curve, num_frames = distribution.mean_weights(), distribution.num_frames
    num_full = int(distribution.count_above()[edge]) + distribution.count_soft(1.0, edge)
    auto = distribution.quantile(AUTO_SHARE)
    rules = {name: distribution.mean + n * distribution.std for name, n in LEROBOT_RULES.items()}
    edges = {name: _edge_of(value) for name, value in {"default": LEROBOT_KAPPA, **rules}.items()}
    return RabcSummary(
        kappa=edge / EDGES_PER_UNIT,
        num_frames=num_frames,
        delta_mean=distribution.mean,
        delta_std=distribution.std,
        mean_weight=float(curve[edge]),
        share_zero=(distribution.num_falling + distribution.count_soft(0.0, edge)) / num_frames,
        share_full=num_full / num_frames,
        share_falling=distribution.num_falling / num_frames,
        num_nan=distribution.num_nan,
        auto_kappa=auto,
        auto_mean_weight=float(curve[_edge_of(auto)]),
        rules={name: (own / EDGES_PER_UNIT, float(curve[own])) for name, own in edges.items()},
        kappa_for={target: _kappa_for(curve, target) for target in TARGET_MEAN_WEIGHTS},
        reachable=(float(curve[-1]), float(curve[0])),
    )


def _edge_of(kappa: float) -> int:
    return round(min(kappa, 1.0) * EDGES_PER_UNIT)


def _kappa_for(curve: np.ndarray, target: float) -> float | None:
    """The smallest edge whose mean weight is nearest to the target; None where that is not near."""
    place = int(np.searchsorted(-curve, -target))  # the first edge with no more than the target
    levels = curve[[max(place - 1, 0), min(place, len(curve) - 1)]]
    level = levels[np.abs(levels - target).argmin()]
    if abs(level - target) > TARGET_TOLERANCE:
        return None
    return float(np.searchsorted(-curve, -level) / EDGES_PER_UNIT)
