"""Labels of episodes: what a person writes, and what is said of what cannot be meant."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.outcomes import dataset_outcomes, read_outcomes
from sarm_ray.errors import DatasetError
from tests.datasets import write_dataset


def write(path, text):
    path.write_text(text)
    return str(path)


def test_words_and_numbers(tmp_path):
    labels = write(
        tmp_path / "labels.csv",
        'outcome, episode_index,note\nsuccess, 3,\nFailure,0,"dropped, twice"\npartial,7,\n0.25,1,\nTrue,2,\n1,4,\n',
    )
    assert read_outcomes(labels) == {3: 1.0, 0: 0.0, 7: 0.5, 1: 0.25, 2: 1.0, 4: 1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("episode,outcome\n0,success\n", "no column 'episode_index'; it has episode, outcome"),
        ("", "no column 'episode_index'; it has none"),
        ("episode_index,outcome\n", "no labels"),
        ("episode_index,outcome\n0,sucess\n", "line 2: outcome 'sucess' is none of failure, partial, success; did you mean"),
        ("episode_index,outcome\n0,1\n1.5,1\n", "line 3: episode_index is '1.5', not a whole number"),
        ("episode_index,outcome\n-1,1\n", "line 2: episode_index is negative"),
        ("episode_index,outcome\n0,7\n", "line 2: outcome 7 is not between 0 (failure) and 1 (success)"),
        ("episode_index,outcome\n0,nan\n", "line 2: outcome nan is not between"),
        ("episode_index,outcome\n0,1\n0,0\n", "line 3: episode 0 has a label already"),
        ("episode_index,outcome\n0\n", "line 2: outcome None is none of"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(tmp_path, text, message):
    labels = write(tmp_path / "labels.csv", text)
    with pytest.raises(DatasetError) as error:
        read_outcomes(labels)
    assert str(error.value).startswith(f"{labels}: ")
    assert message in str(error.value)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere\.csv: no such file"):
        read_outcomes(str(tmp_path / "nowhere.csv"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"binary\.csv: not a CSV in UTF-8"):
        read_outcomes(str(tmp_path / "binary.csv"))


def with_outcomes(root, values):
    """The column `outcome` in every file of the episode table."""
    for path in sorted((root / "meta/episodes").rglob("*.parquet")):
        table = pq.read_table(path)
        own = pa.array([values[e] for e in table["episode_index"].to_pylist()], pa.string())
        kept = table.drop_columns("outcome") if "outcome" in table.column_names else table
        pq.write_table(kept.append_column("outcome", own), path)


def test_of_a_dataset(tmp_path):
    root = write_dataset(tmp_path / "toy", lengths=(12, 9, 10))
    dataset = open_dataset(str(root))
    assert np.isnan(dataset_outcomes(dataset, None)).all()
    labels = write(tmp_path / "labels.csv", "episode_index,outcome\n2,success\n0,0.5\n")
    np.testing.assert_array_equal(dataset_outcomes(dataset, labels), [0.5, np.nan, 1.0])
    with_outcomes(root, ["success", None, "failure"])
    np.testing.assert_array_equal(dataset_outcomes(open_dataset(str(root)), None), [1.0, np.nan, 0.0])
    np.testing.assert_array_equal(dataset_outcomes(open_dataset(str(root)), labels), [0.5, np.nan, 1.0])
    other = write(tmp_path / "other.csv", "episode_index,outcome\n2,success\n8,0.5\n")
    with pytest.raises(DatasetError, match="episodes that toy does not have: 8"):
        dataset_outcomes(dataset, other)
    with_outcomes(root, ["success", "won", "failure"])
    with pytest.raises(DatasetError, match="episode 1: outcome 'won' is none of failure, partial, success"):
        dataset_outcomes(open_dataset(str(root)), None)
