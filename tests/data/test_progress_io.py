"""Parts become one sorted file: of a chunk that was scored twice, the row with the fewest holes counts."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sarm_ray.core.episodes import count_frames, pack_frames, plan_chunks
from sarm_ray.core.progress import interpolate_progress
from sarm_ray.core.windows import bitmaps_by_length, computed_mask
from sarm_ray.data.progress_io import (
    part_schema,
    read_done,
    read_episode_probabilities,
    read_episode_progress,
    read_progress_blocks,
    write_part,
)
from sarm_ray.data.progress_merge import merge_parts
from sarm_ray.errors import DatasetError

LENGTHS = np.array([2, 300])
CHUNKS = plan_chunks(np.arange(2), LENGTHS)


def put(folder: str, name: str, episode: int, start: int, values: list[float]) -> None:
    row = {
        "episode_index": episode,
        "start": start,
        "num_holes": int(np.isnan(values).sum()),
        "frames": pack_frames(np.ones(len(values), dtype=bool))[0].tobytes(),
        "progress_sparse": values,
        "probabilities_sparse": [share for _ in values for share in (0.25, 0.75)],
    }
    write_part(folder, name, pa.Table.from_pylist([row], schema=part_schema(("sparse",))))


def merge(folder: str) -> pa.Table:
    return pa.concat_tables(merge_parts(folder, ("sparse",), CHUNKS, np.arange(2), LENGTHS, np.array([0, 2])))


@pytest.mark.parametrize("newest", ["a", "z"])
def test_of_several_rows_the_one_with_the_fewest_holes_counts(tmp_path, newest):
    folder = str(tmp_path)
    put(folder, "m", 0, 0, [np.nan, np.nan])
    put(folder, newest, 0, 0, [np.nan, 0.5])  # not whole either, but a repaired file has given one frame more
    put(folder, "b", 1, 256, [0.9] * 44)
    put(folder, "c", 1, 0, [0.1] * 256)
    table = merge(folder)
    assert table["index"].to_pylist() == list(range(302))
    assert table["episode_index"].to_pylist() == [0] * 2 + [1] * 300
    expected = np.array([np.nan, 0.5] + [0.1] * 256 + [0.9] * 44, dtype=np.float32)
    np.testing.assert_array_equal(table["progress_sparse"].to_numpy(), expected)
    assert table["probabilities_sparse"].to_pylist() == [[0.25, 0.75]] * 302
    episode, start, num_holes = read_done(folder)
    assert sorted(zip(episode.tolist(), start.tolist(), num_holes.tolist(), strict=True)) == [
        (0, 0, 1),
        (0, 0, 2),
        (1, 0, 0),
        (1, 256, 0),
    ]


def test_a_chunk_without_a_part_is_named(tmp_path):
    put(str(tmp_path), "a", 0, 0, [0.1, 0.2])
    with pytest.raises(
        DatasetError, match="episode 1, frames 0 and on, were scored but are not there for this process"
    ):
        merge(str(tmp_path))


@pytest.mark.parametrize("stride", [1, 7])
def test_many_episodes_in_parts_of_any_order_are_merged_as_each_by_itself(tmp_path, stride):
    rng = np.random.default_rng(0)
    lengths = np.array([1, 256, 900, 257, 2, 600, 13])
    episodes, from_index = np.array([0, 2, 3, 4, 7, 8, 9]), np.cumsum(lengths) - lengths + 50
    rows = np.array([0, 1, 2, 4, 5, 6])  # episode 4 is no part of the run
    chunks = plan_chunks(rows, lengths[rows])
    bitmaps = bitmaps_by_length(lengths[rows], lambda length: computed_mask(length, stride))
    scores = [rng.random(n).astype(np.float32) for n in count_frames(bitmaps)]
    scores[3][:1] = np.nan
    table = pa.Table.from_pylist(
        [
            {
                "episode_index": int(episodes[row]),
                "start": int(start),
                "num_holes": int(np.isnan(own).sum()),
                "frames": bitmap.tobytes(),
                "progress_dense": own,
                "probabilities_dense": np.stack([own, 1 - own], axis=1).ravel(),
            }
            for row, start, bitmap, own in zip(chunks.row, chunks.start, bitmaps, scores, strict=True)
        ],
        schema=part_schema(("dense",)),
    )
    for name, picked in enumerate(np.array_split(rng.permutation(len(chunks)), 4)):
        write_part(str(tmp_path), f"{name}", table.take(picked))
    arguments = (str(tmp_path), ("dense",), chunks, episodes, lengths, from_index)
    blocks = list(merge_parts(*arguments, num_rows=700))
    assert [block.num_rows for block in blocks] == [1 + 256 + 900, 2 + 600 + 13]  # as soon as there are enough
    merged = pa.concat_tables(blocks)
    assert merged["index"].to_pylist() == [i for row in rows for i in from_index[row] + np.arange(lengths[row])]
    for row in rows:
        own = merged.filter(pc.equal(merged["episode_index"], episodes[row]))
        computed = np.flatnonzero(computed_mask(lengths[row], stride))
        values = np.concatenate([scores[c] for c in np.flatnonzero(chunks.row == row)])
        expected = interpolate_progress(computed, values, lengths[row])
        np.testing.assert_array_equal(own["progress_dense"].to_numpy(), expected)
        shares = own["probabilities_dense"].to_pylist()
        assert [frame for frame, share in enumerate(shares) if share is not None] == computed.tolist()
        np.testing.assert_array_equal([shares[c][0] for c in computed], values)
    lean = pa.concat_tables(merge_parts(*arguments, probabilities=False, num_rows=1))
    assert lean.column_names == [name for name in merged.column_names if name != "probabilities_dense"]
    for name in lean.column_names:
        np.testing.assert_array_equal(lean[name].to_numpy(), merged[name].to_numpy())


def progress_table(lengths: list[int]) -> pa.Table:
    num_rows = sum(lengths)
    progress = [None if row % 7 == 3 else row / num_rows for row in range(num_rows)]  # a null counts as NaN
    return pa.table(
        {
            "index": pa.array(range(100, 100 + num_rows), pa.int64()),
            "episode_index": pa.array(np.repeat(np.arange(len(lengths)) * 2, lengths), pa.int64()),
            "progress_sparse": pa.array(progress, pa.float32()),
        }
    )


@pytest.mark.parametrize("row_group", [1, 4, 1000])
@pytest.mark.parametrize("num_rows", [1, 6, 1000])
def test_blocks_are_whole_episodes_wherever_row_groups_end(tmp_path, num_rows, row_group):
    lengths = [3, 5, 1, 12, 4]
    table = progress_table(lengths)
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=row_group)
    blocks = list(read_progress_blocks(str(tmp_path / "p.parquet"), "sparse", num_rows))
    assert np.concatenate([block.lengths for block in blocks]).tolist() == lengths
    assert all(len(block.progress) == block.lengths.sum() for block in blocks)
    for name, column in (("index", "index"), ("episode_index", "episode_index"), ("progress", "progress_sparse")):
        joined = np.concatenate([getattr(block, name) for block in blocks])
        np.testing.assert_array_equal(joined, table[column].to_numpy())
    assert len(blocks) == 1 if num_rows == 1000 else len(blocks) > 1


def test_progress_files_that_cannot_be_used(tmp_path):
    table, path = progress_table([3, 3]), tmp_path / "p.parquet"

    def refused(message: str, head: str = "sparse") -> None:
        with pytest.raises(DatasetError, match=re.escape(message)):
            list(read_progress_blocks(str(path), head))

    refused(f"{path}: no such file")
    path.write_bytes(b"no parquet")
    refused(f"{path}: not a readable parquet file")
    pq.write_table(table, path)
    refused(f"{path}: no column 'progress_dense'; it has index, episode_index, progress_sparse", "dense")
    for order in ([1, 0, 2, 3, 4, 5], [0, 2, 3, 4, 5], [3, 4, 5, 0, 1, 2]):
        pq.write_table(table.take(order), path)
        refused(f"{path}: its rows are not every frame of its episodes, sorted by index")
    pq.write_table(table.slice(0, 0), path)
    assert list(read_progress_blocks(str(path), "sparse")) == []


def test_scores_of_one_episode(tmp_path):
    scores = pa.table(
        {
            "index": pa.array(range(100), pa.int64()),
            "progress_dense": pa.array(np.arange(100) / 100, pa.float32()),
            "dense": pa.array([None if row % 3 else [row / 100, 1 - row / 100] for row in range(100)]),
            "sparse": pa.array([None if row < 50 else [np.nan] for row in range(100)]),
        }
    )
    path = str(tmp_path / "p.parquet")
    pq.write_table(scores, path, row_group_size=7)
    progress = read_episode_progress(path, "dense", 30, 25)
    np.testing.assert_array_equal(progress, scores["progress_dense"].to_numpy()[30:55])
    probabilities = read_episode_probabilities(path, "dense", 31, 4)
    np.testing.assert_array_equal(probabilities, np.float32([[np.nan] * 2, [np.nan] * 2, [0.33, 0.67], [np.nan] * 2]))
    assert probabilities.dtype == np.float32
    assert read_episode_probabilities(path, "sparse", 0, 50) is None
    np.testing.assert_array_equal(read_episode_probabilities(path, "sparse", 50, 50), np.full((50, 1), np.nan))
    for message, arguments in {
        f"{path}: has 5 of the frames 95 to 104": ("dense", 95, 10),
        f"{path}: 'progress_sparse' cannot be read": ("sparse", 0, 10),
    }.items():
        with pytest.raises(DatasetError, match=re.escape(message)):
            read_episode_progress(path, *arguments)
    with pytest.raises(DatasetError, match="no such file"):
        read_episode_progress(f"{path}.gone", "dense", 0, 10)
