"""What the tests of faults share: a run that takes a while on two workers, when to strike, and what must come out."""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.cluster.hosts import HEAD, TestCluster, wait_for
from tests.pipelines.runs import CLIP_TINY, PARITY, SARM_TINY, assert_same_values

DATASET = PARITY / "dataset_v21"
NUM_FRAMES = 2050

# What a worker's process calls itself while it is at work.
AT_WORK = {
    "decoding": "MapBatches(decode_job)",
    "encoding": "MapWorker(MapBatches(FrameEncoder)).submit",
    "scoring": "MapWorker(MapBatches(ChunkScorer)).submit",
    "annotating": "MapWorker(MapBatches(EpisodeAsker)).submit",
    "training": "RayTrainWorker",
}


@dataclass
class Run:
    """A command that was submitted from the user's host.

    Args:
        process: jobs/submit.sh. log: what it said. began: by the monotonic clock.
    """

    process: subprocess.Popen
    log: Path
    began: float

    def end(self) -> tuple[int, str, float]:
        """Its exit code, what it said, and its seconds."""
        code = self.process.wait()
        return code, self.log.read_text(), time.monotonic() - self.began

    def said(self) -> str:
        return self.log.read_text()

    def ended(self) -> str | None:
        """What it said, once it has ended."""
        return None if self.process.poll() is None else f"{self.process.poll()}: {self.said()}"


def start(hosts: TestCluster, name: str, *command: object, num_nodes: int = 3) -> Run:
    log = hosts.folder / f"{name}.said"
    return Run(hosts.submit(log, *command, num_nodes=num_nodes), log, time.monotonic())


def scoring(folder: Path | str, *datasets: Path | str, cache: Path | str | None = None) -> list[str]:
    """Both heads of the tiny checkpoint over six episodes, 2,050 frames in 12 chunks, or over other datasets."""
    return [
        "score", *map(str, datasets or (DATASET,)), "--model", SARM_TINY, "--encoder", CLIP_TINY, "--head-mode", "both",
        "--output", f"{folder}/{'out' if len(datasets) > 1 else 'out.parquet'}",
        "--cache", str(cache or f"{folder}/features"), "--num-visualizations", "0",
    ]  # fmt: skip


def at_work(hosts: TestCluster, work: str, workers: tuple[int, ...] = (2, 3)) -> Callable[[], int | None]:
    """The first worker host that does some work now, as a condition to wait for."""
    return lambda: next((number for number in workers if AT_WORK[work] in hosts.titles(number)), None)


def strike(hosts: TestCluster, run: Run, work: str) -> int:
    """SIGKILL the host that is at some work, and bring another one up in its place; its number."""
    victim = wait_for(at_work(hosts, work), run.ended, what=work)
    hosts.kill(victim)
    return victim


def driver_of(hosts: TestCluster) -> psutil.Process | None:
    """The process of the command itself, which the job server has started on the head."""
    for process in hosts.processes(HEAD):
        with contextlib.suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            if len(words) > 1 and words[1].endswith("bin/sarm-ray"):
                return process
    return None


def kill_driver(hosts: TestCluster) -> bool:
    """SIGKILL it; whether there was one."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if driver := driver_of(hosts):
            driver.kill()
            return True
    return False


def assert_scored(folder: Path, undisturbed: Path) -> dict:
    """Every row once, every value to the last bit; what the run says of itself."""
    assert_same_values(folder / "out.parquet", undisturbed)
    assert sorted(path.name for path in (folder / "out.parquet.run").iterdir()) == ["config.yaml", "summary.json"]
    return json.loads((folder / "out.parquet.run/summary.json").read_text())
