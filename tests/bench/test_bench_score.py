"""`sarm-ray bench score` runs on full-size networks; its figures must agree with each other, and none is timed."""

import json
import subprocess
import sys

import pytest


def test_figures_fit_together():
    options = [
        "--frames",
        "64",
        "--precision",
        "bf16",
        "--episode-frames",
        "64",
        "--size",
        "240x320",
        "--codec",
        "h264",
    ]
    command = [sys.executable, "-m", "sarm_ray", "bench", "score", *options, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    bench = json.loads(result.stdout)
    assert (bench["precision"], bench["num_frames"], bench["repeats"]) == ("bf16", 64, 1)
    assert (bench["episode_frames"], bench["size"], bench["codec"]) == (64, [240, 320], "h264")
    assert list(bench["floor_ms"]) == ["decode", "encode", "score"]
    assert all(ms > 0 for ms in bench["floor_ms"].values())
    assert bench["floor_frames_per_cpu_s"] == pytest.approx(1000 / sum(bench["floor_ms"].values()))
    assert bench["floor_ratio"] == pytest.approx(bench["frames_per_cpu_s"] / bench["floor_frames_per_cpu_s"])
    # 64 frames are less work than starting Ray: all processes together take more time than the workers' tasks
    assert bench["frames_per_cpu_s"] < bench["worker_frames_per_cpu_s"]
