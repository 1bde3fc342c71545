"""What a training run needs to go on, whatever its DeepSpeed stage and number of workers were.

state.safetensors   weights/<name>, exp_avg/<name>, exp_avg_sq/<name>: float32, by LeRobot's tensor names
state.json          step, seed and whatever else the run notes; written last, so that a state is there or is not

One folder per step: a state that is written over an older one leaves none, should it be interrupted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sarm_ray.errors import CheckpointError
from sarm_ray.model.checkpoint import read_object
from sarm_ray.model.checkpoint_writer import write_tensors, write_whole

TENSORS, FACTS = "state.safetensors", "state.json"
GROUPS = ("weights", "exp_avg", "exp_avg_sq")
FORMAT = 1


@dataclass(frozen=True)
class TrainingState:
    """Where a run was.

    Args:
        weights: name -> float32 tensor on the CPU, of the whole model.
        exp_avg, exp_avg_sq: Adam's moments, of what is trained.
        facts: step, seed and what else was noted.
    """

    weights: dict[str, torch.Tensor]
    exp_avg: dict[str, torch.Tensor]
    exp_avg_sq: dict[str, torch.Tensor]
    facts: dict[str, Any]


def write_state(
    folder: str,
    weights: Mapping[str, torch.Tensor],
    exp_avg: Mapping[str, torch.Tensor],
    exp_avg_sq: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
) -> None:
    """Write a state into a folder, which is made.

    Args:
        weights, exp_avg, exp_avg_sq: tensors by LeRobot's names, gathered from all shards.
        facts: JSON values; `step` (finished optimiser steps, also Adam's) and `seed` are needed.

    Raises:
        CheckpointError: moments without their weights, or facts without step or seed; nothing is written.
    """
    place = Path(folder)
    state = TrainingState(dict(weights), dict(exp_avg), dict(exp_avg_sq), dict(facts))
    _check(place, state)
    text = json.dumps({**facts, "format": FORMAT}, indent=2)
    place.mkdir(parents=True, exist_ok=True)
    (place / FACTS).unlink(missing_ok=True)
    groups = zip(GROUPS, (weights, exp_avg, exp_avg_sq), strict=True)
    write_tensors(
        place / TENSORS,
        {f"{group}/{name}": tensor for group, tensors in groups for name, tensor in tensors.items()},
    )
    write_whole(place / FACTS, text)


def read_state(folder: str) -> TrainingState:
    """Read what `write_state` wrote.

    Raises:
        CheckpointError: naming the file that is missing, unreadable or incomplete.
    """
    place = Path(folder)
    facts = read_facts(folder)
    try:
        tensors = load_file(place / TENSORS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{place / TENSORS}: not a readable safetensors file ({error})") from error
    groups: dict[str, dict[str, torch.Tensor]] = {group: {} for group in GROUPS}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        if group not in groups:
            raise CheckpointError(f"{place / TENSORS}: unknown tensor {key}")
        groups[group][name] = tensor
    state = TrainingState(**groups, facts=facts)
    _check(place, state)
    return state


def read_facts(folder: str) -> dict[str, Any]:
    """The facts of a state alone, without its tensors.

    Raises:
        CheckpointError: they are missing, unreadable or of another format.
    """
    path = Path(folder) / FACTS
    facts = read_object(path)
    version = facts.pop("format", None)
    if version != FORMAT:
        raise CheckpointError(f"{path}: format {version!r} is not this sarm_ray's, {FORMAT}")
    return facts


def _check(place: Path, state: TrainingState) -> None:
    """A state must be able to go on."""
    for key in ("step", "seed"):
        if not isinstance(state.facts.get(key), int):
            raise CheckpointError(f"{place / FACTS}: {key} must be a whole number, not {state.facts.get(key)!r}")
    for name in sorted(state.exp_avg.keys() | state.exp_avg_sq.keys()):
        sizes = {
            group: tuple(tensors[name].shape) if name in tensors else "absent"
            for group, tensors in zip(GROUPS, (state.weights, state.exp_avg, state.exp_avg_sq), strict=True)
        }
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{group} {size}" for group, size in sizes.items())
            raise CheckpointError(f"{place / TENSORS}: {name} is not the same in all parts: {listed}")


def adam_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """exp_avg and exp_avg_sq of an unsharded AdamW by the parameters' names; none before its first step."""
    known = {name: optimizer.state[parameter] for name, parameter in parameters.items() if optimizer.state[parameter]}
    first, second = ({name: each[moment] for name, each in known.items()} for moment in GROUPS[1:])
    return first, second


def restore_adam(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], state: TrainingState
) -> None:
    """Give an unsharded AdamW the moments and the step of a state.

    Raises:
        CheckpointError: the state has no moments for a parameter, though it is past step 0.
    """
    step = state.facts["step"]
    for name, parameter in parameters.items():
        if step and name not in state.exp_avg:
            raise CheckpointError(
                f"the training state has no moments for {name}: another part of the model was trained"
            )
        if step:
            moments = {"exp_avg": state.exp_avg[name], "exp_avg_sq": state.exp_avg_sq[name]}
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                **{key: tensor.to(parameter, copy=True) for key, tensor in moments.items()},
            }
