"""The video of an episode beside its curve: frame k shows frame k, and the dot is where the curve is."""

from fractions import Fraction
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest

from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.pictures import read_pictures
from sarm_ray.errors import VideoError
from sarm_ray.report.predictions import Prediction
from sarm_ray.report.side_by_side import (
    FRAME_LEFT,
    FRAME_TOP,
    HEIGHT,
    LABELS_TOP,
    PLOT_LEFT,
    PLOT_RIGHT,
    SIDE,
    STRIPS_BOTTOM,
    WIDTH,
    lay_out,
    moment,
    video_name,
    write_side_by_side,
)
from tests.datasets import CAMERA, decode_all, draw_frame, frame_code, read_number, write_dataset

BLUE, GREY = (0, 114, 178), (138, 138, 138)  # of the curve, of the line at the present
SKY, ORANGE = (86, 180, 233), (230, 159, 0)  # of the first two stages


def prediction(length: int = 60, fps: float = 30.0, **changes) -> Prediction:
    stage = (np.arange(length) >= length // 2).astype(np.int64)
    values = {
        "episode_index": 7,
        "head": "sparse",
        "text": "put the $5 cup on the $10 shelf",
        "fps": fps,
        "progress": np.linspace(0, 0.9, length, dtype=np.float32),
        "probabilities": np.eye(2, dtype=np.float32)[stage],
        "stage_names": ("reach", "push"),
    }
    return Prediction(**(values | changes))


def pictures(length: int) -> list[np.ndarray]:
    return [draw_frame(number, SIDE, SIDE) for number in range(length)]


def frame_of(image: np.ndarray) -> np.ndarray:
    return image[FRAME_TOP : FRAME_TOP + SIDE, FRAME_LEFT : FRAME_LEFT + SIDE]


def assert_colour(pixel: np.ndarray, colour: tuple[int, int, int], tolerance: int = 0) -> None:
    np.testing.assert_allclose(pixel.astype(int), colour, atol=tolerance)


@pytest.mark.parametrize(("version", "image_dataset"), [("v3.0", False), ("v2.1", False), ("v3.0", True)])
def test_every_frame_is_the_one_it_says_and_the_dot_is_on_the_curve(tmp_path, version, image_dataset):
    dataset = open_dataset(str(write_dataset(tmp_path / "set", version, (40, 33), fps=10, image_dataset=image_dataset)))
    shown = prediction(33, 10.0)
    canvas = lay_out(shown)
    path = tmp_path / "deep" / video_name(1, "sparse")
    frames = read_pictures(dataset, CAMERA, 1, np.arange(33), SIDE)
    ticks: list[int] = []
    assert write_side_by_side(str(path), shown, frames, tick=ticks.append) == []
    images = decode_all(path)
    assert [read_number(frame_of(image)) for image in images] == [frame_code(1, frame) for frame in range(33)]
    assert sum(ticks) == 33
    left, right, low, high = canvas.x[0], canvas.x[-1], canvas.y[0], canvas.y[-1]
    for number, image in enumerate(images):
        x, y = canvas.x[number], canvas.y[number]
        assert x == pytest.approx(left + (right - left) * number / 32, abs=1)
        assert y == pytest.approx(low + (high - low) * number / 32, abs=1)
        assert_colour(image[y, x], BLUE, 12)  # what the codec left of it


@pytest.mark.parametrize("fps", [30.0, 10.0, 29.97, 12.5])
def test_it_lasts_as_long_as_the_episode(tmp_path, fps):
    path = tmp_path / "v.mp4"
    write_side_by_side(str(path), prediction(25, fps), pictures(25))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.frames) == (WIDTH, HEIGHT, 25)
        assert stream.average_rate == Fraction(str(fps))
        assert float(stream.duration * stream.time_base) == pytest.approx(25 / fps, abs=1e-4)
        times = [float(frame.time) for frame in container.decode(video=0)]
    np.testing.assert_allclose(times, np.arange(25) / fps, atol=1e-4)
    content = path.read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")  # plays before it is there whole


def test_the_curve_ends_at_the_present():
    shown = prediction()
    canvas = lay_out(shown)
    for number in (0, 20, 59):
        image = moment(canvas, shown, number, None)
        x, y = canvas.x[number], canvas.y[number]
        rows = slice(canvas.top, STRIPS_BOTTOM)
        assert_colour(image[y, x], BLUE)
        assert_colour(image[y - 60 if number < 30 else y + 60, x], GREY)
        later = slice(x + 10, PLOT_RIGHT)  # right of the dot
        np.testing.assert_array_equal(image[rows, later], canvas.empty[rows, later])
        earlier = slice(PLOT_LEFT, max(x - 10, PLOT_LEFT))
        np.testing.assert_array_equal(image[rows, earlier], canvas.whole[rows, earlier])
    blue = (canvas.empty == BLUE).all(axis=-1)
    assert not blue[canvas.top : STRIPS_BOTTOM].any()


def test_axes_and_stages_are_named():
    stage = (np.arange(60) >= 30).astype(np.int64)
    truth = np.linspace(0, 1, 60, dtype=np.float32)
    shown = prediction(truth=truth, annotated_stage=(np.arange(60) >= 20).astype(np.int64))
    canvas = lay_out(shown)
    annotated, predicted = canvas.stages
    np.testing.assert_array_equal(annotated, shown.annotated_stage)
    np.testing.assert_array_equal(predicted, stage)
    for number, above, below in ((10, SKY, SKY), (25, ORANGE, SKY), (40, ORANGE, ORANGE)):
        image = moment(canvas, shown, number, None)
        assert_colour(image[LABELS_TOP + 13, PLOT_LEFT + 8], above)
        assert_colour(image[LABELS_TOP + 39, PLOT_LEFT + 8], below)
        assert_colour(image[STRIPS_BOTTOM - 8, canvas.x[number] - 3], below)
        assert_colour(image[STRIPS_BOTTOM - 32, canvas.x[number] - 3], above)
        assert_colour(image[STRIPS_BOTTOM - 8, canvas.x[number] + 12], (255, 255, 255))  # not predicted yet
    assert_colour(image[STRIPS_BOTTOM - 32, PLOT_RIGHT - 3], ORANGE)  # the annotation is known from the start
    assert (canvas.empty[STRIPS_BOTTOM + 24 : STRIPS_BOTTOM + 44, PLOT_LEFT:PLOT_RIGHT] < 100).any()  # "time (s)"
    assert (canvas.empty[canvas.top : STRIPS_BOTTOM - 48, PLOT_LEFT - 52 : PLOT_LEFT - 40] < 100).any()  # "progress"


def test_frames_without_a_score_have_no_dot_and_interpolated_ones_keep_the_last_stage():
    progress = prediction().progress.copy()
    progress[[0, 50, 59]] = np.nan
    probabilities = prediction().probabilities.copy()
    probabilities[np.arange(60) % 7 != 1] = np.nan
    shown = prediction(progress=progress, probabilities=probabilities)
    canvas = lay_out(shown)
    (predicted,) = canvas.stages
    expected = [-1, *(int((k - 1) // 7 * 7 + 1 >= 30) for k in range(1, 60))]
    expected[50] = expected[59] = -1
    assert predicted.tolist() == expected
    for number, dot in ((0, False), (49, True), (50, False), (59, False)):
        image = moment(canvas, shown, number, None)
        x = canvas.x[number]
        assert (image[canvas.top : STRIPS_BOTTOM - 24, x] == BLUE).all(axis=-1).any() == dot
    nothing = prediction(progress=np.full(60, np.nan, np.float32), probabilities=None, stage_names=())
    assert lay_out(nothing).stages == ()
    single = prediction(probabilities=np.ones((60, 1), np.float32), stage_names=("task",))
    assert lay_out(single).stages == ()  # one stage says nothing


def test_what_a_person_reads_changes_with_the_frame():
    shown = prediction(truth=np.linspace(0, 1, 60, dtype=np.float32))
    canvas = lay_out(shown, "small print")
    first, second = moment(canvas, shown, 10, None), moment(canvas, shown, 11, None)
    changed = np.argwhere((first != second).any(axis=-1))
    places = {"counter": (FRAME_TOP + SIDE, HEIGHT, 0, PLOT_LEFT), "numbers": (FRAME_TOP, LABELS_TOP, PLOT_LEFT, WIDTH)}
    for top, bottom, left, right in places.values():
        inside = (changed >= (top, left)).all(axis=1) & (changed < (bottom, right)).all(axis=1)
        assert inside.any()
    plain = lay_out(shown)
    assert (plain.empty != canvas.empty).any(axis=-1)[FRAME_TOP + SIDE :, : FRAME_LEFT + SIDE].any()


def test_a_frame_that_cannot_be_read_is_grey_and_reported(tmp_path):
    broken = VideoError("v.mp4", 3, "damaged data")
    frames = [*pictures(3), broken, *pictures(6)[4:]]
    path = tmp_path / "v.mp4"
    assert write_side_by_side(str(path), prediction(6), frames) == [broken]
    images = [frame_of(image) for image in decode_all(path)]
    assert [read_number(image) for image in images[:3] + images[4:]] == [0, 1, 2, 4, 5]
    assert_colour(images[3][5, 5], (205, 205, 205), 4)
    cut = VideoError("v.mp4", None, "not a readable video")
    assert write_side_by_side(str(path), prediction(6), [*pictures(4), cut, cut]) == [cut, cut]


@pytest.mark.parametrize("frame", [None, 0])
def test_without_any_frame_nothing_is_written(tmp_path, frame):
    error = VideoError("v.mp4", frame, "no such file")
    with pytest.raises(VideoError, match="no such file"):
        write_side_by_side(str(tmp_path / "v.mp4"), prediction(4), [error] * 4)
    assert list(Path(tmp_path).iterdir()) == []


def test_a_video_goes_to_any_store_and_replaces_what_is_there():
    for length in (3, 2):
        write_side_by_side("memory://videos/v.mp4", prediction(length), pictures(length))
    content = fsspec.filesystem("memory").cat_file("/videos/v.mp4")
    assert content[4:8] == b"ftyp"


@pytest.mark.parametrize(
    "case",
    [
        prediction(1),
        prediction(4000, probabilities=None),
        prediction(text="把杯子放到架子上 " * 40, stage_names=("a " * 200, "b")),
        prediction(
            stage_names=tuple(f"stage {k}" for k in range(30)), probabilities=np.full((60, 30), 1 / 30, np.float32)
        ),
    ],
    ids=["one frame", "more frames than columns", "long texts", "30 stages"],
)
def test_every_episode_can_be_laid_out(case, recwarn):
    canvas = lay_out(case)
    last = len(case.progress) - 1
    image = moment(canvas, case, last, None)
    assert (image.shape, image.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    assert_colour(image[canvas.y[last], canvas.x[last]], BLUE)
    assert PLOT_LEFT <= canvas.x.min() <= canvas.x.max() < PLOT_RIGHT
    assert len(recwarn) == 0
