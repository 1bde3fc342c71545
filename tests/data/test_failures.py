"""failed.parquet: what was written is read, and nothing is left of failures that are mended."""

import pyarrow.parquet as pq
import pytest

from sarm_ray.data.failures import CHUNKS, FAILED_FILE, QUESTIONS, read_failed, write_failed

WHY = {"error": "VideoError", "message": "it is empty", "attempts": 1}


@pytest.mark.parametrize(
    ("schema", "row"),
    [
        (CHUNKS, {"episode_index": 3, "camera": "base", "start": 256, "stop": 300, **WHY}),
        (QUESTIONS, {"episode_index": 3, "kind": "sparse", **WHY}),
    ],
)
def test_failures_are_there_until_there_are_none(tmp_path, schema, row):
    folder = str(tmp_path)
    assert read_failed(folder, schema) == []
    write_failed(folder, [row, row], schema)
    assert read_failed(folder, schema) == [row, row]
    assert pq.read_schema(tmp_path / FAILED_FILE).remove_metadata() == schema
    write_failed(folder, [row], schema)
    assert read_failed(folder, schema) == [row]
    write_failed(folder, [], schema)
    write_failed(folder, [], schema)
    assert list(tmp_path.iterdir()) == []
