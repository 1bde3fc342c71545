import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from sarm_ray.errors import CheckpointError
from sarm_ray.model.checkpoint import Sidecar, StateNormalizer, load_model, open_checkpoint
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
