"""From the numbers of each episode to the figures of a dataset, each with a bootstrap interval over episodes."""

from collections.abc import Sequence
from dataclasses import dataclass

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
        if num:
            figures.append(Figure(name, *interval(weighted_ratio(counts, pairs[:, 0], pairs[:, 1])), num))
    for name in dict.fromkeys(name for each in episodes for name in each.moments):
        moments = np.array([each.moments.get(name, np.zeros(6)) for each in episodes])
        figures.append(Figure(name, *interval(weighted_r2(counts, moments)), int((moments[:, 0] > 0).sum())))
    return figures + _outcome_figures(episodes, counts) + _cut_figures(episodes, counts)


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
        figures.append(Figure("auroc", *interval(values), int(told.sum())))
    for name, kind in (("kendall_tau_b", "kendall"), ("grade_spearman", "spearman")):
        if graded.sum() > 1 and np.ptp(grade[graded]) > 0:
            values = resampled_correlation(counts[:, graded], kind, maximum[graded], grade[graded])
            figures.append(Figure(name, *interval(values), int(graded.sum())))
    for name, members in classes.items():
        if members.any():
            values = weighted_ratio(counts, np.where(members, final, 0.0), members.astype(np.float64))
            figures.append(Figure(f"final_{name}", *interval(values), int(members.sum())))
    failed = classes["failure"]
    if failed.any():
        values = weighted_ratio(counts, (failed & (final > DONE)).astype(np.float64), failed.astype(np.float64))
        figures.append(Figure("failures_above_0.8", *interval(values), int(failed.sum())))
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
        Figure("truncation_mean", *interval(weighted_ratio(counts, total, number)), num),
        Figure("truncation_p95", *interval(weighted_quantile(counts, difference, owner, 0.95)), num),
        Figure("truncated_above_0.8", *interval(weighted_ratio(counts, high, number)), num),
    ]
