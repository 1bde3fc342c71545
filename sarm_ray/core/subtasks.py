"""What somebody says about the subtasks of an episode, a VLM or a person: read, checked, snapped to frames.

Nothing is repaired silently. What does not hold is said in words that can be put back to the model, all objections at
once. LeRobot's tool checks neither labels nor order nor times, and one bad timestamp ends its run.
"""

import difflib
import functools
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_ANSWER_CHARS = 100_000
MAX_SUBTASKS = 1000
MAX_OBJECTIONS = 20
MAX_BROKEN_JSON = 100
MAX_TIME_S = 1e6
UNIFORM_SHARE = 0.03

_JSON_START = re.compile(r'\{\s*"|\[\s*\{')
_TIME = re.compile(r"(?:(\d{1,4}):)?(?:(\d{1,4}):)?(\d{1,6}(?:\.\d{1,20})?)")


class Subtask(NamedTuple):
    """One subtask as somebody gave it; seconds from the beginning of the episode."""

    name: str
    start_s: float
    end_s: float


class FrameSubtasks(NamedTuple):
    """The subtasks of an episode by frame: S names, first frames, and ends, which are the next starts and the last frame."""

    names: tuple[str, ...]
    start: tuple[int, ...]
    end: tuple[int, ...]


@dataclass(frozen=True)
class SubtaskRules:
    """What an answer about one episode has to obey.

    Args:
        labels: the subtasks that there are, in order.
        fps: of the dataset. length: frames of the episode.
        tolerance_s: how far ends may lie from the episode's, and a start from the end before it.
        allow_repeats: a label may come again after another one, as after a drop; else each comes once.
        allow_missing: labels may be missing, as in an episode that failed.
    """

    labels: tuple[str, ...]
    fps: float
    length: int
    tolerance_s: float
    allow_repeats: bool = False
    allow_missing: bool = False

    @property
    def duration_s(self) -> float:
        return self.length / self.fps


class AnswerError(ValueError):
    """An answer that cannot be taken.

    Args:
        objections: everything that is wrong with it, each a sentence without its full stop. The first ones are kept and
            the others counted, as a model that repeats itself can earn thousands.
    """

    def __init__(self, objections: Sequence[str]):
        super().__init__(tuple(objections))
        more = len(objections) - MAX_OBJECTIONS
        self.objections = (*objections[:MAX_OBJECTIONS], *([f"there are {more:,} more objections"] if more > 0 else []))

    def __str__(self) -> str:
        return "; ".join(self.objections)


def parse_time(value: object) -> float:
    """Seconds of `SS`, `SS.s`, `MM:SS`, `MM:SS.s`, `HH:MM:SS` or a number.

    Raises:
        ValueError: anything else; minutes or seconds beyond 59 after a colon.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{_shown(value)} is no time; write it like 00:12.5")
    if isinstance(value, str):
        match = _TIME.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{_shown(value)} is no time; write it like 00:12.5")
        first, second, seconds = match[1], match[2], float(match[3])
        hours, minutes = (int(first), int(second)) if second else (0, int(first or 0))
        if (first and seconds >= 60) or (second and minutes >= 60):
            raise ValueError(f"{_shown(value)} is no time; minutes and seconds after a colon go up to 59")
        seconds += 3600 * hours + 60 * minutes
    else:
        seconds = value
    if not 0 <= seconds <= MAX_TIME_S:  # NaN too
        raise ValueError(f"{_shown(value)} is no time inside an episode")
    return float(seconds)


def clock(seconds: float, digits: int = 1) -> str:
    """MM:SS.s, as the frames shown to a model are marked; or with more digits."""
    unit = 10**digits
    parts = math.floor(seconds * unit + 0.5)
    return f"{parts // (60 * unit):02d}:{parts // unit % 60:02d}.{parts % unit:0{digits}d}"


def parse_answer(text: str) -> list[Subtask]:
    """The subtasks in a model's answer.

    The JSON may stand alone, in a fence, or somewhere in the text. The last object with `subtasks` counts; without one, the
    last list of objects. Each subtask has `name`, `start` and `end`, or the `timestamps` of LeRobot's tool around the latter
    two.

    Raises:
        AnswerError: no such JSON, or one that is malformed.
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise AnswerError([f"the answer has {len(text):,} characters; give the JSON alone"])
    listed = _find_subtasks(text)
    if listed is None:
        raise AnswerError(['there is no complete and valid JSON object {"subtasks": [...]} in the answer'])
    if not listed:
        raise AnswerError(["`subtasks` is empty"])
    if len(listed) > MAX_SUBTASKS:
        raise AnswerError([f"`subtasks` has {len(listed):,} entries, more than {MAX_SUBTASKS:,}"])
    subtasks: list[Subtask] = []
    objections: list[str] = []
    for number, entry in enumerate(listed, 1):
        try:
            subtasks.append(_parse_subtask(entry))
        except ValueError as error:
            objections.append(f"subtask {number}: {error}")
    if objections:
        raise AnswerError(objections)
    return subtasks


def check_subtasks(subtasks: Sequence[Subtask], rules: SubtaskRules) -> list[str]:
    """Everything that is wrong with some subtasks; nothing where they can be taken."""
    if not subtasks:
        return ["there are no subtasks"]
    no_times = [f"{_quoted(name)}: {_shown(time)} is no time inside an episode"
                for name, *times in subtasks for time in times if not 0 <= time <= MAX_TIME_S]  # fmt: skip
    return [*_check_names([each.name for each in subtasks], rules), *(no_times or _check_times(subtasks, rules))]


def snap_subtasks(subtasks: Sequence[Subtask], rules: SubtaskRules) -> FrameSubtasks:
    """Frames of subtasks that obey the rules: starts rounded at the dataset's fps, each until the next one, the last until
    the episode's last frame.

    Raises:
        AnswerError: two boundaries fall on one frame.
    """
    # Halves go up, also 4.1 s x 15 fps = 61.499...: to the even frame, 1.5 and 2.5 would both become 2.
    starts = [0, *(math.floor(each.start_s * rules.fps + 0.5 + 1e-6) for each in subtasks[1:])]
    starts = [min(start, rules.length - 1) for start in starts]
    crowded = [f"{_quoted(after.name)} begins in the same frame as {_quoted(before.name)}; each needs at least one frame"
               for before, after, first, second in zip(subtasks, subtasks[1:], starts, starts[1:], strict=False)
               if second <= first]  # fmt: skip
    if crowded:
        raise AnswerError(crowded)
    return FrameSubtasks(tuple(each.name for each in subtasks), tuple(starts), (*starts[1:], rules.length - 1))


def take_subtasks(subtasks: Sequence[Subtask], rules: SubtaskRules) -> FrameSubtasks:
    """Check and snap.

    Raises:
        AnswerError: what `check_subtasks` says, or `snap_subtasks`.
    """
    objections = check_subtasks(subtasks, rules)
    if objections:
        raise AnswerError(objections)
    return snap_subtasks(subtasks, rules)


def whole_task(name: str, length: int) -> FrameSubtasks:
    """One subtask from the first frame to the last: LeRobot's automatic sparse "task"."""
    return FrameSubtasks((name,), (0,), (length - 1,))


def is_uniform_split(subtasks: FrameSubtasks) -> bool:
    """Whether three subtasks or more are equally long, which is what a model says that did not look."""
    durations = [end - start for start, end in zip(subtasks.start, subtasks.end, strict=True)]
    if len(durations) < 3:
        return False
    durations[-1] += 1  # its end is its own last frame, not the first one of another
    mean = sum(durations) / len(durations)
    return max(durations) - min(durations) <= max(1.0, UNIFORM_SHARE * mean)


def _find_subtasks(text: str) -> list[Any] | None:
    """The last list of subtasks in a text."""
    values = _json_values(text)
    named = [
        value["subtasks"] for value in values if isinstance(value, dict) and isinstance(value.get("subtasks"), list)
    ]
    bare = [value for value in values if isinstance(value, list) and all(isinstance(each, dict) for each in value)]
    return (named or bare or [None])[-1]


def _json_values(text: str) -> list[Any]:
    """The outermost JSON objects and lists of objects that stand in a text, in order.

    What is broken is looked into for whole parts, which costs a pass over the rest of the text each time: not for ever.
    """
    decoder = json.JSONDecoder()
    values: list[Any] = []
    at = broken = 0
    while broken < MAX_BROKEN_JSON and (match := _JSON_START.search(text, at)) is not None:
        try:
            value, at = decoder.raw_decode(text, match.start())
            values.append(value)
        except (ValueError, RecursionError):
            at, broken = match.start() + 1, broken + 1
    return values


def _parse_subtask(entry: Any) -> Subtask:
    if not isinstance(entry, dict):
        raise ValueError(f"{_shown(entry)} is no object with name, start and end")
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError("it has no name")
    times = entry["timestamps"] if isinstance(entry.get("timestamps"), dict) else entry
    missing = [side for side in ("start", "end") if times.get(side) is None]
    if missing:
        raise ValueError(f"{_quoted(name)} has no {' and no '.join(missing)}")
    seconds, wrong = [], []
    for side in ("start", "end"):
        try:
            seconds.append(parse_time(times[side]))
        except ValueError as error:
            wrong.append(f"{side}: {error}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return Subtask(name.strip(), *seconds)


def _check_names(names: Sequence[str], rules: SubtaskRules) -> list[str]:
    labels = list(rules.labels)
    unknown = [name for name in dict.fromkeys(names) if name not in labels]
    objections = [f"{_quoted(name)} is not one of the labels{_hint(name, labels) if number < MAX_OBJECTIONS else ''}"
                  for number, name in enumerate(unknown)]  # fmt: skip
    known = [name for name in names if name in labels]
    first_seen = list(dict.fromkeys(known))
    if not rules.allow_missing:
        objections += [f"{_quoted(label)} is missing" for label in labels if label not in known]
    if rules.allow_repeats:
        doubled = dict.fromkeys(name for name, after in itertools.pairwise(names) if name == after)
        objections += [f"{_quoted(name)} comes twice in a row; make it one subtask" for name in doubled]
    else:
        objections += [f"{_quoted(name)} is there {known.count(name)} times, not once"
                       for name in first_seen if known.count(name) > 1]  # fmt: skip
    for before, after in itertools.pairwise(first_seen):
        if labels.index(after) < labels.index(before):
            objections.append(f"{_quoted(after)} comes after {_quoted(before)}, against the order of the labels")
    return objections


def _check_times(subtasks: Sequence[Subtask], rules: SubtaskRules) -> list[str]:
    end, tolerance = rules.duration_s, rules.tolerance_s + 1e-9
    shown = functools.partial(clock, digits=1 if rules.tolerance_s >= 0.1 else 3)  # so that two times look different
    objections = []
    for name, start_s, end_s in subtasks:
        if not start_s < end_s:
            objections.append(f"{_quoted(name)} ends at {shown(end_s)}, not after its start {shown(start_s)}")
        elif start_s >= end:
            objections.append(f"{_quoted(name)} starts at {shown(start_s)}, not before the episode's end {shown(end)}")
    first, last = subtasks[0], subtasks[-1]
    if first.start_s > tolerance:
        objections.append(f"the first subtask starts at {shown(first.start_s)}, not at {shown(0)}")
    if abs(last.end_s - end) > tolerance:
        objections.append(f"the last subtask ends at {shown(last.end_s)}, not at the episode's end {shown(end)}")
    for before, after in itertools.pairwise(subtasks):
        starts, previous = f"{_quoted(after.name)} starts at {shown(after.start_s)}", _quoted(before.name)
        if after.start_s <= before.start_s:
            objections.append(f"{starts}, not after the start of {previous} at {shown(before.start_s)}")
        elif abs(after.start_s - before.end_s) > tolerance:
            what = "a gap" if after.start_s > before.end_s else "an overlap"
            objections.append(f"{starts}, but {previous} before it ends at {shown(before.end_s)}: {what}")
    return objections


def _hint(name: str, labels: Sequence[str]) -> str:
    """The label that is meant, perhaps; takes milliseconds."""
    close = difflib.get_close_matches(name[:100], labels, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _quoted(name: str) -> str:
    """A name, with what cannot be printed or sent escaped."""
    return repr(name if len(name) <= 100 else f"{name[:97]}...")


def _shown(value: object) -> str:
    if isinstance(value, dict | list):  # whose repr may be too deep
        return "an object" if isinstance(value, dict) else "a list"
    return _quoted(value) if isinstance(value, str) else f"{value!r:.100}"
