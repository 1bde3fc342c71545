"""Training processes killed, the command asked to stop, a gradient that is no number: what is kept, and how it goes on."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.pipelines.crashes import kill, said, wait_until
from tests.pipelines.runs import CLIP_TINY, needs_parity, run_here
from tests.pipelines.training.tiny import DATASET, assert_same_run, curve, metrics_of, train_here

pytestmark = needs_parity

STEPS = 60


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train_here(folder, cache, steps=STEPS, save_freq=5)
    return folder


def arguments(folder: Path, cache: Path, *more: object) -> list[str]:
    """What `train_here` runs, as a command line."""
    settings = ["model.hidden_dim=16", "model.num_layers=1", "model.num_heads=2", "optimizer.lr=1e-3", "val_frames=32"]
    command = [
        "train", DATASET, "--output-dir", folder / "run", "--encoder", CLIP_TINY, "--cache", cache,
        "--annotation-mode", "dual", "--steps", STEPS, "--batch-size", 12, "--num-workers", 1,
        "--log-freq", 1, "--eval-freq", 1000, "--save-freq", 5,
        *(f"--set={each}" for each in settings), *more,
    ]  # fmt: skip
    return [str(each) for each in command]


def training_processes(ray_of: psutil.Process) -> list[psutil.Process]:
    """By their titles, below a process that started Ray."""
    found = []
    for child in ray_of.children(recursive=True):
        try:
            if child.name().startswith("ray::RayTrain"):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def steps_logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def start(folder: Path, cache: Path) -> subprocess.Popen:
    """The command as a process and session of its own, with its own Ray."""
    with (folder / "said").open("w") as words:
        return subprocess.Popen(
            [sys.executable, "-m", "sarm_ray", *arguments(folder, cache)],
            stdout=words,
            stderr=words,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        )


def test_killed_then_asked_to_stop_then_resumed(undisturbed, cache, tmp_path):
    """SIGKILL to the training process: the run goes on by itself. SIGTERM to the command: a checkpoint of that step, and
    --resume ends as the undisturbed run did, bit for bit.
    """
    process, run = start(tmp_path, cache), tmp_path / "run"
    try:
        wait_until(lambda: steps_logged(run) >= 7 and (run / "checkpoints/000005").exists(), process)
        (victim,) = training_processes(psutil.Process(process.pid))
        victim.kill()
        wait_until(lambda: "a training process died" in said(tmp_path), process)
        (died,) = re.findall(r"a training process died \(.*\); going on from step (\d+), 1 of 3\n", said(tmp_path))
        assert int(died) >= 5
        assert int(died) % 5 == 0
        wait_until(lambda: f"step {int(died) + 1:>2}/{STEPS}" in said(tmp_path).split("going on from")[1], process)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 130
    finally:
        kill(process)
    words = said(tmp_path)
    (stopped,) = re.findall(rf"\nstopped at step (\d+) of {STEPS}; go on with --resume\n$", words)
    assert "Traceback" not in words
    assert int(died) < int(stopped) < STEPS
    assert (run / "checkpoints/last").resolve().name == f"{int(stopped):06d}"
    assert max(curve(run)) == int(stopped)
    assert not list(run.glob("stop-*"))
    train_here(run, cache, steps=STEPS, save_freq=5, resume=True)
    assert_same_run(run, undisturbed, 0, 0)


def test_a_gradient_that_is_no_number(cache, tmp_path):
    """The step is named, its checkpoint not written, the one before kept."""
    options = ["--set=optimizer.lr=1e30", "--set=optimizer.warmup_steps=0", "--save-freq", "1"]
    result = run_here(*arguments(tmp_path, cache, *options))
    assert result.exit_code == 2, result.output
    *_, last = result.stderr.splitlines()
    (step, norm, kept) = re.fullmatch(
        r"error: the gradient of step (\d+) is (inf|nan); the checkpoint of step (\d+) is kept\. Lower the learning rate "
        r"\(--set optimizer\.lr\) or train in fp32",
        last,
    ).groups()
    assert norm in ("inf", "nan")
    assert int(kept) == int(step) - 1
    assert (tmp_path / "run/checkpoints/last").resolve().name == f"{int(kept):06d}"
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == list(range(1, int(step)))
