"""How good a reward model's progress is, on annotated episodes and on graded ones: spec/ours.md E.

Each episode is reduced to a handful of numbers, so that a dataset of any size is looked at one episode at a time; the
figures and their intervals over episodes come from those (`core/figures.py`). Progress is judged in two
views: `offline`, as the model scores a recording, and `live`, with the future cut at each frame.
"""

from dataclasses import dataclass, field

import numpy as np

from sarm_ray.core.resampling import pair_moments, rank_correlation

FALL = 0.1  # of progress, that counts as a drop
FALL_WITHIN_S = 1.0
DONE = 0.8  # progress above which an episode looks finished
SMALLEST_CHANGE = 0.02  # of the truth over a horizon, that has a sign
JUMP = 0.15  # of progress from one frame to the next
CUTS_PER_EPISODE = 3
CUT_BELOW = 0.7  # cuts are made where less than this is done
REVERSED_SPANS = 5


@dataclass(frozen=True)
class Truth:
    """What an annotation says of an episode of L frames.

    Args:
        progress: (L,) float32.
        stage: (L,) int64.
        starts: first frame of each annotated segment but the first, in the order of time, and
        stages: that segment's stage.
        completed: whether it ends with its last stage complete.
    """

    progress: np.ndarray
    stage: np.ndarray
    starts: tuple[int, ...]
    stages: tuple[int, ...]
    completed: bool = True

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
        stage: (L,) int64, the most probable one, -1 where there is none; None where there is none to choose (a baseline,
            a head of one stage).
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
    succeeded = grade == 1 or (np.isnan(grade) and truth is not None and truth.completed)
    # a rollout that succeeded may have dropped the block on its way: without an annotation nobody knows
    clean = succeeded and truth is not None and not truth.regressions(fps)
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
        _add_whole_episode(facts, views["offline"].progress, succeeded)
    if "offline" in views and "live" in views:
        _add_cuts(facts, views["offline"].progress, views["live"].progress, truth, episode)
    if backwards is not None and clean:
        facts.ratios["offline_reversed_drop_detection"] = _backward_falls(backwards, truth, fps)
    return facts


def max_drawdown(progress: np.ndarray) -> float:
    """The furthest that progress falls below what it was before: (L,) float, NaN left out."""
    known = progress[np.isfinite(progress)]
    return float((np.maximum.accumulate(known) - known).max(initial=0.0))


def _add_whole_episode(facts: EpisodeFacts, progress: np.ndarray, succeeded: bool) -> None:
    known = progress[np.isfinite(progress)]
    if not len(known):
        return
    facts.final, facts.maximum = float(progress[-1]), float(known.max())
    if succeeded:
        rho = rank_correlation("spearman", known, np.flatnonzero(np.isfinite(progress)))
        facts.ratios["offline_voc"] = (0.0, 0.0) if np.isnan(rho) else (rho, 1.0)


def _against_truth(prediction: Prediction, truth: Truth, fps: float, chunk_size: int) -> dict[str, tuple[float, float]]:
    progress = prediction.progress.astype(np.float64)
    error = progress - truth.progress
    measured = {"progress_mse": _share(error**2, error), "progress_mae": _share(np.abs(error), error)}
    measured |= _drops(progress, truth.regressions(fps), fps)
    measured |= _delta_signs(progress, truth.progress.astype(np.float64), chunk_size)
    if prediction.stage is not None:
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


def _drops(progress: np.ndarray, regressions: list[int], fps: float) -> dict[str, tuple[float, float]]:
    """Which true regressions are seen, and how far what is seen can be trusted.

    A fall is a run of frames from each of which progress falls by more than FALL within FALL_WITHIN_S; it sees a
    regression if it has a frame at most that long before or after it. F1 sets regressions seen against those that were
    missed and falls that saw none: a prediction that wobbles everywhere misses no drop, and has a low one.
    """
    reach = max(round(FALL_WITHIN_S * fps), 1)
    falling = falls_within(progress, reach) > FALL
    known = np.isfinite(progress)
    regressions = [frame for frame in regressions if known[max(frame - reach, 0) : frame + reach + 1].any()]
    edges = np.flatnonzero(np.diff(falling, prepend=False, append=False)).reshape(-1, 2)
    near = [(edges[:, 0] <= frame + reach) & (edges[:, 1] > frame - reach) for frame in regressions]
    seen = float(sum(bool(each.any()) for each in near))
    idle = len(edges) - int(np.any(near, axis=0).sum()) if near else len(edges)
    return {
        "drop_detection": (seen, float(len(regressions))),
        "drop_f1": (2 * seen, seen + len(regressions) + idle),
    }


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
