"""What the pipeline tests share: the fixtures' places, running the command as a user does, comparing outputs."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from sarm_ray.cli import main
from sarm_ray.config.score import ScoreConfig
from sarm_ray.pipelines.score import score
from sarm_ray.pipelines.score_report import DatasetReport

# a config without pictures, which cost seconds and have a test of their own
quick_config = functools.partial(ScoreConfig, num_visualizations=0)

SHARED = Path(__file__).parents[2].parent / "shared"
PARITY = SHARED / "lerobot_parity"
EXPECTED = PARITY / "expected"
CLIP_TINY = str(PARITY / "clip_tiny")
SARM_TINY = str(PARITY / "sarm_dual_tiny")
BASE = "observation.images.base"

needs_parity = pytest.mark.skipif(not PARITY.exists(), reason=f"needs LeRobot's outputs in {PARITY}")
needs_real = pytest.mark.skipif(not (SHARED / "real").exists(), reason=f"needs robot episodes in {SHARED / 'real'}")


def sarm_ray(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run the console command to its end."""
    command = [sys.executable, "-m", "sarm_ray", *map(str, arguments)]
    if "score" in arguments[:1] and "--num-visualizations" not in arguments:
        command += ["--num-visualizations", "0"]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def run_here(*arguments: object) -> Result:
    """The console command in this process, on the session's Ray."""
    return CliRunner().invoke(main, list(map(str, arguments)))


def score_one(config: ScoreConfig) -> DatasetReport:
    """Score one dataset on the session's Ray, saying nothing."""
    (report,) = score(config, quiet=True).datasets
    return report


def read_progress(path: str | Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


def read_summary(output: str | Path) -> dict:
    return json.loads(Path(f"{output}.run/summary.json").read_text())


def assert_same_values(path: str | Path, other: str | Path) -> None:
    """Same rows, same order, same bits."""
    ours, theirs = read_progress(path), read_progress(other)
    assert list(ours) == list(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
