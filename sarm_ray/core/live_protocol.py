"""The live protocol, version 1: what a robot may send, taken apart and checked before anything is made of it.

Nothing in a message is believed: sizes are compared with what is there, numbers with their bounds, and every refusal says
which and why. `sarm_ray/client.py` writes what this reads; README has the protocol for other languages.
"""

import itertools
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

PROTOCOL = 1
SESSION_NAME = re.compile(r"[A-Za-z0-9._~-]{1,64}")
MAX_TASK_CHARACTERS = 1000
MAX_FPS = 1000.0
MAX_STATE_DIM = 4096
SHOWN = 40  # characters of a client's value in a message
RESUMED_COUNTS = ("num_dropped", "num_skipped")
MAX_RESUMED_ROWS = 20_000
MAX_TIME_S, MAX_UNIX_S, MAX_COUNT = 1e12, 2.0**32, 2.0**53
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


USUAL_LIMITS = LiveLimits()


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


def read_hello(
    text: str | bytes, heads: tuple[str, ...], state_dim: int | None, limits: LiveLimits = USUAL_LIMITS
) -> Hello:
    """The first message of a session.

    Args:
        text: as it came.
        heads: the model's.
        state_dim: how many numbers its statistics have; None where it takes any.
        limits: of a session.

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
    if not isinstance(task, str) or len(task) > MAX_TASK_CHARACTERS or not _is_text(task):
        raise Refusal("hello", f"task must be a text of at most {MAX_TASK_CHARACTERS} characters", fatal=True)
    if not isinstance(width, int) or isinstance(width, bool) or not 0 <= width <= MAX_STATE_DIM:
        raise Refusal("hello", f"state_dim must be a whole number up to {MAX_STATE_DIM}", fatal=True)
    if state_dim is not None and width != state_dim:
        raise Refusal("state_size", f"state_dim is {width}, the model was trained on {state_dim}", fatal=True)
    if asked_heads is None:
        asked_heads = []
    if not isinstance(asked_heads, list) or any(head not in heads for head in asked_heads):
        raise Refusal("hello", f"heads must be a list of {' and '.join(heads)}", fatal=True)
    hz, fps = value.get("score_hz"), _number(value.get("fps"), "fps", 1e-3, MAX_FPS)
    return Hello(
        task=task,
        fps=fps,
        state_dim=width,
        heads=tuple(head for head in heads if head in asked_heads),
        score_hz=None if hz is None else _number(hz, "score_hz", 1e-3, MAX_FPS),
        resume=None if value.get("resume") is None else _read_resume(value["resume"], heads, fps, limits),
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


def _read_resume(value: Any, heads: tuple[str, ...], fps: float, limits: LiveLimits) -> Resume:
    """What a client brings along of a session. It goes into curves and pages, so nothing in it may be out of bounds."""
    if not isinstance(value, dict):
        raise Refusal("hello", "resume must be an object", fatal=True)
    first = _number(value.get("first_time_s"), "resume.first_time_s", -MAX_TIME_S, MAX_TIME_S)
    last = _number(value.get("last_time_s"), "resume.last_time_s", first, first + limits.max_session_s)
    counts = {name: int(_number(value.get(name, 0), f"resume.{name}", 0, MAX_COUNT)) for name in RESUMED_COUNTS}
    started = value.get("started_s")
    started_s = None if started is None else _number(started, "resume.started_s", 0, MAX_UNIX_S)
    columns = _read_curve(value.get("curve") or {}, heads)
    most = round((last - first) * fps)
    for name, least_value, most_value in (("time_s", first, last), ("frame_index", 0, most)):
        column = [_number(each, f"resume.curve.{name}", least_value, most_value) for each in columns.get(name, [])]
        if any(after <= before for before, after in itertools.pairwise(column)):
            raise Refusal("hello", f"resume.curve.{name} must ascend", fatal=True)
    return Resume(first, last, started_s, columns, counts)


def _read_curve(curve: Any, heads: tuple[str, ...]) -> dict[str, list]:
    """The columns of a curve that are known, equally long, with progress in bounds."""
    names = ["time_s", "frame_index", *(f"progress_{head}" for head in heads)]
    if not isinstance(curve, dict) or not all(isinstance(column, list) for column in curve.values()):
        raise Refusal("hello", "resume.curve must be an object of lists", fatal=True)
    columns = {name: curve[name] for name in names if name in curve}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1 or (columns and not {"time_s", "frame_index"} <= set(columns)):
        raise Refusal("hello", "resume.curve needs time_s, frame_index and progress of equal lengths", fatal=True)
    if max(lengths, default=0) > MAX_RESUMED_ROWS:
        raise Refusal("hello", f"resume.curve has more than {MAX_RESUMED_ROWS} rows; bring the newest", fatal=True)
    for name, column in columns.items():
        if name.startswith("progress_"):
            for each in column:
                if each is not None:
                    _number(each, f"resume.curve.{name}", 0, 1)
    return columns


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


def _is_text(value: str) -> bool:
    """Whether it can be written down: JSON may have halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    """A value in a message, whatever a client put there."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _no_constant(name: str) -> float:
    raise ValueError(name)
