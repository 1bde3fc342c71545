"""The picture of an episode's subtasks: every tile is the frame that its caption names, in the order of time."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from sarm_ray.data.annotation_io import Annotations
from sarm_ray.report.annotations import (
    AnnotatedEpisode,
    Subtask,
    annotation_figure,
    annotation_name,
    draw_annotation,
    episode_subtasks,
    mid_frame,
    picture_size,
    spread_labels,
    stage_order,
)
from tests.datasets import draw_frame, read_number

LENGTH = 400


def annotated(*subtasks: tuple[str, int, int], **changes) -> AnnotatedEpisode:
    own = tuple(Subtask(*each) for each in subtasks)
    shown = [mid_frame(each, LENGTH) for each in own]
    values = {
        "episode_index": 7,
        "kind": "sparse",
        "text": "put the $5 cup on the $10 shelf",
        "fps": 10.0,
        "length": LENGTH,
        "subtasks": own,
        "stage_names": tuple(dict.fromkeys(each.name for each in own)),
        "pictures": tuple(None if frame is None else draw_frame(frame, 80, 80) for frame in shown),
    }
    return AnnotatedEpisode(**(values | changes))


def evenly(number: int, names: int | None = None) -> AnnotatedEpisode:
    bounds = np.linspace(0, LENGTH, number + 1).round().astype(int).tolist()
    return annotated(*((f"do {k % (names or number)}", bounds[k], bounds[k + 1]) for k in range(number)))


def tiles(figure) -> list:
    return [axes for axes in figure.axes if (axes.get_gid() or "").startswith("subtask")]


def timeline(figure):
    return next(axes for axes in figure.axes if axes.get_gid() == "timeline")


def words(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def table(kind: str, segments: list[list[tuple[int, int, int]]], stages: tuple[str, ...], **changes) -> Annotations:
    flat = [segment for episode in segments for segment in episode]
    values = {
        "kind": kind,
        "stages": stages,
        "offsets": np.cumsum([0, *map(len, segments)]),
        "stage": np.array([stage for stage, _, _ in flat], dtype=np.int64),
        "start": np.array([start for _, start, _ in flat], dtype=np.int64),
        "end": np.array([end for _, _, end in flat], dtype=np.int64),
        "broken": np.zeros(len(segments), dtype=bool),
        "proportions": None,
    }
    return Annotations(**(values | changes))


def test_the_mid_frame_lies_in_the_subtask_and_in_the_episode():
    assert mid_frame(Subtask("a", 0, 100), 400) == 50
    assert mid_frame(Subtask("a", 0, 101), 400) == 50
    assert mid_frame(Subtask("a", 300, 399), 400) == 349
    assert mid_frame(Subtask("a", 300, 900), 400) == 350  # what lies inside the episode counts
    assert mid_frame(Subtask("a", 399, 400), 400) == 399
    assert mid_frame(Subtask("a", 20, 20), 400) == 20
    assert mid_frame(Subtask("a", 20, 21), 400) == 20
    for outside in ((400, 410), (-3, 5), (20, 19)):
        assert mid_frame(Subtask("a", *outside), 400) is None


def test_an_episodes_subtasks_come_in_the_order_of_time():
    sparse = table("sparse", [[(1, 50, 90), (0, 0, 50), (1, 90, 99)], []], ("reach", "push"))
    dense = table("dense", [[], [(0, 0, 10)]], ("a",))
    both = {"sparse": sparse, "dense": dense}
    assert episode_subtasks(both, "sparse", 0) == (
        Subtask("reach", 0, 50),
        Subtask("push", 50, 90),
        Subtask("push", 90, 99),
    )
    assert episode_subtasks(both, "sparse", 1) == ()
    assert episode_subtasks(both, "dense", 1) == (Subtask("a", 0, 10),)
    assert episode_subtasks({"unprefixed": sparse}, "sparse", 0) == episode_subtasks(both, "sparse", 0)
    assert episode_subtasks({"unprefixed": sparse}, "dense", 0) == ()


def test_stages_are_ordered_as_the_proportions_are():
    shares = {"reach": 0.5, "never": 0.1, "push": 0.4}
    assert stage_order(table("sparse", [[]], ("push", "reach", "new"), proportions=shares)) == (
        "reach",
        "never",
        "push",
        "new",
    )
    assert stage_order(table("sparse", [[]], ("push", "reach"))) == ("push", "reach")


def test_captions_are_about_the_frame_above_them():
    episode = annotated(("reach", 0, 101), ("push the cup", 101, 300), ("reach", 300, 399))
    figure = annotation_figure(episode)
    expected = [(50, "reach", "frames 0 to 101, 0.0 to 10.1 s\nshown: frame 50, 5.00 s")]
    expected += [(200, "push the cup", "frames 101 to 300, 10.1 to 30.0 s\nshown: frame 200, 20.00 s")]
    expected += [(349, "reach", "frames 300 to 399, 30.0 to 39.9 s\nshown: frame 349, 34.90 s")]
    for number, (axes, (frame, name, said)) in enumerate(zip(tiles(figure), expected, strict=True), 1):
        assert words(axes) == [str(number), name, said]
        assert read_number(np.asarray(axes.images[0].get_array())) == frame
    assert [text.get_text() for text in figure.texts] == [
        "Episode 7, sparse annotation",
        "400 frames, 40.0 s   3 subtasks",
        "put the $5 cup on the $10 shelf",
    ]
    assert not any(text.get_parse_math() for text in figure.texts)


def test_a_repeated_name_keeps_its_colour_and_gets_a_number_of_its_own():
    figure = annotation_figure(evenly(8, names=3))
    colours = [to_hex(bar.get_facecolor()) for bar in timeline(figure).patches]
    assert colours == [["#56b4e9", "#e69f00", "#009e73"][k % 3] for k in range(8)]
    assert [to_hex(axes.spines["left"].get_edgecolor()) for axes in tiles(figure)] == colours
    assert [axes.texts[0].get_text() for axes in tiles(figure)] == [str(k) for k in range(1, 9)]
    own = annotation_figure(annotated(("push", 0, 399), stage_names=("reach", "push")))
    assert to_hex(timeline(own).patches[0].get_facecolor()) == "#e69f00"  # as in the dataset's other episodes


def test_the_timeline_has_the_subtasks_at_their_times():
    figure = annotation_figure(annotated(("reach", 0, 100), ("a name that is far too long for it", 100, 110)))
    axes = timeline(figure)
    hatched, *bars = axes.patches
    assert hatched.get_hatch() == "///"
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(0.0, 10.0), (10.0, pytest.approx(1.0))]
    assert axes.get_xlim() == (0.0, 40.0)
    assert axes.get_xlabel() == "time (s)"
    assert words(axes) == ["reach", "1", "2"]
    assert figure.texts[1].get_text() == "400 frames, 40.0 s   2 subtasks   290 frames not annotated"


def test_an_end_that_is_the_last_frame_includes_it():
    figure = annotation_figure(annotated(("reach", 0, 399)))
    assert [(bar.get_x(), bar.get_width()) for bar in timeline(figure).patches] == [(0.0, 40.0)]
    assert figure.texts[1].get_text() == "400 frames, 40.0 s   1 subtask"


def test_what_cannot_be_shown_is_said():
    episode = annotated(("reach", 0, 100), ("push", 100, 400), ("rest", 500, 600))
    figure = annotation_figure(
        annotated(("reach", 0, 100), ("push", 100, 400), ("rest", 500, 600), pictures=(None,) * 3)
    )
    assert [words(axes)[0] for axes in tiles(figure)] == ["cannot\nbe read"] * 2 + ["outside\nthe episode"]
    assert words(tiles(figure)[2])[1:] == ["3", "rest", "frames 500 to 600, 50.0 to 60.0 s"]
    assert len(timeline(annotation_figure(episode)).patches) == 2


@pytest.mark.parametrize("number", [1, 3, 5, 8, 20, 23])
def test_nothing_overlaps_and_everything_is_on_the_page(number):
    names = 20 * "long name "
    bounds = [0, *range(2, number + 1), LENGTH]  # all but the last are slivers
    figure = annotation_figure(annotated(*((f"{k} {names}", bounds[k], bounds[k + 1]) for k in range(number))))
    figure.canvas.draw()
    page = figure.bbox
    boxes = [axes.get_window_extent() for axes in tiles(figure)]
    boxes += [text.get_window_extent() for axes in tiles(figure) for text in axes.texts]
    boxes += [text.get_window_extent() for text in timeline(figure).texts]
    for box in boxes:
        assert page.x0 <= box.x0 <= box.x1 <= page.x1
        assert page.y0 <= box.y0 <= box.y1 <= page.y1
    for first in range(len(boxes)):
        for second in range(first):
            a, b = boxes[first], boxes[second]
            assert a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1, (first, second)


def test_spread_labels():
    assert spread_labels(np.array([1.0, 5.0, 9.0]), 1.0, 10.0).tolist() == [1.0, 5.0, 9.0]
    assert spread_labels(np.array([0.0, 0.1, 0.2]), 1.0, 10.0).tolist() == [0.5, 1.5, 2.5]
    assert spread_labels(np.array([9.8, 9.9, 10.0]), 1.0, 10.0).tolist() == [7.5, 8.5, 9.5]
    assert spread_labels(np.array([4.0, 4.2, 8.0]), 1.0, 10.0).tolist() == [4.0, 5.0, 8.0]
    crowded = spread_labels(np.full(20, 3.0), 1.0, 10.0)
    np.testing.assert_allclose(crowded, np.arange(20) * 0.5 + 0.25)
    assert spread_labels(np.zeros(0), 1.0, 10.0).tolist() == []


@pytest.mark.parametrize(("number", "size"), [(1, 638), (3, 632), (4, 463), (8, 463), (20, 362)])
def test_the_png_is_2100_pixels_wide_and_its_tiles_are_sharp(tmp_path, number, size, recwarn):
    assert picture_size(number, 1.0) == (size, size)
    assert picture_size(number, 0.75) == (pytest.approx(size * 0.75, abs=1), size)
    path = tmp_path / "deep" / annotation_name(12, "dense")
    draw_annotation(str(path), evenly(number))
    assert path.name == "episode_0012_dense.png"
    with Image.open(path) as image:
        assert (image.format, image.width) == ("PNG", 2100)
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert len(recwarn) == 0
