"""Breakpoints, normalisation and interpolation, against direct formulas."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.core.progress import interpolate_progress, normalize_progress, stage_breakpoints

shares = st.lists(st.floats(0.01, 5), min_size=1, max_size=8)


def direct_progress(y: float, points: np.ndarray) -> float:
    """LeRobot's normalize_stage_tau."""
    num_stages = len(points) - 1
    if y < 0:
        return 0.0
    if y >= num_stages:
        return 1.0
    stage = int(y)
    return min(max(points[stage] + (y - stage) * (points[stage + 1] - points[stage]), 0.0), 1.0)


@given(shares)
def test_breakpoints_are_cumulated_shares(proportions):
    points = stage_breakpoints(len(proportions), proportions)
    scale = sum(proportions) if abs(sum(proportions) - 1) > 1e-6 else 1
    expected = [sum(proportions[:k]) / scale for k in range(len(proportions))] + [1.0]
    np.testing.assert_allclose(points, expected, rtol=0, atol=1e-12)
    assert points[0] == 0
    assert points[-1] == 1


def test_breakpoints_by_hand():
    assert stage_breakpoints(4, None).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert stage_breakpoints(3, [0.1, 0.6, 0.3]).tolist() == pytest.approx([0, 0.1, 0.7, 1])
    assert stage_breakpoints(2, [3, 1]).tolist() == [0, 0.75, 1]  # renormalised
    assert stage_breakpoints(2, [0.5, 0.5 + 5e-7]).tolist() == [0, 0.5, 1]  # near enough: the last one is forced
    assert stage_breakpoints(2, [0.0, 1.0]).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("proportions", "message"),
    [
        ([0.5, 0.5], "3 stages need 3 temporal proportions, not 2"),
        ([0.5, -0.5, 1.0], "temporal proportions must be positive numbers, not [0.5, -0.5, 1.0]"),
        ([0.5, float("nan"), 1.0], "temporal proportions must be positive numbers, not [0.5, nan, 1.0]"),
        ([0.0, 0.0, 0.0], "temporal proportions must be positive numbers, not [0.0, 0.0, 0.0]"),
    ],
)
def test_breakpoint_errors(proportions, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        stage_breakpoints(3, proportions)


@given(shares, st.lists(st.floats(-1, 10), min_size=1, max_size=20))
def test_normalisation_equals_the_formula(proportions, values):
    points = stage_breakpoints(len(proportions), proportions)
    progress = normalize_progress(np.array(values), points)
    np.testing.assert_allclose(progress, [direct_progress(y, points) for y in values], rtol=0, atol=1e-6)
    assert progress.dtype == np.float32


def test_normalisation_at_the_ends_and_of_nan():
    points = stage_breakpoints(3, [0.2, 0.5, 0.3])
    values = np.array([-0.1, 0, 1, 2, 2.5, 3, 7, np.nan])
    expected = np.array([0, 0, 0.2, 0.7, 0.85, 1, 1, np.nan], dtype=np.float32)
    np.testing.assert_array_equal(normalize_progress(values, points), expected)
    assert normalize_progress(np.zeros((2, 3)), points).shape == (2, 3)


@st.composite
def interpolations(draw):
    length = draw(st.integers(1, 120))
    inner = draw(st.sets(st.integers(0, length - 1), max_size=12))
    computed = np.array(sorted(inner | {0, length - 1}))
    values = draw(st.lists(st.floats(0, 1, width=32), min_size=len(computed), max_size=len(computed)))
    holes = draw(st.sets(st.integers(0, len(computed) - 1)))
    return length, computed, np.array(values, dtype=np.float32), sorted(holes)


@given(interpolations())
def test_interpolation_equals_numpy_and_never_bridges_a_hole(case):
    length, computed, values, holes = case
    whole = interpolate_progress(computed, values, length)
    expected = np.interp(np.arange(length), computed, values)
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-7)
    assert whole.dtype == np.float32
    assert whole[computed].tobytes() == values.tobytes()

    torn = values.copy()
    torn[holes] = np.nan
    result = interpolate_progress(computed, torn, length)
    unknown = np.zeros(length, dtype=bool)
    for hole in holes:
        left = computed[hole - 1] + 1 if hole else 0
        right = computed[hole + 1] if hole + 1 < len(computed) else length
        unknown[left:right] = True
    for kept in set(range(len(computed))) - set(holes):
        unknown[computed[kept]] = False
    assert np.isnan(result).tolist() == unknown.tolist()
    assert result[~unknown].tobytes() == whole[~unknown].tobytes()


def test_interpolation_by_hand():
    values = np.array([0, 0.4, np.nan, 1], dtype=np.float32)
    result = interpolate_progress(np.array([0, 4, 6, 7]), values, 8)
    np.testing.assert_array_equal(result, np.float32([0, 0.1, 0.2, 0.3, 0.4, np.nan, np.nan, 1]))
    assert interpolate_progress(np.array([0]), np.float32([0.25]), 1).tolist() == [0.25]
