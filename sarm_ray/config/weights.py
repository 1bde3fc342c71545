"""What `sarm-ray weights` does."""

from dataclasses import dataclass
from typing import Literal

from sarm_ray.config.loading import require


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """What `sarm-ray weights` does.

    Args:
        dataset: a progress file, or the dataset that it belongs to: local folder, fsspec URL or Hub id.
        chunk_size: horizon in frames: the policy's chunk_size.
        kappa: deltas above it weigh 1, to six decimals; `auto` is the 75th percentile of the deltas.
        head_mode: the head whose progress counts.
        labels: CSV of episode_index and outcome; weights are multiplied by the grade of their episode.
        output: parquet file of deltas and weights; None writes none.
        overwrite: replace an output that exists.
        revision: of a Hub dataset.
    """

    dataset: str
    chunk_size: int = 50
    kappa: float | Literal["auto"] = 0.01
    head_mode: Literal["sparse", "dense"] = "sparse"
    labels: str | None = None
    output: str | None = None
    overwrite: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        require(self.chunk_size >= 1, f"chunk_size must be at least 1 frame, not {self.chunk_size}")
        require(self.kappa == "auto" or 0 <= self.kappa <= 1, f"kappa must be auto or in 0..1, not {self.kappa}")
