"""The pictures: perspective against the textbook's formula, what covers what, and that everything is to be seen."""

from dataclasses import replace

import numpy as np
import pytest

from sarm_ray.demo.dataset import USUAL
from sarm_ray.demo.drawing import Camera, box_corners, project, projection
from sarm_ray.demo.scene import BLOCK, COLOURS, SIZE, Backdrop, Look, Pose, draw_backdrop, draw_frame

LOOK = Look(USUAL.camera, "red", "white", USUAL.wood, light=1.0, noise=2.5, seed=0)
TARGET = np.array([0.12, 0.03])
OVER_TABLE = np.array([-0.02, 0.12, 0.14])
ON_TABLE = np.array([-0.1, 0.04, BLOCK / 2])


@pytest.fixture(scope="module")
def backdrop() -> Backdrop:
    return draw_backdrop(LOOK, TARGET)


def draw(backdrop: Backdrop, hand=OVER_TABLE, opening=1.0, block=ON_TABLE, yaw=0.0, seed=0) -> np.ndarray:
    return draw_frame(backdrop, Pose(np.array(hand), opening, np.array(block), yaw), np.random.default_rng(seed))


def red_pixels(image: np.ndarray) -> np.ndarray:
    """(n, 2) rows and columns where the block is seen."""
    red, green, blue = image.astype(int).transpose(2, 0, 1)
    return np.argwhere((red > 130) & (green < 85) & (blue < 85))


def test_projection_is_a_pinhole():
    camera = Camera(position=(0.0, -1.0, 0.0), aim=(0.0, 0.0, 0.0), focal=2.0)
    points = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.0, 0.1], [0.1, 1.0, 0.0]])
    expected = [[0.5, 0.5], [0.7, 0.5], [0.5, 0.3], [0.6, 0.5]]  # right, up, and half as large twice as far away
    np.testing.assert_allclose(project(projection(camera), points), expected)


def test_a_box_has_its_corners_around_its_centre():
    corners = box_corners((1.0, 2.0, 3.0), (0.2, 0.4, 0.6), yaw=np.pi / 2)
    np.testing.assert_allclose(corners.mean(0), (1, 2, 3))
    np.testing.assert_allclose(np.ptp(corners, axis=0), (0.4, 0.2, 0.6))


def test_a_picture_is_the_same_for_the_same_draws_and_differs_by_noise_alone_for_others(backdrop):
    first, second, other = draw(backdrop), draw(backdrop), draw(backdrop, seed=1)
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    difference = first.astype(float) - other
    assert 2 < difference.std() < 5  # twice the variance of a standard deviation of 2.5
    assert np.abs(difference.mean()) < 0.1


def test_the_block_is_large_where_it_should_be_and_rises_with_the_hand(backdrop):
    low = red_pixels(draw(backdrop))
    assert 1200 < len(low) < 4000  # 35 to 60 pixels wide and high
    centre = project(backdrop.matrix, ON_TABLE) * SIZE
    np.testing.assert_allclose(low.mean(0)[::-1], centre, atol=6)
    high = ON_TABLE + np.array([0, 0, 0.1])
    lifted = red_pixels(draw(backdrop, hand=high, opening=0.0, block=high))
    assert lifted.mean(0)[0] < low.mean(0)[0] - 25
    assert len(lifted) > 600  # seen between the fingers


def test_fingers_stop_at_a_block_and_close_without_one(backdrop):
    def dark_columns(image: np.ndarray) -> np.ndarray:
        tips = project(backdrop.matrix, OVER_TABLE - np.array([0, 0, 0.02])) * SIZE
        row = image[int(tips[1])].astype(int)
        return np.flatnonzero((row.max(1) < 75) & (np.abs(np.arange(SIZE) - tips[0]) < 60))

    wide, closed = (np.ptp(dark_columns(draw(backdrop, opening=opening))) for opening in (1.0, 0.0))
    held = np.ptp(dark_columns(draw(backdrop, opening=0.0, block=OVER_TABLE)))
    assert closed < held < wide


def test_a_block_before_the_hand_covers_it_and_one_behind_is_covered(backdrop):
    behind = red_pixels(draw(backdrop, hand=(-0.1, 0.0, BLOCK / 2), opening=0.0, block=(-0.1, 0.1, BLOCK / 2)))
    alone = red_pixels(draw(backdrop, hand=(0.1, 0.1, 0.14), block=(-0.1, 0.1, BLOCK / 2)))
    assert len(behind) < 0.9 * len(alone)
    before = red_pixels(draw(backdrop, hand=(-0.1, 0.12, BLOCK / 2), opening=0.0, block=(-0.1, 0.04, BLOCK / 2)))
    assert len(before) > 0.97 * len(red_pixels(draw(backdrop, hand=(0.1, 0.1, 0.14))))


@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_stands_out_as_a_block_and_as_a_plate(colour):
    """Seen by the difference from a picture in another colour."""
    other = "white" if colour != "white" else "black"
    for part, least in (("block", 1500), ("plate", 2500)):
        drawn = [
            draw(draw_backdrop(replace(LOOK, noise=0.0, **{part: name}), TARGET)).astype(int)
            for name in (colour, other)
        ]
        assert (np.abs(drawn[0] - drawn[1]).max(2) > 20).sum() > least


def test_light_brightens_everything(backdrop):
    dim = draw_backdrop(replace(LOOK, light=0.9), TARGET)
    assert draw(dim).mean() == pytest.approx(0.9 * draw(backdrop).mean(), rel=0.03)
