"""Columns of one episode out of a data file, however the file stores them; task texts and statistics of many."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sarm_ray.data import rows as rows_module
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.rows import column_array, episode_texts, read_episode_table, state_statistics
from tests.datasets import write_dataset

FLAT = np.arange(12, dtype=np.float32)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, 2, 3], pa.int64()), np.array([1, 2, 3])),
        (pa.array([True, False, True]), np.array([True, False, True])),
        (pa.array([0.5, 1.5], pa.float64()), np.array([0.5, 1.5])),
        (pa.FixedSizeListArray.from_arrays(FLAT, 4), FLAT.reshape(3, 4)),
        (pa.array(FLAT.reshape(3, 4).tolist(), pa.list_(pa.float32())), FLAT.reshape(3, 4)),
        (pa.array(FLAT.reshape(3, 2, 2).tolist(), pa.list_(pa.list_(pa.float32()))), FLAT.reshape(3, 4)),
        (pa.FixedSizeListArray.from_arrays(FLAT, 4).slice(1, 2), FLAT.reshape(3, 4)[1:]),
        (pa.array([[7.0]], pa.list_(pa.float32())), np.array([[7]], dtype=np.float32)),
    ],
)
def test_columns_become_arrays(column, expected):
    result = column_array(pa.chunked_array([column]))
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    assert np.array_equal(result, expected)
    if len(column) > 1:
        parts = pa.chunked_array([column.slice(0, 1), column.slice(1)])
        assert np.array_equal(column_array(parts), expected)


def table_of(episodes: list[int], frames: list[int]) -> pa.Table:
    value = [100 * episode + frame for episode, frame in zip(episodes, frames, strict=True)]
    return pa.table({"value": value, "frame_index": frames, "episode_index": episodes})


@pytest.mark.parametrize("row_group_size", [1, 2, 3, 100])
@pytest.mark.parametrize("write_statistics", [True, False])
def test_an_episode_is_found_whatever_the_row_groups(tmp_path, row_group_size, write_statistics):
    path = tmp_path / "d.parquet"
    table = table_of([0, 0, 1, 1, 1, 2, 0], [0, 1, 2, 0, 1, 0, 2])
    pq.write_table(table, path, row_group_size=row_group_size, write_statistics=write_statistics)
    for episode, expected in ((0, [0, 1, 2]), (1, [100, 101, 102]), (2, [200]), (3, [])):
        assert read_episode_table(str(path), ["value"], episode)["value"].to_pylist() == expected
    assert read_episode_table(str(path), ["value"], None).num_rows == 7


def test_files_without_index_columns_are_taken_as_they_are(tmp_path):
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"value": [3, 1, 2]}), path)
    assert read_episode_table(str(path), ["value"], 5)["value"].to_pylist() == [3, 1, 2]
    assert read_episode_table(str(path), ["value"], None)["value"].to_pylist() == [3, 1, 2]


def test_a_column_asked_for_twice_or_used_for_the_order(tmp_path):
    path = tmp_path / "d.parquet"
    pq.write_table(table_of([0, 0], [1, 0]), path)
    table = read_episode_table(str(path), ["frame_index", "value", "value"], 0)
    assert table.column_names == ["frame_index", "value", "episode_index"]
    assert table["value"].to_pylist() == [0, 1]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([[1.0, 2.0], None], pa.list_(pa.float32())), "1 rows are missing"),
        (pa.array([[1.0, 2.0], [1.0]], pa.list_(pa.float32())), "rows differ in length"),
        (pa.array([[1.0], [1.0, 2.0, 3.0]], pa.list_(pa.float32())), "rows differ in length"),
        (pa.array(["a", "b"]), "string instead of numbers"),
        (pa.array([1, None], pa.int64()), "1 values are missing"),
    ],
)
def test_columns_that_are_no_numbers(column, words):
    with pytest.raises(ValueError, match=words):
        column_array(pa.chunked_array([column]))


def test_large_lists_and_missing_floats():
    column = pa.array([[1.0, None], [3.0, 4.0]], pa.large_list(pa.float32()))
    np.testing.assert_array_equal(column_array(pa.chunked_array([column])), [[1, np.nan], [3, 4]])


def test_many_task_texts_come_in_the_order_of_the_episodes(tmp_path):
    """An episode of several tasks is asked for its first frame's; many are read at a time."""
    lengths = [6, 3, 9, 4, 5] * 5
    root = write_dataset(tmp_path / "toy", "v2.1", lengths)
    lines = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
    expected = [line["tasks"][0] for line in lines]
    text = "".join(json.dumps({**line, "tasks": [*line["tasks"], "another"]}) + "\n" for line in lines)
    (root / "meta/episodes.jsonl").write_text(text)
    dataset = open_dataset(str(root))
    assert episode_texts(dataset, np.arange(len(lengths))) == expected
    assert episode_texts(dataset, np.array([8, 1])) == [expected[8], expected[1]]


@pytest.mark.parametrize("form", ["usual", "nested", "count a number", "NaN", "an episode without"])
def test_statistics_are_the_same_whichever_way_they_are_read(tmp_path, monkeypatch, form):
    root = write_dataset(tmp_path / "toy", "v2.1", [6, 3, 9])
    path = root / "meta/episodes_stats.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    own = entries[1]["stats"]["observation.state"]
    if form == "nested":
        own["mean"] = [own["mean"]]
    elif form == "count a number":
        own["count"] = own["count"][0]
    elif form == "NaN":
        own["mean"][0] = float("nan")
    elif form == "an episode without":
        del entries[1]["stats"]["observation.state"]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    dataset = open_dataset(str(root))
    assert (rows_module._scan_statistics(dataset, "observation.state") is None) == (form != "usual")
    result = state_statistics(dataset, "observation.state")
    monkeypatch.setattr(rows_module, "_scan_statistics", lambda *_: None)
    np.testing.assert_array_equal(result, state_statistics(dataset, "observation.state"))
