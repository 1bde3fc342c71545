"""From the legs of a plan to the world frame by frame: hand, gripper and block, with the stage that each frame is in.

A leg is a stretch of an episode in which the hand makes one smooth move or waits. It names the stage and the subtask that
a person would call it, and how much of the stage is done at its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sarm_ray.demo.scene import BLOCK, PLATE, PLATE_HEIGHT

FPS = 10
GRAVITY = 9.81  # m/s2
SLIDE_S = 0.4  # until a block that falls lies still; in the air it is shorter
CONTACT = 0.052  # metres between the middles of a closed hand and of the block that it pushes
STAGES = ("reach", "grasp", "carry", "place")
SUBTASKS = ("approach", "descend", "close gripper", "lift", "move to plate", "lower", "release", "withdraw")

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Leg:
    """One move, or a wait.

    Args:
        stage: of STAGES.
        subtask: of SUBTASKS.
        frames: that it takes.
        hand: (x, y, z) where the move leads, metres.
        opening: of the gripper at its end, 0 closed to 1 open.
        done: share of the stage that is done at its end; a wait leaves it as it was.
        block: whether the block rests, is taken hold of (it turns until it fits), is held, falls, or is pushed.
        landing: (x, y, yaw) of a block that falls, once it lies on the table.
        bow: how far the middle of the move is off the straight line.
        until: share of the move's time after which it breaks off; `frames` are those until then.
    """

    stage: str
    subtask: str
    frames: int
    hand: Vector
    opening: float
    done: float
    block: Literal["rests", "gripped", "held", "falls", "pushed"] = "rests"
    landing: Vector = (0.0, 0.0, 0.0)
    bow: Vector = (0.0, 0.0, 0.0)
    until: float = 1.0


@dataclass(frozen=True)
class Start:
    """The world before the first leg.

    Args:
        hand: (x, y, z).
        block: (x, y).
        yaw: of the block, radians.
        target: (x, y), the plate's centre.
    """

    hand: Vector
    block: tuple[float, float]
    yaw: float
    target: tuple[float, float]


@dataclass(frozen=True)
class Motion:
    """An episode of F frames.

    Args:
        hand: (F, 3) float64, the point between the fingertips, metres.
        opening: (F,) float64, of the gripper's drive: 0 closed to 1 open, whatever is between the fingers.
        block: (F, 3) float64, its centre.
        yaw: (F,) float64, of the block, radians.
        stages, subtasks: F names each.
        done: (F,) float64, share of the stage that is done: it stands still while the hand waits.
    """

    hand: np.ndarray
    opening: np.ndarray
    block: np.ndarray
    yaw: np.ndarray
    stages: tuple[str, ...]
    subtasks: tuple[str, ...]
    done: np.ndarray

    def __len__(self) -> int:
        return len(self.hand)


@dataclass(frozen=True)
class Segment:
    """Frames start to end of an episode have one name; the end is the next one's start, or the last frame."""

    name: str
    start: int
    end: int


def segments_of(names: Sequence[str]) -> tuple[Segment, ...]:
    """The runs of equal names among an episode's frames. They cover it; a run of the last frame alone has no duration."""
    starts = [frame for frame in range(len(names)) if frame == 0 or names[frame] != names[frame - 1]]
    ends = [*starts[1:], len(names) - 1]
    return tuple(Segment(names[start], start, end) for start, end in zip(starts, ends, strict=True))


def trace(start: Start, legs: Sequence[Leg]) -> Motion:
    """Play the legs one after the other; a last frame shows where the last one ends."""
    hand, opening, done = np.array(start.hand), 1.0, 0.0
    block, yaw = np.array([*start.block, BLOCK / 2]), start.yaw
    parts: list[list[np.ndarray]] = []  # of each leg: hands, openings, blocks, yaws, shares done
    for number, leg in enumerate(legs):
        if number and leg.stage != legs[number - 1].stage:
            done = 0.0
        time = np.arange(leg.frames + 1) / leg.frames
        moved = _smooth(time * leg.until)[:, None]
        path = hand + moved * (np.array(leg.hand) - hand) + np.sin(np.pi * moved) * np.array(leg.bow)
        blocks, yaws = _move_block(leg, path, block, yaw, start.target)
        openings = opening + _smooth(time) * (leg.opening - opening)
        parts.append([path, openings, blocks, yaws, done + time * (leg.done - done)])
        hand, block, yaw = path[-1], blocks[-1], float(yaws[-1])
        opening, done = leg.opening, leg.done
    # a leg ends where the next one begins: that frame is the next one's
    hands, openings, blocks, yaws, shares = (
        np.concatenate([*(part[:-1] for part in each), each[-1][-1:]]) for each in zip(*parts, strict=True)
    )
    frames = [leg for leg in legs for _ in range(leg.frames)] + [legs[-1]]
    stages, subtasks = tuple(leg.stage for leg in frames), tuple(leg.subtask for leg in frames)
    return Motion(hands, openings, blocks, yaws, stages, subtasks, shares)


def position_at(start: Vector, leg: Leg) -> Vector:
    """Where a leg that begins at `start` leaves the hand, also one that breaks off."""
    share = float(_smooth(np.array(leg.until)))
    bow = np.sin(np.pi * share) * np.array(leg.bow)
    x, y, z = (np.array(start) + share * (np.array(leg.hand) - np.array(start)) + bow).tolist()
    return x, y, z


def _smooth(time: np.ndarray) -> np.ndarray:
    """Share of the way after a share of the time: half at constant speed, half with the least jerk (Flash & Hogan 1985).

    With the least jerk alone a move shows nothing in its first and last fifth, and no one could tell where it began.
    """
    return 0.5 * time + 0.5 * time**3 * (10 - 15 * time + 6 * time**2)


def _move_block(
    leg: Leg, path: np.ndarray, block: np.ndarray, yaw: float, target: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The block's centre (n, 3) and yaw (n,) along a leg's path (n, 3), from where it was before."""
    time = np.linspace(0, 1, len(path))
    blocks, yaws = np.repeat(block[None], len(path), axis=0), np.full(len(path), yaw)
    if leg.block == "gripped":
        blocks[:, 0] += time * (path[-1, 0] - block[0])
        yaws *= 1 - time
    elif leg.block == "held":
        blocks = path + (block - path[0])
    elif leg.block == "falls":
        resting = _resting_height(leg.landing[:2], target)
        seconds = np.arange(len(path)) / FPS
        slid = np.minimum(seconds / SLIDE_S, 1)
        blocks[:, :2] += slid[:, None] * (np.array(leg.landing[:2]) - block[:2])
        blocks[:, 2] = np.maximum(block[2] - GRAVITY / 2 * seconds**2, resting)
        yaws += slid * (leg.landing[2] - yaw)
    elif leg.block == "pushed":
        way = (path[-1] - path[0])[:2]
        way = way / np.linalg.norm(way)
        short = CONTACT - (block[:2] - path[:, :2]) @ way
        blocks[:, :2] += np.maximum.accumulate(np.maximum(short, 0))[:, None] * way
        yaws += np.maximum.accumulate(np.maximum(short, 0)) * 4
    return blocks, yaws


def _resting_height(place: tuple[float, float], target: tuple[float, float]) -> float:
    on_plate = np.hypot(place[0] - target[0], place[1] - target[1]) < PLATE
    return BLOCK / 2 + (PLATE_HEIGHT if on_plate else 0.0)
