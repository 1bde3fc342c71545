"""Nodes that come and go under a run on several of them: it goes on with as many processes as there is room for, every step
is made once, and what is learnt is what one undisturbed pair of processes learns, to the tolerances of test_train.py.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipelines.crashes import said, wait_until
from tests.pipelines.runs import CLIP_TINY, needs_parity
from tests.pipelines.training.nodes import Node, Nodes, cluster
from tests.pipelines.training.tiny import DATASET, assert_same_run, curve, train_here

pytestmark = [pytest.mark.cluster, needs_parity]

STEPS = 60  # rounding grows by the step: 1e-5 of the gradient norm after 60, 2e-4 after 120
LOSS, WEIGHTS = 1e-4, 2e-5
MODEL = {"dropout": 0.0}
OPTIMIZER = {"eps": 1e-5}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train_here(
        folder, cache, steps=STEPS, save_freq=5, num_workers=2, deepspeed_stage=1, model=MODEL, optimizer=OPTIMIZER
    )
    return folder


def start(nodes: Nodes, folder: Path, cache: Path, *more: object) -> subprocess.Popen:
    """What `train_here` runs, as a command on the cluster."""
    settings = {
        "model.hidden_dim": 16, "model.num_layers": 1, "model.num_heads": 2, "model.dropout": 0.0, "optimizer.lr": 1e-3,
        "optimizer.eps": 1e-5, "val_frames": 32, "regroup_s": 10, "collective_timeout_s": 30,
    }  # fmt: skip
    command = [
        "train", DATASET, "--output-dir", folder / "run", "--encoder", CLIP_TINY, "--cache", cache,
        "--annotation-mode", "dual", "--steps", STEPS, "--batch-size", 12, "--deepspeed-stage", 1,
        "--log-freq", 1, "--eval-freq", 1000, "--save-freq", 5, "--address", nodes.address,
        *(f"--set={key}={value}" for key, value in settings.items()), *more,
    ]  # fmt: skip
    with (folder / "said").open("w") as words:
        return subprocess.Popen(
            [sys.executable, "-m", "sarm_ray", *map(str, command)],
            stdout=words,
            stderr=words,
            env={**nodes.env, "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "600"},
        )


class Run:
    """A run on the cluster that is watched."""

    def __init__(self, folder: Path, process: subprocess.Popen):
        self.folder, self.process = folder, process

    def until(self, ready: Callable[[], object]) -> None:
        wait_until(ready, self.process)

    def says(self, pattern: str) -> tuple[str, ...]:
        """Wait until it does: the groups of the pattern."""
        self.until(lambda: re.search(pattern, said(self.folder)))
        return re.search(pattern, said(self.folder)).groups()

    def makes_a_step_after(self, step: object) -> None:
        self.until(lambda: said(self.folder).rpartition("\nnote: ")[2].count("\nstep ") > 0)
        self.until(lambda: max(curve(self.folder / "run")) > int(step))

    def has(self, pattern: str) -> bool:
        return bool(list((self.folder / "run").glob(pattern)))


def test_a_node_lost_and_another_one_joined_and_a_process_that_falls_silent(undisturbed, cache, tmp_path):
    """Two processes, on a node each. While nodes come and go the processes stand still, or the run would be over."""
    with cluster() as nodes:
        first, second = nodes.add(), nodes.add()
        run = Run(tmp_path, start(nodes, tmp_path, cache, "--num-workers", 2, "--set", "wait_s=3"))
        try:
            run.until(lambda: run.has("checkpoints/000005"))
            hold(first, second)
            second.kill()
            let_go(first)
            (step,) = run.says(r"a node was lost \([^()]+\); going on from step (\d+)\n")
            assert int(step) >= 5
            run.says(
                "note: 2 training processes need as many CPU cores, the cluster has 1; waiting up to 3 s for more\n"
            )
            run.says(f"note: 1 of 2 training processes can be placed; going on with 1 from step {step}\n")
            run.makes_a_step_after(step)

            hold(first)
            third = nodes.add()
            run.until(lambda: run.has("stop-group-*"))
            let_go(first)
            (step,) = run.says(r"note: 2 of 2 training processes can be placed; going on with 2 from step (\d+)\n")
            run.makes_a_step_after(step)

            hold(third)
            run.says(r"a training process died \(another one no longer answers\); going on from step \d+, 1 of 3\n")
            assert run.process.wait() == 0
        finally:
            run.process.kill()
            run.process.wait()
    assert "Traceback" not in said(tmp_path).rpartition("1 of 3")[2]
    assert not run.has("stop-*")
    assert_same_run(tmp_path / "run", undisturbed, LOSS, WEIGHTS)


def test_a_node_that_is_about_to_be_taken_away(undisturbed, cache, tmp_path):
    """The group writes a checkpoint and goes on without it, no step is made twice. A node without a part in it may go."""
    with cluster() as nodes:
        first, second = nodes.add(), nodes.add()
        run = Run(tmp_path, start(nodes, tmp_path, cache, "--num-workers", "1:2"))
        try:
            run.until(lambda: run.has("checkpoints/000005"))
            hold(first, second)
            third = nodes.add()
            assert nodes.ask(f"drain {third.id}") == {"taken": True}
            time.sleep(8)
            assert not run.has("stop-group-*")
            assert nodes.ask(f"drain {second.id}") == {"taken": True}
            run.until(lambda: run.has("stop-group-*"))
            let_go(first)
            let_go(second)
            (step,) = run.says(r"note: 1 of 2 training processes can be placed; going on with 1 from step (\d+)\n")
            assert int(step) >= 5
            assert run.process.wait() == 0
        finally:
            run.process.kill()
            run.process.wait()
    steps = re.findall(r"^step +(\d+)/60  loss ", said(tmp_path), re.MULTILINE)
    assert len(steps) == len(set(steps))
    assert "died" not in said(tmp_path)
    assert "lost" not in said(tmp_path)
    assert_same_run(tmp_path / "run", undisturbed, LOSS, WEIGHTS)


def hold(*nodes: Node) -> None:
    for node in nodes:
        for process in node.training():
            process.suspend()


def let_go(node: Node) -> None:
    for process in node.training():
        process.resume()
