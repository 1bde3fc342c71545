"""What a person should know about a running rollout at a glance, from the newest seconds of its curve."""

from bisect import bisect_right
from collections.abc import Sequence
from statistics import median

DONE = 0.95  # of progress
RISE, RISE_S = 0.02, 5.0  # less than this much in this long is a stall
FALL, FALL_S = 0.1, 3.0  # more than this much in this long is a regression
SILENT_S = 3.0  # without a frame
LEVEL_S = 1.0  # levels are medians over this long, so that one odd frame marks nothing
KEEP_S = RISE_S + 2 * LEVEL_S  # how far back `motion` looks

Known = tuple[float, float]


def motion(known: Sequence[Known]) -> str:
    """How progress moves: `running`, `stalled`, `regressing` or `done`.

    Args:
        known: (time in seconds, progress 0..1) of scored frames, ascending; of the last KEEP_S at least.
    """
    if not known:
        return "running"
    newest = known[-1][0]
    now = _level(known, newest)
    assert now is not None
    if now >= DONE:
        return "done"
    before = [_level(known, newest - back) for back in (LEVEL_S, FALL_S - LEVEL_S)]
    if any(level is not None and level - now > FALL for level in before):
        return "regressing"
    earlier = _level(known, newest - RISE_S)
    return "stalled" if earlier is not None and now - earlier <= RISE else "running"


def mark(motion: str, idle_s: float, ended: bool) -> str:
    """What a card says: `ended` and `silent` before any motion.

    Args:
        motion: what `motion` said.
        idle_s: seconds since a frame came.
        ended: the rollout is over.
    """
    if ended:
        return "ended"
    return "silent" if idle_s > SILENT_S else motion


def _level(known: Sequence[Known], until: float) -> float | None:
    """Median over the second that ends there; the value before it where that second has none; None before the first."""
    stop = bisect_right(known, until, key=lambda each: each[0])
    start = bisect_right(known, until - LEVEL_S, key=lambda each: each[0])
    if stop == 0:
        return None
    return median(value for _, value in known[start:stop]) if start < stop else known[stop - 1][1]
