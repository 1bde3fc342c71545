"""Bootstrap over episodes: an interval for any figure that can be computed from how often each episode was drawn.

A figure is a function of counts, (R, E) float64: row r says how often resample r drew each of the E episodes. The first
row is all ones, so that one call gives the value itself and its resamples.
"""

import numpy as np
from scipy import stats

NUM_RESAMPLES = 1000
BLOCK_BYTES = 2**26


def draw_counts(num_episodes: int, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """How often each episode is drawn: (1 + num_resamples, E) float64, the first row all ones."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_episodes, np.full(num_episodes, 1 / num_episodes), num_resamples)
    return np.concatenate([np.ones((1, num_episodes)), drawn.astype(np.float64)])


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """A figure's value and its 95 % interval, of (1 + R,) float64 with the value first; NaN resamples are left out."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not len(drawn) or not np.isfinite(values[0]):
        return float(values[0]), float("nan"), float("nan")
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(values[0]), float(low), float(high)


def weighted_ratio(counts: np.ndarray, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Sum over sum: (R, E) counts, (E,) and (E,) -> (R,); NaN where nothing was drawn that counts."""
    total = counts @ denominator
    return np.divide(counts @ numerator, total, out=np.full(len(counts), np.nan), where=total > 0)


def weighted_quantile(counts: np.ndarray, values: np.ndarray, owner: np.ndarray, share: float) -> np.ndarray:
    """The smallest value that at least a share of the drawn ones does not exceed.

    Args:
        counts: (R, E).
        values: (V,) float64, several per episode.
        owner: (V,) int64, the episode of each.
        share: in 0..1.

    Returns:
        (R,) float64; NaN where nothing was drawn.
    """
    if not len(values):
        return np.full(len(counts), np.nan)
    order = np.argsort(values, kind="stable")
    result = np.full(len(counts), np.nan)
    step = max(1, BLOCK_BYTES // (8 * len(values)))
    for first in range(0, len(counts), step):
        drawn = np.cumsum(counts[first : first + step][:, owner[order]], axis=1)
        total = drawn[:, -1:]
        place = np.minimum((drawn < share * total - 1e-9).sum(axis=1), len(values) - 1)
        result[first : first + step] = np.where(total[:, 0] > 0, values[order][place], np.nan)
    return result


def weighted_auroc(counts: np.ndarray, score: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Chance that a drawn positive scores above a drawn negative, ties counting half.

    Args:
        counts: (R, E).
        score: (E,) float64, finite.
        positive: (E,) bool.

    Returns:
        (R,) float64; NaN where one class was not drawn.
    """
    order = np.argsort(score, kind="stable")
    if not len(order):
        return np.full(len(counts), np.nan)
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # of runs of equal scores
    above = np.add.reduceat((counts * positive)[:, order], starts, axis=1)
    below = np.add.reduceat((counts * ~positive)[:, order], starts, axis=1)
    wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
    pairs = above.sum(axis=1) * below.sum(axis=1)
    return np.divide(wins, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


def resampled_correlation(counts: np.ndarray, kind: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`rank_correlation` of the drawn episodes, worked out for each resample: (R, E), (E,), (E,) -> (R,)."""
    drawn = [np.repeat(np.arange(len(first)), row.astype(np.int64)) for row in counts]
    return np.array([rank_correlation(kind, first[episodes], second[episodes]) for episodes in drawn])


def rank_correlation(kind: str, first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rho or Kendall's tau-b of two (n,) arrays; NaN where either does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    correlate = {"spearman": stats.spearmanr, "kendall": stats.kendalltau}[kind]
    return float(correlate(first, second).statistic)


def weighted_r2(counts: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Squared Pearson correlation over the frames of the drawn episodes.

    Args:
        counts: (R, E).
        moments: (E, 6) float64 from `pair_moments`.

    Returns:
        (R,) float64; NaN where either side does not vary.
    """
    n, x, y, xx, yy, xy = (counts @ moments).T
    n = np.maximum(n, 1)
    spread = (xx - x**2 / n) * (yy - y**2 / n)
    return np.divide((xy - x * y / n) ** 2, spread, out=np.full(len(counts), np.nan), where=spread > 1e-12)


def pair_moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """n, sum x, sum y, sum x^2, sum y^2, sum xy of two (n,) arrays: (6,) float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return np.array([len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y])
