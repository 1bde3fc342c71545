"""A whole short rollout in one request: the messages of a socket, through the same session and engine."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sarm_ray.core.live_frames import read_frame, split_clip
from sarm_ray.core.live_protocol import LiveLimits, Refusal, read_hello
from sarm_ray.core.live_session import Session
from sarm_ray.pipelines.serving.conversation import Conversations
from sarm_ray.pipelines.serving.rollouts import Rollout

CLIPS_AT_ONCE = 2
GROUP_BYTES = 32 * 2**20  # well below what a session may let wait
PER_FRAME = ("num_received", "num_scored", "num_dropped", "num_skipped", "type")


class ClipRollout(Rollout):
    """A rollout whose messages are collected, not sent."""

    def __init__(self, session: Session, text: np.ndarray):
        super().__init__(session, text, keep_thumbnails=0)
        self.messages: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def show(self, image: np.ndarray, reply: dict[str, Any]) -> None:
        """Nobody watches a clip."""


class Clips:
    """Scores clips, a few at a time; live frames go on between their groups."""

    def __init__(self, conversations: Conversations):
        self.conversations = conversations
        self.room = asyncio.Semaphore(CLIPS_AT_ONCE)

    async def score(self, read: Callable[[], Awaitable[bytes]]) -> dict[str, Any]:
        """What POST /v1/score answers.

        Args:
            read: reads the body, which is not done before there is room for it.

        Raises:
            Refusal: the first thing that is wrong with the clip.
        """
        async with self.room:
            return await self._score(await read())

    async def _score(self, body: bytes) -> dict[str, Any]:
        model, engine = self.conversations.model, self.conversations.engine
        messages = split_clip(body, model.limits)
        if not messages:
            raise Refusal("hello", "the clip is empty", fatal=True)
        hello = read_hello(bytes(messages[0]), model.heads, model.state_dim, model.limits)
        started = time.monotonic()
        text = await self.conversations.text_feature(hello.task)
        live = model.live_window(hello, most_hz=hello.fps)
        session = Session("clip", hello, live, model.heads, _patient(model.limits), started)
        clip = ClipRollout(session, text)
        for message in messages[1:]:
            session.receive(read_frame(message, hello, model.num_cameras, model.limits), started)
            if session.num_waiting == engine.most or session.waiting_bytes > GROUP_BYTES:
                await engine.work([(clip, item) for item in session.take(engine.most, started)])
        await engine.work([(clip, item) for item in session.take(engine.most, started)])
        for reply in clip.messages:
            if reply["type"] == "error":
                raise Refusal(reply["code"], reply["message"], time_s=reply["time_s"])
        scores = [{key: value for key, value in reply.items() if key not in PER_FRAME} for reply in clip.messages]
        columns = session.curve.columns()
        total_ms = round(1000 * (time.monotonic() - started), 2)
        stages = {head: model.stages[head] for head in session.curve.heads}
        return {
            "columns": columns,
            "stages": stages,
            "time_s": session.curve.time_s,
            "scores": scores,
            "timings_ms": {"total": total_ms},
        }


def _patient(limits: LiveLimits) -> LiveLimits:
    """A clip's frames all come at once, and none is dropped for waiting."""
    return replace(limits, max_frames_per_s=1e9, max_wait_s=1e9)
