"""RA-BC against LeRobot's formulas frame by frame, against numbers worked out by hand, and whatever the blocks."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarm_ray.core.rabc import (
    DeltaDistribution,
    DeltaHistogram,
    grade_weights,
    progress_deltas,
    rabc_weights,
    summarize_weights,
)

NAN = float("nan")


def direct_deltas(episodes: list[list[float]], chunk_size: int) -> list[float]:
    """One frame after the other, as LeRobot does."""
    deltas = []
    for episode in episodes:
        for frame, now in enumerate(episode):
            then = episode[min(frame + chunk_size, len(episode) - 1)]
            deltas.append(then - now)
    return deltas


def direct_moments(deltas: list[float]) -> tuple[float, float]:
    valid = [delta for delta in deltas if not math.isnan(delta)]
    if not valid:
        return 0.0, 1e-6
    mean = sum(valid) / len(valid)
    std = math.sqrt(sum((delta - mean) ** 2 for delta in valid) / len(valid))
    return max(mean, 0.0), max(std, 1e-6)


def width_error(distribution: DeltaDistribution) -> float:
    """How far a mean weight may be off: a soft weight rises by 1 over 4 standard deviations, a bin is 1e-6 wide."""
    return 2e-6 + 1e-6 / (4 * distribution.std)


def direct_weight(delta: float, mean: float, std: float, kappa: float) -> float:
    if math.isnan(delta):
        return 1.0
    if delta > kappa:
        return 1.0
    if delta < 0:
        return 0.0
    return min(max((delta - (mean - 2 * std)) / (4 * std + 1e-6), 0.0), 1.0)


def distribution_of(deltas: np.ndarray, block: int = 10**9) -> DeltaDistribution:
    distribution = DeltaDistribution()
    for start in range(0, len(deltas), block):
        distribution.add(deltas[start : start + block])
    return distribution


# multiples of 1 / 256 are exact in float32: no delta is a rounding away from a kappa that is one of them too
progress_values = st.one_of(st.integers(0, 256).map(lambda n: n / 256), st.just(NAN))
episode_lists = st.lists(st.lists(progress_values, min_size=1, max_size=25), min_size=1, max_size=6)
kappas = st.sampled_from([0.0, 1 / 64, 0.25, 0.01, 0.05, 1.0])


@settings(max_examples=60, deadline=None)
@given(episode_lists, st.integers(1, 40), kappas, st.integers(1, 60))
def test_equals_the_formulas_frame_by_frame(episodes, chunk_size, kappa, block):
    progress = np.concatenate(episodes).astype(np.float32)
    deltas = progress_deltas(progress, np.array([len(episode) for episode in episodes]), chunk_size)
    expected = direct_deltas(episodes, chunk_size)
    np.testing.assert_array_equal(deltas, expected)
    assert deltas.dtype == np.float64

    distribution, (mean, std) = distribution_of(deltas, block), direct_moments(expected)
    assert (distribution.mean, distribution.std) == (pytest.approx(mean, abs=1e-12), pytest.approx(std, abs=1e-12))
    weights = rabc_weights(deltas, distribution.mean, distribution.std, kappa)
    direct = [direct_weight(delta, mean, std, kappa) for delta in expected]
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, direct, rtol=0, atol=1e-5)

    summary = summarize_weights(distribution, kappa)
    scored = ~np.isnan(deltas)
    assert summary.num_frames == len(progress)
    assert summary.num_nan == int((~scored).sum())
    assert summary.mean_weight == pytest.approx(weights.mean(dtype=np.float64), abs=width_error(distribution))
    assert summary.share_full == pytest.approx(((weights == 1) & scored).mean(), abs=1e-12)
    assert summary.share_zero == pytest.approx((weights == 0).mean(), abs=1e-12)
    assert summary.share_falling == pytest.approx((deltas[scored] < 0).sum() / len(deltas), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(episode_lists, st.integers(1, 40))
def test_advice_holds_when_it_is_followed(episodes, chunk_size):
    progress = np.concatenate(episodes).astype(np.float32)
    deltas = progress_deltas(progress, np.array([len(episode) for episode in episodes]), chunk_size)
    distribution = distribution_of(deltas)
    summary = summarize_weights(distribution, 0.01)

    def mean_weight(kappa: float) -> float:
        return float(rabc_weights(deltas, distribution.mean, distribution.std, kappa).mean(dtype=np.float64))

    error = width_error(distribution)
    assert summary.auto_mean_weight == pytest.approx(mean_weight(summary.auto_kappa), abs=error)
    assert summary.reachable == (pytest.approx(mean_weight(1.0), abs=error), pytest.approx(mean_weight(0.0), abs=error))
    valid = deltas[~np.isnan(deltas)]
    if len(valid):
        percentile = max(float(np.quantile(valid, 0.75, method="inverted_cdf")), 0.0)
        assert summary.auto_kappa == pytest.approx(percentile, abs=1.001e-6)
    reached = [mean_weight(float(kappa)) for kappa in np.unique(np.append(valid[valid >= 0], 0.0)) + 1e-6]
    for target, kappa in summary.kappa_for.items():
        best = min(abs(level - target) for level in [*reached, summary.reachable[1]])
        if kappa is None:
            assert best > 0.02 - 1e-5 - error
        else:
            assert abs(mean_weight(kappa) - target) == pytest.approx(best, abs=1e-5 + error)


def test_by_hand():
    progress = np.float32([0, 0.25, 0.5, 0.25, NAN, 1.0, 0.5])
    deltas = progress_deltas(progress, np.array([4, 2, 1]), 2)
    np.testing.assert_array_equal(deltas, [0.5, 0, -0.25, 0, NAN, 0, 0])  # the horizon ends with the episode
    distribution = distribution_of(deltas)
    assert distribution.mean == pytest.approx(0.25 / 6)
    std = math.sqrt((0.25 + 0.0625) / 6 - (0.25 / 6) ** 2)
    assert distribution.std == pytest.approx(std)
    soft = (0 - (0.25 / 6 - 2 * std)) / (4 * std + 1e-6)
    weights = rabc_weights(deltas, distribution.mean, distribution.std, 0.01)
    np.testing.assert_allclose(weights, [1, soft, 0, soft, 1, soft, soft], rtol=1e-6)
    summary = summarize_weights(distribution, 0.01)
    assert (summary.num_frames, summary.num_nan) == (7, 1)
    assert summary.share_zero == summary.share_full == summary.share_falling == pytest.approx(1 / 7)
    assert summary.mean_weight == pytest.approx((2 + 4 * soft) / 7)
    assert summary.is_healthy
    assert summary.auto_kappa == 0  # five of six deltas are not above 0


def test_where_little_is_known():
    nothing = summarize_weights(distribution_of(np.array([NAN, NAN])), 0.01)
    assert (nothing.mean_weight, nothing.num_nan, nothing.share_full, nothing.delta_std) == (1, 2, 0, 1e-6)
    still = summarize_weights(
        distribution_of(np.zeros(4)), 0.01
    )  # all equal: 2 std above the lower end, std is epsilon
    assert still.mean_weight == pytest.approx(0.4)
    assert still.kappa_for == {0.3: None, 0.5: None, 0.7: None}
    falling = summarize_weights(distribution_of(np.full(4, -0.5)), 0.01)
    assert (falling.mean_weight, falling.delta_mean, falling.reachable) == (0, 0, (0, 0))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-255, 256).map(lambda n: n / 256), min_size=1, max_size=60),  # a fall of 1 is the lowest edge
    st.sampled_from([1, 1 / 64, 1e-3]),
)
def test_the_histogram_counts_every_delta_between_round_edges(deltas, scale):
    deltas = np.array(deltas) * scale
    histogram = distribution_of(np.append(deltas, NAN)).histogram()
    edges, counts = np.array(histogram.edges), histogram.counts
    assert 0 in histogram.edges
    assert len(counts) == len(edges) + 1 <= 16
    steps = np.diff(edges)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert f"{steps[0]:e}".startswith(("1.000000", "2.000000", "5.000000"))
    above = [float((deltas > edge).sum() if edge else (deltas >= 0).sum()) for edge in edges]
    np.testing.assert_array_equal(np.cumsum(counts[::-1])[:-1][::-1], above)
    assert sum(counts) == len(deltas)
    assert max(counts[0], counts[-1]) <= 0.01 * len(deltas)
    assert steps[0] <= max(np.ptp(np.append(deltas, 0)) / 5, 1e-6)  # no wider than rows have to be


def test_the_histogram_of_little():
    assert distribution_of(np.array([NAN])).histogram() == DeltaHistogram((), ())
    assert distribution_of(np.zeros(3)).histogram() == DeltaHistogram((0.0, 1e-6), (0, 3, 0))
    far = distribution_of(np.array([-7.0, 7.0])).histogram()
    assert far.edges == (-1.0, -0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert (far.counts[0], far.counts[-1], sum(far.counts)) == (1, 1, 2)


def test_lerobots_rules_of_thumb():
    deltas = np.tile([0.0, 0.02, 0.04, 0.06], 25)
    summary = summarize_weights(distribution_of(deltas), 0.05)
    std = math.sqrt(0.0005)
    assert {name: kappa for name, (kappa, _) in summary.rules.items()} == {
        "default": 0.01,
        "mean": 0.03,
        "mean + std": round(0.03 + std, 6),
        "mean + 2 std": round(0.03 + 2 * std, 6),
    }
    for kappa, mean_weight in summary.rules.values():
        weights = rabc_weights(deltas, 0.03, std, kappa)
        assert mean_weight == pytest.approx(weights.mean(dtype=np.float64), abs=1e-5)


def test_grades_multiply_the_weights_of_their_episode():
    weights = np.float32([1, 0.5, 1, 0.5, 0.25, 1])
    graded = grade_weights(weights, np.array([7, 2, 9]), np.array([2, 3, 1]), {2: 0.5, 9: 0.0, 1: 0.0})
    assert graded.dtype == np.float32
    assert graded.tolist() == [1, 0.5, 0.5, 0.25, 0.125, 0]


def test_other_epsilon_and_fallback_than_lerobots():
    deltas = np.array([0.0, 0.5, NAN])
    distribution = DeltaDistribution(epsilon=0.5)
    distribution.add(deltas)
    assert (distribution.mean, distribution.std) == (0.25, 0.5)
    weights = rabc_weights(deltas, 0.25, 0.5, 1.0, epsilon=0.5, fallback_weight=0.25)
    np.testing.assert_allclose(weights, [0.75 / 2.5, 1.25 / 2.5, 0.25])
    assert distribution.mean_weights()[-1] == pytest.approx((0.3 + 0.5 + 1) / 3)


def test_kappa_is_compared_as_lerobot_compares_it():
    """At every edge and at its neighbours in float32: no delta is counted on the wrong side of a kappa."""
    edges = (np.arange(10**6 + 1) / 10**6).astype(np.float32)
    for deltas in (
        edges,
        np.nextafter(edges, np.float32(2)),
        np.nextafter(edges, np.float32(0)),
        edges * np.float32(3),
    ):
        bins = DeltaDistribution()._bins_of(deltas)
        np.testing.assert_array_equal(bins, np.searchsorted(edges, deltas))


def test_refused():
    with pytest.raises(ValueError, match=r"^chunk_size must be at least 1 frame, not 0$"):
        progress_deltas(np.zeros(2, dtype=np.float32), np.array([2]), 0)
    with pytest.raises(ValueError, match=r"^kappa must be at least 0, not -0\.1$"):
        summarize_weights(distribution_of(np.zeros(2)), -0.1)
    with pytest.raises(ValueError, match=r"^no frames$"):
        summarize_weights(DeltaDistribution(), 0.01)


def test_ten_million_frames_take_seconds():
    rng = np.random.default_rng(0)
    lengths = np.full(2000, 500)
    progress = np.clip(np.tile(np.linspace(0, 1, 500), 2000) + rng.normal(0, 0.05, 10**6), 0, 1).astype(np.float32)
    started, distribution = time.process_time(), DeltaDistribution()
    for _ in range(10):
        distribution.add(progress_deltas(progress, lengths, 50))
    summary = summarize_weights(distribution, 0.01)
    for _ in range(10):
        rabc_weights(progress_deltas(progress, lengths, 50), distribution.mean, distribution.std, 0.01)
    seconds = time.process_time() - started
    assert summary.num_frames == 10**7
    assert seconds < 5  # about 2 s
