"""What a scoring run says: its plan before it starts, its report at the end."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sarm_ray.console import duration, say, size, tell
from sarm_ray.core.episodes import count_frames
from sarm_ray.data import storage
from sarm_ray.pipelines.ingest_plan import ChunkFailure
from sarm_ray.pipelines.runtime import Cluster
from sarm_ray.pipelines.score_plan import ScorePlan


@dataclass(frozen=True)
class DatasetReport:
    """What a run did of one dataset.

    Args:
        dataset: its name. cameras: that were scored.
        output: the progress file.
        num_frames: rows in it.
        num_scored: frames computed, the others being interpolated or taken from a run that was cut off.
        num_decoded, num_cached: frames decoded and encoded now, and frames that the store had; each camera's counted.
        num_nan: rows without progress, per head.
        failures: chunks that could not be read or scored.
        notices: what the user should know of the inputs.
        visualizations: pictures of the first episodes.
        advice: what RA-BC will make of the output.
    """

    dataset: str
    cameras: list[str]
    output: str
    num_frames: int
    num_scored: int
    num_decoded: int
    num_cached: int
    num_nan: dict[str, int]
    failures: list[ChunkFailure]
    notices: tuple[str, ...]
    visualizations: list[str]
    advice: list[str]


@dataclass(frozen=True)
class ScoreReport:
    """What a run did.

    Args:
        datasets: one report each.
        seconds: wall time per phase and in total.
        busy_s: seconds that workers spent on each stage (CPU time; on GPUs wall time).
        frames_per_s: rows written over the total.
        frames_per_cpu_s: frames computed over all busy seconds; None where nothing was left to do.
        floor_s: what the same work takes at least on this hardware, if no worker ever waits and nothing else costs time.
        floor_ratio: floor_s over the total.
        bottleneck: the stage that the others waited for.
        bottleneck_busy: share of its phase for which the cluster's cores or GPUs were busy with that stage.
        spilled_bytes: what the object stores wrote to disk for want of memory; None where nodes went meanwhile.
        peak_rss_bytes: of the driver.
    """

    datasets: tuple[DatasetReport, ...]
    seconds: dict[str, float]
    busy_s: dict[str, float]
    frames_per_s: float
    frames_per_cpu_s: float | None
    floor_s: float
    floor_ratio: float
    bottleneck: str | None
    bottleneck_busy: float | None
    spilled_bytes: int | None
    peak_rss_bytes: int

    @property
    def failures(self) -> list[ChunkFailure]:
        """Of all datasets."""
        return [failure for dataset in self.datasets for failure in dataset.failures]


def measure_run(
    datasets: tuple[DatasetReport, ...],
    cluster: Cluster,
    seconds: dict[str, float],
    busy_s: dict[str, float],
    spilled_bytes: int | None,
    peak_rss_bytes: int,
) -> ScoreReport:
    """Set what a run did against what its hardware allows.

    Without GPUs all stages share the cores, and the floor is their sum. With GPUs decoding and encoding run beside each
    other, so the slower one counts; scoring comes after both.
    """
    num_workers = {"decode": cluster.num_cpus, "encode": cluster.num_actors, "score": cluster.num_actors}
    alone_s = {stage: busy / num_workers[stage] for stage, busy in busy_s.items()}
    beside_each_other = max if cluster.num_gpus else sum
    floor_s = beside_each_other([alone_s["decode"], alone_s["encode"]]) + alone_s["score"]
    total, busy = seconds["total"], sum(busy_s.values())
    bottleneck = max(alone_s, key=lambda stage: alone_s[stage]) if busy else None
    phase_s = seconds["score" if bottleneck == "score" else "encode"]
    num_scored = sum(report.num_scored for report in datasets)
    return ScoreReport(
        datasets=datasets,
        seconds=seconds,
        busy_s=busy_s,
        frames_per_s=sum(report.num_frames for report in datasets) / total,
        frames_per_cpu_s=num_scored / busy if busy else None,
        floor_s=floor_s,
        floor_ratio=floor_s / total,
        bottleneck=bottleneck,
        bottleneck_busy=min(alone_s[bottleneck] / phase_s, 1.0) if bottleneck and phase_s else None,
        spilled_bytes=spilled_bytes,
        peak_rss_bytes=peak_rss_bytes,
    )


def describe_plans(plans: Sequence[ScorePlan], cluster: Cluster) -> None:
    """What will be done, on screen: what all datasets share once, then each dataset with its notices."""
    first, config = plans[0], plans[0].checkpoint.config
    heads = ", ".join(f"{head} ({config.shape.num_stages(head)} stages)" for head in first.heads)
    encoder = first.ingest.key.precision
    _say_lines(
        model=f"{first.checkpoint.folder} ({config.annotation_mode}; {heads}; {first.precision})",
        encoder=f"{first.ingest.encoder.name} ({encoder}, stored as {first.ingest.store.dtype})",
        workers=f"up to {cluster.num_actors} on {cluster.describe()}",
    )
    for plan in plans:
        if len(plans) > 1:
            say("")
        _describe_plan(plan)
        tell(plan.notices)


def _describe_plan(plan: ScorePlan) -> None:
    data, dataset = plan.ingest, plan.ingest.dataset
    num_frames = int(dataset.length[data.rows].sum())
    needed, missing = (
        sum(int(count_frames(getattr(camera, name)).sum()) for camera in plan.cameras) for name in ("needed", "missing")
    )
    num_chunks = sum(len(camera.todo) for camera in plan.cameras)
    bytes_per_frame = data.key.feature_dim * np.dtype(data.store.dtype).itemsize
    live = ", the future cut at the frame" if plan.window.live else ""
    _say_lines(
        dataset=f"{dataset.root} (LeRobot {dataset.version}, {dataset.fps:g} fps)",
        episodes=f"{len(data.rows):,} of {len(dataset.length):,}, {num_frames:,} frames",
        camera=", ".join(camera.camera for camera in plan.cameras),
        state=f"{plan.state_key}, {len(plan.normalizer.mean)} wide, statistics of the {plan.state_source}",
        scored=f"{int(count_frames(plan.computed).sum()):,} frames, stride {plan.stride}; "
        f"{plan.window.kind} window of {plan.window.num_slots} frames {plan.window.frame_gap} apart{live}",
        features=f"{needed:,} frames needed, {needed - missing:,} in the store, {missing:,} to decode and encode in "
        f"{num_chunks:,} chunks, {size(missing * bytes_per_frame)}",
        store=", ".join(camera.store.location for camera in plan.cameras),
        output=plan.output,
    )


def _say_lines(**lines: str) -> None:
    for name, text in lines.items():
        say(f"{name:<9} {text}")


def describe_report(report: ScoreReport) -> str:
    """What a person wants to know at the end."""
    lines = [line for dataset in report.datasets for line in _describe_dataset(dataset)]
    if len(report.datasets) > 1:
        num_frames = sum(dataset.num_frames for dataset in report.datasets)
        lines.append(f"{len(report.datasets)} datasets, {num_frames:,} frames")
    phases = ", ".join(f"{name} {duration(seconds)}" for name, seconds in report.seconds.items())
    rate = f"{report.frames_per_s:.1f} frames/s"
    if report.frames_per_cpu_s is not None:
        rate += f", {report.frames_per_cpu_s:.1f} per busy second of a worker"
    lines.append(f"  {rate}; {phases}")
    if report.bottleneck is not None and report.bottleneck_busy is not None:
        lines.append(
            f"  {report.floor_ratio:.2f} of what this hardware allows ({duration(report.floor_s)} of work on it); "
            f"bottleneck {report.bottleneck}, busy {report.bottleneck_busy:.0%} of its phase; "
            f"{'unknown' if report.spilled_bytes is None else size(report.spilled_bytes)} spilled to disk"
        )
    return "\n".join(lines)


def _describe_dataset(report: DatasetReport) -> list[str]:
    num_failed = len(report.failures)
    each = f" (of {len(report.cameras)} cameras)" if len(report.cameras) > 1 else ""
    lines = [
        report.output,
        f"  {report.num_frames:,} frames: {report.num_decoded:,} decoded, {report.num_cached:,} from the store{each}, "
        f"{report.num_scored:,} scored, {num_failed:,} chunk{'s' if num_failed != 1 else ''} failed",
    ]
    for head, num_nan in report.num_nan.items():
        if num_nan:
            lines.append(f"  {num_nan:,} rows of progress_{head} are NaN")
    if report.failures:
        first = report.failures[0]
        lines += [
            f"  failed: episode {first.episode_index}, frames {first.start} to {first.stop - 1}: {first.message}",
            f"  all of them: {report.output}.run/failed.parquet; mend the files and run again with --overwrite",
        ]
    if report.visualizations:
        lines.append(f"  {len(report.visualizations)} pictures in {storage.parent(report.visualizations[0])}")
    lines += [f"  {line}" for line in report.advice]
    return lines
