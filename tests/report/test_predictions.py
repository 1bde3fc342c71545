"""The picture of an episode's scores: captions are about the frame above them, and only what was computed is drawn."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sarm_ray.data.lerobot import open_dataset
from sarm_ray.report.predictions import (
    Prediction,
    _blocks,
    draw_prediction,
    figure_of,
    prediction_name,
    read_thumbnails,
    thumbnail_frames,
)
from tests.datasets import CAMERA, frame_code, read_number, write_dataset

LENGTHS = (40, 30, 50)


def prediction(length: int = 40, num_stages: int = 3, **changes) -> Prediction:
    rng = np.random.default_rng(0)
    values = {
        "episode_index": 7,
        "head": "sparse",
        "text": "put the $5 cup on the $10 shelf",
        "fps": 10.0,
        "progress": np.linspace(0, 0.9, length, dtype=np.float32),
        "probabilities": rng.dirichlet(np.ones(num_stages), length).astype(np.float32),
        "stage_names": tuple(f"stage ${k}$" for k in range(num_stages)),
    }
    return Prediction(**(values | changes))


def stride_of(stride: int, length: int, holes: tuple[int, ...] = ()) -> Prediction:
    """Scores of every stride-th frame and the last one; nothing around those that are holes."""
    whole = prediction(length)
    probabilities, progress = whole.probabilities.copy(), whole.progress.copy()
    computed = np.unique(np.append(np.arange(0, length, stride), length - 1))
    probabilities[np.setdiff1d(np.arange(length), computed)] = np.nan
    for hole in holes:
        probabilities[hole] = np.nan
        progress[max(hole - stride + 1, 0) : hole + stride] = np.nan
    return prediction(length, probabilities=probabilities, progress=progress)


def panels(figure):
    """The two panels, then the thumbnails."""
    thumbnails = [axes for axes in figure.axes if (axes.get_gid() or "").startswith("thumbnail")]
    return figure.axes[0], figure.axes[1], thumbnails


def texts_of(artist) -> list[str]:
    return [text.get_text() for text in artist.findobj(lambda each: hasattr(each, "get_text")) if text.get_text()]


def hatched(axes) -> list[tuple[float, float]]:
    """Spans marked as not scored, in seconds."""
    spans = [patch.get_bbox() for patch in axes.patches if patch.get_hatch()]
    return [(round(span.x0, 6), round(span.x1, 6)) for span in spans]


@pytest.mark.parametrize("image_dataset", [False, True])
@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_thumbnails_are_the_frames_they_say(tmp_path, version, image_dataset):
    root = write_dataset(tmp_path / "set", version, LENGTHS, image_dataset=image_dataset)
    dataset = open_dataset(str(root))
    for row, length in enumerate(LENGTHS):
        thumbnails = read_thumbnails(dataset, CAMERA, row, thumbnail_frames(length), size=64)
        assert [frame for frame, _ in thumbnails] == thumbnail_frames(length).tolist()
        assert [read_number(image) for _, image in thumbnails] == [frame_code(row, frame) for frame, _ in thumbnails]
        assert {image.shape for _, image in thumbnails} == {(64, 64, 3)}


def test_a_thumbnail_that_cannot_be_read_takes_no_other_with_it(tmp_path):
    dataset = open_dataset(str(write_dataset(tmp_path / "set", "v2.1", LENGTHS, gop=5)))
    video = Path(dataset.location(dataset.camera_files(CAMERA).path(2)))
    frames = np.array([0, 20, 49, 60])  # the video ends at 50
    read = read_thumbnails(dataset, CAMERA, 2, frames, size=64)
    assert [image is None for _, image in read] == [False, False, False, True]
    video.write_bytes(video.read_bytes()[:100])
    assert read_thumbnails(dataset, CAMERA, 2, frames) == tuple((frame, None) for frame in frames.tolist())
    video.unlink()
    assert read_thumbnails(dataset, CAMERA, 2, frames) == tuple((frame, None) for frame in frames.tolist())


def test_thumbnail_frames_are_spread_evenly():
    assert thumbnail_frames(300).tolist() == [0, 43, 85, 128, 171, 214, 256, 299]
    assert thumbnail_frames(8).tolist() == list(range(8))
    assert thumbnail_frames(3).tolist() == [0, 1, 2]
    assert thumbnail_frames(1).tolist() == [0]


def test_captions_are_about_the_frame_above_them():
    progress = np.linspace(0, 0.9, 40, dtype=np.float32)
    progress[20] = np.nan
    images = {frame: np.full((8, 8, 3), frame, dtype=np.uint8) for frame in (0, 13, 39)}
    shown = ((0, images[0]), (13, images[13]), (20, None), (39, images[39]))
    curve, _, tiles = panels(figure_of(prediction(progress=progress, thumbnails=shown)))
    assert [axes.get_xlabel() for axes in tiles] == [
        "frame 0, 0.00 s\nprogress 0.00",
        f"frame 13, 1.30 s\nprogress {progress[13]:.2f}",
        "frame 20, 2.00 s\nnot scored",
        "frame 39, 3.90 s\nprogress 0.90",
    ]
    for axes, frame in ((tiles[0], 0), (tiles[1], 13), (tiles[3], 39)):
        np.testing.assert_array_equal(axes.images[0].get_array(), images[frame])
        assert "cannot" not in "".join(texts_of(axes))
    assert "cannot\nbe read" in texts_of(tiles[2])
    dots = next(line for line in curve.lines if line.get_label() == "frames below")
    np.testing.assert_allclose(dots.get_xdata(), [0, 1.3, 3.9])
    np.testing.assert_array_equal(dots.get_ydata(), progress[[0, 13, 39]])


def test_texts_and_curves():
    truth = np.linspace(0, 1, 40, dtype=np.float32)
    figure = figure_of(prediction(truth=truth, boundaries=(10, 25)))
    curve, stages, tiles = panels(figure)
    assert tiles == []
    said = [text.get_text() for text in figure.texts]
    assert said == [
        "Episode 7, sparse head",
        "40 frames, 4.0 s   last 0.90   highest 0.90   mean |error| against the annotation 0.050",
        "put the $5 cup on the $10 shelf",
    ]
    assert not any(text.get_parse_math() for text in figure.texts)
    lines = {line.get_label(): line for line in curve.lines}
    np.testing.assert_array_equal(lines["predicted"].get_ydata(), prediction().progress)
    np.testing.assert_array_equal(lines["annotated"].get_ydata(), truth)
    assert lines["annotated"].get_linestyle() == "--"
    legend = [text.get_text() for text in stages.get_legend().get_texts()]
    assert legend == ["stage $2$", "stage $1$", "stage $0$", "annotated start"]  # as they are stacked
    dashed = sorted({line.get_xdata()[0] for line in stages.lines if line.get_linestyle() == "--"})
    assert dashed == pytest.approx([0.95, 2.45])  # a frame's block begins half a frame before its time
    assert hatched(curve) == hatched(stages) == []


def test_a_single_frame_has_its_own_words():
    figure = figure_of(prediction(1, probabilities=None))
    assert figure.texts[1].get_text() == "1 frame, 0.1 s   last 0.00   highest 0.00"
    assert "no stage probabilities were kept" in texts_of(figure.axes[1])


def test_long_and_empty_texts_fit():
    figure = figure_of(prediction(text="move the very long thing " * 20, stage_names=("a " * 60, "b", "c")))
    assert len(figure.texts[2].get_text()) <= 130
    assert figure.texts[2].get_text().endswith(" …")
    longest = figure.axes[1].get_legend().get_texts()[2].get_text()
    assert longest.count("\n") == 1
    assert longest.endswith(" …")
    assert figure_of(prediction(text="")).texts[2].get_text() == ""


def test_frames_that_were_not_scored_leave_marked_gaps():
    progress = prediction().progress.copy()
    progress[[0, 1, 20, 22, 39]] = np.nan
    probabilities = prediction().probabilities.copy()
    probabilities[np.isnan(progress)] = np.nan
    figure = figure_of(prediction(progress=progress, probabilities=probabilities))
    curve, stages, _ = panels(figure)
    gaps = [(-0.05, 0.15), (1.95, 2.05), (2.15, 2.25), (3.85, 3.95)]
    assert hatched(curve) == hatched(stages) == gaps
    line = next(line for line in curve.lines if line.get_label() == "predicted")
    np.testing.assert_array_equal(np.isnan(line.get_ydata()), np.isnan(progress))
    assert [text.get_text() for text in curve.get_legend().get_texts()] == ["predicted", "not scored"]
    assert any(line.get_marker() == "." and line.get_xdata().tolist() == [2.1] for line in curve.lines)  # stands alone
    assert "last 0.88 (end not scored)" in figure.texts[1].get_text()
    for first, last in gaps:
        for area in stages.collections:
            for outline in area.get_paths():
                x = outline.vertices[:, 0]
                assert x.max() <= first + 1e-6 or x.min() >= last - 1e-6


def test_blocks_hold_the_values_of_the_frames_they_stand_at():
    """Every computed frame is inside a block with its own values, and no block reaches another or an unscored frame."""
    for stride, length, holes in ((1, 30, (7, 9)), (7, 60, ()), (10, 95, (30,)), (2, 2000, (500,)), (5, 1, ())):
        scores = stride_of(stride, length, holes)
        known = np.isfinite(scores.progress)
        frames = np.flatnonzero(np.isfinite(scores.probabilities[:, 0]))
        x, source = _blocks(frames, known)
        assert np.all(np.diff(x) >= -1e-9)
        for number, frame in enumerate(frames):
            left, right = x[source == number]
            assert left < frame < right
            assert not (~known[max(int(np.ceil(left)), 0) : int(right) + 1]).any()
            assert right - left <= stride
    assert [part.tolist() for part in _blocks(np.arange(0), np.zeros(4, dtype=bool))] == [[], []]
    x, source = _blocks(np.array([0, 10, 20]), np.ones(21, dtype=bool))
    assert x.tolist() == [-4, 4, 4, 6, 14, 14, 16, 24]  # bars with gaps: nobody takes them for a curve
    assert source.tolist() == [0, 0, -1, 1, 1, -1, 2, 2]


def test_interpolated_frames_have_no_probabilities_and_that_is_said():
    said = "computed frames only; those between were interpolated"
    assert figure_of(stride_of(10, 95)).axes[1].get_title(loc="left") == said
    assert figure_of(stride_of(1, 95, (20,))).axes[1].get_title(loc="left") == ""


def test_the_legend_is_beside_the_panel():
    figure = figure_of(prediction(num_stages=20, boundaries=(5,)))
    figure.canvas.draw()
    for axes in figure.axes[:2]:
        box = axes.get_legend().get_window_extent()
        assert box.x0 > axes.get_window_extent().x1
        assert box.x1 <= figure.bbox.x1
        assert box.y0 >= axes.get_window_extent().y0 - 1
    colours = [tuple(area.get_facecolor()[0]) for area in figure.axes[1].collections]
    assert len(set(colours)) == 20


@pytest.mark.parametrize(
    "case",
    [
        prediction(truth=np.linspace(0, 1, 40, dtype=np.float32), boundaries=(10,)),
        prediction(1, thumbnails=((0, None),)),
        prediction(progress=np.full(40, np.nan, np.float32), probabilities=np.full((40, 3), np.nan, np.float32)),
        prediction(text="把杯子放到架子上"),
    ],
    ids=["whole", "one frame", "nothing scored", "a text without glyphs"],
)
def test_the_png_is_14_by_12_inches_at_150_dpi(tmp_path, case, recwarn):
    import matplotlib

    before = dict(matplotlib.rcParams)
    path = tmp_path / "deep" / prediction_name(case.episode_index, case.head)
    draw_prediction(str(path), case)
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (2100, 1800))
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert len(np.unique(np.asarray(image.convert("L")))) > 10
    assert path.name == "sarm_prediction_ep7_sparse.png"
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert dict(matplotlib.rcParams) == before
    assert not [str(warning.message) for warning in recwarn if not re.search("deprecat", str(warning.message))]


def test_it_is_written_to_urls_too():
    import fsspec

    draw_prediction("memory://pictures/p.png", prediction())
    assert fsspec.filesystem("memory").cat_file("/pictures/p.png")[:4] == b"\x89PNG"
