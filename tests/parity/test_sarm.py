"""The full forward pass on LeRobot's batch; test_training.py compares the losses and the gradients."""

import numpy as np
import pytest
import torch

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
        logits = load_model(tiny_checkpoint).stage_model(*inputs, [head], torch.from_numpy(batch["lengths"]))[head]
    np.testing.assert_allclose(logits, batch[f"stage_logits_{head}"], rtol=0, atol=1e-5)
