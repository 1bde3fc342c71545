"""The live page, and the socket it listens to.

GET /              board_page()       one HTML file that asks for nothing but its socket
WS  /v1/board      watch(...)         the board's changes, twice a second
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from sarm_ray.report.page_html import Parts, assemble_page

EVERY_S = 0.5
FIRST_MESSAGE_S = 3.0  # a socket that has not shown its token holds a place
SEND_S = 30.0  # a viewer that takes longer for one message is gone, or might as well be
MAX_FIRST_MESSAGE = 8192  # characters
POLICY_VIOLATION = 1008  # close code
PAGE = Parts(
    body="live_page.html",
    styles=("page.css", "page_viewer.css", "live_page.css"),
    scripts=(
        "page_elements.js",
        "live_feed.js",
        "live_curve.js",
        "live_card.js",
        "live_view.js",
        "live_page.js",
    ),
    start="startPage();",
    package="sarm_ray.pipelines.serving",
    connects=True,
)
HEADERS = {
    "cache-control": "no-cache",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@cache
def board_page(task: str = "fold the shirt", fps: float = 30.0, state_dim: int = 14, token: bool = False) -> bytes:
    """The page (text/html, to be sent with HEADERS): the same for everybody, with nothing secret in it.

    Args:
        task, fps, state_dim: the model's, for the example that is shown while there is no rollout.
        token: whether the server has one.
    """
    example = {"task": task, "fps": fps, "state_dim": state_dim, "token": token}
    return assemble_page("Live rollouts", {"every_s": EVERY_S, "example": example}, {}, PAGE)


async def watch(
    websocket: WebSocket,
    read_changes: Callable[[int], Awaitable[dict[str, Any]]],
    check_token: Callable[[str | None], bool],
    every_s: float = EVERY_S,
) -> None:
    """Tell one viewer what changes, until it leaves. The caller has checked the Origin; this accepts the socket.

    Nothing queues up for a slow viewer: it is read to when it has taken in what came before.

    Args:
        websocket: not yet accepted.
        read_changes: `Board.changes` of the one board, with the time; may raise, which closes the socket, and the page
            comes back.
        check_token: of what the page sent; True where the server has no token.
    """
    await websocket.accept()
    try:
        hello = await asyncio.wait_for(_first_message(websocket), FIRST_MESSAGE_S)
    except (TimeoutError, WebSocketDisconnect):
        hello = None
    if hello is None:
        return await _refuse(websocket, "hello", 'the first message must be {"type":"watch","token":...}')
    if not check_token(hello["token"]):
        return await _refuse(websocket, "token", "this server wants its token")
    gone = asyncio.ensure_future(_until_gone(websocket))
    try:
        version = 0
        while not gone.done():
            message = await read_changes(version)
            version = message["version"]
            if not await _sent(websocket, message):
                break
            await asyncio.wait([gone], timeout=every_s)
    finally:
        gone.cancel()
    return None


async def _sent(websocket: WebSocket, message: dict[str, Any]) -> bool:
    """Whether the viewer was there to take it."""
    text = json.dumps(message, separators=(",", ":"), allow_nan=False)
    try:
        await asyncio.wait_for(websocket.send_text(text), SEND_S)
    except (TimeoutError, WebSocketDisconnect, RuntimeError):  # the last of them: it was closed before
        return False
    return True


async def _first_message(websocket: WebSocket) -> dict[str, Any] | None:
    """With the token in it; None where it is anything else."""
    message = await websocket.receive()
    text = message.get("text")
    if not isinstance(text, str) or len(text) > MAX_FIRST_MESSAGE:
        return None
    try:
        hello = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(hello, dict) or hello.get("type") != "watch":
        return None
    token = hello.get("token")
    return {"token": token} if token is None or isinstance(token, str) else None


async def _until_gone(websocket: WebSocket) -> None:
    """Whatever else the page says is not listened to."""
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        while (await websocket.receive())["type"] != "websocket.disconnect":
            pass


async def _refuse(websocket: WebSocket, code: str, message: str) -> None:
    if await _sent(websocket, {"type": "error", "code": code, "message": message, "fatal": True}):
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it may have left
            await websocket.close(POLICY_VIOLATION)
