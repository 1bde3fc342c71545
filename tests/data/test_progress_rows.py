"""Rows of a progress file that go into the next one: whichever episodes stay, all come out once and in order."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarm_ray.data import progress_io, progress_rows
from sarm_ray.data.progress_rows import kept_rows, merge_by_index, read_scored_episodes
from sarm_ray.errors import DatasetError

HEADS = ("sparse", "dense")
NAMES = ["index", "episode_index", "frame_index", "progress_sparse", "progress_dense"]
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def table_of(lengths: list[int], episodes: list[int], nan: int | None = None) -> pa.Table:
    """Rows of some episodes of a dataset; those of episode `nan` have no dense progress."""
    first = np.cumsum(lengths) - lengths
    index = np.concatenate([np.zeros(0, int), *(np.arange(first[e], first[e] + lengths[e]) for e in episodes)])
    episode = np.repeat(episodes, [lengths[e] for e in episodes]).astype(np.int64)
    progress = (index / 100).astype(np.float32)
    dense = np.where(episode == nan, np.float32(np.nan), progress)
    frame = index - first[episode] if len(index) else index
    return pa.table(dict(zip(NAMES, [index, episode, frame, progress, dense], strict=True)))


def write(path, table: pa.Table) -> str:
    schema = progress_io.progress_schema(HEADS, {"encoder": "some"})
    progress_io.write_progress(str(path), lambda: iter([table] if table.num_rows else []), schema)
    return str(path)


@settings(max_examples=150)
@given(lengths=lengths, data=st.data())
def test_old_and_new_rows_come_out_as_if_they_had_been_written_at_once(tmp_path_factory, lengths, data):
    numbers = list(range(len(lengths)))
    old = [number for number in numbers if data.draw(st.booleans())]
    kept = [number for number in old if data.draw(st.booleans())]
    new = [number for number in numbers if number not in kept]
    batch, block = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 20))
    first = np.cumsum(lengths) - lengths
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress_rows, "BATCH_ROWS", batch)
        patch.setattr(progress_rows, "ROWS_PER_GROUP", block)
        path = write(tmp_path_factory.mktemp("rows") / "p.parquet", table_of(lengths, old))
        theirs = (table_of(lengths, [number]) for number in new)
        if kept:
            stream = kept_rows(path, NAMES, first[kept], np.array(lengths)[kept])
            merged = list(merge_by_index(stream, theirs))
            assert all(each.num_rows >= block for each in merged[:-1])
        else:
            merged = list(theirs)
    assert pa.concat_tables(merged).combine_chunks().equals(table_of(lengths, numbers).combine_chunks())


@settings(max_examples=100)
@given(lengths=lengths, data=st.data())
def test_what_a_file_holds(tmp_path_factory, lengths, data):
    there = [number for number in range(len(lengths)) if data.draw(st.booleans())]
    nan = data.draw(st.sampled_from(range(len(lengths))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress_rows, "BATCH_ROWS", data.draw(st.integers(1, 7)))
        path = write(tmp_path_factory.mktemp("rows") / "p.parquet", table_of(lengths, there, nan))
        found = read_scored_episodes(path)
    assert found is not None
    assert (found.metadata, found.heads) == ({"encoder": "some"}, HEADS)
    first = np.cumsum(lengths) - lengths
    assert found.episode_index.tolist() == there
    assert found.first.tolist() == first[there].tolist()
    assert found.lengths.tolist() == [lengths[number] for number in there]
    assert found.num_nan.tolist() == [lengths[number] if number == nan else 0 for number in there]
    numbers, all_lengths = np.arange(len(lengths)), np.array(lengths)
    assert np.flatnonzero(found.places(numbers, first, all_lengths) >= 0).tolist() == there
    moved = data.draw(st.sampled_from(range(len(lengths))))
    for where in (first, all_lengths):
        edited = [where + (numbers == moved) if each is where else each for each in (first, all_lengths)]
        left = np.flatnonzero(found.places(numbers, *edited) >= 0).tolist()
        assert left == [number for number in there if number != moved]


def test_a_file_that_is_none(tmp_path):
    assert read_scored_episodes(str(tmp_path / "nowhere.parquet")) is None
    (tmp_path / "text.parquet").write_text("mine")
    with pytest.raises(DatasetError, match=r"text\.parquet: not a readable parquet file"):
        read_scored_episodes(str(tmp_path / "text.parquet"))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DatasetError, match=r"other\.parquet: no column 'index'"):
        read_scored_episodes(str(tmp_path / "other.parquet"))


@pytest.mark.parametrize("order", [[0, 2, 1], [1, 0, 2], [0, 1, 1]])
def test_rows_out_of_order(tmp_path, order):
    table = table_of([1, 1, 1], [0, 1, 2])
    with pytest.raises(DatasetError, match="its rows are not every frame of its episodes, sorted by index"):
        read_scored_episodes(write(tmp_path / "p.parquet", table.take(order)))
