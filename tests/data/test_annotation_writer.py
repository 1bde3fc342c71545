"""Annotations written into metadata: LeRobot's columns to the type, and nothing else changed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sarm_ray.core.frame_targets import stage_targets
from sarm_ray.core.subtasks import FrameSubtasks, whole_task
from sarm_ray.data import annotation_writer, storage
from sarm_ray.data.annotation_io import read_annotations
from sarm_ray.data.annotation_writer import write_annotations, write_proportions
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.segments import annotated_subtasks
from sarm_ray.errors import DatasetError, StoreError
from tests.datasets import SHARED, SPARSE_STAGES, write_dataset

PARITY = SHARED / "lerobot_parity"
needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason=f"needs LeRobot's outputs in {PARITY}")
AB = FrameSubtasks(("a", "b"), (0, 10), (10, 19))
ABC = FrameSubtasks(("a", "b", "c"), (0, 5, 13), (5, 13, 19))
HUGGINGFACE = {b"huggingface": b'{"info": {"features": {}}}', b"pandas": b'{"index_columns": [], "columns": []}'}


def copy_of(dataset: str, folder: Path) -> Path:
    """A writable copy of a dataset of LeRobot's; its metadata alone."""
    root = folder / dataset
    shutil.copytree(PARITY / dataset / "meta", root / "meta", copy_function=shutil.copyfile)
    for kind in ("data", "videos"):
        (root / kind).symlink_to(PARITY / dataset / kind)
    for path in (root / "meta").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (root / "meta").chmod(0o755)
    return root


def tables(root: Path) -> list[Path]:
    return sorted((root / "meta/episodes").rglob("*.parquet"))


def strip(path: Path, metadata: dict | None = None) -> None:
    """Take the subtasks out of a table."""
    table = pq.read_table(path)
    table = table.drop_columns([name for name in table.column_names if "subtask" in name])
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, path)


def without_subtasks(table: pa.Table) -> pa.Table:
    return table.select([name for name in table.column_names if "subtask" not in name])


def existing(root: Path | str) -> dict[str, dict[int, FrameSubtasks]]:
    """All subtasks of a dataset by kind."""
    dataset = open_dataset(str(root))
    found = read_annotations(dataset)
    return {kind: annotated_subtasks(dataset, found[kind]) for kind in ("sparse", "dense") if kind in found}


def several_files(tmp_path: Path, **options) -> Path:
    """Five episodes of 20 frames in three files of the table, not annotated."""
    options = {"lengths": (20,) * 5, "size": (16, 16), "episodes_per_metadata_file": 2, **options}
    return write_dataset(tmp_path / "several", **options)


# ------------------------------------------------------------------------------------------------------ beside LeRobot


@needs_parity
@pytest.mark.parity
def test_the_table_is_lerobots(tmp_path):
    root = copy_of("dataset_v3", tmp_path)
    (path,) = tables(root)
    theirs, theirs_arrow = pq.read_table(path), pq.read_schema(path)
    subtasks = existing(root)
    assert list(subtasks["dense"]) == [0, 1, 2, 3, 4, 5]
    strip(path)
    assert "pandas" in str(pq.read_schema(path).metadata)
    assert existing(root) == {}
    assert write_annotations(open_dataset(str(root)), subtasks) == [str(path)]
    assert pq.read_schema(path).equals(theirs_arrow, check_metadata=True)
    assert pq.read_table(path).equals(theirs, check_metadata=True)
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "SNAPPY"
    names = [str(pq.ParquetFile(path).schema.column(i).path) for i in range(pq.ParquetFile(path).metadata.num_columns)]
    assert "sparse_subtask_names.list.element" in names


@needs_parity
@pytest.mark.parity
def test_the_lines_are_lerobots(tmp_path):
    root = copy_of("dataset_v21", tmp_path)
    path = root / "meta/episodes.jsonl"
    theirs = path.read_bytes()
    subtasks = existing(root)
    entries = [json.loads(line) for line in theirs.splitlines()]
    bare = [{key: value for key, value in entry.items() if "subtask" not in key} for entry in entries]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in bare))
    assert write_annotations(open_dataset(str(root)), subtasks) == [str(path)]
    assert path.read_bytes() == theirs


@needs_parity
@pytest.mark.parity
@pytest.mark.parametrize("name", ["dataset_v3", "dataset_v21"])
def test_targets_and_proportions_from_our_columns_are_theirs(tmp_path, name):
    root = copy_of(name, tmp_path)
    theirs = np.load(PARITY / "expected/targets.npz")
    dataset, before = open_dataset(str(root)), existing(root)
    elsewhere = str(tmp_path / "elsewhere")
    write_annotations(dataset, before, root=elsewhere)
    overlaid = replace(dataset, root=elsewhere)
    for kind, subtasks in before.items():
        stages = read_annotations(dataset)[kind].stages
        own = annotated_subtasks(overlaid, read_annotations(overlaid)[kind])
        lengths = dataset.length.tolist()
        parts = [stage_targets(*own[e], stages, length) for e, length in enumerate(lengths)]
        value = np.concatenate([stage + tau for stage, tau in parts])
        center = theirs[f"center_{kind}"]
        assert np.abs(np.where(value == len(stages), center, value) - center).max() < 1e-6
        assert subtasks == own
        assert write_proportions(dataset, kind, stages, root=elsewhere) == []
        written = json.loads(Path(elsewhere, f"meta/temporal_proportions_{kind}.json").read_text())
        expected = json.loads((root / f"meta/temporal_proportions_{kind}.json").read_text())
        assert list(written) == list(stages)
        assert written == pytest.approx({stage: expected[stage] for stage in stages}, abs=1e-12)


# --------------------------------------------------------------------------------------------------------------- v3.0


@pytest.mark.parametrize("compression", ["SNAPPY", "ZSTD", "GZIP", "NONE", "LZ4"])
def test_everything_else_of_a_table_stays(tmp_path, compression):
    root = several_files(tmp_path)
    before = []
    for path in tables(root):
        table = pq.read_table(path)
        odd = pa.array([["x"]] * table.num_rows, pa.list_(pa.field("item", pa.dictionary(pa.int32(), pa.string()))))
        table = table.append_column(pa.field("odd", odd.type), odd)
        table = table.append_column("when", pa.nulls(table.num_rows, pa.timestamp("ms", tz="UTC")))
        table = table.take(pa.array(range(table.num_rows))[::-1]).replace_schema_metadata(HUGGINGFACE)
        pq.write_table(table, path, compression=compression, row_group_size=1)
        before.append(pq.read_table(path))
    places = write_annotations(open_dataset(str(root)), {"dense": {3: AB}})
    assert places == list(map(str, tables(root)))
    for path, old in zip(tables(root), before, strict=True):
        new, about = pq.read_table(path), pq.ParquetFile(path).metadata
        assert without_subtasks(new).equals(old, check_metadata=True)
        assert new.schema.metadata == HUGGINGFACE
        assert new.column_names[: len(old.column_names)] == old.column_names
        assert about.num_row_groups == old.num_rows
        assert about.row_group(0).column(0).compression.replace("UNCOMPRESSED", "NONE") == compression
    assert existing(root) == {"dense": {3: AB}}


def test_all_files_get_the_columns_and_the_others_are_null(tmp_path):
    root = several_files(tmp_path)
    write_annotations(open_dataset(str(root)), {"sparse": {2: AB}})
    first, second, third = (pq.read_table(path) for path in tables(root))
    keys = [f"{prefix}subtask_{part}" for prefix in ("sparse_", "") for part in
            ("names", "start_times", "end_times", "start_frames", "end_frames")]  # fmt: skip
    for table in (first, second, third):
        assert table.column_names[-10:] == keys
        types = [str(table.schema.field(key).type) for key in keys]
        assert types == (["list<element: string>"] + ["list<element: int64>"] * 4) * 2
    assert all(table[key].null_count == table.num_rows for table in (first, third) for key in keys)
    assert second["subtask_end_frames"].to_pylist() == [[10, 19], None]
    assert second["sparse_subtask_end_times"].to_pylist() == [[0, 1], None]  # 10/30 and 19/30 seconds


def test_episodes_that_are_not_named_keep_what_they_have(tmp_path):
    root = several_files(tmp_path, annotated=True)
    before = existing(root)
    written = write_annotations(open_dataset(str(root)), {"dense": {2: ABC}})
    assert written == [str(tables(root)[1])]  # the others have the columns, and no episode to change
    after = existing(root)
    assert after["sparse"] == before["sparse"]
    assert after["dense"] == {**before["dense"], 2: ABC}
    assert write_annotations(open_dataset(str(root)), {"dense": {2: ABC}}) == []
    assert write_annotations(open_dataset(str(root)), {"dense": {}, "sparse": {}}) == []


def test_one_file_may_lack_what_another_has(tmp_path):
    """As LeRobot's tool leaves a table of several files."""
    root = several_files(tmp_path, annotated=True)
    strip(tables(root)[0])
    before = existing(root)
    write_annotations(open_dataset(str(root)), {"sparse": {4: whole_task("task", 20)}})
    for path in tables(root):
        assert len([name for name in pq.read_schema(path).names if name.startswith(("sparse", "subtask"))]) == 10
    assert existing(root)["sparse"] == {**before["sparse"], 4: whole_task("task", 20)}


def test_a_crash_between_two_files_is_harmless(tmp_path, monkeypatch):
    root, twin = several_files(tmp_path), several_files(tmp_path / "twin")
    subtasks = {"sparse": dict.fromkeys(range(5), AB), "dense": {0: ABC, 4: ABC}}
    write_annotations(open_dataset(str(twin)), subtasks)
    real, calls = storage.write_atomically, []

    def dies(location, write):
        calls.append(location)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(location, write)

    with monkeypatch.context() as patched:
        patched.setattr(annotation_writer.storage, "write_atomically", dies)
        with pytest.raises(KeyboardInterrupt):
            write_annotations(open_dataset(str(root)), subtasks)
    assert existing(root) == {"sparse": {0: AB, 1: AB}, "dense": {0: ABC}}  # readable half-way
    assert write_annotations(open_dataset(str(root)), subtasks) == list(map(str, tables(root)[1:]))
    for path, other in zip(tables(root), tables(twin), strict=True):
        assert path.read_bytes() == other.read_bytes()


def test_what_a_killed_writer_left_is_removed(tmp_path):
    root = several_files(tmp_path)
    left = tables(root)[0].with_name(f"{storage.TEMPORARY_PREFIX}{storage._HOST}-999999-ab-file-000.parquet")
    left.write_bytes(b"PAR1")
    write_annotations(open_dataset(str(root)), {"dense": {0: AB}})
    assert not left.exists()


def test_another_folder_gets_the_whole_table_and_keeps_what_it_got(tmp_path):
    root, out = several_files(tmp_path), str(tmp_path / "out")
    before = [path.read_bytes() for path in tables(root)]
    places = write_annotations(open_dataset(str(root)), {"dense": {0: AB}}, root=out)
    assert places == [str(path).replace(str(root), out) for path in tables(root)]
    places = write_annotations(open_dataset(str(root)), {"dense": {4: ABC}}, root=out)
    assert places == [str(tables(root)[2]).replace(str(root), out)]
    overlaid = replace(open_dataset(str(root)), root=out)
    assert annotated_subtasks(overlaid, read_annotations(overlaid)["dense"]) == {0: AB, 4: ABC}
    assert [path.read_bytes() for path in tables(root)] == before
    shutil.copy(tables(root)[0], Path(out, "meta/episodes/chunk-000/file-009.parquet"))
    with pytest.raises(DatasetError, match=r"file-009.parquet is no file of several; give an empty folder"):
        write_annotations(open_dataset(str(root)), {"dense": {4: ABC}}, root=out)


def test_remote_datasets(tmp_path):
    root = several_files(tmp_path)
    remote = f"memory://{tmp_path.name}/several"
    filesystem = storage.open_filesystem(remote)[0]
    filesystem.put(str(root), remote, recursive=True)
    dataset = open_dataset(remote)
    places = write_annotations(dataset, {"dense": {0: AB, 3: ABC}})
    assert [place[len(remote) :] for place in places] == [str(path)[len(str(root)) :] for path in tables(root)]
    assert existing(remote) == {"dense": {0: AB, 3: ABC}}
    assert write_proportions(dataset, "dense", ["a", "b", "c"]) == []
    shares = {"a": 15 / 38, "b": 17 / 38, "c": 6 / 38}
    assert read_annotations(dataset)["dense"].proportions == pytest.approx(shares)


@pytest.mark.parametrize("annotated", ["v3.0", "v2.1"])
def test_folders_that_must_not_be_written_into(tmp_path, annotated):
    root = write_dataset(tmp_path / "d", annotated, (20, 20), size=(16, 16))
    dataset = open_dataset(str(root))
    inner = root / ("meta/episodes" if annotated == "v3.0" else "meta")
    inner.chmod(0o555)
    try:
        with pytest.raises(DatasetError, match=f"{inner}: nothing may be written there; give another folder"):
            write_annotations(dataset, {"dense": {0: AB}})
        (place,) = write_annotations(dataset, {"dense": {0: AB}}, root=str(tmp_path / "out"))
        assert place.startswith(f"{tmp_path}/out/meta/episodes")
        overlaid = replace(dataset, root=str(tmp_path / "out"))
        assert annotated_subtasks(overlaid, read_annotations(overlaid)["dense"]) == {0: AB}
        with pytest.raises(DatasetError, match="not written into the cache of the Hub; give a folder"):
            write_annotations(replace(dataset, repo_id="a/b"), {"dense": {0: AB}})
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="cannot be written"):
            write_annotations(dataset, {"dense": {0: AB}}, root=str(tmp_path / "file"))
    finally:
        inner.chmod(0o755)


# ----------------------------------------------------------------------------------------------------- older annotations


def test_sparse_subtasks_without_a_prefix_are_carried_on(tmp_path):
    """Readers look at the columns without a prefix only where there are none with it."""
    root = several_files(tmp_path, annotated=True)
    before = existing(root)["sparse"]
    for path in tables(root):
        table = pq.read_table(path)
        pq.write_table(table.drop_columns([n for n in table.column_names if n.startswith(("sparse_", "dense_"))]), path)
    write_annotations(open_dataset(str(root)), {"sparse": {1: AB}})
    assert existing(root)["sparse"] == {**before, 1: AB}


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_older_annotations_of_times_get_frames(tmp_path, version):
    """Readers take frames from times only where there is no column of frames."""
    root = write_dataset(tmp_path / "d", version, (90, 90), size=(16, 16))
    old = {
        "dense_subtask_names": ["a", "b"],
        "dense_subtask_start_times": [0, 1.5],
        "dense_subtask_end_times": [1.5, 3],
    }
    if version == "v3.0":
        table = pq.read_table(tables(root)[0])
        for key, value in old.items():
            table = table.append_column(key, [[value, None]])
        pq.write_table(table, tables(root)[0])
    else:
        lines = (root / "meta/episodes.jsonl").read_text().splitlines()
        lines[0] = json.dumps(json.loads(lines[0]) | old)
        (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    write_annotations(open_dataset(str(root)), {"dense": {1: AB}})
    assert existing(root)["dense"] == {0: FrameSubtasks(("a", "b"), (0, 45), (45, 90)), 1: AB}


def test_columns_of_another_type(tmp_path):
    root = several_files(tmp_path, lengths=(20, 20))
    (path,) = tables(root)
    table, narrow = pq.read_table(path), pa.large_list(pa.int32())
    table = table.append_column("dense_subtask_names", pa.array([["a"], None], pa.large_list(pa.large_string())))
    for part in ("start_frames", "end_frames"):
        table = table.append_column(f"dense_subtask_{part}", pa.array([[3], None], narrow))
    pq.write_table(table, path)
    write_annotations(open_dataset(str(root)), {"dense": {1: AB}})
    new = pq.read_table(path)
    assert str(new.schema.field("dense_subtask_names").type) == "list<element: string>"
    assert str(new.schema.field("dense_subtask_start_frames").type) == "list<element: int64>"
    assert existing(root)["dense"] == {0: FrameSubtasks(("a",), (3,), (3,)), 1: AB}
    pq.write_table(without_subtasks(new).append_column("dense_subtask_names", pa.array([3, 4])), path)
    with pytest.raises(DatasetError, match=f"{path}: episode 0: dense_subtask_names is no list of names; remove it"):
        write_annotations(open_dataset(str(root)), {"dense": {1: AB}})


# --------------------------------------------------------------------------------------------------------------- v2.x


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_text_of_lines_stays(tmp_path, end):
    root = write_dataset(tmp_path / "d", "v2.1", (20, 20, 20), size=(16, 16))
    path = root / "meta/episodes.jsonl"
    lines = [
        '{"episode_index": 0, "tasks": ["p\\u00fcsh"], "length": 20,  "score": 1.50e-3, "dense_subtask_names": null}',
        '{"length":20,"episode_index":1,"tasks":["push ü {}\\"}: \u2028"],"x":1.0}',
        '{"tasks": [], "episode_index": 2, "length": 20, "x": [1.0, {"y": -0.0}] } ',
    ]
    path.write_bytes((end or "\n").join(lines).encode() + end.encode())
    write_annotations(open_dataset(str(root)), {"dense": {0: AB, 1: AB}})
    new = path.read_bytes().decode().split(end or "\n")
    bounds = {"start_times": "[0, 0]", "end_times": "[0, 1]", "start_frames": "[0, 10]", "end_frames": "[10, 19]"}
    values = [f'"dense_subtask_{part}": {value}' for part, value in bounds.items()]
    tail = ", ".join(values)
    assert new[0] == lines[0].replace("null}", '["a", "b"], ' + tail + "}")
    assert new[1] == lines[1][:-1] + ',"dense_subtask_names":["a","b"],' + tail.replace(" ", "") + "}"
    assert new[2] == lines[2]
    assert existing(root) == {"dense": {0: AB, 1: AB}}
    assert write_annotations(open_dataset(str(root)), {"dense": {0: AB, 1: AB}}) == []
    write_annotations(open_dataset(str(root)), {"dense": {0: whole_task("näh\\", 20)}})
    assert existing(root) == {"dense": {0: whole_task("näh\\", 20), 1: AB}}


def test_a_malformed_line_is_named(tmp_path):
    root = write_dataset(tmp_path / "d", "v2.1", (20, 20), size=(16, 16))
    dataset, path = open_dataset(str(root)), root / "meta/episodes.jsonl"
    text = path.read_text().splitlines()
    path.write_text(text[0] + '\n\n{"episode_index": "x"}\n')
    with pytest.raises(DatasetError, match=r"episodes.jsonl: line 3: no JSON object with an episode_index"):
        write_annotations(dataset, {"dense": {0: AB}})
    path.write_text(text[0] + "\n")
    with pytest.raises(DatasetError, match="its episodes are not those of d any more; start again"):
        write_annotations(dataset, {"dense": {0: AB}})


# ------------------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("subtasks", "words"),
    [
        ({"coarse": {0: AB}}, "several: 'coarse' subtasks; there are sparse, dense ones"),
        ({"dense": {0: AB, 7: AB}}, "several: dense subtasks for episode 7, which the dataset does not have"),
        (
            {"dense": {1: FrameSubtasks(("a",), (0, 1), (1,))}},
            "episode 1: dense subtasks: 1 names, 2 starts and 1 ends",
        ),
        (
            {"sparse": {1: FrameSubtasks((), (), ())}},
            "episode 1: sparse subtasks: there are none; leave the episode out",
        ),
        ({"dense": {1: FrameSubtasks((" ",), (0,), (1,))}}, "episode 1: dense subtasks: one has no name"),
        ({"dense": {1: FrameSubtasks(("\ud800",), (0,), (1,))}}, "is no text that a file can hold"),
        ({"dense": {1: FrameSubtasks(("a",), (0,), (21,))}}, "'a' goes from frame 0 to 21, and the episode has 20 fra"),
        ({"dense": {1: FrameSubtasks(("a",), (5,), (4,))}}, "'a' goes from frame 5 to 4"),
    ],
)
def test_subtasks_that_cannot_be_the_datasets(tmp_path, subtasks, words):
    root = several_files(tmp_path, lengths=(20, 20))
    before = tables(root)[0].read_bytes()
    with pytest.raises(DatasetError) as error:
        write_annotations(open_dataset(str(root)), subtasks)
    assert words in str(error.value)
    assert tables(root)[0].read_bytes() == before


def test_a_table_that_is_broken_or_another_one(tmp_path):
    root = several_files(tmp_path)
    dataset = open_dataset(str(root))
    content = tables(root)[1].read_bytes()
    tables(root)[1].write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"file-001.parquet: not a readable episode table"):
        write_annotations(dataset, {"dense": {0: AB}})
    tables(root)[1].write_bytes(tables(root)[0].read_bytes())
    with pytest.raises(DatasetError, match="its episodes are not those of several any more; something writes the data"):
        write_annotations(dataset, {"dense": {0: AB}})
    tables(root)[1].write_bytes(content)
    assert existing(root) == {}


# -------------------------------------------------------------------------------------------------------- proportions


def test_proportions_are_of_old_and_new_annotations(tmp_path):
    root = several_files(tmp_path, annotated=True)
    dataset = open_dataset(str(root))
    stages = tuple(SPARSE_STAGES)
    write_annotations(dataset, {"sparse": {0: FrameSubtasks(stages, (0, 10, 15), (10, 15, 20))}})
    assert write_proportions(dataset, "sparse", stages) == []
    text = (root / "meta/temporal_proportions_sparse.json").read_text()
    assert json.loads(text) == pytest.approx({"approach": 0.34, "push": 0.45, "retract": 0.21})
    assert text == json.dumps(json.loads(text), indent=2)


def test_proportions_leave_out_what_is_of_other_stages_or_torn_and_say_so(tmp_path):
    root = write_dataset(tmp_path / "d", "v2.1", (20,) * 5, annotated=True, size=(16, 16))
    dataset = open_dataset(str(root))
    path = root / "meta/episodes.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2]["dense_subtask_end_frames"].pop()
    lines[3]["dense_subtask_names"] = ["a", "b", "c"] * 2
    for part, frames in (("start", [0, 3, 6, 9, 12, 15]), ("end", [3, 6, 5, 12, 15, 18])):
        lines[3][f"dense_subtask_{part}_frames"] = frames
    path.write_text("\n".join(map(json.dumps, lines)))
    write_annotations(dataset, {"dense": {0: AB, 1: AB}})
    notices = write_proportions(dataset, "dense", ["b", "a", "c"])
    assert notices == [
        "episode 4: dense subtasks that are none of b, a, c (reach block, align gripper, push forward, release, "
        "go home); left out of the proportions, annotate again or leave out of training",
        "episode 3: dense subtasks that end before they start; left out of the proportions, annotate again or leave out "
        "of training",
        "episode 2: dense subtasks with other numbers of names, starts and ends; left out of the proportions, annotate "
        "again or leave out of training",
        "no episode has the dense subtask 'c': its share is 0; annotate an episode that has it before training",
    ]
    written = json.loads((root / "meta/temporal_proportions_dense.json").read_text())
    assert written == pytest.approx({"b": 9 / 19, "a": 10 / 19, "c": 0})
    assert list(written) == ["b", "a", "c"]


def test_proportions_that_there_cannot_be(tmp_path):
    root = several_files(tmp_path)
    dataset = open_dataset(str(root))
    with pytest.raises(DatasetError, match=f"{root}: no episode has dense subtasks; write them first"):
        write_proportions(dataset, "dense", ["a"])
    write_annotations(dataset, {"dense": {0: AB}, "sparse": {0: whole_task("task", 20), 1: whole_task("task", 20)}})
    with pytest.raises(
        DatasetError, match="no episode has usable dense subtasks of x, y; episode 0: dense subtasks that"
    ):
        write_proportions(dataset, "dense", ["x", "y"])
    with pytest.raises(DatasetError, match="several: proportions need a kind, sparse, dense, and stages that differ"):
        write_proportions(dataset, "dense", ["x", "x"])
    assert not (root / "meta/temporal_proportions_dense.json").exists()
    assert write_proportions(dataset, "sparse", ["task"]) == []
    assert json.loads((root / "meta/temporal_proportions_sparse.json").read_text()) == {"task": 1.0}
