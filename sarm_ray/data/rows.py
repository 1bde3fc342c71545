"""Rows of a dataset's data files: some columns of one episode, in the order of its frames."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sarm_ray.core.suggestions import name_list
from sarm_ray.data import storage
from sarm_ray.errors import DatasetError


def read_episode_table(location: str, columns: list[str], episode: int | None) -> pa.Table:
    """Columns of one episode's rows in a data file, by frame_index. `episode` None takes every row of the file."""
    try:
        with storage.open_input(location) as stream, pq.ParquetFile(stream) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise DatasetError(f"{location}: no column {missing[0]!r}; it has {name_list(file.schema_arrow.names)}")
            order = [name for name in ("episode_index", "frame_index") if name in file.schema_arrow.names]
            groups = _row_groups_of(file, episode)
            table = file.read_row_groups(groups, columns=list(dict.fromkeys([*columns, *order])))
    except FileNotFoundError:
        raise DatasetError(f"{location}: no such file") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(f"{location}: not a readable parquet file ({str(error).splitlines()[0]})") from error
    if episode is not None and "episode_index" in order:
        table = table.filter(pc.equal(table["episode_index"], episode))
    return table.sort_by("frame_index") if "frame_index" in order else table


def column_array(column: pa.ChunkedArray) -> np.ndarray:
    """A parquet column of numbers as (L,) or (L, D): LeRobot stores vectors as fixed-size or variable lists."""
    array = column.combine_chunks()
    if not pa.types.is_list(array.type) and not pa.types.is_fixed_size_list(array.type):
        return array.to_numpy(zero_copy_only=False)
    flat = array.flatten()
    while pa.types.is_list(flat.type) or pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
    return flat.to_numpy(zero_copy_only=False).reshape(len(array), -1)


def _row_groups_of(file: pq.ParquetFile, episode: int | None) -> list[int]:
    """Row groups that can hold an episode, by their statistics."""
    groups = list(range(file.metadata.num_row_groups))
    if episode is None or "episode_index" not in file.schema_arrow.names:
        return groups
    leaf = next(i for i in range(file.metadata.num_columns) if file.schema.column(i).path == "episode_index")
    spans = [file.metadata.row_group(group).column(leaf).statistics for group in groups]
    return [
        g for g, s in zip(groups, spans, strict=True) if s is None or not s.has_min_max or s.min <= episode <= s.max
    ]
