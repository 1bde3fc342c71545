"""`sarm-ray bench serve`: the largest load that a live server carries, and how it behaves at half and at twice of it.

The server is the real one, on the Ray that is found or started; the robots are another process (`live_load.py`). What a
frame costs beside the networks shows in the same call: an empty deployment behind the same proxy answers as many messages of
the same size (`ping`), and the networks run by themselves in this process (the floor).
"""

import http.client
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from sarm_ray.bench import synthetic
from sarm_ray.bench.live_floor import Floor, measure_floors
from sarm_ray.bench.live_load import Load, run_load
from sarm_ray.bench.live_memory import SessionMemory, measure_memory
from sarm_ray.bench.live_outcome import Outcome
from sarm_ray.bench.live_processes import cpu_seconds
from sarm_ray.bench.live_report import Runs, ServeBench, latency_of
from sarm_ray.bench.live_search import find_largest
from sarm_ray.bench.measure import describe_hardware
from sarm_ray.config.serve import ServeConfig
from sarm_ray.console import say
from sarm_ray.errors import ConfigError
from sarm_ray.model.encoder import EFFICIENTNET
from sarm_ray.pipelines.empty_server import empty_server
from sarm_ray.pipelines.inputs import open_encoder
from sarm_ray.pipelines.runtime import Cluster, connect
from sarm_ray.pipelines.serve import serving
from sarm_ray.pipelines.serving.plan import LiveModel, plan_serving

MAX_SESSIONS = 4096
IDLE_S = 3600.0
WARM_UP_S, PING_S, RECOVERY_S, CONFIRM = 1.0, 20.0, 10.0, 3
FIRST_GUESS = 2


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
    load_average: float
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
            ConfigError: not even one is, or far fewer than a moment ago.
        """
        first = found = find_largest(self.holds, guess)
        while found and not self.holds(found, CONFIRM * self.setting.trial_s):
            found = min(found - 1, int(0.95 * found))
            if found < first / 2:
                short_s, long_s = self.setting.trial_s, CONFIRM * self.setting.trial_s
                uneven = f"{first} sessions were carried for {short_s:g} s, and not half as many for {long_s:g} s"
                raise ConfigError(f"{uneven}: the machine is too busy with other work to be measured")
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
            ground.run(1, WARM_UP_S)  # the task's text is encoded, every part has worked once
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
    with (
        redirect_stdout(sys.stderr),  # where Ray says that its controller is gone, after it was told to go
        tempfile.TemporaryDirectory(prefix="sarm_bench_") as scratch,
        connect(None) as cluster,
    ):
        root = Path(scratch)
        config = serve_config(setting, root)
        picture_bytes = synthetic.write_pictures(root / "pictures")
        model = plan_serving(config, cluster)
        yield Bed(setting, config, cluster, model, str(root / "pictures"), picture_bytes, os.getloadavg()[0])


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


def _figures(ground: Bed, sessions: int, memory: SessionMemory | None, runs: Runs, floors: list[Floor]) -> ServeBench:
    setting, model = ground.setting, ground.model
    p50_ms, ping_ms = latency_of(runs.half)["p50"], latency_of(runs.ping)["p50"]
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
        load_average=ground.load_average,
        **vars(runs),
        p50_ms=p50_ms,
        p99_ms=latency_of(runs.half)["p99"],
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
