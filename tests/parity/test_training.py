"""LeRobot's losses, gradients, schedule and optimiser steps, by our functions; and its checkpoint, trained further."""

import csv

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_, get_total_norm

from sarm_ray.model.checkpoint import StateNormalizer, load_model, open_checkpoint
from sarm_ray.model.checkpoint_writer import save_checkpoint
from sarm_ray.model.sarm import HEADS
from sarm_ray.model.training import (
    TrainingModel,
    count_slots,
    init_from,
    learning_rate_multiplier,
    make_optimizer,
    mean_metrics,
    new_model,
    sarm_loss,
    trainable_parameters,
)

pytestmark = pytest.mark.parity
LOSSES = [f"{head}_{part}_loss" for head in HEADS for part in ("stage", "subtask")]


@pytest.fixture
def batch(fixtures) -> dict[str, torch.Tensor]:
    """LeRobot's batch, every slot counted, as LeRobot averages."""
    stored = {name: torch.from_numpy(array) for name, array in np.load(fixtures / "expected" / "loss.npz").items()}
    batch = {"vision": stored["video_features"], "text": stored["text_features"], "states": stored["state_features"]}
    batch |= {"lengths": stored["lengths"].long(), "force": torch.ones(6, dtype=torch.bool)}
    batch["loss_mask"] = torch.ones(6, 13, dtype=torch.bool)
    for head, num_stages in zip(HEADS, (3, 5), strict=True):
        target = stored[f"{head}_targets"]
        batch[f"stage_{head}"] = target.floor().long().clamp(0, num_stages - 1)
        batch[f"tau_{head}"] = target % 1
        batch[f"weight_{head}"] = torch.ones(6)
    return batch


@pytest.mark.parametrize("conditioning", ["gt", "pred"])
def test_losses_and_gradient_norm(tiny_checkpoint, fixtures, batch, conditioning):
    expected, model = np.load(fixtures / "expected" / "loss.npz"), load_model(tiny_checkpoint)
    batch["force"][:] = conditioning == "gt"
    loss, sums = sarm_loss(model, batch, HEADS, count_slots(batch, HEADS))
    metrics = mean_metrics(sums, HEADS)
    for name in LOSSES:
        assert metrics[name] == pytest.approx(float(expected[f"{conditioning}_{name}"]), rel=0, abs=1e-5), name
    assert loss.item() == pytest.approx(float(expected[f"{conditioning}_total_loss"]), rel=0, abs=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    norm = get_total_norm([parameter.grad for parameter in model.parameters()])
    assert norm.item() == pytest.approx(float(expected[f"{conditioning}_grad_norm"]), rel=1e-4)


def test_padded_slots_are_what_parts_our_loss_from_lerobots(tiny_checkpoint, batch):
    model = load_model(tiny_checkpoint)
    theirs = sarm_loss(model, batch, HEADS, count_slots(batch, HEADS)).loss
    del batch["loss_mask"]
    ours, sums = sarm_loss(model, batch, HEADS, count_slots(batch, HEADS))
    assert sums[:, -1].tolist() == [67.0, 67.0]
    assert abs(ours.item() - theirs.item()) > 1e-2


def test_twenty_optimiser_steps(tiny_checkpoint, fixtures, batch):
    expected = np.load(fixtures / "expected" / "train_step.npz")
    assert expected["loss_names"].tolist() == [*LOSSES, "total_loss"]
    model = TrainingModel(load_model(tiny_checkpoint), HEADS).eval()
    optimizer = make_optimizer(trainable_parameters(model.sarm, HEADS).values())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_multiplier(step, 5000))
    counts = dict.fromkeys(HEADS, 78.0)
    for step, losses in enumerate(expected["loss"]):
        loss, sums = model(counts, **batch)
        metrics = mean_metrics(sums, HEADS)
        np.testing.assert_allclose([*(metrics[name] for name in LOSSES), loss.item()], losses, rtol=0, atol=5e-5)
        optimizer.zero_grad()
        loss.backward()
        norm = clip_grad_norm_(model.parameters(), 10.0)
        assert norm.item() == pytest.approx(float(expected["grad_norm"][step]), rel=1e-4)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(float(expected["lr"][step]), rel=1e-12)
        optimizer.step()
        schedule.step()
    state = model.sarm.state_dict()
    after = [name for name in expected.files if name.startswith("after20/")]
    assert len(after) == 5
    for name in after:
        np.testing.assert_allclose(state[name.removeprefix("after20/")], expected[name], rtol=0, atol=5e-6)


def test_schedule(fixtures):
    with (fixtures / "expected" / "schedule.csv").open() as stream:
        rows = [(int(row["total_steps"]), int(row["step"]), float(row["multiplier"])) for row in csv.DictReader(stream)]
    assert {total for total, _, _ in rows} == {5000, 50000, 100000}
    for total, step, expected in rows:
        assert learning_rate_multiplier(step, total) == pytest.approx(expected, rel=0, abs=1e-12), (total, step)


def test_a_checkpoint_of_lerobot_train_is_trained_further_saved_and_opened(fixtures, batch, tmp_path):
    theirs = open_checkpoint("lerobot", str(fixtures / "lerobot_train_checkpoint"))
    model = new_model(theirs.config.shape, seed=0)
    assert init_from(theirs, model) == []
    before = load_model(theirs).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    optimizer = make_optimizer(trainable_parameters(model, HEADS).values())
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss, _ = sarm_loss(model.eval(), batch, HEADS, count_slots(batch, HEADS))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    save_checkpoint(str(tmp_path), theirs.config, model, normalizer=theirs.normalizer)
    ours = open_checkpoint("ours", str(tmp_path))
    assert ours.config == theirs.config
    assert isinstance(ours.normalizer, StateNormalizer)
    np.testing.assert_array_equal(ours.normalizer.mean, theirs.normalizer.mean)
    np.testing.assert_array_equal(ours.normalizer.std, theirs.normalizer.std)
    after = load_model(ours).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in model.state_dict().items())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())
