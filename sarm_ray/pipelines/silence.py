"""Ends a chain that waits for a node which will never answer.

Ray finds a silent node dead within a minute, but not the tasks that were on it: its driver goes on waiting for them until
the connection is given up, five minutes later (measured, a cable out for good). Nothing is lost by going on without them:
what has not reported is the next round's (rounds.py).
"""

import time
from collections import deque
from typing import Any

import ray

from sarm_ray.pipelines.nodes import gone_since, node_ids

LOOK_S = 5.0
SILENT_S = 20.0

# By then a silent node is found dead: five health checks, 3 s apart, of at most 10 s each. What was slow in between was slow
# because of it.
FOUND_S = 75.0


class EndSilence:
    """An execution callback of Ray Data (it takes classes alone).

    Once a node was lost, the execution fails with NodeDiedError when nothing has been finished for 20 seconds, and for
    twice as long as it took before that: the nodes that are there first finish what they have.
    """

    def before_execution_starts(self, executor: object) -> None:
        self.gone_before, self.lost = node_ids(alive=False), ""
        self.num_done, self.longest_s = 0, 0.0
        self.recent: deque[tuple[float, float]] = deque()  # when something was finished, and how long after the last
        self.since = self.looked = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        now, num_done = time.monotonic(), _num_done(executor)
        if num_done != self.num_done:
            self.recent.append((now, now - self.since))
            self.num_done, self.since = num_done, now
        if not self.lost and now - self.looked >= LOOK_S:
            self.looked, self.lost = now, ", ".join(gone_since(self.gone_before))
            while self.recent and now - self.recent[0][0] > FOUND_S:
                self.longest_s = max(self.longest_s, self.recent.popleft()[1])
        if self.lost and now - self.since > max(SILENT_S, 2 * self.longest_s):
            raise ray.exceptions.NodeDiedError(f"node {self.lost} was lost, and what it had does not come back")

    def after_execution_succeeds(self, executor: object) -> None: ...

    def after_execution_fails(self, executor: object, error: Exception) -> None: ...


def _num_done(executor: Any) -> int:
    """Blocks that operators have made. Ray has no public word for it while a chain runs."""
    return sum(operator.metrics.num_task_outputs_generated for operator in executor._topology)
