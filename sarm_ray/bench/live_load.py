"""The robots of `sarm-ray bench serve`: many sessions over the raw protocol, in a process of its own.

`python -m sarm_ray.bench.live_load` reads a Load as one line of JSON and prints an Outcome as another. It loads neither Ray
nor torch, shares no interpreter with the server, and is open-loop: a frame is sent when it is due, whatever became of the
ones before. A frame that could not be sent within a period of when it was due (the socket took no more) is left out, and
counted.
"""

import asyncio
import contextlib
import dataclasses
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from sarm_ray.bench.live_outcome import Answer, Outcome, Tally, sum_up
from sarm_ray.client import pack_frame
from sarm_ray.core.live_frames import FRAME_HEADER
from sarm_ray.core.live_protocol import PROTOCOL

OPENING_AT_ONCE = 16
SETTLE_S = 1.0  # sessions start at different phases of a period, and what they find is a server at work
OPEN_S, CLOSE_S = 60.0, 30.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to send.

    Args:
        url: ws://HOST:PORT, with the prefix of the application.
        pictures: folder of JPEGs, which every session shows in turn.
        task, state_dim, num_cameras: of the model.
        name: of the sessions, before their number.
        sessions: robots.
        hz: frames a second of each.
        duration_s: how long; every frame is sent when it is due. 0: each frame follows the answer to the one before.
        num_frames: of each session, where duration_s is 0; None: as many as the server's window looks back, and one.
        hold: say `filled` when all is sent, and stay connected until told to go on.
    """

    url: str
    pictures: str
    task: str
    state_dim: int
    num_cameras: int
    name: str
    sessions: int
    hz: float
    duration_s: float = 0.0
    num_frames: int | None = None
    hold: bool = False


@dataclass
class Robot:
    """One session: its socket, and what became of its frames."""

    load: Load
    number: int
    bodies: Sequence[bytes]
    tally: Tally = field(default_factory=Tally)
    socket: ClientConnection | None = None
    keep_s: float = 0.0
    sent_s: dict[float, float] = field(default_factory=dict)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self, turn: asyncio.Semaphore) -> None:
        name = f"{self.load.name}-{self.number}"
        url = f"{self.load.url}/v1/sessions/{name}"
        hello = {
            "type": "hello",
            "protocol": PROTOCOL,
            "task": self.load.task,
            "fps": self.load.hz,
            "state_dim": self.load.state_dim,
        }
        async with turn:
            self.socket = await connect(
                url, additional_headers={"x-session-id": name}, proxy=None, compression=None, max_size=None,
                open_timeout=OPEN_S, close_timeout=5, ping_interval=None,
            )  # fmt: skip
            await self.socket.send(json.dumps(hello))
            welcome = json.loads(await self.socket.recv())
        if welcome["type"] != "welcome":
            raise SystemExit(f"the server refuses a session: {welcome}")
        self.keep_s = welcome["keep_s"]

    async def listen(self) -> None:
        """Take in what the server says until it closes."""
        assert self.socket is not None
        with contextlib.suppress(WebSocketException, OSError):
            async for text in self.socket:
                now_s = time.perf_counter()
                message = json.loads(text)
                if message["type"] == "score":
                    self._take_score(message, now_s)
                elif message["type"] == "error":
                    self._take_error(message)
                elif message["type"] == "curve":
                    self.tally.counts = {kind: message[f"num_{kind}"] for kind in self.tally.counts}
                    self.tally.closed = True

    def _take_score(self, message: dict[str, Any], now_s: float) -> None:
        sent_s = self.sent_s.pop(message["time_s"])
        self.tally.answers.append(Answer(now_s, now_s - sent_s, message["timings_ms"]))
        self.answered.set()

    def _take_error(self, message: dict[str, Any]) -> None:
        if message["code"] == "internal":  # the server counts that frame as dropped
            self.tally.num_failed += 1
        else:
            self.tally.num_refused += 1
        self.tally.first_error = self.tally.first_error or f"{message['code']}: {message['message']}"
        self.answered.set()

    async def send(self, frame: int) -> None:
        time_s = frame / self.load.hz
        body = self.bodies[(frame + 7 * self.number) % len(self.bodies)]
        header = FRAME_HEADER.pack(PROTOCOL, 0, self.load.num_cameras, self.load.state_dim, time_s)
        self.sent_s[time_s] = time.perf_counter()
        self.tally.num_sent += 1
        assert self.socket is not None
        with contextlib.suppress(WebSocketException, OSError):  # a broken session shows in its tally
            await self.socket.send(header + body)

    async def keep_pace(self, begin_s: float, phase: float) -> None:
        """Send every frame when it is due; `phase`: of a period, 0 to 1."""
        load = self.load
        for frame in range(round(load.duration_s * load.hz)):
            due_s = begin_s + (frame + phase) / load.hz
            wait_s = due_s - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            late_s = max(0.0, time.perf_counter() - due_s)
            self.tally.num_due += 1
            if late_s > 1 / load.hz:
                self.tally.num_unsent += 1
                continue
            self.tally.late_s.append(late_s)
            await self.send(frame)

    async def follow(self) -> None:
        """Send each frame after the answer to the one before."""
        num_frames = self.load.num_frames or round(self.keep_s * self.load.hz) + 2
        for frame in range(num_frames):
            self.answered.clear()
            self.tally.num_due += 1
            await self.send(frame)
            await asyncio.wait_for(self.answered.wait(), OPEN_S)

    async def close(self) -> None:
        assert self.socket is not None
        with contextlib.suppress(WebSocketException, OSError):
            await self.socket.send(json.dumps({"type": "close"}))


async def drive(load: Load) -> Outcome:
    """Open all sessions, send, wait for what is still under way, close."""
    bodies = read_bodies(load.pictures, load.state_dim, load.num_cameras)
    robots = [Robot(load, number, bodies) for number in range(load.sessions)]
    turn = asyncio.Semaphore(OPENING_AT_ONCE)
    await asyncio.gather(*(robot.open(turn) for robot in robots))
    listeners = [asyncio.create_task(robot.listen()) for robot in robots]
    gc.freeze()  # no pauses to walk through what stays anyway
    phases = np.random.default_rng(load.sessions).permutation(load.sessions) / load.sessions
    begin_s, cpu_s = time.perf_counter() + 0.1, time.process_time()
    if load.duration_s:
        await asyncio.gather(
            *(robot.keep_pace(begin_s, float(phase)) for robot, phase in zip(robots, phases, strict=True))
        )
        end_s = begin_s + load.duration_s
    else:
        await asyncio.gather(*(robot.follow() for robot in robots))
        end_s = time.perf_counter()
    cpu_s = time.process_time() - cpu_s
    if load.hold:
        print("filled", flush=True)  # noqa: T201  # to the process that measures
        await asyncio.to_thread(sys.stdin.readline)
    await asyncio.gather(*(robot.close() for robot in robots))
    await asyncio.wait(listeners, timeout=CLOSE_S)
    settle_s = min(SETTLE_S, load.duration_s / 4)
    tallies = [robot.tally for robot in robots]
    return sum_up(tallies, load.sessions, load.hz, begin_s + settle_s, end_s, cpu_s / (end_s - begin_s))


def read_bodies(folder: str, state_dim: int, num_cameras: int) -> list[bytes]:
    """Frame messages without their header, one per picture of a folder."""
    state = np.random.default_rng(0).standard_normal(state_dim).astype(np.float32)
    pictures = [path.read_bytes() for path in sorted(Path(folder).glob("*.jpg"))]
    return [pack_frame([each] * num_cameras, state, 0.0)[FRAME_HEADER.size :] for each in pictures]


def run_load(load: Load) -> Outcome:
    """The load, from a process of its own."""
    with started(load) as process:
        return outcome_of(process)


@contextlib.contextmanager
def started(load: Load) -> Iterator[subprocess.Popen]:
    """The load's process; one that is still there at the end is ended."""
    command = [sys.executable, "-m", "sarm_ray.bench.live_load"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin
            process.stdin.write(json.dumps(dataclasses.asdict(load)) + "\n")
            process.stdin.flush()
            yield process
        finally:
            process.kill()


def outcome_of(process: subprocess.Popen) -> Outcome:
    """What a load's process says in the end."""
    text, _ = process.communicate("\n")
    if process.returncode:
        raise RuntimeError("the load generator failed; what it said is above")
    return Outcome(**json.loads(text.splitlines()[-1]))


def main() -> None:
    load = Load(**json.loads(sys.stdin.readline()))
    print(json.dumps(dataclasses.asdict(asyncio.run(drive(load)))))  # noqa: T201


if __name__ == "__main__":
    main()
