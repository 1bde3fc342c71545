"""What a video file says of itself: header, times of its frames, and a few pictures. Opened once; little is decoded."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import av
import av.error
import numpy as np
from PIL import Image

from sarm_ray.data import storage
from sarm_ray.data.rows import read_episode_table
from sarm_ray.data.video import REORDER_FRAMES, TOLERANCE_FRAMES
from sarm_ray.errors import DatasetError

NUM_PICTURES = 5  # per episode
BLOCKS_HIGH = 30  # a picture is compared by the means of its blocks, this many of them in a column
BLACK_LEVEL = 8.0  # mean grey level, of 255; 0 and "video black" (16, shown as 0) alike
FROZEN_LEVEL = (
    6.0  # of 255: a still picture re-encoded changes a block by less (4 in h264 at crf 30), a moving arm by 100
)
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Span:
    """An episode inside a file: its row in the table, where it begins (seconds), its frames."""

    row: int
    from_timestamp: float
    length: int


@dataclass(frozen=True)
class Footage:
    """A file with pictures, opened.

    Args:
        path: relative to the dataset's root.
        spans: every episode in it, by time.
        problem: why it cannot be read, or None; the rest then means nothing.
        codec, pix_fmt, height, width, fps: of its stream; codec is the image format for images.
        keyframe_interval: frames, the median; None for images.
        num_frames: that it holds.
        num_cut: frames that the header promises beyond the end of the file.
        start_s: presentation time of the first frame.
        missing: row -> frames of the episode without a frame of the video within half a frame's time, (k,) int64.
        damaged: row -> why a picture that should be there cannot be decoded.
        pictures: row -> (n, height, width) float32 grey levels, the means of blocks of n pictures across the episode.
    """

    path: str
    spans: tuple[Span, ...]
    problem: str | None = None
    codec: str | None = None
    pix_fmt: str | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    keyframe_interval: float | None = None
    num_frames: int = 0
    num_cut: int = 0
    start_s: float = 0.0
    missing: dict[int, np.ndarray] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)
    pictures: dict[int, np.ndarray] = field(default_factory=dict)


def open_video(
    location: str, path: str, num_bytes: int, spans: tuple[Span, ...], sampled: set[int], fps: float
) -> Footage:
    """Read a video's header and index, and decode a few pictures of the sampled episodes in it.

    Args:
        location, path: of the file; `path` is for people.
        num_bytes: its size, to see whether it was cut short.
        spans: every episode in it.
        sampled: rows of those to decode pictures of.
        fps: of the dataset.
    """
    try:
        with storage.open_input(location) as stream:
            pointer = num_bytes < 1000 and stream.read(len(LFS_POINTER)) == LFS_POINTER
            stream.seek(0)
            if pointer:
                return Footage(path, spans, "a Git LFS pointer, not the video; run `git lfs pull`")
            with av.open(stream, mode="r") as container:
                return _read_video(container, path, num_bytes, spans, sampled, fps)
    except FileNotFoundError:
        problem = "no such file"
    except (av.error.FFmpegError, OSError, IndexError, ValueError) as error:
        problem = f"not a readable video ({_reason(error)})"
    return Footage(path, spans, problem)


def open_images(location: str, path: str, key: str, span: Span, episode: int | None) -> Footage:
    """Decode a few pictures of one episode of an image dataset.

    Args:
        location, path: the data file.
        key: the camera.
        span: the episode.
        episode: its number; None where the file holds no other.
    """
    try:
        cells = read_episode_table(location, (key,), episode)[key]
    except DatasetError as error:
        return Footage(path, (span,), str(error).removeprefix(f"{location}: "))
    frames = np.unique(np.linspace(0, span.length - 1, NUM_PICTURES).round().astype(int)).tolist()
    pictures, damaged, shown = [], {}, None
    for frame in frames:
        try:
            cell = cells[frame].as_py()
            with Image.open(io.BytesIO(cell["bytes"])) as image:
                shown = (image.format, image.mode, image.height, image.width)
                pictures.append(_block_means(np.array(image.convert("L"))))
        except (
            OSError,
            SyntaxError,
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            Image.DecompressionBombError,
        ) as error:
            damaged[span.row] = f"frame {frame} is not a readable image ({error})"
    codec, mode, height, width = shown or (None, None, None, None)
    return Footage(
        path=path,
        spans=(span,),
        codec=codec.lower() if codec else None,
        pix_fmt=mode,
        height=height,
        width=width,
        num_frames=len(cells),
        missing={} if len(cells) >= span.length else {span.row: np.arange(len(cells), span.length)},
        damaged=damaged,
        pictures=_stack({span.row: pictures}),
    )


def is_black(pictures: np.ndarray) -> bool:
    """(n, h, w) grey levels: nothing to see in any of them."""
    return bool((pictures.mean(axis=(1, 2)) < BLACK_LEVEL).all())


def is_frozen(pictures: np.ndarray) -> bool:
    """(n, h, w) grey levels: all the same picture, but for what a codec does to it."""
    return len(pictures) > 2 and bool(np.abs(pictures - pictures[0]).max() < FROZEN_LEVEL)


def _read_video(
    container: av.container.InputContainer,
    path: str,
    num_bytes: int,
    spans: tuple[Span, ...],
    sampled: set[int],
    fps: float,
) -> Footage:
    if not container.streams.video:
        return Footage(path, spans, "has no video stream")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    entries = list(stream.index_entries)
    num_cut = sum(entry.pos + entry.size > num_bytes for entry in entries)
    times, keyframes = _index_times(stream, [entry for entry in entries if entry.pos + entry.size <= num_bytes])
    missing = missing_frames(times, spans, fps)
    if len(times) != stream.frames - num_cut or (missing and stream.codec_context.has_b_frames):
        times, keyframes = _packet_times(container, stream)  # the index is incomplete, or in another order
        missing = missing_frames(times, spans, fps)
    pictures: dict[int, list[np.ndarray]] = {}
    damaged = {}
    for span in spans:
        if span.row in sampled and len(times):
            wanted = _spread_times(times, keyframes, span, fps)
            try:
                pictures[span.row] = [
                    _block_means(frame.to_ndarray(format="gray"))
                    for frame in _frames_at(container, stream, wanted, keyframes, fps)
                ]
                if len(pictures[span.row]) < len(wanted):
                    damaged[span.row] = f"{len(pictures[span.row])} of {len(wanted)} pictures come out of the decoder"
            except av.error.FFmpegError as error:
                damaged[span.row] = f"the decoder stops: {_reason(error)}"
    context = stream.codec_context
    positions = np.searchsorted(times, keyframes)
    return Footage(
        path=path,
        spans=spans,
        codec=context.codec.canonical_name,
        pix_fmt=context.pix_fmt,
        height=context.height,
        width=context.width,
        fps=float(stream.average_rate) if stream.average_rate else None,
        keyframe_interval=float(np.median(np.diff(positions))) if len(positions) > 1 else float(len(times)),
        num_frames=len(times),
        num_cut=num_cut,
        start_s=float(times[0]) if len(times) else 0.0,
        missing=missing,
        damaged=damaged,
        pictures=_stack(pictures),
    )


def missing_frames(times: np.ndarray, spans: tuple[Span, ...], fps: float) -> dict[int, np.ndarray]:
    """Frames of episodes that a video does not have at their time.

    Args:
        times: (n,) float64 seconds, ascending.
        spans: the episodes.
        fps: of the dataset.

    Returns:
        row -> (k,) int64 frames inside the episode, k > 0.
    """
    found = {}
    for span in spans:
        wanted = span.from_timestamp + np.arange(span.length) / fps
        if len(times):
            right = np.clip(np.searchsorted(times, wanted), 1, max(len(times) - 1, 1)).clip(max=len(times) - 1)
            distance = np.minimum(np.abs(times[right] - wanted), np.abs(times[np.maximum(right - 1, 0)] - wanted))
            absent = np.flatnonzero(distance > TOLERANCE_FRAMES / fps + 1e-9)
        else:
            absent = np.arange(span.length)
        if len(absent):
            found[span.row] = absent
    return found


def _index_times(stream: av.VideoStream, entries: list) -> tuple[np.ndarray, np.ndarray]:
    """Times of all frames and of the keyframes, ascending seconds, by the file's index, without reading the frames.

    The index has decode times; at a constant frame rate they are the presentation times, shifted.
    """
    stamps = np.array([entry.timestamp for entry in entries], dtype=np.float64)
    if not len(stamps):
        return stamps, stamps
    keys = stamps[[entry.is_keyframe for entry in entries]]
    first, scale = stamps.min(), float(stream.time_base or 0)
    begin = stream.start_time or 0
    return np.sort(stamps - first + begin) * scale, np.sort(keys - first + begin) * scale


def _packet_times(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[np.ndarray, np.ndarray]:
    """The same from the packets: reads the file, decodes nothing."""
    stamps, keys = [], []
    container.seek(0, stream=stream, backward=True)
    try:
        for packet in container.demux(stream):
            if packet.pts is not None and not packet.is_corrupt:
                stamps.append(packet.pts)
                keys += [packet.pts] if packet.is_keyframe else []
    except av.error.FFmpegError:
        pass  # cut short: what was read counts
    scale = float(stream.time_base or 0)
    return np.sort(np.array(stamps, dtype=np.float64)) * scale, np.sort(np.array(keys, dtype=np.float64)) * scale


def _spread_times(times: np.ndarray, keyframes: np.ndarray, span: Span, fps: float) -> np.ndarray:
    """Times of NUM_PICTURES frames across an episode; keyframes where there are enough of them, which decode alone."""
    stop_s = span.from_timestamp + (span.length - 0.5) / fps
    for candidates in (keyframes, times):
        inside = candidates[(candidates >= span.from_timestamp - 0.5 / fps) & (candidates < stop_s)]
        if len(inside) >= 2 * NUM_PICTURES or candidates is times:
            break
    spread = np.linspace(0, max(len(inside) - 1, 0), min(NUM_PICTURES, len(inside)))
    return inside[np.unique(spread.round().astype(int))]


def _frames_at(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    wanted: np.ndarray,
    keyframes: np.ndarray,
    fps: float,
) -> Iterator[av.VideoFrame]:
    """The frames nearest to some times (ascending seconds); from keyframe to keyframe where that is shorter."""
    scale, tolerance_s = float(stream.time_base or 0), TOLERANCE_FRAMES / fps
    position = -np.inf
    frames: Iterator[av.VideoFrame] = iter(())
    for time_s in wanted.tolist():
        before = keyframes[: np.searchsorted(keyframes, time_s + tolerance_s)]
        start_s = float(before[-1]) if len(before) else 0.0
        if not np.isfinite(position) or start_s > position:
            # Seeking goes by decode times, which may come some frames before the time at which a frame is shown.
            early_s = max(start_s - (REORDER_FRAMES / fps if stream.codec_context.has_b_frames else 0), 0)
            container.seek(round(early_s / scale), stream=stream, backward=True)
            frames = container.decode(stream)
        for frame in frames:
            position = (frame.pts or 0) * scale
            if position >= time_s - tolerance_s:
                yield frame
                break


def _block_means(grey: np.ndarray) -> np.ndarray:
    """(H, W) uint8 -> (BLOCKS_HIGH or fewer, w) float32, the mean of each square block."""
    side = max(grey.shape[0] // BLOCKS_HIGH, min(8, *grey.shape))
    height, width = grey.shape[0] // side, grey.shape[1] // side
    blocks = grey[: height * side, : width * side].reshape(height, side, width, side)
    return blocks.mean(axis=(1, 3), dtype=np.float32)


def _stack(pictures: dict[int, list[np.ndarray]]) -> dict[int, np.ndarray]:
    """Pictures of one size per episode, (n, h, w); episodes without any are left out."""
    return {row: np.stack([p for p in each if p.shape == each[0].shape]) for row, each in pictures.items() if each}


def _reason(error: Exception) -> str:
    """What a library says went wrong, without its error number and our own file object's name."""
    return str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
