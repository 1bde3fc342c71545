"""Training targets: interrupted stages against a frame-by-frame definition, durations, and proportions by hand."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.core.frame_targets import stage_targets
from sarm_ray.core.targets import (
    annotated_segments,
    completed_durations,
    episode_targets,
    temporal_proportions,
)

STAGES = ("reach", "push", "leave")

# segments of one episode: (stage, start, end) in any order of time, with gaps, overlaps and segments of no duration
segment = st.builds(
    lambda stage, start, frames: (stage, start, start + frames),
    st.integers(0, 2),
    st.integers(0, 60),
    st.integers(0, 30),
)
episode_lists = st.lists(st.lists(segment, max_size=6), min_size=1, max_size=5)


def of_lists(episodes, success=None):
    flat = np.array([part for segments in episodes for part in segments], dtype=np.int64).reshape(-1, 3)
    offsets = np.cumsum([0, *map(len, episodes)])
    return annotated_segments(offsets, *flat.T, None if success is None else np.array(success, dtype=bool))


def slow_interrupted(segments, success):
    """(segment, did it not complete) in the order of time."""
    ordered = sorted(segments, key=lambda part: part[1])
    following = [part[0] for part in ordered[1:]]
    return [(part, following[i] < part[0] if i < len(following) else not success) for i, part in enumerate(ordered)]


def slow_durations(episodes, success):
    parts = [pair for segments, won in zip(episodes, success, strict=True) for pair in slow_interrupted(segments, won)]
    means = []
    for stage in range(3):
        every = [end - start for (own, start, end), _ in parts if own == stage]
        completed = [end - start for (own, start, end), broken in parts if own == stage and not broken]
        means.append(np.mean(completed or every) if every else np.nan)
    return means


def slow_target(frame, segments, success, means):
    """Stage and tau of one frame."""
    begun = [pair for pair in slow_interrupted(segments, success) if pair[0][1] <= frame]
    if not begun:
        return 0, 0.0
    (stage, start, end), broken = begun[-1]
    done, full = min(frame, end) - start, means[stage] if broken else end - start
    share = done / full if full else 1.0
    return stage, min(share, 0.95 if broken else 1.0)


def test_a_stage_that_is_done_again():
    """push is interrupted at frame 4; completed segments of push last 4 and 6 frames, 5 on average."""
    segments = of_lists([[(0, 0, 2), (1, 2, 8)], [(1, 0, 4), (0, 4, 6), (1, 6, 10), (2, 10, 12)]])
    assert segments.interrupted.tolist() == [False, False, True, False, False, False]
    durations = completed_durations(segments, 3)
    assert durations.tolist() == [2, 5, 2]
    stage, tau = episode_targets(segments, 1, durations, 13)
    assert (stage.dtype, tau.dtype) == (np.int64, np.float32)
    assert stage.tolist() == [1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    np.testing.assert_allclose(tau, [0, 0.2, 0.4, 0.6, 0, 0.5, 0, 0.25, 0.5, 0.75, 0, 0.5, 1], rtol=1e-7)


def test_a_failed_episode_never_completes_its_last_stage():
    segments = of_lists([[(0, 0, 2), (1, 2, 6)], [(0, 0, 2), (1, 2, 9)]], success=[True, False])
    durations = completed_durations(segments, 3)
    np.testing.assert_equal(durations, [2, 4, np.nan])
    stage, tau = episode_targets(segments, 1, durations, 12)
    assert stage.tolist() == [0, 0] + [1] * 10
    np.testing.assert_allclose(tau, [0, 0.5, 0, 0.25, 0.5, 0.75] + [0.95] * 6, rtol=1e-7)
    assert episode_targets(segments, 0, durations, 7)[1].tolist() == [0, 0.5, 0, 0.25, 0.5, 0.75, 1]


def test_after_its_end_an_interrupted_segment_stays_where_it_was():
    segments = of_lists([[(1, 0, 10)], [(1, 0, 3), (0, 6, 8)]])
    stage, tau = episode_targets(segments, 1, completed_durations(segments, 2), 10)
    assert stage.tolist() == [1] * 6 + [0] * 4
    np.testing.assert_allclose(tau, [0, 0.1, 0.2, 0.3, 0.3, 0.3, 0, 0.5, 1, 1], rtol=1e-7)


def test_a_stage_that_never_completes_takes_what_its_segments_take():
    segments = of_lists([[(1, 0, 4), (0, 4, 5)], [(1, 0, 8)]], success=[True, False])
    durations = completed_durations(segments, 2)
    assert durations.tolist() == [1, 6]
    np.testing.assert_allclose(episode_targets(segments, 1, durations, 9)[1][-4:], [5 / 6, 0.95, 0.95, 0.95], rtol=1e-7)


def test_the_same_stage_twice_in_a_row_is_not_an_interruption():
    segments = of_lists([[(0, 0, 2), (0, 2, 4), (1, 4, 6)]])
    assert not segments.interrupted.any()
    assert episode_targets(segments, 0, completed_durations(segments, 2), 7)[1].tolist() == [0, 0.5] * 3 + [1]


@given(episode_lists, st.data())
def test_targets_are_those_of_the_definition(episodes, data):
    success = data.draw(st.lists(st.booleans(), min_size=len(episodes), max_size=len(episodes)))
    segments, means = of_lists(episodes, success), slow_durations(episodes, success)
    durations = completed_durations(segments, 3)
    np.testing.assert_allclose(durations, means)
    for row, parts in enumerate(episodes):
        if not parts:
            continue
        stage, tau = episode_targets(segments, row, durations, 100)
        expected = [slow_target(frame, parts, success[row], means) for frame in range(100)]
        assert stage.tolist() == [own for own, _ in expected]
        np.testing.assert_allclose(tau, [share for _, share in expected], rtol=1e-6)
        assert tau.min() >= 0
        assert tau.max() <= 1


@given(st.lists(segment, min_size=1, max_size=6), st.integers(1, 100))
def test_where_nothing_is_interrupted_targets_are_those_of_pictures(parts, length):
    parts = sorted(parts, key=lambda part: (part[0], part[1]))
    starts = sorted(start for _, start, _ in parts)  # stages rise with time
    parts = [(stage, start, start + end - old) for (stage, old, end), start in zip(parts, starts, strict=True)]
    segments = of_lists([parts])
    ours = episode_targets(segments, 0, completed_durations(segments, 3), length)
    names, starts, ends = zip(*((STAGES[stage], start, end) for stage, start, end in parts), strict=True)
    for one, other in zip(ours, stage_targets(names, starts, ends, STAGES, length), strict=True):
        assert one.tolist() == other.tolist()


def test_segments_are_put_in_order_within_their_episode_only():
    segments = of_lists([[(1, 4, 6), (0, 0, 4)], [], [(0, 2, 3), (2, 0, 2), (1, 2, 2)]])
    assert segments.stage.tolist() == [0, 1, 2, 0, 1]
    assert segments.start.tolist() == [0, 4, 0, 2, 2]
    assert segments.end.tolist() == [4, 6, 2, 3, 2]
    assert segments.row.tolist() == [0, 0, 2, 2, 2]
    assert segments.interrupted.tolist() == [False, False, True, False, False]


def test_one_stage_needs_no_annotation():
    segments = of_lists([[], [(0, 2, 3)]], success=[True, False])
    for row in (0, 1):
        stage, tau = episode_targets(segments, row, completed_durations(segments, 1), 5)
        assert (stage.tolist(), tau.tolist()) == ([0] * 5, [0, 0.25, 0.5, 0.75, 1])
    assert temporal_proportions(of_lists([[]]), ("task",)).tolist() == [1]


def test_refused():
    with pytest.raises(ValueError, match=r"^episode row 1: a subtask ends at frame 2, before its start 3$"):
        of_lists([[(0, 0, 3)], [(0, 0, 3), (1, 3, 2)]])
    with pytest.raises(ValueError, match=r"^no subtasks are annotated$"):
        episode_targets(of_lists([[], [(0, 0, 1)]]), 0, np.ones(3), 5)
    held_out = of_lists([[(1, 0, 3), (0, 3, 5)]])
    with pytest.raises(ValueError, match=r"^stage 1 is interrupted, and its usual duration is not known$"):
        episode_targets(held_out, 0, np.array([4, np.nan]), 5)


def test_proportions_count_episodes_that_lack_a_stage():
    """{a: 2, b: 8} and {a: 5}: LeRobot says a .43, b .57; formula (1) says a (0.2 + 1) / 2."""
    segments = of_lists([[(0, 0, 2), (1, 2, 10)], [(0, 0, 5)], []])
    np.testing.assert_allclose(temporal_proportions(segments, ("a", "b")), [0.6, 0.4])


def test_proportions_add_up_repeats_and_leave_gaps_out():
    segments = of_lists([[(0, 0, 2), (1, 4, 6), (0, 6, 10)], [(1, 3, 3)]])  # the second one has no duration at all
    np.testing.assert_allclose(temporal_proportions(segments, ("a", "b")), [0.75, 0.25])


@given(episode_lists)
def test_proportions_are_those_of_the_formula(episodes):
    means = np.zeros(3)
    for parts in episodes:
        own = np.array([sum(end - start for k, start, end in parts if k == stage) for stage in range(3)])
        means += own / max(own.sum(), 1)
    seen = {stage for parts in episodes for stage, _, _ in parts}
    if len(seen) < 3:
        names = ", ".join(name for number, name in enumerate(STAGES) if number not in seen)
        with pytest.raises(ValueError, match=f"^{re.escape(f'no episode has the subtasks {names}: annotate')}"):
            temporal_proportions(of_lists(episodes), STAGES)
    elif not means.any():
        with pytest.raises(ValueError, match=r"^no annotated subtask has a duration$"):
            temporal_proportions(of_lists(episodes), STAGES)
    else:
        shares = temporal_proportions(of_lists(episodes), STAGES)
        assert (shares.shape, shares.dtype) == ((3,), np.float64)
        np.testing.assert_allclose(shares, means / means.sum())
