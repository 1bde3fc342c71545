"""The full forward passes of both networks, and their gradients, on LeRobot's batch."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from sarm_ray.model.checkpoint import load_model
from sarm_ray.model.sarm import HEADS

pytestmark = pytest.mark.parity


@pytest.fixture
def batch(fixtures) -> dict[str, np.ndarray]:
    return dict(np.load(fixtures / "expected" / "loss.npz"))


@pytest.fixture
def inputs(batch) -> list[torch.Tensor]:
    return [torch.from_numpy(batch[f"{name}_features"]) for name in ("video", "text", "state")]


@pytest.mark.parametrize("head", HEADS)
def test_stage_logits(tiny_checkpoint, batch, inputs, head):
    with torch.no_grad():
        logits = load_model(tiny_checkpoint).stage_model(*inputs, head, torch.from_numpy(batch["lengths"]))
    np.testing.assert_allclose(logits, batch[f"stage_logits_{head}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("conditioning", ["gt", "pred"])
def test_losses_and_gradient_norm(tiny_checkpoint, batch, inputs, conditioning):
    """LeRobot's loss, over all slots, padded ones too: CE of the stages + MSE of tau, both heads summed."""
    model, lengths = load_model(tiny_checkpoint), torch.from_numpy(batch["lengths"])
    losses = {}
    for head in HEADS:
        target = torch.from_numpy(batch[f"{head}_targets"])
        logits = model.stage_model(*inputs, head, lengths)
        stages = target.floor().long().clamp(0, logits.shape[-1] - 1)
        shown = stages if conditioning == "gt" else logits.argmax(-1)
        tau = model.subtask_model(*inputs, shown, head, lengths)
        losses[f"{head}_stage_loss"] = functional.cross_entropy(logits.flatten(0, 1), stages.flatten())
        losses[f"{head}_subtask_loss"] = functional.mse_loss(tau, target % 1)
    losses["total_loss"] = sum(losses.values())
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(float(batch[f"{conditioning}_{name}"]), rel=0, abs=1e-5), name
    losses["total_loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    assert norm.item() == pytest.approx(float(batch[f"{conditioning}_grad_norm"]), rel=1e-4)


def test_twenty_optimiser_steps(tiny_checkpoint, fixtures, batch, inputs):
    """Forward, backward and clipping, twenty times over, under LeRobot's learning rates."""
    expected = np.load(fixtures / "expected" / "train_step.npz")
    model, lengths = load_model(tiny_checkpoint), torch.from_numpy(batch["lengths"])
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-3)
    total = expected["loss_names"].tolist().index("total_loss")
    for step, rate in enumerate(expected["lr"]):
        optimizer.param_groups[0]["lr"] = float(rate)
        loss = torch.zeros(())
        for head in HEADS:
            target = torch.from_numpy(batch[f"{head}_targets"])
            logits, stages = model.stage_model(*inputs, head, lengths), target.floor().long()
            tau = model.subtask_model(*inputs, stages, head, lengths)
            loss = loss + functional.cross_entropy(logits.flatten(0, 1), stages.flatten())
            loss = loss + functional.mse_loss(tau, target % 1)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        assert loss.item() == pytest.approx(float(expected["loss"][step, total]), rel=0, abs=5e-5)
        assert norm.item() == pytest.approx(float(expected["grad_norm"][step]), rel=1e-4)
    state = model.state_dict()
    after = [name for name in expected.files if name.startswith("after20/")]
    assert len(after) == 5
    for name in after:
        np.testing.assert_allclose(state[name.removeprefix("after20/")], expected[name], rtol=0, atol=5e-6)
