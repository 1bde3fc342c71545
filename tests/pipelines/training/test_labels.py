"""Labels of several datasets: what they share, and what is each one's own."""

import numpy as np
import pytest

from sarm_ray.data.lerobot import open_dataset
from sarm_ray.pipelines.training.labels import read_labels
from tests.datasets import SPARSE_STAGES, write_dataset


def test_durations_are_pooled_by_time_not_by_frames(tmp_path):
    """20 s of one dataset and 40 s of the other: a stage takes 30 s times its share, in the frames of each."""
    roots = [
        write_dataset(tmp_path / name, "v2.1", [length], fps=fps, size=(32, 32), annotated=True)
        for name, length, fps in (("quick", 60, 3), ("slow", 60, 1.5))
    ]
    datasets = [open_dataset(str(root)) for root in roots]
    labels = read_labels(datasets, [np.array([0]), np.array([0])], "dual")["sparse"]
    assert labels.stages == tuple(SPARSE_STAGES)
    shares = np.array(list(SPARSE_STAGES.values()))
    for durations, fps in zip(labels.durations, (3, 1.5), strict=True):
        np.testing.assert_allclose(durations, 30 * fps * shares, atol=fps)
    np.testing.assert_allclose(labels.durations[0], 2 * labels.durations[1])
    assert labels.proportions == pytest.approx(shares, abs=0.02)
