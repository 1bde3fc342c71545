"""Random numbers that are a pure function of (seed, epoch, stream, frame): the same on any rank, worker or resume.

A counter-based generator: SplitMix64, whose n-th output is a hash of n, started at a hash of the other keys. A frame's
draws therefore do not depend on which batch it is in, or where. None of it is numpy's Generator, whose outputs may
change with numpy's version (NEP 19): a run that is resumed elsewhere must draw what it would have drawn.
"""

from enum import IntEnum

import numpy as np

WORD = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's step: 2^64 / golden ratio, odd


class Stream(IntEnum):
    """What a draw is for, each a sequence of its own. Never renumber: that would change every run."""

    SHUFFLE = 0
    REWIND = 1
    REWIND_STEPS = 2
    FUTURE_CUT = 3
    FUTURE_CUT_AT_EDGE = 4
    FUTURE_CUT_SLOT = 5
    PAST_CUT = 6
    PAST_CUT_SLOT = 7
    PERTURBATION = 8
    PHRASE = 9
    TEACHER_FORCING = 10


def uniform(seed: int, epoch: int, index: np.ndarray, stream: int) -> np.ndarray:
    """Draws between 0 and 1.

    Args:
        seed, epoch, stream: any integers, taken modulo 2^64. Different streams (`Stream`) are independent.
        index: (B,) int64, global frame indices.

    Returns:
        (B,) float64 in [0, 1), multiples of 2^-53.
    """
    return (_words(seed, epoch, index, stream) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, stream: int, n: int) -> np.ndarray:
    """A random order of 0..n-1: (n,) int64. Keys as for `uniform`, which should not draw from the same stream."""
    return np.argsort(_words(seed, epoch, np.arange(n), stream), kind="stable")


def _words(seed: int, epoch: int, index: np.ndarray, stream: int) -> np.ndarray:
    """64 random bits per index: (B,) int64 -> (B,) uint64."""
    state = np.zeros(1, dtype=np.uint64)
    for key in (seed, epoch, stream):  # hashed in turn: no sum or product of keys can coincide
        state = _mixed(state + np.uint64((int(key) + 1) * GOLDEN & WORD))
    return _mixed(state + index.astype(np.uint64) * np.uint64(GOLDEN))


def _mixed(words: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014; constants of Stafford's Mix13): (B,) uint64, one to one."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
