"""One episode as the page shows it: a strip of pictures, and a small video that every browser plays.

An episode with a video is decoded once from beginning to end, and strip, video and the check for a dead camera come out of
it; for the others a few frames are sought.
"""

import bisect
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.video.frame import PictureType
from PIL import Image

from sarm_ray.data import node_cache
from sarm_ray.data.inspection.footage import BLOCKS_HIGH, is_black, is_frozen
from sarm_ray.data.lerobot import Dataset
from sarm_ray.data.rows import read_episode_table
from sarm_ray.data.video import LFS_POINTER, REORDER_FRAMES, TOLERANCE_FRAMES
from sarm_ray.errors import SarmRayError

STRIP_FRAMES = 7  # a card shows every other one
STRIP_HEIGHT = 96
WIDEST_PICTURE = 3.0  # width over height; wider ones lose their sides in the strip
VIDEO_HEIGHT = 320
SEEK_FRAMES = 8  # a frame further ahead than this is sought, if a keyframe lies between
CODEC_OPTIONS = {"preset": "veryfast", "crf": "30", "bf": "0"}  # no B-frames: a player then starts at 0 exactly
UNREADABLE = (
    av.error.FFmpegError,
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Film:
    """What an episode looks like.

    Args:
        strip: STRIP_FRAMES pictures beside each other, (STRIP_HEIGHT, STRIP_FRAMES * w, 3) uint8 RGB, black where one cannot
            be read; None where none can.
        video: an mp4 (H.264, yuv420p, at the dataset's frame rate, frame k at k / fps), or None.
        num_frames: of the video that are there, from the first one on.
        dead: `frozen` or `black` where the camera is; else None.
        problem: why the video, or the end of it, cannot be read; None where it can.
    """

    strip: np.ndarray | None
    video: bytes | None
    num_frames: int
    dead: str | None
    problem: str | None


def strip_frames(length: int) -> np.ndarray:
    """The frames of a strip, spread evenly, first and last among them: (STRIP_FRAMES,) int64."""
    return np.linspace(0, length - 1, STRIP_FRAMES).round().astype(np.int64)


def film_episode(dataset: Dataset, camera: str, row: int, with_video: bool) -> Film:
    """Decode one episode of a camera. Never raises for what cannot be read: that is `Film.problem`.

    Args:
        dataset: whose files are within reach.
        camera: its key.
        row: position of the episode in the table.
        with_video: make the video too.
    """
    length = int(dataset.length[row])
    wanted = np.arange(length) if with_video else np.unique(strip_frames(length))
    pictures = _video_pictures if dataset.is_video(camera) else _image_pictures
    problem = None
    with tempfile.TemporaryDirectory(prefix="sarm-ray-") as folder:
        reel = _Reel(strip_frames(length), Path(folder) / "video.mp4" if with_video else None, dataset.fps)
        try:
            for number, frame in pictures(dataset, camera, row, wanted):
                reel.add(number, frame)
        except FileNotFoundError:
            problem = "no such file"
        except SarmRayError as error:
            problem = str(error).removeprefix(f"{dataset.location(dataset.camera_files(camera).path(row))}: ")
        except UNREADABLE as error:
            reason = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
            problem = f"the decoder stops ({reason})" if reel.num_added else f"not a readable video ({reason})"
        if problem is None and reel.num_added < len(wanted):
            problem = f"it has {reel.num_added:,} of {len(wanted):,} frames"
        return reel.film(f"{dataset.camera_files(camera).path(row)}: {problem}" if problem else None)


class _Reel:
    """Takes frames in order, and becomes a Film."""

    def __init__(self, strip: np.ndarray, path: Path | None, fps: float):
        self.places = strip.tolist()
        self.path, self.fps = path, fps
        self.thumbnails: dict[int, np.ndarray] = {}
        self.levels: list[np.ndarray] = []
        self.num_added, self.last = 0, -1
        self.output: av.container.OutputContainer | None = None
        self.stream: av.VideoStream | None = None

    def add(self, number: int, frame: av.VideoFrame) -> None:
        if number in self.places:
            width = round(STRIP_HEIGHT * min(frame.width / frame.height, WIDEST_PICTURE))
            self.thumbnails[number] = _scaled(frame, width, STRIP_HEIGHT, "rgb24").to_ndarray()
            wide = max(round(BLOCKS_HIGH * frame.width / frame.height), 1)
            self.levels.append(_scaled(frame, wide, BLOCKS_HIGH, "gray").to_ndarray().astype(np.float32))
        if self.path is not None:
            self._encode(number, frame)
        self.num_added, self.last = self.num_added + 1, number

    def film(self, problem: str | None) -> Film:
        video = None
        if self.output is not None and self.stream is not None and self.path is not None:
            self.output.mux(self.stream.encode(None))
            self.output.close()
            video = self.path.read_bytes()
        levels = (
            np.stack([level for level in self.levels if level.shape == self.levels[0].shape]) if self.levels else None
        )
        dead = None
        if levels is not None and problem is None:
            dead = "black" if is_black(levels) else "frozen" if is_frozen(levels) else None
        return Film(self._strip(), video, self.last + 1, dead, problem)

    def _strip(self) -> np.ndarray | None:
        if not self.thumbnails:
            return None
        blank = np.zeros_like(next(iter(self.thumbnails.values())))
        shown = [self.thumbnails.get(place, blank) for place in self.places]
        return np.concatenate([each if each.shape == blank.shape else blank for each in shown], axis=1)

    def _encode(self, number: int, frame: av.VideoFrame) -> None:
        if self.output is None:
            rate = Fraction(self.fps).limit_denominator(1001)
            self.output = av.open(str(self.path), "w", format="mp4", options={"movflags": "+faststart"})
            self.stream = self.output.add_stream("libx264", rate=rate, options=CODEC_OPTIONS)
            height = min(frame.height, VIDEO_HEIGHT)
            self.stream.height, self.stream.width = _even(height), _even(frame.width * height / frame.height)
            self.stream.pix_fmt = "yuv420p"
            self.stream.codec_context.time_base = 1 / rate
            self.stream.codec_context.gop_size = max(round(self.fps), 1)  # dragging the cursor seeks all the time
            self.stream.codec_context.thread_count = 1
        assert self.stream is not None
        small = _scaled(frame, self.stream.width, self.stream.height, "yuv420p")
        small.pts, small.time_base, small.pict_type = number, self.stream.codec_context.time_base, PictureType.NONE
        self.output.mux(self.stream.encode(small))


def _scaled(frame: av.VideoFrame, width: int, height: int, form: str) -> av.VideoFrame:
    return frame.reformat(width=width, height=height, format=form, interpolation="AREA")


def _even(size: float) -> int:
    """yuv420p has half as many colours as pixels."""
    return max(round(size / 2) * 2, 2)


def _video_pictures(dataset: Dataset, camera: str, row: int, frames: np.ndarray) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames of a video by their time, ascending; those that it does not have are passed over."""
    files = dataset.camera_files(camera)
    tolerance_s = TOLERANCE_FRAMES / dataset.fps
    times = (float(files.from_timestamp[row]) + frames / dataset.fps).tolist()
    with node_cache.open_input(dataset.location(files.path(row))) as source:
        if source.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError("it is a Git LFS pointer; fetch the video with git lfs pull")
        source.seek(0)
        with av.open(source, mode="r") as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            time_base = float(stream.time_base or 1)
            margin_s = REORDER_FRAMES / dataset.fps if stream.codec_context.has_b_frames else 0.0
            keyframes = [entry.timestamp * time_base for entry in stream.index_entries if entry.is_keyframe]
            decoded: Iterator[av.VideoFrame] = iter(())
            held, position_s = None, -np.inf
            for number, time_s in zip(frames.tolist(), times, strict=True):
                before = bisect.bisect(keyframes, time_s - margin_s + tolerance_s)
                nearer = keyframes[before - 1] > position_s if before else position_s < 0
                if nearer and time_s - position_s > SEEK_FRAMES / dataset.fps:
                    place = round(max(time_s - margin_s + tolerance_s, 0.0) / time_base)
                    container.seek(place, stream=stream, backward=True)
                    decoded, held = container.decode(stream), None
                while held is None or held.time is None or held.time < time_s - tolerance_s:
                    held = next(decoded, None)
                    if held is None:
                        return
                    position_s = held.time if held.time is not None else position_s
                if held.time <= time_s + tolerance_s:
                    yield number, held


def _image_pictures(dataset: Dataset, camera: str, row: int, frames: np.ndarray) -> Iterator[tuple[int, av.VideoFrame]]:
    """The same of an image dataset."""
    location = dataset.location(dataset.camera_files(camera).path(row))
    episode = int(dataset.episode_index[row]) if dataset.version == "v3.0" else None
    cells = read_episode_table(location, (camera,), episode)[camera]
    for number in frames.tolist():
        with Image.open(io.BytesIO(cells[number].as_py()["bytes"])) as image:
            yield number, av.VideoFrame.from_image(image.convert("RGB"))
