"""A curve that grows for hours and stays small: neighbours are merged when it is full.

Each point knows the version of the board at which it changed last. Versions never fall along the curve, so what a viewer
lacks is always its end: points[since:], which it puts in the place of its own.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import floor

MAX_POINTS = 600
DIGITS = 4

Point = tuple[float, float | None, int | None]


class Curve:
    """Progress and stage over time.

    Args (of it, not to it):
        times: (n,) seconds since the session began, ascending; of the newest frame in each point.
        gap_s: at most one point lies in each multiple of it; 0 as long as nothing was merged.
    """

    def __init__(self, max_points: int = MAX_POINTS):
        self.max_points, self.gap_s = max_points, 0.0
        self.times: list[float] = []
        self._sums: list[float] = []  # of the known values in each point, and how many there are
        self._counts: list[int] = []
        self._stages: list[int | None] = []
        self._versions: list[int] = []

    def __len__(self) -> int:
        return len(self.times)

    def splice(self, points: Sequence[Point], version: int) -> None:
        """Put points, ascending in time, in the place of all that is not older than their first.

        So more points, points that were there before, and a curve that begins anew are all the same thing.
        """
        if not points:
            return
        keep = bisect_left(self.times, round(points[0][0], DIGITS))
        self._cut(keep)
        if keep == 0:
            self.gap_s = 0.0
        for time_s, progress, stage in points:
            known = progress is not None
            self._add(round(time_s, DIGITS), progress if progress is not None else 0.0, int(known), stage, version)
            if len(self) > self.max_points:
                self._merge(version)

    def clear(self) -> None:
        self._cut(0)
        self.gap_s = 0.0

    def since(self, version: int) -> tuple[int, list[list[float | int | None]]]:
        """What changed after a version: the place of the first such point, and it with all behind it.

        Returns:
            place, and [time in seconds, mean progress or None, newest stage] per point.
        """
        place = bisect_right(self._versions, version)
        return place, [[self.times[n], self._mean(n), self._stages[n]] for n in range(place, len(self))]

    def _mean(self, n: int) -> float | None:
        return round(self._sums[n] / self._counts[n], DIGITS) if self._counts[n] else None

    def _lists(self) -> tuple[list, ...]:
        return self.times, self._sums, self._counts, self._stages, self._versions

    def _cut(self, keep: int) -> None:
        for each in self._lists():
            del each[keep:]

    def _add(self, time_s: float, total: float, count: int, stage: int | None, version: int) -> None:
        if self.times and self._bin(time_s) == self._bin(self.times[-1]):
            self.times[-1], self._versions[-1] = time_s, version
            self._sums[-1] += total
            self._counts[-1] += count
            self._stages[-1] = stage if stage is not None else self._stages[-1]
        else:
            for each, value in zip(self._lists(), (time_s, total, count, stage, version), strict=True):
                each.append(value)

    def _bin(self, time_s: float) -> float:
        return floor(time_s / self.gap_s) if self.gap_s else time_s

    def _merge(self, version: int) -> None:
        """Half as many points: all of them are as far apart, so that the beginning is drawn as finely as the end."""
        span = self.times[-1] - self.times[0]
        self.gap_s = max(2 * self.gap_s, 2 * span / self.max_points)
        times, sums, counts, stages, _ = (list(each) for each in self._lists())
        self._cut(0)
        for each in zip(times, sums, counts, stages, strict=True):
            self._add(*each, version)
