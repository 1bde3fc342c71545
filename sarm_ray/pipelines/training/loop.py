"""What every training process does: batches from its shard, a step, now and then a line, a look, a checkpoint.

Nothing that it computes depends on how many processes there are but for the order of floating-point sums: batches,
augmentation and learning rates are planned, and dropout is seeded by (seed, step, rank).
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch

from sarm_ray.config.train import TrainConfig
from sarm_ray.errors import TrainingError
from sarm_ray.model.checkpoint import Checkpoint, SarmConfig, Sidecar, StateNormalizer, sarm_shape
from sarm_ray.model.checkpoint_writer import save_checkpoint
from sarm_ray.model.sarm import Sarm
from sarm_ray.model.training import init_from, learning_rate_multiplier, leave_out_inputs, mean_metrics, new_model
from sarm_ray.model.training_state import TrainingState, read_state, write_state
from sarm_ray.pipelines.runtime import prepare_actor
from sarm_ray.pipelines.stopping import is_stopping
from sarm_ray.pipelines.training.checkpoints import PRETRAINED, STATE, last_step, step_folder, write_checkpoint
from sarm_ray.pipelines.training.data import unpack_row
from sarm_ray.pipelines.training.engine import Engine, bound_waits, gather_state, start_engine, take_step, whole_model
from sarm_ray.pipelines.training.validation import HeldOut, evaluate

METRICS_FILE = "metrics.jsonl"
BEST_METRIC = "offline_{head}_progress_mse"


@dataclass(frozen=True)
class LoopJob:
    """What a training process needs.

    Args:
        config: of the run. sarm: of the model. sidecar, normalizer: what checkpoints record besides.
        init_from: checkpoint to start from.
        heads: to train. deepspeed_stage, precision, device: how, in and on what.
        layout: of a row, see `batch_layout`.
        texts: (M, E) float32, text features by text number.
        held_out: reference to a `HeldOut`, or None.
        first_step: finished steps; the state of that step's checkpoint is loaded where it is not 0.
        facts: what a run that goes on must have in common.
        end_markers: files; where one appears the group writes a checkpoint and ends.
        wandb_id: of the run in wandb. wandb_environment: the driver's settings of wandb, never shown.
    """

    config: TrainConfig
    sarm: SarmConfig
    sidecar: Sidecar
    normalizer: StateNormalizer
    init_from: Checkpoint | None
    heads: tuple[str, ...]
    deepspeed_stage: int
    precision: str
    device: str
    layout: dict[str, tuple[str, tuple[int, ...]]]
    texts: np.ndarray
    held_out: ray.ObjectRef | None
    first_step: int
    facts: dict[str, Any]
    end_markers: tuple[str, ...]
    wandb_id: str
    wandb_environment: dict[str, str] = field(repr=False)


@dataclass
class Interval:
    """What happened since the last line of metrics; time spent on looking and saving does not count.

    Args:
        sums: (H, 5), see `LossParts`.
        seconds, cpu_s, wait_s: of training, the CPU time of this process, and the time without a batch.
        num_steps: in it.
    """

    sums: torch.Tensor
    seconds: float = 0.0
    cpu_s: float = 0.0
    wait_s: float = 0.0
    num_steps: int = 0


class Best(NamedTuple):
    """The best look at the held-out frames so far, see `_score`, and its step; no step before the first look."""

    score: float = math.inf
    step: int | None = None


def train_loop(options: dict[str, Any]) -> None:
    """Train from `first_step` to the end, or until asked to stop. Runs in every process of the group."""
    job: LoopJob = options["job"]
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    prepare_actor(job.device)
    device = str(ray.train.torch.get_device())
    state = None
    if job.first_step:
        state = read_state(str(step_folder(job.config.output_dir, job.first_step) / STATE))
    rows = ray.train.get_dataset_shard("train").iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=2
    )
    config = job.config
    bound_waits(job.device, config.collective_timeout_s)
    engine = start_engine(
        start_model(job, state),
        job.heads,
        config.optimizer,
        config.stage_loss_weight,
        job.deepspeed_stage,
        job.precision,
        job.device,
        config.batch_size // num_workers // config.gradient_accumulation_steps,
        config.gradient_accumulation_steps,
        state,
        config.inputs,
    )
    with open_log(job, rank) as log:
        run_steps(job, engine, iter(rows), device, rank, log, state)


def start_model(job: LoopJob, state: TrainingState | None) -> Sarm:
    """The networks to begin with: resumed, fine-tuned or fresh."""
    sarm = new_model(sarm_shape(job.sarm, job.sidecar), job.config.seed)
    if state is not None:
        sarm.load_state_dict(state.weights)
    elif job.init_from is not None:
        init_from(job.init_from, sarm)
    leave_out_inputs(sarm, job.config.inputs)
    return sarm


def run_steps(
    job: LoopJob,
    engine: Engine,
    rows: Iterator[Any],
    device: str,
    rank: int,
    log: Callable[[dict[str, Any]], None],
    state: TrainingState | None,
) -> None:
    """The steps of one process."""
    config = job.config
    texts = torch.from_numpy(job.texts).to(device)
    held_out: HeldOut | None = None if job.held_out is None else ray.get(job.held_out)
    best = Best() if state is None else Best(state.facts.get("best", math.inf), state.facts.get("best_step"))
    interval = Interval(torch.zeros(len(job.heads), 5, device=device))
    for step in range(job.first_step, config.steps):
        norm = train_step(job, engine, rows, texts, step, rank, interval)
        done = step + 1
        stopping = _agree(rank == 0 and any(map(is_stopping, job.end_markers)), device)
        last = done == config.steps
        if last or stopping or done % config.log_freq == 0:
            log({"step": done, **_interval_metrics(job, interval, norm, step)})
            interval = Interval(torch.zeros_like(interval.sums))
        measured: dict[str, float] = {}
        if held_out is not None and (last or done % config.eval_freq == 0):
            measured = look(job, engine, held_out, texts, rank)
            log({"step": done, "validation": measured})
        improved = bool(measured) and _score(measured, job.heads) < best.score
        if improved:
            best = Best(_score(measured, job.heads), done)
        if last or stopping or improved or done % config.save_freq == 0:
            save(job, engine, done, best, measured, improved, rank)
        if stopping:
            return


def train_step(
    job: LoopJob, engine: Engine, rows: Iterator[Any], texts: torch.Tensor, step: int, rank: int, interval: Interval
) -> float:
    """Wait for the passes of a step, take it, add it to the interval; the norm of its gradient.

    Raises:
        TrainingError: the gradient is no number.
    """
    config, started, cpu_before = job.config, time.perf_counter(), time.process_time()
    arrays = [next_row(rows, job, step) for _ in range(config.gradient_accumulation_steps)]
    interval.wait_s += time.perf_counter() - started
    passes = [tensors_of(each, texts, job.heads) for each in arrays]
    torch.manual_seed(int(np.random.SeedSequence([config.seed, step, rank]).generate_state(1)[0]))
    sums, norm = take_step(engine, passes, learning_rate(config, step))
    if not math.isfinite(norm):
        kept = last_step(config.output_dir)
        where = "there is no checkpoint yet" if kept is None else f"the checkpoint of step {kept} is kept"
        raise TrainingError(
            f"the gradient of step {step + 1} is {norm}; {where}. Lower the learning rate (--set optimizer.lr) or train in "
            "fp32"
        )
    interval.sums += sums
    interval.num_steps += 1
    interval.seconds += time.perf_counter() - started
    interval.cpu_s += time.process_time() - cpu_before
    return norm


def look(job: LoopJob, engine: Engine, held_out: HeldOut, texts: torch.Tensor, rank: int) -> dict[str, float]:
    """Metrics on the held-out frames. Collective."""
    with whole_model(engine) as whole:
        points = {head: job.sarm.breakpoints(head) for head in job.heads}
        return evaluate(whole, held_out, texts, points, rank, engine.num_workers)


def next_row(rows: Iterator[Any], job: LoopJob, step: int) -> dict[str, np.ndarray]:
    """This process's next pass; the plan says which step it belongs to."""
    row = next(rows)
    found = row["step"][0].as_py()
    if row.num_rows != 1 or found != step:
        raise AssertionError(f"a row of step {found} where step {step} was due")
    return unpack_row(row, job.layout)


def tensors_of(
    arrays: dict[str, np.ndarray], texts: torch.Tensor, heads: tuple[str, ...]
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The batch of `sarm_loss` on the texts' device, and the counts of the global batch, from a row."""
    counts = {head: float(arrays[f"count_{head}"]) for head in heads}
    batch = {
        name: torch.from_numpy(array.copy()).to(texts.device)
        for name, array in arrays.items()
        if name != "index" and not name.startswith("count_")
    }
    batch["text"] = texts[batch["text"]]
    return batch, counts


def learning_rate(config: TrainConfig, step: int) -> float:
    """LeRobot's schedule."""
    options = config.optimizer
    floor = min(options.decay_lr / options.lr, 1.0)  # a rate below the floor's stays what it is
    factor = learning_rate_multiplier(step, config.steps, options.warmup_steps, options.decay_steps, floor)
    return options.lr * factor


def save(
    job: LoopJob, engine: Engine, step: int, best: Best, measured: dict[str, float], improved: bool, rank: int
) -> None:
    """Write a checkpoint. Collective: all gather, rank 0 writes, all wait."""
    noted = {} if best.step is None else {"best": best.score, "best_step": best.step}
    facts = {**job.facts, "step": step, "seed": job.config.seed, **noted}
    state = gather_state(engine, facts)

    def write(folder: Path) -> None:
        sidecar = replace(job.sidecar, metrics=measured)
        save_checkpoint(str(folder / PRETRAINED), job.sarm, state.weights, sidecar, job.normalizer)
        write_state(str(folder / STATE), state.weights, state.exp_avg, state.exp_avg_sq, state.facts)

    if rank == 0:
        write_checkpoint(job.config.output_dir, step, write, improved, job.config.keep)
    torch.distributed.barrier()


def _interval_metrics(job: LoopJob, interval: Interval, norm: float, step: int) -> dict[str, float]:
    """Means over the interval and all processes. Collective."""
    total = interval.sums.clone()
    torch.distributed.all_reduce(total)
    times = torch.tensor([interval.wait_s / interval.seconds, interval.cpu_s], device=total.device)
    torch.distributed.all_reduce(times)
    wait_share, cpu_s = times.tolist()
    num_samples = job.config.batch_size * interval.num_steps
    metrics = mean_metrics(total, job.heads)
    weights = {"stage_loss": job.config.stage_loss_weight, "subtask_loss": 1.0}
    loss = sum(weight * metrics.get(f"{head}_{name}", 0.0) for head in job.heads for name, weight in weights.items())
    return {
        "loss": loss,
        **metrics,
        "lr": learning_rate(job.config, step),
        "grad_norm": norm,
        "samples_per_s": num_samples / interval.seconds,
        "samples_per_cpu_s": num_samples / cpu_s,
        "data_wait": wait_share / torch.distributed.get_world_size(),
    }


def _score(measured: dict[str, float], heads: tuple[str, ...]) -> float:
    """What the best checkpoint is chosen by: mean held-out progress MSE of the heads."""
    names = [BEST_METRIC.format(head=head) for head in heads]
    return float(np.mean([measured[name] for name in names if name in measured]))


def _agree(flag: bool, device: str) -> bool:
    """Rank 0's word, on every process at the same step."""
    word = torch.tensor([int(flag)], device=device)
    torch.distributed.broadcast(word, 0)
    return bool(word.item())


@contextlib.contextmanager
def open_log(job: LoopJob, rank: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Where lines of metrics go: metrics.jsonl, and wandb when asked; on rank 0 alone."""
    if rank > 0:
        yield lambda _: None
        return
    run = None
    if job.config.wandb_project:
        os.environ.update(job.wandb_environment)
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        run = wandb.init(project=job.config.wandb_project, id=job.wandb_id, resume="allow", dir=job.config.output_dir)
    with (Path(job.config.output_dir) / METRICS_FILE).open("a") as file:

        def write(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()
            if run is not None:
                flat = {f"validation/{key}": value for key, value in line.get("validation", {}).items()}
                flat |= {key: value for key, value in line.items() if key not in ("step", "validation")}
                run.log(flat, step=line["step"])

        try:
            yield write
        finally:
            if run is not None:
                run.finish()
