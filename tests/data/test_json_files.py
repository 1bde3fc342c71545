"""Long files of JSON lines are read block by block, wherever the blocks end."""

import json

import pyarrow as pa
import pytest

from sarm_ray.data.json_files import read_json_blocks, read_json_lines

SCHEMA = pa.schema({"number": pa.int64(), "names": pa.list_(pa.string())})
ENTRIES = [{"number": n, "names": ["a\u2028b" * (n % 3)] * (n % 2), "rest": {"x": [n]}} for n in range(50)]


@pytest.mark.parametrize("block_bytes", [1, 60, 61, 500, 10**6])
@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_blocks_are_whole_lines(tmp_path, block_bytes, end):
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, ENTRIES)) + end)
    blocks = list(read_json_blocks(str(path), SCHEMA, block_bytes))
    assert (len(blocks) == 1) == (block_bytes == 10**6)
    expected = [{"number": entry["number"], "names": entry["names"]} for entry in ENTRIES]
    assert pa.concat_tables(blocks).to_pylist() == expected
    assert read_json_lines(str(path), SCHEMA).to_pylist() == expected


def test_what_is_wrong_is_wrong_in_any_block(tmp_path):
    path = tmp_path / "lines.jsonl"
    for wrong in ("null", "{", '{"number": "two"}'):
        path.write_text("\n".join([*map(json.dumps, ENTRIES), wrong]))
        with pytest.raises(pa.ArrowException):
            list(read_json_blocks(str(path), SCHEMA, 100))
    with pytest.raises(FileNotFoundError):
        read_json_lines(str(tmp_path / "none.jsonl"), SCHEMA)
    path.write_text(" \n")
    assert read_json_lines(str(path), SCHEMA).equals(SCHEMA.empty_table())
