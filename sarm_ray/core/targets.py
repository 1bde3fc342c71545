"""What SARM is trained towards: stage and tau of every frame, and the stages' mean shares of an episode.

As `stage_targets`, but for interrupted stages: a segment that is followed by a lower stage, or that ends an unsuccessful
episode, did not complete its stage, so its tau must not rise to 1. It rises at the pace of the segments that did, to
INTERRUPTED_TAU at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sarm_ray.core.frame_targets import frame_targets, whole_episode_targets

INTERRUPTED_TAU = 0.95


@dataclass(frozen=True)
class Segments:
    """Annotated segments of E episodes, S together, one episode after the other, each in the order of time.

    Made by `annotated_segments`.

    Args:
        offsets: (E + 1,) int64; episode e has the segments offsets[e] to offsets[e + 1], none where it is not annotated.
        stage: (S,) int64, position among the head's stages; -1 is none of them.
        start, end: (S,) int64, frames inside the episode, half-open.
        interrupted: (S,) bool, did not complete its stage.
    """

    offsets: np.ndarray
    stage: np.ndarray
    start: np.ndarray
    end: np.ndarray
    interrupted: np.ndarray

    @property
    def row(self) -> np.ndarray:
        """(S,) int64, the episode of each segment."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def annotated_segments(
    offsets: np.ndarray, stage: np.ndarray, start: np.ndarray, end: np.ndarray, success: np.ndarray | None = None
) -> Segments:
    """Order the segments of each episode by time, and find those that did not complete their stage.

    Args:
        offsets: (E + 1,) int64, as in `Segments`.
        stage: (S,) int64, position among the head's stages: `stage_numbers(annotations.stages, names)[annotations.stage]`.
        start, end: (S,) int64, frames inside the episode, in any order of time.
        success: (E,) bool, or None: all episodes succeeded.

    Raises:
        ValueError: a segment that ends before it starts.
    """
    num_episodes = len(offsets) - 1
    row = np.repeat(np.arange(num_episodes), np.diff(offsets))
    if (end < start).any():
        worst = int((end < start).argmax())
        raise ValueError(
            f"episode row {row[worst]}: a subtask ends at frame {end[worst]}, before its start {start[worst]}"
        )
    order = np.lexsort((start, row))  # stable: segments with the same start stay in their order
    stage, succeeded = stage[order], np.ones(num_episodes, dtype=bool) if success is None else success
    last = np.ones(len(row), dtype=bool)
    last[:-1] = row[1:] != row[:-1]
    before_a_lower = np.zeros(len(row), dtype=bool)
    before_a_lower[:-1] = stage[1:] < stage[:-1]
    interrupted = np.where(last, ~succeeded[row], before_a_lower)
    return Segments(offsets, stage, start[order], end[order], interrupted)


def completed_durations(segments: Segments, num_stages: int) -> np.ndarray:
    """How long each stage takes: mean duration of the segments that completed it.

    Args:
        segments: of all training episodes.
        num_stages: K.

    Returns:
        (K,) float64, frames; of a stage that never completed, the mean of all its segments; NaN where it has none.
    """
    completed = _mean_durations(segments, ~segments.interrupted, num_stages)
    every = _mean_durations(segments, np.ones_like(segments.interrupted), num_stages)
    return np.where(np.isnan(completed), every, completed)


def _mean_durations(segments: Segments, chosen: np.ndarray, num_stages: int) -> np.ndarray:
    """Mean duration by stage of the chosen segments, (S,) bool -> (K,) float64; NaN where none is."""
    chosen = chosen & (segments.stage >= 0)
    stage, duration = segments.stage[chosen], (segments.end - segments.start)[chosen]
    count = np.bincount(stage, minlength=num_stages)
    total = np.bincount(stage, weights=duration, minlength=num_stages)
    return np.divide(total, count, out=np.full(num_stages, np.nan), where=count > 0)


def episode_targets(
    segments: Segments, episode: int, durations: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stage and tau of every frame of one episode.

    In an interrupted segment tau = min(INTERRUPTED_TAU, t / mean duration of the stage) with t the frames since its
    start; after its end it stays. Everything else is as `stage_targets` has it, also that a head of one stage runs over
    the whole episode, annotated or not.

    Args:
        segments: of some episodes.
        episode: which of them, 0..E-1.
        durations: (K,) float64 from `completed_durations`, K the head's stages.
        length: L, frames of the episode.

    Returns:
        stage (L,) int64 in 0..K-1 and tau (L,) float32 in [0, 1].

    Raises:
        ValueError: there are several stages and the episode is not annotated, or nothing is known of how long an
            interrupted stage takes.
    """
    if len(durations) == 1:
        return whole_episode_targets(length)
    own = slice(segments.offsets[episode], segments.offsets[episode + 1])
    stage, start, end = segments.stage[own], segments.start[own], segments.end[own]
    interrupted = segments.interrupted[own]
    if not len(stage):
        raise ValueError("no subtasks are annotated")
    full = np.where(interrupted, durations[stage], end - start)
    if np.isnan(full).any():
        raise ValueError(f"stage {stage[np.isnan(full).argmax()]} is interrupted, and its usual duration is not known")
    return frame_targets(stage, start, end, full, np.where(interrupted, INTERRUPTED_TAU, 1.0), length)


def temporal_proportions(segments: Segments, stage_names: Sequence[str]) -> np.ndarray:
    """Each stage's mean share of an annotated episode: formula (1) of the SARM paper.

    An episode that lacks a stage counts with 0 for it (LeRobot averages over the episodes that contain it), and segments
    of one stage in an episode are added up (LeRobot keeps the last). An episode whose segments have no duration at all
    says nothing and is left out.

    Args:
        segments: of all training episodes; those that are not annotated do not count.
        stage_names: K, the head's stages in order. One stage alone has the share 1, annotated or not.

    Returns:
        (K,) float64, sum 1.

    Raises:
        ValueError: stages that no segment names, or no segment that has a duration.
    """
    num_stages = len(stage_names)
    if num_stages == 1:
        return np.ones(1)
    seen = np.bincount(segments.stage, minlength=num_stages)
    missing = [name for name, count in zip(stage_names, seen, strict=True) if not count]
    if missing:
        raise ValueError(f"no episode has the subtasks {', '.join(missing)}: annotate them, or leave them out")
    duration = segments.end - segments.start
    total = np.bincount(segments.row, weights=duration)[segments.row]
    share = np.divide(duration, total, out=np.zeros(len(total)), where=total > 0)
    # dividing by the number of annotated episodes would cancel: a mean whose sum is made 1 is a sum whose sum is made 1
    shares = np.bincount(segments.stage, weights=share, minlength=num_stages)
    if not shares.sum() > 0:
        raise ValueError("no annotated subtask has a duration")
    return shares / shares.sum()
