"""From annotated segments of an episode to the stage and tau of each of its frames."""

from collections.abc import Sequence

import numpy as np


def stage_targets(
    names: Sequence[str], starts: Sequence[int], ends: Sequence[int], stage_names: Sequence[str], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The annotation of one episode, frame by frame.

    Segments are half-open: a frame belongs to the segment that starts at it, and the last segment includes its end
    (LeRobot gives a shared frame to the earlier one). In a gap the stage before it is complete (tau 1); after the last
    segment its stage is complete, whichever it is (LeRobot: the last stage of all); before the first one nothing is done
    (stage 0, tau 0). A head of one stage runs over the whole episode, whatever is annotated.

    Args:
        names: S stage names, one per segment, in any order of time.
        starts: S first frames, counted inside the episode.
        ends: S ends, each usually the next start; a segment without duration is complete at its start.
        stage_names: K, the head's stages in order.
        length: L, frames of the episode.

    Returns:
        stage (L,) int64 in 0..K-1, and tau (L,) float32 in [0, 1]. Progress is `normalize_progress(stage + tau)`.

    Raises:
        ValueError: a name that is not among the stages, a segment that ends before it starts, lists of different length,
            or no segment at all where there are several stages.
    """
    if len(stage_names) == 1:
        return whole_episode_targets(length)
    if not len(names) == len(starts) == len(ends):
        raise ValueError(f"{len(names)} subtask names, {len(starts)} starts and {len(ends)} ends")
    if not len(names):
        raise ValueError("no subtasks are annotated")
    stage = stage_numbers(names, stage_names)
    order = np.argsort(starts, kind="stable")
    start, end = np.asarray(starts, dtype=np.int64)[order], np.asarray(ends, dtype=np.int64)[order]
    if (end < start).any():
        worst = int(order[(end < start).argmax()])
        raise ValueError(f"subtask {names[worst]!r} ends at frame {ends[worst]}, before its start {starts[worst]}")
    return frame_targets(stage[order], start, end, end - start, np.ones(len(order)), length)


def stage_numbers(names: Sequence[str], stage_names: Sequence[str]) -> np.ndarray:
    """Positions of names among a head's stages: (len(names),) int64.

    Raises:
        ValueError: a name that is not among the stages.
    """
    unknown = [name for name in names if name not in stage_names]
    if unknown:
        raise ValueError(f"subtask {unknown[0]!r} is not one of the stages {', '.join(stage_names)}")
    return np.array([list(stage_names).index(name) for name in names], dtype=np.int64)


def whole_episode_targets(length: int) -> tuple[np.ndarray, np.ndarray]:
    """A head of one stage: stage (L,) int64, all 0, and tau (L,) float32 from 0 at the first frame to 1 at the last."""
    return np.zeros(length, dtype=np.int64), (np.arange(length) / max(length - 1, 1)).astype(np.float32)


def frame_targets(
    stage: np.ndarray, start: np.ndarray, end: np.ndarray, full: np.ndarray, ceiling: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frame by frame, as `stage_targets` says, with tau rising to a ceiling at a pace of its own in each segment.

    Args:
        stage, start, end: (S,) int64 each, one segment or more, starts ascending. Tau rises until the segment's end and
            stays there until the next start.
        full: (S,) int64 or float64, frames in which tau would rise from 0 to 1; with 0 it is at the ceiling at once.
        ceiling: (S,) float64, highest tau of the segment.
        length: L, frames of the episode.

    Returns:
        stage (L,) int64 and tau (L,) float32.
    """
    frame = np.arange(length)
    segment = np.searchsorted(start, frame, side="right") - 1
    inside = np.maximum(segment, 0)  # what comes before the first segment is overwritten below
    done = np.minimum(frame, end[inside]) - start[inside]
    tau = np.divide(done, full[inside], out=np.ones(length), where=full[inside] > 0)
    before = segment < 0
    return np.where(before, 0, stage[inside]), np.where(before, 0, np.minimum(tau, ceiling[inside])).astype(np.float32)


def stage_boundaries(names: Sequence[str], starts: Sequence[int], length: int) -> tuple[tuple[int, str], ...]:
    """Where an episode's annotated stages begin: (frame, name) in the order of time, those inside the episode only."""
    pairs = sorted(zip(starts, names, strict=True), key=lambda pair: pair[0])
    return tuple((int(start), name) for start, name in pairs if 0 < start < length)
