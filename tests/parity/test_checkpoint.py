"""LeRobot's checkpoints read, and written again as LeRobot writes them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sarm_ray.core.windows import Window
from sarm_ray.data.rows import state_statistics
from sarm_ray.model.checkpoint import load_model, open_checkpoint
from sarm_ray.model.checkpoint_writer import NORMALIZER, save_checkpoint

pytestmark = pytest.mark.parity
NAMES = ["sarm_dual_tiny", "lerobot_train_checkpoint/pretrained_model"]


@pytest.mark.parametrize("name", NAMES)
def test_reading(fixtures, name):
    checkpoint = open_checkpoint(name, str(fixtures / name))
    config = checkpoint.config
    assert (config.annotation_mode, config.n_obs_steps, config.frame_gap, config.hidden_dim) == ("dual", 8, 30, 64)
    assert config.heads == ("sparse", "dense")
    assert (config.shape.num_sparse_stages, config.shape.num_dense_stages) == (3, 5)
    assert config.sparse_subtask_names == ["approach", "push", "retract"]
    assert config.image_key == "observation.images.base"
    assert checkpoint.sidecar is None
    assert checkpoint.window(config.frame_gap) == Window(8, 30, "centered")
    model, stored = load_model(checkpoint), load_file(fixtures / name / "model.safetensors")
    assert sorted(model.state_dict()) == sorted(stored)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


def test_the_three_folders_of_lerobot_train(fixtures, tmp_path):
    inner = fixtures / "lerobot_train_checkpoint" / "pretrained_model"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "000005").symlink_to(inner.parent)
    (tmp_path / "checkpoints" / "last").symlink_to("000005")
    opened = [open_checkpoint("m", str(folder)) for folder in (inner, inner.parent, tmp_path)]
    assert len({checkpoint.weights for checkpoint in opened}) == 1
    assert opened[0].config == opened[1].config == opened[2].config
    for checkpoint in opened:
        load_model(checkpoint)


def test_normalizer(fixtures, dataset):
    """What lerobot-train saved are the training dataset's statistics."""
    normalizer = open_checkpoint("m", str(fixtures / "lerobot_train_checkpoint")).normalizer
    assert normalizer is not None
    mean, std = state_statistics(dataset, "observation.state")
    np.testing.assert_allclose(normalizer.mean, mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(normalizer.std, std, rtol=1e-6, atol=1e-7)
    assert open_checkpoint("m", str(fixtures / "sarm_dual_tiny")).normalizer is None


def test_writing(fixtures, tiny_checkpoint, tmp_path):
    """The same keys in the same order with the same values (but the device it was made on), the same tensors."""
    save_checkpoint(str(tmp_path), tiny_checkpoint.config, load_model(tiny_checkpoint))
    original = json.loads((fixtures / "sarm_dual_tiny" / "config.json").read_text())
    written = json.loads((tmp_path / "config.json").read_text())
    assert list(written) == list(original)
    assert written == {**original, "device": None}
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, fixtures / "sarm_dual_tiny"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in theirs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_writing_the_normalizer(fixtures, tmp_path):
    """Its file under LeRobot's name with LeRobot's values, and the processors' descriptions as LeRobot writes them."""
    inner = fixtures / "lerobot_train_checkpoint" / "pretrained_model"
    checkpoint = open_checkpoint("m", str(inner))
    save_checkpoint(str(tmp_path), checkpoint.config, load_model(checkpoint), normalizer=checkpoint.normalizer)
    theirs, ours = (load_file(folder / NORMALIZER) for folder in (inner, tmp_path))
    assert sorted(ours) == ["observation.state.mean", "observation.state.std"]
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name])
        assert tensor.dtype == torch.float32
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        theirs, ours = (json.loads((folder / name).read_text()) for folder in (inner, tmp_path))
        if name == "policy_preprocessor.json":  # LeRobot's shape of the dense stages is a stale one: 1 for 5
            theirs["steps"][2]["config"]["features"]["dense_stage"]["shape"] = [13, 5]
            theirs["steps"][2]["config"]["features"]["sparse_stage"]["shape"] = [13, 3]
        assert ours == theirs
