"""Annotated segments become stages and tau of frames: half-open segments, gaps, ends, and what is refused."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.core.frame_targets import stage_boundaries, stage_numbers, stage_targets

STAGES = ("reach", "push", "leave")


def targets(names, starts, ends, length, stages=STAGES):
    stage, tau = stage_targets(names, starts, ends, stages, length)
    assert (stage.dtype, tau.dtype, stage.shape, tau.shape) == (np.int64, np.float32, (length,), (length,))
    return stage.tolist(), tau.tolist()


def test_a_shared_frame_belongs_to_the_segment_that_starts_at_it():
    stage, tau = targets(STAGES, [0, 2, 6], [2, 6, 8], 9)
    assert stage == [0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert tau == [0, 0.5, 0, 0.25, 0.5, 0.75, 0, 0.5, 1]  # the last segment includes its end


def test_before_between_and_after_segments():
    stage, tau = targets(["push", "reach"], [4, 1], [6, 2], 8)  # in any order, and not all stages
    assert stage == [0, 0, 0, 0, 1, 1, 1, 1]
    assert tau == [0, 0, 1, 1, 0, 0.5, 1, 1]


def test_segments_that_repeat_overlap_or_have_no_duration():
    stage, tau = targets(["reach", "push", "reach", "leave"], [0, 2, 3, 5], [2, 4, 5, 5], 7)
    assert stage == [0, 0, 1, 0, 0, 2, 2]
    assert tau == [0, 0.5, 0, 0, 0.5, 1, 1]


def test_one_stage_runs_over_the_episode():
    assert targets([], [], [], 5, ("task",)) == ([0] * 5, [0, 0.25, 0.5, 0.75, 1])
    assert targets(["task"], [2], [3], 1, ("task",)) == ([0], [0])


@pytest.mark.parametrize(
    ("names", "starts", "ends", "message"),
    [
        (["reach"], [0, 3], [3], "1 subtask names, 2 starts and 1 ends"),
        ([], [], [], "no subtasks are annotated"),
        (["reach", "fly"], [0, 3], [3, 6], "subtask 'fly' is not one of the stages reach, push, leave"),
        (["push", "reach"], [3, 0], [2, 3], "subtask 'push' ends at frame 2, before its start 3"),
    ],
)
def test_refused(names, starts, ends, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        stage_targets(names, starts, ends, STAGES, 10)


@given(st.lists(st.integers(1, 20), min_size=3, max_size=3), st.integers(0, 5))
def test_frame_by_frame(durations, after):
    ends = np.cumsum(durations).tolist()
    starts = [0, *ends[:-1]]
    stage, tau = targets(STAGES, starts, ends, ends[-1] + after)
    for frame in range(ends[-1] + after):
        own = max(k for k in range(3) if starts[k] <= frame)
        assert stage[frame] == own
        assert tau[frame] == np.float32(min((frame - starts[own]) / durations[own], 1))


def test_boundaries():
    assert stage_boundaries(["push", "reach", "leave"], [4, 0, 9], 9) == ((4, "push"),)


def test_stage_numbers():
    numbers = stage_numbers(["leave", "reach"], STAGES)
    assert (numbers.tolist(), numbers.dtype) == ([2, 0], np.int64)
    assert stage_numbers([], STAGES).dtype == np.int64  # an index, also when it is empty
    with pytest.raises(ValueError, match=r"^subtask 'fly' is not one of the stages reach, push, leave$"):
        stage_numbers(["push", "fly"], STAGES)
