"""What a person is told about RA-BC, for scores of every kind."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sarm_ray.errors import DatasetError
from sarm_ray.report.advice import describe_rabc, percent, summarize_progress


def write(path, episodes: list) -> str:
    lengths = [len(episode) for episode in episodes]
    columns = {
        "index": pa.array(range(sum(lengths)), pa.int64()),
        "episode_index": pa.array(np.repeat(np.arange(len(lengths)), lengths), pa.int64()),
        "progress_sparse": pa.array(np.concatenate(episodes), pa.float32()),
    }
    pq.write_table(pa.table(columns), path / "p.parquet")
    return str(path / "p.parquet")


def line(share: float) -> str:
    return f"RA-BC on progress_sparse at kappa 0.01: {share} (assuming that your policy's chunk_size is 50)"


def test_steady_episodes_are_nearly_plain_imitation(tmp_path):
    rng = np.random.default_rng(0)
    path = write(tmp_path, [np.linspace(0, 1, length) for length in rng.integers(200, 400, 50)])
    said = describe_rabc(path, "sparse")
    summary = summarize_progress(path, "sparse")
    assert said[0] == line("mean weight 0.99, 1% of frames weigh 0, 99% weigh 1")
    assert said[1:] == [
        "unhealthy: nearly plain imitation, hardly a frame counts less (healthy is 0.3 to 0.8); "
        f"--sample_weighting.kappa={summary.auto_kappa:.3g}, the 75th percentile of the deltas, gives "
        f"{summary.auto_mean_weight:.2f}"
    ]
    followed = describe_rabc(path, "sparse", kappa=float(f"{summary.auto_kappa:.3g}"))
    assert followed[1].startswith("healthy (0.3 to 0.8)")
    assert describe_rabc(path, "sparse", kappa=summary.auto_kappa)[1] == "healthy (0.3 to 0.8)"


def test_scores_that_mostly_fall(tmp_path):
    path = write(tmp_path, [np.append(np.linspace(1, 0, 900), np.linspace(0, 0.4, 100))])
    said = describe_rabc(path, "sparse")
    summary = summarize_progress(path, "sparse")
    assert summary.reachable[1] < 0.3
    assert said[1] == (
        "unhealthy: few frames count (healthy is 0.3 to 0.8), and no kappa gives more than "
        f"{summary.reachable[1]:.2f}: 86% of frames lose progress within 50 frames; look at the curves before you train "
        "on them"
    )
    assert len(said) == 2


def test_few_frames_rise_by_kappa(tmp_path):
    tooth = np.interp(np.arange(500), [0, 155, 500], [0.2, 0.6, 0.2])
    path = write(tmp_path, [np.tile(tooth, 6)])
    summary = summarize_progress(path, "sparse", kappa=0.9)
    assert summary.mean_weight < 0.3
    said = describe_rabc(path, "sparse", kappa=0.9)
    assert said[1].startswith("unhealthy: few frames count (healthy is 0.3 to 0.8); --sample_weighting.kappa=")


def test_frames_without_progress_are_named(tmp_path):
    episode = np.linspace(0, 1, 200)
    episode[40:50] = np.nan
    said = describe_rabc(write(tmp_path, [episode]), "sparse", chunk_size=20)
    assert said[0].endswith("(assuming that your policy's chunk_size is 20)")
    assert said[2:] == ["20 frames (10%) have no progress now or at the horizon (NaN); LeRobot gives them weight 1"]
    nothing = describe_rabc(write(tmp_path, [np.full(5, np.nan)]), "sparse")
    assert nothing[0] == line("mean weight 1.00, 0% of frames weigh 0, 0% weigh 1")
    assert nothing[1].endswith("and no kappa gives less than 1.00: too many frames have no progress")
    assert nothing[2].startswith("5 frames (100%)")


def test_an_empty_file(tmp_path):
    with pytest.raises(DatasetError, match=r": no rows$"):
        describe_rabc(write(tmp_path, [[]]), "sparse")


def test_percent():
    assert [percent(share) for share in (0, 0.0001, 0.42, 0.9999, 1)] == ["0%", "<1%", "42%", ">99%", "100%"]
