"""Segments in files that people make, and back; segments out of columns that say something of every frame."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.core.subtasks import FrameSubtasks, Subtask, SubtaskRules, take_subtasks
from sarm_ray.data import segments
from sarm_ray.data.annotation_io import read_annotations
from sarm_ray.data.frame_segments import language_segments, reward_segments
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.segments import annotated_subtasks, read_segments, segment_frames, write_segments_csv
from sarm_ray.errors import DatasetError
from tests.datasets import write_dataset

AB = [Subtask("a", 0.0, 0.5), Subtask("b", 0.5, 1.0)]
RECORDS = [
    {"episode_index": 3, "name": "b", "start_s": "00:00.5", "end_frame": 30, "note": "late"},
    {"episode_index": 3, "name": "a", "start_frame": 0, "end_s": 0.5, "end_frame": 99},
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("annotated")
    return open_dataset(str(write_dataset(root, lengths=(40, 30, 50), annotated=True, size=(16, 16))))


def place(tmp_path: Path, name: str, content: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def refused(tmp_path: Path, name: str, content: str | bytes, kind: str | None = "dense") -> str:
    """What is said about a file, after its place."""
    location = place(tmp_path, name, content)
    with pytest.raises(DatasetError) as error:
        read_segments(location, kind, 30.0)
    said = str(error.value)
    assert said.startswith(f"{location}: ")
    return said[len(location) + 2 :]


# --------------------------------------------------------------------------------------------------------------- files


def test_all_formats_hold_the_same(tmp_path):
    columns = ("episode_index", "name", "start_s", "end_s", "start_frame", "end_frame", "note")
    rows = [[str(record.get(column, "")) for column in columns] for record in RECORDS]
    table = pa.table({c: pa.array([r.get(c) for r in RECORDS]) for c in ("episode_index", "name", "end_frame")})
    table = table.append_column("start_s", [[0.5, 0.0]]).append_column("end_s", [[float("nan"), 0.5]])
    pq.write_table(table, tmp_path / "s.parquet", row_group_size=1)
    files = [
        place(tmp_path, "s.csv", "\n".join(map(",".join, [list(columns), *rows]))),
        place(tmp_path, "s.json", json.dumps(RECORDS)),
        place(tmp_path, "e.JSON", json.dumps({"episodes": {"3": RECORDS}})),
        place(tmp_path, "s.jsonl", "\n\n".join(map(json.dumps, RECORDS))),
        str(tmp_path / "s.parquet"),
    ]
    for location in files:
        assert read_segments(location, "dense", 30.0) == {"dense": {3: AB}}


def test_what_table_programs_make_of_csv(tmp_path):
    rows = ("Episode_Index;Kind;Label;start_s;end_s;", "", '1.0;Sparse; "x";0;00:01.5;', '1;DENSE;"y;z";0;2;', ";;;;;")
    text = "\ufeff" + "".join(f"{row}\r\n" for row in rows)
    expected = {"sparse": {1: [Subtask('"x"', 0.0, 1.5)]}, "dense": {1: [Subtask("y;z", 0.0, 2.0)]}}
    assert read_segments(place(tmp_path, "s.csv", text), None, 30.0) == expected
    tabbed = "episode_index\tsubtask\tstart_frame\tend_frame\n0\ta, b\t0\t15\n"
    expected = {"dense": {0: [Subtask("a, b", 0.0, 0.5)]}}
    assert read_segments(place(tmp_path, "t.csv", tabbed), "dense", 30.0) == expected


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0,dense,a,0,x", "row 2: end_s: 'x' is no time; write it like 00:12.5"),
        ("0,dense,a,00:61,2", "row 2: start_s: '00:61' is no time; minutes and seconds after a colon go up to 59"),
        ("0,dense,a,,2", "row 2: start_s is empty, and no start_frame"),
        ("0,dense,,0,2", "row 2: name is empty"),
        (",dense,a,0,2", "row 2: episode_index is empty"),
        ("-1,dense,a,0,2", "row 2: episode_index is '-1', not a whole number from 0 on"),
        ("1.5,dense,a,0,2", "row 2: episode_index is '1.5', not a whole number from 0 on"),
        ("9999999999999999,dense,a,0,2", "row 2: episode_index is '9999999999999999', not a whole number from 0 on"),
        ("0,coarse,a,0,2", "row 2: kind is 'coarse', not sparse or dense"),
        (
            "0,dense,a,0,2\n1,dense,b,c,0,2",
            "row 3 has 6 cells, the header has 5; put a name with ',' in it into quotes",
        ),
    ],
)
def test_rows_that_cannot_be_read(tmp_path, row, words):
    assert refused(tmp_path, "s.csv", f"episode_index,kind,name,start_s,end_s\n{row}\n") == words


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("s.txt", "", "segments are read from .csv, .json, .jsonl, .parquet files"),
        (
            "s.csv",
            "",
            "there are no segments in it; each is a row with episode_index, kind, name, start_s, end_s, start_fr",
        ),
        ("s.csv", b"\xff\xfe\x00", "not UTF-8 text (invalid start byte at byte 0); save it as UTF-8"),
        (
            "s.csv",
            "episode_index,nmae,start_s,end_s\n0,a,0,1",
            "row 2: no name; did you mean 'nmae'?; it has episode_index",
        ),
        (
            "s.csv",
            "episode_index,name,strt_s,end_s\n0,a,0,1",
            "row 2: no start_s and no start_frame; did you mean 'strt_s'?",
        ),
        ("s.csv", "episode_index,name\n0," + "a" * 200_000, "not a readable .csv file (field larger than field limit"),
        ("s.json", "[", "not a readable .json file (Expecting value: line 1 column 2 (char 1))"),
        ("s.json", "[" * 200_000, "not a readable .json file ("),
        ("s.json", "[3]", "record 1: 3 is no object with episode_index, kind"),
        ("s.json", '{"episodes": 3}', 'neither a list of records nor {"episodes": {"0": [record, ...], ...}}'),
        (
            "s.json",
            '{"episodes": {"x": [{"name": "a"}]}}',
            "episode x, record 1: episode_index is 'x', not a whole number",
        ),
        ("s.json", '[{"episode_index": true, "name": "a"}]', "record 1: episode_index is True, not a whole number"),
        ("s.json", '[{"episode_index": 1e400, "name": "a"}]', "record 1: episode_index is inf, not a whole number"),
        ("s.json", '[{"episode_index": 1, "name": ["a"]}]', "record 1: name is ['a'], not the name of a subtask"),
        (
            "s.json",
            '[{"episode_index": 1, "name": "a", "start_s": NaN}]',
            "record 1: start_s: nan is no time inside an epi",
        ),
        ("s.jsonl", "{}\n{", "record"),
        ("s.parquet", "PAR1", "not a readable .parquet file ("),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, words):
    if name == "s.jsonl":
        content, words = (
            '{"episode_index": 0, "name": "a", "start_s": 0, "end_s": 1}\n{',
            "line 2: malformed JSON (Expec",
        )
    assert refused(tmp_path, name, content).startswith(words)


def test_further_refusals(tmp_path, monkeypatch):
    with pytest.raises(DatasetError, match=f"{tmp_path}/none.csv: no such file"):
        read_segments(f"{tmp_path}/none.csv", None, 30.0)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DatasetError, match="no such file"):
        read_segments(f"{tmp_path}/folder.csv", None, 30.0)
    two = "episode_index,name,start_s,end_s\n0,a,0,1\n0,b,1,2\n"
    words = "row 2: it has no kind; add a column kind with sparse or dense, or say which all of them are"
    assert refused(tmp_path, "s.csv", two, kind=None) == words
    pq.write_table(pa.table({"episode_index": [0, 1], "x": [1, 2]}), tmp_path / "s.parquet")
    content = (tmp_path / "s.parquet").read_bytes()
    assert refused(tmp_path, "s.parquet", content) == "row 1: no name; it has episode_index"
    monkeypatch.setattr(segments, "MAX_SEGMENTS", 1)
    assert refused(tmp_path, "s.csv", two) == "more than 1 segments; divide it"
    assert refused(tmp_path, "s.parquet", content) == "2 rows; up to 1 are read, divide it"
    monkeypatch.setattr(segments, "MAX_FILE_BYTES", 10)
    assert refused(tmp_path, "s.csv", two) == f"{len(two)} bytes; up to 10 are read, divide it"


def test_the_csv_that_people_correct(dataset, tmp_path):
    location = str(tmp_path / "s.csv")
    found = read_annotations(dataset)
    own = {kind: annotated_subtasks(dataset, found[kind]) for kind in ("dense", "sparse")}
    write_segments_csv(location, dataset, own)
    lines = Path(location).read_text().splitlines()
    assert lines[:5] == [
        "episode_index,kind,name,start_s,end_s,start_frame,end_frame",
        "0,sparse,approach,0,0.4,0,12",
        "0,sparse,push,0.4,1.066667,12,32",
        "0,sparse,retract,1.066667,1.333333,32,40",
        "0,dense,reach block,0,0.266667,0,8",
    ]
    assert len(lines) == 1 + 3 * 8
    back = read_segments(location, None, dataset.fps)
    assert {kind: {e: segment_frames(each, 30.0) for e, each in part.items()} for kind, part in back.items()} == own
    corrected = [line.replace("0,sparse,approach,0,0.4,", "0,sparse,approach,0,00:00.5,") for line in lines]
    Path(location).write_text("\n".join(corrected))
    again = read_segments(location, None, dataset.fps)["sparse"][0]
    assert segment_frames(again, 30.0).end == (15, 32, 40)


@st.composite
def annotated(draw):
    fps = draw(st.sampled_from([1.0, 10.0, 15.0, 24.0, 29.97, 30.0, 50.0, 59.94, 60.0, 1000.0]) | st.floats(0.5, 2000))
    length = draw(st.integers(10, 400_000))
    starts = [0, *sorted(draw(st.sets(st.integers(1, length - 2), max_size=6)))]
    text = st.characters(exclude_categories=["Cs", "Cc", "Z"])
    middle = st.text(st.one_of(text, st.sampled_from(' ,;"\n\r\t')), max_size=6)
    size, label = len(starts), st.tuples(text, middle, text).map("".join)
    labels = draw(st.lists(label, min_size=size, max_size=size, unique=True))
    return fps, length, FrameSubtasks(tuple(labels), tuple(starts), (*starts[1:], length - 1))


@given(annotated(), st.sampled_from(["sparse", "dense"]), st.integers(0, 10**9))
def test_what_is_exported_comes_back_to_the_frame(tmp_path_factory, case, kind, episode):
    fps, length, own = case
    location = str(tmp_path_factory.getbasetemp() / "round_trip.csv")
    write_segments_csv(location, FPS(fps), {kind: {episode: own}})
    back = read_segments(location, None, fps)
    assert list(back) == [kind]
    assert list(back[kind]) == [episode]
    assert segment_frames(back[kind][episode], fps) == own
    rules = SubtaskRules(labels=own.names, fps=fps, length=length, tolerance_s=1 / fps + 1e-6)
    if len(own.names) == 1 or min(np.diff(own.start)) > 0:
        assert take_subtasks(back[kind][episode], rules) == own


class FPS:
    """All that the export asks of a dataset."""

    def __init__(self, fps: float):
        self.fps = fps


# -------------------------------------------------------------------------------------------------- columns of all frames


def with_column(tmp_path: Path, name: str, columns: dict[int, list], dtype: pa.DataType, **options) -> Path:
    """A dataset of three episodes of 30, 20 and 25 frames whose data files have a column; episode -> its L values."""
    root = write_dataset(tmp_path / "d", lengths=(30, 20, 25), size=(16, 16), stats=False, **options)
    for path in (root / "data").rglob("*.parquet"):
        file = pq.ParquetFile(path)
        groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
        episodes = [group["episode_index"][0].as_py() for group in groups]
        values = [pa.array(columns[episode], dtype) for episode in episodes]
        groups = [group.append_column(name, own) for group, own in zip(groups, values, strict=True)]
        with pq.ParquetWriter(path, groups[0].schema) as writer:
            for group in groups:
                writer.write_table(group.take(pa.array(range(group.num_rows))[::-1]))  # frame_index says the order
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][name] = {"dtype": "x", "shape": [1], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


ENTRY = pa.struct(
    [("role", pa.string()), ("content", pa.string()), ("style", pa.string()), ("timestamp", pa.float64()),
     ("camera", pa.string()), ("tool_calls", pa.list_(pa.string()))]
)  # fmt: skip


def entry(content: str | None, timestamp: float | None, style: str | None = "subtask") -> dict:
    return {"role": "assistant", "content": content, "style": style, "timestamp": timestamp}


def language(tmp_path: Path, entries: list[dict] | None, **options):
    """All three episodes have these entries in every frame."""
    lengths = {0: 30, 1: 20, 2: 25}
    columns = {episode: [entries] * length for episode, length in lengths.items()}
    return open_dataset(str(with_column(tmp_path, "language_persistent", columns, pa.list_(ENTRY), **options)))


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_lerobots_language(tmp_path, version):
    entries = [
        entry("move the block", 0.0),  # the whole task
        entry("a plan", 0.2, "plan"),
        entry("push", 0.5),
        entry(" reach ", 0.0),
        entry(None, 0.3, None),
    ]
    dataset = language(tmp_path, entries, version=version)
    assert language_segments(dataset, np.array([2, 0])) == {
        0: [Subtask("reach", 0.0, 0.5), Subtask("push", 0.5, 1.0)],
        2: [Subtask("reach", 0.0, 0.5), Subtask("push", 0.5, 25 / 30)],
    }


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([entry("a", 0.0), entry("b", None)], "subtask 'b' has the timestamp None"),
        ([entry("a", float("nan"))], "subtask 'a' has the timestamp nan"),
        ([entry("a", -0.1)], "subtask 'a' has the timestamp -0.1"),
        ([entry(" ", 0.0)], "a subtask has no content"),
        ([entry("a", 1.0)], "subtask 'a' starts at 00:01.0, and the episode ends at 00:01.0"),
    ],
)
def test_language_that_cannot_be_read(tmp_path, entries, words):
    dataset = language(tmp_path, entries)
    with pytest.raises(DatasetError) as error:
        language_segments(dataset, np.array([0]))
    assert (
        str(error.value) == f"{dataset.root}/data/chunk-000/file-000.parquet: episode 0: language_persistent: {words}"
    )


@pytest.mark.parametrize("entries", [None, [], [entry("a plan", 0.0, "plan")]])
def test_episodes_without_language_are_left_out(tmp_path, entries):
    assert language_segments(language(tmp_path, entries), np.arange(3)) == {}


def test_language_of_another_form(tmp_path):
    columns = {0: ["a"] * 30, 1: ["a"] * 20, 2: ["a"] * 25}
    dataset = open_dataset(str(with_column(tmp_path, "language_persistent", columns, pa.string())))
    with pytest.raises(
        DatasetError, match="language_persistent is no list of entries with style, content and timestamp"
    ):
        language_segments(dataset, np.arange(3))
    for path in Path(dataset.root, "data").rglob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["language_persistent"]), path)
    with pytest.raises(
        DatasetError, match=r"file-000.parquet: no column 'language_persistent'; it has observation.state"
    ):
        language_segments(dataset, np.arange(3))
    Path(dataset.root, "data/chunk-000/file-000.parquet").unlink()
    with pytest.raises(DatasetError, match=r"file-000.parquet: no such file"):
        language_segments(dataset, np.arange(3))


def test_lerobots_subtask_index(tmp_path):
    columns = {0: [1] * 10 + [0] * 15 + [1] * 5, 1: [-1] * 20, 2: [-1] * 5 + [0] * 20}
    root = with_column(tmp_path, "subtask_index", columns, pa.int64())
    dataset = open_dataset(str(root))
    with pytest.raises(
        DatasetError, match=r"meta/subtasks.parquet: no such file, and subtask_index needs it for the nam"
    ):
        language_segments(dataset, np.arange(3))
    table = pa.table({"subtask_index": [0, 1], "__index_level_0__": ["push", "reach"]})
    pq.write_table(table, root / "meta/subtasks.parquet")
    found = language_segments(dataset, np.arange(3))
    assert found == {
        0: [Subtask("reach", 0.0, 10 / 30), Subtask("push", 10 / 30, 25 / 30), Subtask("reach", 25 / 30, 1.0)],
        2: [Subtask("push", 5 / 30, 25 / 30)],
    }
    assert segment_frames(found[0], 30.0) == FrameSubtasks(("reach", "push", "reach"), (0, 10, 25), (10, 25, 30))
    pq.write_table(pa.table({"subtask_index": [0], "subtask": ["push"]}), root / "meta/subtasks.parquet")
    with pytest.raises(
        DatasetError, match=r"episode 0: subtask_index is 1 at frame 0, which meta/subtasks.parquet does not"
    ):
        language_segments(dataset, np.arange(3))
    pq.write_table(pa.table({"subtask_index": [0]}), root / "meta/subtasks.parquet")
    with pytest.raises(DatasetError, match=r"meta/subtasks.parquet: malformed table of subtasks"):
        language_segments(dataset, np.arange(3))


def test_a_dataset_without_either(dataset):
    with pytest.raises(
        DatasetError, match="no subtasks by frame; neither language_persistent nor subtask_index is among"
    ):
        language_segments(dataset, np.arange(3))


REWARDS = {
    0: np.concatenate([np.linspace(0, 0.99, 10), np.linspace(1, 1.99, 15), np.linspace(2, 3, 5)]),
    1: np.concatenate([np.linspace(0, 1.5, 15), np.linspace(0.9, 0.5, 5)]),
    2: np.full(25, 2.5),
}


@pytest.mark.parametrize("dtype", [pa.float32(), pa.list_(pa.float32(), 1)])
def test_opensarms_reward(tmp_path, dtype):
    nested = pa.types.is_fixed_size_list(dtype)
    columns = {e: [[value] for value in own] if nested else own.tolist() for e, own in REWARDS.items()}
    dataset = open_dataset(str(with_column(tmp_path, "reward", columns, dtype)))
    found = reward_segments(dataset, np.arange(3), ("a", "b", "c"))
    assert {episode: segment_frames(own, 30.0) for episode, own in found.items()} == {
        0: FrameSubtasks(("a", "b", "c"), (0, 10, 25), (10, 25, 30)),
        1: FrameSubtasks(("a", "b", "a"), (0, 10, 15), (10, 15, 20)),  # dropped it
        2: FrameSubtasks(("c",), (0,), (25,)),
    }
    with pytest.raises(DatasetError) as error:
        reward_segments(dataset, np.arange(3), ("a", "b"))
    assert str(error.value) == (
        f"{dataset.root}/data/chunk-000/file-000.parquet: episode 0: reward is 2.25 at frame 26; with the stages a, b it "
        f"goes from 0 to 2"
    )


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_rewards_that_are_none(tmp_path, value):
    columns = {0: [0.5] * 7 + [value] + [0.5] * 22, 1: [0.0] * 20, 2: [0.0] * 25}
    dataset = open_dataset(str(with_column(tmp_path, "reward", columns, pa.float64())))
    with pytest.raises(
        DatasetError, match=rf"episode 0: reward is {value:g} at frame 7; with the stages a it goes from 0 to"
    ):
        reward_segments(dataset, np.arange(3), ("a",))
    assert reward_segments(dataset, np.array([1, 2]), ("a",))[1] == [Subtask("a", 0.0, 20 / 30)]


def test_no_reward(dataset):
    with pytest.raises(DatasetError, match="no column 'reward'; it has"):
        reward_segments(dataset, np.arange(3), ("a",))
