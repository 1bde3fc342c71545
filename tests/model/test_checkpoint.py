import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from sarm_ray.core.windows import Window
from sarm_ray.errors import CheckpointError
from sarm_ray.model.checkpoint import (
    SarmConfig,
    Sidecar,
    StateNormalizer,
    load_model,
    open_checkpoint,
)
from sarm_ray.model.checkpoint_writer import save_checkpoint
from sarm_ray.model.sarm import Sarm
from tests.model.tiny import random_sarm, tiny_config

CONFIG = tiny_config()
SIDECAR = Sidecar("efficientnet-lite0", "abc", "past", 20.0, ["observation.images.front"])
NORMALIZER = "policy_preprocessor_step_2_normalizer_processor.safetensors"
# fmt: off
LEROBOT_KEYS = [
    "type", "input_features", "output_features", "device", "pretrained_path", "pretrained_revision", "push_to_hub",
    "repo_id", "license", "tags", "private", "annotation_mode", "n_obs_steps", "frame_gap", "max_rewind_steps",
    "image_dim", "text_dim", "hidden_dim", "num_heads", "num_layers", "max_state_dim", "drop_n_last_frames",
    "batch_size", "clip_batch_size", "dropout", "stage_loss_weight", "rewind_probability",
    "language_perturbation_probability", "num_sparse_stages", "sparse_subtask_names", "sparse_temporal_proportions",
    "num_dense_stages", "dense_subtask_names", "dense_temporal_proportions", "pretrained_model_path", "image_key",
    "state_key", "normalization_mapping",
]
# fmt: on


@pytest.fixture
def saved(tmp_path) -> Path:
    save_checkpoint(str(tmp_path / "model"), CONFIG, random_sarm(CONFIG.shape))
    return tmp_path / "model"


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def fails(folder: Path, message: str, name: str = "user/sarm"):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(name, str(folder))
    assert str(caught.value) == message


def test_round_trip_keeps_config_and_every_bit_of_the_weights(saved):
    checkpoint = open_checkpoint("user/sarm", str(saved))
    assert checkpoint.config == CONFIG
    assert (checkpoint.name, checkpoint.folder) == ("user/sarm", str(saved))
    assert checkpoint.normalizer is None
    assert checkpoint.sidecar is None
    model, expected = load_model(checkpoint), random_sarm(CONFIG.shape).state_dict()
    assert not model.training
    assert list(model.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_only_lerobots_two_files_are_written_without_a_sidecar(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_config_json_has_lerobots_keys_and_no_others(saved):
    written = json.loads((saved / "config.json").read_text())
    assert list(written) == LEROBOT_KEYS
    assert written["type"] == "sarm"
    assert written["push_to_hub"] is False
    assert written["input_features"] == {
        "observation.images.front": {"type": "VISUAL", "shape": [480, 640, 3]},
        "observation.state": {"type": "STATE", "shape": [8]},
    }
    assert written["output_features"] == {
        "sparse_stage": {"type": "REWARD", "shape": [13, 3]},
        "sparse_progress": {"type": "REWARD", "shape": [13, 1]},
        "dense_stage": {"type": "REWARD", "shape": [13, 5]},
        "dense_progress": {"type": "REWARD", "shape": [13, 1]},
    }


def test_defaults_are_lerobots(tmp_path):
    small = {"hidden_dim": 16, "num_heads": 4, "num_layers": 1}
    save_checkpoint(str(tmp_path), SarmConfig(**small), Sarm(SarmConfig(**small).shape))
    (tmp_path / "config.json").write_text(json.dumps({"type": "sarm", **small}))
    config = open_checkpoint("m", str(tmp_path)).config
    assert config == SarmConfig(**small)
    assert (config.n_obs_steps, config.frame_gap, SarmConfig().hidden_dim, SarmConfig().num_layers) == (8, 30, 768, 8)
    assert config.image_key == "observation.images.top"


def test_single_stage_saves_the_dense_heads_that_lerobot_expects(tmp_path):
    config = tiny_config(
        annotation_mode="single_stage",
        num_sparse_stages=1,
        sparse_subtask_names=["task"],
        sparse_temporal_proportions=[1.0],
        num_dense_stages=None,
        dense_subtask_names=None,
        dense_temporal_proportions=None,
    )
    save_checkpoint(str(tmp_path), config, random_sarm(config.shape))
    sizes = {name: tensor.shape for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert sizes["stage_model.heads.dense.weight"] == (1, 32)
    assert sizes["subtask_model.heads.dense.bias"] == (1,)
    assert list(json.loads((tmp_path / "config.json").read_text())["output_features"]) == [
        "sparse_stage",
        "sparse_progress",
    ]
    checkpoint = open_checkpoint("m", str(tmp_path))
    assert checkpoint.config.heads == ("sparse",)
    assert checkpoint.config.shape.num_dense_stages == 1
    load_model(checkpoint)


@pytest.mark.parametrize("mode", ["dense_only", "dual"])
def test_other_modes_have_both_heads(mode):
    assert tiny_config(annotation_mode=mode).heads == ("sparse", "dense")


def test_breakpoints_cumulate_the_proportions():
    np.testing.assert_allclose(CONFIG.breakpoints("sparse"), [0, 0.5, 0.75, 1], atol=1e-12)
    uniform = tiny_config(dense_temporal_proportions=None).breakpoints("dense")
    np.testing.assert_allclose(uniform, [0, 0.2, 0.4, 0.6, 0.8, 1], atol=1e-12)


@pytest.mark.parametrize("form", ["", "pretrained_model", "checkpoints/000005/pretrained_model"])
def test_folders_of_lerobot_train(saved, tmp_path, form):
    place = tmp_path / "run" / form
    place.parent.mkdir(parents=True, exist_ok=True)
    saved.rename(place)
    if form.startswith("checkpoints"):
        (tmp_path / "run/checkpoints/last").symlink_to("000005")
        assert open_checkpoint("m", str(tmp_path / "run/checkpoints/000005")).config == CONFIG
    assert open_checkpoint("m", str(tmp_path / "run")).config == CONFIG


def test_weights_hash_follows_config_and_weights_but_not_the_place(saved, tmp_path):
    first = open_checkpoint("a", str(saved)).weights
    assert re.fullmatch("[0-9a-f]{64}", first)
    save_checkpoint(str(tmp_path / "copy"), CONFIG, random_sarm(CONFIG.shape))
    save_checkpoint(str(tmp_path / "other_weights"), CONFIG, random_sarm(CONFIG.shape, seed=1))
    save_checkpoint(str(tmp_path / "other_config"), replace(CONFIG, frame_gap=6), random_sarm(CONFIG.shape))
    assert open_checkpoint("b", str(tmp_path / "copy")).weights == first
    others = {open_checkpoint("c", str(tmp_path / name)).weights for name in ("other_weights", "other_config")}
    assert len(others | {first}) == 3


def test_sidecar_round_trips_and_sets_the_window(tmp_path):
    save_checkpoint(str(tmp_path), CONFIG, random_sarm(CONFIG.shape), SIDECAR)
    checkpoint = open_checkpoint("m", str(tmp_path))
    assert checkpoint.sidecar == SIDECAR
    assert checkpoint.window(7) == Window(8, 7, "past")
    assert checkpoint.window(7).readout_slot == 8
    assert json.loads((tmp_path / "config.json").read_text()).keys() == set(LEROBOT_KEYS)


def test_without_a_sidecar_the_window_is_lerobots(saved):
    assert open_checkpoint("m", str(saved)).window(30) == Window(8, 30, "centered")


def test_sidecar_keys_of_the_future_are_passed_over(saved):
    (saved / "sarm_ray.json").write_text(json.dumps({**asdict(SIDECAR), "licence": "none"}))
    assert open_checkpoint("m", str(saved)).sidecar == SIDECAR


def test_normalizer_file_beside_the_weights_is_read(saved):
    mean, std = np.arange(3, dtype=np.float64), np.array([[1.0, 2.0, 3.0]], dtype=np.float32)
    stats = {"observation.state.mean": mean, "observation.state.std": std, "action.mean": mean, "index.count": mean}
    save_file(stats, saved / NORMALIZER)
    normalizer = open_checkpoint("m", str(saved)).normalizer
    assert normalizer is not None
    assert (normalizer.mean.dtype, normalizer.std.shape) == (np.float32, (3,))
    assert normalizer.mean.tolist() == [0, 1, 2]
    assert normalizer.std.tolist() == [1, 2, 3]


def test_normalizer_file_without_the_state_key_is_no_normalizer(saved):
    save_file({"action.mean": np.zeros(3), "action.std": np.ones(3)}, saved / NORMALIZER)
    assert open_checkpoint("m", str(saved)).normalizer is None
    edit(saved / "config.json", state_key="action")
    assert open_checkpoint("m", str(saved)).normalizer is not None


def test_normalizer_scales_pads_and_cuts():
    normalizer = StateNormalizer(np.array([1.0, -2.0], np.float32), np.array([2.0, 0.5], np.float32))
    states = np.array([[3.0, -2.0], [1.0, -1.0]])
    padded = normalizer.apply(states, 4)
    assert padded.dtype == np.float32
    np.testing.assert_allclose(padded, [[1, 0, 0, 0], [0, 2, 0, 0]], atol=1e-7)
    np.testing.assert_allclose(normalizer.apply(states, 1), [[1], [0]], atol=1e-7)
    np.testing.assert_array_equal(states, [[3, -2], [1, -1]])


def test_normalizer_adds_lerobots_eps_to_the_deviation():
    std = np.float32(1e-5)
    scaled = StateNormalizer(np.zeros(1, np.float32), np.array([std])).apply(np.array([[1e-5]], np.float32), 1)
    np.testing.assert_allclose(scaled, [[1e-5 / (1e-5 + 1e-8)]], rtol=1e-6)


def test_dimension_that_was_constant_in_training_is_fed_as_0():
    normalizer = StateNormalizer(np.array([1.0, 5.0], np.float32), np.array([0.0, 1.0], np.float32))
    assert normalizer.apply(np.array([[1.01, 5.0], [-7.0, 6.0]]), 3).tolist() == [[0, 0, 0], [0, 1, 0]]


def test_strange_dimensions_moved_though_constant_or_lie_far_out():
    mean, std = np.zeros(5, np.float32), np.array([0.0, 0.0, 1.0, 1.0, 2.0], np.float32)
    states = np.array([[0.00005, 0.01, 9.9, -10.1, 0.0], [0.0, 0.0, 0.0, 0.0, 19.9]])
    normalizer = StateNormalizer(mean, std)
    assert normalizer.strange_dimensions(states).tolist() == [1, 3]
    assert normalizer.strange_dimensions(states[:, :] * 0).tolist() == []


def test_no_config(tmp_path):
    fails(
        tmp_path,
        "user/sarm: no config.json in it, nor in its pretrained_model or checkpoints/last/pretrained_model",
    )


def test_config_that_is_not_an_object(saved):
    (saved / "config.json").write_text("[1]")
    fails(saved, f"{saved}/config.json: expected an object, found list")
    (saved / "config.json").write_text("{")
    fails(
        saved,
        f"{saved}/config.json: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    )


@pytest.mark.parametrize("kind", ["act", None])
def test_another_type_of_model(saved, kind):
    edit(saved / "config.json", type=kind)
    fails(saved, f"{saved}/config.json: a reward model of type {kind!r}, not 'sarm'")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_obs_steps": 7}, "n_obs_steps must be even and at least 2, not 7"),
        ({"frame_gap": 0}, "frame_gap must be at least 1 frame, not 0"),
        ({"sparse_temporal_proportions": [0.5, 0.5]}, "3 stages need 3 temporal proportions, not 2"),
        ({"num_dense_stages": 4}, "4 stages need 4 temporal proportions, not 5"),
        (
            {"sparse_temporal_proportions": [0.5, -0.5, 1.0]},
            "temporal proportions must be positive numbers, not [0.5, -0.5, 1.0]",
        ),
        ({"num_heads": 5}, "num_heads must divide hidden_dim 32, not be 5"),
        ({"num_heads": 0}, "num_heads must divide hidden_dim 32, not be 0"),
        ({"annotation_mode": "both"}, "unknown annotation_mode 'both'"),
        ({"n_obs_steps": "8"}, "'<' not supported between instances of 'str' and 'int'"),
    ],
)
def test_config_that_contradicts_itself(saved, changes, message):
    edit(saved / "config.json", **changes)
    fails(saved, f"{saved}/config.json: {message}")


def test_weights_missing(saved):
    (saved / "model.safetensors").unlink()
    fails(saved, f"{saved}: No such file or directory: {saved}/model.safetensors")


def test_weights_of_another_shape(saved):
    edit(saved / "config.json", num_dense_stages=4, dense_temporal_proportions=None)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("m", str(saved))
    path = f"{saved}/model.safetensors"
    name = "stage_model.heads.dense.bias"
    assert str(caught.value) == f"{path}: the weights do not fit config.json: {name} should be (4,), is (5,)"


def test_weights_with_tensors_missing(saved):
    arrays = load_file(saved / "model.safetensors")
    del arrays["subtask_model.first_pos"]
    save_file(arrays, saved / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("m", str(saved))
    assert str(caught.value).startswith(
        f"{saved}/model.safetensors: the weights do not fit config.json: subtask_model.first_pos should be (1, "
    )
    assert str(caught.value).endswith("), is absent")


def test_weights_that_are_no_safetensors(saved):
    (saved / "model.safetensors").write_bytes(b"\x80\x04pickled")
    with pytest.raises(CheckpointError) as caught:
        load_model(open_checkpoint("m", str(saved)))
    assert str(caught.value).startswith(f"{saved}/model.safetensors: not a readable safetensors file (")


def test_normalizer_that_is_no_safetensors(saved):
    (saved / NORMALIZER).write_bytes(b"pickle")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("m", str(saved))
    assert str(caught.value).startswith(f"{saved / NORMALIZER}: not a readable safetensors file (")


@pytest.mark.parametrize("version", [2, None, "1"])
def test_sidecar_of_another_format(saved, version):
    (saved / "sarm_ray.json").write_text(json.dumps({**asdict(SIDECAR), "format": version}))
    fails(saved, f"{saved}/sarm_ray.json: format {version!r} is newer than this sarm_ray; upgrade it")


def test_sidecar_that_lacks_its_encoder(saved):
    (saved / "sarm_ray.json").write_text(json.dumps({"format": 1, "encoder_weights": "abc"}))
    fails(saved, f"{saved}/sarm_ray.json: Sidecar.__init__() missing 1 required positional argument: 'encoder'")


def test_sidecar_with_an_unknown_window(saved):
    (saved / "sarm_ray.json").write_text(json.dumps({**asdict(SIDECAR), "window": "future"}))
    fails(saved, f"{saved}/sarm_ray.json: window must be centered or past, not 'future'")


def test_sidecar_records_the_training_data_and_the_metrics(tmp_path):
    sidecar = replace(SIDECAR, task_texts=["push", "Öffne"], data_fingerprint="f00", metrics={"sparse_tau_error": 0.1})
    save_checkpoint(str(tmp_path), CONFIG, random_sarm(CONFIG.shape), sidecar)
    assert open_checkpoint("m", str(tmp_path)).sidecar == sidecar
    assert json.loads((tmp_path / "config.json").read_text()).keys() == set(LEROBOT_KEYS)


def test_sidecar_of_before_they_were_recorded_is_read(saved):
    known = {key: value for key, value in asdict(SIDECAR).items() if key not in ("task_texts", "metrics")}
    (saved / "sarm_ray.json").write_text(json.dumps(known))
    assert open_checkpoint("m", str(saved)).sidecar == SIDECAR
