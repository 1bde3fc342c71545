"""The stages of the task as legs, for the layout and the tempo of one episode, and how they are cut short."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sarm_ray.demo.motion import FPS, Leg, Start, Vector, position_at
from sarm_ray.demo.scene import BLOCK, PLATE_HEIGHT

TABLE_X, TABLE_Y = (-0.15, 0.15), (0.0, 0.16)  # metres, where blocks and plates lie
APART = (0.165, 0.30)  # block and plate in the beginning
BESIDE = (0.13, 0.155)  # a block that fell, and the plate
HOVER = 0.12  # height of the hand over what it goes to
CARRIED = 0.14  # height of the hand while carrying
HAND_SPEED = 0.17  # metres per second at tempo 1, of long moves
MOST_YAW = 0.4  # radians, of a block that fell

Place = tuple[float, float]


@dataclass(frozen=True)
class Table:
    """What the legs of an episode depend on.

    Args:
        rng: source of all chance.
        tempo: speed of the moves; 1 is usual.
        start: the layout.
    """

    rng: np.random.Generator
    tempo: float
    start: Start

    def frames(self, seconds: float) -> int:
        """Of a move that takes so long at tempo 1, give or take; at least two."""
        return max(2, round(FPS * seconds / self.tempo * self.rng.uniform(0.88, 1.14)))

    def wait(self, low: float, high: float) -> int:
        """Frames of a wait of so many seconds, at any tempo."""
        return round(FPS * self.rng.uniform(low, high))

    def bow(self) -> Vector:
        """How far a long move is off the straight line, metres."""
        x, y = self.rng.uniform(-0.02, 0.02, 2).tolist()
        return x, y, float(self.rng.uniform(0.0, 0.025))


def draw_layout(rng: np.random.Generator) -> Start:
    """Block and plate apart, and the hand over the table, not over the block."""
    while True:
        block, target, home = ((float(rng.uniform(*TABLE_X)), float(rng.uniform(*TABLE_Y))) for _ in range(3))
        if APART[0] < distance(block, target) < APART[1] and distance(home, block) > 0.08:
            hand = (*home, float(rng.uniform(0.13, 0.165)))
            return Start(hand, block, float(rng.uniform(-0.3, 0.3)), target)


def first_wait(table: Table) -> list[Leg]:
    """Nobody moves at once."""
    return [Leg("reach", "approach", table.wait(0.1, 0.5), table.start.hand, 1.0, 0.0)]


def reach_legs(table: Table, hand: Vector, place: Place, height: float = BLOCK / 2) -> list[Leg]:
    """From a hand anywhere to one around what is at a place."""
    over = (*place, HOVER)
    approach = table.frames(0.5 + distance(hand, over) / HAND_SPEED)
    legs = [
        Leg("reach", "approach", approach, over, 1.0, 0.0, bow=table.bow()),
        Leg("reach", "descend", table.frames(0.95), (*place, height), 1.0, 0.0),
    ]
    return _completed(legs)


def grasp_legs(table: Table, hand: Vector) -> list[Leg]:
    """Close the gripper around the block, and make sure."""
    close = Leg("grasp", "close gripper", table.frames(0.65), hand, 0.0, 0.0, "gripped")
    return _completed([close, replace(close, frames=table.frames(0.4), block="held")])


def carry_legs(table: Table, hand: Vector) -> list[Leg]:
    """From the table to over the plate."""
    up, over = (hand[0], hand[1], CARRIED), (*table.start.target, CARRIED)
    move = table.frames(0.5 + distance(up, over) / HAND_SPEED)
    legs = [
        Leg("carry", "lift", table.frames(0.85), up, 0.0, 0.0, "held"),
        Leg("carry", "move to plate", move, over, 0.0, 0.0, "held", bow=table.bow()),
    ]
    return _completed(legs)


def place_legs(table: Table, hand: Vector) -> list[Leg]:
    """Lower the block, let go of it, withdraw, and rest."""
    down = (hand[0], hand[1], BLOCK / 2 + PLATE_HEIGHT)
    up = (hand[0], hand[1], float(table.rng.uniform(0.13, 0.16)))
    away = towards(up, table.start.hand, float(table.rng.uniform(0.3, 0.6)))
    legs = [
        Leg("place", "lower", table.frames(0.85), down, 0.0, 0.0, "held"),
        Leg("place", "release", table.frames(0.55), down, 1.0, 0.0),
        Leg("place", "withdraw", table.frames(0.95), away, 1.0, 0.0, bow=(0.0, 0.0, 0.03)),
        Leg("place", "withdraw", table.wait(0.3, 0.6), away, 1.0, 0.0),
    ]
    return _completed(legs)


def legs_until_carry(table: Table, hand: Vector, block: Place) -> list[Leg]:
    """Reach and grasp."""
    legs = reach_legs(table, hand, block)
    return legs + grasp_legs(table, legs[-1].hand)


def legs_to_end(table: Table, hand: Vector, block: Place) -> list[Leg]:
    """All four stages."""
    legs = legs_until_carry(table, hand, block)
    legs += carry_legs(table, legs[-1].hand)
    return legs + place_legs(table, legs[-1].hand)


def legs_of_a_miss(table: Table) -> list[Leg]:
    """Until the gripper has closed on nothing: over the block, or before it."""
    x, y = table.start.block
    above = table.rng.random() < 0.4
    legs = reach_legs(table, table.start.hand, (x, y if above else y - 0.075), BLOCK / 2 + (0.064 if above else 0.0))
    grasp = [replace(leg, block="rests", done=0.9 * leg.done) for leg in grasp_legs(table, legs[-1].hand)]
    return [*first_wait(table), *legs, *grasp]


def legs_until_drop(table: Table, shares: tuple[float, float], near: bool = False) -> tuple[list[Leg], Vector, Place]:
    """Until a block that slipped lies on the table.

    Args:
        table: the layout.
        shares: between which share of carrying and lowering it slips.
        near: whether it comes to lie beside the plate.

    Returns:
        the legs; where the hand is; where the block lies.
    """
    before = legs_until_carry(table, table.start.hand, table.start.block)
    carry = carry_legs(table, before[-1].hand)
    lower = place_legs(table, carry[-1].hand)[0]
    carry = cut_legs([*carry, lower], float(table.rng.uniform(*shares)))
    there = end_of(before[-1].hand, carry)
    block = _beside_plate(table, there, near)
    landing = (*block, float(table.rng.uniform(-MOST_YAW, MOST_YAW)))
    # nobody stops at once: else a hand that pauses would look like one that lost its block
    here = towards(there, carry[-1].hand, float(table.rng.uniform(0.1, 0.6)))
    falling = Leg("reach", "approach", table.wait(0.4, 0.9), here, 0.0, 0.0, "falls", landing)
    return [*first_wait(table), *before, *carry, falling], here, block


def _beside_plate(table: Table, hand: Vector, near: bool) -> Place:
    """Where on the table, off the plate, a block comes to lie that slips out of a hand."""
    target = table.start.target
    slide = 0.02
    while True:
        angle, radius = float(table.rng.uniform(0, 2 * np.pi)), float(table.rng.uniform(*BESIDE))
        if near:
            x, y = target[0] + radius * np.cos(angle), target[1] + radius * np.sin(angle)
        else:
            x, y = (np.array(hand[:2]) + table.rng.normal(0, slide, 2)).tolist()
        slide = min(slide + 0.002, 0.08)
        inside = TABLE_X[0] <= x <= TABLE_X[1] and TABLE_Y[0] <= y <= TABLE_Y[1]
        if inside and distance((x, y), target) >= BESIDE[0]:
            return float(x), float(y)


def cut_legs(legs: Sequence[Leg], share: float) -> list[Leg]:
    """The legs until a share of their frames is over; the last one then breaks off."""
    left = max(2, round(share * sum(leg.frames for leg in legs)))
    kept: list[Leg] = []
    for leg in legs:
        if left >= leg.frames:
            kept.append(leg)
        elif left > 0:
            done = kept[-1].done if kept and kept[-1].stage == leg.stage else 0.0
            part = left / leg.frames
            kept.append(replace(leg, frames=left, until=part, done=done + part * (leg.done - done)))
        left -= leg.frames
    return kept


def end_of(hand: Vector, legs: Sequence[Leg]) -> Vector:
    """Where legs that begin with a hand somewhere leave it."""
    for leg in legs:
        hand = position_at(hand, leg)
    return hand


def without_block(legs: Sequence[Leg]) -> list[Leg]:
    """The same moves of an empty hand."""
    return [replace(leg, block="rests") for leg in legs]


def towards(hand: Vector, other: Vector, share: float) -> Vector:
    """The point at a share of the way from one to another."""
    x, y, z = (a + share * (b - a) for a, b in zip(hand, other, strict=True))
    return x, y, z


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Metres between two points."""
    return float(np.linalg.norm(np.array(a) - np.array(b)))


def _completed(legs: Sequence[Leg]) -> list[Leg]:
    """The legs of a whole stage: the share that is done is that of its time."""
    ends = np.cumsum([leg.frames for leg in legs])
    return [replace(leg, done=float(end / ends[-1])) for leg, end in zip(legs, ends, strict=True)]
