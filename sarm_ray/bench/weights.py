"""`sarm-ray bench weights`: RA-BC's weights of very many frames, from a progress file to a file of weights."""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.bench.apart import RUN_MODULE, run_apart
from sarm_ray.bench.measure import Figures, Timing, compare, describe_hardware
from sarm_ray.data.progress_io import ROWS_PER_GROUP, progress_schema

EPISODE_FRAMES = 400
# The least that could be done: the columns that are needed come in, as many as there will be go out, block by block.
FLOOR = """
import sys
import pyarrow as pa, pyarrow.parquet as pq
names = ["index", "episode_index", "progress_sparse"]
schema = pa.schema([(name, pa.int64()) for name in ("index", "episode_index", "frame_index")]
                   + [(name, pa.float32()) for name in ("delta", "weight")])
with pq.ParquetFile(sys.argv[1]) as file, pq.ParquetWriter(sys.argv[2], schema) as writer:
    for batch in file.iter_batches(int(sys.argv[3]), columns=names):
        index, episode, progress = batch.columns
        writer.write_table(pa.table([index, episode, index, progress, progress], schema=schema))
"""


@dataclass(frozen=True, kw_only=True)
class WeightsBench(Figures):
    """What was measured.

    Args:
        num_frames, num_episodes: of the progress file.
        seconds, cpu_s: wall and CPU time of the command, its start included.
        peak_rss_bytes: most memory that it had.
    """

    num_frames: int
    num_episodes: int
    seconds: float
    cpu_s: float
    peak_rss_bytes: int


def bench_weights(num_frames: int, repeats: int = 3) -> WeightsBench:
    """Weigh frames with `sarm-ray weights --output`, in a process of its own.

    The floor is a process of its own too, in which pyarrow reads the columns that are needed, once, and writes as many as
    the command does.

    Args:
        num_frames: in episodes of EPISODE_FRAMES.
        repeats: medians are over as many, after one that does not count.
    """
    with tempfile.TemporaryDirectory(prefix="sarm_bench_") as scratch:
        progress, output = f"{scratch}/sarm_progress.parquet", f"{scratch}/weights.parquet"
        num_episodes = _write_progress(Path(progress), num_frames)
        command = (RUN_MODULE, ["sarm_ray", "weights", progress, "--output", output, "--overwrite"])
        floor = (FLOOR, [progress, f"{scratch}/floor.parquet", str(ROWS_PER_GROUP)])
        timings: list[list[Timing]] = [[], []]
        peaks = []
        for _ in range(repeats + 1):  # they take turns, see `measure`
            for number, (code, arguments) in enumerate((command, floor)):
                _, timing, peak = run_apart(code, arguments)
                timings[number].append(timing)
                if number == 0:
                    peaks.append(peak)
        if pq.read_metadata(output).num_rows != num_frames:
            raise RuntimeError(f"{output} has not all of {num_frames} frames")
    work, least = (_median(own[1:]) for own in timings)
    return WeightsBench(
        num_frames=num_frames,
        num_episodes=num_episodes,
        precision=None,
        repeats=repeats,
        seconds=work.wall_s,
        cpu_s=work.cpu_s,
        peak_rss_bytes=max(peaks),
        hardware=describe_hardware(),
        **compare(num_frames, work, least),
    )


def describe(bench: WeightsBench) -> str:
    """For people."""
    return (
        f"{bench.num_frames:,} frames of {bench.num_episodes:,} episodes weighed in {bench.seconds:.2f} s, "
        f"{bench.cpu_s:.2f} s of CPU, {bench.peak_rss_bytes / 1e6:.0f} MB of memory at most\n"
        f"  {bench.frames_per_s:,.0f} frames/s, {bench.frames_per_cpu_s:,.0f} per CPU-second; reading and writing alone "
        f"{bench.floor_frames_per_cpu_s:,.0f}: ratio {bench.floor_ratio:.3f}"
    )


def _write_progress(path: Path, num_frames: int) -> int:
    """A noisy progress file as `score` writes it; returns its episodes. The last one may be shorter than the others."""
    rng = np.random.default_rng(0)
    schema = progress_schema(("sparse",), {"reward_model_path": "bench"})
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, num_frames, ROWS_PER_GROUP):
            index = np.arange(first, min(first + ROWS_PER_GROUP, num_frames))
            episode, frame = np.divmod(index, EPISODE_FRAMES)
            progress = np.clip(frame / EPISODE_FRAMES + rng.normal(0, 0.05, len(index)), 0, 1).astype(np.float32)
            writer.write_table(pa.table([index, episode, frame, progress], schema=schema))
    return -(-num_frames // EPISODE_FRAMES)


def _median(timings: list[Timing]) -> Timing:
    return Timing(
        statistics.median(timing.wall_s for timing in timings), statistics.median(timing.cpu_s for timing in timings)
    )
