"""The driver is killed in the middle: the rerun does what is missing, and nothing shows in the output."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from sarm_ray.core.episodes import frames_of
from tests.pipelines.runs import (
    CLIP_TINY,
    PARITY,
    SARM_TINY,
    assert_same_values,
    files_below,
    needs_parity,
    read_summary,
    sarm_ray,
)

pytestmark = needs_parity


def command(output: Path, cache: Path) -> list[object]:
    return [
        "score", PARITY / "dataset_v21", "--model", SARM_TINY, "--encoder", CLIP_TINY, "--head-mode", "both",
        "--output", output, "--cache", cache,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    result = sarm_ray(*command(folder / "out.parquet", folder / "features"))
    assert result.returncode == 0, result.stderr
    return folder / "out.parquet"


def stored_features(cache: Path) -> int:
    tables = [pq.read_table(part, columns=["frames"]) for part in finished_parts(cache)]
    return sum(len(frames_of(bitmap, 0)) for table in tables for bitmap in table["frames"].to_pylist())


def finished_parts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.parquet") if not path.name.startswith(".tmp-")] if folder.exists() else []


def kill_when(ready: Callable[[], bool], arguments: list[object]) -> None:
    """Run the command and SIGKILL its driver as soon as `ready`; the workers must follow it by themselves.

    Ray's agents, which write nothing of ours, take their time to notice; what is left of them is ended by id.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "sarm_ray", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    agents = [child for child in children if "Agent" in child.name()]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(set(children) - set(agents), timeout=60)
    assert alive == []
    for agent in agents:
        if agent.is_running():
            agent.kill()


def test_killed_while_encoding(undisturbed, tmp_path):
    output, cache = tmp_path / "out.parquet", tmp_path / "features"
    kill_when(lambda: len(finished_parts(cache)) >= 3, command(output, cache))
    assert not output.exists()
    kept = stored_features(cache)
    assert 0 < kept < 2050
    result = sarm_ray(*command(output, cache))
    assert result.returncode == 0, result.stderr
    summary = read_summary(output)
    assert (summary["num_decoded"], summary["num_cached"]) == (2050 - kept, kept)
    assert stored_features(cache) == 2050
    assert_same_values(output, undisturbed)


def test_killed_while_scoring(undisturbed, tmp_path):
    output, cache = tmp_path / "out.parquet", tmp_path / "features"
    run = tmp_path / "out.parquet.run"
    kill_when(lambda: len(finished_parts(run)) >= 2, command(output, cache))
    kept = sum(len(frames_of(b, 0)) for p in finished_parts(run) for b in pq.read_table(p)["frames"].to_pylist())
    assert 0 < kept <= 2050
    result = sarm_ray(*command(output, cache))
    assert result.returncode == 0, result.stderr
    summary = read_summary(output)
    assert (summary["num_decoded"], summary["num_scored"]) == (0, 2050 - kept)
    assert_same_values(output, undisturbed)
    assert files_below(run) == ["config.yaml", "summary.json"]


def test_interrupted_by_the_user(tmp_path):
    output, cache = tmp_path / "out.parquet", tmp_path / "features"
    process = subprocess.Popen(
        [sys.executable, "-m", "sarm_ray", *map(str, command(output, cache))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not finished_parts(cache):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted; finished chunks are kept, run the same command again to go on" in said
    assert "Traceback" not in said
    assert stored_features(cache) > 0
