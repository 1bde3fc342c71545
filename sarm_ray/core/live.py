"""One robot's session: what it keeps of the frames it has seen, and the window around the newest one.

A frame's place is its time, not its count: robots drop frames. Times become frame numbers at the session's frame rate, the
window gatherer of train and score (`core/windows.py`) says which numbers a window wants, and each slot gets the frame that
was seen nearest to that moment, within half a gap. A slot with no frame there is missing, and the window has no score: a
guess would look like a measurement.

Only features and states are kept, and of the frames alone that later windows can still reach.
"""

import bisect
from dataclasses import dataclass, replace

import numpy as np

from sarm_ray.core.windows import Window, window_slots


@dataclass(frozen=True)
class LiveWindow:
    """How the model's window lies on a session's clock.

    Args:
        window: at the session's frame rate, `live`.
        fps: frames per second of the session.
        stride: frames from one scored frame to the next; the ones between are not encoded.
    """

    window: Window
    fps: float
    stride: int

    @property
    def half_gap_s(self) -> float:
        """How far a slot's frame may lie from where it is wanted; a microsecond more, for the last bits of times."""
        return self.window.frame_gap / self.fps / 2 + 1e-6

    @property
    def span_s(self) -> float:
        """How far back a window reaches."""
        back = self.window.readout_slot
        return back * self.window.frame_gap / self.fps

    @property
    def pinned(self) -> bool:
        """Whether every window shows the session's first frame."""
        return self.window.kind == "past"

    @property
    def score_hz(self) -> float:
        return self.fps / self.stride

    def number(self, time_s: float) -> int:
        """A frame's number, from its seconds since the first frame."""
        return round(time_s * self.fps)

    def replay_times(self, last_s: float) -> list[float]:
        """Which frames of a session a replica that never saw it needs, to score later ones as one that did.

        Args:
            last_s: the newest scored frame, in seconds since the first one.

        Returns:
            Seconds since the first frame, ascending.
        """
        last = self.number(last_s)
        first = max(0, last - self.number(self.span_s))
        numbers = set(range(-(-first // self.stride) * self.stride, last + 1, self.stride)) | {last}
        if self.pinned:
            numbers.add(0)
        return [number / self.fps for number in sorted(numbers)]


def live_window(window: Window, fps: float, score_hz: float) -> LiveWindow:
    """The window of a session whose frames are scored `score_hz` times a second at most.

    Scored frames are a divisor of the gap apart, so that slots of later windows fall on frames that were encoded; at least
    one is scored per gap.
    """
    gap = window.frame_gap
    strides = [stride for stride in range(1, gap + 1) if gap % stride == 0]
    enough = [stride for stride in strides if fps / stride <= score_hz * (1 + 1e-9)]
    return LiveWindow(replace(window, live=True), fps, min(enough, default=gap))


@dataclass(frozen=True)
class Gathered:
    """A window's contents.

    Args:
        features: (T, D) in the dtype they are kept in.
        states: (T, S) float32.
        off_s: the farthest that a slot's frame lies from where it is wanted.
        missing: slots without a frame, in seconds relative to the scored frame; the newest frame stands in for them.
    """

    features: np.ndarray
    states: np.ndarray
    off_s: float
    missing: tuple[float, ...]


class History:
    """The encoded frames of a session that windows can still reach. Times are seconds since its first frame."""

    def __init__(self, live: LiveWindow):
        self.live = live
        self.times: list[float] = []
        self.features: list[np.ndarray] = []
        self.states: list[np.ndarray] = []

    def add(self, time_s: float, feature: np.ndarray, state: np.ndarray) -> None:
        """Add the newest frame: (D,) feature, (S,) state."""
        if self.times and time_s <= self.times[-1]:
            raise ValueError(f"frame at {time_s} s after one at {self.times[-1]} s")
        self.times.append(time_s)
        self.features.append(feature)
        self.states.append(state)
        self._forget(time_s - self.live.span_s - self.live.half_gap_s)

    def gather(self) -> Gathered:
        """The window of the newest frame."""
        live, last = self.live, len(self.times) - 1
        number = live.number(self.times[last])
        places, off_s, missing = [], 0.0, []
        for slot in window_slots(np.array([number]), number + 1, live.window)[0].tolist():
            # the frame itself, whatever else was seen at about its number
            place = last if slot == number else self._nearest(slot / live.fps)
            distance = 0.0 if slot == number else abs(self.times[place] - slot / live.fps)
            if distance <= live.half_gap_s:
                off_s = max(off_s, distance)
            else:
                place = last
                missing.append((slot - number) / live.fps)
            places.append(place)
        return Gathered(
            np.stack([self.features[place] for place in places]),
            np.stack([self.states[place] for place in places]),
            off_s,
            tuple(dict.fromkeys(missing)),
        )

    def _nearest(self, time_s: float) -> int:
        place = bisect.bisect_left(self.times, time_s)
        if place == 0:
            return 0
        if place == len(self.times) or time_s - self.times[place - 1] <= self.times[place] - time_s:
            return place - 1
        return place

    def _forget(self, before_s: float) -> None:
        """Forget frames that no window reaches any more; a pinned first frame stays."""
        first = 1 if self.live.pinned else 0
        keep = max(first, bisect.bisect_left(self.times, before_s))
        for column in (self.times, self.features, self.states):
            del column[first:keep]
