"""Deltas, statistics and weights as LeRobot's RABCWeights computed them, to the last bit of each weight."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from sarm_ray.core.rabc import DeltaDistribution, progress_deltas, rabc_weights, summarize_weights
from sarm_ray.data.progress_io import read_progress_blocks

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_equals_lerobot(fixtures, head):
    expected = np.load(fixtures / "expected" / "rabc.npz")
    path = str(fixtures / "expected" / "rabc_progress.parquet")
    assert pq.read_metadata(path).num_rows == len(expected["index"])
    for chunk_size in expected["chunk_sizes"].tolist():
        blocks = list(read_progress_blocks(path, head, num_rows=50))
        assert len(blocks) > 1
        parts = [progress_deltas(block.progress, block.lengths, chunk_size) for block in blocks]
        distribution = DeltaDistribution()
        for part in parts:
            distribution.add(part)
        for kappa in expected["kappas"].tolist():
            case = f"{head}_c{chunk_size}_k{kappa:g}__"
            deltas = np.concatenate(parts)
            np.testing.assert_array_equal(deltas, expected[f"{case}delta"])
            assert distribution.mean == pytest.approx(float(expected[f"{case}delta_mean"]), rel=1e-12)
            assert distribution.std == pytest.approx(float(expected[f"{case}delta_std"]), rel=1e-12)
            weights = rabc_weights(deltas, distribution.mean, distribution.std, kappa)
            np.testing.assert_array_equal(weights, expected[f"{case}raw_weight"])
            summary = summarize_weights(distribution, kappa)
            assert summary.mean_weight == pytest.approx(weights.mean(dtype=np.float64), abs=1e-7)
