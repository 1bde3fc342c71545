"""What is odd about an episode's progress: pure functions of one curve, with the thresholds beside them."""

from dataclasses import dataclass

import numpy as np

from sarm_ray.core.metrics import DONE, FALL, FALL_WITHIN_S

STALL_BAND = 0.02  # progress stays within this much of one level
STALL_S = 3.0
STALL_SHARE = 0.2  # of the episode; the longer of the two counts
MAX_PER_KIND = 20  # the gravest of a curve that is all noise
ROUNDING = 1e-9

# kind -> what it is called, and what it means
KINDS = {
    "unfinished": ("never finishes", f"progress never reaches {DONE:g}"),
    "lost": ("falls back", f"progress reaches {DONE:g}, and the episode ends below it"),
    "drop": ("drop", f"progress falls by more than {FALL:g} within {FALL_WITHIN_S:g} s"),
    "stall": (
        "stall",
        f"progress stays within {STALL_BAND:g} of one level for more than {STALL_S:g} s and {STALL_SHARE:.0%} of the "
        f"episode, before it reaches {DONE:g}",
    ),
    "frozen": ("frozen camera", "the camera shows the same picture from beginning to end"),
    "black": ("black camera", "the camera shows nothing from beginning to end"),
    "unreadable": ("no video", "the video cannot be read, or not to its end"),
    "unscored": ("not scored", "frames without progress (NaN)"),
    "cut": ("cut off", "the robot did not close the rollout: it fell silent, or did not come back"),
    "overload": ("overload", "the server had too much to do, and passed over frames that were due"),
}


@dataclass(frozen=True)
class Flag:
    """Something odd.

    Args:
        kind: a key of KINDS.
        start, stop: the frames concerned, half-open.
        amount: seconds of a stall, progress lost in a drop or at the end, the highest progress of an episode that never
            finishes, the share of frames that are not scored or were passed over; 0 for others.
    """

    kind: str
    start: int
    stop: int
    amount: float = 0.0


def find_flags(progress: np.ndarray, fps: float) -> tuple[Flag, ...]:
    """What is odd about one episode's progress, in the order of KINDS and of time.

    Whether an episode finishes is not judged where its end is not scored.

    Args:
        progress: (L,) float, NaN where there is none.
        fps: frames per second.
    """
    progress = progress.astype(np.float64)
    known = np.isfinite(progress)
    flags: list[Flag] = []
    if known[-1]:
        highest, final = float(progress[known].max()), float(progress[-1])
        if highest < DONE:
            flags.append(Flag("unfinished", 0, len(progress), highest))
        elif final < DONE:
            last = int(np.flatnonzero(np.where(known, progress, -1.0) >= DONE)[-1])
            flags.append(Flag("lost", last + 1, len(progress), highest - final))
    flags += _gravest(_drops(progress, fps))
    flags += _gravest(_stalls(progress, fps))
    if not known.all():
        holes = np.flatnonzero(~known)
        flags.append(Flag("unscored", int(holes[0]), int(holes[-1]) + 1, len(holes) / len(progress)))
    return tuple(flags)


def drawdown(progress: np.ndarray) -> float:
    """The most that progress ever falls below a level it had reached: (L,) float, NaN is passed over; NaN if all are."""
    if not np.isfinite(progress).any():
        return float("nan")
    return float(np.nanmax(np.fmax.accumulate(progress) - progress))


def _stalls(progress: np.ndarray, fps: float) -> list[Flag]:
    num_frames = int(np.ceil(max(STALL_S * fps, STALL_SHARE * len(progress)) + ROUNDING)) + 1
    if len(progress) < num_frames:
        return []
    highest, lowest = _sliding(progress, num_frames, np.maximum), _sliding(progress, num_frames, np.minimum)
    begins = (highest - lowest <= 2 * STALL_BAND + ROUNDING) & (highest < DONE)
    steps = np.zeros(len(progress) + 1, dtype=np.int64)
    steps[: len(begins)] += begins
    steps[num_frames : num_frames + len(begins)] -= begins
    return [Flag("stall", start, stop, (stop - 1 - start) / fps) for start, stop in _runs(np.cumsum(steps)[:-1] > 0)]


def _drops(progress: np.ndarray, fps: float) -> list[Flag]:
    reach = max(round(FALL_WITHIN_S * fps), 1)
    above = np.where(np.isfinite(progress), progress, np.inf)  # no minimum of anything
    lowest = _sliding(np.append(above, np.full(reach, np.inf)), reach + 1, np.minimum)
    flags: list[Flag] = []
    for first, last in _runs(progress - lowest > FALL + ROUNDING):
        top = first + int(np.argmax(progress[first:last]))
        bottom = top + int(np.argmin(above[top : last + reach]))
        if flags and top < flags[-1].stop:  # the same fall, with a step in it
            top = flags[-1].start
            flags.pop()
        flags.append(Flag("drop", top, bottom + 1, float(progress[top] - above[bottom])))
    return flags


def _gravest(flags: list[Flag]) -> list[Flag]:
    kept = sorted(flags, key=lambda flag: -flag.amount)[:MAX_PER_KIND]
    return sorted(kept, key=lambda flag: flag.start)


def _sliding(values: np.ndarray, width: int, extreme: np.ufunc) -> np.ndarray:
    """The extreme of every `width` consecutive values: (L,) -> (L - width + 1,), NaN where one is; in O(L log width)."""
    covered = 1
    while covered < width:
        step = min(covered, width - covered)
        values = extreme(values[:-step], values[step:])
        covered += step
    return values


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and one past the last of each run of True."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
