"""The live protocol, version 1: what a robot may send, taken apart and checked before anything is made of it.

Nothing in a message is believed: sizes are compared with what is there, numbers with their bounds, and every refusal says
which and why. `sarm_ray/client.py` writes what this reads; README has the protocol for other languages.
"""

import json
import math
import re
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PROTOCOL = 1
SESSION_NAME = re.compile(r"[A-Za-z0-9._~-]{1,64}")
FRAME_HEADER = struct.Struct("<BBBxId")  # version, flags, images, numbers of the state, time in seconds
IMAGE_HEADER = struct.Struct("<BxHHxxI")  # format, height, width, bytes
MESSAGE_LENGTH = struct.Struct("<I")  # before each message of a clip
REPLAYED = 1
IMAGE_FORMATS = ("raw", "jpeg", "png")
MAX_TASK_CHARACTERS = 1000
MAX_FPS = 1000.0
MAX_STATE_DIM = 4096
SHOWN = 40  # characters of a client's value in a message
RESUMED_COUNTS = ("num_dropped", "num_skipped")
OUTCOMES = ("success", "partial", "failure")


class Refusal(ValueError):  # noqa: N818  # what the protocol calls it
    """A message that is not taken.

    Args:
        code: for programs.
        message: for people.
        fatal: whether the session's connection ends with it; otherwise this one message is refused and no more.
        time_s: of the frame it is about.
    """

    def __init__(self, code: str, message: str, fatal: bool = False, time_s: float | None = None):
        super().__init__(message)
        self.code, self.message, self.fatal, self.time_s = code, message, fatal, time_s

    def as_object(self) -> dict[str, Any]:
        """As the server sends it."""
        return {
            "type": "error",
            "code": self.code,
            "message": self.message,
            "time_s": self.time_s,
            "fatal": self.fatal,
        }


@dataclass(frozen=True)
class LiveLimits:
    """What one client, or one replica, may use up.

    Args:
        max_message_bytes: of one message on a socket.
        max_image_pixels: height times width of one image.
        max_frames_per_s: of one session.
        max_sessions: of one replica.
        max_session_s: a session's clock may run this long.
        max_clip_frames, max_clip_bytes: of one POST.
        max_errors: refused messages in a row after which a connection is closed.
        idle_s: a session without a frame for this long is ended.
        max_wait_s: a frame that waits longer is dropped: the oldest ones, when more come than can be scored.
    """

    max_message_bytes: int = 4 * 2**20
    max_image_pixels: int = 2**21
    max_frames_per_s: float = 120.0
    max_sessions: int = 256
    max_session_s: float = 4 * 3600.0
    max_clip_frames: int = 1024
    max_clip_bytes: int = 256 * 2**20
    max_errors: int = 100
    idle_s: float = 60.0
    max_wait_s: float = 0.5


@dataclass(frozen=True)
class Resume:
    """A session that was there before, as its client remembers it.

    Args:
        first_time_s, last_time_s: of its first frame and of its newest scored one.
        started_s: when it began, unix seconds, as the first welcome said; with its name it is the rollout's identity.
        columns: what was scored so far, by name; equally long lists.
        counts: num_dropped and num_skipped of the newest score.
    """

    first_time_s: float
    last_time_s: float
    started_s: float | None = None
    columns: dict[str, list[float | None]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Hello:
    """What a session is about.

    Args:
        task: text.
        fps: frame rate of the robot's camera, by which times become frame numbers.
        state_dim: numbers in its state.
        heads: wanted ones; none means all that the model has.
        score_hz: score at most this often; None leaves it to the server.
        resume: None for a new session.
    """

    task: str
    fps: float
    state_dim: int
    heads: tuple[str, ...] = ()
    score_hz: float | None = None
    resume: Resume | None = None


@dataclass(frozen=True)
class Image:
    """One camera's image, still encoded.

    Args:
        kind: of IMAGE_FORMATS.
        height, width: pixels; of a raw image alone.
        data: its bytes.
    """

    kind: str
    height: int
    width: int
    data: memoryview


@dataclass(frozen=True)
class Frame:
    """One frame message.

    Args:
        time_s: on the robot's clock.
        state: (state_dim,) float32.
        images: one per camera of the model.
        replayed: it was sent before, and is sent again for the windows of later frames.
    """

    time_s: float
    state: np.ndarray
    images: tuple[Image, ...]
    replayed: bool

    @property
    def num_bytes(self) -> int:
        """Of its images."""
        return sum(len(image.data) for image in self.images)


def read_object(text: str | bytes) -> dict[str, Any]:
    """A text message: a JSON object.

    Raises:
        Refusal: something else.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refusal("protocol", "the message is not JSON", fatal=True) from None
    if not isinstance(value, dict):
        raise Refusal("protocol", "the message is not a JSON object", fatal=True)
    return value


def read_hello(text: str | bytes, heads: tuple[str, ...], state_dim: int | None) -> Hello:
    """The first message of a session.

    Args:
        text: as it came.
        heads: the model's.
        state_dim: how many numbers its statistics have; None where it takes any.

    Raises:
        Refusal: fatal; another protocol, a missing or impossible value.
    """
    value = read_object(text)
    if value.get("type") != "hello":
        raise Refusal("hello", f'the first message must be a "hello", not {_shown(value.get("type"))}', fatal=True)
    if value.get("protocol") != PROTOCOL:
        asked = _shown(value.get("protocol"))
        raise Refusal("protocol", f"this server speaks protocol {PROTOCOL}, the client asks for {asked}", fatal=True)
    task, asked_heads, width = value.get("task"), value.get("heads"), value.get("state_dim")
    if not isinstance(task, str) or len(task) > MAX_TASK_CHARACTERS:
        raise Refusal("hello", f"task must be a text of at most {MAX_TASK_CHARACTERS} characters", fatal=True)
    if not isinstance(width, int) or isinstance(width, bool) or not 0 <= width <= MAX_STATE_DIM:
        raise Refusal("hello", f"state_dim must be a whole number up to {MAX_STATE_DIM}", fatal=True)
    if state_dim is not None and width != state_dim:
        raise Refusal("state_size", f"state_dim is {width}, the model was trained on {state_dim}", fatal=True)
    if asked_heads is None:
        asked_heads = []
    if not isinstance(asked_heads, list) or any(head not in heads for head in asked_heads):
        raise Refusal("hello", f"heads must be a list of {' and '.join(heads)}", fatal=True)
    hz = value.get("score_hz")
    return Hello(
        task=task,
        fps=_number(value.get("fps"), "fps", 1e-3, MAX_FPS),
        state_dim=width,
        heads=tuple(head for head in heads if head in asked_heads),
        score_hz=None if hz is None else _number(hz, "score_hz", 1e-3, MAX_FPS),
        resume=None if value.get("resume") is None else _read_resume(value["resume"], heads),
    )


def read_outcome(value: dict[str, Any]) -> str | None:
    """How a rollout ended, by its `close` message.

    Raises:
        Refusal: no outcome that there is.
    """
    outcome = value.get("outcome")
    if outcome is not None and outcome not in OUTCOMES:
        raise Refusal("bad_message", f"outcome must be {', '.join(OUTCOMES)} or null")
    return outcome


def read_frame(message: bytes | memoryview, hello: Hello, num_cameras: int, limits: LiveLimits) -> Frame:
    """A frame message, taken apart; its images are looked into later.

    Raises:
        Refusal: wrong lengths, another number of images or of state numbers, a state that is not finite.
    """
    data = memoryview(message)
    if len(data) < FRAME_HEADER.size:
        raise Refusal("bad_message", f"a frame has a header of {FRAME_HEADER.size} bytes, this message has {len(data)}")
    version, flags, num_images, num_state, time_s = FRAME_HEADER.unpack_from(data)
    if version != PROTOCOL or flags > REPLAYED:
        raise Refusal("bad_message", f"not a frame of protocol {PROTOCOL} (version {version}, flags {flags})")
    if not math.isfinite(time_s):
        raise Refusal("not_finite", "the frame's time is not a finite number")
    if num_state != hello.state_dim:
        message_ = f"state has {num_state} numbers, the session said {hello.state_dim}"
        raise Refusal("state_size", message_, time_s=time_s)
    if num_images != num_cameras:
        raise Refusal("bad_message", f"{num_images} images, the model takes {num_cameras}", time_s=time_s)
    rest = data[FRAME_HEADER.size :]
    if len(rest) < 4 * num_state:
        raise Refusal("bad_message", "the message ends inside its state", time_s=time_s)
    state = np.frombuffer(rest[: 4 * num_state], dtype="<f4")
    if not np.isfinite(state).all():
        which = int(np.flatnonzero(~np.isfinite(state))[0])
        raise Refusal("not_finite", f"state: number {which} is not finite", time_s=time_s)
    images, rest = [], rest[4 * num_state :]
    for _ in range(num_images):
        image, rest = _read_image(rest, limits, time_s)
        images.append(image)
    if len(rest):
        raise Refusal("bad_message", f"{len(rest)} bytes too many after the images", time_s=time_s)
    return Frame(time_s, state.astype(np.float32), tuple(images), bool(flags & REPLAYED))


def split_clip(body: bytes, limits: LiveLimits) -> list[memoryview]:
    """A clip's messages, each of which stands after its length.

    Raises:
        Refusal: fatal; a length that does not fit, or too many messages.
    """
    messages: list[memoryview] = []
    rest = memoryview(body)
    while len(rest):
        if len(rest) < MESSAGE_LENGTH.size:
            raise Refusal("bad_message", "the clip ends inside a message's length", fatal=True)
        (length,) = MESSAGE_LENGTH.unpack_from(rest)
        rest = rest[MESSAGE_LENGTH.size :]
        if length > min(len(rest), limits.max_message_bytes):
            there = f"{len(rest)} are left, {limits.max_message_bytes} are allowed"
            raise Refusal("too_large", f"a message of the clip says it has {length} bytes; {there}", fatal=True)
        if len(messages) > limits.max_clip_frames:
            raise Refusal("too_large", f"a clip has at most {limits.max_clip_frames} frames", fatal=True)
        messages.append(rest[:length])
        rest = rest[length:]
    return messages


def _read_image(data: memoryview, limits: LiveLimits, time_s: float) -> tuple[Image, memoryview]:
    if len(data) < IMAGE_HEADER.size:
        raise Refusal("bad_message", "the message ends inside an image's header", time_s=time_s)
    kind, height, width, num_bytes = IMAGE_HEADER.unpack_from(data)
    data = data[IMAGE_HEADER.size :]
    if kind >= len(IMAGE_FORMATS):
        raise Refusal("bad_message", f"no image format {kind}; 0 raw, 1 JPEG, 2 PNG", time_s=time_s)
    if num_bytes > len(data):
        raise Refusal("bad_message", f"an image of {num_bytes} bytes, of which {len(data)} came", time_s=time_s)
    if IMAGE_FORMATS[kind] == "raw":
        check_pixels(height, width, limits, time_s)
        if num_bytes != height * width * 3:
            size = f"a raw image of {height} x {width} has {height * width * 3} bytes, not {num_bytes}"
            raise Refusal("bad_image", size, time_s=time_s)
    return Image(IMAGE_FORMATS[kind], height, width, data[:num_bytes]), data[num_bytes:]


def check_pixels(height: int, width: int, limits: LiveLimits, time_s: float | None = None) -> None:
    """Raise a Refusal for an empty image or one that is too large."""
    if height < 1 or width < 1:
        raise Refusal("bad_image", f"an image of {height} x {width} pixels", time_s=time_s)
    if height * width > limits.max_image_pixels:
        allowed = f"{height} x {width} pixels are more than {limits.max_image_pixels}"
        raise Refusal("image_too_large", f"{allowed}; send smaller images", time_s=time_s)


def _read_resume(value: Any, heads: tuple[str, ...]) -> Resume:
    if not isinstance(value, dict):
        raise Refusal("hello", "resume must be an object", fatal=True)
    first = _number(value.get("first_time_s"), "resume.first_time_s", -math.inf, math.inf)
    last = _number(value.get("last_time_s"), "resume.last_time_s", first, math.inf)
    curve = value.get("curve") or {}
    names = ["time_s", "frame_index", *(f"progress_{head}" for head in heads)]
    if not isinstance(curve, dict) or not all(isinstance(column, list) for column in curve.values()):
        raise Refusal("hello", "resume.curve must be an object of lists", fatal=True)
    columns = {name: curve[name] for name in names if name in curve}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1 or (columns and not {"time_s", "frame_index"} <= set(columns)):
        raise Refusal("hello", "resume.curve needs time_s, frame_index and progress of equal lengths", fatal=True)
    for name, column in columns.items():
        whole = name.startswith("progress_")
        for number in column:
            if not (whole and number is None):
                _number(number, f"resume.curve.{name}", -math.inf, math.inf)
    counts = {name: int(_number(value.get(name, 0), f"resume.{name}", 0, 2.0**53)) for name in RESUMED_COUNTS}
    started = value.get("started_s")
    started_s = None if started is None else _number(started, "resume.started_s", 0, 2.0**32)
    return Resume(first, last, started_s, columns, counts)


def _number(value: Any, name: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal("hello", f"{name} must be a number, not {_shown(value)}", fatal=True)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not least <= number <= most:
        raise Refusal("hello", f"{name} must be within {least:g} and {most:g}, not {_shown(value)}", fatal=True)
    return number


def _shown(value: Any) -> str:
    """A value in a message, whatever a client put there."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _no_constant(name: str) -> float:
    raise ValueError(name)
