"""`visualize --model`: the chosen episodes are scored, then drawn."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sarm_ray.config.loading import load_config
from sarm_ray.config.visualize import VisualizeConfig
from tests.datasets import CAMERA, write_dataset
from tests.pipelines.reference import write_model
from tests.pipelines.runs import run_here


def test_the_chosen_episodes_are_scored_then_drawn_then_drawn_again_without(tmp_path, encoder):
    root = write_dataset(tmp_path / "toy", "v2.1", [40, 30, 50], annotated=True)
    model = write_model(tmp_path / "model", encoder)
    video = sorted((root / "videos").rglob("*.mp4"))[1]
    video.write_bytes(video.read_bytes()[:200])
    out = tmp_path / "out"
    common = ["--output-dir", out, "--cache", tmp_path / "cache", "--visualize-type", "sparse"]
    result = run_here("visualize", root, "--model", model, "--episodes", "0:2", *common)
    assert result.exit_code == 1, result.output  # the second one's video is broken
    assert sorted(path.name for path in out.glob("*.png")) == [
        "sarm_prediction_ep0_sparse.png",
        "sarm_prediction_ep1_sparse.png",
    ]
    progress = out / "scores/sarm_progress.parquet"
    assert "note: 1 chunk was not scored (episode 1, frames 0 to 29: " in result.output
    assert f"all of them: {progress}.run/failed.parquet" in result.output
    table = pq.read_table(progress)
    assert np.unique(table["episode_index"].to_numpy()).tolist() == [0, 1]
    config = load_config(VisualizeConfig, str(out / "visualize.yaml"), {})
    assert (config.model, config.progress, config.episodes) == (None, str(progress), "0,1")
    assert CAMERA in Path(f"{progress}.run/config.yaml").read_text()

    for path in out.glob("*.png"):
        path.unlink()
    again = run_here("visualize", "--config", out / "visualize.yaml", "--episodes", "0")
    assert again.exit_code == 0, again.output
    assert [path.name for path in out.glob("*.png")] == ["sarm_prediction_ep0_sparse.png"]
