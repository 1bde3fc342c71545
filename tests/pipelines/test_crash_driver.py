"""SIGKILL of the driver, at random times and at the worst ones: a rerun does what is missing, and nothing shows."""

import contextlib
import shutil
import subprocess
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sarm_ray.pipelines.score as score
from tests.pipelines.crashes import (
    CHUNKS,
    NUM_FRAMES,
    config_in,
    encoded_in,
    kill,
    nan_frames,
    parts_below,
    said,
    scored_in,
    started,
    take_up,
    temporaries_below,
    wait_until,
    with_features,
)
from tests.pipelines.runs import PARITY, needs_parity, score_one
from tests.sampling import others_slow

pytestmark = needs_parity

SEED = 20
FRACTIONS = np.random.default_rng(SEED).uniform(0.1, 0.9, 10).round(3).tolist()


@pytest.fixture(scope="module")
def seconds(undisturbed, tmp_path_factory) -> float:
    """How long a run takes on a Ray that is there."""
    folder, began = tmp_path_factory.mktemp("timed"), time.monotonic()
    with started(folder) as process:
        assert process.wait() == 0, said(folder)
        return time.monotonic() - began


@pytest.mark.parametrize("fraction", others_slow(FRACTIONS[:2], FRACTIONS[:1]))
def test_killed_at_a_random_time_with_a_ray_of_its_own(undisturbed, tmp_path, fraction):
    kill_and_take_up(undisturbed, tmp_path, fraction * undisturbed.seconds, own_ray=True)


@pytest.mark.slow
@pytest.mark.parametrize("fraction", FRACTIONS[2:])
def test_killed_at_a_random_time(undisturbed, seconds, tmp_path, fraction):
    kill_and_take_up(undisturbed, tmp_path, fraction * seconds, own_ray=False)


def kill_and_take_up(undisturbed, folder, after_s: float, own_ray: bool) -> None:
    with started(folder, own_ray=own_ray) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after_s)
        kill(process)
    take_up(folder, undisturbed)


# fault -> what temporary files it leaves, whether there is an output, frames in the store, frames in the parts
POINTS = {
    "lease written": (["lease.json"], False, 0, 0),
    "features complete": ([], False, NUM_FRAMES, 0),
    "parts complete": ([], False, NUM_FRAMES, NUM_FRAMES),
    "merging": (["out.parquet"], False, NUM_FRAMES, NUM_FRAMES),
    "output written": (["out.parquet"], False, NUM_FRAMES, NUM_FRAMES),
    "output renamed": ([], True, NUM_FRAMES, NUM_FRAMES),
}


@pytest.mark.parametrize("point", others_slow(POINTS, {"merging", "output renamed"}))
def test_killed_at(undisturbed, tmp_path, point):
    temporaries, has_output, num_encoded, num_scored = POINTS[point]
    if num_scored:
        with_features(tmp_path, undisturbed)
    with started(tmp_path, "tests.pipelines.injected", point) as process:
        assert process.wait() == -9
    assert temporaries_below(tmp_path) == temporaries
    assert (tmp_path / "out.parquet").exists() is has_output
    assert sum(encoded_in(tmp_path).values()) == num_encoded
    assert sum(scored_in(tmp_path).values()) == num_scored
    take_up(tmp_path, undisturbed)


def test_killed_by_a_worker_before_a_feature_part_has_its_name(undisturbed, tmp_path):
    with started(tmp_path, "tests.pipelines.injected", "feature part written") as process:
        assert process.wait() == -9
        kill(process)
    (temporary,) = temporaries_below(tmp_path)
    assert temporary.endswith(".parquet")
    assert len(encoded_in(tmp_path)) == 2
    take_up(tmp_path, undisturbed)


@pytest.mark.slow
def test_killed_by_a_worker_before_a_scored_part_has_its_name(undisturbed, tmp_path):
    with_features(tmp_path, undisturbed)
    with started(tmp_path, "tests.pipelines.injected", "score part written") as process:
        assert process.wait() == -9
        kill(process)
    (temporary,) = temporaries_below(tmp_path / "out.parquet.run")
    assert temporary.endswith(".parquet")
    assert len(scored_in(tmp_path)) == 2
    assert encoded_in(tmp_path) == CHUNKS
    take_up(tmp_path, undisturbed)


@pytest.mark.slow
def test_killed_while_its_parts_are_removed(undisturbed, tmp_path):
    with_features(tmp_path, undisturbed)
    with started(tmp_path, "tests.pipelines.injected", "parts half removed") as process:
        assert process.wait() == -9
    assert (tmp_path / "out.parquet").exists()
    assert (tmp_path / "out.parquet.run/summary.json").exists()
    assert len(scored_in(tmp_path)) == len(CHUNKS) - 1
    take_up(tmp_path, undisturbed)


@pytest.mark.slow
def test_killed_as_soon_as_something_is_encoded(undisturbed, tmp_path):
    with started(tmp_path, own_ray=True) as process:
        wait_until(lambda: parts_below(tmp_path / "features"), process)
        kill(process)
    assert encoded_in(tmp_path)
    assert not (tmp_path / "out.parquet").exists()
    take_up(tmp_path, undisturbed)


def test_a_failure_is_reported_by_the_rerun_too(tmp_path, monkeypatch):
    """A broken state that costs another chunk a window and its own chunk none: nothing but its report would be lost."""
    dataset = tmp_path / "dataset"
    shutil.copytree(PARITY / "dataset_v21", dataset, copy_function=shutil.copyfile)
    path = dataset / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    states = np.stack(table["observation.state"].to_numpy())
    states[209, 0] = np.nan  # of the computed frames, 0, 100, 200 and 299, the last one alone sees it
    kind = table.schema.field("observation.state")
    column = table.column_names.index("observation.state")
    path.chmod(0o644)
    pq.write_table(table.set_column(column, kind, pa.array(list(states), kind.type)), path)
    config = replace(config_in(tmp_path), dataset=str(dataset), episodes="0", stride=100)
    with monkeypatch.context() as patch:
        patch.setattr(score, "_finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            score_one(config)
    report = score_one(config)
    (failure,) = report.failures
    assert (failure.episode_index, failure.start, failure.stop, failure.error) == (0, 0, 256, "DatasetError")
    assert failure.message == f"{path}: observation.state is NaN or infinite in frame 209"
    assert nan_frames(tmp_path / "out.parquet", 0).tolist() == list(range(201, 300))


def interrupt(*_) -> None:
    raise KeyboardInterrupt
