"""The config of `sarm-ray train`; presets are LeRobot's."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from sarm_ray.config.loading import as_tuple, check_cameras, check_datasets, require


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Sizes of the networks and of their window, by LeRobot's names."""

    hidden_dim: int = 768
    num_heads: int = 12
    num_layers: int = 8
    dropout: float = 0.1
    n_obs_steps: int = 8
    frame_gap: int = 30
    max_rewind_steps: int = 4
    max_state_dim: int = 32

    def __post_init__(self) -> None:
        for name in ("hidden_dim", "num_heads", "num_layers", "frame_gap", "max_state_dim"):
            require(getattr(self, name) >= 1, f"model.{name} must be at least 1, not {getattr(self, name)}")
        require(
            self.hidden_dim % self.num_heads == 0,
            f"model.num_heads must divide model.hidden_dim {self.hidden_dim}, not be {self.num_heads}",
        )
        require(
            self.n_obs_steps >= 2 and self.n_obs_steps % 2 == 0,
            f"model.n_obs_steps must be even and at least 2, not {self.n_obs_steps}",
        )
        require(
            0 <= self.max_rewind_steps < self.n_obs_steps,
            f"model.max_rewind_steps must be in 0..{self.n_obs_steps - 1}, not {self.max_rewind_steps}",
        )
        require(0 <= self.dropout < 1, f"model.dropout must be in [0, 1), not {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """AdamW and its schedule: linear warm-up, cosine to decay_lr; both are scaled down to runs below decay_steps."""

    lr: float = 5e-5
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-3
    grad_clip_norm: float = 10.0
    warmup_steps: int = 500
    decay_steps: int = 50_000
    decay_lr: float = 5e-6

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "decay_steps", "grad_clip_norm"):
            require(getattr(self, name) > 0, f"optimizer.{name} must be positive, not {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name} must be in [0, 1), not {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "decay_lr"):
            require(getattr(self, name) >= 0, f"optimizer.{name} must not be negative, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class AugmentationOptions:
    """Probabilities, each drawn per sample."""

    rewind_probability: float = 0.8
    language_perturbation_probability: float = 0.2
    future_cut_probability: float = 0.25
    past_cut_probability: float = 0.1
    teacher_forcing_probability: float = 0.75

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            require(0 <= value <= 1, f"augmentation.{field.name} must be in [0, 1], not {value}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What `sarm-ray train` does.

    Args:
        dataset: local folder, fsspec URL or Hub id of a LeRobotDataset; a list of them trains one model.
        output_dir: folder of the run, on a disk that all nodes share: checkpoints, metrics.jsonl, config.yaml.
        annotation_mode: `single_stage` needs no annotation, `dense_only` dense subtasks, `dual` sparse and dense ones.
        image_key: the camera, or a list of them, which become as many vision streams; None where there is one.
        state_key: the state.
        encoder: image and text encoder, frozen.
        init_from: checkpoint to start from instead of random weights.
        window: `centered` (LeRobot loads it) or `past` (ours).
        inputs: what the model goes by besides the text; `vision` and `state` tell what either is worth alone.
        episodes: Python-like selection, of each dataset.
        task: task text for all episodes instead of their own.
        steps: optimiser steps.
        batch_size: samples of a step, over all workers.
        gradient_accumulation_steps: passes of a step.
        num_workers: training processes. A number is what a run begins with; one that lost nodes goes on with fewer, as many
            as there are. "MIN:MAX" begins and goes on with as many as there are, from MIN to MAX; "N:N" insists on N. None
            is one per GPU, or one where there is none.
        use_gpu: None is where there is one.
        deepspeed_stage: ZeRO stage; 0 is plain data parallelism. None is 1, or 0 for one fp32 worker.
        precision: `auto` is bf16 on GPUs that have it, fp32 elsewhere.
        val_fraction: share of the episodes that are held out.
        val_frames: most frames of them that are evaluated.
        seed: of the split, the order, the augmentation, the weights.
        cache: where features are kept; None is beside a writable dataset, else the user's cache.
        log_freq, eval_freq, save_freq: steps between lines of metrics, evaluations, checkpoints.
        keep: latest checkpoints that are kept, besides the best.
        max_failures: times that a run goes on by itself after a worker died, without a checkpoint in between. Lost nodes do
            not count.
        wait_s: seconds to wait for nodes, where fewer training processes can be placed than are wanted.
        regroup_s: seconds that a group of processes runs at least before a larger one takes its place, when nodes came.
        collective_timeout_s: seconds after which processes that wait for one that is silent take it for dead. Longer than
            the first one needs to write a checkpoint.
        stage_loss_weight: of the stage loss against the tau loss.
        allow_failures: exit with 0 while at most this many chunks failed.
        resume: go on from the last checkpoint in output_dir.
        wandb_project: log there too.
        push_to_hub: Hub repository that gets the checkpoint at the end.
        revision: of a Hub dataset.
        address: Ray cluster to join; None is the job's own cluster, else a local one.
        model, optimizer, augmentation: see there.
    """

    dataset: str | list[str]
    output_dir: str
    annotation_mode: Literal["single_stage", "dense_only", "dual"] = "single_stage"
    image_key: str | list[str] | None = None
    state_key: str = "observation.state"
    encoder: str = "openai/clip-vit-base-patch32"
    init_from: str | None = None
    window: Literal["centered", "past"] = "centered"
    inputs: Literal["both", "vision", "state"] = "both"
    episodes: str | None = None
    task: str | None = None
    steps: int = 5000
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    num_workers: str | int | None = None
    use_gpu: bool | None = None
    deepspeed_stage: Literal[0, 1, 2, 3] | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    val_fraction: float = 0.1
    val_frames: int = 2048
    seed: int = 1000
    cache: str | None = None
    log_freq: int = 50
    eval_freq: int = 500
    save_freq: int = 1000
    keep: int = 2
    max_failures: int = 3
    wait_s: float = 60.0
    regroup_s: float = 60.0
    collective_timeout_s: float = 300.0
    stage_loss_weight: float = 1.0
    allow_failures: int = 0
    resume: bool = False
    wandb_project: str | None = None
    push_to_hub: str | None = None
    revision: str | None = None
    address: str | None = None
    model: ModelOptions = ModelOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    augmentation: AugmentationOptions = AugmentationOptions()

    def __post_init__(self) -> None:
        check_datasets(self.datasets)
        check_cameras(self.image_keys)
        positive = (
            "steps",
            "batch_size",
            "gradient_accumulation_steps",
            "val_frames",
            "log_freq",
            "eval_freq",
            "save_freq",
        )
        for name in (*positive, "keep"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        require(
            self.workers is None or 1 <= self.workers[0] <= self.workers[1],
            f"num_workers must be a number or MIN:MAX from 1 up, not {self.num_workers!r}",
        )
        require(
            self.collective_timeout_s > 0, f"collective_timeout_s must be positive, not {self.collective_timeout_s}"
        )
        require(0 <= self.val_fraction < 1, f"val_fraction must be in [0, 1), not {self.val_fraction}")
        for name in ("seed", "max_failures", "wait_s", "regroup_s", "allow_failures", "stage_loss_weight"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets of the run."""
        return as_tuple(self.dataset)

    @property
    def image_keys(self) -> tuple[str, ...]:
        """The cameras asked for; none where that is left open."""
        return as_tuple(self.image_key)

    @property
    def workers(self) -> tuple[int, int] | None:
        """Fewest and most training processes, or None where that is left open; a plain number is both."""
        if self.num_workers is None:
            return None
        fewest, colon, most = str(self.num_workers).partition(":")
        least, largest = (int(text) if text.isdigit() else 0 for text in (fewest, most if colon else fewest))
        return least, largest

    @property
    def ranged(self) -> bool:
        """Whether the number of training processes was given as MIN:MAX."""
        return ":" in str(self.num_workers)
