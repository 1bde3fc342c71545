"""What a VLM is asked about an episode: which frames it sees, and in which words.

LeRobot's tool shows one frame in twelve seconds under a wrong clock. Here every frame shown carries its own time, drawn into
its corner and told besides, and what was wrong with an answer is put back to the model.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sarm_ray.core.subtasks import clock

PIXEL_MULTIPLE = 32  # Qwen3-VL sees tokens of 32 x 32 pixels; a picture of whole tokens reaches it as it was made
FRAMES_PER_TOKEN = 2  # and two frames after each other together
PROMPT_TOKENS, ANSWER_TOKENS = 600, 300  # of the words of a question and of an answer, roughly
VERSION = 1  # of the words below: answers to others are not taken for answers to these

UNIFORM = (
    "all subtasks are equally long, which looks like a guess; look at the frames again and find where the scene changes. If "
    "they are equally long, answer the same again"
)


@dataclass(frozen=True)
class Question:
    """What is asked of every episode, for one kind of subtasks.

    Args:
        dataset: its name, which the model is told.
        kind: `sparse` or `dense`.
        labels: in order.
        model: who is asked.
        cameras: shown side by side.
        frames_per_s, max_frames, max_pixels: of what is shown.
        allow_repeats, allow_missing: see `SubtaskRules`.
    """

    dataset: str
    kind: str
    labels: tuple[str, ...]
    model: str
    cameras: tuple[str, ...]
    frames_per_s: float
    max_frames: int
    max_pixels: int
    allow_repeats: bool
    allow_missing: bool

    @functools.cached_property
    def key(self) -> str:
        """The same for the same question, 16 hexadecimal digits: what an answer in a journal is an answer to."""
        content = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def question_frames(length: int, fps: float, frames_per_s: float, max_frames: int) -> np.ndarray:
    """Frames to show of an episode, evenly spaced in time, the first and the last among them: (k,) int64, ascending.

    Args:
        length: frames of the episode. fps: of the dataset.
        frames_per_s: shown per second; fewer in an episode that would have more than `max_frames`, at least 2.
    """
    last = length - 1
    step = max(fps / frames_per_s, last / (max_frames - 1), 1.0)
    inner = np.arange(0, last, step)
    if len(inner) > 1 and last - inner[-1] < 0.25 * step:
        inner = inner[:-1]  # the last frame stands for one that is nearly there
    return np.unique(np.rint(np.append(inner, last)).astype(np.int64))


def shown_step_s(frames: np.ndarray, fps: float) -> float:
    """Seconds between the frames shown, the longest: what a boundary that was read off them may be wrong by."""
    return float(np.diff(frames).max(initial=1)) / fps


def picture_size(shapes: Sequence[tuple[int, int]], max_pixels: int) -> list[tuple[int, int]]:
    """Sizes at which cameras are shown side by side, of one height, as many pixels together as allowed, none enlarged.

    Args:
        shapes: (height, width) of each camera.
        max_pixels: of all of them together.

    Returns:
        (height, width) of each, multiples of PIXEL_MULTIPLE.
    """
    ratios = [width / height for height, width in shapes]
    height = min((max_pixels / sum(ratios)) ** 0.5, *(float(shape[0]) for shape in shapes))
    tall = max(int(height) // PIXEL_MULTIPLE, 1) * PIXEL_MULTIPLE
    widths = [max(int(tall * ratio / PIXEL_MULTIPLE + 0.5), 1) * PIXEL_MULTIPLE for ratio in ratios]
    while sum(widths) * tall > max_pixels and max(*widths, tall) > PIXEL_MULTIPLE:
        if max(widths) > PIXEL_MULTIPLE:
            widths[widths.index(max(widths))] -= PIXEL_MULTIPLE
        else:  # very tall pictures, whose widths were rounded up
            tall -= PIXEL_MULTIPLE
    return [(tall, width) for width in widths]


def count_prompt_tokens(num_frames: int, height: int, width: int) -> int:
    """Tokens of a question as Qwen3-VL counts them, roughly: frames of `height` x `width` pixels, and the words."""
    per_pair = (height // PIXEL_MULTIPLE) * (width // PIXEL_MULTIPLE) + 10  # and the time told before them
    return PROMPT_TOKENS + -(-num_frames // FRAMES_PER_TOKEN) * per_pair


def instructions(question: Question) -> str:
    """What the model is told before it sees anything."""
    labels = "\n".join(f"{number}. {label}" for number, label in enumerate(question.labels, 1))
    each = "Every subtask comes exactly once, in this order."
    if question.allow_repeats:
        each = "Subtasks come in this order; one may come again after a later one, when the robot has to do it again."
    if question.allow_missing:
        each += " Leave out those that never happen."
    views = "" if len(question.cameras) == 1 else f" Each frame shows {len(question.cameras)} cameras side by side."
    return (
        "You mark where the subtasks of a robot's episode begin and end. You see frames of one video in the order of time. "
        f"Each carries its time in its upper left corner as minutes:seconds.{views}\n\n"
        f"The subtasks:\n{labels}\n\n"
        "A subtask begins when the scene first shows it: the arm sets out, the gripper begins to close, the object leaves "
        f"the table. {each} Together they cover the whole episode: the first begins at 00:00.0, each begins when the one "
        "before it ends, the last ends with the episode. Use the names exactly as they are written. Take the times from the "
        "frames, to a tenth of a second where you can tell; do not split the episode into equal parts.\n\n"
        'Answer with JSON only: {"subtasks": [{"name": "...", "start": "MM:SS.s", "end": "MM:SS.s"}]}'
    )


def describe_episode(name: str, episode_index: int, task: str, duration_s: float, times_s: Sequence[float]) -> str:
    """What the model is told of one episode."""
    return (
        f"Episode {episode_index} of {name}. The task: {task or 'not told'}. It lasts {clock(duration_s)} "
        f"({duration_s:.1f} s). You see {len(times_s)} frames, from {clock(times_s[0])} to {clock(times_s[-1])}. Where does "
        "each subtask begin and end?"
    )


def correction(objections: Sequence[str]) -> str:
    """What is put back to the model after an answer that cannot be taken."""
    listed = "\n".join(f"- {objection}" for objection in objections)
    return f"That answer cannot be taken:\n{listed}\nLook at the frames again and give the whole JSON anew."


def answer_schema(labels: Sequence[str]) -> dict[str, Any]:
    """JSON schema of an answer, for engines that hold the model to one."""
    times = {side: {"type": "string", "description": "MM:SS.s"} for side in ("start", "end")}
    subtask = {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": list(labels)}, **times},
        "required": ["name", "start", "end"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"subtasks": {"type": "array", "items": subtask}},
        "required": ["subtasks"],
        "additionalProperties": False,
    }
