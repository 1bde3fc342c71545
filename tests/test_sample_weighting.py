"""RA-BC for a training loop: batches weighed as LeRobot weighs them, and draws that are the same on any number of ranks."""

import itertools
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from sarm_ray.errors import DatasetError
from sarm_ray.sample_weighting import ProgressSampler, RABCWeights

NAN = float("nan")


def write(path, episodes: list[list[float]], gaps: list[int] | None = None) -> str:
    """A progress file; before each episode as many indices are left out as `gaps` says."""
    lengths = [len(episode) for episode in episodes]
    skipped = np.repeat(np.cumsum(gaps or [0] * len(episodes)), lengths)
    columns = {
        "index": pa.array(np.arange(sum(lengths)) + skipped, pa.int64()),
        "episode_index": pa.array(np.repeat(np.arange(len(lengths)), lengths), pa.int64()),
        "progress_sparse": pa.array(np.concatenate(episodes), pa.float32()),
    }
    pq.write_table(pa.table(columns), path / "p.parquet")
    return str(path / "p.parquet")


def direct_weights(
    path: str, indices: list[int], chunk_size: int, kappa: float, epsilon: float, fallback: float
) -> tuple[list[float], list[float]]:
    """Raw and normalised weights, one frame after the other as LeRobot does it, in float64."""
    rows = pq.read_table(path).to_pylist()
    progress = {row["index"]: row["progress_sparse"] for row in rows if not math.isnan(row["progress_sparse"])}
    episode = {row["index"]: row["episode_index"] for row in rows}
    last = {row["episode_index"]: row["index"] for row in rows}

    def delta(index: int) -> float | None:
        ahead = min(index + chunk_size, last[episode[index]]) if index in progress else None
        return progress[ahead] - progress[index] if ahead in progress else None

    known = [each for each in map(delta, episode) if each is not None]
    mean, std = (max(float(np.mean(known)), 0), max(float(np.std(known)), epsilon)) if known else (0.0, epsilon)

    def weight(delta: float | None) -> float:
        if delta is None:
            return fallback
        soft = min(max((delta - (mean - 2 * std)) / (4 * std + epsilon), 0.0), 1.0)
        return 1.0 if delta > kappa else soft if delta >= 0 else 0.0

    raw = [weight(delta(index)) for index in indices]
    return raw, [each * len(raw) / (sum(raw) + epsilon) for each in raw]


# multiples of 1 / 256 are exact in float32: no delta is a rounding away from a kappa that is one of them too
progress_values = st.one_of(st.integers(0, 256).map(lambda n: n / 256), st.just(NAN))
episode_lists = st.lists(st.lists(progress_values, min_size=1, max_size=20), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    episode_lists,
    st.data(),
    st.integers(1, 30),
    st.sampled_from([0.0, 1 / 64, 0.25]),
    st.sampled_from([1e-6, 1e-3]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_equals_lerobot_frame_by_frame(tmp_path_factory, episodes, data, chunk_size, kappa, epsilon, fallback):
    gaps = data.draw(st.lists(st.integers(0, 5), min_size=len(episodes), max_size=len(episodes)))
    path = write(tmp_path_factory.mktemp("p"), episodes, gaps)
    end = sum(gaps) + sum(map(len, episodes))
    indices = data.draw(st.lists(st.integers(-3, end + 3), min_size=1, max_size=40))
    weights = RABCWeights(path, chunk_size, kappa=kappa, epsilon=epsilon, fallback_weight=fallback)
    factors, stats = weights.compute_batch_weights(indices)
    raw, expected = direct_weights(path, indices, chunk_size, kappa, epsilon, fallback)
    assert (factors.dtype, factors.shape) == (torch.float32, (len(indices),))
    np.testing.assert_allclose(factors.numpy(), expected, rtol=2e-5, atol=2e-5)
    assert stats["mean_weight"] == pytest.approx(np.mean(raw), abs=2e-6)
    exact = weights.lookup(indices)
    np.testing.assert_allclose(exact, raw, rtol=0, atol=2e-6)
    assert (stats["num_zero_weight"], stats["num_full_weight"]) == ((exact == 0).sum(), (exact == 1).sum())
    assert weights.index.tolist() == pq.read_table(path)["index"].to_pylist()
    np.testing.assert_array_equal(weights.lookup(weights.index), weights.raw_weights)


def test_indices_of_every_kind(tmp_path):
    weights = RABCWeights(write(tmp_path, [[0, 0.5, 1, 0.5, 0.25]]), chunk_size=1)
    soft = float(weights.raw_weights[4])  # of the last frame, whose delta is 0
    assert 0.4 < soft < 0.5
    scale = 5 / (2 + soft + 1e-6)
    expected = [scale, scale, 0, 0, soft * scale]
    for indices in (range(5), [0, 1, 2, 3, 4], np.arange(5, dtype=np.int32), torch.arange(5)):
        factors, stats = weights.compute_batch_weights(indices)
        np.testing.assert_allclose(factors, expected, rtol=1e-6)
        assert stats == {"mean_weight": pytest.approx((2 + soft) / 5), "num_zero_weight": 2, "num_full_weight": 2}
    nothing, stats = weights.compute_batch_weights([2, 3])
    assert (nothing.tolist(), stats) == ([0, 0], {"mean_weight": 0, "num_zero_weight": 2, "num_full_weight": 0})
    for wrong, words in (
        ([[0]], "not int64 of shape (1, 1)"),
        ([0.5], "not float64 of shape (1,)"),
        (0, "not int64 of shape ()"),
    ):
        with pytest.raises(ValueError, match=f"^indices must be a vector of integers, {re.escape(words)}$"):
            weights.compute_batch_weights(wrong)
    with pytest.raises(ValueError, match=r"^a batch without indices has no weights$"):
        weights.compute_batch_weights([])


def test_what_lerobot_logs(tmp_path):
    weights = RABCWeights(write(tmp_path, [[0, 0.5, 1, NAN]]), chunk_size=1, kappa=0.25)
    assert weights.stats() == {
        "type": "rabc",
        "num_frames": 3,  # with progress; two of them have a delta
        "chunk_size": 1,
        "head_mode": "sparse",
        "delta_mean": 0.5,
        "delta_std": 1e-6,
        "kappa": 0.25,
    }


def test_labels(tmp_path):
    path = write(tmp_path, [[0, 0.5], [0, 0.5], [0, 0.5], [NAN]])
    plain = RABCWeights(path, chunk_size=1).raw_weights
    assert plain[[0, 2, 4, 6]].tolist() == [1, 1, 1, 1]
    (tmp_path / "labels.csv").write_text("episode_index,outcome\n0,success\n1,failure\n3,partial\n")
    for labels in (tmp_path / "labels.csv", {0: 1, 1: 0.0, 3: 0.5}):
        graded = RABCWeights(path, chunk_size=1, labels=labels).raw_weights
        np.testing.assert_array_equal(graded, plain * np.float32([1, 1, 0, 0, 1, 1, 0.5]))
        assert graded.dtype == np.float32
    with pytest.raises(ValueError, match=r"^labels: the grade of episode 2 is 7, not between 0 and 1$"):
        RABCWeights(path, chunk_size=1, labels={2: 7})
    with pytest.raises(DatasetError, match=r"p\.parquet: none of its episodes has a label$"):
        RABCWeights(path, chunk_size=1, labels={9: 1.0})


def test_what_cannot_be_weighed(tmp_path):
    path = write(tmp_path, [[0, 0.5]])
    for options, message in (
        ({"chunk_size": 0}, "chunk_size must be at least 1 frame, not 0"),
        ({"kappa": -1}, "kappa must be at least 0, not -1"),
        ({"epsilon": 0}, "epsilon must be above 0, not 0"),
        ({"fallback_weight": NAN}, "fallback_weight must be at least 0 and finite, not nan"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            RABCWeights(path, **{"chunk_size": 1} | options)
    with pytest.raises(
        DatasetError, match=r"no column 'progress_dense'; it has index, episode_index, progress_sparse$"
    ):
        RABCWeights(path, 50, head_mode="dense")
    with pytest.raises(DatasetError, match=r"p\.parquet: no rows$"):
        RABCWeights(write(tmp_path, [[]]), 50)


def draws(weights, world_size: int, epoch: int = 0, **options) -> list[list[int]]:
    """What every rank draws."""
    ranks = []
    for rank in range(world_size):
        sampler = ProgressSampler(weights, rank=rank, world_size=world_size, **options)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    return ranks


def interleaved(ranks: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(zip(*ranks, strict=True)))


weight_lists = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40).filter(any)


@settings(max_examples=60, deadline=None)
@given(weight_lists, st.integers(1, 60), st.integers(1, 7), st.integers(0, 99), st.integers(0, 9), st.booleans())
def test_ranks_share_one_sequence(weights, num_samples, world_size, seed, epoch, replacement):
    options = {"num_samples": num_samples, "seed": seed, "epoch": epoch, "replacement": replacement}
    (alone,) = draws(weights, 1, **options)
    ranks = draws(weights, world_size, **options)
    assert {len(rank) for rank in ranks} == {-(-num_samples // world_size)}
    assert interleaved(ranks)[:num_samples] == alone
    assert len(alone) == num_samples
    assert all(weights[index] for rank in ranks for index in rank)
    assert draws(weights, 1, **options) == [alone]
    num_drawable = sum(map(bool, weights))
    if not replacement:
        assert len(set(alone[:num_drawable])) == min(num_drawable, num_samples)
    assert len(ProgressSampler(weights)) == num_drawable


def test_draws_are_in_proportion_to_the_weights():
    weights = np.float32([1, 0, 0.5, 0.25, 0.25, 0])
    (drawn,) = draws(weights, 1, num_samples=200_000)
    counts = np.bincount(drawn, minlength=6)
    expected = 200_000 * weights / weights.sum()
    assert (counts[weights == 0] == 0).all()
    chi_square = float(((counts - expected)[weights > 0] ** 2 / expected[weights > 0]).sum())
    assert chi_square < 21  # 3 degrees of freedom: above it with probability 1e-4
    others = [draws(weights, 1, num_samples=50, seed=seed, epoch=epoch)[0] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert others[0] == drawn[:50]
    assert len({tuple(each) for each in others}) == 3


def test_without_replacement_the_first_draws_are_in_proportion():
    weights = [1.0, 0.0, 0.5, 0.5]
    first = [draws(weights, 1, num_samples=2, seed=seed, replacement=False)[0] for seed in range(4000)]
    counts = np.bincount([pair[0] for pair in first], minlength=4)
    assert np.abs(counts / 4000 - [0.5, 0, 0.25, 0.25]).max() < 0.03  # 4 standard deviations
    after_heavy = [pair[1] for pair in first if pair[0] == 0]
    assert np.abs(np.bincount(after_heavy, minlength=4) / len(after_heavy) - [0, 0, 0.5, 0.5]).max() < 0.045


def test_indices_are_those_of_the_progress_file(tmp_path):
    path = write(tmp_path, [[0, 0.5, 1], [1, 0.5, 0], [0, 1]], gaps=[100, 0, 7])
    weights = RABCWeights(path, chunk_size=1)
    (drawn,) = draws(weights, 1, num_samples=500)
    assert set(drawn) == set(weights.index[weights.raw_weights > 0].tolist())
    assert set(weights.index.tolist()) - set(drawn) == {103, 104}  # where progress falls
    positions = draws(weights.lookup([103, 100, 114]), 1, num_samples=50)  # of a dataset of these three frames
    assert set(positions[0]) == {1, 2}


def test_a_data_loader_takes_it():
    dataset = torch.arange(100)
    sampler = ProgressSampler(torch.arange(100) % 2, num_samples=64, rank=1, world_size=2)
    batches = list(DataLoader(dataset, batch_size=8, sampler=sampler))
    assert [len(batch) for batch in batches] == [8] * 4
    assert torch.cat(batches).tolist() == list(sampler)
    assert (torch.cat(batches) % 2 == 1).all()


def test_more_draws_than_are_made_at_once():
    weights = np.arange(1000) % 3
    (alone,) = draws(weights, 1, num_samples=150_001)
    assert interleaved(draws(weights, 2, num_samples=150_001))[:-1] == alone
    assert len(set(alone[:1000])) < 1000


def test_what_cannot_be_drawn():
    for weights, options, message in (
        ([0.0, 0.0], {}, "all of 2 weights are 0: there is no frame to draw"),
        ([], {}, "all of 0 weights are 0: there is no frame to draw"),
        ([1.0, -1.0], {}, "weights must be a vector of finite numbers of at least 0"),
        ([1.0, NAN], {}, "weights must be a vector of finite numbers of at least 0"),
        ([[1.0]], {}, "weights must be a vector of finite numbers of at least 0"),
        ([1.0], {"rank": 2, "world_size": 2}, "rank must be in 0..1 where world_size is 2, not 2"),
        ([1.0], {"rank": -1}, "rank must be in 0..0 where world_size is 1, not -1"),
        ([1.0], {"world_size": 0}, "world_size must be at least 1, not 0"),
        ([1.0], {"num_samples": 0}, "num_samples must be at least 1, not 0"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            ProgressSampler(weights, **options)
