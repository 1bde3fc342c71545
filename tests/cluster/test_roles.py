"""Labels of nodes say where to decode and where the networks run."""

import time

import pytest

from tests.cluster.faults import assert_scored, scoring, start
from tests.cluster.hosts import cluster, needs_hosts
from tests.pipelines.runs import needs_parity

STAGES = ("decode_job", "FrameEncoder", "ChunkScorer")

pytestmark = [pytest.mark.cluster, needs_hosts, needs_parity]


def test_roles(one_node):
    """Labels say where to decode and where the networks run."""
    with cluster(workers=()) as hosts:
        hosts.start_worker(2, "--labels", "sarm-ray/role=decode")
        hosts.start_worker(3, "--labels", "sarm-ray/role=gpu", num_cpus=8)  # room for all networks that would pay
        run = start(hosts, "roles", *scoring(hosts.folder / "roles"))
        seen: dict[int, set[str]] = {2: set(), 3: set()}
        while run.process.poll() is None:
            for number, titles in seen.items():
                titles |= {name for name in STAGES for title in hosts.titles(number) if name in title}
            time.sleep(0.05)
        code, said, _ = run.end()
        assert code == 0, said
        assert_scored(hosts.folder / "roles", one_node)
    assert seen == {2: {"decode_job"}, 3: {"FrameEncoder", "ChunkScorer"}}
