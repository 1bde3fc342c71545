"""The driver holds metadata, never frames: its memory does not grow with the dataset."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.datasets import CAMERA, write_dataset
from tests.pipelines.runs import CLIP_TINY, SARM_TINY, needs_parity, read_progress, read_summary, sarm_ray

EPISODE_FRAMES = 4
ALLOWED_GROWTH_BYTES = 20e6


def score_episodes(folder: Path, num_episodes: int) -> int:
    """Score so many short episodes with the console command: the driver's peak memory in bytes."""
    root = write_dataset(
        folder / "data", "v3.0", [EPISODE_FRAMES] * num_episodes, size=(48, 48), state_dim=14,
        episodes_per_video=100, episodes_per_data_file=100, episodes_per_metadata_file=100,
    )  # fmt: skip
    output = folder / "out.parquet"
    result = sarm_ray(
        "score", root, "--model", SARM_TINY, "--encoder", CLIP_TINY, "--image-key", CAMERA, "--head-mode", "both",
        "--output", output, "--cache", folder / "features",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(read_progress(output)["index"]) == num_episodes * EPISODE_FRAMES
    return read_summary(output)["peak_rss_bytes"]


@needs_parity
@pytest.mark.slow
def test_ten_times_the_episodes_in_the_same_memory(tmp_path):
    few = score_episodes(tmp_path / "few", 200)
    many = score_episodes(tmp_path / "many", 2000)
    assert many <= few + ALLOWED_GROWTH_BYTES


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak begins with that of the process before")
def test_the_peak_is_not_that_of_the_process_before():
    """Without this a large pytest would hide what the driver takes."""
    own = "from sarm_ray.pipelines.runtime import peak_rss_bytes; print(peak_rss_bytes())"
    before = f"import subprocess, sys; b'x' * 10**9; subprocess.run([sys.executable, '-c', {own!r}])"
    result = subprocess.run([sys.executable, "-c", before], capture_output=True, text=True, check=True)
    assert 10e6 < int(result.stdout) < 900e6
