"""`sarm-ray bench serve`: the largest load that a live server carries, and how it behaves at half and at twice of it.

The server is the real one, on the Ray that is found or started; the robots are another process (`live_load.py`). What a frame
costs beside the networks shows in the same call: an empty deployment behind the same proxy answers as many messages of the
same size (`ping`), and the networks run by themselves in this process (the floor).
"""

import http.client
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sarm_ray.bench import synthetic
from sarm_ray.bench.live_load import Load, run_load
from sarm_ray.bench.live_memory import SessionMemory, measure_memory
from sarm_ray.bench.live_outcome import Outcome
from sarm_ray.bench.live_processes import cpu_seconds
from sarm_ray.bench.live_search import find_largest
from sarm_ray.bench.measure import Figures, Timing, describe_hardware, measure, one_torch_thread
from sarm_ray.config.serve import ServeConfig
from sarm_ray.console import say
from sarm_ray.errors import ConfigError
from sarm_ray.model.encoder import EFFICIENTNET, load_live_encoder
from sarm_ray.model.scorer import Scorer
from sarm_ray.pipelines.empty_server import empty_server
from sarm_ray.pipelines.inputs import open_encoder
from sarm_ray.pipelines.runtime import Cluster, connect
from sarm_ray.pipelines.serve import serving
from sarm_ray.pipelines.serving.plan import LiveModel, plan_serving

MAX_SESSIONS = 4096
IDLE_S = 3600.0
PING_S, RECOVERY_S, CONFIRM = 20.0, 10.0, 3
FIRST_GUESS = 2
FLOOR_REPEATS = 20


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The networks by themselves, one pass of `batch` frames: wall and CPU milliseconds of the whole pass."""

    batch: int
    encode_ms: float
    score_ms: float
    cpu_ms: float


@dataclass(frozen=True, kw_only=True)
class ServeBench(Figures):
    """What was measured. frames_per_s is the largest load's; CPU time is that of all processes of the server at half of it,
    Ray's included, the robots' not; the floor is encode + score at the mean batch on one thread.

    Args:
        model, encoder, device, num_replicas: what was served.
        picture_bytes: mean size of a frame's JPEG.
        sessions, hz: the largest load without loss.
        duration_s: of the runs at half and at twice of it.
        max_wait_s: the server's bound on how long a frame waits.
        trials: of the search: sessions, frames_per_s, held.
        half, ping, double, recovered: at 50 %; the empty deployment at 50 %; at 200 %; at 50 % right after that.
        healthy: whether /readyz said so after the 200 %.
        p50_ms, p99_ms: of `half`. ping_ms: p50 of `ping`. floor_ms: encode + score of one frame.
        latency_ratio: (ping_ms + floor_ms) / p50_ms: 1 where all the rest is free.
        dropped: frames at 200 %, a session: mean.
        cpu_ms: part of the server -> CPU milliseconds a frame at 50 %.
        floors: at one frame, and at the mean batch of `half`.
        memory: of idle sessions; None where it was not wanted.
    """

    model: str
    encoder: str
    device: str
    num_replicas: int
    picture_bytes: int
    sessions: int
    hz: float
    duration_s: float
    max_wait_s: float
    trials: list[dict[str, float]]
    half: Outcome
    ping: Outcome
    double: Outcome
    recovered: Outcome
    healthy: bool
    p50_ms: float
    p99_ms: float
    ping_ms: float
    floor_ms: float
    latency_ratio: float
    dropped: float
    cpu_ms: dict[str, float]
    floors: list[Floor]
    memory: SessionMemory | None


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The loads around the largest one; see ServeBench."""

    half: Outcome
    ping: Outcome
    double: Outcome
    recovered: Outcome
    healthy: bool
    cpu_ms: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured, and how long.

    Args:
        model: checkpoint; None: a small one with random weights, of `hidden_dim` and `num_layers`.
        encoder: None: the checkpoint's, or efficientnet-lite0.
        precision: as in `serve`.
        num_replicas: of everything.
        hz: frames a second of each session, all of which are scored.
        sessions: that count as the largest load; None: it is searched for.
        duration_s: of the runs at 50 % and at 200 %.
        trial_s: of each step of the search.
        memory_sessions: idle ones whose memory is measured; 0: none.
    """

    model: str | None = None
    encoder: str | None = None
    precision: str = "auto"
    num_replicas: int = 1
    hz: float = 10.0
    sessions: int | None = None
    duration_s: float = 60.0
    trial_s: float = 4.0
    memory_sessions: int = 300
    hidden_dim: int = 96
    num_layers: int = 2


@dataclass
class Bed:
    """A server's parts, and the runs of its robots while it is up."""

    setting: Setting
    config: ServeConfig
    cluster: Cluster
    model: LiveModel
    pictures: str
    picture_bytes: int
    trials: list[dict[str, float]] = field(default_factory=list)
    num_runs: int = 0

    def load(self, sessions: int, duration_s: float, prefix: str = "", hold: bool = False) -> Load:
        self.num_runs += 1
        sidecar = self.model.checkpoint.sidecar
        return Load(
            url=f"ws://{self.config.host}:{self.config.port}{prefix}",
            pictures=self.pictures,
            task=next(iter(sidecar.task_texts), synthetic.TASK) if sidecar else synthetic.TASK,
            state_dim=self.model.state_dim,
            num_cameras=self.model.num_cameras,
            name=f"bench-{self.num_runs}",
            sessions=sessions,
            hz=self.setting.hz,
            duration_s=duration_s,
            hold=hold,
        )

    def run(self, sessions: int, duration_s: float, prefix: str = "") -> Outcome:
        return run_load(self.load(sessions, duration_s, prefix))

    def holds(self, sessions: int, duration_s: float | None = None) -> bool:
        """Whether a load is carried, at the second attempt at the latest: a machine may be busy for a moment."""
        for _ in range(2):
            outcome = self.run(sessions, duration_s or self.setting.trial_s)
            self.trials.append(
                {"sessions": sessions, "frames_per_s": outcome.frames_per_s, "held": float(outcome.held)}
            )
            word = "held" if outcome.held else f"{outcome.num_dropped} dropped, {outcome.achieved:.0%} scored in time"
            say(f"search    {sessions} sessions at {self.setting.hz:g} Hz: {word}")
            if outcome.held:
                return True
        return False

    def find_largest(self, guess: int) -> int:
        """The largest number of sessions that is carried, also for longer than a trial.

        Raises:
            ConfigError: not even one is.
        """
        found = find_largest(self.holds, guess)
        while found and not self.holds(found, CONFIRM * self.setting.trial_s):
            found = min(found - 1, int(0.95 * found))
        if not found:
            raise ConfigError(f"not even one session at {self.setting.hz:g} Hz is carried; lower --hz")
        return found

    def is_ready(self) -> bool:
        """What /readyz says."""
        connection = http.client.HTTPConnection(self.config.host, self.config.port, timeout=30)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def bench_serve(setting: Setting) -> ServeBench:
    """Measure a live server on this machine.

    Raises:
        SarmRayError: bad input, or a machine that carries no session.
    """
    with bed(setting) as ground:
        with serving(ground.model, ground.config, ground.cluster):
            memory, guess = None, FIRST_GUESS
            if setting.memory_sessions:
                say(f"memory    {setting.memory_sessions} sessions fill their histories")
                memory = measure_memory(ground.load(setting.memory_sessions, 0.0, hold=True), ground.model)
                guess = max(1, round(memory.frames_per_s / setting.hz / 2))
            sessions = setting.sessions or ground.find_largest(guess)
            runs = measure_runs(ground, sessions)
        floors = measure_floors(ground.model, sorted({1, max(1, round(runs.half.mean_batch or 1))}))
        return _figures(ground, sessions, memory, runs, floors)


def measure_runs(ground: Bed, sessions: int) -> Runs:
    """Half of a load, the empty deployment under the same, twice the load, half of it again."""
    few, duration_s = max(1, sessions // 2), ground.setting.duration_s
    say(f"load      {few} of {sessions} sessions for {duration_s:g} s")
    before = cpu_seconds()
    half = ground.run(few, duration_s)
    spent = {part: seconds - before.get(part, 0) for part, seconds in sorted(cpu_seconds().items())}
    if half.latency_ms is None:
        raise RuntimeError(f"the server answered none of {half.num_sent} frames ({half.first_error})")
    with empty_server(MAX_SESSIONS) as prefix:
        ping = ground.run(few, min(PING_S, duration_s), prefix)
    say(f"load      {2 * sessions} sessions for {duration_s:g} s")
    double = ground.run(2 * sessions, duration_s)
    return Runs(
        half=half,
        ping=ping,
        double=double,
        healthy=ground.is_ready(),
        recovered=ground.run(few, min(RECOVERY_S, duration_s)),
        cpu_ms={part: 1000 * seconds / half.num_scored for part, seconds in spent.items()},
    )


@contextmanager
def bed(setting: Setting) -> Iterator[Bed]:
    """All that a server and its robots need."""
    with tempfile.TemporaryDirectory(prefix="sarm_bench_") as scratch, connect(None) as cluster:
        root = Path(scratch)
        config = serve_config(setting, root)
        picture_bytes = synthetic.write_pictures(root / "pictures")
        model = plan_serving(config, cluster)
        yield Bed(setting, config, cluster, model, str(root / "pictures"), picture_bytes)


def serve_config(setting: Setting, root: Path) -> ServeConfig:
    """Of the server, with a checkpoint in `root` where none is given."""
    model, encoder = setting.model, setting.encoder
    if model is None:
        model, encoder = str(root / "model"), encoder or EFFICIENTNET
        synthetic.write_live_sarm(Path(model), open_encoder(encoder), setting.hidden_dim, setting.num_layers)
    return ServeConfig(
        model=model,
        encoder=encoder,
        precision=setting.precision,  # type: ignore[arg-type]
        num_replicas=setting.num_replicas,
        port=_free_port(),
        score_hz=setting.hz,
        max_sessions=MAX_SESSIONS,
        idle_s=IDLE_S,
        drain_s=0.0,
    )


def measure_floors(model: LiveModel, batches: list[int]) -> list[Floor]:
    """The networks alone, in this process, on one thread, at each batch size."""
    with one_torch_thread():
        encode = load_live_encoder(model.encoder, model.encoder_precision, model.device)
        window = model.checkpoint.window(model.checkpoint.config.frame_gap)
        scorer = Scorer(model.checkpoint, model.heads, window.readout_slot, model.precision, model.device)
        return [_floor(model, encode, scorer, window.num_slots, batch) for batch in batches]


def _floor(model: LiveModel, encode, scorer: Scorer, num_slots: int, batch: int) -> Floor:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    size, cameras, config = model.encoder.image_size, model.num_cameras, model.checkpoint.config
    images = rng.integers(0, 256, (batch * cameras, size, size, 3), dtype=np.uint8)
    features = rng.standard_normal((batch, num_slots, cameras * model.encoder.image_dim)).astype(model.dtype)
    states = np.zeros((batch, num_slots, config.max_state_dim), dtype=np.float32)
    texts = rng.standard_normal((batch, model.encoder.text_dim)).astype(np.float32)
    whole = np.ones(batch, dtype=bool)
    encoded, scored = measure(
        FLOOR_REPEATS, lambda: encode(images), lambda: scorer.score_windows(features, states, texts, whole)
    )
    return Floor(
        batch=batch,
        encode_ms=1000 * encoded.wall_s,
        score_ms=1000 * scored.wall_s,
        cpu_ms=1000 * (encoded.cpu_s + scored.cpu_s),
    )


def _figures(
    ground: Bed, sessions: int, memory: SessionMemory | None, runs: Runs, floors: list[Floor]
) -> ServeBench:
    setting, model = ground.setting, ground.model
    p50_ms, ping_ms = _latency(runs.half)["p50"], _latency(runs.ping)["p50"]
    floor_ms = floors[0].encode_ms + floors[0].score_ms
    per_cpu_s, floor_per_cpu_s = 1000 / sum(runs.cpu_ms.values()), 1000 * floors[-1].batch / floors[-1].cpu_ms
    return ServeBench(
        model=setting.model or f"random, width {setting.hidden_dim}, {setting.num_layers} layers",
        encoder=model.encoder.name,
        device=model.device,
        num_replicas=setting.num_replicas,
        picture_bytes=ground.picture_bytes,
        sessions=sessions,
        hz=setting.hz,
        duration_s=setting.duration_s,
        max_wait_s=ground.config.max_wait_s,
        trials=ground.trials,
        **vars(runs),
        p50_ms=p50_ms,
        p99_ms=_latency(runs.half)["p99"],
        ping_ms=ping_ms,
        floor_ms=floor_ms,
        latency_ratio=(ping_ms + floor_ms) / p50_ms,
        dropped=runs.double.dropped_per_session["mean"],
        floors=floors,
        memory=memory,
        precision=model.precision,
        frames_per_s=sessions * setting.hz,
        frames_per_cpu_s=per_cpu_s,
        floor_frames_per_cpu_s=floor_per_cpu_s,
        floor_ratio=per_cpu_s / floor_per_cpu_s,
        repeats=1,
        hardware=describe_hardware(),
    )


def describe(bench: ServeBench) -> str:
    """For people."""
    half, double, again = bench.half, bench.double, bench.recovered
    parts = ", ".join(f"{part} {ms:.1f}" for part, ms in bench.cpu_ms.items())
    phases = ", ".join(f"{phase} {half.phases_ms[phase]['p50']:.1f}" for phase in half.phases_ms)
    floors = "; ".join(f"{f.batch} together: encode {f.encode_ms:.1f}, score {f.score_ms:.1f}" for f in bench.floors)
    lines = [
        f"{bench.encoder} {bench.precision} on {bench.device}, SARM {bench.model}, {bench.num_replicas} replica"
        f"{'s' if bench.num_replicas > 1 else ''}, {bench.hardware.cores} cores: "
        f"{bench.sessions} sessions x {bench.hz:g} Hz without loss, {bench.frames_per_s:.0f} frames/s",
        f"  at 50%, {half.sessions} sessions for {bench.duration_s:g} s: {_latencies(half)}; {half.num_sent} sent, "
        f"{half.num_scored} scored, {half.num_dropped} dropped, {half.num_lost} lost",
        f"    on the server: {phases} ms (p50), {half.mean_batch or 0:.1f} frames together",
        f"    ping of an empty deployment: {_latencies(bench.ping)}",
        f"    networks alone, ms: {floors}; (ping + floor of one frame) / p50: ratio {bench.latency_ratio:.2f}",
        f"    {bench.frames_per_cpu_s:.1f} frames per CPU-second of the server, networks alone "
        f"{bench.floor_frames_per_cpu_s:.1f}: ratio {bench.floor_ratio:.2f} (CPU ms a frame: {parts})",
        f"  at 200%, {double.sessions} sessions for {bench.duration_s:g} s: {_latencies(double)}, frames wait at most "
        f"{1000 * bench.max_wait_s:.0f} ms; {double.frames_per_s:.0f} frames/s scored; dropped {double.num_dropped} of "
        f"{double.num_sent} ({double.dropped_per_session['least']:.0f} to {double.dropped_per_session['most']:.0f} a "
        f"session), {double.num_unsent} not sent, {double.num_lost} lost; {'ready' if bench.healthy else 'NOT READY'} after",
        f"  at 50% right after: {_latencies(again)}; {again.num_dropped} dropped, {again.num_lost} lost",
        f"  the robots took {half.load_cores:.2f} cores at 50%, {double.load_cores:.2f} at 200%",
    ]
    if bench.memory:
        lines.append(_describe_memory(bench.memory))
    return "\n".join(lines)


def _describe_memory(memory: SessionMemory) -> str:
    aged = ", ".join(f"{kb:.0f} kB after {minutes} min" for minutes, kb in memory.counted_kb.items())
    pss = "" if memory.ingress_pss_kb is None else f" (pss {memory.ingress_pss_kb:.0f})"
    return (
        f"  memory of {memory.sessions} idle sessions, {memory.frames_each} frames each: ingress {memory.ingress_kb:.0f} kB a "
        f"session{pss} on top of {memory.ingress_mb:.0f} MB, proxy {memory.proxy_kb:.0f} kB; "
        f"a session by Python's count: {aged}"
    )


def _latencies(outcome: Outcome) -> str:
    spread = _latency(outcome)
    return f"p50 {spread['p50']:.1f}, p90 {spread['p90']:.1f}, p99 {spread['p99']:.1f} ms"


def _latency(outcome: Outcome) -> dict[str, float]:
    return outcome.latency_ms or dict.fromkeys(("p50", "p90", "p99", "max"), float("nan"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
