"""What Prometheus sees, by Ray's own exporter: every node's metrics port."""

from collections.abc import Iterable
from dataclasses import replace

from ray.serve import metrics

from sarm_ray.core.live_session import Session

MILLISECONDS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0]
GROUPS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
PHASES = ("queue", "decode", "encode", "score", "total")


class Meters:
    """Counters, histograms and gauges of one replica."""

    def __init__(self) -> None:
        kinds = ("received", "scored", "dropped", "skipped")
        self.frames = {
            kind: metrics.Counter(f"sarm_ray_live_frames_{kind}", description=f"Frames {kind}.") for kind in kinds
        }
        self.latency = metrics.Histogram(
            "sarm_ray_live_latency_ms",
            description="Milliseconds that a group of frames spends in a phase.",
            boundaries=MILLISECONDS,
            tag_keys=("phase",),
        )
        self.group = metrics.Histogram(
            "sarm_ray_live_batch_size", description="Frames scored in one group.", boundaries=GROUPS
        )
        self.sessions = metrics.Gauge("sarm_ray_live_sessions", description="Running sessions.")

    def observe(self, num_frames: int, **seconds: float) -> None:
        """A group went through."""
        self.group.observe(num_frames)
        for phase in PHASES:
            self.latency.observe(1000 * seconds[phase], tags={"phase": phase})

    def count(self, sessions: Iterable[Session]) -> None:
        """Frames since the last time; of a session that was elsewhere before, since it came."""
        for session in sessions:
            before, after = session.counted, replace(session.counts)
            for kind, counter in self.frames.items():
                more = getattr(after, f"num_{kind}") - getattr(before, f"num_{kind}")
                if more > 0:
                    counter.inc(more)
            session.counted = after
