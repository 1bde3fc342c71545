"""What happens in an episode: a random layout of the table, and the legs of a demonstration or a rollout of some kind.

Demonstrations end with the block on the plate: `clean`, with a `hesitation`, with a `misgrasp` that is seen when the hand
rises, with an `empty carry` (the same, seen near the plate only), or with a `drop`. Rollouts may end otherwise: OUTCOMES.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sarm_ray.demo.motion import CONTACT, Leg, Motion, trace
from sarm_ray.demo.stages import (
    BESIDE,
    CARRIED,
    HOVER,
    Place,
    Table,
    carry_legs,
    cut_legs,
    draw_layout,
    end_of,
    first_wait,
    legs_of_a_miss,
    legs_to_end,
    legs_until_carry,
    legs_until_drop,
    place_legs,
    reach_legs,
    towards,
    without_block,
)

OUTCOMES = {
    "clean": "success",
    "hesitation": "success",
    "misgrasp": "success",
    "empty carry": "success",
    "drop": "success",
    "left beside": "partial",
    "stopped midway": "partial",
    "phantom carry": "failure",
    "never grasps": "failure",
    "dropped and idle": "failure",
    "knocked away": "failure",
}
PUSH = 0.10  # metres that a block is knocked away


@dataclass(frozen=True)
class Episode:
    """A planned episode.

    Args:
        kind: a key of OUTCOMES.
        tempo: speed of its moves; 1 is usual.
        target: (x, y) of the plate's centre, metres.
        motion: the world frame by frame.
    """

    kind: str
    tempo: float
    target: Place
    motion: Motion

    @property
    def outcome(self) -> str:
        """`success`, `partial` or `failure`."""
        return OUTCOMES[self.kind]


def plan_episode(kind: str, tempo: float, rng: np.random.Generator) -> Episode:
    """Draw a layout, and plan an episode on it.

    Args:
        kind: a key of OUTCOMES.
        tempo: speed of the moves; 1 is usual. Waits do not depend on it.
        rng: source of all chance.
    """
    table = Table(rng, tempo, draw_layout(rng))
    return Episode(kind, tempo, table.start.target, trace(table.start, _PLANS[kind](table)))


# ------------------------------------------------------------------------------------------------- demonstrations


def _clean(table: Table) -> list[Leg]:
    return [*first_wait(table), *legs_to_end(table, table.start.hand, table.start.block)]


def _hesitation(table: Table) -> list[Leg]:
    """One long move stops on its way for a second or more."""
    legs = _clean(table)
    subtask = table.rng.choice(("approach", "move to plate", "move to plate", "lower"))
    chosen = max(k for k, leg in enumerate(legs) if leg.subtask == subtask)
    leg, before = legs[chosen], legs[chosen - 1]
    done = before.done if before.stage == leg.stage else 0.0
    share = float(table.rng.uniform(0.35, 0.7))
    frames = max(2, round(share * leg.frames))
    straight = replace(leg, bow=(0.0, 0.0, 0.0))
    there = towards(before.hand, leg.hand, share)
    first = replace(straight, frames=frames, hand=there, done=done + share * (leg.done - done))
    second = replace(straight, frames=max(2, leg.frames - frames))
    wait = replace(first, frames=table.wait(1.0, 2.2))
    return [*legs[:chosen], first, wait, second, *legs[chosen + 1 :]]


def _misgrasp(table: Table) -> list[Leg]:
    legs = legs_of_a_miss(table)
    x, y, _ = legs[-1].hand
    up = (x, y, HOVER if table.rng.random() < 0.5 else CARRIED)
    rising = Leg("reach", "approach", table.frames(0.7), up, 0.0, 0.0)
    looking = replace(rising, frames=table.wait(0.2, 0.6))
    return [*legs, rising, looking, *legs_to_end(table, up, table.start.block)]


def _empty_carry(table: Table) -> list[Leg]:
    """An empty gripper is led to the plate, or nearly, may even be lowered and opened there, and goes back."""
    legs = legs_of_a_miss(table)
    carry = carry_legs(table, legs[-1].hand)
    if table.rng.random() < 0.5:
        carry += place_legs(table, carry[-1].hand)[:2]
    else:
        carry = cut_legs(carry, float(table.rng.uniform(0.7, 1.0)))
    here = end_of(legs[-1].hand, carry)
    # whoever annotates sees at once that the hand is empty: it is on its way to the block again
    empty = [replace(leg, stage="reach", subtask="approach", done=0.0) for leg in without_block(carry)]
    looking = Leg("reach", "approach", table.wait(0.3, 0.8), here, empty[-1].opening, 0.0)
    return [*legs, *empty, looking, *legs_to_end(table, here, table.start.block)]


def _drop(table: Table) -> list[Leg]:
    legs, here, block = legs_until_drop(table, (0.2, 0.8))
    return [*legs, *legs_to_end(table, here, block)]


# ------------------------------------------------------------------------------------------------------- rollouts


def _left_beside(table: Table) -> list[Leg]:
    legs, here, _ = legs_until_drop(table, (0.8, 1.0), near=True)
    home = Leg("reach", "approach", table.frames(1.6), towards(here, table.start.hand, 0.8), 1.0, 0.0)
    return [*legs, home, replace(home, frames=table.wait(0.3, 1.0))]


def _stopped_midway(table: Table) -> list[Leg]:
    legs = [*first_wait(table), *legs_until_carry(table, table.start.hand, table.start.block)]
    carry = cut_legs(carry_legs(table, legs[-1].hand), float(table.rng.uniform(0.35, 0.85)))
    here = end_of(legs[-1].hand, carry)
    wait = Leg("carry", carry[-1].subtask, table.wait(2.0, 3.5), here, 0.0, carry[-1].done, "held")
    return [*legs, *carry, wait]


def _phantom_carry(table: Table) -> list[Leg]:
    """Everything as in a success, but without the block: only the pictures tell."""
    legs = legs_of_a_miss(table)
    carry = carry_legs(table, legs[-1].hand)
    return [*legs, *without_block([*carry, *place_legs(table, carry[-1].hand)])]


def _never_grasps(table: Table) -> list[Leg]:
    legs, here = first_wait(table), table.start.hand
    for _ in range(int(table.rng.integers(2, 4))):
        angle, radius = float(table.rng.uniform(0, 2 * np.pi)), float(table.rng.uniform(0.02, 0.07))
        x, y = table.start.block[0] + radius * np.cos(angle), table.start.block[1] + radius * np.sin(angle)
        tries = reach_legs(table, here, (x, y), height=float(table.rng.uniform(0.095, 0.11)))
        here = (x, y, float(table.rng.uniform(0.13, 0.16)))
        up = Leg("reach", "approach", table.frames(0.8), here, 1.0, 0.5)
        legs += [*tries, up, replace(up, frames=table.wait(0.2, 1.0))]
    home = Leg("reach", "approach", table.frames(1.4), towards(here, table.start.hand, 0.9), 1.0, 0.0)
    return [*(replace(leg, done=min(leg.done, 0.5)) for leg in legs), home]


def _dropped_and_idle(table: Table) -> list[Leg]:
    legs, here, _ = legs_until_drop(table, (0.2, 0.7))
    aside = towards(here, table.start.hand, float(table.rng.uniform(0.1, 0.4)))
    opening = float(table.rng.integers(0, 2))
    return [*legs, Leg("reach", "approach", table.wait(2.0, 3.5), aside, opening, 0.0)]


def _knocked_away(table: Table) -> list[Leg]:
    """The hand comes down beside the block, closed, and pushes it away."""
    block, away = np.array(table.start.block), _away_from_plate(table)
    first, last = ((block + way * away).tolist() for way in (-0.085, PUSH - CONTACT))
    legs = [*first_wait(table), *reach_legs(table, table.start.hand, (first[0], first[1]), 0.04)]
    legs = [*legs[:-1], replace(legs[-1], opening=0.0, done=0.8)]
    push = Leg("reach", "descend", table.frames(1.1), (last[0], last[1], 0.04), 0.0, 0.8, "pushed")
    up = Leg("reach", "approach", table.frames(0.9), (last[0], last[1], CARRIED), 1.0, 0.0)
    home = replace(up, frames=table.frames(1.2), hand=towards(up.hand, table.start.hand, 0.7))
    return [*legs, push, up, home, replace(home, frames=table.wait(0.3, 1.2))]


def _away_from_plate(table: Table) -> np.ndarray:
    """(2,) a direction in which the block can be pushed without meeting the plate or leaving the picture."""
    angles = np.arange(0, 2 * np.pi, np.pi / 18)
    ways = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    last = np.array(table.start.block) + PUSH * ways
    clear = np.linalg.norm(last - table.start.target, axis=1) - BESIDE[0]
    inside = (np.abs(last[:, 0]) < 0.19) & (last[:, 1] > -0.04) & (last[:, 1] < 0.21)
    good = np.flatnonzero(inside & (clear > 0.05))
    return ways[table.rng.choice(good) if len(good) else np.where(inside, clear, -np.inf).argmax()]


_PLANS: dict[str, Callable[[Table], list[Leg]]] = {
    "clean": _clean,
    "hesitation": _hesitation,
    "misgrasp": _misgrasp,
    "empty carry": _empty_carry,
    "drop": _drop,
    "left beside": _left_beside,
    "stopped midway": _stopped_midway,
    "phantom carry": _phantom_carry,
    "never grasps": _never_grasps,
    "dropped and idle": _dropped_and_idle,
    "knocked away": _knocked_away,
}
