"""`sarm-ray bench plan`: what the driver does before anything runs, for a dataset of very many episodes."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import torch

from sarm_ray.bench import many_episodes
from sarm_ray.bench.apart import call_apart
from sarm_ray.bench.measure import Figures, compare, describe_hardware, measure
from sarm_ray.config.score import ScoreConfig
from sarm_ray.core.episodes import plan_chunks
from sarm_ray.core.windows import bitmaps_by_length, computed_mask, needed_frames
from sarm_ray.data.features import fingerprint_sources, held_frames
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.rows import episode_texts, state_statistics
from sarm_ray.model.checkpoint import SarmConfig
from sarm_ray.model.checkpoint_writer import save_checkpoint
from sarm_ray.model.encoder import EFFICIENTNET
from sarm_ray.model.sarm import Sarm
from sarm_ray.pipelines.ingest_plan import IngestPlan, plan_jobs
from sarm_ray.pipelines.runtime import Cluster
from sarm_ray.pipelines.score_plan import ScorePlan, plan_scores

VERSIONS = ("v3.0", "v2.1")


@dataclass(frozen=True, kw_only=True)
class PlanBench(Figures):
    """What was measured.

    Args:
        version, num_episodes, frames_per_episode, stored: of the dataset; stored: its features are in the store already.
        num_frames, num_chunks, num_files, num_parts: of the plan, the listing and the store.
        seconds, cpu_s: wall and CPU time of all of planning.
        peak_rss_bytes: most memory of a process that plans once and does nothing else; Ray and torch are loaded in it.
        steps: the same two of its parts, each measured on its own; `rest` is what they leave of the whole (negative where
            the machine was busier in the meantime).
    """

    version: str
    num_episodes: int
    frames_per_episode: int
    stored: bool
    num_frames: int
    num_chunks: int
    num_files: int
    num_parts: int
    seconds: float
    cpu_s: float
    peak_rss_bytes: int
    steps: dict[str, tuple[float, float]]


def bench_plan(
    num_episodes: int, version: str, frames_per_episode: int = 300, stored: bool = False, repeats: int = 3
) -> PlanBench:
    """Plan the scoring of `num_episodes` episodes, of which there is metadata alone; Ray is not started.

    All of planning is `plan_scores` (the dataset opened, in it) and `plan_jobs`. The floor is pyarrow reading the episode
    table and nothing else.

    Args:
        num_episodes, version, frames_per_episode: see `many_episodes.write_metadata`.
        stored: all features are in the store already, so that planning reads its whole index.
        repeats: medians are over as many, after one that does not count.
    """
    with tempfile.TemporaryDirectory(prefix="sarm_bench_") as scratch:
        root = Path(scratch)
        write_inputs(root, num_episodes, version, frames_per_episode)
        num_parts = many_episodes.fill_store(plan_of(root).ingest.store, root / "dataset") if stored else 0
        _, _, peak_rss_bytes = call_apart("sarm_ray.bench.plan", "plan_once", root=scratch)
        plan = plan_of(root)
        steps = _steps(root, plan)
        whole, floor, *timings = measure(
            repeats,
            lambda: _jobs(plan_of(root).ingest),
            lambda: _read_table(root / "dataset", version),
            *steps.values(),
        )
    parts = {name: (timing.wall_s, timing.cpu_s) for name, timing in zip(steps, timings, strict=True)}
    wall_s, cpu_s = np.sum(list(parts.values()), axis=0).tolist()
    parts["rest"] = (whole.wall_s - wall_s, whole.cpu_s - cpu_s)
    num_frames = int(plan.ingest.dataset.length.sum())
    return PlanBench(
        version=version,
        num_episodes=num_episodes,
        frames_per_episode=frames_per_episode,
        stored=stored,
        num_frames=num_frames,
        num_chunks=len(plan.ingest.chunks),
        num_files=len(plan.ingest.dataset.files),
        num_parts=num_parts,
        precision=None,
        repeats=repeats,
        seconds=whole.wall_s,
        cpu_s=whole.cpu_s,
        peak_rss_bytes=peak_rss_bytes,
        steps=parts,
        hardware=describe_hardware(),
        **compare(num_frames, whole, floor),
    )


def write_inputs(root: Path, num_episodes: int, version: str, frames_per_episode: int) -> None:
    """What `plan_of` plans the scoring of: a dataset of metadata alone, see `many_episodes.write_metadata`, and a SARM."""
    many_episodes.write_metadata(root / "dataset", num_episodes, version, frames_per_episode)
    _write_small_sarm(root / "sarm")


def plan_of(root: Path) -> ScorePlan:
    """All of planning but the jobs."""
    return plan_scores(_config(root), Cluster(num_cpus=1, num_gpus=0, device="cpu", bf16=True))[0]


def plan_once(root: str) -> int:
    """All of planning, for a process of its own: the number of jobs."""
    return _jobs(plan_of(Path(root)).ingest).num_rows


def _config(root: Path) -> ScoreConfig:
    return ScoreConfig(
        dataset=str(root / "dataset"),
        model=str(root / "sarm"),
        encoder=EFFICIENTNET,
        precision="bf16",
        output=str(root / "progress.parquet"),
        cache=str(root / "features"),
    )


def describe(bench: PlanBench) -> str:
    """For people."""
    steps = {**bench.steps, "all": (bench.seconds, bench.cpu_s)}
    longest = max(map(len, steps))
    return "\n".join(
        [
            f"{bench.version}, {bench.num_episodes:,} episodes: {bench.seconds:.2f} s to plan {bench.num_frames:,} frames in"
            f" {bench.num_chunks:,} chunks; {bench.num_files:,} files listed, "
            + (f"all in the store in {bench.num_parts:,} parts" if bench.stored else "none in the store")
            + f"; {bench.peak_rss_bytes / 1e6:,.0f} MB of memory at most",
            *(
                f"  {name:<{longest}}  {wall_s:6.3f} s  {cpu_s:6.3f} s of CPU"
                for name, (wall_s, cpu_s) in steps.items()
            ),
            f"  {bench.frames_per_s:,.0f} frames/s, {bench.frames_per_cpu_s:,.0f} per CPU-second; the episode table alone "
            f"{bench.floor_frames_per_cpu_s:,.0f}: ratio {bench.floor_ratio:.3f}",
        ]
    )


def _steps(root: Path, plan: ScorePlan) -> dict[str, Callable[[], object]]:
    """The parts of planning that grow with the dataset, in their order."""
    data = plan.ingest
    dataset, length = data.dataset, data.dataset.length[data.rows]
    return {
        "open_dataset": lambda: open_dataset(str(root / "dataset")),
        "state statistics": lambda: state_statistics(dataset, plan.state_key),
        "chunks": lambda: plan_chunks(data.rows, length),
        "needed frames": lambda: bitmaps_by_length(length, lambda frames: needed_frames(frames, 1, plan.window)),
        "fingerprints": lambda: fingerprint_sources(dataset, data.camera),
        "read_index": lambda: held_frames(data.index(), len(data.chunks)),
        "task texts": lambda: episode_texts(dataset, data.rows),
        "computed frames": lambda: bitmaps_by_length(length, lambda frames: computed_mask(frames, 1)),
        "plan_jobs": lambda: _jobs(data),
    }


def _jobs(plan: IngestPlan) -> pa.Table:
    return plan_jobs(plan, plan.todo, number=0)


def _read_table(root: Path, version: str) -> pa.Table:
    """The episode table and nothing else."""
    if version == "v3.0":
        return pq.read_table(root / "meta/episodes")
    return pyarrow.json.read_json(root / "meta/episodes.jsonl")


def _write_small_sarm(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {"image_dim": 1280, "text_dim": 512, "hidden_dim": 32, "num_heads": 2, "num_layers": 1}
    names = {"sparse_subtask_names": ["task"], "sparse_temporal_proportions": [1.0]}
    config = SarmConfig(image_key=many_episodes.CAMERA, **sizes, **names)  # type: ignore[arg-type]
    save_checkpoint(str(folder), config, Sarm(config.shape))
