"""Segments out of columns that say something about every frame: LeRobot's language, its subtask_index, opensarm's reward.

All functions take some episodes and raise for the first one that cannot be read; to go on without it, ask for one at a time.
"""

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sarm_ray.core.subtasks import Subtask, clock
from sarm_ray.data import node_cache, storage
from sarm_ray.data.lerobot import Dataset, fetch_files
from sarm_ray.data.rows import READERS, read_rows, row_groups_of
from sarm_ray.errors import DatasetError, name_list

LANGUAGE, SUBTASK_INDEX, REWARD = "language_persistent", "subtask_index", "reward"
SUBTASK_TABLE = "meta/subtasks.parquet"
FEW_ROWS = 16


def language_segments(dataset: Dataset, rows: np.ndarray) -> dict[int, list[Subtask]]:
    """LeRobot's subtasks by frame: entries of the style "subtask" in `language_persistent`, else runs of `subtask_index`.

    The language of an episode is one list, repeated in all of its frames. An entry lasts until the next one, the last one
    until the episode's end; of entries at the same time the later one counts (a first one often names the whole task).

    Args:
        dataset: the dataset.
        rows: (N,) int64, positions of episodes.

    Returns:
        episode_index -> segments; episodes without any are left out.

    Raises:
        DatasetError: the dataset has neither column, or a value that cannot be read.
        StoreError: the store that holds it does not answer or refuses us.
    """
    if LANGUAGE in dataset.features:
        return _of_episodes(dataset, rows, functools.partial(_language_of, dataset))
    if SUBTASK_INDEX in dataset.features:
        return _of_episodes(dataset, rows, functools.partial(_indexed_of, dataset, _read_subtask_table(dataset)))
    raise DatasetError(
        f"{dataset.name}: no subtasks by frame; neither {LANGUAGE} nor {SUBTASK_INDEX} is among its features, which are "
        f"{name_list(dataset.features)}"
    )


def reward_segments(dataset: Dataset, rows: np.ndarray, stages: Sequence[str]) -> dict[int, list[Subtask]]:
    """opensarm's labels: `reward` is stage + tau, so frames of one whole part make a segment; a fall begins another one.

    Args:
        dataset: the dataset.
        rows: (N,) int64, positions of episodes.
        stages: K names in order. A reward of K, which is complete, belongs to the last one.

    Returns:
        episode_index -> segments.

    Raises:
        DatasetError: there is no such column, or a value that is not in 0..K.
        StoreError: the store that holds it does not answer or refuses us.
    """
    return _of_episodes(dataset, rows, functools.partial(_rewarded_of, dataset, stages))


def _of_episodes(dataset: Dataset, rows: np.ndarray, read: Callable[[int], list[Subtask]]) -> dict[int, list[Subtask]]:
    fetch_files(dataset, rows)
    with ThreadPoolExecutor(READERS) as pool:  # mostly waiting for files
        found = list(pool.map(read, rows.tolist()))
    return {int(dataset.episode_index[row]): own for row, own in zip(rows.tolist(), found, strict=True) if own}


def _where(dataset: Dataset, row: int) -> str:
    return f"{dataset.location(dataset.data_files.path(row))}: episode {dataset.episode_index[row]}"


# ------------------------------------------------------------------------------------------------------------ language


def _language_of(dataset: Dataset, row: int) -> list[Subtask]:
    entries = _first_value(dataset, row, LANGUAGE)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DatasetError(
            f"{_where(dataset, row)}: {LANGUAGE} is no list of entries with style, content and timestamp"
        )
    duration_s = float(dataset.length[row]) / dataset.fps
    names: dict[float, str] = {}
    for entry in entries:
        if entry.get("style") != "subtask":
            continue
        content, start_s = entry.get("content"), entry.get("timestamp")
        if not isinstance(content, str) or not content.strip():
            raise DatasetError(f"{_where(dataset, row)}: {LANGUAGE}: a subtask has no content")
        if not isinstance(start_s, int | float) or not math.isfinite(start_s) or start_s < 0:
            raise DatasetError(
                f"{_where(dataset, row)}: {LANGUAGE}: subtask {content!r:.60} has the timestamp {start_s}"
            )
        if start_s >= duration_s:
            raise DatasetError(
                f"{_where(dataset, row)}: {LANGUAGE}: subtask {content!r:.60} starts at {clock(start_s)}, and the episode "
                f"ends at {clock(duration_s)}"
            )
        names[float(start_s)] = content.strip()
    starts = sorted(names)
    return [Subtask(names[start], start, end) for start, end in zip(starts, [*starts[1:], duration_s], strict=False)]


def _first_value(dataset: Dataset, row: int, column: str) -> Any:
    """A column's value in one of an episode's frames; [] where it is null. Only few rows are read."""
    location, episode = dataset.location(dataset.data_files.path(row)), int(dataset.episode_index[row])
    try:
        with node_cache.open_input(location) as stream, pq.ParquetFile(stream) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise DatasetError(f"{location}: no column {column!r}; it has {name_list(names)}")
            shared = dataset.version == "v3.0" and "episode_index" in names
            groups = row_groups_of(file, episode if shared else None)
            columns = [column, "episode_index"] if shared else [column]
            for batch in file.iter_batches(FEW_ROWS, row_groups=groups, columns=columns):
                own = batch.filter(pc.equal(batch["episode_index"], episode)) if shared else batch
                if own.num_rows:
                    value = own[column][0].as_py()
                    return [] if value is None else value
    except FileNotFoundError:
        raise DatasetError(f"{location}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{location}: not a readable parquet file ({str(error).splitlines()[0]})") from error
    raise DatasetError(f"{location}: episode {episode} has no rows in it")


# ------------------------------------------------------------------------------------------------- numbers by the frame


def _indexed_of(dataset: Dataset, names: dict[int, str], row: int) -> list[Subtask]:
    index = _numbers(dataset, row, SUBTASK_INDEX)
    segments = []
    for number, start, stop in _runs(index):
        if number < 0:
            continue  # -1: no subtask
        if number not in names:
            raise DatasetError(
                f"{_where(dataset, row)}: {SUBTASK_INDEX} is {number:g} at frame {start}, which {SUBTASK_TABLE} does not "
                f"have; it has {name_list(map(str, names))}"
            )
        segments.append(Subtask(names[int(number)], start / dataset.fps, stop / dataset.fps))
    return segments


def _rewarded_of(dataset: Dataset, stages: Sequence[str], row: int) -> list[Subtask]:
    reward = _numbers(dataset, row, REWARD)
    outside = ~((reward >= 0) & (reward <= len(stages)))  # NaN too
    if outside.any():
        frame = int(outside.argmax())
        raise DatasetError(
            f"{_where(dataset, row)}: {REWARD} is {reward[frame]:g} at frame {frame}; with the stages {name_list(stages)} "
            f"it goes from 0 to {len(stages)}"
        )
    stage = np.minimum(np.floor(reward), len(stages) - 1)
    return [Subtask(stages[int(n)], start / dataset.fps, stop / dataset.fps) for n, start, stop in _runs(stage)]


def _numbers(dataset: Dataset, row: int, column: str) -> np.ndarray:
    """(L,) float64 of one episode."""
    values = read_rows(dataset, row, [column])[column].astype(np.float64).reshape(int(dataset.length[row]), -1)
    if values.shape[1] != 1:
        raise DatasetError(f"{_where(dataset, row)}: {column} has {values.shape[1]} numbers for a frame, not one")
    return values[:, 0]


def _runs(values: np.ndarray) -> list[tuple[float, int, int]]:
    """Value, first frame and the frame after the last one of each run of equal values, (L,) -> runs."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1])
    return list(zip(values[starts].tolist(), starts.tolist(), [*starts[1:].tolist(), len(values)], strict=True))


def _read_subtask_table(dataset: Dataset) -> dict[int, str]:
    """subtask_index -> text, of a table like that of the tasks: the text is its index, which may have any name."""
    location = dataset.location(SUBTASK_TABLE)
    try:
        with storage.open_input(location) as stream:
            table = pq.read_table(stream)
        texts = [each.name for each in table.schema if each.type in (pa.string(), pa.large_string())]
        text = "subtask" if "subtask" in texts else texts[0]
        return {int(i): str(t) for i, t in zip(*(table[n].to_pylist() for n in (SUBTASK_INDEX, text)), strict=True)}
    except FileNotFoundError:
        raise DatasetError(f"{location}: no such file, and {SUBTASK_INDEX} needs it for the names") from None
    except (pa.ArrowException, OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DatasetError(f"{location}: malformed table of subtasks ({error!r})") from error
