"""What a scoring run says: its plan before it starts, its report at the end."""

from dataclasses import dataclass

import numpy as np

from sarm_ray.console import duration, say, size
from sarm_ray.core.episodes import count_frames
from sarm_ray.pipelines.ingest import ChunkFailure
from sarm_ray.pipelines.runtime import Cluster
from sarm_ray.pipelines.score_plan import ScorePlan


@dataclass(frozen=True)
class ScoreReport:
    """What a run did.

    Args:
        output: the progress file.
        num_frames: rows in it.
        num_scored: frames computed, the others being interpolated or taken from a run that was cut off.
        num_decoded, num_cached: frames decoded and encoded now, and frames that the store had.
        num_nan: rows without progress, per head.
        failures: chunks that could not be read or scored.
        seconds: per phase and in total.
        cpu_s: CPU time of decode, encode and score workers.
        frames_per_s: num_frames over the total.
        notices: what the user should know of the inputs.
        frames_per_cpu_s: num_scored over the workers' CPU time; None where nothing was left to do.
    """

    output: str
    num_frames: int
    num_scored: int
    num_decoded: int
    num_cached: int
    num_nan: dict[str, int]
    failures: list[ChunkFailure]
    seconds: dict[str, float]
    cpu_s: dict[str, float]
    frames_per_s: float
    frames_per_cpu_s: float | None
    notices: tuple[str, ...]


def describe_plan(plan: ScorePlan, cluster: Cluster) -> None:
    """The plan on screen."""
    data, dataset, config = plan.ingest, plan.ingest.dataset, plan.checkpoint.config
    num_frames, stages = int(dataset.length[data.rows].sum()), plan.checkpoint.config.shape.num_stages
    needed, missing = int(count_frames(data.needed).sum()), int(count_frames(data.missing).sum())
    bytes_per_frame = data.key.feature_dim * np.dtype(data.store.dtype).itemsize
    window = f"{plan.window.kind}, {plan.window.num_slots} frames {plan.window.frame_gap} apart"
    heads = ", ".join(f"{head} ({stages(head)} stages)" for head in plan.heads)
    lines = {
        "dataset": f"{dataset.root} (LeRobot {dataset.version}, {dataset.fps:g} fps)",
        "episodes": f"{len(data.rows):,} of {len(dataset.length):,}, {num_frames:,} frames",
        "camera": data.camera,
        "model": f"{plan.checkpoint.folder} ({config.annotation_mode}; {heads}; window {window}; {plan.precision})",
        "encoder": f"{data.encoder.name} ({data.key.precision}, stored as {data.store.dtype})",
        "state": f"{plan.state_key}, {len(plan.normalizer.mean)} wide, statistics of the {plan.state_source}",
        "scored": f"{int(count_frames(plan.computed).sum()):,} frames, stride {plan.stride}",
        "features": f"{needed:,} frames needed, {needed - missing:,} in the store, {missing:,} to decode and encode in "
        f"{int(data.missing.any(axis=1).sum()):,} chunks, {size(missing * bytes_per_frame)}",
        "store": data.store.location,
        "workers": f"up to {cluster.num_actors} on {cluster.describe()}",
        "output": plan.output,
    }
    for name, text in lines.items():
        say(f"{name:<9} {text}")


def describe_report(report: ScoreReport) -> str:
    """What a person wants to know at the end."""
    phases = ", ".join(f"{name} {duration(seconds)}" for name, seconds in report.seconds.items())
    rate = f"{report.frames_per_s:.1f} frames/s"
    if report.frames_per_cpu_s is not None:
        rate += f", {report.frames_per_cpu_s:.1f} per CPU-second of the workers"
    lines = [
        f"{report.output}",
        f"  {report.num_frames:,} frames: {report.num_decoded:,} decoded, {report.num_cached:,} from the store, "
        f"{report.num_scored:,} scored, {len(report.failures):,} chunks failed",
        f"  {rate}; {phases}",
    ]
    for head, num_nan in report.num_nan.items():
        if num_nan:
            lines.append(f"  {num_nan:,} rows of progress_{head} are NaN")
    if report.failures:
        first = report.failures[0]
        lines.append(
            f"  failed: episode {first.episode_index}, frames {first.start} to {first.stop - 1}: {first.message}"
        )
        lines.append(
            f"  all of them: {report.output}.run/failed.parquet; mend the files and run again with --overwrite"
        )
    return "\n".join(lines)
