"""Subtask annotations, as LeRobot's tool wrote them and as they are when something is amiss."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sarm_ray.data.annotation_io import of_episodes, read_annotations, segments_by_stage
from sarm_ray.data.json_files import read_json_lines
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.errors import DatasetError
from tests.datasets import DENSE_STAGES, SHARED, SPARSE_STAGES, write_dataset

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")


def edit_episode(root: Path, episode: int, **changes) -> None:
    """Change keys of one line of a v2.1 episode table."""
    path = root / "meta/episodes.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    entries[episode] |= changes
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.fixture(scope="module", params=["v3.0", "v2.1", "v2.0"])
def annotated(request, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("annotated")
    return write_dataset(root, request.param, (40, 30, 50), annotated=True, size=(16, 16))


def test_all_versions_hold_the_same(annotated):
    found = read_annotations(open_dataset(str(annotated)))
    assert list(found) == ["sparse", "dense", "unprefixed"]
    sparse, dense = found["sparse"], found["dense"]
    assert sparse.stages == tuple(SPARSE_STAGES)
    assert dense.stages == tuple(DENSE_STAGES)
    assert sparse.offsets.tolist() == [0, 3, 6, 9]
    assert sparse.row.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert sparse.stage.tolist() == [0, 1, 2] * 3
    assert sparse.start.tolist() == [0, 12, 32, 0, 9, 24, 0, 15, 40]
    assert sparse.end.tolist() == [12, 32, 40, 9, 24, 30, 15, 40, 50]
    assert sparse.annotated.all()
    assert not sparse.broken.any()
    assert sparse.proportions == SPARSE_STAGES
    assert dense.proportions == DENSE_STAGES
    assert found["unprefixed"].start.tolist() == sparse.start.tolist()


def test_a_dataset_without_annotations_has_none(tmp_path):
    assert read_annotations(open_dataset(str(write_dataset(tmp_path, lengths=(3, 4), size=(16, 16))))) == {}


def test_null_and_absent_keys_are_not_annotated_and_torn_lists_are_broken(tmp_path):
    root = write_dataset(tmp_path, "v2.1", (40, 30, 50, 20), annotated=True, size=(16, 16))
    edit_episode(root, 0, sparse_subtask_names=None, sparse_subtask_start_frames=None, sparse_subtask_end_frames=None)
    edit_episode(root, 1, sparse_subtask_end_frames=[9, 24])
    edit_episode(root, 3, sparse_subtask_start_frames=[0, None, 16])
    sparse = read_annotations(open_dataset(str(root)))["sparse"]
    assert sparse.annotated.tolist() == [False, False, True, False]
    assert sparse.broken.tolist() == [False, True, False, True]
    assert sparse.offsets.tolist() == [0, 0, 0, 3, 3]
    assert sparse.end.tolist() == [15, 40, 50]


def test_frames_come_from_times_where_there_are_no_frames(tmp_path):
    root = write_dataset(tmp_path, "v2.1", (90,), size=(16, 16))
    edit_episode(
        root, 0, dense_subtask_names=["a", "b"], dense_subtask_start_times=[0, 1.5], dense_subtask_end_times=[1.5, 3]
    )
    dense = read_annotations(open_dataset(str(root)))["dense"]
    assert dense.start.tolist() == [0, 45]
    assert dense.end.tolist() == [45, 90]
    assert dense.proportions is None


def test_files_of_the_table_may_differ_in_columns_and_order(tmp_path):
    """LeRobot's annotation tool adds columns to the files whose episodes it was given."""
    root = write_dataset(tmp_path, lengths=(40, 30, 50), annotated=True, size=(16, 16), episodes_per_metadata_file=2)
    first = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(first)
    dropped = [name for name in table.column_names if "subtask" in name]
    pq.write_table(table.drop_columns(dropped).take(pa.array([1, 0])), first)
    found = read_annotations(open_dataset(str(root)))
    assert found["sparse"].annotated.tolist() == [False, False, True]
    assert found["dense"].end.tolist() == [10, 15, 30, 40, 50]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sparse_subtask_names": "push"}, "changed from array to string"),
        ({"sparse_subtask_names": [1, 2, 3]}, "changed from string to number"),
        ({"sparse_subtask_start_frames": ["a", "b", "c"]}, "changed from number to string"),
    ],
)
def test_other_types_are_an_error(tmp_path, changes, words):
    root = write_dataset(tmp_path, "v2.1", (40, 30), annotated=True, size=(16, 16))
    edit_episode(root, 1, **changes)
    with pytest.raises(DatasetError, match=f"episodes.jsonl: .*{words}"):
        read_annotations(open_dataset(str(root)))


@pytest.mark.parametrize("line", ["null", "[]", "3", " {}"])
def test_a_line_that_is_no_object_is_an_error(tmp_path, line):
    """pyarrow's reader crashes the process on some of these."""
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    schema = pa.schema([("a", pa.int64())])
    assert read_json_lines(str(path), schema)["a"].to_pylist() == [1, 2]
    path.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    with pytest.raises(pa.ArrowInvalid, match="a line is no JSON object"):
        read_json_lines(str(path), schema)


def test_what_is_wrong_with_other_episodes_does_not_matter(tmp_path):
    root = write_dataset(tmp_path, "v2.1", (40, 30, 50), annotated=True, size=(16, 16))
    edit_episode(root, 1, sparse_subtask_start_frames=[9, 20, 25], sparse_subtask_end_frames=[5, 25, 30])
    own = read_annotations(open_dataset(str(root)))["sparse"]
    with pytest.raises(ValueError, match="ends at frame 5, before its start 9"):
        segments_by_stage(own, SPARSE_STAGES)
    others = of_episodes(own, np.array([0, 2]))
    assert others.offsets.tolist() == [0, 3, 3, 6]
    assert others.annotated.tolist() == [True, False, True]
    assert others.start.tolist() == [*own.start[:3], *own.start[6:]]
    assert segments_by_stage(others, SPARSE_STAGES).row.tolist() == [0, 0, 0, 2, 2, 2]


def test_proportions_that_are_no_numbers_are_an_error(tmp_path):
    root = write_dataset(tmp_path, lengths=(40,), annotated=True, size=(16, 16))
    (root / "meta/temporal_proportions_sparse.json").write_text('{"push": "half"}')
    with pytest.raises(DatasetError, match=r"temporal_proportions_sparse\.json: expected a number for each subtask"):
        read_annotations(open_dataset(str(root)))


@needs_shared
@pytest.mark.parity
def test_what_lerobots_tool_has_written():
    new, old = (
        read_annotations(open_dataset(str(SHARED / "lerobot_parity" / n))) for n in ("dataset_v3", "dataset_v21")
    )
    for kind in ("sparse", "dense", "unprefixed"):
        for part in ("offsets", "stage", "start", "end"):
            assert np.array_equal(getattr(new[kind], part), getattr(old[kind], part))
        assert new[kind].stages == old[kind].stages
    assert new["sparse"].stages == ("approach", "push", "retract")
    assert new["sparse"].end.reshape(6, 3).tolist()[:2] == [[90, 240, 300], [150, 240, 330]]
    assert new["dense"].proportions["release"] == pytest.approx(0.1364996)
