import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from sarm_ray.errors import CheckpointError
from sarm_ray.model.checkpoint import Sidecar, StateNormalizer, load_model, open_checkpoint, sarm_shape
from sarm_ray.model.checkpoint_writer import NORMALIZER, save_checkpoint, save_weights
from tests.model.tiny import random_sarm, tiny_config

CONFIG = tiny_config()
SIDECAR = Sidecar("efficientnet-lite0", "abc", "past", 20.0, ["observation.images.front"])


@pytest.fixture
def saved(tmp_path) -> Path:
    save_checkpoint(str(tmp_path / "model"), CONFIG, random_sarm(CONFIG.shape))
    return tmp_path / "model"


def test_normalizer_is_written_as_lerobot_does_and_read_again(tmp_path):
    normalizer = StateNormalizer(np.arange(3, dtype=np.float32), np.full(3, 2.0, np.float32))
    normalizer.mean.flags.writeable = False
    save_checkpoint(str(tmp_path), CONFIG, random_sarm(CONFIG.shape), normalizer=normalizer)
    assert {name: (a.dtype.name, a.tolist()) for name, a in load_file(tmp_path / NORMALIZER).items()} == {
        "observation.state.mean": ("float32", [0, 1, 2]),
        "observation.state.std": ("float32", [2, 2, 2]),
    }
    found = open_checkpoint("m", str(tmp_path)).normalizer
    assert found is not None
    assert (found.mean.tolist(), found.std.tolist()) == ([0, 1, 2], [2, 2, 2])
    described = json.loads((tmp_path / "policy_preprocessor.json").read_text())
    assert described["steps"][2]["state_file"] == NORMALIZER


def test_a_checkpoint_that_is_replaced_leaves_nothing_behind(saved):
    normalizer = StateNormalizer(np.zeros(3, np.float32), np.ones(3, np.float32))
    save_checkpoint(str(saved), CONFIG, random_sarm(CONFIG.shape), SIDECAR, normalizer)
    assert len(list(saved.iterdir())) == 6
    save_checkpoint(str(saved), CONFIG, random_sarm(CONFIG.shape))
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("broken", ["save_weights", "_write_normalizer", "_lerobot_config"])
def test_an_interrupted_write_leaves_no_checkpoint(saved, monkeypatch, broken):
    def interrupted(*_):
        raise OSError("disk full")

    monkeypatch.setattr(f"sarm_ray.model.checkpoint_writer.{broken}", interrupted)
    normalizer = StateNormalizer(np.zeros(3, np.float32), np.ones(3, np.float32))
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(str(saved), CONFIG, random_sarm(CONFIG.shape), SIDECAR, normalizer)
    with pytest.raises(CheckpointError, match=r"no config\.json in it"):
        open_checkpoint("m", str(saved))


def test_gathered_tensors_are_saved_like_a_module(tmp_path):
    """As they come from a sharded run: bfloat16, slices of one buffer."""
    expected = {name: tensor.bfloat16() for name, tensor in random_sarm(CONFIG.shape).state_dict().items()}
    buffer = torch.cat([tensor.flatten() for tensor in expected.values()])
    sizes = [tensor.numel() for tensor in expected.values()]
    parts = zip(expected.items(), buffer.split(sizes), strict=True)
    save_checkpoint(str(tmp_path), CONFIG, {name: part.view(tensor.shape) for (name, tensor), part in parts})
    found = load_model(open_checkpoint("m", str(tmp_path))).state_dict()
    assert all(torch.equal(tensor, expected[name].float()) for name, tensor in found.items())
    assert {array.dtype for array in load_file(tmp_path / "model.safetensors").values()} == {np.dtype(np.float32)}


def test_an_incomplete_gather_is_refused_before_anything_is_written(saved):
    tensors = random_sarm(CONFIG.shape).state_dict()
    tensors["subtask_model.first_pos"] = tensors["subtask_model.first_pos"][:0]
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(str(saved), CONFIG, tensors, SIDECAR)
    assert str(caught.value).endswith("config.json: subtask_model.first_pos should be (1, 32), is (0, 32)")
    assert open_checkpoint("m", str(saved)).sidecar is None


def test_save_weights_replaces_the_weights_alone(saved):
    save_weights(str(saved), random_sarm(CONFIG.shape, seed=1).state_dict())
    expected = random_sarm(CONFIG.shape, seed=1).state_dict()
    found = load_model(open_checkpoint("m", str(saved))).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_several_cameras_are_in_the_sidecar_alone(tmp_path):
    """config.json stays LeRobot's, which refuses the weights by their shape."""
    cameras = ["observation.images.front", "observation.images.wrist"]
    sidecar = replace(SIDECAR, image_keys=cameras, num_cameras=2)
    model = random_sarm(sarm_shape(CONFIG, sidecar))
    with pytest.raises(CheckpointError, match=r"stage_model\.fusion_backbone\.0\.bias should be \(96,\), is \(128,\)$"):
        save_checkpoint(str(tmp_path), CONFIG, model, SIDECAR)
    save_checkpoint(str(tmp_path), CONFIG, model, sidecar)
    found = open_checkpoint("m", str(tmp_path))
    assert (found.shape.num_cameras, found.cameras) == (2, cameras)
    assert sorted(json.loads((tmp_path / "config.json").read_text())["input_features"]) == sorted(
        [CONFIG.image_key, CONFIG.state_key]
    )
    for name, tensor in load_model(found).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    (tmp_path / "sarm_ray.json").unlink()
    with pytest.raises(CheckpointError, match=r"the weights do not fit config\.json"):
        open_checkpoint("m", str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_cameras": 0}, "num_cameras must be a whole number from 1 up, not 0"),
        ({"num_cameras": "2"}, "num_cameras must be a whole number from 1 up, not '2'"),
        ({"num_cameras": 3}, "num_cameras is 3, but image_keys names 1"),
    ],
)
def test_a_sidecar_that_contradicts_itself(saved, changes, message):
    (saved / "sarm_ray.json").write_text(json.dumps({**asdict(SIDECAR), **changes}))
    with pytest.raises(CheckpointError, match=rf"^{saved}/sarm_ray\.json: {message}$"):
        open_checkpoint("m", str(saved))
