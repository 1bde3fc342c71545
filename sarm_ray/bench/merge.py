"""`sarm-ray bench merge`: what the driver does around the scoring of very many episodes, on synthetic parts.

A resumed run finds out which chunks are done; at the end the store is checked, the parts are merged, the output is looked
over for RA-BC, and weighed. Each step runs once, in a process of its own, which plans first where `score` has a plan.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sarm_ray.bench import many_episodes
from sarm_ray.bench.apart import RUN_MODULE, call_apart, run_apart
from sarm_ray.bench.measure import Figures, Timing, compare, describe_hardware
from sarm_ray.bench.plan import plan_of, write_inputs
from sarm_ray.data.lease import hold_lease
from sarm_ray.data.progress_io import ROWS_PER_GROUP
from sarm_ray.pipelines.ingest import check_store
from sarm_ray.pipelines.score_chunks import chunks_to_score
from sarm_ray.pipelines.score_output import write_output
from sarm_ray.pipelines.score_plan import ScorePlan

HEAD = "sparse"
# The least that could be done: rows of the same number and kind go out, block by block, and nothing comes in.
FLOOR = """
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
place, num_rows, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
schema = pa.schema([(name, pa.int64()) for name in ("index", "episode_index", "frame_index")] + [("progress", pa.float32())])
progress = np.random.default_rng(0).random(step).astype(np.float32)
with pq.ParquetWriter(place, schema) as writer:
    for first in range(0, num_rows, step):
        index = np.arange(first, min(first + step, num_rows))
        columns = [index, index // 1000, index % 1000, progress[: len(index)]]
        writer.write_table(pa.table(columns, schema=schema))
"""


@dataclass(frozen=True, kw_only=True)
class MergeBench(Figures):
    """What was measured.

    Args:
        num_episodes, frames_per_episode, chunks_per_part: as asked for.
        num_frames, num_chunks, num_parts, output_bytes: of the plan, the parts and the merged file.
        steps: wall seconds, CPU seconds and peak memory in bytes of each; those of `advice` and `weights` are of
            the whole process. A peak has all of its process in it, modules and the plan.
    """

    num_episodes: int
    frames_per_episode: int
    chunks_per_part: int
    num_frames: int
    num_chunks: int
    num_parts: int
    output_bytes: int
    steps: dict[str, tuple[float, float, int]]


def bench_merge(num_episodes: int, frames_per_episode: int = 1000, chunks_per_part: int = 32) -> MergeBench:
    """Take a scoring whose chunks are all in parts to its end; Ray is not started.

    The figures are those of the merge. The floor is pyarrow writing as many rows of the same columns from memory.

    Args:
        num_episodes: of LeRobot v3.0, with metadata alone.
        frames_per_episode: the mean, see `many_episodes.write_metadata`.
        chunks_per_part: 32 is what a run on GPUs commits at once, 1 what one on CPUs does.
    """
    with tempfile.TemporaryDirectory(prefix="sarm_bench_") as scratch:
        made = prepare(scratch, num_episodes, frames_per_episode, chunks_per_part)
        steps = {}
        for name in _STEPS:
            (wall_s, cpu_s), _, peak = call_apart(__name__, "run_step", root=scratch, name=name)
            steps[name] = (wall_s, cpu_s, peak)
        output = Path(scratch) / "progress.parquet"
        # by name: the house keeps bench from importing report
        advice = {"path": str(output), "head": HEAD}
        _, timing, peak = call_apart("sarm_ray.report.advice", "describe_rabc", **advice)
        steps["advice"] = (timing.wall_s, timing.cpu_s, peak)
        weights = ["sarm_ray", "weights", str(output), "--output", f"{scratch}/weights.parquet"]
        _, timing, peak = run_apart(RUN_MODULE, weights)
        steps["weights"] = (timing.wall_s, timing.cpu_s, peak)
        _, floor, _ = run_apart(FLOOR, [f"{scratch}/floor.parquet", str(made["num_frames"]), str(ROWS_PER_GROUP)])
        output_bytes = output.stat().st_size
    return MergeBench(
        num_episodes=num_episodes,
        frames_per_episode=frames_per_episode,
        chunks_per_part=chunks_per_part,
        num_frames=made["num_frames"],
        num_chunks=made["num_chunks"],
        num_parts=made["num_parts"],
        output_bytes=output_bytes,
        steps=steps,
        precision=None,
        repeats=1,
        hardware=describe_hardware(),
        **compare(made["num_frames"], Timing(*steps["merge"][:2]), floor),
    )


def describe(bench: MergeBench) -> str:
    """For people."""
    longest = max(map(len, bench.steps))
    return "\n".join(
        [
            f"{bench.num_episodes:,} episodes, {bench.num_frames:,} frames in {bench.num_chunks:,} chunks, "
            f"{bench.num_parts:,} parts; merged into {bench.output_bytes / 1e6:,.0f} MB",
            *(
                f"  {name:<{longest}}  {wall_s:8.2f} s  {cpu_s:8.2f} s of CPU  {peak / 1e6:6,.0f} MB at most"
                for name, (wall_s, cpu_s, peak) in bench.steps.items()
            ),
            f"  merge: {bench.frames_per_s:,.0f} frames/s, {bench.frames_per_cpu_s:,.0f} per CPU-second; writing alone "
            f"{bench.floor_frames_per_cpu_s:,.0f}: ratio {bench.floor_ratio:.3f}",
        ]
    )


def prepare(root: str, num_episodes: int, frames_per_episode: int, chunks_per_part: int) -> dict[str, int]:
    """A dataset of metadata alone, its features in the store, its scores in parts; the numbers of what was made."""
    write_inputs(Path(root), num_episodes, "v3.0", frames_per_episode)
    plan = plan_of(Path(root))
    many_episodes.fill_store(plan.ingest.store, Path(root) / "dataset")
    num_parts = many_episodes.fill_parts(
        Path(plan.parts_folder), plan.ingest.dataset, plan.ingest.chunks, plan.computed, HEAD, chunks_per_part
    )
    num_frames = int(plan.ingest.dataset.length.sum())
    return {"num_frames": num_frames, "num_chunks": len(plan.ingest.chunks), "num_parts": num_parts}


def run_step(root: str, name: str) -> tuple[float, float]:
    """One of _STEPS, for a process of its own: its wall and CPU seconds, planning not counted."""
    plan = plan_of(Path(root))
    wall_before, cpu_before = time.perf_counter(), time.process_time()
    _STEPS[name](plan)
    return time.perf_counter() - wall_before, time.process_time() - cpu_before


def _chunks_left(plan: ScorePlan) -> None:
    """What a resumed run has left to do, which is nothing here."""
    left = chunks_to_score(plan)
    if len(left):
        raise RuntimeError(f"{plan.parts_folder} lacks {len(left)} chunks")


def _merge(plan: ScorePlan) -> None:
    with hold_lease(plan.run_folder) as lease:
        num_frames, num_nan = write_output(plan, lease, [])
    if num_frames != plan.ingest.dataset.length.sum() or num_nan[HEAD]:
        raise RuntimeError(f"{plan.output} has not all frames")


_STEPS: dict[str, Callable[[ScorePlan], None]] = {
    "chunks left": _chunks_left,
    "check store": lambda plan: check_store(plan.ingest, []),
    "merge": _merge,
}
