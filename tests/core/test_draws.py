"""Draws are pure functions of their keys, uniform, and unrelated between keys."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.core.draws import GOLDEN, WORD, Stream, permutation, uniform

NUM_DRAWS = 200_000
keys = st.integers(0, 2**70)


def slow_mixed(word: int) -> int:
    """SplitMix64's finaliser as its authors write it, in whole numbers."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31


@given(keys, keys, st.integers(0, 50), st.lists(st.integers(0, 2**62), max_size=20))
def test_uniform_is_the_hash_of_its_keys(seed, epoch, stream, index):
    state = 0
    for key in (seed, epoch, stream):
        state = slow_mixed(state + (key + 1) * GOLDEN & WORD)
    draws = uniform(seed, epoch, np.array(index, dtype=np.int64), stream)
    assert (draws.dtype, draws.shape) == (np.float64, (len(index),))
    assert draws.tolist() == [(slow_mixed(state + i * GOLDEN & WORD) >> 11) / 2**53 for i in index]
    assert ((draws >= 0) & (draws < 1)).all()


def test_splitmix64_of_the_reference():
    """First outputs of splitmix64.c (Vigna) seeded with 1234567."""
    words = [slow_mixed(1234567 + n * GOLDEN & WORD) for n in (1, 2, 3)]
    assert words == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_pinned():
    """Never changes: a resumed run draws what it would have drawn."""
    assert uniform(42, 3, np.array([0, 1, 10**9]), Stream.REWIND).tolist() == [
        0.990494989868823,
        0.9954536013882138,
        0.254714492397337,
    ]
    assert permutation(42, 3, Stream.SHUFFLE, 8).tolist() == [0, 5, 1, 2, 6, 3, 7, 4]


@given(st.integers(0, 99), st.integers(0, 9), st.lists(st.integers(0, 10**9), min_size=1, max_size=30), st.randoms())
def test_a_draw_does_not_depend_on_its_batch(seed, epoch, index, random):
    order = random.sample(range(len(index)), len(index))
    together = uniform(seed, epoch, np.array(index), 0)
    assert uniform(seed, epoch, np.array(index)[order], 0).tolist() == together[order].tolist()
    assert [uniform(seed, epoch, np.array([i]), 0)[0] for i in index] == together.tolist()


def test_draws_are_uniform():
    draws = uniform(0, 0, np.arange(NUM_DRAWS), 0)
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    chi_square = float(((counts - NUM_DRAWS / 100) ** 2 / (NUM_DRAWS / 100)).sum())
    assert 48 < chi_square < 169  # 99 degrees of freedom: outside with probability 1e-5 on either side
    serial = np.corrcoef(draws[:-1], draws[1:])[0, 1]
    assert abs(serial) < 5 / np.sqrt(NUM_DRAWS)


@pytest.mark.parametrize("other", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 0, 1)])
def test_different_keys_are_independent(other):
    """Neighbouring seeds, epochs and streams: no correlation, and no sequence that is another one's, shifted."""
    index = np.arange(NUM_DRAWS)
    one, two = uniform(0, 0, index, 0), uniform(*other[:2], index, other[2])
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(NUM_DRAWS)
    assert not np.intersect1d(one, two).size
    joint = np.histogram2d(one, two, bins=10, range=((0, 1), (0, 1)))[0]
    assert 48 < ((joint - NUM_DRAWS / 100) ** 2 / (NUM_DRAWS / 100)).sum() < 169


def test_keys_do_not_swap():
    draws = [float(uniform(*key[:2], np.array([key[2]]), key[3])[0]) for key in itertools.product(range(4), repeat=4)]
    assert len(set(draws)) == len(draws)


def test_keys_may_be_numpy_or_negative():
    assert uniform(np.int64(7), np.int64(1), np.array([5]), 2) == uniform(7, 1, np.array([5]), 2)
    assert uniform(-1, 0, np.array([5]), 0) == uniform(2**64 - 1, 0, np.array([5]), 0)


@given(keys, keys, st.integers(0, 300))
def test_permutation(seed, epoch, n):
    order = permutation(seed, epoch, 0, n)
    assert (order.dtype, sorted(order.tolist())) == (np.int64, list(range(n)))
    assert permutation(seed, epoch, 0, n).tolist() == order.tolist()


def test_permutations_differ_and_every_order_is_as_likely():
    assert len({tuple(permutation(seed, epoch, 0, 50)) for seed in range(10) for epoch in range(10)}) == 100
    orders = [tuple(permutation(0, epoch, 0, 3)) for epoch in range(6000)]
    counts = np.array([orders.count(order) for order in itertools.permutations(range(3))])
    assert (abs(counts - 1000) < 5 * np.sqrt(6000 * 5 / 36)).all()


def test_every_stream_is_its_own():
    assert len({int(stream) for stream in Stream}) == len(Stream.__members__)
