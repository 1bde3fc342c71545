"""Parts become one sorted file: of a chunk that was scored twice, the row with the fewest holes counts."""

import numpy as np
import pyarrow as pa
import pytest

from sarm_ray.core.episodes import pack_frames, plan_chunks
from sarm_ray.data.progress_io import merge_parts, part_schema, read_done, write_part
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
