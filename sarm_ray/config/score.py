"""What `sarm-ray score` does."""

import math
from dataclasses import dataclass
from typing import Literal

from sarm_ray.config.loading import as_tuple, check_cameras, check_datasets, require


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What `sarm-ray score` does.

    Args:
        dataset: local folder, fsspec URL or Hub id of a LeRobotDataset; a list of them is scored by one pool of workers.
        model: SARM checkpoint: local folder or Hub id.
        output: the progress file (a folder for several datasets); None is sarm_progress.parquet in a writable local
            dataset, else in ./<name>/.
        head_mode: `sparse`, `dense` or `both`. A single-stage checkpoint has the sparse head alone.
        stride: compute every stride-th frame and the last one, interpolate between.
        live: score each frame as a robot would have seen it, with the future cut at it.
        episodes: Python-like selection of episodes, `0:10,15`; None is all.
        image_key: the camera, or a list of them, in order, for a model of several; None where there is one, or those the
            model was trained on.
        state_key: None is the checkpoint's.
        task: task text for all episodes instead of their own.
        state_stats: normalise states by the `checkpoint`'s statistics or the `dataset`'s; None prefers the checkpoint's.
        encoder: image encoder; None is the checkpoint's.
        precision: compute precision; `auto` is bf16 where the hardware has it. `fp32` also stores features in float32.
        cache: where features are kept, any fsspec path; None is beside a writable dataset, else the user's cache.
        stage_probabilities: also write stage_probabilities.parquet.
        num_visualizations: draw the predictions of this many episodes.
        allow_failures: exit with 0 while at most this many chunks failed.
        overwrite: replace an output that exists.
        dry_run: print the plan and run nothing.
        follow: look into the datasets, which may then be folders of them, every so many seconds, and score what is there and
            complete, once; None scores each dataset now and ends. `output` is then a folder.
        push_to_hub: upload the progress file to the dataset's Hub repository.
        revision: of a Hub dataset.
        address: Ray cluster to join; None is the job's own cluster, else a local one.
    """

    dataset: str | list[str]
    model: str
    output: str | None = None
    head_mode: Literal["sparse", "dense", "both"] = "sparse"
    stride: int = 1
    live: bool = False
    episodes: str | None = None
    image_key: str | list[str] | None = None
    state_key: str | None = None
    task: str | None = None
    state_stats: Literal["checkpoint", "dataset"] | None = None
    encoder: str | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    cache: str | None = None
    stage_probabilities: bool = False
    num_visualizations: int = 5
    allow_failures: int = 0
    overwrite: bool = False
    dry_run: bool = False
    follow: float | None = None
    push_to_hub: bool = False
    revision: str | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        require(self.stride >= 1, f"stride must be at least 1, not {self.stride}")
        for name in ("allow_failures", "num_visualizations"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        check_datasets(self.datasets)
        if self.follow is not None:
            self._check_follow()
        check_cameras(self.image_keys)

    def _check_follow(self) -> None:
        require(
            self.follow is not None and 0 < self.follow < math.inf, f"follow takes seconds above 0, not {self.follow}"
        )
        for name in ("episodes", "push_to_hub", "revision"):
            option = f"--{name.replace('_', '-')}"
            require(
                not getattr(self, name), f"{option} is for datasets that are given by name; leave it out with --follow"
            )
        is_file = self.output is not None and self.output.endswith(".parquet")
        require(not is_file, f"--output is a folder with --follow, not a file like {self.output}")

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets of the run."""
        return as_tuple(self.dataset)

    @property
    def image_keys(self) -> tuple[str, ...]:
        """The cameras asked for; none where that is left open."""
        return as_tuple(self.image_key)
