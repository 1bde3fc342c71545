"""Small SARMs with random weights, and the full forward passes that inference is compared with."""

import numpy as np
import torch

from sarm_ray.model.checkpoint import SarmConfig
from sarm_ray.model.sarm import Sarm, SarmShape


def tiny_config(**changes) -> SarmConfig:
    """A dual-head checkpoint of LeRobot's form, 3 and 5 stages, too small to be slow."""
    known = {
        "annotation_mode": "dual",
        "frame_gap": 5,
        "image_dim": 24,
        "text_dim": 12,
        "hidden_dim": 32,
        "num_heads": 4,
        "num_layers": 2,
        "max_state_dim": 8,
        "num_sparse_stages": 3,
        "sparse_subtask_names": ["reach", "push", "retract"],
        "sparse_temporal_proportions": [0.5, 0.25, 0.25],
        "num_dense_stages": 5,
        "dense_subtask_names": ["a", "b", "c", "d", "e"],
        "dense_temporal_proportions": [0.1, 0.2, 0.3, 0.2, 0.2],
        "image_key": "observation.images.front",
    }
    return SarmConfig(**{**known, **changes})


def random_sarm(shape: SarmShape, seed: int = 0) -> Sarm:
    """Eval mode; first_pos is drawn too, and the heads are steep, so that stages and tau vary."""
    torch.manual_seed(seed)
    model = Sarm(shape).eval()
    with torch.no_grad():
        for net in (model.stage_model, model.subtask_model):
            net.first_pos.normal_()
            for head in net.heads.values():
                head.weight *= 8
    return model


def random_inputs(shape: SarmShape, num_windows: int, num_slots: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """vision (B, T, num_cameras * image_dim), text (B, text_dim), state (B, T, max_state_dim)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (
        (num_windows, num_slots, shape.num_cameras * shape.image_dim),
        (num_windows, shape.text_dim),
        (num_windows, num_slots, shape.max_state_dim),
    )
    return tuple(torch.randn(size, generator=generator) for size in sizes)


def full_forward(model: Sarm, vision, text, state, head: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both networks on every slot, as LeRobot runs them: probabilities (B, T, K), stages (B, T), tau (B, T)."""
    with torch.inference_mode():
        logits = model.stage_model(vision, text, state, [head])[head]
        stages = logits.argmax(-1)
        return logits.softmax(-1), stages, model.subtask_model(vision, text, state, {head: stages})[head]


def margins(probabilities: torch.Tensor | np.ndarray) -> torch.Tensor:
    """How far the most probable stage leads: (..., K) -> (...). 1 where there is one stage."""
    values = torch.as_tensor(probabilities)
    if values.shape[-1] == 1:
        return torch.ones(values.shape[:-1])
    best = values.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]
