"""failed.parquet in the folder of a run: a row for each piece of work that could not be done."""

import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.data import storage

FAILED_FILE = "failed.parquet"
WHY = [("error", pa.string()), ("message", pa.string()), ("attempts", pa.int64())]
CHUNKS = pa.schema(  # that could not be read or scored
    [("episode_index", pa.int64()), ("camera", pa.string()), ("start", pa.int64()), ("stop", pa.int64()), *WHY]
)
QUESTIONS = pa.schema([("episode_index", pa.int64()), ("kind", pa.string()), *WHY])  # without an answer to be taken


def write_failed(folder: str, failures: list[dict], schema: pa.Schema) -> None:
    """Write what failed, in place of what failed before; no file where nothing did."""
    location = storage.join(folder, FAILED_FILE)
    if not failures:
        storage.remove_file(location)
        return
    table = pa.Table.from_pylist(failures, schema=schema)
    storage.write_atomically(location, lambda stream: pq.write_table(table, stream))


def read_failed(folder: str, schema: pa.Schema) -> list[dict]:
    """What an earlier run left there."""
    location = storage.join(folder, FAILED_FILE)
    if not storage.exists(location):
        return []
    with storage.open_input(location) as stream:
        return pq.read_table(stream, schema=schema).to_pylist()
