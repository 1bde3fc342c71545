"""The page on which annotations are checked: what is in it. How it behaves is tested in a browser."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from sarm_ray.data.lerobot import open_dataset
from sarm_ray.errors import DatasetError
from sarm_ray.report import page_media
from sarm_ray.report.annotation_page import write_annotation_page
from tests.datasets import CAMERA, DENSE_STAGES, SPARSE_STAGES, write_dataset

LENGTHS = (40, 30, 50, 60)
HOSTILE = '</script><script>alert("x")</script>'


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("review") / "toy"
    return write_dataset(root, "v2.1", LENGTHS, fps=20, annotated=True, tasks=("push <b>it</b>", HOSTILE))


def annotate(root, tmp_path, **episodes):
    """A copy of the dataset with other metadata: episode number -> changes of its line."""
    copy = tmp_path / "toy"
    copy.mkdir()
    for part in ("data", "videos"):
        (copy / part).symlink_to(root / part)
    (copy / "meta").mkdir()
    for path in (root / "meta").iterdir():
        (copy / "meta" / path.name).write_bytes(path.read_bytes())
    rows = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
    for number, changes in episodes.items():
        rows[int(number.removeprefix("e"))] |= changes
    (copy / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return copy


def sparse(names, starts, ends):
    return {"sparse_subtask_names": names, "sparse_subtask_start_frames": starts, "sparse_subtask_end_frames": ends}


def make(root, path, kinds=("sparse", "dense"), rows=None, **options):
    dataset = open_dataset(str(root))
    rows = np.arange(len(dataset.length)) if rows is None else np.array(rows)
    return write_annotation_page(str(path), dataset, rows, kinds, options.pop("camera", None), quiet=True, **options)


def data_of(path: Path) -> dict:
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def named(data: dict, kind: str, place: int) -> list[tuple[str, int]]:
    return [(data["names"][name], start) for name, start in data["segments"][kind][place]]


def flags(data: dict) -> dict[int, list[str]]:
    return {
        n: [text for _, text in own] for n, own in zip(*(data["episodes"][k] for k in ("number", "flags")), strict=True)
    }


def test_it_has_the_subtasks_of_every_kind(root, tmp_path):
    made = make(root, tmp_path / "review.html", notes={2: ("asked 3 times", "repeats allowed")}, camera=CAMERA)
    assert made.output == str(tmp_path / "review.html")
    assert made.num_bytes == (tmp_path / "review.html").stat().st_size
    assert (made.shown.tolist(), made.num_flagged, made.num_left_out, made.num_videos) == ([0, 1, 2, 3], 1, 0, 4)
    assert (made.files, made.notices) == ((), ())
    data = data_of(tmp_path / "review.html")
    assert data["dataset"] == {"name": "toy", "version": "v2.1", "fps": 20.0, "camera": CAMERA}
    assert data["command"] == f"sarm-ray annotate {root} --from segments.csv"
    assert data["kinds"] == ["sparse", "dense"]
    assert data["names"] == [*SPARSE_STAGES, *DENSE_STAGES]
    assert named(data, "sparse", 0) == [("approach", 0), ("push", 12), ("retract", 32)]
    bounds = np.rint(np.cumsum([0, *DENSE_STAGES.values()]) * 50).astype(int).tolist()
    assert named(data, "dense", 2) == list(zip(DENSE_STAGES, bounds, strict=False))
    assert flags(data) == {0: [], 1: [], 2: ["asked 3 times", "repeats allowed"], 3: []}
    assert data["episodes"]["length"] == list(LENGTHS)
    assert data["episodes"]["video"] == ["#"] * 4


def test_hostile_texts_stay_inside_the_data(root, tmp_path):
    names = [HOSTILE, "<img src=x onerror=alert(1)>", 'a,"b"']
    copy = annotate(root, tmp_path, e1=sparse(names, [0, 7, 20], [7, 20, 29]))
    make(copy, tmp_path / "review.html", ("sparse",), notes={1: (HOSTILE,)}, source="a b/c")
    page = (tmp_path / "review.html").read_text()
    assert page.count("<script>alert") == page.count("<img") == 0
    assert page.count("</script>") == 2  # the data's and the scripts'
    data = data_of(tmp_path / "review.html")
    assert named(data, "sparse", 1) == list(zip(names, (0, 7, 20), strict=True))
    assert data["episodes"]["tasks"] == ["push <b>it</b>", HOSTILE]
    assert flags(data)[1] == [HOSTILE]
    assert data["command"] == "sarm-ray annotate 'a b/c' --from segments.csv"
    assert "default-src 'none'" in page


def test_what_should_be_looked_at_is_flagged(root, tmp_path):
    copy = annotate(
        root,
        tmp_path,
        e0=sparse(["a", "b", "c"], [0, 13, 26], [13, 26, 39]),
        e1=sparse(None, None, None) | {"subtask_names": None},
        e2=sparse(["a", "b"], [4, 30], [20, 49]),
        e3=sparse(["a", "b"], [0, 60], [60, 60]),
    )
    make(copy, tmp_path / "both.html")
    data = data_of(tmp_path / "both.html")
    assert flags(data) == {
        0: ["sparse: uniform split"],
        1: ["sparse: not annotated"],
        2: ["sparse: gaps closed"],
        3: ["sparse: unusable bounds"],
    }
    assert named(data, "sparse", 2) == [("a", 0), ("b", 30)]
    assert [named(data, "sparse", place) for place in (1, 3)] == [[], []]
    make(copy, tmp_path / "one.html", ("sparse",))
    assert flags(data_of(tmp_path / "one.html"))[0] == ["uniform split"]


@pytest.mark.parametrize(
    ("starts", "ends", "flag"),
    [
        ([0, 12], [12, 50], []),  # one past the last frame, as LeRobot writes it
        ([1, 12], [12, 49], []),
        ([0, 12], [12, 31], []),  # the last end in whole seconds
        ([0, 12], [12, 28], ["gaps closed"]),
        ([0, 12], [15, 49], ["gaps closed"]),
        ([0, 0], [0, 49], ["unusable bounds"]),
        ([0, -3], [0, 49], ["unusable bounds"]),
        ([0, 12, 12], [12, 12, 49], ["unusable bounds"]),
        ([0, 50], [50, 50], ["unusable bounds"]),
        ([0, 12], [12], ["unusable bounds"]),
    ],
)
def test_bounds(root, tmp_path, starts, ends, flag):
    copy = annotate(root, tmp_path, e2=sparse(["a", "b", "c"][: len(starts)], starts, ends))
    make(copy, tmp_path / "review.html", ("sparse",), rows=[2])
    data = data_of(tmp_path / "review.html")
    assert flags(data) == {2: flag}


def test_it_is_bounded_and_flagged_episodes_come_first(root, tmp_path):
    made = make(root, tmp_path / "review.html", notes={3: ("asked 2 times",)}, max_episodes=2, camera=CAMERA)
    assert (made.shown.tolist(), made.num_left_out, made.num_flagged, made.num_videos) == ([0, 3], 2, 1, 2)
    data = data_of(tmp_path / "review.html")
    assert data["left_out"] == 2
    assert data["episodes"]["number"] == [0, 3]
    assert [len(own) for own in data["segments"].values()] == [2, 2]
    made = make(root, tmp_path / "some.html", rows=[2, 1])
    assert (made.shown.tolist(), made.num_left_out) == ([1, 2], 0)


def test_much_video_lies_beside_it(root, tmp_path, monkeypatch):
    monkeypatch.setattr(page_media, "MAX_EMBEDDED_EPISODES", 1)
    made = make(root, tmp_path / "review.html", camera=CAMERA)
    assert sorted(path.name for path in (tmp_path / "review.files").iterdir()) == sorted(made.files)
    assert all(
        video.startswith("review.files/video-") for video in data_of(tmp_path / "review.html")["episodes"]["video"]
    )
    make(root, tmp_path / "review.html")
    assert not (tmp_path / "review.files").exists()


def test_a_video_that_cannot_be_read_is_flagged(root, tmp_path):
    copy = annotate(root, tmp_path)
    (copy / "videos").unlink()
    made = make(copy, tmp_path / "review.html", camera=CAMERA)
    assert (made.num_videos, made.num_flagged) == (0, 4)
    assert flags(data_of(tmp_path / "review.html"))[0] == ["video cannot be read"]


def test_what_cannot_be_shown_is_refused(root, tmp_path):
    plain = write_dataset(tmp_path / "plain", "v3.0", (10,))
    with pytest.raises(DatasetError, match=r"^plain has no annotation to show; sarm-ray annotate makes one$"):
        make(plain, tmp_path / "review.html")
    with pytest.raises(ValueError, match="expected sparse or dense"):
        make(root, tmp_path / "review.html", ("unprefixed",))
    with pytest.raises(ValueError, match="0 episodes; expected"):
        make(root, tmp_path / "review.html", max_episodes=0)
    assert not (tmp_path / "review.html").exists()
