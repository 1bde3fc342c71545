"""What a training run says: its plan before it starts, a line now and then, its report at the end."""

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sarm_ray.config.train import TrainConfig
from sarm_ray.console import duration, say, size, tell
from sarm_ray.core.episodes import count_frames
from sarm_ray.errors import name_list
from sarm_ray.model.checkpoint_writer import write_whole
from sarm_ray.pipelines.ingest_plan import ChunkFailure
from sarm_ray.pipelines.runtime import Cluster
from sarm_ray.pipelines.training.plan import TrainPlan

POLL_S = 0.5


@dataclass(frozen=True)
class TrainReport:
    """What a run did.

    Args:
        output_dir: its folder. last, best: checkpoints, as score takes them; best is None without held-out episodes.
        steps: done.
        num_frames, num_episodes, num_held_out: what it trained on, and episodes held out.
        training: metrics of the last interval.
        validation: metrics on the held-out frames at the end. best_figures: those of the best step.
        best_validation: the lowest mean progress MSE and its step.
        strange_to_lerobot: why LeRobot cannot score with the checkpoint; empty where it can.
        baselines: head -> progress MSE of the best constant and of a linear probe from one frame.
        seconds: wall time per phase and in total.
        failures: chunks that could not be read; their episodes were left out.
        notices: what the user should know of the inputs.
    """

    output_dir: str
    last: str
    best: str | None
    steps: int
    num_frames: int
    num_episodes: int
    num_held_out: int
    training: dict[str, float]
    validation: dict[str, float]
    best_figures: dict[str, float]
    best_validation: dict[str, float]
    strange_to_lerobot: list[str]
    baselines: dict[str, dict[str, float]]
    seconds: dict[str, float]
    failures: list[ChunkFailure]
    notices: tuple[str, ...]


def describe_plan(plan: TrainPlan, config: TrainConfig, cluster: Cluster) -> None:
    """Say what will be done, before it is."""
    model = plan.config
    start = f"from {plan.init_from.name}" if plan.init_from else "fresh weights"
    heads = ", ".join(
        f"{head} ({len(own.stages)} stages)" if len(own.stages) > 1 else f"{head} (whole task)"
        for head, own in plan.labels.items()
    )
    sizes = f"width {model.hidden_dim}, {model.num_layers} layers, {model.num_heads} heads"
    say(f"model     {config.annotation_mode}: {heads}; {sizes}; {start}")
    window = plan.sources[0].window
    rewound = f"up to {model.max_rewind_steps} rewound"
    say(f"window    {window.kind}, {window.num_slots} frames {window.frame_gap} apart, {rewound}")
    say(f"encoder   {plan.encoder.name}, frozen")
    workers = plan.workers
    kind = "GPU" if workers.on_gpu else "CPU"
    number = f"{workers.to_begin} to {workers.most}" if workers.settle else f"{workers.most}"
    under = f"DeepSpeed stage {plan.deepspeed_stage}, {plan.precision}"
    say(f"workers   {number} on {kind}, {under}; the cluster has {cluster.describe()}")
    for source in plan.sources:
        data = source.ingest
        missing, needed = (
            sum(int(count_frames(getattr(camera, name)).sum()) for camera in source.cameras)
            for name in ("missing", "needed")
        )
        cameras = ", ".join(camera.camera for camera in source.cameras)
        say(f"dataset   {data.dataset.name} (LeRobot {data.dataset.version}, {data.dataset.fps:g} fps), {cameras}")
        held = int(source.held_out.sum())
        num_frames = int(data.dataset.length[data.rows].sum())
        say(f"episodes  {len(data.rows) - held:,} to train on, {held:,} held out, {num_frames:,} frames")
        num_bytes = missing * data.store.feature_dim * (4 if data.store.dtype == "float32" else 2)
        encode = f"{missing:,} to decode and encode ({size(num_bytes)})" if missing else "all in the store"
        say(f"features  {needed:,} frames needed, {encode}")
    for head, own in plan.labels.items():
        if len(own.stages) > 1:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in zip(own.stages, own.proportions, strict=True))
            say(f"stages    {head}: {shares}")
    passes = f" in {config.gradient_accumulation_steps} passes" if config.gradient_accumulation_steps > 1 else ""
    how = f"learning rate {config.optimizer.lr:g}, seed {config.seed}"
    say(f"steps     {config.steps:,} of {config.batch_size} samples{passes}, {how}")
    say(f"output    {config.output_dir}")
    tell(plan.notices)


@contextlib.contextmanager
def follow_metrics(path: Path, num_steps: int, quiet: bool) -> Iterator[None]:
    """Print each line of metrics as training processes append it, until the block ends."""
    if quiet:
        yield
        return
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(path, num_steps, ended), daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()


def _follow(path: Path, num_steps: int, ended: threading.Event) -> None:
    place = path.stat().st_size if path.exists() else 0
    while True:
        last = ended.wait(POLL_S)
        if path.exists():
            place = min(place, path.stat().st_size)  # a group that went on from an earlier step has cut it
            with path.open() as stream:
                stream.seek(place)
                for line in iter(stream.readline, ""):
                    if not line.endswith("\n"):
                        break
                    place += len(line)
                    say(describe_line(json.loads(line), num_steps))
        if last:
            return


def describe_line(line: dict[str, Any], num_steps: int) -> str:
    """One line of metrics.jsonl for people."""
    width = len(f"{num_steps:,}")
    start = f"step {line['step']:>{width},}/{num_steps:,}"
    if "validation" in line:
        parts = [
            f"{name.removesuffix('_progress_mse').replace('_', ' ')} {value:.5f}"
            for name, value in line["validation"].items()
            if name.endswith("_progress_mse")
        ]
        parts += [
            f"{name.removeprefix('offline_').removesuffix('_stage_accuracy')} stage accuracy {value:.3f}"
            for name, value in line["validation"].items()
            if name.startswith("offline_") and name.endswith("_stage_accuracy") and value < 1
        ]
        return f"{start}  held-out progress MSE: {', '.join(parts)}"
    return (
        f"{start}  loss {line['loss']:.4f}  lr {line['lr']:.2e}  grad {line['grad_norm']:.3f}  "
        f"{line['samples_per_s']:.1f} samples/s  data wait {line['data_wait']:.0%}"
    )


def cut_metrics(path: Path, step: int) -> None:
    """Take away what a group of processes noted after the checkpoint from which the next one goes on."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = "".join(line for line in lines if json.loads(line)["step"] <= step)
        write_whole(path, kept)


def wandb_id(output_dir: Path) -> str:
    """The run's id in wandb, kept in its folder: the same after a resume, another one for another run."""
    path = output_dir / "wandb_id"
    if not path.exists():
        write_whole(path, uuid.uuid4().hex[:12])
    return path.read_text()


def read_metrics(path: Path) -> dict[str, Any]:
    """What the report takes from metrics.jsonl: the last line of each kind, and the best validation."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    trained = [line for line in lines if "validation" not in line]
    looked = [line for line in lines if "validation" in line]
    scores = {line["step"]: _mean_mse(line["validation"]) for line in looked}
    best = min(scores, key=lambda step: scores[step]) if scores else None
    return {
        "training": trained[-1] if trained else {},
        "validation": looked[-1]["validation"] if looked else {},
        "best_figures": next((line["validation"] for line in looked if line["step"] == best), {}),
        "best_validation": {} if best is None else {"step": best, "progress_mse": scores[best]},
    }


def describe_report(report: TrainReport) -> str:
    """The result, for people."""
    seconds, training = report.seconds, report.training
    phases = f"encode {duration(seconds['encode'])}, train {duration(seconds['train'])}"
    done = f"{report.steps:,} steps on {report.num_frames:,} frames of {report.num_episodes:,} episodes"
    lines = [report.last, f"  {done} in {duration(seconds['total'])} ({phases})"]
    if training:
        speed = f"{training['samples_per_s']:.1f} samples/s, {training['data_wait']:.0%} of the time waiting for data"
        lines.append(f"  at the end: loss {training['loss']:.4f}, {speed}")
    for head, baselines in report.baselines.items():
        if not baselines:  # no held-out frame carries this head
            continue
        names = {view: f"{view}_{head}_progress_mse" for view in ("offline", "live")}
        measured = [
            f"{view} {report.validation[name]:.5f}" for view, name in names.items() if name in report.validation
        ]
        beside = [f"{name.removesuffix('_mse').replace('_', ' ')} {value:.5f}" for name, value in baselines.items()]
        lines.append(f"  held-out progress MSE, {head}: {', '.join(measured)} ({', '.join(beside)})")
    if report.best is not None:
        best = report.best_validation
        lines.append(f"  best by validation: step {best['step']:,}, {best['progress_mse']:.5f}: {report.best}")
    if report.strange_to_lerobot:
        lines.append(f"  for sarm_ray alone, as LeRobot knows nothing of {name_list(report.strange_to_lerobot)}")
    if report.failures:
        episodes = name_list(map(str, sorted({failure.episode_index for failure in report.failures})))
        count = f"{len(report.failures)} chunks could not be read"
        lines.append(f"  {count}; episodes {episodes} were left out, see failed.parquet")
    return "\n".join(lines)


def _mean_mse(validation: dict[str, float]) -> float:
    values = [
        value for name, value in validation.items() if name.startswith("offline_") and name.endswith("_progress_mse")
    ]
    return sum(values) / max(len(values), 1)
