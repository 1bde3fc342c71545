"""Asking a VLM where an episode's subtasks begin and end, until its answer can be taken.

Two engines answer: `TransformersAnnotator` on this process's GPUs, and `OpenAIAnnotator` for any OpenAI-compatible endpoint.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from sarm_ray.core.questions import UNIFORM, Question, answer_schema, correction, instructions
from sarm_ray.core.subtasks import (
    AnswerError,
    FrameSubtasks,
    SubtaskRules,
    is_uniform_split,
    parse_answer,
    take_subtasks,
)
from sarm_ray.errors import NoAnswerError

MAX_ATTEMPTS = 3
MAX_ANSWER_TOKENS = 2048
CUT_OFF = f"the answer was cut off after {MAX_ANSWER_TOKENS} tokens; give the JSON alone"


class Message(NamedTuple):
    """A turn of the conversation: `system`, `user` or `assistant`, and its words."""

    role: str
    text: str


class MarkedFrames(NamedTuple):
    """What the VLM sees of an episode.

    Args:
        images: (k, H, W, 3) uint8, each marked with its time.
        frames: (k,) int64, ascending, counted inside the episode.
        fps: of the dataset. length: frames of the episode.
    """

    images: np.ndarray
    frames: np.ndarray
    fps: float
    length: int

    @property
    def times_s(self) -> list[float]:
        """True seconds inside the episode."""
        return (self.frames / self.fps).tolist()


class Reply(NamedTuple):
    """What the VLM said; `cut_off` where it had not ended."""

    text: str
    num_prompt_tokens: int
    num_answer_tokens: int
    cut_off: bool = False


class Annotator(Protocol):
    """An engine. The frames belong to the first message of the user."""

    def reply(self, messages: Sequence[Message], frames: MarkedFrames, schema: dict) -> Reply:
        """The next turn of the assistant.

        Raises:
            NoAnswerError: it refused, or did not answer in time.
            AnnotatorError: it cannot be used at all.
        """
        ...


class Attempt(NamedTuple):
    """One answer, kept for audit: its text, what was wrong with it, tokens, and seconds."""

    answer: str
    objections: tuple[str, ...]
    num_prompt_tokens: int
    num_answer_tokens: int
    seconds: float


class Outcome(NamedTuple):
    """What became of a question about an episode.

    Args:
        subtasks: None where no answer could be taken.
        is_uniform: the subtasks are equally long: the model said so again when asked, or at the last attempt.
        attempts: every answer. error: why there are no subtasks, in words.
    """

    subtasks: FrameSubtasks | None
    is_uniform: bool
    attempts: tuple[Attempt, ...]
    error: str | None = None


def ask(
    annotator: Annotator, question: Question, rules: SubtaskRules, description: str, frames: MarkedFrames
) -> Outcome:
    """Ask until an answer can be taken, at most MAX_ATTEMPTS times; what was wrong is put back to the model.

    Equal parts are taken only when the model insists on them.

    Raises:
        AnnotatorError: the engine cannot be used at all; not a NoAnswerError, which is an outcome.
    """
    messages = [Message("system", instructions(question)), Message("user", description)]
    attempts: list[Attempt] = []
    uniform: FrameSubtasks | None = None
    while len(attempts) < MAX_ATTEMPTS:
        began = time.monotonic()
        try:
            reply = annotator.reply(messages, frames, answer_schema(question.labels))
        except NoAnswerError as error:
            attempts.append(Attempt("", (str(error),), 0, 0, time.monotonic() - began))
            break
        subtasks, objections = _judge(reply, rules)
        if subtasks is not None and is_uniform_split(subtasks):
            if subtasks == uniform or len(attempts) == MAX_ATTEMPTS - 1:
                attempts.append(_attempt(reply, (), began))
                return Outcome(subtasks, True, tuple(attempts))
            uniform, objections = subtasks, (UNIFORM,)
        attempts.append(_attempt(reply, objections, began))
        if not objections:
            return Outcome(subtasks, False, tuple(attempts))
        messages += [Message("assistant", reply.text), Message("user", correction(objections))]
    return Outcome(None, False, tuple(attempts), "; ".join(attempts[-1].objections))


def _judge(reply: Reply, rules: SubtaskRules) -> tuple[FrameSubtasks | None, tuple[str, ...]]:
    try:
        return take_subtasks(parse_answer(reply.text), rules), ()
    except AnswerError as error:
        return None, (CUT_OFF,) if reply.cut_off else error.objections


def _attempt(reply: Reply, objections: tuple[str, ...], began: float) -> Attempt:
    tokens = reply.num_prompt_tokens, reply.num_answer_tokens
    return Attempt(reply.text, objections, *tokens, time.monotonic() - began)
