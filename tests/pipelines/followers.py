"""What the tests of `score --follow` share: starting a follower, on this process's Ray or as a process, and ending it."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import ray
from click.testing import Result

from sarm_ray.config.score import ScoreConfig
from sarm_ray.model.checkpoint import StateNormalizer
from tests.pipelines.crashes import kill
from tests.pipelines.reference import write_model
from tests.pipelines.runs import quick_config, run_here, score_one

EVERY_S = 0.3
OPTIONS = ("--head-mode", "both", "--precision", "fp32", "--num-visualizations", "0")


class Running(NamedTuple):
    """A follower that runs as a process, and the files with what it says."""

    process: subprocess.Popen
    stderr: Path
    stdout: Path

    def lines(self, word: str) -> list[str]:
        """What it has said so far that begins with a word, without it."""
        return said_of(self.stderr.read_text(), word)


def said_of(text: str, word: str) -> list[str]:
    return [line.removeprefix(word).strip() for line in text.splitlines() if line.startswith(f"{word} ")]


def write_models(folder: Path, encoder) -> dict[str, str]:
    """A model with statistics of the state, one without, for which a dataset's own are used, and another one."""
    normalizer = StateNormalizer(np.zeros(6, dtype=np.float32), np.full(6, 2, dtype=np.float32))
    return {
        "own": write_model(folder / "own", encoder, normalizer=normalizer),
        "none": write_model(folder / "none", encoder),
        "other": write_model(folder / "other", encoder, "single_stage"),
    }


def arguments(folder: Path | str, model: str, *more: object) -> list[str]:
    return ["score", str(folder), "--model", model, "--follow", str(EVERY_S), *OPTIONS, *map(str, more)]


def expected(dataset: Path, model: str, folder: Path) -> Path:
    """What `score` itself makes of a complete dataset."""
    config: ScoreConfig = quick_config(
        dataset=str(dataset), model=model, head_mode="both", precision="fp32",
        output=str(folder / f"{dataset.name}.parquet"), cache=str(folder / "features"),
    )  # fmt: skip
    score_one(config)
    return folder / f"{dataset.name}.parquet"


@contextlib.contextmanager
def follower(place: Path, command: list[str], *module: str, env: dict[str, str] | None = None) -> Iterator[Running]:
    """A follower as a process and session of its own, on the session's Ray unless `env` says otherwise.

    Args:
        place: where what it says goes.
        command: its arguments.
        module: to run instead of sarm_ray, and its arguments before the command's.
        env: of the process.
    """
    place.mkdir(exist_ok=True)
    own = Running(None, place / "stderr", place / "stdout")  # type: ignore[arg-type]
    env = env or {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with own.stderr.open("w") as stderr, own.stdout.open("w") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-m", *(module or ("sarm_ray",)), *command],
            stdout=stdout, stderr=stderr, env=env, start_new_session=True,
        )  # fmt: skip
    try:
        yield own._replace(process=process)
    finally:
        kill(process)


def follow_here(command: list[str], ready: Callable[[], object], looks: int = 4, patience_s: float = 200) -> Result:
    """A follower in this process, ended by SIGTERM some looks after a condition has come true and its round has ended."""
    ended = threading.Event()
    places = [Path(command[1]), *(Path(value) for flag, value in itertools.pairwise(command) if flag == "--output")]

    def in_a_round() -> bool:
        """Whether this process holds a lease; others may hold some as well."""
        leases = [lease for place in places for lease in place.rglob("lease.json")]
        with contextlib.suppress(FileNotFoundError, ValueError):  # gone, or being written
            return any(json.loads(lease.read_text())["pid"] == os.getpid() for lease in leases)
        return True

    def end() -> None:
        for _ in range(int(patience_s / 0.05)):
            if ended.is_set() or (ready() and not in_a_round()):
                break
            time.sleep(0.05)
        ended.wait(looks * EVERY_S)
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # should it come too late
    watcher = threading.Thread(target=end)
    watcher.start()
    try:
        return run_here(*command)
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGTERM, before)


def copy_slowly(source: Path, target: Path, pause_s: float = 0.0) -> None:
    """File by file, the metadata first, as a copy or a download comes; what is there already is left, as rsync does."""
    for path in sorted(
        (path for path in source.rglob("*") if path.is_file()), key=lambda p: ("meta" not in p.parts, p)
    ):
        place = target / path.relative_to(source)
        if place.exists() and place.read_bytes() == path.read_bytes():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        time.sleep(pause_s)
