"""What `sarm-ray bench serve` found, for programs and for people."""

from dataclasses import dataclass

from sarm_ray.bench.live_floor import Floor
from sarm_ray.bench.live_memory import SessionMemory
from sarm_ray.bench.live_outcome import Outcome
from sarm_ray.bench.measure import Figures


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
class ServeBench(Figures):
    """What was measured. frames_per_s is the largest load's; CPU time is that of all processes of the server at half of it,
    Ray's included, the robots' not; the floor is encode + score at the mean batch on one thread.

    Args:
        model, encoder, device, num_replicas: what was served.
        picture_bytes: mean size of a frame's JPEG.
        sessions, hz: the largest load without loss.
        duration_s: of the runs at half and at twice of it.
        max_wait_s: the server's bound on how long a frame waits.
        load_average: of the machine over the minute before: what else it was busy with.
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
    load_average: float
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


def describe(bench: ServeBench) -> str:
    """For people."""
    half, double, again = bench.half, bench.double, bench.recovered
    parts = ", ".join(f"{part} {ms:.1f}" for part, ms in bench.cpu_ms.items())
    phases = ", ".join(f"{phase} {half.phases_ms[phase]['p50']:.1f}" for phase in half.phases_ms)
    floors = "; ".join(f"{f.batch} together: encode {f.encode_ms:.1f}, score {f.score_ms:.1f}" for f in bench.floors)
    lines = [
        f"{bench.encoder} {bench.precision} on {bench.device}, SARM {bench.model}, {bench.num_replicas} replica"
        f"{'s' if bench.num_replicas > 1 else ''}, {bench.hardware.cores} cores "
        f"(load {bench.load_average:.1f} before): "
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
        f"  memory of {memory.sessions} idle sessions, {memory.frames_each} frames each: ingress {memory.ingress_kb:.0f} kB "
        f"a session{pss} on top of {memory.ingress_mb:.0f} MB, proxy {memory.proxy_kb:.0f} kB; "
        f"a session by Python's count: {aged}"
    )


def _latencies(outcome: Outcome) -> str:
    spread = latency_of(outcome)
    return f"p50 {spread['p50']:.1f}, p90 {spread['p90']:.1f}, p99 {spread['p99']:.1f} ms"


def latency_of(outcome: Outcome) -> dict[str, float]:
    """p50, p90, p99 and max in milliseconds; NaN where no score came."""
    return outcome.latency_ms or dict.fromkeys(("p50", "p90", "p99", "max"), float("nan"))
