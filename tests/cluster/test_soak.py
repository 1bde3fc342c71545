"""Ten schedules of kills, drawn by seed: hosts lose their power at any time and come back, and so does the driver."""

import random
import time
from collections.abc import Iterator

import pytest

from tests.cluster.faults import assert_scored, kill_driver, scoring, start
from tests.cluster.hosts import TestCluster, cluster, needs_hosts
from tests.pipelines.runs import needs_parity

pytestmark = [pytest.mark.cluster, needs_hosts, needs_parity]

WORKERS = (2, 3, 4)
KILLS_S = 90  # in which an undisturbed run would be through; afterwards it is left in peace


@pytest.fixture(scope="module")
def hosts() -> Iterator[TestCluster]:
    with cluster(workers=WORKERS) as hosts:
        yield hosts


def schedule(seed: int) -> Iterator[tuple[float, str, int]]:
    """What to do after how many seconds, without end: kill a host, start the one that was killed, kill the driver."""
    rng = random.Random(seed)
    while True:
        victim = rng.choice(WORKERS)
        yield rng.uniform(2, 20), "kill", victim
        yield rng.uniform(1, 10), "start", victim
        if rng.random() < 0.25:
            yield rng.uniform(1, 5), "driver", 0


@pytest.mark.parametrize("seed", range(10))
def test_kills_at_random(hosts, one_node, measured, seed):
    """However often it is struck, what comes out has every row once, and every value to the last bit."""
    folder, done = hosts.folder / f"soak{seed}", []
    began, attempt = time.monotonic(), 0
    events = schedule(seed)
    run = start(hosts, f"soak{seed}_0", *scoring(folder), num_nodes=2)
    due, what, number = next(events)
    due += began
    while True:
        code = run.process.poll()
        if code == 0:
            break
        if code is not None:
            assert code == 137, run.said()  # the driver was killed; the same line goes on
            attempt += 1
            run = start(hosts, f"soak{seed}_{attempt}", *scoring(folder), num_nodes=2)
        if time.monotonic() >= due and (what == "start" or time.monotonic() - began < KILLS_S):
            if what == "kill":
                hosts.kill(number)
            elif what == "start":
                hosts.start_worker(number)
            if what != "driver" or kill_driver(hosts):
                done.append(what)
            wait_s, what, number = next(events)
            due = time.monotonic() + wait_s
        time.sleep(0.05)
    seconds = time.monotonic() - began
    for worker in WORKERS:
        if not hosts.processes(worker):
            hosts.start_worker(worker)
    assert_scored(folder, one_node)
    assert "kill" in done
    told = f"{done.count('kill')} hosts and {done.count('driver')} drivers killed"
    measured(f"soak, seed {seed}: {told}", seconds, None)
