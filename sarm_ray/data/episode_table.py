"""Columns of the episode table beyond those that a Dataset holds: v3.0's parquet and v2.x's lines of JSON alike."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.data import storage
from sarm_ray.data.json_files import read_json_lines
from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import DatasetError

THREADS = 8


def read_episode_columns(dataset: Dataset, columns: Mapping[str, pa.DataType]) -> pa.Table:
    """Columns of the episode table.

    Args:
        dataset: the dataset.
        columns: name -> type that it is cast to.

    Returns:
        E rows in the order of dataset.episode_index; `episode_index` and those of the columns that some episode has.

    Raises:
        DatasetError: a column of another type, or a table that is not the one that the dataset was opened with.
    """
    schema = pa.schema({"episode_index": pa.int64(), **columns})
    place = "meta/episodes" if dataset.version == "v3.0" else "meta/episodes.jsonl"
    try:
        if dataset.version == "v3.0":
            table = _read_parquet_files(dataset, schema)
        else:
            table = read_json_lines(dataset.location(place), schema)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{dataset.location(place)}: {str(error).splitlines()[0]}") from error
    numbers = table["episode_index"].to_numpy()
    if (np.diff(numbers) < 0).any():
        table = table.sort_by("episode_index")
    if not np.array_equal(table["episode_index"].to_numpy(), dataset.episode_index):
        raise DatasetError(f"{dataset.location(place)}: the table of episodes was changed meanwhile")
    return table.select([name for name in table.column_names if table[name].null_count < table.num_rows])


def _read_parquet_files(dataset: Dataset, schema: pa.Schema) -> pa.Table:
    folder = storage.join(dataset.root, "meta/episodes")
    paths = sorted(path for path in storage.list_files(folder) if path.endswith(".parquet"))

    def read(path: str) -> pa.Table:
        with storage.open_input(storage.join(folder, path)) as stream, pq.ParquetFile(stream) as file:
            names = [name for name in schema.names if name in file.schema_arrow.names]
            table = file.read(columns=names)
        return table.cast(pa.schema([schema.field(name) for name in table.column_names]))

    with ThreadPoolExecutor(THREADS) as pool:
        return pa.concat_tables(list(pool.map(read, paths)), promote_options="default").combine_chunks()
