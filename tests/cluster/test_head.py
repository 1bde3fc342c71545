"""The head is killed while it scores: the same line goes on once there is a head again."""

import time

import pytest

from tests.cluster.faults import assert_scored, scoring, start
from tests.cluster.hosts import HEAD, cluster, needs_hosts, wait_for
from tests.pipelines.runs import needs_parity

pytestmark = [pytest.mark.cluster, needs_hosts, needs_parity]


def test_the_head_is_killed(one_node, measured):
    """All that Ray knew is gone. What was finished is not, and the same line goes on once there is a head again."""
    with cluster() as hosts:
        folder = hosts.folder / "head"
        run = start(hosts, "head", *scoring(folder))
        wait_for(lambda: list(folder.glob("features/*/*/*/[!.]*.parquet")), run.ended, what="a part")
        began = time.monotonic()
        for number in (HEAD, 2, 3):  # the workers would notice within a minute, and end themselves
            hosts.kill(number)
        hosts.start_head()
        for number in (2, 3):
            hosts.start_worker(number)
        code, said, _ = run.end()
        assert code == 75, said
        assert said.endswith(" was lost with its head; the same line goes on where it was\n")
        code, said, _ = start(hosts, "head_again", *scoring(folder)).end()
        assert code == 0, said
        assert assert_scored(folder, one_node)["num_cached"] > 0
        measured(
            "score, from the death of the head to the end of the same line, head and hosts anew",
            time.monotonic() - began,
        )
