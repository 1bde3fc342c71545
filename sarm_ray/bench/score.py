"""`sarm-ray bench score`: the whole of `score` on full-size networks, against the floor of its parts.

The floor is what one thread needs for a frame in decode + resize, CLIP and SARM, measured in the same call on the same
machine; the run's own figure counts the CPU time of every process it starts, Ray's included.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from sarm_ray.bench import synthetic
from sarm_ray.config import ScoreConfig
from sarm_ray.core.windows import window_slots
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.video import FrameRequest, read_frames
from sarm_ray.model.checkpoint import open_checkpoint
from sarm_ray.model.encoder import describe_encoder, load_image_encoder
from sarm_ray.model.scorer import CPU_WINDOWS_PER_PASS, Scorer
from sarm_ray.pipelines.score import score

LEROBOT_FRAMES_PER_CPU_S = 0.62
FLOOR_FRAMES = 128
REPEATS = 3


@dataclass(frozen=True)
class ScoreBench:
    """What was measured.

    Args:
        precision, num_frames: of the run.
        frames_per_s: over the wall time of the run, start-up of Ray included.
        frames_per_cpu_s: over the CPU time of all its processes.
        worker_frames_per_cpu_s: over the CPU time inside decode, encode and score.
        floor_frames_per_cpu_s: what decode, CLIP and SARM alone allow.
        floor_ratio: frames_per_cpu_s / floor.
        lerobot_ratio: frames_per_cpu_s / LeRobot's 0.62 (../shared/numbers.md, fp32, another machine of this kind).
        floor_ms: milliseconds of one frame in each part.
    """

    precision: str
    num_frames: int
    frames_per_s: float
    frames_per_cpu_s: float
    worker_frames_per_cpu_s: float
    floor_frames_per_cpu_s: float
    floor_ratio: float
    lerobot_ratio: float
    floor_ms: dict[str, float]


def bench_score(precision: str, num_frames: int) -> ScoreBench:
    """Score `num_frames` drawn frames, both heads, stride 1, with random full-size CLIP and SARM."""
    with tempfile.TemporaryDirectory(prefix="sarm_bench_") as scratch:
        root = Path(scratch)
        synthetic.write_dataset(root / "dataset", num_frames)
        synthetic.write_clip(root / "clip")
        synthetic.write_sarm(root / "sarm")
        floor_ms = measure_floor(root, precision)
        config = ScoreConfig(
            dataset=str(root / "dataset"),
            model=str(root / "sarm"),
            encoder=str(root / "clip"),
            head_mode="both",
            precision=precision,  # type: ignore[arg-type]
            output=str(root / "progress.parquet"),
            cache=str(root / "features"),
        )
        with CpuMeter() as meter:
            report = score(config, quiet=True)
    assert report is not None
    assert report.frames_per_cpu_s is not None
    floor = 1000 / sum(floor_ms.values())
    per_cpu_s = num_frames / meter.cpu_s
    return ScoreBench(
        precision=precision,
        num_frames=num_frames,
        frames_per_s=report.frames_per_s,
        frames_per_cpu_s=per_cpu_s,
        worker_frames_per_cpu_s=report.frames_per_cpu_s,
        floor_frames_per_cpu_s=floor,
        floor_ratio=per_cpu_s / floor,
        lerobot_ratio=per_cpu_s / LEROBOT_FRAMES_PER_CPU_S,
        floor_ms=floor_ms,
    )


def measure_floor(root: Path, precision: str) -> dict[str, float]:
    """CPU milliseconds per frame of each part on one thread, median of REPEATS after one warm-up."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
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
    finally:
        torch.set_num_threads(num_threads)
    return {"decode": decode, "encode": encode, "score": scored}


def describe_bench(bench: ScoreBench) -> str:
    parts = ", ".join(f"{name} {ms:.1f} ms" for name, ms in bench.floor_ms.items())
    return (
        f"{bench.precision}: {bench.frames_per_cpu_s:.1f} frames per CPU-second over all processes "
        f"({bench.worker_frames_per_cpu_s:.1f} in the workers), {bench.frames_per_s:.1f} frames/s\n"
        f"  floor {bench.floor_frames_per_cpu_s:.1f} ({parts} per frame and core): ratio {bench.floor_ratio:.2f}\n"
        f"  LeRobot {LEROBOT_FRAMES_PER_CPU_S}: {bench.lerobot_ratio:.0f} times as many"
    )


class CpuMeter:
    """CPU time of this process and all its descendants, also those that end meanwhile, to a sampling interval."""

    INTERVAL_S = 0.2

    def __enter__(self) -> "CpuMeter":
        self._times: dict[int, float] = {}
        self._before = time.process_time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.cpu_s = sum(self._times.values()) + time.process_time() - self._before

    def _sample(self) -> None:
        while not self._stop.wait(self.INTERVAL_S):
            for process in psutil.Process().children(recursive=True):
                try:
                    times = process.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                self._times[process.pid] = times.user + times.system


def _cpu_ms(work: Callable[[], object], count: int) -> float:
    work()
    seconds = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds) / count * 1000
