"""The columns of the episode table that are no numbers or not in parquet: task texts, and v2.x's lines of JSON."""

import numpy as np
import pyarrow as pa

from sarm_ray.data import storage
from sarm_ray.data.json_files import read_json_lines, read_jsonl

ROWS_AT_A_TIME = 2**16


def read_lines(root: str) -> tuple[np.ndarray, np.ndarray, tuple[tuple[str, ...], ...]]:
    """episodes.jsonl in the order of episode_index: that and length, (E,) int64 each, and tasks.

    pyarrow reads it without an object for each line; json is left to tell what is wrong with lines in another form.
    """
    schema = pa.schema({"episode_index": pa.int64(), "length": pa.int64(), "tasks": pa.list_(pa.string())})
    try:
        table = read_json_lines(storage.join(root, "meta/episodes.jsonl"), schema).combine_chunks()
        if not (table["episode_index"].null_count or table["length"].null_count):
            table = table.sort_by("episode_index")
            return table["episode_index"].to_numpy(), table["length"].to_numpy(), share_texts(table["tasks"])
    except (FileNotFoundError, pa.ArrowException):
        pass
    episodes = sorted(read_jsonl(root, "meta/episodes.jsonl"), key=lambda entry: entry["episode_index"])
    return (
        np.array([entry["episode_index"] for entry in episodes], dtype=np.int64),
        np.array([entry["length"] for entry in episodes], dtype=np.int64),
        tuple(tuple(entry.get("tasks") or ()) for entry in episodes),
    )


def share_texts(column: pa.ChunkedArray) -> tuple[tuple[str, ...], ...]:
    """Lists of texts as tuples, one object for all episodes that have the same: a million of their own take 200 MB."""
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    texts: list[tuple[str, ...]] = []
    for first in range(0, len(column), ROWS_AT_A_TIME):
        for names in column.slice(first, ROWS_AT_A_TIME).to_pylist():
            own = tuple(names or ())
            texts.append(known.setdefault(own, own))
    return tuple(texts)
