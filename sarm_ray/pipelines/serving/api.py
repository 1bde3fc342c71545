"""The routes of a replica, as one FastAPI application."""

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import HTMLResponse, JSONResponse, Response

from sarm_ray import __version__
from sarm_ray.core.live_protocol import LiveLimits, Refusal
from sarm_ray.pipelines.serving.board_page import HEADERS
from sarm_ray.pipelines.serving.guard import Guard

DESCRIPTION = """Progress of robot rollouts while they run. A robot opens a WebSocket at `/v1/sessions/{id}`, says hello, and
sends camera frames; README of sarm_ray, "Live protocol", has every message. `sarm_ray/client.py` speaks it."""
STATUS = {"token": 401, "origin": 403, "too_large": 413, "full": 503, "draining": 503, "internal": 500}
log = logging.getLogger("sarm_ray.serve")


class Services(Protocol):
    """What the routes call."""

    guard: Guard
    limits: LiveLimits
    page: bytes

    async def is_ready(self) -> bool: ...

    def describe(self) -> dict[str, Any]: ...

    async def score_clip(self, read: Callable[[], Awaitable[bytes]]) -> dict[str, Any]: ...

    async def converse(self, socket: WebSocket, session: str) -> None: ...

    async def watch(self, socket: WebSocket) -> None: ...


def build_api(services: Services) -> FastAPI:
    """The application. Its documentation pages are off: they would load scripts from elsewhere."""
    api = FastAPI(title="sarm_ray live", version=__version__, description=DESCRIPTION, docs_url=None, redoc_url=None)

    @api.get("/healthz", summary="Whether the process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/readyz", summary="Whether encoder and scorer answer")
    async def readyz() -> Response:
        ready = await services.is_ready()
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @api.get("/v1/model", summary="Stages, window, encoder, limits")
    async def model(request: Request) -> Response:
        return await _answer(services.guard, request, _describe)

    async def _describe() -> dict[str, Any]:
        return services.describe()

    @api.post("/v1/score", summary="Score a whole short clip", openapi_extra=CLIP_BODY)
    async def score(request: Request) -> Response:
        async def scored() -> dict[str, Any]:
            return await services.score_clip(lambda: read_body(request, services.limits.max_clip_bytes))

        return await _answer(services.guard, request, scored)

    @api.get("/", summary="The live page", response_class=HTMLResponse)
    async def page() -> Response:
        return HTMLResponse(services.page, headers=HEADERS)

    @api.websocket("/v1/sessions/{session}")
    async def session_socket(socket: WebSocket, session: str) -> None:
        if await _let_in(services.guard.check, socket):
            await socket.accept()
            await services.converse(socket, session)

    @api.websocket("/v1/board")
    async def board_socket(socket: WebSocket) -> None:
        if await _let_in(
            services.guard.check_place, socket
        ):  # a page cannot send headers: the token is its first message
            await services.watch(socket)

    return api


CLIP_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        "description": "The messages of a socket, hello first, each after its length as a little-endian uint32.",
    }
}


async def read_body(request: Request, most: int) -> bytes:
    """A request's body, no more than `most` bytes of it.

    Raises:
        Refusal: it is longer.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise Refusal("too_large", f"the clip has more than {most} bytes", fatal=True)
    return bytes(body)


async def _answer(guard: Guard, request: Request, call: Callable[[], Awaitable[dict[str, Any]]]) -> Response:
    """JSON of what a call returns, or of what is wrong."""
    try:
        guard.check(request.headers)
        return Response(json.dumps(await call(), allow_nan=False), media_type="application/json")
    except Refusal as refusal:
        return _refused(refusal)
    except Exception:
        log.exception("%s", request.url.path)
        return _refused(Refusal("internal", "the server could not answer; try again"))


def _refused(refusal: Refusal) -> Response:
    error = {"code": refusal.code, "message": refusal.message, "time_s": refusal.time_s}
    return JSONResponse({"error": error}, STATUS.get(refusal.code, 400))


async def _let_in(check: Callable[[Any], None], socket: WebSocket) -> bool:
    """Whether a socket may be accepted; if not, it is refused before anything is said (HTTP 403)."""
    try:
        check(socket.headers)
    except Refusal:
        await socket.close()
        return False
    return True
