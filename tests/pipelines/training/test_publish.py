"""`train --push-to-hub`: what arrives in the repository, against a Hub on this machine."""

import json
from pathlib import Path

import ray

from tests.datasets import CAMERA, write_dataset
from tests.hub import hub_environment, serve_hub
from tests.pipelines.runs import CLIP_TINY, needs_parity, sarm_ray

WRIST = "observation.images.wrist"


@needs_parity
def test_the_checkpoint_and_its_card(tmp_path):
    root = write_dataset(tmp_path / "toy", "v2.1", (40, 30), cameras=[CAMERA, WRIST])
    (tmp_path / "repository").mkdir()
    command = [
        "train", root, "--output-dir", tmp_path / "run", "--encoder", CLIP_TINY, "--cache", tmp_path / "c",
        "--image-key", CAMERA, "--image-key", WRIST, "--steps", 2, "--batch-size", 8, "--val-fraction", 0,
        *(f"--set=model.{size}" for size in ("hidden_dim=16", "num_layers=1", "num_heads=2", "frame_gap=5")),
        "--push-to-hub", "someone/sarm",
    ]  # fmt: skip
    with serve_hub({"someone/sarm": tmp_path / "repository"}, tokens={"hf_writer": True}) as hub:
        settings = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        environment = hub_environment(hub.url, tmp_path / "hf", **settings)
        refused = sarm_ray(*command, env=environment)
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: someone/sarm: pushing needs a Hugging Face token")
        assert not (tmp_path / "run").exists()
        result = sarm_ray(*command, env={**environment, "HF_TOKEN": "hf_writer"})
    assert result.returncode == 0, result.stderr
    ((repository, branch, message, files),) = hub.commits
    assert (repository, branch, message) == ("someone/sarm", "main", "SARM by sarm-ray")
    card = files.pop("README.md").decode()
    exported = Path(tmp_path / "run/checkpoints/last/pretrained_model")
    assert files == {path.name: path.read_bytes() for path in exported.iterdir()}
    assert json.loads(files["sarm_ray.json"])["num_cameras"] == 2
    assert card.startswith(
        "---\ntags: [robotics, reward-model, sarm]\nlibrary_name: sarm_ray\n---\n\n# SARM reward model\n"
    )
    strange = f"2 cameras, features of {CLIP_TINY} (if that is no copy of openai/clip-vit-base-patch32)"
    assert f"\nFor sarm_ray alone: LeRobot knows nothing of {strange}.\n" in card
    assert f"\n- cameras {CAMERA}, {WRIST}, state observation.state, encoder {CLIP_TINY} (frozen)\n" in card
    assert "\n- centered window, 9 frames 5 apart at 30 fps\n- 2 steps of 8 samples, 2 episodes, 0 held out\n" in card
    assert "\nNo episodes were held out.\n" in card
    assert card.endswith("Score a dataset with `sarm-ray score DATASET --model someone/sarm`.\n")
