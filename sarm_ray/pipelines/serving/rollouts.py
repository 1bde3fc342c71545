"""The sessions of one replica: who is connected, who may come back, who is over."""

import asyncio
import json
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from sarm_ray.core.live_protocol import Hello, LiveLimits, Refusal
from sarm_ray.core.live_session import Session
from sarm_ray.data.images import jpeg

MAX_OUTBOX = 1024  # messages that a client which does not read them may leave standing
THUMBNAIL_EVERY_S = 0.5
MAX_THUMBNAILS = 64
MAX_LATELY = 64
CLOSE_TIMEOUT_S = 10.0
TAKEN_OVER, GOING_AWAY, TRY_LATER = 4409, 1012, 1013


class Connection:
    """A socket that is written to by one task, so that a slow client holds nobody up."""

    def __init__(self, socket: WebSocket):
        self.socket = socket
        self.outbox: deque[dict[str, Any] | tuple[int, str]] = deque()
        self.filled = asyncio.Event()
        self.writer = asyncio.get_running_loop().create_task(self._write())

    def send(self, message: dict[str, Any]) -> None:
        if len(self.outbox) >= MAX_OUTBOX:
            self.outbox.clear()
            self.close(TRY_LATER, "the client does not read")
            return
        self.outbox.append(message)
        self.filled.set()

    def close(self, code: int, reason: str = "") -> None:
        """Close after what is in the outbox."""
        self.outbox.append((code, reason))
        self.filled.set()

    async def _write(self) -> None:
        while True:
            await self.filled.wait()
            self.filled.clear()
            while self.outbox:
                message = self.outbox.popleft()
                try:
                    if isinstance(message, tuple):
                        await self.socket.close(*message)
                        return
                    await self.socket.send_text(json.dumps(message, allow_nan=False))
                except (RuntimeError, WebSocketDisconnect):  # the socket is closed already; its reader ends the session
                    return

    async def closed(self) -> None:
        """Wait until all is written and the socket is closed; not for ever on a client that does not read."""
        await asyncio.wait([self.writer], timeout=CLOSE_TIMEOUT_S)
        self.writer.cancel()


class Rollout:
    """A session, and what of it is not a matter of frames and scores.

    Args:
        session: the pure state.
        text: (E,) float32, feature of its task.
        keep_thumbnails: how many; they are recorded.
    """

    def __init__(self, session: Session, text: np.ndarray, keep_thumbnails: int):
        self.session, self.text, self.keep_thumbnails = session, text, keep_thumbnails
        self.busy = False
        self.changed = True
        self.connection: Connection | None = None
        self.opened_s = time.time()
        resume = session.hello.resume
        self.started_s = (resume and resume.started_s) or self.opened_s
        self.ended: str | None = None
        self.outcome: str | None = None
        self.newest: dict[str, Any] | None = None
        self.thumbnail: bytes | None = None
        self.thumbnails: list[tuple[float, bytes]] = []
        self.num_pushed = 0
        self._shown_s = -np.inf
        self._thumbnail_gap_s = THUMBNAIL_EVERY_S

    def send(self, message: dict[str, Any]) -> None:
        """To the client, if there is one; scores that find none are kept by the session."""
        if self.connection is not None:
            self.connection.send(message)

    def show(self, image: np.ndarray, reply: dict[str, Any]) -> None:
        """Remember the newest score, and now and then a small picture: (S, S, 3) uint8."""
        self.newest, self.changed = reply, True
        elapsed_s = reply["time_s"] - (self.session.first_s or 0.0)
        if elapsed_s - self._shown_s < THUMBNAIL_EVERY_S:
            return
        self.thumbnail, self._shown_s = jpeg(image), elapsed_s
        if not self.keep_thumbnails or (self.thumbnails and elapsed_s - self.thumbnails[-1][0] < self._thumbnail_gap_s):
            return
        self.thumbnails.append((elapsed_s, self.thumbnail))
        if len(self.thumbnails) > self.keep_thumbnails:  # half as often from now on
            del self.thumbnails[1::2]
            self._thumbnail_gap_s *= 2

    async def finish(self, timeout_s: float) -> None:
        """Wait until the frames that came are scored; those that are not by then are dropped."""
        until = time.monotonic() + timeout_s
        while self.busy or self.session.num_waiting:
            if time.monotonic() > until:
                self.session.drop_all()
                return
            await asyncio.sleep(0.005)


class Rollouts:
    """The registry of one replica.

    Args:
        limits: of clients.
        on_end: told once of every rollout that is over.
    """

    def __init__(self, limits: LiveLimits, on_end: Callable[[Rollout], Awaitable[None]]):
        self.limits, self.on_end = limits, on_end
        self.by_name: dict[str, Rollout] = {}
        # closed ones, of which a client asks again whose connection broke before it had the curve
        self.lately: OrderedDict[str, Rollout] = OrderedDict()
        self.draining = False

    def __iter__(self) -> Iterator[Rollout]:
        return iter(list(self.by_name.values()))

    def check_room(self, name: str) -> None:
        """Raise a Refusal where no session can be taken."""
        if self.draining:
            raise Refusal("draining", "this replica is shutting down; connect again", fatal=True)
        if name not in self.by_name and len(self.by_name) >= self.limits.max_sessions:
            most = f"{self.limits.max_sessions} sessions are running on this replica"
            raise Refusal("full", f"{most}; try again later, or start the server with more replicas", fatal=True)

    def held(self, name: str, hello: Hello) -> Rollout | None:
        """The session that a client comes back to, if this replica has it."""
        rollout, resume = self.by_name.get(name) or self.lately.get(name), hello.resume
        if rollout is None or resume is None or rollout.session.first_s is None:
            return None
        if abs(rollout.session.first_s - resume.first_time_s) > 0.5 / hello.fps:
            return None
        before = rollout.session.hello
        return (
            rollout if (before.task, before.fps, before.state_dim) == (hello.task, hello.fps, hello.state_dim) else None
        )

    async def add(self, rollout: Rollout) -> None:
        """Enter a new session; one of the same name that is still there is over."""
        name = rollout.session.name
        before = self.by_name.get(name)
        self.by_name[name] = rollout
        if before is not None:
            if before.connection is not None:
                before.connection.close(TAKEN_OVER, "another client opened this session")
            await self.end(before, "replaced")

    def attach(self, rollout: Rollout, connection: Connection) -> None:
        """Let a session be spoken to over a new socket; an older one is closed."""
        if rollout.connection is not None:
            rollout.connection.close(TAKEN_OVER, "another client opened this session")
        rollout.connection, rollout.changed = connection, True
        rollout.session.last_frame_s = time.monotonic()  # whoever comes back is not idle
        rollout.opened_s = time.time()
        rollout.num_pushed = 0

    def detach(self, rollout: Rollout, connection: Connection) -> None:
        """The socket is gone; the session stays for a while."""
        if rollout.connection is connection:
            rollout.connection, rollout.changed = None, True

    async def end(self, rollout: Rollout, why: str) -> None:
        """A rollout is over."""
        if rollout.ended is None:
            rollout.ended, rollout.changed = why, True
            if self.by_name.get(rollout.session.name) is rollout:
                del self.by_name[rollout.session.name]
            if why == "closed":
                self.lately[rollout.session.name] = rollout
                if len(self.lately) > MAX_LATELY:
                    self.lately.popitem(last=False)
            await self.on_end(rollout)

    async def sweep(self) -> None:
        """End the sessions that have been idle for too long, with or without a client."""
        now = time.monotonic()
        for name, rollout in list(self.lately.items()):
            if now - rollout.session.last_frame_s > self.limits.idle_s:
                del self.lately[name]
        for rollout in self:
            if rollout.busy or now - rollout.session.last_frame_s < self.limits.idle_s:
                continue
            if rollout.connection is None:
                await self.end(rollout, "lost")
            else:
                message = f"no frame for {self.limits.idle_s:g} s"
                rollout.send(Refusal("idle", message, fatal=True).as_object())
                rollout.connection.close(1000, "idle")
                await self.end(rollout, "idle")

    async def drain(self) -> None:
        """Send every session elsewhere. Its client brings the curve along; for one that does not come back, it ends here."""
        self.draining = True
        for rollout in self:
            if rollout.connection is not None:
                rollout.connection.send({"type": "reconnect", "reason": "draining"})
                rollout.connection.close(GOING_AWAY, "draining")
        await asyncio.gather(*(self.end(rollout, "drained") for rollout in self))
