import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sarm_ray.errors import CheckpointError
from sarm_ray.model.sarm import HEADS
from sarm_ray.model.training import count_slots, make_optimizer, new_model, sarm_loss, trainable_parameters
from sarm_ray.model.training_state import adam_moments, read_state, restore_adam, write_state
from tests.model.test_training import SHAPE, make_batch

FACTS = {"step": 3, "seed": 7, "epoch": 1, "order": {"place": [1, 2]}}
WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(())}
FIRST, SECOND = {"a": torch.full((2, 3), 0.5)}, {"a": torch.full((2, 3), 0.25)}


@pytest.fixture
def written(tmp_path) -> Path:
    write_state(str(tmp_path / "state"), WEIGHTS, FIRST, SECOND, FACTS)
    return tmp_path / "state"


def fails(folder: Path, message: str):
    with pytest.raises(CheckpointError) as caught:
        read_state(str(folder))
    assert str(caught.value).startswith(message)


def test_round_trip(written):
    state = read_state(str(written))
    assert state.facts == FACTS
    for found, expected in ((state.weights, WEIGHTS), (state.exp_avg, FIRST), (state.exp_avg_sq, SECOND)):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_files_and_names(written):
    assert sorted(path.name for path in written.iterdir()) == ["state.json", "state.safetensors"]
    assert sorted(load_file(written / "state.safetensors")) == ["exp_avg/a", "exp_avg_sq/a", "weights/a", "weights/b"]
    assert json.loads((written / "state.json").read_text()) == {**FACTS, "format": 1}


def test_everything_is_kept_in_float32_also_slices_of_one_buffer(tmp_path):
    buffer = torch.arange(8.0).bfloat16()
    parts = {"a": buffer[:4], "b": buffer[4:].view(2, 2).t()}
    write_state(str(tmp_path), parts, {}, {}, FACTS)
    found = read_state(str(tmp_path)).weights
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert found["b"].tolist() == [[4, 6], [5, 7]]
    plain = torch.arange(8.0)
    write_state(str(tmp_path), {"a": plain[:4], "b": plain[4:]}, {}, {}, FACTS)
    assert read_state(str(tmp_path)).weights["b"].tolist() == [4, 5, 6, 7]


def train(model, parameters, optimizer, steps: range) -> None:
    """Dropout on, its draws keyed by the step, as a run that can be resumed keys them."""
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        batch = make_batch(seed=step)
        sarm_loss(model.train(), batch, HEADS, count_slots(batch, HEADS)).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 10.0)
        optimizer.step()


def test_a_resumed_run_ends_with_the_bits_of_one_that_went_through(tmp_path):
    straight = new_model(SHAPE, 0)
    parameters = trainable_parameters(straight, HEADS)
    optimizer = make_optimizer(parameters.values(), lr=1e-3)
    train(straight, parameters, optimizer, range(3))
    write_state(str(tmp_path), straight.state_dict(), *adam_moments(optimizer, parameters), FACTS)
    train(straight, parameters, optimizer, range(3, 6))

    resumed, state = new_model(SHAPE, 1), read_state(str(tmp_path))
    resumed.load_state_dict(state.weights)
    parameters = trainable_parameters(resumed, HEADS)
    optimizer = make_optimizer(parameters.values(), lr=1e-3)
    restore_adam(optimizer, parameters, state)
    train(resumed, parameters, optimizer, range(3, 6))
    expected = straight.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.state_dict().items())
    assert all(torch.equal(tensor, state.weights[name]) for name, tensor in read_state(str(tmp_path)).weights.items())


def test_a_state_of_step_0_has_no_moments(tmp_path):
    model = new_model(SHAPE, 0)
    parameters = trainable_parameters(model, HEADS)
    optimizer = make_optimizer(parameters.values())
    moments = adam_moments(optimizer, parameters)
    assert moments == ({}, {})
    write_state(str(tmp_path), model.state_dict(), *moments, {"step": 0, "seed": 0})
    restore_adam(optimizer, parameters, read_state(str(tmp_path)))
    train(model, parameters, optimizer, range(1))


def test_restoring_more_than_was_trained(written):
    parameters = {"b": torch.nn.Parameter(torch.ones(()))}
    with pytest.raises(CheckpointError) as caught:
        restore_adam(make_optimizer(parameters.values()), parameters, read_state(str(written)))
    assert str(caught.value) == "the training state has no moments for b: another part of the model was trained"


@pytest.mark.parametrize("facts", [{"seed": 1}, {"step": 1}, {"step": "1", "seed": 1}])
def test_facts_need_step_and_seed(tmp_path, facts):
    with pytest.raises(CheckpointError, match=r"state.json: (step|seed) must be a whole number"):
        write_state(str(tmp_path / "s"), WEIGHTS, {}, {}, facts)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"c": torch.ones(1)}, {"c": torch.ones(1)}, "c is not the same in all parts: weights absent, exp_avg (1,), "),
        (FIRST, {}, "a is not the same in all parts: weights (2, 3), exp_avg (2, 3), exp_avg_sq absent"),
        ({"a": torch.ones(2)}, SECOND, "a is not the same in all parts: weights (2, 3), exp_avg (2,), "),
    ],
)
def test_moments_without_their_weights_are_refused(tmp_path, first, second, message):
    with pytest.raises(CheckpointError) as caught:
        write_state(str(tmp_path / "s"), WEIGHTS, first, second, FACTS)
    assert str(caught.value).startswith(f"{tmp_path}/s/state.safetensors: {message}")
    assert not (tmp_path / "s").exists()


def test_missing_files(written, tmp_path):
    fails(tmp_path, f"{tmp_path}/state.json: [Errno 2] No such file or directory")
    (written / "state.safetensors").unlink()
    fails(written, f"{written}/state.safetensors: not a readable safetensors file (")


def test_damaged_files(written):
    data = (written / "state.safetensors").read_bytes()
    (written / "state.safetensors").write_bytes(data[: len(data) // 2])
    fails(written, f"{written}/state.safetensors: not a readable safetensors file (")
    save_file({"rng/a": torch.zeros(1)}, written / "state.safetensors")
    fails(written, f"{written}/state.safetensors: unknown tensor rng/a")
    save_file({"exp_avg/a": torch.zeros(1)}, written / "state.safetensors")
    fails(written, f"{written}/state.safetensors: a is not the same in all parts: weights absent")
    (written / "state.json").write_text("[]")
    fails(written, f"{written}/state.json: expected an object, found list")


def test_another_format(written):
    (written / "state.json").write_text(json.dumps({**FACTS, "format": 2}))
    fails(written, f"{written}/state.json: format 2 is not this sarm_ray's, 1")


def test_an_interrupted_write_leaves_no_state(written, monkeypatch):
    def interrupted(*_):
        raise OSError("disk full")

    monkeypatch.setattr("sarm_ray.model.training_state.write_whole", interrupted)
    with pytest.raises(OSError, match="disk full"):
        write_state(str(written), WEIGHTS, {}, {}, FACTS)
    fails(written, f"{written}/state.json: [Errno 2] No such file or directory")
