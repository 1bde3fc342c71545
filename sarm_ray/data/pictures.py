"""Pictures of single frames of an episode, for people and for VLMs: read one by one, and marked with their times."""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sarm_ray.core.subtasks import clock
from sarm_ray.data.lerobot import Dataset, fetch_files
from sarm_ray.data.video import FrameRequest, read_frames
from sarm_ray.errors import DatasetError, VideoError

DEFAULT_SHAPE = (480, 640)
SMALLEST_LETTERS, LETTERS_SHARE = 14, 1 / 12  # height of a time in pixels, and as a share of the picture's


def camera_shape(dataset: Dataset, camera: str) -> tuple[int, int]:
    """(height, width) of a camera as info.json declares it, whichever way round, by `names` where they are given."""
    spec = dataset.features[camera]
    shape = [int(side) for side in spec.get("shape") or ()]
    names = spec.get("names") or []
    if isinstance(names, list) and {"height", "width"} <= set(names) and len(names) == len(shape):
        return shape[names.index("height")], shape[names.index("width")]
    sides = [side for side in shape if side not in (1, 3, 4)]
    return (sides[0], sides[1]) if len(sides) == 2 else DEFAULT_SHAPE


def read_pictures(
    dataset: Dataset, camera: str, row: int, frames: np.ndarray, size: int | tuple[int, int]
) -> Iterator[np.ndarray | VideoError]:
    """Pictures of some frames of an episode, each by itself: one that is broken does not take the others with it.

    Args:
        dataset: of a video or image camera.
        camera: its key.
        row: position of the episode in the table.
        frames: (k,) int64, ascending, none twice, counted inside the episode.
        size: side in pixels, the centre of wider pictures; or (height, width) of whole ones.

    Yields:
        For each frame, in order, (height, width, 3) uint8 RGB, or what kept it from being read.
    """
    files = dataset.camera_files(camera)
    location = dataset.location(files.path(row))
    episode = int(dataset.episode_index[row]) if dataset.version == "v3.0" else None
    requests = [FrameRequest(episode, float(files.from_timestamp[row]), frames[i : i + 1]) for i in range(len(frames))]
    try:
        fetch_files(dataset, np.array([row]), camera)
    except DatasetError as error:  # a Hub that is out of reach
        yield from [VideoError(location, None, str(error))] * len(frames)
        return
    image_key = None if dataset.is_video(camera) else camera
    for result in read_frames(location, requests, dataset.fps, size, image_key):
        yield result if isinstance(result, VideoError) else result[0]


def read_marked_frames(
    dataset: Dataset, cameras: Sequence[str], row: int, frames: np.ndarray, sizes: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Whole frames of an episode, cameras side by side, each frame marked with its time.

    Args:
        dataset, row, frames: as `read_pictures`.
        cameras: from left to right. sizes: (height, width) of each, all of one height.

    Returns:
        (k, height, sum of the widths, 3) uint8.

    Raises:
        VideoError: a frame that cannot be read.
    """
    wide = np.empty((len(frames), sizes[0][0], sum(width for _, width in sizes), 3), dtype=np.uint8)
    left = 0
    for camera, size in zip(cameras, sizes, strict=True):
        for number, picture in enumerate(read_pictures(dataset, camera, row, frames, size)):
            if isinstance(picture, VideoError):
                raise picture
            wide[number, :, left : left + size[1]] = picture
        left += size[1]
    for number, frame in enumerate(frames.tolist()):
        wide[number] = mark_time(wide[number], frame / dataset.fps)
    return wide


def mark_time(picture: np.ndarray, seconds: float) -> np.ndarray:
    """Draw a time into the upper left corner, white on black, MM:SS.s: (H, W, 3) uint8 -> the same."""
    image = Image.fromarray(picture)
    font = ImageFont.load_default(max(SMALLEST_LETTERS, round(image.height * LETTERS_SHARE)))
    draw, margin = ImageDraw.Draw(image), 3
    *_, right, bottom = draw.textbbox((margin, margin), clock(seconds), font=font)
    draw.rectangle((0, 0, right + margin, bottom + margin), fill=(0, 0, 0))
    draw.text((margin, margin), clock(seconds), font=font, fill=(255, 255, 255))
    return np.asarray(image)
