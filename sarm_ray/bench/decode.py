"""`sarm-ray bench decode`: video to small images on one thread, as an ingest does it."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from sarm_ray.bench import synthetic
from sarm_ray.bench.measure import Figures, compare, describe_hardware, measure, one_torch_thread
from sarm_ray.core.episodes import CHUNK_FRAMES
from sarm_ray.data.video import FrameRequest, read_frames
from sarm_ray.errors import VideoError

IMAGE_SIZE = 224


@dataclass(frozen=True, kw_only=True)
class DecodeBench(Figures):
    """What was measured. Frames are those that come out; `source_frames_per_*` counts those of the video.

    Args:
        codec, size, gop, num_frames: of the video.
        every: one frame in so many is wanted.
    """

    codec: str
    size: tuple[int, int]
    gop: int
    num_frames: int
    every: int
    source_frames_per_s: float
    source_frames_per_cpu_s: float


def bench_decode(
    codec: str = "av1",
    size: tuple[int, int] = (480, 640),
    gop: int = 2,
    num_frames: int = 1024,
    every: int = 1,
    repeats: int = 3,
) -> DecodeBench:
    """Decode and resize the frames of one drawn video with `read_frames`, in chunks, on one thread.

    The floor is PyAV alone: the whole file decoded on one thread, the wanted frames turned into full-size RGB, none
    resized. It does not skip what is not wanted, so the ratio may pass 1 where `every` is larger than the GOP.

    Args:
        codec, size, gop, num_frames: of the video, see `synthetic.write_video`.
        every: want one frame in so many.
        repeats: medians are over as many, after one that does not count.
    """
    with tempfile.TemporaryDirectory(prefix="sarm_bench_") as scratch, one_torch_thread():
        path = Path(scratch) / "video.mp4"
        frames = synthetic.draw_frames(num_frames, size, np.random.default_rng(0))
        synthetic.write_video(path, frames, size, codec, gop)
        wanted = np.arange(0, num_frames, every)
        requests = [FrameRequest(None, 0.0, own) for own in np.split(wanted, _chunk_bounds(wanted)) if len(own)]
        work, floor = measure(repeats, lambda: _read(str(path), requests), lambda: _decode_bare(str(path), every))
    return DecodeBench(
        codec=codec,
        size=size,
        gop=gop,
        num_frames=num_frames,
        every=every,
        source_frames_per_s=num_frames / work.wall_s,
        source_frames_per_cpu_s=num_frames / work.cpu_s,
        precision="uint8",
        repeats=repeats,
        hardware=describe_hardware(),
        **compare(len(wanted), work, floor),
    )


def describe(bench: DecodeBench) -> str:
    """For people."""
    height, width = bench.size
    source = f" ({bench.source_frames_per_cpu_s:,.0f} of the video)" if bench.every > 1 else ""
    return (
        f"{bench.codec} {height}x{width}, a keyframe every {bench.gop}, one frame in {bench.every}: "
        f"{bench.frames_per_cpu_s:,.0f} frames per CPU-second{source}, {bench.frames_per_s:,.0f} frames/s\n"
        f"  PyAV to full-size RGB {bench.floor_frames_per_cpu_s:,.0f}: ratio {bench.floor_ratio:.2f}"
    )


def _chunk_bounds(wanted: np.ndarray) -> np.ndarray:
    """Where `wanted` passes from one chunk to the next."""
    return np.searchsorted(wanted, np.arange(CHUNK_FRAMES, wanted[-1] + 1, CHUNK_FRAMES))


def _read(location: str, requests: list[FrameRequest]) -> None:
    for images in read_frames(location, requests, synthetic.FPS, IMAGE_SIZE):
        if isinstance(images, VideoError):
            raise images


def _decode_bare(path: str, every: int) -> None:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number % every == 0:
                frame.to_ndarray(format="rgb24")
