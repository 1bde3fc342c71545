"""One score on a head and two hosts, one of which is killed; the rest of the faults: `make test-cluster`."""

import re

from tests.cluster.faults import NUM_FRAMES, assert_scored, scoring, start, strike
from tests.cluster.hosts import cluster, needs_hosts
from tests.pipelines.runs import needs_parity

pytestmark = [needs_hosts, needs_parity]


def test_a_host_killed_while_it_encodes(one_node, measured):
    """Submitted from outside the head. What it held is done again by the other host; values are those of one machine."""
    with cluster() as hosts:
        run = start(hosts, "killed", *scoring(hosts.folder / "killed"))
        victim = strike(hosts, run, "encoding")
        code, said, seconds = run.end()
        assert code == 0, said
        summary = assert_scored(hosts.folder / "killed", one_node)
        measured("score, a host killed while encoding, cluster new", seconds, None)
    assert (summary["num_decoded"], summary["num_scored"], summary["failures"]) == (NUM_FRAMES, NUM_FRAMES, [])
    assert f"note: lost node 10.77.0.{victim}, and " in said
    assert re.search(r"^pool      encode: [12] actors? \(\+[12]\)$", said, re.MULTILINE)
    assert "Traceback" not in said
