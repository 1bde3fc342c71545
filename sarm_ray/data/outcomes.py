"""How episodes ended: success, partial or failure, from a file of labels or a column of the episode table."""

import csv
import io

import numpy as np
import pyarrow as pa

from sarm_ray.data import storage
from sarm_ray.data.episode_table import read_episode_columns
from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import DatasetError, name_list, nearest

GRADES = {"failure": 0.0, "partial": 0.5, "success": 1.0}
COLUMN = "outcome"
MAX_BYTES = 2**26


def read_outcomes(location: str) -> dict[int, float]:
    """A CSV of labels with the columns episode_index and outcome (success, partial, failure, or a number in 0..1).

    Args:
        location: the file; a local path or a URL.

    Returns:
        episode_index -> grade: 0 failure, 1 success, between them a partial one.

    Raises:
        DatasetError: a file that cannot be read, lacks a column, or holds something else; the line is named.
    """
    try:
        with storage.open_input(location) as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise DatasetError(f"{location}: no such file") from None
    except OSError as error:
        raise DatasetError(f"{location}: cannot be read ({error.strerror or error})") from error
    if len(raw) > MAX_BYTES:
        raise DatasetError(f"{location}: more than {MAX_BYTES // 2**20} MB; that is no file of labels")
    try:
        rows = csv.DictReader(io.StringIO(raw.decode("utf-8-sig")), skipinitialspace=True, strict=True)
        missing = [name for name in ("episode_index", COLUMN) if name not in (rows.fieldnames or ())]
        if missing:
            raise DatasetError(
                f"{location}: no column {missing[0]!r}; it has {name_list(rows.fieldnames or ())}. The first line names "
                "the columns: episode_index,outcome"
            )
        grades: dict[int, float] = {}
        for row in rows:
            where = f"{location}: line {rows.line_num}"
            episode = _episode(row["episode_index"], where)
            if episode in grades:
                raise DatasetError(f"{where}: episode {episode} has a label already")
            grades[episode] = _grade(row[COLUMN], where)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{location}: not a CSV in UTF-8 ({error})") from None
    if not grades:
        raise DatasetError(f"{location}: no labels")
    return grades


def dataset_outcomes(dataset: Dataset, labels: str | None) -> np.ndarray:
    """The grade of each episode, from a file of labels, else from the episode table's column `outcome`.

    Args:
        dataset: whose episodes.
        labels: see `read_outcomes`; None looks into the table.

    Returns:
        (E,) float64 in 0..1, NaN where the outcome is not known.

    Raises:
        DatasetError: see `read_outcomes`; a label of an episode that the dataset does not have.
    """
    grades = np.full(len(dataset.episode_index), np.nan)
    if labels is None:
        table = read_episode_columns(dataset, {COLUMN: pa.string()})
        if COLUMN in table.column_names:
            for row, value in enumerate(table[COLUMN].to_pylist()):
                if value is not None:
                    where = f"{dataset.location('meta/episodes')}: episode {dataset.episode_index[row]}"
                    grades[row] = _grade(value, where)
        return grades
    by_episode = read_outcomes(labels)
    row_of = {int(episode): row for row, episode in enumerate(dataset.episode_index)}
    unknown = [episode for episode in by_episode if episode not in row_of]
    if unknown:
        raise DatasetError(f"{labels}: episodes that {dataset.name} does not have: {name_list(map(str, unknown))}")
    for episode, grade in by_episode.items():
        grades[row_of[episode]] = grade
    return grades


def _episode(text: str | None, where: str) -> int:
    try:
        episode = int(text or "")
    except ValueError:
        raise DatasetError(f"{where}: episode_index is {text!r}, not a whole number") from None
    if episode < 0:
        raise DatasetError(f"{where}: episode_index is negative")
    return episode


def _grade(text: str | None, where: str) -> float:
    value = (text or "").strip().lower()
    if value in GRADES:
        return GRADES[value]
    if value in ("true", "false"):
        return float(value == "true")
    try:
        grade = float(value)
    except ValueError:
        raise DatasetError(
            f"{where}: outcome {text!r} is none of {name_list(GRADES)}{nearest(value, GRADES)}"
        ) from None
    if not 0 <= grade <= 1:
        raise DatasetError(f"{where}: outcome {grade:g} is not between 0 (failure) and 1 (success); scale the grades")
    return grade
