"""The live page on a real web server of its own, over a board that the test fills; and what a test reads off the page."""

import io
import socket
import threading
import time
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, WebSocket
from fastapi.responses import Response
from PIL import Image

from sarm_ray.core.board import Board
from sarm_ray.pipelines.serving.board_page import HEADERS, board_page, watch

STAGES = ["reach", "grasp", "carry", "place"]


class PageServer:
    """The page and its socket.

    Args:
        token: that a viewer must send, or None.
        port: 0 takes a free one.

    `push` fills the board, from any thread; `ahead_s` puts the clock by which it is read forward; `stop` breaks all
    connections.
    """

    def __init__(self, token: str | None = None, port: int = 0):
        self.board, self.token, self.lock = Board(first_version=int(time.time() * 1000)), token, threading.Lock()
        self.ahead_s = 0.0
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", port))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.server = uvicorn.Server(uvicorn.Config(self._app(), log_level="error", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/")
        def page() -> Response:
            return Response(board_page(), media_type="text/html", headers=HEADERS)

        @app.websocket("/v1/board")
        async def board(viewer: WebSocket) -> None:
            await watch(viewer, self._changes, lambda token: self.token is None or token == self.token, every_s=0.1)

        return app

    async def _changes(self, version: int) -> dict:
        with self.lock:
            return self.board.changes(version, time.time() + self.ahead_s)

    def push(self, *updates: dict, replica: str = "r0") -> None:
        with self.lock:
            self.board.push(replica, updates, time.time())

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        self.socket.close()


@contextmanager
def page_server(token: str | None = None, port: int = 0):
    server = PageServer(token, port)
    try:
        yield server
    finally:
        server.stop()


def jpeg(colour: tuple[int, int, int]) -> bytes:
    memory = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(memory, "JPEG")
    return memory.getvalue()


def rollout(name: str, *values: float | None, hz: float = 2.0, first: int = 0, age_s: float = 60.0, **facts) -> dict:
    """A session's update with a score at each point; stages follow the progress."""
    points = [(n / hz, value, int((value or 0) * 3.99)) for n, value in enumerate(values, first)]
    newest = points[-1] if points else (0.0, None, None)
    given = {
        "task": "put the block on the plate",
        "connected": True,
        "ended": False,
        "outcome": None,
        "heads": ["sparse"],
        "stages": STAGES,
        "fps": 30.0,
        "started_s": time.time() - age_s,
        "time_s": newest[0],
        "progress": newest[1],
        "stage": newest[2],
        "confidence": 0.93,
        "probabilities": [0.93 if n == newest[2] else 0.07 / 3 for n in range(4)],
        "points": points,
        "score_hz": 10.0,
        "num_received": round(newest[0] * 30),
        "num_scored": first + len(points),
        "num_dropped": 0,
        "latency_ms": 14.5,
        "thumbnail": jpeg((40, 90, 200)),
    }
    return {"id": name, **given, **facts}


def names(page) -> list[str]:
    """Of the cards, in order."""
    return page.locator(".card").evaluate_all("cards => cards.map((card) => card.dataset.session)")


def card(page, name: str):
    return page.locator(f'.card[data-session="{name}"]')


def counts(page) -> list[str]:
    """Running, stalled, regressing, ended."""
    return page.locator("button.tile .figure").all_inner_texts()


def is_painted(page, name: str) -> bool:
    """Whether the curve on its card has colours."""
    return card(page, name).evaluate(
        """(card) => {
          const canvas = card.querySelector("canvas");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return data.some((value) => value > 0);
        }"""
    )
