"""Training on two hosts, submitted from outside the head: one is killed, or its cable is out; compared with one machine."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.faults import Run, at_work, start
from tests.cluster.hosts import TestCluster, cluster, needs_hosts, wait_for
from tests.pipelines.runs import CLIP_TINY, needs_parity, sarm_ray
from tests.pipelines.training.tiny import DATASET, assert_same_run, curve

pytestmark = [pytest.mark.cluster, needs_hosts, needs_parity]

STEPS = 120
LOSS, WEIGHTS = 1e-4, 2e-5  # of another number of processes: the order of floating-point sums


def training(folder: Path, cache: Path, *more: object) -> list[str]:
    settings = {
        "model.hidden_dim": 16, "model.num_layers": 1, "model.num_heads": 2, "model.dropout": 0.0, "optimizer.lr": 1e-3,
        "optimizer.eps": 1e-5, "val_frames": 32, "wait_s": 5, "regroup_s": 15, "collective_timeout_s": 60,
    }  # fmt: skip
    command = [
        "train", DATASET, "--output-dir", folder, "--encoder", CLIP_TINY, "--cache", cache, "--annotation-mode", "dual",
        "--steps", STEPS, "--batch-size", 12, "--deepspeed-stage", 1, "--num-workers", 2,
        "--log-freq", 1, "--eval-freq", 1000, "--save-freq", 5, *(f"--set={k}={v}" for k, v in settings.items()), *more,
    ]  # fmt: skip
    return [str(word) for word in command]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one_node")
    run = sarm_ray(*training(folder / "run", folder / "features"))
    assert run.returncode == 0, run.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def hosts() -> Iterator[TestCluster]:
    with cluster() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def undisturbed(hosts, trained, measured) -> float:
    """Seconds of a run to which nothing happens, features being there."""
    for name in ("first", "undisturbed"):
        code, said, seconds = start(hosts, name, *training(hosts.folder / name, hosts.folder / "features")).end()
        assert code == 0, said
        assert_same_run(hosts.folder / name, trained, LOSS, WEIGHTS)
    measured("train, nothing happens", seconds, None)
    return seconds


def begin(hosts: TestCluster, name: str) -> tuple[Run, int]:
    """A run on both hosts that has a checkpoint, and one of its hosts."""
    run = start(hosts, name, *training(hosts.folder / name, hosts.folder / "features"))
    wait_for((hosts.folder / name / "checkpoints/000005").exists, run.ended, what="a checkpoint")
    return run, wait_for(at_work(hosts, "training", (3, 2)), run.ended, what="training")


def test_a_host_is_killed_and_another_one_comes(hosts, undisturbed, trained, measured):
    run, victim = begin(hosts, "killed")
    hosts.kill(victim)
    wait_for(lambda: "a node was lost" in run.said(), run.ended, what="the loss")
    hosts.start_worker(victim)
    code, said, seconds = run.end()
    assert code == 0, said
    assert max(curve(hosts.folder / "killed")) == STEPS
    assert_same_run(hosts.folder / "killed", trained, LOSS, WEIGHTS)
    measured("train, a host killed", seconds, undisturbed)


def test_a_cable_is_out_for_thirty_seconds(hosts, undisturbed, trained, measured):
    run, victim = begin(hosts, "cut")
    hosts.cut(victim)
    time.sleep(30)
    hosts.plug(victim)
    code, said, seconds = run.end()
    assert code == 0, said
    assert_same_run(hosts.folder / "cut", trained, LOSS, WEIGHTS)
    measured("train, a cable out for 30 s", seconds, undisturbed)
