"""Training runs that take seconds: a tiny model on LeRobot's dataset, whose frames are encoded once per session."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from sarm_ray.config.train import ModelOptions, OptimizerOptions, TrainConfig
from sarm_ray.model.training_state import read_state
from sarm_ray.pipelines.train import train
from sarm_ray.pipelines.training.report import TrainReport
from tests.pipelines.runs import CLIP_TINY, PARITY

DATASET = str(PARITY / "dataset_v3")


def tiny_config(folder: Path, cache: Path, **options) -> TrainConfig:
    """Dual, 12 samples a step, every step logged; `model` and `optimizer` are changes of the tiny ones."""
    values = {
        "dataset": DATASET,
        "output_dir": str(folder),
        "encoder": CLIP_TINY,
        "cache": str(cache),
        "annotation_mode": "dual",
        "steps": 4,
        "batch_size": 12,
        "num_workers": 1,
        "log_freq": 1,
        "eval_freq": 1000,
        "save_freq": 1000,
        "val_frames": 32,
        **options,
    }
    model = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, **values.pop("model", {})}
    optimizer = {"lr": 1e-3, **values.pop("optimizer", {})}
    return TrainConfig(**values, model=ModelOptions(**model), optimizer=OptimizerOptions(**optimizer))


def train_here(folder: Path, cache: Path, **options) -> TrainReport:
    """Train on the session's Ray, saying nothing."""
    return train(tiny_config(folder, cache, **options), quiet=True)


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curve(folder: Path, name: str = "loss") -> dict[int, float]:
    """Step -> value; no step is there twice."""
    pairs = [(line["step"], line[name]) for line in metrics_of(folder) if "validation" not in line]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def weights_of(folder: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    """Of the exported model."""
    return load_file(folder / f"checkpoints/{checkpoint}/pretrained_model/model.safetensors")


def state_of(folder: Path, checkpoint: str = "last"):
    return read_state(str(folder / f"checkpoints/{checkpoint}/training_state"))


def assert_same_run(folder: Path, other: Path, loss: float, weights: float) -> None:
    """Losses and gradient norms of each step, and the exported weights, within tolerances; 0 is bit for bit."""
    for name in ("loss", "grad_norm"):
        ours, theirs = curve(folder, name), curve(other, name)
        assert list(ours) == list(theirs)
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=loss, atol=0, err_msg=name)
    ours, theirs = weights_of(folder), weights_of(other)
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor.numpy(), theirs[name].numpy(), rtol=0, atol=weights, err_msg=name)
