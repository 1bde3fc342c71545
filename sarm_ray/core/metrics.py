"""How good a reward model's progress is, on annotated episodes and on graded ones: spec/ours.md E.

Each episode is reduced to a handful of numbers (`measure_episode`), so that a dataset of any size is looked at one episode
at a time; all figures and their intervals over episodes come from those (`summarize_episodes`). Progress is judged in two
views: `offline`, as the model scores a recording, and `live`, with the future cut at each frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sarm_ray.core.resampling import (
    draw_counts,
    interval,
    pair_moments,
    rank_correlation,
    resampled_correlation,
    weighted_auroc,
    weighted_quantile,
    weighted_r2,
    weighted_ratio,
)

FALL = 0.1  # of progress, that counts as a drop
FALL_WITHIN_S = 1.0
DONE = 0.8  # progress above which an episode looks finished
SMALLEST_CHANGE = 0.02  # of the truth over a horizon, that has a sign
JUMP = 0.15  # of progress from one frame to the next
CUTS_PER_EPISODE = 3
CUT_BELOW = 0.7  # cuts are made where less than this is done
REVERSED_SPANS = 5
ANNOTATED_SUCCESS = 0.9  # annotated progress of the last frame of an episode that reached its end


@dataclass(frozen=True)
class Truth:
    """What an annotation says of an episode of L frames.

    Args:
        progress: (L,) float32.
        stage: (L,) int64.
        starts: first frame of each annotated segment but the first, in the order of time, and
        stages: that segment's stage.
    """

    progress: np.ndarray
    stage: np.ndarray
    starts: tuple[int, ...]
    stages: tuple[int, ...]

    def regressions(self, fps: float) -> list[int]:
        """Frames at which the annotated progress falls by more than FALL within FALL_WITHIN_S."""
        reach = max(round(FALL_WITHIN_S * fps), 1)
        stages = (int(self.stage[0]), *self.stages)
        lower = [
            frame for frame, before, after in zip(self.starts, stages, self.stages, strict=False) if after < before
        ]
        return [f for f in lower if self.progress[f - 1] - self.progress[f : f + reach].min() > FALL]


@dataclass(frozen=True)
class Prediction:
    """What a model says of an episode of L frames in one view.

    Args:
        progress: (L,) float32, NaN where there is none.
        stage: (L,) int64, the most probable one, -1 where there is none; None for what has no stages (a baseline).
    """

    progress: np.ndarray
    stage: np.ndarray | None = None


@dataclass
class EpisodeFacts:
    """What remains of an episode.

    Args:
        grade: 0 failure to 1 success, NaN where it is not known.
        ratios: figure -> numerator and denominator, to be summed over episodes.
        moments: figure -> (6,) float64 of `pair_moments`.
        final, maximum: offline progress of the last frame and the highest; NaN where the last frame has none.
        cut_differences, cut_scores: of the episode cut at some points.
    """

    grade: float = float("nan")
    ratios: dict[str, tuple[float, float]] = field(default_factory=dict)
    moments: dict[str, np.ndarray] = field(default_factory=dict)
    final: float = float("nan")
    maximum: float = float("nan")
    cut_differences: list[float] = field(default_factory=list)
    cut_scores: list[float] = field(default_factory=list)


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


def measure_episode(
    views: dict[str, Prediction],
    truth: Truth | None,
    grade: float,
    fps: float,
    chunk_size: int,
    episode: int,
    backwards: np.ndarray | None = None,
) -> EpisodeFacts:
    """Reduce an episode to what its figures need.

    Args:
        views: `offline`, `live` or any other name -> prediction.
        truth: its annotation, or None.
        grade: see `EpisodeFacts`.
        fps: frames per second.
        chunk_size: horizon of the delta sign, in frames.
        episode: its number; seeds the cuts.
        backwards: (L,) float32, progress of the episode played backwards, in the order of that playing; None where
            regressions are annotated or the episode did not succeed.
    """
    facts = EpisodeFacts(grade=grade)
    succeeded = grade == 1 or (np.isnan(grade) and truth is not None and truth.progress[-1] > ANNOTATED_SUCCESS)
    clean = succeeded and (truth is None or not truth.regressions(fps))
    for view, prediction in views.items():
        known = np.isfinite(prediction.progress)
        if not known.any():
            continue
        measured = _against_truth(prediction, truth, fps, chunk_size) if truth is not None else {}
        measured["jumps"] = _share(np.abs(np.diff(prediction.progress)) > JUMP, np.diff(prediction.progress))
        if clean:
            measured["false_drawdowns"] = (float(max_drawdown(prediction.progress) > FALL), 1.0)
        facts.ratios |= {f"{view}_{name}": pair for name, pair in measured.items()}
        time = np.arange(len(prediction.progress)) / max(len(prediction.progress) - 1, 1)
        if truth is not None:
            facts.moments[f"{view}_progress_r2"] = pair_moments(prediction.progress[known], truth.progress[known])
            facts.moments[f"{view}_clock_r2"] = pair_moments(prediction.progress[known], time[known])
    if "offline" in views:
        _add_whole_episode(facts, views["offline"].progress, clean)
    if "offline" in views and "live" in views:
        _add_cuts(facts, views["offline"].progress, views["live"].progress, truth, episode)
    if backwards is not None and clean:
        facts.ratios["offline_reversed_drop_detection"] = _backward_falls(backwards, truth, fps)
    return facts


def max_drawdown(progress: np.ndarray) -> float:
    """The furthest that progress falls below what it was before: (L,) float, NaN left out."""
    known = progress[np.isfinite(progress)]
    return float((np.maximum.accumulate(known) - known).max(initial=0.0))


def _add_whole_episode(facts: EpisodeFacts, progress: np.ndarray, clean: bool) -> None:
    known = progress[np.isfinite(progress)]
    if not len(known):
        return
    facts.final, facts.maximum = float(progress[-1]), float(known.max())
    if clean:
        rho = rank_correlation("spearman", known, np.flatnonzero(np.isfinite(progress)))
        facts.ratios["offline_voc"] = (0.0, 0.0) if np.isnan(rho) else (rho, 1.0)


def _against_truth(prediction: Prediction, truth: Truth, fps: float, chunk_size: int) -> dict[str, tuple[float, float]]:
    progress = prediction.progress.astype(np.float64)
    error = progress - truth.progress
    measured = {"progress_mse": _share(error**2, error), "progress_mae": _share(np.abs(error), error)}
    falls = [_falls_near(progress, frame, fps) for frame in truth.regressions(fps)]
    measured["drop_detection"] = (float(sum(falls)), float(len(falls)))
    measured |= _delta_signs(progress, truth.progress.astype(np.float64), chunk_size)
    if prediction.stage is not None and len(set(truth.stage.tolist())) > 1:
        measured["stage_accuracy"] = _share(prediction.stage == truth.stage, progress)
        errors = _boundary_errors(prediction.stage, truth, fps)
        measured["boundary_error_s"] = (float(sum(errors)), float(len(errors)))
    return measured


def _share(values: np.ndarray, where: np.ndarray) -> tuple[float, float]:
    """Sum and count of values where another array is finite."""
    known = np.isfinite(where)
    return float(np.asarray(values, dtype=np.float64)[known].sum()), float(known.sum())


def falls_within(progress: np.ndarray, reach: int) -> np.ndarray:
    """How far progress falls within the next frames of each: (L,) float -> (L,) float64, never negative, NaN as no fall."""
    padded = np.concatenate([np.where(np.isfinite(progress), progress, np.inf), np.full(reach, np.inf)])
    lowest = np.lib.stride_tricks.sliding_window_view(padded, reach + 1).min(axis=1)
    fall = np.where(np.isfinite(progress), progress, -np.inf) - lowest
    return np.maximum(np.where(np.isfinite(fall), fall, 0.0), 0.0)


def _falls_near(progress: np.ndarray, frame: int, fps: float) -> bool:
    """Whether progress falls by more than FALL within FALL_WITHIN_S, beginning at most that long before or after a frame."""
    reach = max(round(FALL_WITHIN_S * fps), 1)
    first, last = max(frame - reach, 0), frame + reach
    return bool((falls_within(progress[first : last + reach + 1], reach)[: last - first + 1] > FALL).any())


def _delta_signs(progress: np.ndarray, truth: np.ndarray, chunk_size: int) -> dict[str, tuple[float, float]]:
    """Pairs of frames one horizon apart whose predicted change has the sign of the true one."""
    true_change = truth[chunk_size:] - truth[:-chunk_size]
    change = progress[chunk_size:] - progress[:-chunk_size]
    signed = (np.abs(true_change) > SMALLEST_CHANGE) & np.isfinite(change)
    right = np.sign(change) == np.sign(true_change)
    falling = signed & (true_change < 0)
    return {
        "delta_sign": (float(right[signed].sum()), float(signed.sum())),
        "delta_sign_falling": (float(right[falling].sum()), float(falling.sum())),
    }


def _boundary_errors(stage: np.ndarray, truth: Truth, fps: float) -> list[float]:
    """How far the first frame predicted to be in a stage or beyond is from the annotated one, in seconds, for each stage
    that the annotation enters; the end of the episode stands for a stage that is never predicted.
    """
    errors = []
    highest = np.maximum.accumulate(stage)
    reached = int(truth.stage[0])
    for frame, entered in zip(truth.starts, truth.stages, strict=True):
        if entered <= reached:
            continue
        reached = entered
        predicted = int(np.searchsorted(highest, entered))
        errors.append(abs(predicted - frame) / fps)
    return errors


def _add_cuts(facts: EpisodeFacts, offline: np.ndarray, live: np.ndarray, truth: Truth | None, episode: int) -> None:
    """The episode cut at random points: its last frame then scores what it scores live.

    Cuts lie where less than CUT_BELOW of the task is done by the annotation, or in the first CUT_BELOW of the episode
    where there is none: a prefix that is nearly whole may well look finished.
    """
    done = truth.progress if truth is not None else np.arange(len(offline)) / len(offline)
    places = np.flatnonzero((done < CUT_BELOW) & np.isfinite(offline) & np.isfinite(live))
    if not len(places):
        return
    rng = np.random.default_rng([episode, len(offline)])
    cuts = rng.choice(places, size=min(CUTS_PER_EPISODE, len(places)), replace=False)
    facts.cut_differences = np.abs(live[cuts].astype(np.float64) - offline[cuts]).tolist()
    facts.cut_scores = live[cuts].astype(np.float64).tolist()


def _backward_falls(backwards: np.ndarray, truth: Truth | None, fps: float) -> tuple[float, float]:
    """Of an episode played backwards: fifths of the true progress in which the prediction falls by more than FALL.

    A fifth may take longer than a second; in less than FALL_WITHIN_S it is looked at for that long.
    """
    length = len(backwards)
    done = truth.progress[::-1] if truth is not None else np.linspace(1, 0, length)
    lost = np.maximum.accumulate(1 - done)
    edges = np.searchsorted(lost, np.arange(REVERSED_SPANS + 1) / REVERSED_SPANS - 1e-6)
    seen = []
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        span = backwards[first : max(last, first + round(fps * FALL_WITHIN_S)) + 1]
        known = span[np.isfinite(span)]
        if len(known) > 1:
            seen.append(float(known[0] - known.min() > FALL))
    return sum(seen), float(len(seen))


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
