"""The state of one live session: which frames are taken, which wait, which were dropped, and the curve so far.

Pure: time comes as an argument (`now_s`, seconds on the server's monotonic clock), frames come checked
(`core/live_protocol.py`), and whoever owns the session encodes and scores.
"""

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sarm_ray.core.live import Gathered, History, LiveWindow
from sarm_ray.core.live_frames import Frame
from sarm_ray.core.live_protocol import Hello, LiveLimits, Refusal, Resume

KEPT_REPLIES = 256
MAX_WAITING_BYTES = 32 * 2**20
MAX_REPLAYED_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Waiting:
    """A frame that waits to be encoded.

    Args:
        frame: as it came.
        elapsed_s: since the session's first frame.
        number: its frame number.
        received_s: when it came.
        num_received, num_skipped: frames up to this one.
    """

    frame: Frame
    elapsed_s: float
    number: int
    received_s: float
    num_received: int = 0
    num_skipped: int = 0


@dataclass
class Counts:
    """Frames of a session; replayed ones are not counted."""

    num_received: int = 0
    num_scored: int = 0
    num_dropped: int = 0
    num_skipped: int = 0

    def as_object(self) -> dict[str, int]:
        return dict(vars(self))


@dataclass
class Curve:
    """What was scored: a row per scored frame.

    Args:
        heads: of the model.
        time_s, frame_index: on the robot's clock; counted from the session's first frame.
        progress, stage, confidence: head -> a value per row; None where there is no score.
    """

    heads: tuple[str, ...]
    time_s: list[float] = field(default_factory=list)
    frame_index: list[int] = field(default_factory=list)
    progress: dict[str, list[float | None]] = field(default_factory=dict)
    stage: dict[str, list[int | None]] = field(default_factory=dict)
    confidence: dict[str, list[float | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for head in self.heads:
            for column in (self.progress, self.stage, self.confidence):
                column.setdefault(head, [])

    def columns(self) -> dict[str, list]:
        """As in sarm_progress.parquet; the rollout counts as episode 0."""
        rows = len(self.time_s)
        progress = {f"progress_{head}": self.progress[head] for head in self.heads}
        return {"index": list(range(rows)), "episode_index": [0] * rows, "frame_index": self.frame_index, **progress}


@dataclass(frozen=True)
class HeadScore:
    """One head's score of one frame: probabilities (K,) float32."""

    progress: float
    probabilities: np.ndarray

    @property
    def stage(self) -> int:
        return int(np.argmax(self.probabilities))

    def as_object(self) -> dict[str, Any]:
        rounded = [round(float(each), 5) for each in self.probabilities]
        return {
            "progress": float(self.progress),
            "stage": self.stage,
            "confidence": rounded[self.stage],
            "probabilities": rounded,
        }


NO_SCORE = {"progress": None, "stage": None, "confidence": None, "probabilities": None}


class Session:
    """One rollout.

    Args:
        name: its id.
        hello: what it is about.
        live: its window on its clock.
        limits: what it may use.
        now_s: when it began.
    """

    def __init__(
        self, name: str, hello: Hello, live: LiveWindow, heads: tuple[str, ...], limits: LiveLimits, now_s: float
    ):
        self.name, self.hello, self.live, self.limits = name, hello, live, limits
        self.history = History(live)
        self.curve = Curve(hello.heads or heads)
        self.counts = Counts()
        self.waiting: deque[Waiting] = deque()
        self.replays: deque[Waiting] = deque()
        self.replies: deque[dict[str, Any]] = deque(maxlen=KEPT_REPLIES)
        self.first_s: float | None = None
        self.newest_s = -math.inf  # on the robot's clock, of what was received
        self.replay_s = -math.inf
        self.next_number = 0
        self.num_replays = 0
        self.last_frame_s = self.counted_s = now_s
        self.allowance = limits.max_frames_per_s
        self.waiting_bytes = 0
        self.caught_up_s = now_s
        if hello.resume:
            self._resume(hello.resume)
        self.counted = replace(self.counts)  # what was told of elsewhere

    def _resume(self, resume: Resume) -> None:
        """Go on where another replica was."""
        columns: dict[str, list] = resume.columns
        self.first_s, self.newest_s = resume.first_time_s, resume.last_time_s
        self.next_number = self._after(self.live.number(self.newest_s - self.first_s))
        rows = len(columns.get("time_s", []))
        self.curve.time_s = [float(each) for each in columns.get("time_s", [])]
        self.curve.frame_index = [int(each) for each in columns.get("frame_index", [])]
        for head in self.curve.heads:
            self.curve.progress[head] = list(columns.get(f"progress_{head}", [None] * rows))
            self.curve.stage[head], self.curve.confidence[head] = [None] * rows, [None] * rows
        self.counts = Counts(num_received=rows + sum(resume.counts.values()), num_scored=rows, **resume.counts)
        self.num_replays = len(self.replay_times())

    def replay_times(self) -> list[float]:
        """Which frames the client is to send again, on its own clock: those that were encoded, by the curve it brought, or
        where it brought none those that would have been.
        """
        if not self.hello.resume or self.first_s is None or self.history.times:
            return []
        first_s, live = self.first_s, self.live
        if not self.curve.time_s:
            return [first_s + each for each in live.replay_times(self.newest_s - first_s)]
        reach_s = self.newest_s - live.span_s - live.half_gap_s
        reached = [time_s for time_s in self.curve.time_s if time_s >= reach_s]
        pinned = self.curve.time_s[:1] if live.pinned and self.curve.time_s[0] < reach_s else []
        return pinned + reached

    def receive(self, frame: Frame, now_s: float) -> bool:
        """Take a frame in, or leave it out because its turn has not come.

        Returns:
            Whether it waits to be encoded.

        Raises:
            Refusal: out of order, too many, beyond the session's length; fatal for the last.
        """
        self._check_rate(frame, now_s)
        if frame.replayed:
            return self._receive_replay(frame, now_s)
        if frame.time_s <= self.newest_s:
            message = f"time {frame.time_s:g} s is not after {self.newest_s:g} s"
            raise Refusal("time_order", message, time_s=frame.time_s)
        if self.first_s is None:
            self.first_s = frame.time_s
        elapsed_s = frame.time_s - self.first_s
        if elapsed_s > self.limits.max_session_s:
            longest = f"a session lasts at most {self.limits.max_session_s:g} s; start another one"
            raise Refusal("too_long", longest, fatal=True, time_s=frame.time_s)
        self.newest_s, self.last_frame_s, self.num_replays = frame.time_s, now_s, 0
        self.counts.num_received += 1
        number = self.live.number(elapsed_s)
        if number < self.next_number:
            self.counts.num_skipped += 1
            return False
        self.next_number = self._after(number)
        so_far = (self.counts.num_received, self.counts.num_skipped)
        self.waiting.append(Waiting(frame, elapsed_s, number, now_s, *so_far))
        self.waiting_bytes += frame.num_bytes
        self.drop_late(now_s)
        return True

    def _receive_replay(self, frame: Frame, now_s: float) -> bool:
        first_s = self.first_s
        if self.num_replays == 0 or first_s is None or self.waiting or frame.time_s < first_s - self.live.half_gap_s:
            raise Refusal("bad_message", "a replayed frame that was not asked for", time_s=frame.time_s)
        elapsed_s = frame.time_s - first_s
        if elapsed_s <= self.replay_s or frame.time_s > self.newest_s:
            raise Refusal("time_order", "replayed frames are out of order", time_s=frame.time_s)
        if sum(item.frame.num_bytes for item in self.replays) + frame.num_bytes > MAX_REPLAYED_BYTES:
            raise Refusal("too_large", "too many bytes of replayed frames; send JPEG", time_s=frame.time_s)
        self.num_replays -= 1
        self.replay_s, self.last_frame_s = elapsed_s, now_s
        self.replays.append(Waiting(frame, elapsed_s, self.live.number(elapsed_s), now_s))
        return True

    def _check_rate(self, frame: Frame, now_s: float) -> None:
        """A bucket of one second's frames, which fills as time passes. Replays were asked for and are counted already."""
        if frame.replayed:
            return
        most = self.limits.max_frames_per_s
        self.allowance = min(most, self.allowance + (now_s - self.counted_s) * most)
        self.counted_s = now_s
        if self.allowance < 1:
            raise Refusal("too_fast", f"more than {most:g} frames a second; send fewer", time_s=frame.time_s)
        self.allowance -= 1

    def drop_late(self, now_s: float) -> None:
        """Drop the oldest frames: those that waited too long, or take too much room. The newest one stays.

        Those that came while replayed frames were ahead of them are not to blame: their time counts from the end of that.
        """
        waiting, longest = self.waiting, self.limits.max_wait_s
        if self.replays:
            self.caught_up_s = now_s
        # a pinned first frame is in every window: without it there would never be a score
        oldest = int(self.live.pinned and bool(waiting) and waiting[0].number == 0)
        while oldest < len(waiting) - 1 and (
            self.waiting_bytes > MAX_WAITING_BYTES
            or now_s - max(waiting[oldest].received_s, self.caught_up_s) > longest
        ):
            self.waiting_bytes -= waiting[oldest].frame.num_bytes
            del waiting[oldest]
            self.counts.num_dropped += 1

    def drop_all(self) -> None:
        """Drop what waits: the session is over."""
        self.counts.num_dropped += len(self.waiting)
        self.replays.clear()
        self.waiting.clear()
        self.waiting_bytes = 0

    def take(self, most: int, now_s: float) -> list[Waiting]:
        """The next frames to encode, oldest first; replayed ones before new ones."""
        self.drop_late(now_s)
        taken: list[Waiting] = []
        while len(taken) < most and self.replays:
            taken.append(self.replays.popleft())
            self.caught_up_s = now_s
        while len(taken) < most and self.waiting:
            taken.append(self.waiting.popleft())
            self.waiting_bytes -= taken[-1].frame.num_bytes
        return taken

    @property
    def num_waiting(self) -> int:
        return len(self.replays) + len(self.waiting)

    def place(self, item: Waiting, feature: np.ndarray, state: np.ndarray) -> Gathered | None:
        """Put an encoded frame into the history: its window, or None for one that is not scored."""
        self.history.add(item.elapsed_s, feature, state)
        return None if item.frame.replayed else self.history.gather()

    def record(
        self, item: Waiting, gathered: Gathered, scores: dict[str, HeadScore], timings_ms: dict[str, float]
    ) -> dict[str, Any]:
        """Enter a frame's scores into the curve: the message to the client."""
        self.counts.num_scored += 1
        self.curve.time_s.append(item.frame.time_s)
        self.curve.frame_index.append(item.number)
        whole = not gathered.missing and all(np.isfinite(scores[head].progress) for head in self.curve.heads)
        objects = {head: scores[head].as_object() if whole else dict(NO_SCORE) for head in self.curve.heads}
        for head, value in objects.items():
            self.curve.progress[head].append(value["progress"])
            self.curve.stage[head].append(value["stage"])
            self.curve.confidence[head].append(value["confidence"])
        reply = {
            "type": "score",
            "time_s": item.frame.time_s,
            "frame_index": item.number,
            **objects,
            "slots_off_s": round(gathered.off_s, 6),
            "missing": [round(each, 6) for each in gathered.missing],
            # as of this frame, so that a client that goes on from it elsewhere counts no frame twice
            **replace(self.counts, num_received=item.num_received, num_skipped=item.num_skipped).as_object(),
            "timings_ms": {name: round(value, 2) for name, value in timings_ms.items()},
        }
        self.replies.append(reply)
        return reply

    def replies_after(self, time_s: float) -> list[dict[str, Any]]:
        """Scores newer than a client knows, for one whose connection broke while they were under way."""
        return [reply for reply in self.replies if reply["time_s"] > time_s]

    def curve_message(self) -> dict[str, Any]:
        """The answer to `close`."""
        return {
            "type": "curve",
            "columns": self.curve.columns(),
            "time_s": self.curve.time_s,
            **self.counts.as_object(),
        }

    def _after(self, number: int) -> int:
        """The next number that is due after a scored one."""
        return (number // self.live.stride + 1) * self.live.stride
