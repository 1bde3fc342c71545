"""A live server that computes nothing, behind the same proxy: what a frame's way there and back costs by itself."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, WebSocket
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from sarm_ray.core.live_frames import FRAME_HEADER
from sarm_ray.core.live_protocol import PROTOCOL

APPLICATION = "empty"
PREFIX = "/empty"
REPLY_BYTES = 650  # of a score of two heads


@contextlib.contextmanager
def empty_server(max_sessions: int) -> Iterator[str]:
    """Beside a running live server, for as long as the block lasts.

    Yields:
        The prefix of its routes.
    """
    router = RequestRouterConfig(
        request_router_class=ConsistentHashRouter,  # type: ignore[arg-type]  # the type is of what it makes of it
        request_router_kwargs={"num_virtual_nodes": 100, "num_fallback_replicas": 1},
    )
    deployment: Any = serve.deployment(
        Empty,
        name="Empty",
        max_ongoing_requests=max_sessions,
        ray_actor_options={"num_cpus": 0},
        request_router_config=router,
    )
    serve.run(deployment.bind(), name=APPLICATION, route_prefix=PREFIX)
    try:
        yield PREFIX
    finally:
        serve.delete(APPLICATION)


@serve.ingress()
class Empty:
    """Says welcome, answers each frame at once with as many bytes as a score has, and says goodbye."""

    def __serve_build_asgi_app__(self) -> FastAPI:
        api = FastAPI()
        api.websocket("/v1/sessions/{session}")(converse)
        return api


async def converse(socket: WebSocket, session: str) -> None:
    """One session of the live protocol, without a model."""
    await socket.accept()
    hello = json.loads(await socket.receive_text())
    await socket.send_text(json.dumps({"type": "welcome", "protocol": PROTOCOL, "session": session, "keep_s": 0.0}))
    num_frames, padding = 0, "-" * REPLY_BYTES
    while (message := await socket.receive()).get("bytes") is not None:
        num_frames += 1
        time_s = FRAME_HEADER.unpack_from(message["bytes"])[-1]
        frame = round(time_s * hello["fps"])
        reply = {"type": "score", "time_s": time_s, "frame_index": frame, "padding": padding, "timings_ms": {}}
        await socket.send_text(json.dumps(reply))
    if message["type"] == "websocket.disconnect":
        return
    counts = {"num_received": num_frames, "num_scored": num_frames, "num_dropped": 0, "num_skipped": 0}
    await socket.send_text(json.dumps({"type": "curve", "columns": {}, "time_s": [], **counts}))
    await socket.close()
