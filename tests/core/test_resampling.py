"""Figures of resampled episodes are those of the episodes repeated as often as they were drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sarm_ray.core.resampling import (
    draw_counts,
    interval,
    pair_moments,
    rank_correlation,
    resampled_correlation,
    weighted_auroc,
    weighted_quantile,
    weighted_r2,
    weighted_ratio,
)


def drawn(counts, row):
    return np.repeat(np.arange(counts.shape[1]), counts[row].astype(int))


def test_the_first_draw_is_everything_once():
    counts = draw_counts(7, seed=3, num_resamples=20)
    assert counts.shape == (21, 7)
    assert (counts[0] == 1).all()
    assert (counts.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(counts, draw_counts(7, seed=3, num_resamples=20))
    assert (counts != draw_counts(7, seed=4, num_resamples=20)).any()


@given(st.integers(1, 12), st.integers(0, 10**6))
def test_every_figure_equals_that_of_repeated_episodes(num_episodes, seed):
    rng = np.random.default_rng(seed)
    counts = draw_counts(num_episodes, seed, 8)
    numerator, denominator = rng.random(num_episodes), rng.integers(0, 3, num_episodes).astype(float)
    score, positive = rng.integers(0, 4, num_episodes) / 4, rng.random(num_episodes) < 0.5
    owner = np.sort(rng.integers(0, num_episodes, 9))
    values = rng.integers(0, 6, 9) / 2
    pairs = [(rng.random(5), rng.random(5)) for _ in range(num_episodes)]
    ratio = weighted_ratio(counts, numerator, denominator)
    auroc = weighted_auroc(counts, score, positive)
    middle = weighted_quantile(counts, values, owner, 0.95)
    r2 = weighted_r2(counts, np.array([pair_moments(*pair) for pair in pairs]))
    for row in range(len(counts)):
        own = drawn(counts, row)
        assert ratio[row] == pytest.approx(
            numerator[own].sum() / denominator[own].sum() if denominator[own].any() else np.nan, nan_ok=True
        )
        high, low = score[own][positive[own]], score[own][~positive[own]]
        if len(high) and len(low):
            wins = (high[:, None] > low).mean() + (high[:, None] == low).mean() / 2
            assert auroc[row] == pytest.approx(wins)
        else:
            assert np.isnan(auroc[row])
        repeated = np.sort(np.concatenate([values[owner == episode] for episode in own]))
        if len(repeated):
            assert middle[row] == repeated[int(np.ceil(0.95 * len(repeated) - 1e-9)) - 1]
        else:
            assert np.isnan(middle[row])
        x, y = (np.concatenate([pairs[episode][side] for episode in own]) for side in (0, 1))
        assert r2[row] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, abs=1e-9)


def test_rank_correlations_are_scipys_and_nan_without_variation():
    first, second = np.array([1.0, 2, 2, 4]), np.array([1.0, 3, 2, 4])
    assert rank_correlation("spearman", first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert rank_correlation("kendall", first, second) == pytest.approx(stats.kendalltau(first, second).statistic)
    assert np.isnan(rank_correlation("kendall", first, np.ones(4)))
    assert np.isnan(rank_correlation("spearman", first[:1], second[:1]))
    counts = np.array([[1.0, 1, 1, 1], [2, 0, 0, 2], [4, 0, 0, 0]])
    values = resampled_correlation(counts, "kendall", first, second)
    assert values[1] == pytest.approx(1)
    assert np.isnan(values[2])


def test_an_interval_leaves_out_what_could_not_be_computed():
    values = np.concatenate([[0.5, np.nan, np.nan], np.linspace(0, 1, 101)])
    assert interval(values) == pytest.approx((0.5, 0.025, 0.975))
    assert np.isnan(interval(np.array([0.5, np.nan]))[1:]).all()
    assert np.isnan(interval(np.array([np.nan, 1.0, 2.0]))).all()
