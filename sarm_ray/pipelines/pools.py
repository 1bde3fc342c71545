"""What a run says of its pools of workers: how many there are while it runs, and whether they were fed."""

import math
import time
from typing import Any

from sarm_ray.console import say
from sarm_ray.pipelines.nodes import Cluster

SETTLED_S = 1.0  # actors come one after the other: a number is told when it has stood for so long


def pool_watch(phase: str) -> type:
    """An execution callback of Ray Data (it takes classes alone) that tells of a chain's actors as they come and go."""

    class PoolWatch:
        def __init__(self) -> None:
            self.told, self.seen, self.since = 0, 0, time.monotonic()

        def before_execution_starts(self, executor: object) -> None: ...

        def on_execution_step(self, executor: Any) -> None:
            now, number = time.monotonic(), num_actors(executor)
            if number != self.seen:
                self.seen, self.since = number, now
            elif number != self.told and now - self.since >= SETTLED_S:
                self._tell(number)

        def after_execution_succeeds(self, executor: object) -> None:
            self._tell(0)

        def after_execution_fails(self, executor: object, error: Exception) -> None:
            self._tell(0)

        def _tell(self, number: int) -> None:
            if number != self.told:
                actors = f"{number} actor{'s' if number != 1 else ''}" if number else "no actors"
                say(f"pool      {phase}: {actors} ({number - self.told:+d})")
                self.told = number

    return PoolWatch


def num_actors(executor: Any) -> int:
    """Running actors of a chain. Ray has no public word for it; its own progress bars ask so too."""
    pools = [pool for operator in executor._topology for pool in operator.get_autoscaling_actor_pools()]
    return sum(pool.num_running_actors() for pool in pools)


def describe_feeding(cluster: Cluster, decode_s: float, encode_s: float, phase_s: float) -> str | None:
    """Whether the GPUs waited for pictures, and how many cores would have fed them; None where there are no GPUs.

    Without GPUs both stages share the cores, and there is nothing to balance.

    Args:
        cluster: of the run.
        decode_s: CPU seconds of decoding. encode_s: seconds for which encoders were busy, all together.
        phase_s: wall time of both.
    """
    if not cluster.num_gpus or not encode_s or not phase_s:
        return None
    wanted, there = decode_s / encode_s, cluster.num_cpus / cluster.num_gpus
    busy = encode_s / (cluster.num_gpus * phase_s)
    ratio = f"a GPU takes what {wanted:.1f} cores decode, and has {there:.1f}"
    if wanted <= there:
        return f"{ratio}; encoders were busy {busy:.0%} of their phase"
    more = math.ceil((wanted - there) * cluster.num_gpus)
    return f"{ratio}: encoders starve, busy {busy:.0%} of their phase; add {more:,} decode CPUs"
