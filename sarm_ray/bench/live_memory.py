"""What a session costs in memory: on the real server with a full history, and by Python's own count as it gets old."""

import time
import tracemalloc
from dataclasses import dataclass

import numpy as np

from sarm_ray.bench.live_load import Load, outcome_of, run_load, started
from sarm_ray.bench.live_processes import INGRESS, PROXY, memory_bytes
from sarm_ray.core.live_frames import Frame
from sarm_ray.core.live_protocol import Hello
from sarm_ray.core.live_session import HeadScore, Session
from sarm_ray.pipelines.serving.plan import LiveModel

WARM_SESSIONS, WARM_FRAMES = 4, 20
OLD_MINUTES = (1, 10)
REST_S = 1.5  # the board is told twice a second


@dataclass(frozen=True, kw_only=True)
class SessionMemory:
    """Memory of idle sessions.

    Args:
        sessions: that were connected at once, each with a full history.
        frames_each: that each of them had sent, one after the answer to the one before.
        frames_per_s: at which all of them together were served meanwhile.
        ingress_kb, proxy_kb: growth of the process per session (rss), in 1000 bytes.
        ingress_pss_kb: the same of its share of memory (pss); None where the system has no such figure.
        ingress_mb: the ingress before the first of them, in 10^6 bytes.
        counted_kb: minutes -> what Python counts for a session that has been scored that long at `hz`: its history, its
            curve, and the answers kept for a client that comes back. No sockets.
    """

    sessions: int
    frames_each: int
    frames_per_s: float
    ingress_kb: float
    ingress_pss_kb: float | None
    proxy_kb: float
    ingress_mb: float
    counted_kb: dict[int, float]


def measure_memory(load: Load, model: LiveModel) -> SessionMemory:
    """Connect sessions to a running server that has seen none yet, and let each fill its history.

    Args:
        load: sessions, with duration_s 0 and hold.
        model: what is served.
    """
    few = {**vars(load), "name": "warm", "sessions": WARM_SESSIONS, "num_frames": WARM_FRAMES, "hold": False}
    run_load(Load(**few))  # what the first session ever brings is not a session's
    time.sleep(REST_S)
    before = {part: memory_bytes(part) for part in (INGRESS, PROXY)}
    with started(load) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "filled\n":
            raise RuntimeError("the load generator failed; what it said is above")
        time.sleep(REST_S)
        after = {part: memory_bytes(part) for part in (INGRESS, PROXY)}
        outcome = outcome_of(process)

    def per_session_kb(part: str, kind: str) -> float:
        return (after[part][kind] - before[part][kind]) / load.sessions / 1000

    return SessionMemory(
        sessions=load.sessions,
        frames_each=outcome.num_sent // load.sessions,
        frames_per_s=outcome.frames_per_s,
        ingress_kb=per_session_kb(INGRESS, "rss"),
        ingress_pss_kb=per_session_kb(INGRESS, "pss") if "pss" in before[INGRESS] else None,
        proxy_kb=per_session_kb(PROXY, "rss"),
        ingress_mb=before[INGRESS]["rss"] / 1e6,
        counted_kb={minutes: counted_kb(model, load.hz, minutes) for minutes in OLD_MINUTES},
    )


def counted_kb(model: LiveModel, hz: float, minutes: float) -> float:
    """Python's count of one session's memory after minutes of scored frames."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        session = _aged_session(model, hz, round(60 * minutes * hz))
        after, _ = tracemalloc.get_traced_memory()
        del session
    finally:
        tracemalloc.stop()
    return (after - before) / 1000


def _aged_session(model: LiveModel, hz: float, num_frames: int) -> Session:
    """A real session that was fed and scored without networks."""
    rng, dim = np.random.default_rng(0), model.num_cameras * model.encoder.image_dim
    hello = Hello("bench", hz, model.state_dim)
    session = Session("bench", hello, model.live_window(hello), model.heads, model.limits, 0.0)
    state = np.zeros(model.state_dim, dtype=np.float32)
    timings_ms = dict.fromkeys(("queue", "decode", "encode", "score", "total"), 1.5)
    stages = {head: len(names) for head, names in model.stages.items()}
    for number in range(num_frames):
        now_s = number / hz
        session.receive(Frame(now_s, state, (), replayed=False), now_s)
        for item in session.take(1, now_s):
            feature = rng.standard_normal(dim).astype(model.dtype)
            gathered = session.place(item, feature, model.normalize(item.frame.state))
            if gathered is not None:
                scores = {head: HeadScore(float(rng.random()), rng.random(k)) for head, k in stages.items()}
                session.record(item, gathered, scores, dict(timings_ms))
    return session
