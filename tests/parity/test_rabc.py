"""Deltas, statistics and weights as LeRobot's RABCWeights computed them, to the last bit of each weight."""

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest

from sarm_ray.core.rabc import DeltaDistribution, progress_deltas, rabc_weights, summarize_weights
from sarm_ray.data.progress_io import read_progress_blocks
from sarm_ray.sample_weighting import RABCWeights

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


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_batches_equal_lerobots(fixtures, head):
    expected = np.load(fixtures / "expected" / "rabc.npz")
    path = fixtures / "expected" / "rabc_progress.parquet"
    for chunk_size, kappa in itertools.product(expected["chunk_sizes"].tolist(), expected["kappas"].tolist()):
        case = f"{head}_c{chunk_size}_k{kappa:g}__"
        weights = RABCWeights(path, chunk_size, head, kappa)
        np.testing.assert_array_equal(weights.lookup(expected["index"]), expected[f"{case}raw_weight"])
        for batch in ("batch1", "batch2"):
            factors, stats = weights.compute_batch_weights(expected[f"{batch}_index"])
            np.testing.assert_allclose(factors, expected[f"{case}{batch}_weight"], rtol=0, atol=1e-6)
            assert list(stats.values()) == pytest.approx(expected[f"{case}{batch}_stats"].tolist(), abs=1e-6)
        if f"{case}allzero_index" in expected:
            factors, stats = weights.compute_batch_weights(expected[f"{case}allzero_index"])
            np.testing.assert_array_equal(factors, expected[f"{case}allzero_weight"])
            assert stats == {"mean_weight": 0, "num_zero_weight": len(factors), "num_full_weight": 0}
        logged = weights.stats()
        assert logged["delta_mean"] == pytest.approx(float(expected[f"{case}delta_mean"]), rel=1e-12)
        assert logged["delta_std"] == pytest.approx(float(expected[f"{case}delta_std"]), rel=1e-12)
    assert f"{head}_c50_k0.01__allzero_index" in expected
