"""SARM checkpoints, written: files that LeRobot loads, and our sidecar beside them (spec/lerobot.md 1.13).

Every file appears whole or not at all, and config.json, without which nothing is a checkpoint, comes last.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sarm_ray.model.checkpoint import (
    NORMALIZER_EPS,
    SIDECAR,
    SarmConfig,
    Sidecar,
    StateNormalizer,
    check_tensors,
    sarm_shape,
)
from sarm_ray.model.sarm import Sarm

NORMALIZER = "policy_preprocessor_step_2_normalizer_processor.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"


def save_checkpoint(
    folder: str,
    config: SarmConfig,
    weights: Sarm | Mapping[str, torch.Tensor],
    sidecar: Sidecar | None = None,
    normalizer: StateNormalizer | None = None,
) -> None:
    """Write LeRobot's two files, its record of the state's statistics where they are given, and our sidecar if there is one.

    Args:
        folder: is made; a checkpoint that is already there is replaced, and is none until the new one is whole.
        weights: the networks, or their tensors by LeRobot's names, as gathered from a sharded optimiser.

    Raises:
        CheckpointError: tensors that are not the config's networks; nothing is written.
    """
    tensors = weights.state_dict() if isinstance(weights, Sarm) else weights
    place = Path(folder)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_tensors(place / "model.safetensors", sarm_shape(config, sidecar), found)
    place.mkdir(parents=True, exist_ok=True)
    for stale in ("config.json", SIDECAR, PREPROCESSOR, POSTPROCESSOR):
        (place / stale).unlink(missing_ok=True)
    for statistics in place.glob("*normalizer*.safetensors"):
        statistics.unlink()
    save_weights(folder, tensors)
    if normalizer is not None:
        _write_normalizer(place, config, normalizer)
    if sidecar is not None:
        write_whole(place / SIDECAR, json.dumps(asdict(sidecar), indent=2))
    write_whole(place / "config.json", json.dumps(_lerobot_config(config), indent=4))


def save_weights(folder: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write model.safetensors in float32 into a folder that exists.

    Args:
        tensors: by LeRobot's names, of any precision, on any device.
    """
    write_tensors(Path(folder) / "model.safetensors", tensors)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A safetensors file in float32, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.part")
    save_file({name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}, unfinished)
    unfinished.replace(path)


def write_whole(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text)
    unfinished.replace(path)


def _write_normalizer(place: Path, config: SarmConfig, normalizer: StateNormalizer) -> None:
    """The statistics, and the two descriptions of LeRobot's processors that go with them; no reader of SARMs needs those."""
    statistics = {"mean": normalizer.mean, "std": normalizer.std}
    write_tensors(
        place / NORMALIZER,
        {f"{config.state_key}.{name}": torch.tensor(values) for name, values in statistics.items()},
    )
    described = _lerobot_config(config)
    to_cpu = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    normalize = {
        "eps": NORMALIZER_EPS,
        "features": {**described["input_features"], **described["output_features"]},
        "norm_map": described["normalization_mapping"],
    }
    steps = [
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "normalizer_processor", "config": normalize, "state_file": NORMALIZER},
        {"class": "lerobot.rewards.sarm.processor_sarm.SARMEncodingProcessorStep", "config": {}},
        to_cpu,
    ]
    write_whole(place / PREPROCESSOR, json.dumps({"name": "policy_preprocessor", "steps": steps}, indent=2))
    write_whole(place / POSTPROCESSOR, json.dumps({"name": "policy_postprocessor", "steps": [to_cpu]}, indent=2))


def _lerobot_config(config: SarmConfig) -> dict[str, Any]:
    """config.json with exactly the keys LeRobot knows (spec/lerobot.md 1.13)."""
    num_slots = 1 + config.n_obs_steps + config.max_rewind_steps
    outputs: dict[str, Any] = {}
    for head in config.heads:
        outputs[f"{head}_stage"] = {"type": "REWARD", "shape": [num_slots, config.shape.num_stages(head)]}
        outputs[f"{head}_progress"] = {"type": "REWARD", "shape": [num_slots, 1]}
    inherited = dict.fromkeys(("device", "pretrained_path", "pretrained_revision"))
    hub = {"push_to_hub": False, **dict.fromkeys(("repo_id", "license", "tags", "private"))}
    return {
        "type": "sarm",
        "input_features": {
            config.image_key: {"type": "VISUAL", "shape": [480, 640, 3]},
            config.state_key: {"type": "STATE", "shape": [config.max_state_dim]},
        },
        "output_features": outputs,
        **inherited,
        **hub,
        **asdict(config),
        "normalization_mapping": {
            "VISUAL": "IDENTITY",
            "STATE": "MEAN_STD",
            "LANGUAGE": "IDENTITY",
            "REWARD": "IDENTITY",
        },
    }
