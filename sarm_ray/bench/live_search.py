"""The search for the largest load that a server carries."""

from collections.abc import Callable

STEP = 1.5
MOST = 2**14


def find_largest(holds: Callable[[int], bool], start: int, precision: float = 0.05) -> int:
    """The largest number that holds, to `precision` of it: up in steps of a half, then halving what lies between.

    Args:
        holds: whether a number does; asked as seldom as can be.
        start: where to begin.
        precision: to stop at.

    Returns:
        0 where not even 1 holds.
    """
    low, high, number = 0, None, max(1, start)
    while high is None and number <= MOST:
        if holds(number):
            low, number = number, max(number + 1, round(number * STEP))
        else:
            high = number
    if high is None:
        return low
    while high - low > max(1.0, precision * low):
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
