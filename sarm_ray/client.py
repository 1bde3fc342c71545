"""Live progress of a rollout, from a robot's own process: a client of `sarm-ray serve`. Stands alone; copy this file.

    with LiveScorer("ws://gpu-box:8000", task="pick up the bottle", fps=30, state_dim=26) as scorer:
        while running:
            image, state = camera.read(), robot.state()     # (H, W, 3) uint8 RGB or the bytes of a JPEG; (26,) numbers
            scorer.add(image, state)                        # hands it to a thread; never waits for the network
            if scorer.progress is not None and scorer.progress > 0.95 or scorer.stalled(for_s=20):
                break

It needs numpy and websockets. When the connection breaks it connects again, sends what the server lost, and goes on. A
progress meter, not a safety system: it may be late, silent or wrong, and nothing that must not fail may hang on it.
"""

import asyncio
import bisect
import contextlib
import http.client
import json
import logging
import math
import random
import re
import secrets
import socket
import struct
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

PROTOCOL = 1
OUTCOMES = ("success", "partial", "failure", None)
MAX_BACKOFF_S = 2.0
_FRAME = struct.Struct("<BBBxId")  # version, flags, images, numbers of the state, time in seconds
_IMAGE = struct.Struct("<BxHHxxI")  # format, height, width, bytes
_REPLAYED = 1
_RAW, _MAGIC = 0, {1: b"\xff\xd8\xff", 2: b"\x89PNG\r\n\x1a\n"}
_MAX_RESUME_POINTS = 20_000  # 1.4 MB of JSON; older ones the client knows itself
_UNANSWERED_S = 10.0  # frames without an answer are remembered so long at least
_MAX_FEED = 1024  # scores that wait for `async for`
_CLOSE_S = 10.0
_UNSENT_BYTES = 2**17
_GOOD_S = 2.0  # a connection that held so long was no failed attempt
_FATAL_CLOSES = {
    1008: "the server refused this session",
    1009: "the server takes no message as large as this; send smaller images, or JPEG",
    4409: "another client took this session over; session names must be unique",
}
_PASSING = ("full", "internal")  # fatal for one replica; on another a session that was there goes on
_COUNTS = ("num_received", "num_scored", "num_dropped", "num_skipped")
_log = logging.getLogger("sarm_ray.client")
_T = TypeVar("_T")

Image = np.ndarray | bytes | bytearray | memoryview


class LiveScoringError(Exception):
    """Something that the server refuses, or a server that cannot be had.

    Args:
        message: what, and the way out.
        code: the protocol's, for programs.
        time_s: of the frame, where it is about one.
    """

    def __init__(self, message: str, code: str = "client", time_s: float | None = None):
        super().__init__(message, code, time_s)
        self.message, self.code, self.time_s = message, code, time_s

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class HeadScore:
    """What one head says of a frame; everything is None where its window was incomplete.

    Args:
        progress: 0 to 1.
        stage, stage_name: the most probable one, counted from 0.
        confidence: its probability.
        probabilities: of all stages.
    """

    progress: float | None
    stage: int | None
    stage_name: str | None
    confidence: float | None
    probabilities: tuple[float, ...] | None


@dataclass(frozen=True)
class Score:
    """The answer to one frame.

    Args:
        time_s: the frame's, as it was given.
        frame_index: its number since the session began, at the session's fps.
        progress, stage, stage_name, confidence: the first head's, see HeadScore.
        heads: all, by name.
        slots_off_s: the farthest that a frame of the window lies from where the model wants it; 0 where no frame was lost.
        missing: moments of the window, in seconds before the frame, of which there is no frame; if any, no progress.
        num_received, num_scored, num_dropped, num_skipped: the server's counts so far, 0 in a clip. Dropped: it had too much
            to do; skipped: it was not their turn at score_hz.
        timings_ms: where the time went on the server.
        round_trip_s: from `add` to here; None where it is not known.
    """

    time_s: float
    frame_index: int
    progress: float | None
    stage: int | None
    stage_name: str | None
    confidence: float | None
    heads: dict[str, HeadScore]
    slots_off_s: float
    missing: tuple[float, ...]
    num_received: int
    num_scored: int
    num_dropped: int
    num_skipped: int
    timings_ms: dict[str, float]
    round_trip_s: float | None


@dataclass(frozen=True)
class Curve:
    """A rollout's progress.

    Args:
        columns: those of sarm_progress.parquet, (n,) each, of the scored frames: index, episode_index and frame_index int64,
            progress_<head> float32 with NaN where there is none.
        time_s: (n,) float64, of the frames as they were given.
        counts: num_received, num_scored, num_dropped and num_skipped by the server; num_added, num_unsent (dropped here),
            num_refused and num_reconnects by the client. Of a clip the server counts nothing.
        complete: whether the server confirmed it; False where it could not be reached any more.
        scores: of a clip, frame by frame.
    """

    columns: dict[str, np.ndarray]
    time_s: np.ndarray
    counts: dict[str, int]
    complete: bool
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True)
class SentFrame:
    """A frame on its way: its time, its message, and when it was handed over (on time.monotonic's clock)."""

    time_s: float
    message: bytes
    added_s: float

    @property
    def replayed(self) -> bytes:
        """The message, flagged as sent before."""
        return self.message[:1] + bytes([_REPLAYED]) + self.message[2:]


def pack_frame(images: Image | Sequence[Image], state: Any, time_s: float) -> bytes:
    """A frame as the protocol has it.

    Args:
        images: (H, W, 3) uint8 in RGB order, or the bytes of a JPEG or PNG (also as the vector that cv2.imencode returns);
            of several cameras, a sequence of these in the order of the model's cameras.
        state: (S,) numbers.
        time_s: finite.

    Raises:
        LiveScoringError: `bad_image`, `state_size` or `not_finite`.
    """
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused for that
            numbers = np.asarray(state, dtype="<f4")
    except (TypeError, ValueError):
        raise LiveScoringError("state must be a vector of numbers", "state_size", time_s) from None
    if numbers.ndim != 1:
        raise LiveScoringError(f"state must be a vector, not of shape {numbers.shape}", "state_size", time_s)
    if not np.isfinite(numbers).all() or not math.isfinite(time_s):
        raise LiveScoringError("the state or the time is not finite", "not_finite", time_s)
    several: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
    parts = [_FRAME.pack(PROTOCOL, 0, len(several), len(numbers), time_s), numbers.tobytes()]
    for image in several:
        parts += _pack_image(image, time_s)
    return b"".join(parts)


def _pack_image(image: Image, time_s: float) -> tuple[bytes, bytes]:
    encoded = isinstance(image, bytes | bytearray | memoryview)
    pixels = np.frombuffer(bytes(image) or b"-", dtype=np.uint8) if encoded else np.asarray(image)
    data = pixels.tobytes()  # copied: cameras write into the same buffer again
    if pixels.dtype == np.uint8 and pixels.ndim == 1:
        for kind, magic in _MAGIC.items():
            if data.startswith(magic):
                return _IMAGE.pack(kind, 0, 0, len(data)), data
        raise LiveScoringError("the image's bytes are neither a JPEG nor a PNG", "bad_image", time_s)
    size = pixels.shape
    if pixels.dtype != np.uint8 or len(size) != 3 or size[2] != 3 or min(size) < 1 or max(size) >= 2**16:
        wanted = "an image must be (height, width, 3) uint8 in RGB order, or the bytes of a JPEG or PNG"
        raise LiveScoringError(f"{wanted}, not {pixels.dtype} {size}", "bad_image", time_s)
    return _IMAGE.pack(_RAW, *size[:2], len(data)), data


class FrameHistory:
    """Frames that may have to be sent again, oldest first: scored ones as far back as the server's window looks, and those
    that have no answer yet. What the server skipped, dropped or refused is forgotten: no window of its ever showed it.

    Args:
        max_bytes: of their messages; beyond it the oldest are forgotten, and a replay is less complete.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.keep_s, self.keep_first = math.inf, True  # until the server says how far back its window looks
        self.first_time_s: float | None = None  # the session's zero, known from the first score on
        self.last_time_s: float | None = None  # newest scored frame: all up to it are dealt with
        self._first_times_s: list[float] = []  # one of these is the zero: the server may have refused the very first
        self._scored: deque[SentFrame] = deque()
        self._waiting: deque[SentFrame] = deque()
        self._num_bytes = 0

    def sent(self, frame: SentFrame) -> None:
        """Remember a frame, newer than all before."""
        if self.first_time_s is None:
            self._first_times_s.append(frame.time_s)
        self._waiting.append(frame)
        self._num_bytes += len(frame.message)
        self._trim()

    def scored(self, time_s: float, since_first_s: float) -> SentFrame | None:
        """A frame got its score: it is returned if it is still here. Older ones without a score will never get one.

        Args:
            time_s: the frame's.
            since_first_s: what the server takes for its distance from the session's first frame, to half a frame.
        """
        if self.first_time_s is None:
            times_s = self._first_times_s or [time_s]
            self.first_time_s = times_s[_nearest(times_s, time_s - since_first_s)]
            self._first_times_s = []
        found = None
        while self._waiting and self._waiting[0].time_s <= time_s:
            frame = self._waiting.popleft()
            if frame.time_s == time_s:
                found = frame
                self._scored.append(frame)
            else:
                self._num_bytes -= len(frame.message)
        self.last_time_s = time_s if self.last_time_s is None else max(time_s, self.last_time_s)
        self._trim()
        return found

    def refused(self, time_s: float) -> None:
        """The server did not take a frame."""
        kept = deque(frame for frame in self._waiting if frame.time_s != time_s)
        self._num_bytes -= sum(len(frame.message) for frame in self._waiting if frame.time_s == time_s)
        self._waiting = kept

    def replay(self, times_s: Sequence[float], held_s: float | None) -> list[SentFrame]:
        """For each time the nearest frame that the server dealt with, each once, in order.

        Args:
            times_s: what the server asks for.
            held_s: the newest frame that it still has; None where it has none.
        """
        held = [] if held_s is None else [frame for frame in self._waiting if frame.time_s <= held_s]
        frames = [*self._scored, *held]
        if not frames:
            return []
        own = [frame.time_s for frame in frames]
        return [frames[place] for place in sorted({_nearest(own, time_s) for time_s in times_s})]

    def unanswered(self, held_s: float | None) -> list[SentFrame]:
        """Frames that the server neither answered nor still has, oldest first."""
        return [frame for frame in self._waiting if held_s is None or frame.time_s > held_s]

    def _trim(self) -> None:
        first = 1 if self.keep_first else 0
        cut = -math.inf if self.last_time_s is None else self.last_time_s - self.keep_s
        # one frame before the cut stays: it may be the nearest one to it
        while len(self._scored) > first + 1 and self._scored[first + 1].time_s <= cut:
            self._forget(self._scored, first)
        while self._num_bytes > self.max_bytes and len(self._scored) > first:
            self._forget(self._scored, first)
        longest = max(_UNANSWERED_S, self.keep_s)
        while len(self._waiting) > 1 and (
            self._num_bytes > self.max_bytes or self._waiting[-1].time_s - self._waiting[0].time_s > longest
        ):
            self._forget(self._waiting, 0)

    def _forget(self, frames: deque[SentFrame], place: int) -> None:
        self._num_bytes -= len(frames[place].message)
        del frames[place]


def _nearest(times_s: list[float], time_s: float) -> int:
    place = bisect.bisect_left(times_s, time_s)
    around = [each for each in (place - 1, place) if 0 <= each < len(times_s)]
    return min(around, key=lambda each: abs(times_s[each] - time_s))


def parse_score(
    message: dict[str, Any], heads: Sequence[str], stages: dict[str, list[str]], round_trip_s: float | None = None
) -> Score:
    """A `score` message, for the heads that it is about and the names of their stages."""
    parsed = {head: _head_score(message[head], stages.get(head, [])) for head in heads}
    first, counts = parsed[heads[0]], {name: message.get(name, 0) for name in _COUNTS}
    return Score(
        message["time_s"],
        message["frame_index"],
        *(first.progress, first.stage, first.stage_name, first.confidence),
        heads=parsed,
        slots_off_s=message["slots_off_s"],
        missing=tuple(message["missing"]),
        timings_ms=message.get("timings_ms", {}),
        round_trip_s=round_trip_s,
        **counts,
    )


def _head_score(value: dict[str, Any], names: list[str]) -> HeadScore:
    stage, probabilities = value["stage"], value["probabilities"]
    name = names[stage] if stage is not None and stage < len(names) else None
    known = None if probabilities is None else tuple(probabilities)
    return HeadScore(value["progress"], stage, name, value["confidence"], known)


@dataclass(frozen=True)
class ScoredRow:
    """A row of the curve: progress by head."""

    time_s: float
    frame_index: int
    progress: dict[str, float | None]


class ScoredRows:
    """What was scored so far, each frame once, in order. One thread adds; any may ask."""

    def __init__(self) -> None:
        self._rows: list[ScoredRow] = []
        self._best: list[float] = []  # highest progress of the first head up to each row
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, score: Score) -> bool:
        """Add a newer score than all before; False where it is known: a server says again what may have been lost."""
        progress = {head: each.progress for head, each in score.heads.items()}
        with self._lock:
            if self._rows and score.time_s <= self._rows[-1].time_s:
                return False
            self._best.append(max([*self._best[-1:], -math.inf if score.progress is None else score.progress]))
            self._rows.append(ScoredRow(score.time_s, score.frame_index, progress))
        return True

    def stalled(self, for_s: float, epsilon: float) -> bool:
        """See LiveScorer."""
        with self._lock:
            if not self._rows:
                return False
            before = bisect.bisect_right(self._rows, self._rows[-1].time_s - for_s, key=lambda row: row.time_s) - 1
            return before >= 0 and self._best[-1] < self._best[before] + epsilon

    def newest(self, heads: Sequence[str], most: int = _MAX_RESUME_POINTS) -> dict[str, list]:
        """The newest rows as columns, for a server that never saw them."""
        rows = self._rows[-most:]
        columns: dict[str, list] = {f"progress_{head}": [row.progress[head] for row in rows] for head in heads}
        return columns | {"time_s": [row.time_s for row in rows], "frame_index": [row.frame_index for row in rows]}

    def merged(self, theirs: Sequence[ScoredRow]) -> list[ScoredRow]:
        """All rows, each frame once: the server's, and those that it has no more."""
        with self._lock:
            rows = {row.time_s: row for row in [*self._rows, *theirs]}
        return [rows[time_s] for time_s in sorted(rows)]


def _rows_of(reply: dict[str, Any], heads: Sequence[str]) -> list[ScoredRow]:
    """Of a `curve` message."""
    columns = reply["columns"]
    progress = zip(*(columns[f"progress_{head}"] for head in heads), strict=True)
    parts = zip(reply["time_s"], columns["frame_index"], progress, strict=True)
    return [ScoredRow(time_s, frame, dict(zip(heads, values, strict=True))) for time_s, frame, values in parts]


def _make_curve(rows: Sequence[ScoredRow], heads: Sequence[str], counts: dict[str, int], complete: bool) -> Curve:
    columns = {
        "index": np.arange(len(rows), dtype=np.int64),
        "episode_index": np.zeros(len(rows), dtype=np.int64),
        "frame_index": np.array([row.frame_index for row in rows], dtype=np.int64),
    }
    for head in heads:
        progress = [row.progress.get(head) for row in rows]
        columns[f"progress_{head}"] = np.array(progress, dtype=np.float32)  # None becomes NaN
    return Curve(columns, np.array([row.time_s for row in rows], dtype=np.float64), counts, complete)


def _server(url: str, scheme: str) -> str:
    """A server's address under a scheme of the same security: `ws` or `http`."""
    parts = urllib.parse.urlsplit(url if "://" in url else f"ws://{url}")
    if parts.scheme not in ("ws", "http", "wss", "https") or not parts.hostname:
        raise ValueError(f"url must be like ws://HOST:PORT, not {url!r}")
    secure = "s" if parts.scheme in ("wss", "https") else ""
    return f"{scheme}{secure}://{parts.netloc}{parts.path.rstrip('/')}"


def _make_hello(
    task: str, fps: float, state_dim: int, heads: Sequence[str] | None, score_hz: float | None
) -> dict[str, Any]:
    for name, value in (("fps", fps), ("score_hz", 1.0 if score_hz is None else score_hz)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, not {value}")
    if state_dim < 0:
        raise ValueError(f"state_dim must be at least 0, not {state_dim}")
    hello = {"type": "hello", "protocol": PROTOCOL, "task": task, "fps": float(fps), "state_dim": int(state_dim)}
    if heads is not None:
        hello["heads"] = [heads] if isinstance(heads, str) else list(heads)
    if score_hz is not None:
        hello["score_hz"] = float(score_hz)
    return hello


def _authorization(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token.strip()}"}


def _object(text: str | bytes) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object: {text[:40]!r}")
    return value


def _backoff_s(failures: int) -> float:
    """The wait before connecting, after so many failed attempts in a row; drawn, so that robots don't come all at once."""
    return 0.0 if failures == 0 else min(MAX_BACKOFF_S, 0.05 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)


def _keep_little_unsent(connection: ClientConnection) -> None:
    """On a link that carries less than comes, frames would grow old in the system's buffers: seconds, measured."""
    own = connection.transport.get_extra_info("socket")
    if own is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)


class _Again(Exception):  # noqa: N818  # nothing is wrong
    """Connect again."""


class _Pulse:
    """Wakes all who wait for news on one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def pulse(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def next(self) -> None:
        await self._event.wait()


class _Session:
    """What both scorers are: the protocol, and what is known of the rollout. `_run` does all the talking, on one event loop;
    what a robot's thread touches is under `_lock`.
    """

    def __init__(
        self,
        url: str,
        task: str,
        fps: float,
        state_dim: int,
        heads: Sequence[str] | None = None,
        session: str | None = None,
        token: str | None = None,
        score_hz: float | None = None,
        *,
        max_pending: int = 90,
        max_wait_s: float = 0.5,
        connect_timeout_s: float = 10.0,
        give_up_s: float | None = None,
        strict: bool = False,
        max_history_bytes: int = 256 * 2**20,
    ):
        self.session = secrets.token_hex(8) if session is None else session
        if not re.fullmatch(r"[A-Za-z0-9._~-]{1,64}", self.session):
            raise ValueError(f"session must be 1 to 64 of A-Z a-z 0-9 . _ ~ -, not {self.session!r}")
        if max_pending < 1:
            raise ValueError(f"max_pending must be at least 1, not {max_pending}")
        if not max_wait_s > 0:
            raise ValueError(f"max_wait_s must be above 0, not {max_wait_s}")
        self.url = _server(url, "ws") + f"/v1/sessions/{self.session}"
        self._hello = _make_hello(task, fps, state_dim, heads, score_hz)
        self._headers = {"x-session-id": self.session} | _authorization(token)
        self._max_pending, self._max_wait_s, self._strict = max_pending, max_wait_s, strict
        self._connect_timeout_s, self._give_up_s = connect_timeout_s, give_up_s
        self.latest: Score | None = None
        self.errors: deque[LiveScoringError] = deque(maxlen=100)
        self.connected = False
        self.num_added = self.num_unsent = self.num_refused = self.num_reconnects = 0
        self.welcome: dict[str, Any] = {}
        self._started_s: float | None = None
        self._history = FrameHistory(max_history_bytes)
        self._pending: deque[SentFrame] = deque()
        self._scored = ScoredRows()
        self._last_time_s = -math.inf  # of the frame last added
        self._last_refused = False  # by this client
        self._close: dict[str, Any] | None = None  # what to say when all is sent
        self._reply: dict[str, Any] | None = None  # the server's curve
        self._fatal: LiveScoringError | None = None
        self._curve: Curve | None = None
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def progress(self) -> float | None:
        """Of the newest score, 0 to 1; None before the first, and where its window was incomplete."""
        return None if self.latest is None else self.latest.progress

    @property
    def scores(self) -> Curve:
        """The curve so far."""
        return self._curve_of(self._reply)

    def stalled(self, for_s: float, epsilon: float = 0.01) -> bool:
        """Whether, by the scores so far, the rollout came no further than before within the last `for_s` seconds.

        Args:
            for_s: on the frames' clock, back from the newest scored frame. Earlier than that after the first one: False.
            epsilon: rises of the highest progress below it do not count.
        """
        return self._scored.stalled(for_s, epsilon)

    def _offer(self, frame: Image | Sequence[Image], state: Any, time_s: float | None) -> None:
        """Queue a frame, from any one thread."""
        loop = self._loop
        self._stop_if_failed()
        if loop is None or self._close is not None:
            raise LiveScoringError("the scorer is not open; use it in a with block")
        added_s = time.monotonic()
        time_s = added_s if time_s is None else float(time_s)
        self.num_added += 1
        self._last_refused = False
        try:
            message = self._checked(pack_frame(frame, state, time_s), time_s)
        except LiveScoringError as error:
            if self._strict:
                raise
            self._last_refused = True
            self._refuse(error)
            return
        with self._lock:
            self._last_time_s = time_s
            self._pending.append(SentFrame(time_s, message, added_s))
            if len(self._pending) > self._max_pending:
                self._pending.popleft()
                self.num_unsent += 1
        loop.call_soon_threadsafe(self._wake.set)

    def _checked(self, message: bytes, time_s: float) -> bytes:
        """What the server would refuse anyway costs no bandwidth."""
        width, said = _FRAME.unpack_from(message)[3], self._hello["state_dim"]
        if width != said:
            raise LiveScoringError(f"state has {width} numbers, state_dim is {said}", "state_size", time_s)
        if time_s <= self._last_time_s:
            raise LiveScoringError(f"time {time_s} s is not after {self._last_time_s} s", "time_order", time_s)
        most = self.welcome.get("max_message_bytes", math.inf)
        if len(message) > most:
            size = f"a frame of {len(message)} bytes, the server takes {most}; send smaller images, or JPEG"
            raise LiveScoringError(size, "too_large", time_s)
        return message

    def _refuse(self, error: LiveScoringError) -> None:
        with self._lock:
            if not any(error.code == each.code for each in self.errors):
                _log.warning("a frame was not taken: %s (%s)", error, error.code)
            self.errors.append(error)
            self.num_refused += 1

    # --- on the event loop ---

    async def _open(self) -> None:
        """Connect; returns when frames can be sent."""
        self._loop = asyncio.get_running_loop()
        self._wake, self._news = asyncio.Event(), _Pulse()
        self._feed: asyncio.Queue[Score | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())
        while not self.welcome and not self._task.done():
            await self._news.next()
        self._stop_if_failed()

    async def _finish(self, outcome: str | None, timeout_s: float) -> Curve:
        """Send what waits, end the session and take its curve."""
        if outcome not in OUTCOMES:
            raise ValueError(f"outcome must be success, partial, failure or None, not {outcome!r}")
        if self._task is not None and self._curve is None:
            self._close = {"type": "close", "outcome": outcome}
            self._wake.set()
            await asyncio.wait({self._task}, timeout=timeout_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._feed.put_nowait(None)
            self._stop_if_failed()
            if self._reply is None:
                _log.warning("%s did not confirm the rollout within %g s", self.url, timeout_s)
        self._curve = self._curve or self._curve_of(self._reply)
        return self._curve

    def _stop_if_failed(self) -> None:
        if self._fatal:
            raise self._fatal
        if self._task and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def _wait(self, timeout_s: float) -> Score | None:
        """The newest score as soon as it is that of the frame last added, or a later one; None where none comes in time."""
        wanted = self._last_time_s
        if self._last_refused:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.latest is None or self.latest.time_s < wanted:
                    self._stop_if_failed()
                    if self.errors and self.errors[-1].time_s == wanted:
                        return None
                    await self._news.next()
                return self.latest
        return None

    async def _run(self) -> None:
        """Be connected until the curve is here, or it makes no sense any more."""
        failures, good_s = 0, time.monotonic()
        try:
            while self._reply is None:
                await asyncio.sleep(_backoff_s(failures))
                began_s, num_rows = time.monotonic(), len(self._scored)
                cause = await self._connect_once()
                failures += 1
                if len(self._scored) > num_rows or (self.connected and time.monotonic() - began_s > _GOOD_S):
                    failures, good_s = 0, time.monotonic()
                if self.connected and self._reply is None:
                    _log.warning("%s: %s; connecting again", self.url, cause)
                self.connected = False
                patience_s = self._give_up_s if self.welcome else self._connect_timeout_s
                if patience_s is not None and time.monotonic() - good_s > patience_s and self._reply is None:
                    raise LiveScoringError(f"{self.url}: {cause}; is `sarm-ray serve` running there?", "unreachable")
        except LiveScoringError as error:
            self._fatal = error
        finally:
            self.connected = False
            self._news.pulse()
            self._feed.put_nowait(None)

    async def _connect_once(self) -> str:
        """Connect and talk until the connection ends; why it did."""
        try:
            async with self._connection() as connection:
                await self._converse(connection)
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                message = f"{self.url}: HTTP {status}: token= is not what the server's --token-file holds"
                message += ", or the server is to be called by its address, not by this name"
                raise LiveScoringError(message, "token") from error
            return f"the server answered HTTP {status}"
        except (OSError, TimeoutError, WebSocketException, _Again) as error:
            return str(error) or type(error).__name__
        except (KeyError, TypeError, ValueError) as error:
            raise LiveScoringError(f"{self.url} sent what is not the protocol ({error!r})", "protocol") from error
        return "the server closed the connection"

    def _connection(self) -> connect:
        return connect(
            self.url,
            additional_headers=self._headers,
            proxy=None,  # a robot's server is on its own network
            compression=None,  # images are compressed, or not worth it
            max_size=2**26,
            open_timeout=self._connect_timeout_s,
            ping_interval=3,  # a cut cable is noticed within 9 s
            ping_timeout=6,
            close_timeout=1,
        )

    async def _converse(self, connection: ClientConnection) -> None:
        """One connection: returns or raises when it ends."""
        resume = self._resume()
        await connection.send(json.dumps(self._hello | ({"resume": resume} if resume else {})))
        async with asyncio.timeout(self._connect_timeout_s):
            welcome = _object(await connection.recv())
        if welcome.get("type") != "welcome":
            self._receive(welcome)
            raise LiveScoringError(f"{self.url} is no `sarm-ray serve`", "protocol")
        _keep_little_unsent(connection)
        replay, unanswered = self._enter(welcome)
        sender = asyncio.create_task(self._send(connection, replay, unanswered))
        try:
            async for text in connection:
                self._receive(_object(text))
                if self._reply is not None:
                    return
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd else None
            if code in _FATAL_CLOSES:
                raise LiveScoringError(f"{self.url}: {_FATAL_CLOSES[code]}", str(code)) from error
            raise
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    def _enter(self, welcome: dict[str, Any]) -> tuple[list[SentFrame], list[SentFrame]]:
        """Take the server's terms: what to send it again, as replayed and as new frames."""
        if welcome.get("protocol") != PROTOCOL:
            spoken = f"{self.url} speaks protocol {welcome.get('protocol')}, this client {PROTOCOL}"
            raise LiveScoringError(f"{spoken}; take the client of the server's version", "protocol")
        if not self.welcome:
            self._started_s = welcome.get("started_s")  # with its name this tells the rollout from others
        else:
            self.num_reconnects += 1
        self._history.keep_s, self._history.keep_first = welcome["keep_s"], welcome["keep_first"]
        self.welcome, self.connected, held_s = welcome, True, welcome["last_time_s"]
        self._news.pulse()
        return self._history.replay(welcome["replay_times_s"], held_s), self._history.unanswered(held_s)

    def _resume(self) -> dict[str, Any] | None:
        history = self._history
        if history.last_time_s is None:
            return None  # nothing to go on from: what was sent is sent again
        curve = self._scored.newest(self.welcome["heads"])
        times = {"first_time_s": history.first_time_s, "last_time_s": history.last_time_s}
        counts = {name: getattr(self.latest, name) for name in ("num_dropped", "num_skipped")} if self.latest else {}
        return {"started_s": self._started_s, **times, **counts, "curve": curve}

    async def _send(self, connection: ClientConnection, replay: list[SentFrame], unanswered: list[SentFrame]) -> None:
        """Send frames as they come. That the connection ended is for its reader to judge."""
        with contextlib.suppress(ConnectionClosed):
            for frame in replay:
                await connection.send(frame.replayed)
            for frame in unanswered:
                await connection.send(frame.message)
                await asyncio.sleep(1 / self.welcome["max_frames_per_s"])
            since_s = time.monotonic()
            while True:
                self._wake.clear()
                next_frame = self._next_pending(since_s)
                if next_frame is not None:
                    self._history.sent(next_frame)
                    await connection.send(next_frame.message)
                elif self._close is not None:
                    await connection.send(json.dumps(self._close))
                    return
                else:
                    await self._wake.wait()

    def _next_pending(self, since_s: float) -> SentFrame | None:
        """Take the oldest frame that is not too late; none is that waited while there was no connection, before since_s."""
        with self._lock:
            now_s, pending = time.monotonic(), self._pending
            while len(pending) > 1 and now_s - max(pending[0].added_s, since_s) > self._max_wait_s:
                pending.popleft()
                self.num_unsent += 1
            return pending.popleft() if pending else None

    def _receive(self, message: dict[str, Any]) -> None:
        """One message after the welcome."""
        kind = message.get("type")
        if kind == "score":
            self._take_score(message)
        elif kind == "error":
            self._take_error(message)
        elif kind == "reconnect":
            raise _Again(f"the server asks to connect again ({message.get('reason')})")
        elif kind == "curve":
            self._reply = message
        self._news.pulse()

    def _take_score(self, message: dict[str, Any]) -> None:
        frame = self._history.scored(message["time_s"], message["frame_index"] / self._hello["fps"])
        round_trip_s = None if frame is None else time.monotonic() - frame.added_s
        score = parse_score(message, self.welcome["heads"], self.welcome["stages"], round_trip_s)
        if not self._scored.add(score):
            return
        self.latest = score
        self._feed.put_nowait(score)
        if self._feed.qsize() > _MAX_FEED:
            self._feed.get_nowait()

    def _take_error(self, message: dict[str, Any]) -> None:
        time_s, code = message.get("time_s"), message["code"]
        error = LiveScoringError(message["message"], code, time_s)
        if time_s is not None:
            self._history.refused(time_s)
        if not message.get("fatal"):
            self._refuse(error)
            if self._strict:
                raise error
        elif code == "draining" or (code in _PASSING and self.welcome):
            raise _Again(message["message"])
        else:
            raise error

    def _curve_of(self, reply: dict[str, Any] | None) -> Curve:
        """All that was scored, each frame once: as the server has it, and what it has no more."""
        heads = self.welcome.get("heads", [])
        rows = self._scored.merged([] if reply is None else _rows_of(reply, heads))
        counts = dict.fromkeys(_COUNTS, 0)
        if last := reply or (vars(self.latest) if self.latest else None):
            counts = {name: last[name] for name in _COUNTS}
        counts |= {"num_added": self.num_added, "num_unsent": self.num_unsent}
        counts |= {"num_refused": self.num_refused, "num_reconnects": self.num_reconnects}
        return _make_curve(rows, heads, counts, reply is not None)


class AsyncLiveScorer(_Session):
    """A rollout's live scoring, for programs on asyncio; arguments, attributes and errors as of LiveScorer.

    async with AsyncLiveScorer("ws://gpu-box:8000", task="pick up the bottle", fps=30, state_dim=26) as scorer:
        await scorer.send(image, state)
        async for score in scorer:      # in a task of its own, where frames go on meanwhile
            print(score.progress)
    """

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if self._close is not None:
            return  # it was closed inside
        with contextlib.suppress(*([] if kind is None else [LiveScoringError])):
            await self.close(timeout_s=_CLOSE_S if kind is None else 1.0)

    async def send(self, frame: Image | Sequence[Image], state: Any, time_s: float | None = None) -> None:
        """As `LiveScorer.add`."""
        self._offer(frame, state, time_s)
        await asyncio.sleep(0)

    async def wait(self, timeout_s: float = 1.0) -> Score | None:
        """As `LiveScorer.wait`."""
        return await self._wait(timeout_s)

    async def __aiter__(self) -> AsyncIterator[Score]:
        """Scores as they come, until the session is closed; of those that nobody takes the newest 1024 are kept."""
        while (score := await self._feed.get()) is not None:
            yield score
        self._feed.put_nowait(None)  # for the next one who asks
        self._stop_if_failed()

    async def close(self, outcome: str | None = None, timeout_s: float = _CLOSE_S) -> Curve:
        """As `LiveScorer.close`."""
        return await self._finish(outcome, timeout_s)


class LiveScorer(_Session):
    """A rollout's live scoring, for a robot's loop: the network has a thread of its own. Use it in a with block, or `start`
    and `close` it.

    Args:
        url: of the server: ws://HOST:PORT; http:// is taken too, and wss:// or https:// where TLS is before it.
        task: what the robot is told to do; the model was trained with such texts.
        fps: frames per second of the camera.
        state_dim: numbers in the robot's state.
        heads: wanted ones; all that the model has unless told.
        session: a name for the rollout, 1 to 64 of `A-Z a-z 0-9 . _ ~ -`, unique; drawn unless told.
        token: what the server's --token-file holds.
        score_hz: score at most this often.
        max_pending: frames that wait to be sent, as while the server is gone; when one more comes the oldest is dropped.
        max_wait_s: a frame that waits longer though the server is there is dropped, unless it is the newest: the network
            carries less than comes.
        connect_timeout_s: for the first connection.
        give_up_s: without a connection for so long, give up; unless told, try for ever.
        strict: raise what is wrong with a frame instead of entering it in `errors`.
        max_history_bytes: memory for frames that may have to be sent again.

    Attributes:
        latest: the newest Score; None before the first.
        errors: the newest 100 frames that were not taken: LiveScoringError.
        connected: whether the server is there at the moment.
        welcome: what it said of itself when it was connected to last: `stages`, `score_hz`, `stride`, `replica` and more.
        num_added, num_unsent, num_refused, num_reconnects: frames handed over, dropped here, not taken; connections lost and
            made again.

    Raises:
        ValueError: an argument out of its range.
    """

    _thread: threading.Thread | None = None

    def start(self) -> Self:
        """Connect.

        Raises:
            LiveScoringError: no server there within connect_timeout_s, or it does not take this session.
        """
        running = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live(running)), name="LiveScorer", daemon=True)
        self._thread.start()
        running.wait()
        try:
            self._call(self._open())
        except BaseException:
            self._stop()
            raise
        return self

    def add(self, frame: Image | Sequence[Image], state: Any, time_s: float | None = None) -> None:
        """Hand a frame over, and go on.

        Args:
            frame: (H, W, 3) uint8 in RGB order, or the bytes of a JPEG or PNG (also as the vector that cv2.imencode
                returns); of several cameras, a sequence of these in the order of the model's cameras. It is copied.
            state: (state_dim,) numbers.
            time_s: when it was seen, on any clock that only moves forward; time.monotonic() unless told.

        Raises:
            LiveScoringError: the session cannot go on; with strict also a frame that cannot be taken.
        """
        self._offer(frame, state, time_s)

    def wait(self, timeout_s: float = 1.0) -> Score | None:
        """The score of the frame last added, or of a later one. None where it was refused, and where none comes within
        timeout_s: a frame whose turn it was not at score_hz gets none.

        Raises:
            LiveScoringError: the session cannot go on.
        """
        return self._call(self._wait(timeout_s))

    def close(self, outcome: str | None = None, timeout_s: float = _CLOSE_S) -> Curve:
        """Send what waits, and end the rollout; closing again returns the same.

        Args:
            outcome: `success`, `partial` or `failure`, for the server's record.
            timeout_s: how long to try; after that the curve is what is known here, and not `complete`.

        Raises:
            LiveScoringError: the session could not go on, before or now.
        """
        try:
            return self._call(self._finish(outcome, timeout_s)) if self._curve is None else self._curve
        finally:
            if self._close is not None:
                self._stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: object, *_: object) -> None:
        if self._close is not None:
            return  # it was closed inside
        with contextlib.suppress(*([] if kind is None else [LiveScoringError])):
            self.close(timeout_s=_CLOSE_S if kind is None else 1.0)

    async def _live(self, running: threading.Event) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        running.set()
        await self._ended.wait()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self._loop is None or self._loop.is_closed():
            work.close()
            raise LiveScoringError("the scorer is not open; use it in a with block")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        if self._thread is not None and self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()
        self._thread = None


def score_clip(
    url: str,
    frames: Sequence[Image | Sequence[Image]],
    states: Any,
    task: str,
    fps: float,
    times_s: Sequence[float] | None = None,
    heads: Sequence[str] | None = None,
    score_hz: float | None = None,
    token: str | None = None,
    timeout_s: float = 120.0,
) -> Curve:
    """Score a short clip in one request.

    Args:
        url, task, fps, heads, score_hz, token: as for LiveScorer.
        frames: n frames, each as for `LiveScorer.add`.
        states: (n, S) numbers.
        times_s: (n,) ascending seconds; n / fps unless told.
        timeout_s: of the request.

    Raises:
        LiveScoringError: the server cannot be had, or does not take the clip.
        ValueError: an argument out of its range.
    """
    states = np.asarray(states, dtype=np.float32)
    times = [number / fps for number in range(len(frames))] if times_s is None else [float(each) for each in times_s]
    if states.ndim != 2 or not len(frames) == len(states) == len(times) > 0:
        shapes = f"{len(frames)} frames, states {states.shape}, {len(times)} times"
        raise ValueError(f"a clip needs as many states as frames, (n, S), and as many times, not {shapes}")
    messages = [json.dumps(_make_hello(task, fps, states.shape[1], heads, score_hz)).encode()]
    messages += [pack_frame(*each) for each in zip(frames, states, times, strict=True)]
    body = b"".join(part for each in messages for part in (struct.pack("<I", len(each)), each))
    reply = _post(_server(url, "http") + "/v1/score", body, token, timeout_s)
    names = [name.removeprefix("progress_") for name in reply["columns"] if name.startswith("progress_")]
    scores = tuple(parse_score(each, names, reply.get("stages", {})) for each in reply["scores"])
    curve = _make_curve(_rows_of(reply, names), names, {}, complete=True)
    return replace(curve, scores=scores)


def _post(url: str, body: bytes, token: str | None, timeout_s: float) -> dict[str, Any]:
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {"Content-Type": "application/octet-stream"} | _authorization(token)
    try:
        with contextlib.closing(kind(parts.netloc, timeout=timeout_s)) as connection:
            connection.request("POST", parts.path, body, headers)
            response = connection.getresponse()
            status, text = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise LiveScoringError(f"{url}: {error}; is `sarm-ray serve` running there?", "unreachable") from error
    try:
        reply = _object(text)
    except ValueError:
        reply = {}
    if status == 200 and "scores" in reply:
        return reply
    said = reply.get("error", {})
    message = said.get("message", f"{url}: HTTP {status}")
    raise LiveScoringError(message, said.get("code", str(status)), said.get("time_s"))
