"""The loss, the optimiser and the fresh weights of SARM's training (spec/ours.md B).

A batch is a dict of tensors, one row per window:

    vision (B, T, F)  text (B, E)  states (B, T, S)      float, any precision; F = num_cameras * image_dim
    lengths (B,) int64                                   valid slots; the rest is padding, finite but otherwise free
    stage_<head> (B, T) int64  tau_<head> (B, T) float   targets, those of padded slots in range
    weight_<head> (B,) float                             1 where the window has targets of this head, else 0
    force (B,) bool                                      the subtask network is shown the true stages, else its own guess

Shape legend as in sarm.py; H heads.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from sarm_ray.errors import CheckpointError
from sarm_ray.model.checkpoint import Checkpoint, load_model
from sarm_ray.model.sarm import Sarm, SarmShape

SUMS = ("stage_loss", "subtask_loss", "stage_accuracy", "tau_error", "slots")


class LossParts(NamedTuple):
    """What one batch adds to the loss and the metrics of the global batch.

    Args:
        loss: scalar; the loss of the global batch is the sum over its parts.
        sums: (H, 5) float32, detached, over counted slots: cross-entropy, squared error of tau, right stages, absolute
            error of tau, slots; as `SUMS` names them once divided by the slots. Add them up before `mean_metrics`.
    """

    loss: torch.Tensor
    sums: torch.Tensor


def sarm_loss(
    sarm: Sarm,
    batch: Mapping[str, torch.Tensor],
    heads: Sequence[str],
    counts: Mapping[str, float | torch.Tensor],
    stage_loss_weight: float = 1.0,
) -> LossParts:
    """Cross-entropy of the stages plus squared error of tau, heads summed.

    Args:
        sarm: networks of any precision; the loss is float32.
        batch: see above. `loss_mask` (B, T) bool, if there, says which slots are counted, in place of slot < length;
            attention follows `lengths` either way. All true is LeRobot's loss.
        heads: heads to train.
        counts: head -> counted slots of the GLOBAL batch (`count_slots`, summed over workers and accumulation), by which
            the sums are divided. So parts add up to the whole however it was cut; an engine that averages over workers or
            accumulation steps must have its loss multiplied by their number.
        stage_loss_weight: factor of the cross-entropy.

    Returns:
        LossParts. A head of one stage has no cross-entropy, and needs no stage network.
    """
    dtype = sarm.subtask_model.visual_proj.weight.dtype
    inputs = [batch[name].to(dtype) for name in ("vision", "text", "states")]
    # a window that only fills up a batch has no valid slot; some of torch's kernels make NaN of attention over none
    lengths = batch["lengths"].clamp(min=1)
    several = [head for head in heads if sarm.shape.num_stages(head) > 1]
    logits = sarm.stage_model(*inputs, several, lengths) if several else {}
    shown = {head: _shown_stages(batch, head, logits.get(head)) for head in heads}
    taus = sarm.subtask_model(*inputs, shown, lengths)

    loss = torch.zeros((), device=inputs[0].device)
    sums = []
    for head in heads:
        counted_BT = counted_slots(batch, head)
        stage_loss, right_BT = _stage_loss(batch[f"stage_{head}"], logits.get(head))
        error_BT = taus[head].float() - batch[f"tau_{head}"].float()
        per_slot = torch.stack([stage_loss, error_BT.square(), right_BT, error_BT.abs(), torch.ones_like(error_BT)])
        sums_M = torch.where(counted_BT, per_slot, 0.0).flatten(1).sum(1)
        loss = loss + (stage_loss_weight * sums_M[0] + sums_M[1]) / torch.as_tensor(counts[head]).clamp(min=1)
        sums.append(sums_M.detach())
    return LossParts(loss, torch.stack(sums))


def _shown_stages(batch: Mapping[str, torch.Tensor], head: str, logits_BTK: torch.Tensor | None) -> torch.Tensor:
    """Stages that condition tau: (B, T) int64."""
    true_BT = batch[f"stage_{head}"]
    if logits_BTK is None:
        return torch.zeros_like(true_BT)
    return torch.where(batch["force"][:, None], true_BT, logits_BTK.detach().argmax(-1))


def _stage_loss(true_BT: torch.Tensor, logits_BTK: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and whether the most probable stage is right: (B, T) float32 each."""
    if logits_BTK is None:
        shape, device = true_BT.shape, true_BT.device
        return torch.zeros(shape, device=device), torch.ones(shape, device=device)
    loss_BT = functional.cross_entropy(logits_BTK.float().transpose(1, 2), true_BT, reduction="none")
    return loss_BT, (logits_BTK.argmax(-1) == true_BT).float()


def counted_slots(batch: Mapping[str, torch.Tensor], head: str) -> torch.Tensor:
    """Slots that a head's loss counts: (B, T) bool."""
    slots_BT = batch.get("loss_mask")
    if slots_BT is None:
        num_slots = batch["vision"].shape[1]
        slots_BT = torch.arange(num_slots, device=batch["lengths"].device)[None] < batch["lengths"][:, None]
    return slots_BT & (batch[f"weight_{head}"] > 0)[:, None]


def count_slots(batch: Mapping[str, torch.Tensor], heads: Iterable[str]) -> dict[str, torch.Tensor]:
    """How many slots each head's loss counts in this batch: head -> scalar int64."""
    return {head: counted_slots(batch, head).sum() for head in heads}


def mean_metrics(sums_HM: torch.Tensor, heads: Sequence[str]) -> dict[str, float]:
    """Means over slots by LeRobot's names (`sparse_stage_loss`), heads without a slot left out.

    Args:
        sums_HM: `LossParts.sums`, added up over workers and steps.
        heads: as given to the loss.
    """
    metrics: dict[str, float] = {}
    for head, sums in zip(heads, sums_HM.double().tolist(), strict=True):
        if sums[-1] > 0:
            means = zip(SUMS[:-1], sums[:-1], strict=True)
            metrics |= {f"{head}_{name}": total / sums[-1] for name, total in means}
    return metrics


class TrainingModel(nn.Module):
    """The networks and their loss as the one module that an engine (DDP, DeepSpeed) wraps.

    Args:
        sarm: the networks.
        heads: heads to train.
        stage_loss_weight: factor of the cross-entropy.
    """

    def __init__(self, sarm: Sarm, heads: Sequence[str], stage_loss_weight: float = 1.0):
        super().__init__()
        self.sarm, self.heads, self.stage_loss_weight = sarm, tuple(heads), stage_loss_weight

    def forward(self, counts: dict[str, float], **batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`sarm_loss` as a plain tuple (loss, sums), which every engine knows how to look through."""
        return tuple(sarm_loss(self.sarm, batch, self.heads, counts, self.stage_loss_weight))  # type: ignore[return-value]


UNSEEN = {"both": (), "vision": ("state_proj.weight",), "state": ("visual_proj.weight",)}  # by what a model goes by


def leave_out_inputs(sarm: Sarm, inputs: str) -> None:
    """Make networks blind to images or states, for good: the projection of the other input is 0, and is not trained.

    What comes out is a checkpoint as any other, which scores alike here and in LeRobot.

    Args:
        sarm: changed in place.
        inputs: `both` changes nothing, `vision` leaves out states, `state` leaves out images.
    """
    with torch.no_grad():
        for name, parameter in sarm.named_parameters():
            if name.partition(".")[2] in UNSEEN[inputs]:
                parameter.zero_()


def trainable_parameters(sarm: Sarm, heads: Sequence[str], inputs: str = "both") -> dict[str, nn.Parameter]:
    """What a run trains, by LeRobot's names; everything else is frozen, out of reach of weight decay.

    The output layers of other heads are not trained, nor the stage network's for a head of one stage, nor that network at
    all where no head has several; of `leave_out_inputs` neither. The rest gets a gradient in every step, if only zeros.
    """
    several = [head for head in heads if sarm.shape.num_stages(head) > 1]
    trained = {}
    for name, parameter in sarm.named_parameters():
        network, _, place = name.partition(".")
        needed = several if network == "stage_model" else heads
        layer, _, rest = place.partition(".")
        wanted = rest.split(".")[0] in needed if layer == "heads" else bool(needed)
        parameter.requires_grad_(wanted and place not in UNSEEN[inputs])
        if parameter.requires_grad:
            trained[name] = parameter
    return trained


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    lr: float = 5e-5,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-3,
) -> torch.optim.AdamW:
    """LeRobot's preset: AdamW, one group. Gradients are clipped to a norm of 10 before each step."""
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def learning_rate_multiplier(
    step: int, num_steps: int, warmup_steps: int = 500, decay_steps: int = 50_000, floor: float = 0.1
) -> float:
    """LeRobot's preset: linear warm-up, then a cosine down to `floor`, both shortened for a run shorter than the decay.

    The cosine counts from step 0, not from the end of the warm-up (spec/lerobot.md 1.9).

    Args:
        step: finished optimiser steps, 0 for the first.
        num_steps: of the whole run.
    """
    if num_steps < decay_steps:
        warmup_steps, decay_steps = int(warmup_steps * (num_steps / decay_steps)), num_steps
    if step < warmup_steps:
        first = 1 / (warmup_steps + 1)
        return first if step <= 0 else 1 + (first - 1) * (1 - step / warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(step, decay_steps) / decay_steps))
    return floor + (1 - floor) * cosine


def new_model(shape: SarmShape, seed: int) -> Sarm:
    """Networks with fresh float32 weights on the CPU: the same bits for a seed, whatever was drawn before; torch's global
    generators stay as they are.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators too
        return Sarm(shape)


def init_from(checkpoint: Checkpoint, model: Sarm) -> list[str]:
    """Copy a checkpoint's weights into a fresh model, to be fine-tuned.

    Args:
        checkpoint: where the weights are.
        model: changed in place. A stage head with another number of stages keeps its fresh weights.

    Returns:
        Names of the tensors that were not taken.

    Raises:
        CheckpointError: networks that differ in anything else but dropout.
    """
    found, own = load_model(checkpoint).state_dict(), model.state_dict()
    fresh = []
    for name in sorted(own.keys() | found.keys()):
        sizes = [tuple(tensors[name].shape) if name in tensors else "absent" for tensors in (own, found)]
        if sizes[0] == sizes[1]:
            continue
        if not name.startswith("stage_model.heads.") or sizes[0][1:] != sizes[1][1:]:
            raise CheckpointError(
                f"{checkpoint.name}: cannot be fine-tuned: {name} should be {sizes[0]}, is {sizes[1]}"
            )
        fresh.append(name)
    heads = [shape.num_heads for shape in (model.shape, checkpoint.shape)]
    if heads[0] != heads[1]:  # no tensor shows it
        raise CheckpointError(f"{checkpoint.name}: cannot be fine-tuned: num_heads should be {heads[0]}, is {heads[1]}")
    model.load_state_dict({name: own[name] if name in fresh else found[name] for name in own})
    return fresh
