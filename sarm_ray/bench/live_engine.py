"""`sarm-ray bench serve --engine`: the engine of a live replica and its networks in this process, without Ray Serve.

What one replica would do if its sockets, its proxy and the calls between its parts cost nothing. Frames are real messages,
sessions and the engine are the server's own; a score that is ready counts as received.
"""

import asyncio
import heapq
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sarm_ray.bench import synthetic
from sarm_ray.bench.live_load import read_bodies
from sarm_ray.bench.live_outcome import PHASES, spread
from sarm_ray.bench.measure import Hardware, describe_hardware
from sarm_ray.bench.serve import Setting, serve_config
from sarm_ray.console import say
from sarm_ray.core.live_frames import FRAME_HEADER, read_frame
from sarm_ray.core.live_protocol import PROTOCOL, read_hello
from sarm_ray.core.live_session import Session
from sarm_ray.model.encoder import encode_texts, load_live_encoder
from sarm_ray.model.scorer import Scorer
from sarm_ray.pipelines.runtime import Cluster, prepare_actor
from sarm_ray.pipelines.serving.engine import Engine
from sarm_ray.pipelines.serving.plan import LiveModel, plan_serving
from sarm_ray.pipelines.serving.replica import CPU_GROUP, GPU_GROUP
from sarm_ray.pipelines.serving.rollouts import Rollout

SESSIONS = (64, 256, 1024)


@dataclass(frozen=True, kw_only=True)
class EngineRun:
    """What `sessions` got.

    Args:
        sessions: of one replica.
        mode: `full`: each frame follows the answer to the one before; `paced`: `hz` frames a second of each session.
        offered_per_s: frames that came in a second.
        frames_per_s: scores in a second.
        num_dropped: frames, for want of time.
        mean_batch: frames in a group.
        latency_ms: p50, p90, p99, max from receipt to score; without the first fifth of the run.
        phases_ms: mean of the engine's own timings.
    """

    sessions: int
    mode: str
    offered_per_s: float
    frames_per_s: float
    num_dropped: int
    mean_batch: float
    latency_ms: dict[str, float]
    phases_ms: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class EngineBench:
    """Runs of the engine alone; `gpu` is None on a CPU."""

    model: str
    encoder: str
    precision: str
    device: str
    gpu: str | None
    hz: float
    duration_s: float
    runs: list[EngineRun]
    hardware: Hardware


class SimulatedRobot(Rollout):
    """A session whose client is in this process.

    Args:
        session, text: see Rollout.
        bodies: frame messages without their header.
        model: what is served.
        engine: to wake.
    """

    def __init__(self, session: Session, text: np.ndarray, bodies: Sequence[bytes], model: LiveModel, engine: Engine):
        super().__init__(session, text, keep_thumbnails=0)
        self.bodies, self.model, self.engine = bodies, model, engine
        self.num_sent = 0
        self.follows = False
        self.replies: list[tuple[float, dict[str, Any]]] = []

    def offer(self) -> None:
        """The next frame comes in, as bytes."""
        hello = self.session.hello
        header = FRAME_HEADER.pack(PROTOCOL, 0, self.model.num_cameras, hello.state_dim, self.num_sent / hello.fps)
        message = header + self.bodies[self.num_sent % len(self.bodies)]
        self.num_sent += 1
        frame = read_frame(message, hello, self.model.num_cameras, self.model.limits)
        if self.session.receive(frame, time.monotonic()):
            self.engine.wake(self)

    def send(self, message: dict[str, Any]) -> None:
        """A reply; it is made into text, as for a socket."""
        json.dumps(message, allow_nan=False)
        if message["type"] != "score":
            raise RuntimeError(f"a frame was refused: {message}")
        self.replies.append((time.monotonic(), message["timings_ms"]))
        if self.follows:
            self.offer()


def bench_engine(setting: Setting, sessions: Sequence[int] = SESSIONS) -> EngineBench:
    """Frames a second and latencies of one replica's engine.

    Args:
        setting: model, encoder, precision, hz and duration_s count.
        sessions: numbers of sessions to try; `setting.sessions` takes their place.

    Raises:
        SarmRayError: bad input.
    """
    cluster = own_cluster()
    prepare_actor(cluster.device)
    with tempfile.TemporaryDirectory(prefix="sarm_bench_") as scratch:
        root = Path(scratch)
        model = plan_serving(serve_config(setting, root), cluster)
        synthetic.write_pictures(root / "pictures")
        networks = load_networks(model)
        bodies = read_bodies(str(root / "pictures"), model.state_dim, model.num_cameras)
        runs = []
        for number in [setting.sessions] if setting.sessions else sessions:
            for mode in ("full", "paced"):
                say(f"engine    {number} sessions, {mode}, {setting.duration_s:g} s")
                runs.append(asyncio.run(drive(model, networks, bodies, number, mode, setting.hz, setting.duration_s)))
    return EngineBench(
        model=setting.model or f"random, width {setting.hidden_dim}, {setting.num_layers} layers",
        encoder=model.encoder.name,
        precision=model.precision,
        device=model.device,
        gpu=torch.cuda.get_device_name() if model.device == "cuda" else None,
        hz=setting.hz,
        duration_s=setting.duration_s,
        runs=runs,
        hardware=describe_hardware(),
    )


def own_cluster() -> Cluster:
    """This process's hardware, as `survey` would give it of a Ray."""
    if torch.cuda.is_available():
        return Cluster(describe_hardware().cores, 1, "cuda", torch.cuda.is_bf16_supported(including_emulation=False))
    bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return Cluster(describe_hardware().cores, 0, "cpu", bf16)


def load_networks(model: LiveModel) -> tuple[Callable, Callable]:
    """Encoder and scorer, warmed up: images -> features in the dtype they are kept in; windows -> head -> HeadScores."""
    encode_images = load_live_encoder(model.encoder, model.encoder_precision, model.device)
    window = model.checkpoint.window(model.checkpoint.config.frame_gap)
    scorer = Scorer(model.checkpoint, model.heads, window.readout_slot, model.precision, model.device)
    size = model.encoder.image_size
    group = GPU_GROUP if model.device == "cuda" else CPU_GROUP
    while group:
        encode_images(np.zeros((group, size, size, 3), dtype=np.uint8))
        group //= 2

    def encode(images: np.ndarray) -> np.ndarray:
        return encode_images(images).astype(model.dtype)

    def score(features: np.ndarray, states: np.ndarray, texts: np.ndarray) -> Any:
        return scorer.score_windows(features, states, texts, np.ones(len(features), dtype=bool))

    return encode, score


async def drive(
    model: LiveModel,
    networks: tuple[Callable, Callable],
    bodies: Sequence[bytes],
    sessions: int,
    mode: str,
    hz: float,
    duration_s: float,
) -> EngineRun:
    """Sessions with an engine for so long."""
    sizes: list[int] = []
    most = (GPU_GROUP if model.device == "cuda" else CPU_GROUP) // model.num_cameras or 1
    encode, score = (one_at_a_time(network) for network in networks)
    engine = Engine(model, encode, score, most, lambda num_frames, **_: sizes.append(num_frames))
    text = encode_texts(model.encoder, [synthetic.TASK])[0]
    robots = [_robot(model, engine, number, text, bodies, hz) for number in range(sessions)]
    begin_s = time.monotonic()
    end_s = begin_s + duration_s
    if mode == "full":
        for robot in robots:
            robot.follows = True
            robot.offer()
        await asyncio.sleep(duration_s)
        for robot in robots:
            robot.follows = False
    else:
        await keep_pace(robots, hz, begin_s, end_s)
    ended_s = time.monotonic()
    while engine.under_way:
        await asyncio.sleep(0.01)
    engine.decoders.shutdown()
    return sum_up(robots, sizes, mode, begin_s, ended_s)


async def keep_pace(robots: Sequence[SimulatedRobot], hz: float, begin_s: float, end_s: float) -> None:
    """Every robot offers a frame once a period, at phases spread over it, until the end."""
    due = [(begin_s + place / len(robots) / hz, place) for place in range(len(robots))]
    heapq.heapify(due)
    while (now_s := time.monotonic()) < end_s:
        while due[0][0] <= now_s:
            due_s, place = due[0]
            robots[place].offer()
            heapq.heapreplace(due, (due_s + 1 / hz, place))
        await asyncio.sleep(max(0.0, due[0][0] - time.monotonic()))


def one_at_a_time(network: Callable) -> Callable[..., Awaitable[tuple[Any, float]]]:
    """A network as the engine calls it: off the event loop, and one pass after the other, as in a deployment."""
    lock = asyncio.Lock()

    async def call(*arrays: np.ndarray) -> tuple[Any, float]:
        async with lock:
            started = time.perf_counter()
            return await asyncio.to_thread(network, *arrays), time.perf_counter() - started

    return call


def sum_up(
    robots: Sequence[SimulatedRobot], sizes: Sequence[int], mode: str, begin_s: float, end_s: float
) -> EngineRun:
    settled_s = begin_s + (end_s - begin_s) / 5
    replies = [timings for robot in robots for at_s, timings in robot.replies if settled_s <= at_s < end_s]
    if not replies:
        raise RuntimeError("no frame was scored in time; give it longer, or fewer sessions")
    return EngineRun(
        sessions=len(robots),
        mode=mode,
        offered_per_s=sum(robot.num_sent for robot in robots) / (end_s - begin_s),
        frames_per_s=len(replies) / (end_s - settled_s),
        num_dropped=sum(robot.session.counts.num_dropped for robot in robots),
        mean_batch=float(np.mean(sizes)),
        latency_ms=spread([timings["total"] for timings in replies]),
        phases_ms={phase: float(np.mean([timings[phase] for timings in replies])) for phase in PHASES},
    )


def describe(bench: EngineBench) -> str:
    """For people."""
    lines = [
        f"engine alone, no Ray Serve: {bench.encoder} {bench.precision} on {bench.gpu or bench.device}, SARM {bench.model}, "
        f"{bench.hardware.cores} cores, {bench.duration_s:g} s each"
    ]
    for run in bench.runs:
        load = "each frame after the answer" if run.mode == "full" else f"{run.offered_per_s:.0f} frames/s offered"
        latency = run.latency_ms
        lines.append(
            f"  {run.sessions} sessions, {load}: {run.frames_per_s:.0f} frames/s, p50 {latency['p50']:.1f}, "
            f"p99 {latency['p99']:.1f} ms, {run.num_dropped} dropped, {run.mean_batch:.1f} frames together"
        )
    return "\n".join(lines)


def _robot(
    model: LiveModel, engine: Engine, number: int, text: np.ndarray, bodies: Sequence[bytes], hz: float
) -> SimulatedRobot:
    said = {"type": "hello", "protocol": PROTOCOL, "task": synthetic.TASK, "fps": hz, "state_dim": model.state_dim}
    hello = read_hello(json.dumps(said), model.heads, model.state_dim)
    session = Session(f"robot-{number}", hello, model.live_window(hello), model.heads, model.limits, time.monotonic())
    shift = 7 * number % len(bodies)
    return SimulatedRobot(session, text, [*bodies[shift:], *bodies[:shift]], model, engine)
