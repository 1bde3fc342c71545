"""A few episodes of a real robot: what training learns in a minute is better than what needs no training."""

import json

import pytest

from tests.pipelines.runs import SHARED, needs_real, read_progress, sarm_ray

G1 = str(SHARED / "real/g1_bottle")
EPISODES = "0:8"
SMALL = ("model.hidden_dim=128", "model.num_layers=2", "model.num_heads=4", "optimizer.lr=5e-4")


@needs_real
@pytest.mark.real
@pytest.mark.slow
def test_held_out_progress_of_a_real_unitree_g1(tmp_path):
    """Below the best constant's and a single-frame linear probe's error, also with the future cut; then scored."""
    store, run = tmp_path / "features", tmp_path / "run"
    trained = sarm_ray(
        "train", G1, "--output-dir", run, "--encoder", "efficientnet-lite0", "--cache", store, "--episodes", EPISODES,
        "--steps", "120", "--batch-size", "64", "--num-workers", "2", "--deepspeed-stage", "1", "--eval-freq", "60",
        *(word for setting in SMALL for word in ("--set", setting)),
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    summary = json.loads((run / "summary.json").read_text())
    baselines, validation = summary["baselines"]["sparse"], summary["validation"]
    assert (summary["num_episodes"], summary["num_held_out"], summary["num_frames"]) == (7, 1, 2356)
    assert 0.07 < baselines["best_constant_mse"] < 0.09
    assert baselines["linear_probe_mse"] < baselines["best_constant_mse"]
    for view in ("offline", "live"):
        assert validation[f"{view}_sparse_progress_mse"] < 0.5 * baselines["linear_probe_mse"]
    assert f"{run}/checkpoints/last/pretrained_model\n  120 steps on 2,356 frames of 7 episodes in " in trained.stdout
    scored = sarm_ray(
        "score", G1, "--model", run, "--cache", store, "--episodes", EPISODES, "--output", tmp_path / "p.parquet",
        "--num-visualizations", "0",
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    assert "  2,707 frames: 0 decoded, 2,707 from the store, 2,707 scored, 0 chunks failed" in scored.stdout
    progress = read_progress(tmp_path / "p.parquet")
    last = [progress["progress_sparse"][progress["episode_index"] == episode][-1] for episode in range(8)]
    first = [progress["progress_sparse"][progress["episode_index"] == episode][0] for episode in range(8)]
    assert min(last) > 0.8
    assert max(first) < 0.2
