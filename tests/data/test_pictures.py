"""Pictures of single frames: the frames that were asked for, whole, and marked with their times."""

import numpy as np
import pytest

from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.pictures import mark_time, read_marked_frames, read_pictures
from sarm_ray.data.resizing import resize
from sarm_ray.errors import VideoError
from tests.datasets import CAMERA, draw_frame, frame_code, read_numbers, write_dataset

WRIST = "observation.images.wrist"


@pytest.mark.parametrize("image_dataset", [False, True])
def test_whole_frames_of_two_cameras_side_by_side(tmp_path, image_dataset):
    root = write_dataset(
        tmp_path / "d", "v3.0", [20, 30], fps=10, size=(96, 160), cameras=[CAMERA, WRIST], image_dataset=image_dataset
    )
    dataset, frames = open_dataset(str(root)), np.array([0, 7, 29])
    wide = read_marked_frames(dataset, [CAMERA, WRIST], 1, frames, [(96, 160), (96, 96)])
    assert wide.shape == (3, 96, 256, 3)
    for number, frame in enumerate(frames.tolist()):
        left = np.array(draw_frame(frame_code(1, frame), 96, 160))
        right = resize(np.array(draw_frame(frame_code(1, frame) + 1, 96, 160)), 96, 96)
        tolerance = 0 if image_dataset else 40  # of the codec
        below = slice(32, None)  # the time is above
        assert np.abs(wide[number, below, :160].astype(int) - left[below]).mean() <= tolerance / 4
        assert np.abs(wide[number, below, 160:].astype(int) - right[below]).mean() <= tolerance / 4
        plain = next(read_pictures(dataset, CAMERA, 1, np.array([frame]), (96, 160)))
        assert np.array_equal(wide[number, :24, :60], mark_time(np.hstack([plain, plain]), frame / 10)[:24, :60])


def test_a_time_is_white_on_black_and_tells_tenths_apart():
    grey = np.full((240, 320, 3), 128, dtype=np.uint8)
    first, second = mark_time(grey, 61.2), mark_time(grey, 61.3)
    corner = first[:20, :60]
    assert {0, 255} <= set(np.unique(corner).tolist())
    assert (first != second).any()
    assert np.array_equal(first[120:], grey[120:])
    rows = np.flatnonzero((first[:, 0] == 0).all(axis=1))
    assert 18 <= len(rows) <= 40  # legible: a twelfth of the height, and its margins


def test_a_frame_that_cannot_be_read_is_an_error(tmp_path):
    root = write_dataset(tmp_path / "d", "v3.0", [20, 30], episodes_per_video=1)
    video = sorted(root.glob("videos/*/*/*.mp4"))[1]
    video.write_bytes(video.read_bytes()[:300])
    dataset = open_dataset(str(root))
    assert read_numbers(np.stack(list(read_pictures(dataset, CAMERA, 0, np.array([3, 5]), 64)))) == [
        frame_code(0, 3), frame_code(0, 5),
    ]  # fmt: skip
    with pytest.raises(VideoError, match=f"^{video}: "):
        read_marked_frames(dataset, [CAMERA], 1, np.array([0]), [(64, 96)])
