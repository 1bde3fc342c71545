"""From the numbers of each episode to the figures of a dataset, each with a bootstrap interval over episodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from sarm_ray.core.metrics import DONE, EpisodeFacts
from sarm_ray.core.resampling import (
    draw_counts,
    interval,
    resampled_correlation,
    weighted_auroc,
    weighted_quantile,
    weighted_r2,
    weighted_ratio,
)


@dataclass(frozen=True)
class Figure:
    """One number.

    Args:
        name: such as `offline_progress_mse`.
        value: NaN where nothing could be counted.
        low, high: 95 % bootstrap interval over episodes; NaN where there is none.
        num_episodes: that it rests on.
    """

    name: str
    value: float
    low: float
    high: float
    num_episodes: int


def summarize_episodes(episodes: Sequence[EpisodeFacts], seed: int = 0) -> list[Figure]:
    """All figures that some episode has a share in, each with its interval.

    Args:
        episodes: E of them, each with a prediction.
        seed: of the bootstrap.
    """
    if not episodes:
        return []
    counts = draw_counts(len(episodes), seed)
    figures = []
    for name in dict.fromkeys(name for each in episodes for name in each.ratios):
        pairs = np.array([each.ratios.get(name, (0.0, 0.0)) for each in episodes])
        num = int((pairs[:, 1] > 0).sum())
        if name.endswith("_drop_f1"):  # falls that are none tell nothing where there is no drop to find
            num = sum(each.ratios.get(name.replace("_f1", "_detection"), (0.0, 0.0))[1] > 0 for each in episodes)
        if num:
            figures.append(_figure(name, weighted_ratio(counts, pairs[:, 0], pairs[:, 1]), num))
    for name in dict.fromkeys(name for each in episodes for name in each.moments):
        moments = np.array([each.moments.get(name, np.zeros(6)) for each in episodes])
        figures.append(_figure(name, weighted_r2(counts, moments), int((moments[:, 0] > 0).sum())))
    return figures + _outcome_figures(episodes, counts) + _cut_figures(episodes, counts)


def _figure(name: str, values: np.ndarray, num_episodes: int) -> Figure:
    """A figure of (1 + R,) values; one episode says nothing about others, so it has no interval."""
    value, low, high = interval(values)
    if num_episodes < 2:
        low, high = nan, nan
    return Figure(name, value, low, high, num_episodes)


def _outcome_figures(episodes: Sequence[EpisodeFacts], counts: np.ndarray) -> list[Figure]:
    """Final progress against outcomes; for grading the highest progress counts, for success the last."""
    grade, final, maximum = (
        np.array([getattr(each, name) for each in episodes]) for name in ("grade", "final", "maximum")
    )
    graded = np.isfinite(grade) & np.isfinite(final)
    classes = {"success": graded & (grade == 1), "failure": graded & (grade == 0)}
    classes["partial"] = graded & ~classes["success"] & ~classes["failure"]
    figures = []
    told = classes["success"] | classes["failure"]
    if classes["success"].any() and classes["failure"].any():
        values = weighted_auroc(counts[:, told], final[told], classes["success"][told])
        figures.append(_figure("auroc", values, int(told.sum())))
    for name, kind in (("kendall_tau_b", "kendall"), ("grade_spearman", "spearman")):
        if graded.sum() > 1 and np.ptp(grade[graded]) > 0:
            values = resampled_correlation(counts[:, graded], kind, maximum[graded], grade[graded])
            figures.append(_figure(name, values, int(graded.sum())))
    for name, members in classes.items():
        if members.any():
            values = weighted_ratio(counts, np.where(members, final, 0.0), members.astype(np.float64))
            figures.append(_figure(f"final_{name}", values, int(members.sum())))
    failed = classes["failure"]
    if failed.any():
        values = weighted_ratio(counts, (failed & (final > DONE)).astype(np.float64), failed.astype(np.float64))
        figures.append(_figure("failures_above_0.8", values, int(failed.sum())))
    return figures


def _cut_figures(episodes: Sequence[EpisodeFacts], counts: np.ndarray) -> list[Figure]:
    owner = np.repeat(np.arange(len(episodes)), [len(each.cut_scores) for each in episodes])
    if not len(owner):
        return []
    difference = np.concatenate([each.cut_differences for each in episodes])
    number = np.bincount(owner, minlength=len(episodes)).astype(np.float64)
    total = np.bincount(owner, weights=difference, minlength=len(episodes))
    high = np.bincount(
        owner, weights=np.concatenate([each.cut_scores for each in episodes]) > DONE, minlength=len(episodes)
    )
    num = int((number > 0).sum())
    return [
        _figure("truncation_mean", weighted_ratio(counts, total, number), num),
        _figure("truncation_p95", weighted_quantile(counts, difference, owner, 0.95), num),
        _figure("truncated_above_0.8", weighted_ratio(counts, high, number), num),
    ]
