"""`sarm-ray bench score`: the whole of `score` on full-size networks, against the floor of its parts.

The floor is what one thread needs for a frame in decode + resize, CLIP and SARM, measured in the same call on the same
machine; the run's own figure counts the CPU time of every process it starts, Ray's included.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sarm_ray.bench import synthetic
from sarm_ray.bench.measure import CpuMeter, Figures, describe_hardware, measure, one_torch_thread
from sarm_ray.config.score import ScoreConfig
from sarm_ray.core.windows import window_slots
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.video import FrameRequest, read_frames
from sarm_ray.model.checkpoint import open_checkpoint
from sarm_ray.model.encoder import describe_encoder, load_image_encoder
from sarm_ray.model.scorer import CPU_WINDOWS_PER_PASS, Scorer
from sarm_ray.pipelines.score import score

LEROBOT_FRAMES_PER_CPU_S = 0.62
FLOOR_FRAMES = 128
FLOOR_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class ScoreBench(Figures):
    """What was measured. The wall clock includes the start-up of Ray, CPU time is that of all processes of the run.

    Args:
        num_frames, episode_frames, size, codec: of the dataset.
        worker_frames_per_cpu_s: over the CPU time inside decode, encode and score.
        lerobot_ratio: frames_per_cpu_s / LeRobot's 0.62 (../shared/numbers.md, fp32, another machine of this kind).
        floor_ms: CPU milliseconds of one frame in each part.
    """

    num_frames: int
    episode_frames: int
    size: tuple[int, int]
    codec: str
    worker_frames_per_cpu_s: float
    lerobot_ratio: float
    floor_ms: dict[str, float]


def bench_score(
    precision: str,
    num_frames: int,
    episode_frames: int = 512,
    size: tuple[int, int] = (480, 640),
    codec: str = "av1",
    repeats: int = 1,
) -> ScoreBench:
    """Score `num_frames` drawn frames, both heads, stride 1, with random full-size CLIP and SARM.

    The floor is what one frame takes in decode, CLIP and SARM on one thread; its measurement is the warm-up.

    Args:
        precision: `fp32` or `bf16`.
        num_frames, episode_frames, size, codec: see `synthetic.write_dataset`.
        repeats: whole runs, each with an empty store; medians are over as many.
    """
    with tempfile.TemporaryDirectory(prefix="sarm_bench_") as scratch:
        root = Path(scratch)
        synthetic.write_dataset(root / "dataset", num_frames, episode_frames, size, codec)
        synthetic.write_clip(root / "clip")
        synthetic.write_sarm(root / "sarm")
        floor_ms = measure_floor(root, precision)
        runs = [_run(_config(root, precision, number), num_frames) for number in range(repeats)]
    per_s, per_cpu_s, worker_per_cpu_s = (statistics.median(each) for each in zip(*runs, strict=True))
    floor = 1000 / sum(floor_ms.values())
    return ScoreBench(
        num_frames=num_frames,
        episode_frames=episode_frames,
        size=size,
        codec=codec,
        worker_frames_per_cpu_s=worker_per_cpu_s,
        lerobot_ratio=per_cpu_s / LEROBOT_FRAMES_PER_CPU_S,
        floor_ms=floor_ms,
        precision=precision,
        frames_per_s=per_s,
        frames_per_cpu_s=per_cpu_s,
        floor_frames_per_cpu_s=floor,
        floor_ratio=per_cpu_s / floor,
        repeats=repeats,
        hardware=describe_hardware(),
    )


def _config(root: Path, precision: str, number: int) -> ScoreConfig:
    """One run: its own output and an empty store."""
    return ScoreConfig(
        dataset=str(root / "dataset"),
        model=str(root / "sarm"),
        encoder=str(root / "clip"),
        head_mode="both",
        precision=precision,  # type: ignore[arg-type]
        output=str(root / f"progress-{number}.parquet"),
        cache=str(root / f"features-{number}"),
        num_visualizations=0,
    )


def _run(config: ScoreConfig, num_frames: int) -> tuple[float, float, float]:
    """Frames per second, per CPU-second of all processes, and per CPU-second inside the workers' tasks."""
    with CpuMeter() as meter:
        report = score(config, quiet=True)
    assert report is not None
    assert report.frames_per_cpu_s is not None
    return report.frames_per_s, num_frames / meter.cpu_s, report.frames_per_cpu_s


def measure_floor(root: Path, precision: str) -> dict[str, float]:
    """CPU milliseconds per frame of each part on one thread, median of FLOOR_REPEATS after one warm-up."""
    with one_torch_thread():
        dataset = open_dataset(str(root / "dataset"))
        files = dataset.videos[synthetic.CAMERA]
        request = FrameRequest(0, 0.0, np.arange(min(FLOOR_FRAMES, int(dataset.length[0]))))
        count = len(request.frames)
        video = dataset.location(files.path(0))
        decode = _cpu_ms(lambda: list(read_frames(video, [request], dataset.fps, 224)), count)
        images = next(read_frames(video, [request], dataset.fps, 224))
        assert isinstance(images, np.ndarray)
        encoder = load_image_encoder(describe_encoder("clip", str(root / "clip")), precision, "cpu")
        encode = _cpu_ms(lambda: encoder(images[:32]), 32)
        checkpoint = open_checkpoint("sarm", str(root / "sarm"))
        window = checkpoint.window(checkpoint.config.frame_gap)
        scorer = Scorer(checkpoint, ("sparse", "dense"), window.readout_slot, precision, "cpu")
        slots = window_slots(np.arange(CPU_WINDOWS_PER_PASS), CPU_WINDOWS_PER_PASS, window)
        features = np.random.default_rng(0).standard_normal((CPU_WINDOWS_PER_PASS, 512)).astype(np.float32)
        states, text = np.zeros((CPU_WINDOWS_PER_PASS, 32), dtype=np.float32), features[0]
        whole = np.ones(CPU_WINDOWS_PER_PASS, dtype=bool)
        scored = _cpu_ms(lambda: scorer.score(features, states, text, slots, whole), CPU_WINDOWS_PER_PASS)
    return {"decode": decode, "encode": encode, "score": scored}


def describe(bench: ScoreBench) -> str:
    parts = ", ".join(f"{name} {ms:.1f} ms" for name, ms in bench.floor_ms.items())
    return (
        f"{bench.precision}: {bench.frames_per_cpu_s:.1f} frames per CPU-second over all processes "
        f"({bench.worker_frames_per_cpu_s:.1f} in the workers), {bench.frames_per_s:.1f} frames/s\n"
        f"  floor {bench.floor_frames_per_cpu_s:.1f} ({parts} per frame and core): ratio {bench.floor_ratio:.2f}\n"
        f"  LeRobot {LEROBOT_FRAMES_PER_CPU_S}: {bench.lerobot_ratio:.0f} times as many"
    )


def _cpu_ms(work: Callable[[], object], count: int) -> float:
    return measure(FLOOR_REPEATS, work)[0].cpu_s / count * 1000
