"""What can go wrong on a cluster while it scores, each compared with one machine that nothing happened to.

Real Ray on hosts with addresses of their own; a host that is killed loses all its processes at once, raylet and workers.
"""

import re
import shutil
import time
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest

from sarm_ray.core.episodes import frames_of
from tests.cluster.faults import (
    DATASET,
    NUM_FRAMES,
    assert_scored,
    at_work,
    kill_driver,
    scoring,
    start,
    strike,
)
from tests.cluster.hosts import TestCluster, cluster, needs_hosts, wait_for
from tests.pipelines.runs import assert_same_values, needs_parity

pytestmark = [pytest.mark.cluster, needs_hosts, needs_parity]


@pytest.fixture(scope="module")
def hosts() -> Iterator[TestCluster]:
    with cluster() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def undisturbed(hosts, one_node, measured) -> float:
    """Seconds of a run to which nothing happens, once the machine's caches are warm."""
    for name in ("first", "undisturbed"):
        code, said, seconds = start(hosts, name, *scoring(hosts.folder / name)).end()
        assert code == 0, said
        assert_scored(hosts.folder / name, one_node)
    measured("score, nothing happens", seconds, None)
    return seconds


@pytest.mark.parametrize("work", ["decoding", "encoding", "scoring"])
def test_a_host_is_killed(hosts, undisturbed, one_node, measured, work):
    name = f"killed_{work}"
    run = start(hosts, name, *scoring(hosts.folder / name))
    victim = strike(hosts, run, work)
    code, said, seconds = run.end()
    hosts.start_worker(victim)
    assert code == 0, said
    summary = assert_scored(hosts.folder / name, one_node)
    assert summary["num_decoded"] == summary["num_scored"] == NUM_FRAMES
    assert "a worker process died" not in said
    measured(f"score, a host killed while {work}", seconds, undisturbed)


def test_the_driver_is_killed(hosts, undisturbed, one_node, measured):
    """137, and the same line goes on: what was encoded is not decoded again."""
    folder = hosts.folder / "driver"
    run = start(hosts, "driver", *scoring(folder))
    wait_for(lambda: len(list(folder.glob("features/*/*/*/*.parquet"))) >= 3, run.ended, what="three parts")
    assert kill_driver(hosts)
    code, said, first_s = run.end()
    assert code == 137, said
    assert not (folder / "out.parquet").exists()
    parts = list(folder.glob("features/*/*/*/[!.]*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part, columns=["frames"])["frames"].to_pylist()]
    held = sum(len(frames_of(row, 0)) for row in rows)
    code, said, second_s = start(hosts, "driver_again", *scoring(folder)).end()
    assert code == 0, said
    summary = assert_scored(folder, one_node)
    assert 0 < held < NUM_FRAMES
    assert (summary["num_cached"], summary["num_decoded"]) == (held, NUM_FRAMES - held)
    measured("score, the driver killed while encoding, and the same line again", first_s + second_s, undisturbed)


@pytest.mark.parametrize("work", ["encoding", "scoring"])
def test_a_cable_is_out_for_thirty_seconds(hosts, undisturbed, one_node, measured, work):
    """Nobody is told of it. The run ends by itself, and the host goes on working afterwards."""
    name = f"cut_{work}"
    run = start(hosts, name, *scoring(hosts.folder / name))
    victim = wait_for(at_work(hosts, work), run.ended, what=work)
    hosts.cut(victim)
    time.sleep(30)
    hosts.plug(victim)
    code, said, seconds = run.end()
    assert code == 0, said
    assert_scored(hosts.folder / name, one_node)
    measured(f"score, a cable out for 30 s while {work}", seconds, undisturbed)
    assert not hosts.has_lost(victim)


def test_a_cable_is_out_for_good(hosts, undisturbed, one_node, measured):
    run = start(hosts, "gone", *scoring(hosts.folder / "gone"))
    victim = wait_for(at_work(hosts, "encoding"), run.ended, what="encoding")
    hosts.cut(victim)
    code, said, seconds = run.end()
    hosts.kill(victim)
    hosts.plug(victim)
    hosts.start_worker(victim)
    assert code == 0, said
    assert_scored(hosts.folder / "gone", one_node)
    measured("score, a cable out for good while encoding", seconds, undisturbed)


def test_the_disk_of_the_output_is_full(hosts, one_node):
    """One line that names the place; with room again the same line goes on."""
    folder = hosts.small / "full"
    command = scoring(folder, cache=hosts.folder / "full_features")
    hosts.mount_small("24k")
    try:
        code, said, _ = start(hosts, "full", *command).end()
        assert code == 2, said
        *_, last = said.strip().splitlines()
        assert re.fullmatch(rf"error: {re.escape(str(folder))}.*No space left on device.*", last), said
        assert "Traceback" not in said
        assert not (folder / "out.parquet").exists()
    finally:
        hosts.mount_small("100M")
    code, said, _ = start(hosts, "room", *command).end()
    assert code == 0, said
    assert assert_scored(folder, one_node)["num_decoded"] == 0


def test_two_runs_at_once(hosts, one_node):
    """Of one output: the second one says who holds it. Of one feature store: both end, and their values are those of one."""
    folder, other = hosts.folder / "twice", hosts.folder / "beside"
    first = start(hosts, "twice", *scoring(folder))
    wait_for((folder / "out.parquet.run/lease.json").exists, first.ended, what="a lease")
    second = start(hosts, "twice_again", *scoring(folder))
    third = start(hosts, "beside", *scoring(other, cache=folder / "features"))
    code, said, _ = second.end()
    assert code == 2, said
    assert f"error: {folder}/out.parquet.run is being written by process " in said
    for run, place in ((first, folder), (third, other)):
        code, said, _ = run.end()
        assert code == 0, said
        assert_scored(place, one_node)


def test_a_host_that_joins_is_used(hosts, one_node):
    """One worker of one core at the start; a larger one comes while it encodes, and its encoder is told of.

    Ray Data keeps a part of the cluster for each operator: one more core would be too little for another encoder.
    """
    names = ("one", "two", "three")  # enough to do for a host, and an encoder on it, to come up meanwhile
    for name in names:
        shutil.copytree(DATASET, hosts.folder / "joined" / name)
    words = scoring(hosts.folder / "joined", *(hosts.folder / "joined" / name for name in names))
    hosts.kill(3)
    wait_for(lambda: hosts.has_lost(3), what="Ray noticing")
    run = start(hosts, "joined", *words, num_nodes=2)
    wait_for(at_work(hosts, "decoding", (2,)), run.ended, what="decoding")
    hosts.start_worker(3, num_cpus=4)
    code, said, _ = run.end()
    assert code == 0, said
    for name in names:
        assert_same_values(hosts.folder / f"joined/out/{name}/sarm_progress.parquet", one_node)
    assert "pool      encode: 1 actor (+1)\n" in said
    assert re.search(r"^pool      encode: [2-5] actors \(\+\d\)$", said, re.MULTILINE), said
