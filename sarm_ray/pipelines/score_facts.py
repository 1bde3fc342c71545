"""What an output says of itself in its schema metadata: by which model, with which options, of what it was made."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from sarm_ray import __version__
from sarm_ray.config.score import ScoreConfig
from sarm_ray.data.lerobot import Dataset
from sarm_ray.model.checkpoint import Checkpoint, StateNormalizer
from sarm_ray.model.encoder import EncoderInfo
from sarm_ray.pipelines.nodes import Cluster

FINGERPRINT = "dataset_fingerprint"
STATISTICS = "state_stats"


def describe_options(config: ScoreConfig, checkpoint: Checkpoint, encoder: EncoderInfo) -> dict[str, str]:
    """Schema metadata of the output that is the same for every dataset: LeRobot's reward_model_path, then ours."""
    return {
        "reward_model_path": config.model,
        "sarm_ray_version": __version__,
        "model_weights": checkpoint.weights[:16],
        "encoder": encoder.name,
        "head_mode": config.head_mode,
        "stride": str(config.stride),
        "live": str(config.live).lower(),
    }


def describe_inputs(
    config: ScoreConfig, cameras: Sequence[str], checkpoint: Checkpoint, encoder: EncoderInfo, cluster: Cluster
) -> dict[str, str]:
    """More of it: what the model looked at, and how it was computed."""
    return {
        "cameras": json.dumps(list(cameras)),
        "state_key": state_key_of(config, checkpoint),
        "task": config.task or "",
        "precision": precision_of(config, cluster),
        "encoder_weights": encoder.weights[:16],
    }


def state_key_of(config: ScoreConfig, checkpoint: Checkpoint) -> str:
    """The state that is scored with: as asked for, else the checkpoint's."""
    return config.state_key or checkpoint.config.state_key


def precision_of(config: ScoreConfig, cluster: Cluster) -> str:
    """`fp32` or `bf16`: as asked for, else what the hardware has."""
    return config.precision if config.precision != "auto" else ("bf16" if cluster.bf16 else "fp32")


def describe_statistics(normalizer: StateNormalizer, source: str) -> str:
    """What normalised the states, `<source>-<digest>`: a dataset's own statistics change when it grows."""
    return f"{source}-{hashlib.sha256(normalizer.mean.tobytes() + normalizer.std.tobytes()).hexdigest()[:12]}"


def fingerprint(dataset: Dataset, rows: np.ndarray, made_from: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """What an output's rows were made from: layout of its episodes, stamps of their videos and of the data files.

    Args:
        dataset: the dataset.
        rows: (N,) int64, episodes of the output, as positions in the dataset's table.
        made_from: of each camera layout and source, see `fingerprint_sources`.
    """
    stamps = [dataset.files.get(path, "") for path in dataset.data_files.paths]
    digest = hashlib.sha256()
    for layout, source in made_from:
        digest.update(layout[rows].tobytes() + source[rows].tobytes())
    digest.update(json.dumps(stamps).encode())
    return digest.hexdigest()[:16]
