"""What the crash tests share: a small run, ways to start and to kill it, and what must be there after it was taken up."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
from click.testing import CliRunner, Result

from sarm_ray.cli import main
from sarm_ray.config.score import ScoreConfig
from sarm_ray.core.episodes import frames_of
from sarm_ray.errors import OutputExistsError
from tests.pipelines.runs import (
    CLIP_TINY,
    PARITY,
    SARM_TINY,
    assert_same_values,
    files_below,
    quick_config,
    score_one,
)

NUM_FRAMES = 990
CHUNKS = {(0, 0): 256, (0, 256): 44, (1, 0): 256, (1, 256): 74, (2, 0): 256, (2, 256): 104}
VIDEO_1 = PARITY / "dataset_v21/videos/chunk-000/observation.images.base/episode_000001.mp4"


class Undisturbed(NamedTuple):
    """The run that others are compared with: its output, and the wall time of the console command."""

    output: Path
    seconds: float


def config_in(folder: Path, **options) -> ScoreConfig:
    """Both heads of the tiny checkpoint over three episodes, 990 frames in 6 chunks; everything lies in the folder."""
    return quick_config(
        dataset=str(PARITY / "dataset_v21"),
        model=SARM_TINY,
        encoder=CLIP_TINY,
        head_mode="both",
        episodes="0:3",
        output=str(folder / "out.parquet"),
        cache=str(folder / "features"),
        **options,
    )


def with_features(folder: Path, undisturbed: Undisturbed) -> None:
    """Give a run its features, where encoding them is not what is tested."""
    shutil.copytree(undisturbed.output.parent / "features", folder / "features")


def arguments(folder: Path) -> list[str]:
    """The same for the command line."""
    return [
        "score", str(PARITY / "dataset_v21"), "--model", SARM_TINY, "--encoder", CLIP_TINY, "--head-mode", "both",
        "--episodes", "0:3", "--output", str(folder / "out.parquet"), "--cache", str(folder / "features"),
        "--num-visualizations", "0",
    ]  # fmt: skip


def command_here(folder: Path, *more: str) -> Result:
    """The command in this process, on the session's Ray."""
    return CliRunner().invoke(main, [*arguments(folder), *more])


@contextlib.contextmanager
def started(folder: Path, *module: str, own_ray: bool = False) -> Iterator[subprocess.Popen]:
    """The command as a process and session of its own, on the session's Ray or one that it starts; `said` has what it says.

    Args:
        folder: of the run.
        module: to run instead of sarm_ray, and its arguments before the command's.
        own_ray: whether the command starts its own Ray.
    """
    env = dict(os.environ) if own_ray else {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-m", *(module or ("sarm_ray",)), *arguments(folder)]
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=env, start_new_session=True)
    try:
        yield process
    finally:
        kill(process)


def said(folder: Path) -> str:
    return (folder / "said").read_text()


def wait_until(ready: Callable[[], object], process: subprocess.Popen | None = None, patience_s: float = 300) -> None:
    """Poll a condition, which must come true before the process ends.

    Patience is counted in naps, not by the clock: a virtual machine may stand still for minutes, and all in it.
    """
    for _ in range(int(patience_s / 0.02)):
        if ready():
            return
        assert process is None or process.poll() is None, "the run ended too early"
        time.sleep(0.02)
    raise AssertionError("it never came true")


def kill(process: subprocess.Popen) -> None:
    """SIGKILL a run's driver, if it lives, and wait for its workers, which must follow it by themselves.

    Ray's agents, which write nothing of ours, take their time to notice; what is left of them is ended by id.
    """
    own = members_of(process.pid)
    process.kill()  # nothing where it has been waited for: its number may be another's by now
    process.wait()
    workers = [each for each in own if "Agent" not in _name(each)]
    wait_until(lambda: not psutil.wait_procs(workers, timeout=0)[1], patience_s=120)
    for agent in own:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent.kill()
    wait_until(lambda: not busy_workers())


def busy_workers(own: bool = False) -> list[str]:
    """Workers of the session's Ray that run one of the chains, by their titles: for this process, or for others."""
    children = psutil.Process().children(recursive=True)
    chosen = [child for child in children if own is (_job(child) in (None, *_own_jobs()))]
    return [name for name in map(_name, chosen) if name.startswith("ray::Map")]


def _own_jobs() -> tuple[str, str]:
    """This process's job in Ray, and what a worker is started with that belongs to none yet."""
    return ray.get_runtime_context().get_job_id(), "f" * 8


def _job(worker: psutil.Process) -> str | None:
    """The job that Ray started a worker for."""
    try:
        return worker.environ().get("RAY_JOB_ID")
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def members_of(session: int) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(process.pid) == session:
                members.append(process)
    return members


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def parts_below(folder: Path) -> list[Path]:
    """Finished parquet files."""
    return sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith(".tmp-"))


def temporaries_below(folder: Path) -> list[str]:
    """What the temporary files would have been called."""
    return sorted(path.name.split("-", 4)[-1] for path in folder.rglob(".tmp-*"))


def chunks_in(folder: Path) -> dict[tuple[int, int], int]:
    """Chunks in the feature store or the parts of a run: episode and start -> number of frames. None is there twice."""
    rows: list[dict] = []
    for path in parts_below(folder):
        rows += pq.read_table(path, columns=["episode_index", "start", "frames"]).to_pylist()
    chunks = {(row["episode_index"], row["start"]): len(frames_of(row["frames"], 0)) for row in rows}
    assert len(chunks) == len(rows)
    return chunks


def encoded_in(folder: Path) -> dict[tuple[int, int], int]:
    return chunks_in(folder / "features")


def scored_in(folder: Path) -> dict[tuple[int, int], int]:
    """Of a run that has not ended."""
    return chunks_in(next(iter(folder.glob("out.parquet.run/parts-*")), folder / "nothing"))


def take_up(folder: Path, undisturbed: Undisturbed) -> None:
    """Run again what was cut off: exactly what is missing is done, and nothing shows."""
    encoded, scored = encoded_in(folder), scored_in(folder)
    if (folder / "out.parquet").exists() and not scored:
        with pytest.raises(
            OutputExistsError, match=r"exists; replace it with --overwrite, or choose another --output$"
        ):
            score_one(config_in(folder))
    else:
        report = score_one(config_in(folder))
        assert (report.num_cached, report.num_decoded) == (sum(encoded.values()), NUM_FRAMES - sum(encoded.values()))
        assert report.num_scored == NUM_FRAMES - sum(scored.values())
        assert report.failures == []
        assert_tidy(folder)
    assert_same_values(folder / "out.parquet", undisturbed.output)


def assert_tidy(folder: Path, *more: str) -> None:
    """Nothing is below the folder but the features, the output, and what a finished run leaves beside it.

    Args:
        folder: of the run.
        more: files that are expected in the run folder besides.
    """
    assert encoded_in(folder) == CHUNKS
    store = next(folder.glob("features/*/*/*"))
    kept = ["key.json", *(path.name for path in parts_below(store))]
    assert files_below(store) == sorted(kept)
    outside = [name for name in files_below(folder) if name != "said" and not (folder / name).is_relative_to(store)]
    run = [f"out.parquet.run/{name}" for name in sorted(["config.yaml", "summary.json", *more])]
    assert outside == ["out.parquet", *run]
    assert [path for path in folder.glob("out.parquet.run/*") if path.is_dir()] == []


def nan_frames(output: Path, episode: int, head: str = "sparse") -> np.ndarray:
    """Frames of an episode without progress."""
    table = pq.read_table(output)
    own = table["episode_index"].to_numpy() == episode
    return np.flatnonzero(np.isnan(table[f"progress_{head}"].to_numpy()[own]))
