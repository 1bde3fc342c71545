"""Texts that have nothing to do with a task, for language perturbation: LeRobot's verbs and one to five plain words."""

import numpy as np

from sarm_ray.core.draws import uniform

VERBS = ("move", "grasp", "rotate", "push", "pull", "slide", "lift", "place")
_LINES = (
    "amber anchor apple autumn basket bell blue bottle bridge brown button candle canyon carpet castle chair cloud",
    "coffee copper corner cotton cradle desert dinner drawer early eagle eleven engine evening fabric feather fence",
    "flower forest garden glass gold grape green guitar hammer harbor heavy hidden hollow honey island ivory jacket",
    "kettle ladder lantern lemon letter little magnet marble meadow metal mirror morning narrow needle ocean olive",
    "orange paper pebble pencil pepper pillow planet pocket purple quiet rabbit ribbon river round saddle salt sand",
    "school shadow silver simple small smooth spring square stone summer table thread tower tunnel turtle velvet",
    "violet wagon warm water white window winter wooden yellow",
)
WORDS = tuple(word for line in _LINES for word in line.split())
_STREAM = 1 << 20


def random_phrases(seed: int, count: int) -> list[str]:
    """`count` phrases, the same ones for a seed; source: LeRobot's perturbation, with its Faker words replaced."""
    phrases = []
    for number in range(count):
        draws = uniform(seed, number, np.arange(7), _STREAM)
        num_words = 1 + int(draws[1] * 5)
        words = [WORDS[int(draw * len(WORDS))] for draw in draws[2 : 2 + num_words]]
        phrases.append(" ".join([VERBS[int(draws[0] * len(VERBS))], *words]))
    return phrases
