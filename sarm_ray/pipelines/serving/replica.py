"""The ingress: sessions, and everything that a replica does beside them."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from fastapi import FastAPI, WebSocket
from ray import serve
from ray.serve.handle import DeploymentHandle

from sarm_ray.pipelines.serving.api import build_api
from sarm_ray.pipelines.serving.board_feed import PUSH_EVERY_S, Feed
from sarm_ray.pipelines.serving.board_page import board_page, watch
from sarm_ray.pipelines.serving.clip import Clips
from sarm_ray.pipelines.serving.conversation import Conversations
from sarm_ray.pipelines.serving.engine import Engine
from sarm_ray.pipelines.serving.meters import Meters
from sarm_ray.pipelines.serving.plan import LiveModel
from sarm_ray.pipelines.serving.recording import RolloutLog
from sarm_ray.pipelines.serving.rollouts import Rollout, Rollouts

BOARD = "board"
READY_TIMEOUT_S = 5.0
RETRY_S = 60.0
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
        self.log = RolloutLog(model, model.record) if model.record else None
        self.chores: list[asyncio.Task] = []

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self)

    async def check_health(self) -> None:
        """Serve asks now and then. The first time the chores are begun: the constructor has no event loop yet."""
        if not self.chores:
            loop = asyncio.get_running_loop()
            self.chores = [loop.create_task(self._push()), loop.create_task(self._sweep())]

    async def is_ready(self) -> bool:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                return await self.encoder.ready.remote() and await self.scorer.ready.remote()
        except (TimeoutError, ray.exceptions.RayError):
            return False

    def describe(self) -> dict[str, Any]:
        return self.model.describe()

    async def score_clip(self, body: bytes) -> dict[str, Any]:
        return await self.clips.score(body)

    async def converse(self, socket: WebSocket, session: str) -> None:
        await self.check_health()
        await self.conversations.converse(socket, session)

    async def watch(self, socket: WebSocket) -> None:
        await watch(socket, self._changes, self.guard.knows)

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
        return await serve.get_deployment_actor(BOARD).changes.remote(version)

    async def _ended(self, rollout: Rollout) -> None:
        self.feed.ended.append(rollout)
        if self.log is not None:
            await asyncio.to_thread(self.log.append, rollout)

    async def _push(self) -> None:
        """Tell the board the news, and hear whether to send everybody elsewhere."""
        counted: dict[str, Any] = {}
        while True:
            await asyncio.sleep(PUSH_EVERY_S)
            running = list(self.rollouts)
            for rollout in [*running, *self.feed.ended]:
                session = rollout.session
                now = replace(session.counts)
                self.meters.count(counted.get(session.name, type(now)()), now)
                counted[session.name] = now
            counted = {rollout.session.name: counted[rollout.session.name] for rollout in running}
            self.meters.sessions.set(len(running))
            try:
                connected = sum(rollout.connection is not None for rollout in running)
                news = self.feed.updates(running)
                stop = await serve.get_deployment_actor(BOARD).push.remote(self.name, news, connected)
            except (ray.exceptions.RayError, ValueError) as error:  # ValueError: Serve is just starting it anew
                log.warning("the board does not answer (%s)", type(error).__name__)
                for rollout in running:
                    rollout.changed, rollout.num_pushed = True, 0
                continue
            if stop and not self.rollouts.draining:
                log.info("draining: %d sessions are sent elsewhere", len(running))
                await self.rollouts.drain()

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
    """A network's answer; where its replica dies meanwhile, another one's.

    Raises:
        ray.exceptions.RayError: none answers.
    """
    until = time.monotonic() + RETRY_S
    while True:
        try:
            return await call()
        except ray.exceptions.RayActorError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.1)
