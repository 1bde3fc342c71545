"""Legs to frames: where the hand goes, what the block does, by hand and by the formulas of falling."""

from dataclasses import replace

import numpy as np
import pytest

from sarm_ray.demo.motion import FPS, GRAVITY, Leg, Segment, Start, position_at, segments_of, trace
from sarm_ray.demo.scene import BLOCK, PLATE_HEIGHT

START = Start(hand=(0.0, 0.1, 0.14), block=(0.1, 0.1), yaw=0.2, target=(-0.1, 0.05))
MOVE = Leg("reach", "approach", 10, (0.1, 0.1, BLOCK / 2), 1.0, 1.0)


def test_runs_of_names_are_segments():
    assert segments_of("aabbba") == (Segment("a", 0, 2), Segment("b", 2, 5), Segment("a", 5, 5))
    assert segments_of("aaa") == (Segment("a", 0, 2),)


def test_a_leg_goes_where_it_leads_and_the_last_frame_shows_it():
    close = Leg("grasp", "close gripper", 5, MOVE.hand, 0.0, 1.0)
    motion = trace(START, [MOVE, close])
    assert len(motion) == 16
    np.testing.assert_allclose(motion.hand[0], START.hand)
    np.testing.assert_allclose(motion.hand[10:], np.broadcast_to(MOVE.hand, (6, 3)))
    assert motion.opening[10] == 1
    assert motion.opening[-1] == 0
    assert motion.stages == ("reach",) * 10 + ("grasp",) * 6
    np.testing.assert_allclose(motion.done[:10], np.arange(10) / 10)
    np.testing.assert_allclose(motion.done[10:], np.arange(6) / 5)
    steps = np.linalg.norm(np.diff(motion.hand[:11], axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[::-1])  # as slow at its end as at its beginning
    assert steps[0] < steps[5] / 2


def test_a_leg_that_breaks_off_leaves_the_hand_on_its_way():
    whole = trace(START, [replace(MOVE, bow=(0.0, 0.03, 0.0))])
    cut = replace(MOVE, bow=(0.0, 0.03, 0.0), frames=4, until=0.4)
    motion = trace(START, [cut])
    np.testing.assert_allclose(motion.hand, whole.hand[:5])
    np.testing.assert_allclose(position_at(START.hand, cut), whole.hand[4])


def test_a_held_block_follows_the_hand_and_has_turned_into_it():
    legs = [
        MOVE,
        Leg("grasp", "close gripper", 5, MOVE.hand, 0.0, 1.0, "gripped"),
        Leg("carry", "lift", 8, (0.0, 0.0, 0.2), 0.0, 1.0, "held"),
    ]
    motion = trace(START, legs)
    np.testing.assert_allclose(motion.block[15:], motion.hand[15:], atol=1e-12)
    np.testing.assert_allclose(motion.yaw[15:], 0, atol=1e-12)
    assert motion.yaw[0] == 0.2


@pytest.mark.parametrize(("place", "height"), [((0.05, 0.1), 0.0), (START.target, PLATE_HEIGHT)])
def test_a_block_falls_by_gravity_and_rests_on_what_is_below(place, height):
    high = 0.5
    start = replace(START, block=(0.1, 0.1))
    up = Leg("carry", "lift", 10, (0.1, 0.1, high), 0.0, 1.0, "held")
    falls = Leg("reach", "approach", 8, up.hand, 0.0, 0.0, "falls", (*place, 0.7))
    motion = trace(replace(start, hand=(0.1, 0.1, BLOCK / 2)), [up, falls])
    fallen = GRAVITY / 2 * (np.arange(9) / FPS) ** 2
    resting = BLOCK / 2 + height
    np.testing.assert_allclose(motion.block[10:, 2], np.maximum(high - fallen, resting))
    np.testing.assert_allclose(motion.block[-1], (*place, resting))
    assert motion.yaw[-1] == pytest.approx(0.7)


def test_a_pushed_block_keeps_its_distance_and_is_left_where_the_push_ends():
    start = replace(START, hand=(0.0, 0.1, 0.04), block=(0.1, 0.1))
    push = Leg("reach", "descend", 10, (0.1, 0.1, 0.04), 0.0, 0.5, "pushed")
    back = Leg("reach", "approach", 10, (0.0, 0.1, 0.04), 0.0, 0.5)
    motion = trace(start, [push, back])
    assert motion.block[0, 0] == pytest.approx(0.1)
    distance = motion.block[:11, 0] - motion.hand[:11, 0]
    assert distance.min() == pytest.approx(0.052)
    np.testing.assert_allclose(motion.block[10:], np.broadcast_to(motion.block[10], (11, 3)))
