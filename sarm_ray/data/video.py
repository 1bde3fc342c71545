"""Frames of an episode as small RGB images: one open per file, sequential, identified by pts, unneeded GOPs skipped.

Frame k of an episode is the video frame whose presentation time is nearest to `from_timestamp + k / fps` and within half
a frame of it; nothing is ever found by counting. Row timestamps are not used: they are k / fps in every sound dataset and
wrong in some unsound ones. Image datasets come through the same call.
"""

import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import av
import av.error
import numpy as np
import pyarrow as pa
from av.video.reformatter import VideoReformatter
from PIL import Image

from sarm_ray.data import node_cache
from sarm_ray.data.resizing import fit, fitted_shape
from sarm_ray.data.rows import read_episode_table
from sarm_ray.errors import DatasetError, VideoError

TOLERANCE_FRAMES = 0.499
EXACT_S = 1e-3
LFS_POINTER = b"version https://git-lfs"
REORDER_FRAMES = 16  # no codec shows a frame more than this many places before one that it decodes first


@dataclass(frozen=True)
class FrameRequest:
    """Frames of one chunk.

    Args:
        episode_index: the episode, for files of images that hold several; None takes the whole file.
        from_timestamp: seconds at which it begins inside its file.
        frames: (k,) int64, ascending, counted inside the episode.
    """

    episode_index: int | None
    from_timestamp: float
    frames: np.ndarray


def read_frames(
    location: str,
    requests: list[FrameRequest],
    fps: float,
    size: int | tuple[int, int],
    image_key: str | None = None,
) -> Iterator[np.ndarray | VideoError]:
    """Frames of several chunks of one file, resized.

    Args:
        location: an mp4, or the data parquet of an image dataset.
        requests: in the order of their time in the file.
        fps: of the dataset.
        size: side of the images, of which the centre is taken; or (height, width) of whole images.
        image_key: the column that holds the images; None for a video.

    Yields:
        For each request, in order, (k, height, width, 3) uint8 RGB, or the VideoError that kept it from being whole.
    """
    if image_key is not None:
        read = functools.lru_cache(maxsize=1)(functools.partial(read_episode_table, location, (image_key,)))
        yield from (_read_images(read, location, request, size, image_key) for request in requests)
        return
    num_done = 0
    try:
        with node_cache.open_input(location) as stream:
            _refuse_what_is_no_video(stream)
            with av.open(stream, mode="r") as container:
                for result in _decode(location, container, requests, fps, size):
                    num_done += 1
                    yield result
    except FileNotFoundError:
        cause = "no such file"
    except (av.error.FFmpegError, OSError, IndexError, ValueError) as error:
        cause = f"not a readable video ({_reason(error)})"
    for _ in requests[num_done:]:
        yield VideoError(location, None, cause)


class _Assembly:
    """Chunks being filled from decoded frames, which come in presentation order."""

    def __init__(self, requests: list[FrameRequest], fps: float, size: int | tuple[int, int]):
        self.requests, self.size = requests, size
        self.tolerance_s = TOLERANCE_FRAMES / fps
        self.times = np.concatenate([request.from_timestamp + request.frames / fps for request in requests])
        self.ends = np.cumsum([len(request.frames) for request in requests])
        self.distance = np.full(len(self.times), np.inf)
        self.pixels: dict[int, np.ndarray] = {}
        self.num_done = 0
        self.reformatter = VideoReformatter()

    def wanted(self, times: np.ndarray) -> np.ndarray:
        """Which presentation times are near a wanted one: (n,) float64 -> (n,) bool."""
        return np.abs(self.times[self._nearest(times)] - times) <= self.tolerance_s

    def add(self, time_s: float, frame: av.VideoFrame) -> None:
        slot = int(self._nearest(np.array([time_s]))[0])
        distance = abs(self.times[slot] - time_s)
        if distance > self.tolerance_s or distance >= self.distance[slot]:
            return
        chunk = int(np.searchsorted(self.ends, slot, side="right"))
        if chunk < self.num_done:
            return
        first = self.ends[chunk] - len(self.requests[chunk].frames)
        if chunk not in self.pixels:
            self.pixels[chunk] = np.empty(fitted_shape(len(self.requests[chunk].frames), self.size), dtype=np.uint8)
        self.pixels[chunk][slot - first] = fit(self._rgb(frame), self.size)
        self.distance[slot] = distance

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """The picture, (H, W, 3) uint8, over the converter's own memory: `to_ndarray` makes a converter for every frame and
        copies what comes out of it, which together take a sixth of the whole.
        """
        plane = self.reformatter.reformat(frame, format="rgb24").planes[0]
        rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(plane.height, plane.line_size)
        return rows[:, : plane.width * 3].reshape(plane.height, plane.width, 3)

    def forget(self, times: np.ndarray) -> None:
        """Take back what frames at these times have filled, in chunks that are not finished."""
        slots = self._nearest(times)
        self.distance[slots[np.abs(self.times[slots] - times) <= self.tolerance_s]] = np.inf

    def finished(self, location: str, time_s: float, cause: str) -> Iterator[np.ndarray | VideoError]:
        """Chunks that no frame at or after `time_s` can change."""
        while self.num_done < len(self.requests):
            end = self.ends[self.num_done]
            last, found = self.times[end - 1], self.distance[end - 1] <= EXACT_S
            if time_s <= last + self.tolerance_s and not (found and time_s >= last - EXACT_S):
                return
            yield self._take(location, cause)

    def _take(self, location: str, cause: str) -> np.ndarray | VideoError:
        chunk, self.num_done = self.num_done, self.num_done + 1
        request = self.requests[chunk]
        first = self.ends[chunk] - len(request.frames)
        absent = np.flatnonzero(np.isinf(self.distance[first : first + len(request.frames)]))
        pixels = self.pixels.pop(chunk, None)
        if pixels is None or len(absent):
            return VideoError(
                location,
                int(request.frames[absent[0]]),
                f"{cause}; {len(absent)} of its chunk's {len(request.frames)} frames are missing",
            )
        return pixels

    def _nearest(self, times: np.ndarray) -> np.ndarray:
        right = np.clip(np.searchsorted(self.times, times), 1, max(len(self.times) - 1, 1))
        right = np.minimum(right, len(self.times) - 1)
        left = np.maximum(right - 1, 0)
        return np.where(np.abs(self.times[left] - times) <= np.abs(self.times[right] - times), left, right)


class _Group:
    """Packets from one keyframe to the next, and which of their frames can be believed.

    Damage spreads through references, and decoders notice it late or conceal it: once one complains, no frame of the
    group counts. An orphan is a group after a damaged or skipped one: its frames that are shown before its keyframe
    refer back (open GOP) and do not count either.
    """

    def __init__(self, packets: list[av.Packet], orphan: bool = False):
        self.pts = [packet.pts for packet in packets if packet.pts is not None]
        self.damaged, self.orphan = False, orphan

    def is_suspect(self, pts: int) -> bool:
        return pts in self.pts and (self.damaged or (self.orphan and pts < self.pts[0]))

    def suspects(self) -> list[int]:
        return [pts for pts in self.pts if self.is_suspect(pts)]


def _refuse_what_is_no_video(stream: IO[bytes]) -> None:
    """Say of two common mishaps more than ffmpeg would."""
    head = stream.read(len(LFS_POINTER))
    stream.seek(0)
    if not head:
        raise ValueError("it is empty")
    if head == LFS_POINTER:
        raise ValueError("it is a Git LFS pointer; fetch the video with git lfs pull")


def _decode(
    location: str,
    container: av.container.InputContainer,
    requests: list[FrameRequest],
    fps: float,
    size: int | tuple[int, int],
) -> Iterator[np.ndarray | VideoError]:
    if not container.streams.video:
        raise ValueError("it has no video stream")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    assembly = _Assembly(requests, fps, size)
    time_base = float(stream.time_base or 0)
    first_s = float(assembly.times[0])
    start_s = (stream.start_time or 0) * time_base
    if start_s > assembly.tolerance_s:
        cause = f"the video starts at {start_s:.3f} s instead of 0, so its frames cannot be told from shifted ones"
        yield from (VideoError(location, int(request.frames[0]), cause) for request in requests)
        return
    if first_s > 1.0:
        # Seeking goes by decode times: a frame shown before an open group's keyframe may come after it in the file.
        early_s = first_s - assembly.tolerance_s - REORDER_FRAMES / fps
        container.seek(max(int(early_s / time_base), 0), stream=stream, backward=True)
    lag_s = REORDER_FRAMES / fps if stream.codec_context.has_b_frames else 0.0
    cause, time_s = "the video has no frame at its time", -np.inf
    previous, group = _Group([]), _Group([])
    for packets, contiguous in _needed_groups(container, stream, assembly, time_base):
        previous, group = group, _Group(packets, orphan=group.damaged or not contiguous)
        for frame in _decode_group(stream.codec_context, packets, contiguous):
            if isinstance(frame, av.error.FFmpegError):
                owner, what = group, _reason(frame)
            elif frame.pts is None or previous.is_suspect(frame.pts) or group.is_suspect(frame.pts):
                continue
            elif frame.is_corrupt:
                owner, what = (previous if frame.pts in previous.pts else group), "damaged data"
            else:
                time_s = frame.pts * time_base
                assembly.add(time_s, frame)
                yield from assembly.finished(location, time_s - lag_s, cause)
                continue
            cause = f"decoder error after {max(time_s, 0):.3f} s: {what}"
            owner.damaged = True
            group.orphan |= previous.damaged
            suspects = previous.suspects() + group.suspects()
            assembly.forget(np.array(suspects, dtype=np.float64) * time_base)
    yield from assembly.finished(
        location, np.inf, cause if np.isinf(time_s) else f"{cause} (last one at {time_s:.3f} s)"
    )


def _needed_groups(
    container: av.container.InputContainer, stream: av.VideoStream, assembly: _Assembly, time_base: float
) -> Iterator[tuple[list[av.Packet], bool]]:
    """Groups of packets from one keyframe to the next that must be decoded; an empty one at the end drains the decoder.

    A group is needed when it holds a wanted frame, or when the next one holds a wanted frame that is shown before its
    keyframe and refers back (open GOP). The flag tells whether the group follows the last yielded one without a gap.
    """
    last_s = assembly.times[-1] + assembly.tolerance_s
    held: tuple[list[av.Packet], bool] | None = None
    contiguous = False
    for group in _keyframe_groups(container, stream):
        times = np.array([packet.pts for packet in group if packet.pts is not None], dtype=np.float64) * time_base
        wanted = assembly.wanted(times)
        leading = bool((wanted & (times < times[0])).any())
        if held is not None:
            packets, needed = held
            if needed or leading:
                yield packets, contiguous
            contiguous = needed or leading
        held = (group, bool(wanted.any()))
        if times.min() > last_s:
            break
    if held is not None and held[1]:
        yield held[0], contiguous
        contiguous = True
    yield [], True


def _keyframe_groups(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[list[av.Packet]]:
    group: list[av.Packet] = []
    try:
        for packet in container.demux(stream):
            if packet.pts is None:
                continue
            if packet.is_corrupt:
                break  # the file ends inside it
            if packet.is_keyframe and group:
                yield group
                group = []
            group.append(packet)
    except av.error.FFmpegError:
        pass  # a file cut short: what was read counts, and the frames that are missing are named by the assembly
    if group:
        yield group


def _decode_group(
    context: av.VideoCodecContext, group: list[av.Packet], contiguous: bool
) -> Iterator[av.VideoFrame | av.error.FFmpegError]:
    """Frames as they come out, those of an earlier group that the decoder still held among them; then an error, if any."""
    if not contiguous or not group:
        yield from _drain(context)
    try:
        for packet in group:
            yield from context.decode(packet)
    except av.error.FFmpegError as error:
        yield error
        yield from _drain(context)


def _drain(context: av.VideoCodecContext) -> Iterator[av.VideoFrame | av.error.FFmpegError]:
    """What the decoder still holds; after it the decoder is as new."""
    try:
        yield from context.decode(None)
    except av.error.FFmpegError as error:
        yield error
    context.flush_buffers()


def _read_images(
    read: Callable[[int | None], pa.Table], location: str, request: FrameRequest, size: int | tuple[int, int], key: str
) -> np.ndarray | VideoError:
    try:
        table = read(request.episode_index)
    except DatasetError as error:
        return VideoError(location, None, str(error).removeprefix(f"{location}: "))
    has_numbers = "frame_index" in table.column_names
    numbers = table["frame_index"].to_numpy() if has_numbers else np.arange(table.num_rows)
    rows = np.searchsorted(numbers, request.frames)
    pixels = np.empty(fitted_shape(len(request.frames), size), dtype=np.uint8)
    for position, (frame, row) in enumerate(zip(request.frames.tolist(), rows.tolist(), strict=True)):
        if row >= len(numbers) or numbers[row] != frame:
            return VideoError(location, frame, f"the episode's {table.num_rows} rows do not have it")
        cell = table[key][row].as_py()
        try:
            with Image.open(io.BytesIO(cell["bytes"])) as image:
                pixels[position] = fit(np.array(image.convert("RGB")), size)
        except (OSError, SyntaxError, ValueError, TypeError, KeyError, Image.DecompressionBombError) as error:
            return VideoError(location, frame, f"not a readable image ({error})")
    return pixels


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)  # without ffmpeg's number and the path
    return text.strip() or type(error).__name__
