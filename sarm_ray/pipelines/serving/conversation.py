"""A session's socket, from hello to the curve."""

import asyncio
import logging
import time
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from sarm_ray.core.live_frames import read_frame
from sarm_ray.core.live_protocol import (
    PROTOCOL,
    SESSION_NAME,
    Hello,
    Refusal,
    read_hello,
    read_object,
    read_outcome,
)
from sarm_ray.core.live_session import Session
from sarm_ray.pipelines.serving.engine import Engine
from sarm_ray.pipelines.serving.plan import LiveModel
from sarm_ray.pipelines.serving.rollouts import GOING_AWAY, MAX_THUMBNAILS, TRY_LATER, Connection, Rollout, Rollouts

HELLO_TIMEOUT_S = 10.0
FINISH_TIMEOUT_S = 60.0  # networks may be starting anew meanwhile
KEPT_TEXTS = 256
POLICY_VIOLATION, NORMAL, INTERNAL_ERROR = 1008, 1000, 1011
CLOSE_CODES = {"full": TRY_LATER, "draining": GOING_AWAY}
log = logging.getLogger("sarm_ray.serve")


class Conversations:
    """What one replica says to its robots.

    Args:
        name: of the replica.
        model: what is served.
        engine: scores frames.
        rollouts: its sessions.
        encode_text: task text -> (E,) float32.
    """

    def __init__(self, name: str, model: LiveModel, engine: Engine, rollouts: Rollouts, encode_text: Any):
        self.name, self.model, self.engine, self.rollouts, self.encode_text = name, model, engine, rollouts, encode_text
        self.texts: dict[str, asyncio.Future[np.ndarray]] = {}

    async def converse(self, socket: WebSocket, session: str) -> None:
        """Serve one accepted socket until it is closed."""
        connection = Connection(socket)
        rollout = None
        try:
            rollout = await self._open(socket, connection, session)
            await self._listen(socket, connection, rollout)
        except Refusal as refusal:
            connection.send(refusal.as_object())
            connection.close(CLOSE_CODES.get(refusal.code, POLICY_VIOLATION), refusal.code)
        except WebSocketDisconnect:
            pass
        except Exception:
            log.exception("session %s", session)
            message = "the server could not go on with this session; connect again"
            connection.send(Refusal("internal", message, fatal=True).as_object())
            connection.close(INTERNAL_ERROR, "internal")
        finally:
            if rollout is not None:
                self.rollouts.detach(rollout, connection)
            connection.close(NORMAL)
            await connection.closed()

    async def text_feature(self, text: str) -> np.ndarray:
        """(E,) float32; the newest texts are remembered, and one that many robots ask for at once is encoded once."""
        if text not in self.texts:
            if len(self.texts) >= KEPT_TEXTS:
                self.texts.pop(next(iter(self.texts)))
            self.texts[text] = asyncio.ensure_future(self.encode_text(text))
        try:
            return await asyncio.shield(self.texts[text])
        except Exception:
            self.texts.pop(text, None)  # the next robot tries again
            raise

    async def _open(self, socket: WebSocket, connection: Connection, name: str) -> Rollout:
        if not SESSION_NAME.fullmatch(name):
            raise Refusal("hello", "a session's name has 1 to 64 letters, digits, '.', '_', '~' or '-'", fatal=True)
        try:
            message = await asyncio.wait_for(socket.receive(), HELLO_TIMEOUT_S)
        except TimeoutError:
            raise Refusal("hello", f"no hello within {HELLO_TIMEOUT_S:g} s", fatal=True) from None
        self.rollouts.check_room(name)
        hello = read_hello(self._text_of(message), self.model.heads, self.model.state_dim, self.model.limits)
        rollout = self.rollouts.held(name, hello)
        last_s = None
        if rollout is None:
            text = await self.text_feature(hello.task)
            self.rollouts.check_room(name)
            rollout = self.new_rollout(name, hello, text)
            await self.rollouts.add(rollout)
        else:
            last_s = rollout.session.newest_s
        self.rollouts.attach(rollout, connection)
        rollout.send(self._welcome(rollout, last_s))
        if last_s is not None and hello.resume:
            for reply in rollout.session.replies_after(hello.resume.last_time_s):
                rollout.send(reply)
        return rollout

    def new_rollout(self, name: str, hello: Hello, text: np.ndarray) -> Rollout:
        """A session that has seen nothing yet."""
        model = self.model
        session = Session(name, hello, model.live_window(hello), model.heads, model.limits, time.monotonic())
        return Rollout(session, text, MAX_THUMBNAILS if model.record else 0)

    def _welcome(self, rollout: Rollout, last_s: float | None) -> dict[str, Any]:
        session, limits = rollout.session, self.model.limits
        return {
            "type": "welcome",
            "protocol": PROTOCOL,
            "session": session.name,
            "started_s": rollout.started_s,
            "replica": self.name,
            "heads": list(session.curve.heads),
            "stages": {head: self.model.stages[head] for head in session.curve.heads},
            "score_hz": session.live.score_hz,
            "stride": session.live.stride,
            "keep_s": session.live.span_s + session.live.half_gap_s,
            "keep_first": session.live.pinned,
            "last_time_s": last_s,
            "replay_times_s": session.replay_times(),
            "max_message_bytes": limits.max_message_bytes,
            "max_frames_per_s": limits.max_frames_per_s,
        }

    async def _listen(self, socket: WebSocket, connection: Connection, rollout: Rollout) -> None:
        num_refused = 0
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect" or rollout.connection is not connection:
                raise WebSocketDisconnect(message.get("code", 1005))  # or another socket speaks for the session now
            try:
                data = message.get("bytes")
                if data is None:
                    if await self._told(rollout, self._text_of(message)):
                        return
                else:
                    self._take_frame(rollout, data)
                num_refused = 0
            except Refusal as refusal:
                num_refused += 1
                if refusal.fatal:
                    await self._give_up(rollout, refusal)
                    return
                if num_refused >= self.model.limits.max_errors:
                    text = f"{num_refused} messages in a row were refused, the last one: {refusal.message}"
                    raise Refusal("protocol", text, fatal=True) from None
                rollout.send(refusal.as_object())

    def _take_frame(self, rollout: Rollout, data: bytes) -> None:
        session, limits = rollout.session, self.model.limits
        if len(data) > limits.max_message_bytes:
            raise Refusal("too_large", f"a message of {len(data)} bytes; at most {limits.max_message_bytes} are taken")
        frame = read_frame(data, session.hello, self.model.num_cameras, limits)
        if session.receive(frame, time.monotonic()):
            self.engine.wake(rollout)
        rollout.changed = True

    async def _told(self, rollout: Rollout, text: str) -> bool:
        """A text message of a session: whether it was the last one."""
        value = read_object(text)
        if value.get("type") != "close":
            raise Refusal("bad_message", "after the hello there are frames and a close")
        rollout.outcome = read_outcome(value)
        await rollout.finish(FINISH_TIMEOUT_S)
        await self._say_goodbye(rollout, "closed")
        return True

    async def _give_up(self, rollout: Rollout, refusal: Refusal) -> None:
        """End a session for what its client did; it gets the curve all the same."""
        rollout.send(refusal.as_object())
        await rollout.finish(FINISH_TIMEOUT_S)
        await self._say_goodbye(rollout, refusal.code)

    async def _say_goodbye(self, rollout: Rollout, why: str) -> None:
        rollout.send(rollout.session.curve_message())
        if rollout.connection is not None:
            rollout.connection.close(NORMAL, why)
        await self.rollouts.end(rollout, why)

    def _text_of(self, message: Any) -> str:
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        text = message.get("text")
        if text is None:
            raise Refusal("hello", "the first message must be a hello, as text", fatal=True)
        if len(text) > self.model.limits.max_message_bytes:
            raise Refusal("too_large", "a text message is too long", fatal=True)
        return text
