"""Ends a chain that waits for a node which will never answer.

Ray finds a silent node dead within a minute, but not the tasks that were on it: its driver goes on waiting for them until
the connection is given up, five minutes later (measured, a cable out for good). Nothing is lost by going on without them:
what has not reported is the next round's (rounds.py).
"""

import time
from typing import Any

import ray

from sarm_ray.pipelines.nodes import gone_since, node_ids
from sarm_ray.pipelines.pools import num_actors

LOOK_S = 5.0
SILENT_S = 20.0
START_S = 180.0  # in which the first actors load their networks


class EndSilence:
    """An execution callback of Ray Data (it takes classes alone).

    Once a node was lost, the execution fails with NodeDiedError when nothing has been finished and no actor came up for 20
    seconds, and for as long as that ever took before: nodes that work finish what they have first. Until the last operator
    has made something, it has three minutes.
    """

    def before_execution_starts(self, executor: object) -> None:
        self.gone_before, self.lost = node_ids(alive=False), ""
        self.done, self.has_results, self.patience_s = (0, 0), False, SILENT_S
        self.since = self.looked = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        now, done = time.monotonic(), _done(executor)
        if done != self.done:
            if self.has_results:
                self.patience_s = max(self.patience_s, now - self.since)
            self.done, self.since, self.has_results = done, now, self.has_results or _has_results(executor)
        if not self.lost and now - self.looked >= LOOK_S:
            self.looked, self.lost = now, ", ".join(gone_since(self.gone_before))
        if self.lost and now - self.since > (self.patience_s if self.has_results else START_S):
            raise ray.exceptions.NodeDiedError(f"node {self.lost} was lost, and what it had does not come back")

    def after_execution_succeeds(self, executor: object) -> None: ...

    def after_execution_fails(self, executor: object, error: Exception) -> None: ...


# Ray has no public words for what a chain has done while it runs; its own progress bars ask so too.


def _done(executor: Any) -> tuple[int, int]:
    """Blocks that operators have made, and actors that run."""
    num_blocks = sum(operator.metrics.num_task_outputs_generated for operator in executor._topology)
    return num_blocks, num_actors(executor)


def _has_results(executor: Any) -> bool:
    *_, last = executor._topology
    return last.metrics.num_task_outputs_generated > 0
