"""What `sarm-ray evaluate` does."""

from dataclasses import dataclass
from typing import Literal

from sarm_ray.config.loading import as_tuple, check_cameras, require


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What `sarm-ray evaluate` does. What it shares with `score` has the same name and meaning there.

    Args:
        dataset: local folder, fsspec URL or Hub id of a LeRobotDataset, best one that the model was not trained on.
        model: SARM checkpoint: local folder or Hub id.
        labels: CSV of episode_index and outcome; None is the episode table's column `outcome`, if it has one.
        train_dataset: what the model was trained on; a linear probe of single frames is fitted there, to compare with.
        output: the JSON file; None is evaluation.json in a writable local dataset, else in ./<name>/.
        chunk_size: horizon of the delta sign in frames: the policy's chunk_size.
        head_mode: `sparse`, `dense` or `both`.
        overwrite: replace an output that exists.
    """

    dataset: str
    model: str
    labels: str | None = None
    train_dataset: str | None = None
    output: str | None = None
    chunk_size: int = 50
    head_mode: Literal["sparse", "dense", "both"] = "both"
    episodes: str | None = None
    image_key: str | list[str] | None = None
    state_key: str | None = None
    task: str | None = None
    state_stats: Literal["checkpoint", "dataset"] | None = None
    encoder: str | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    cache: str | None = None
    allow_failures: int = 0
    overwrite: bool = False
    revision: str | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        require(self.chunk_size >= 1, f"chunk_size must be at least 1 frame, not {self.chunk_size}")
        require(self.allow_failures >= 0, f"allow_failures must not be negative, not {self.allow_failures}")
        check_cameras(as_tuple(self.image_key))
