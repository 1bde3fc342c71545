"""The ingress: sessions, and everything that a replica does beside them."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import ray
from fastapi import FastAPI, WebSocket
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from sarm_ray.pipelines.serving.api import build_api
from sarm_ray.pipelines.serving.board_feed import PUSH_EVERY_S, Feed
from sarm_ray.pipelines.serving.board_page import board_page, watch
from sarm_ray.pipelines.serving.clip import Clips
from sarm_ray.pipelines.serving.conversation import Conversations
from sarm_ray.pipelines.serving.engine import Engine
from sarm_ray.pipelines.serving.meters import Meters
from sarm_ray.pipelines.serving.plan import LiveModel
from sarm_ray.pipelines.serving.recording import RolloutLog, as_record
from sarm_ray.pipelines.serving.rollouts import GOING_AWAY, Rollout, Rollouts

BOARD = "board"
READY_TIMEOUT_S = 5.0
RETRY_S = 60.0
ANSWER_S = 20.0  # a group takes a tenth of it; a network that is silent for so long will not answer
UNANSWERED = (ray.exceptions.RayError, RayServeException)
CPU_GROUP, GPU_GROUP = 8, 128
log = logging.getLogger("sarm_ray.serve")


@serve.ingress()
class Live:
    """One ingress replica.

    Args:
        model: what is served.
        encoder, scorer: the networks' deployments.
    """

    def __init__(self, model: LiveModel, encoder: DeploymentHandle, scorer: DeploymentHandle):
        self.model, self.encoder, self.scorer = model, encoder, scorer
        self.guard, self.limits, self.page = model.guard, model.limits, page_of(model)
        self.name = serve.get_replica_context().replica_id.unique_id
        self.meters, self.feed = Meters(), Feed(model)
        most = GPU_GROUP if model.device == "cuda" else CPU_GROUP
        self.engine = Engine(model, self._encode, self._score, most // model.num_cameras or 1, self.meters.observe)
        self.rollouts = Rollouts(model.limits, self._ended)
        self.conversations = Conversations(self.name, model, self.engine, self.rollouts, self._encode_text)
        self.clips = Clips(self.conversations)
        self.log = RolloutLog(model.record) if model.record else None
        self.chores: list[asyncio.Task] = []
        self.drain: asyncio.Task | None = None
        self.num_recording = 0

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self)

    async def check_health(self) -> None:
        """Serve asks now and then, and starts a replica anew that raises."""
        self.start_chores()
        for chore in self.chores:
            if chore.done():
                chore.result()

    def start_chores(self) -> None:
        """Begin what goes on beside the sessions; the constructor has no event loop for it yet."""
        if not self.chores:
            loop = asyncio.get_running_loop()
            self.chores = [loop.create_task(self._push()), loop.create_task(self._sweep())]

    async def is_ready(self) -> bool:
        if self.rollouts.draining:
            return False
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                return await self.encoder.ready.remote() and await self.scorer.ready.remote()
        except (TimeoutError, *UNANSWERED):
            return False

    def describe(self) -> dict[str, Any]:
        return self.model.describe()

    async def score_clip(self, read: Callable[[], Awaitable[bytes]]) -> dict[str, Any]:
        return await self.clips.score(read)

    async def converse(self, socket: WebSocket, session: str) -> None:
        self.start_chores()
        await self.conversations.converse(socket, session)

    async def watch(self, socket: WebSocket) -> None:
        try:
            await watch(socket, self._changes, self.guard.knows)
        except (ConnectionError, *UNANSWERED, ValueError) as error:  # the page comes back, maybe to another replica
            log.info("a viewer is sent away (%s)", type(error).__name__)
            await socket.close(GOING_AWAY)

    async def drain_server(self) -> int:
        """Send the sessions of all replicas away: how many robots are connected still."""
        return await serve.get_deployment_actor(BOARD).drain.remote()

    async def _encode(self, images: np.ndarray) -> tuple[np.ndarray, float]:
        return await _insist(lambda: self.encoder.encode.remote(images))

    async def _score(self, *arrays: np.ndarray) -> Any:
        return await _insist(lambda: self.scorer.score.remote(arrays))

    async def _encode_text(self, text: str) -> np.ndarray:
        return await _insist(lambda: self.encoder.encode_text.remote(text))

    async def _changes(self, version: int) -> dict[str, Any]:
        if self.rollouts.draining:
            raise ConnectionError("draining")
        return await serve.get_deployment_actor(BOARD).changes.remote(version)

    async def _ended(self, rollout: Rollout) -> None:
        self.feed.ended.append(rollout)
        if self.log is None or not rollout.session.curve.time_s:
            return
        record = as_record(self.model, rollout)  # here, where nothing else changes it meanwhile
        self.num_recording += 1
        try:
            await asyncio.to_thread(self.log.append, record)
        finally:
            self.num_recording -= 1

    async def _push(self) -> None:
        """Tell the board the news, and hear whether to send everybody elsewhere."""
        while True:
            await asyncio.sleep(PUSH_EVERY_S)
            running, ended = list(self.rollouts), list(self.feed.ended)
            self.meters.count([rollout.session for rollout in [*running, *ended]])
            self.meters.sessions.set(len(running))
            waited_for = self.num_recording + sum(rollout.connection is not None for rollout in running)
            try:
                news = self.feed.updates(running)
                stop = await serve.get_deployment_actor(BOARD).push.remote(self.name, news, waited_for)
            except (*UNANSWERED, ValueError) as error:  # ValueError: Serve is just starting it anew
                log.warning("the board does not answer (%s)", type(error).__name__)
                self.feed.take_back(running, ended)
                continue
            if stop and self.drain is None:
                log.info("draining: %d sessions are sent elsewhere", len(running))
                self.drain = asyncio.create_task(self.rollouts.drain())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            await self.rollouts.sweep()


def page_of(model: LiveModel) -> bytes:
    """The live page, whose example is one for this model."""
    sidecar = model.checkpoint.sidecar
    task = next(iter(sidecar.task_texts), None) if sidecar else None
    fps = sidecar.fps if sidecar else None
    return board_page(task or "fold the shirt", fps or 30.0, model.state_dim, model.guard.digest is not None)


async def _insist(call: Callable[[], Any]) -> Any:
    """A network's answer; where its replica dies or is silent meanwhile, another one's.

    Raises:
        ray.exceptions.RayError, RayServeException, TimeoutError: none answers.
    """
    until = time.monotonic() + RETRY_S
    while True:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await call()
        except (TimeoutError, ray.exceptions.RayActorError, RayServeException):
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.1)
