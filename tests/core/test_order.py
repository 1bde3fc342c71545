"""The planned order: every frame once per epoch, and the same from wherever a run goes on."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarm_ray.core import order
from sarm_ray.core.order import PADDING, PoolSteps, plan_steps, pool_batches, steps_per_epoch

chunk_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(np.array)
seeds, batch_sizes = st.integers(0, 2**40), st.integers(1, 50)


@pytest.fixture(scope="module", autouse=True, params=[512, 3], ids=["one pool", "small pools"])
def pool_chunks(request):
    """Also pools of three chunks, so that an epoch has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "POOL_CHUNKS", request.param)
        yield request.param


def batches_of(lengths: np.ndarray, seed: int, batch_size: int, steps: list[PoolSteps]) -> dict[int, list[tuple]]:
    """Step -> (chunk, offset) of each of its samples."""
    found = {}
    for each in steps:
        chunk, offset = pool_batches(lengths, seed, each.epoch, each.pool, batch_size)
        for number in range(each.num_batches):
            pairs = zip(
                chunk[each.first_batch + number].tolist(), offset[each.first_batch + number].tolist(), strict=True
            )
            assert each.step + number not in found
            found[each.step + number] = list(pairs)
    return found


@given(chunk_lengths, seeds, batch_sizes)
def test_every_frame_is_a_centre_once_per_epoch(pool_chunks, lengths, seed, batch_size):
    for epoch in (0, 1):
        steps = [each for each in plan_steps(lengths, seed, batch_size, 0, 1000) if each.epoch == epoch]
        num_pools = -(-len(lengths) // pool_chunks)
        assert [each.pool for each in steps] == list(range(num_pools))
        seen: Counter = Counter()
        for each in steps:
            chunk, offset = pool_batches(lengths, seed, epoch, each.pool, batch_size)
            assert chunk.shape == offset.shape == (each.num_batches, batch_size)
            assert (chunk.dtype, offset.dtype) == (np.int64, np.int64)
            padded = chunk.ravel() == PADDING
            assert (padded == (offset.ravel() == PADDING)).all()
            assert padded.sum() < batch_size
            assert not padded[: len(padded) - padded.sum()].any()  # only at the end of a pool
            assert len(np.unique(chunk.ravel()[~padded])) <= pool_chunks  # a pool's features are read once
            seen.update(zip(chunk.ravel()[~padded].tolist(), offset.ravel()[~padded].tolist(), strict=True))
        assert seen == {(chunk, offset): 1 for chunk, length in enumerate(lengths) for offset in range(length)}


@given(chunk_lengths, seeds, batch_sizes, st.integers(0, 70), st.integers(0, 60))
def test_a_plan_from_any_step_is_the_tail_of_the_whole_plan(lengths, seed, batch_size, first_step, num_steps):
    whole = batches_of(lengths, seed, batch_size, plan_steps(lengths, seed, batch_size, 0, num_steps))
    assert sorted(whole) == list(range(num_steps))
    steps = plan_steps(lengths, seed, batch_size, first_step, num_steps)
    assert all(each.num_batches > 0 for each in steps)
    assert [each.step for each in steps] == sorted(each.step for each in steps)
    tail = batches_of(lengths, seed, batch_size, steps)
    assert tail == {step: batch for step, batch in whole.items() if step >= first_step}


@given(chunk_lengths, seeds, batch_sizes, st.integers(1, 30))
def test_a_longer_training_begins_with_the_same_batches(lengths, seed, batch_size, num_steps):
    short = batches_of(lengths, seed, batch_size, plan_steps(lengths, seed, batch_size, 0, num_steps))
    long = batches_of(lengths, seed, batch_size, plan_steps(lengths, seed, batch_size, 0, 2 * num_steps))
    assert short == {step: batch for step, batch in long.items() if step < num_steps}


@settings(max_examples=20)
@given(chunk_lengths, seeds, batch_sizes)
def test_the_plan_is_a_function_of_lengths_and_seed(lengths, seed, batch_size):
    plans = [
        batches_of(own, seed, batch_size, plan_steps(own, seed, batch_size, 0, 20)) for own in (lengths, lengths.copy())
    ]
    assert plans[0] == plans[1]


@given(chunk_lengths, seeds, batch_sizes)
def test_steps_per_epoch(lengths, seed, batch_size):
    plan = plan_steps(lengths, seed, batch_size, 0, 2000)
    assert steps_per_epoch(lengths, seed, batch_size) == sum(each.num_batches for each in plan if each.epoch == 0)


def test_epochs_and_seeds_have_orders_of_their_own():
    lengths = np.full(6, 50)
    orders = [pool_batches(lengths, seed, epoch, 0, 10)[1].ravel().tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(each) for each in orders}) == 4
    pools = [tuple(sorted(set(pool_batches(lengths, 0, epoch, 0, 10)[0].ravel().tolist()))) for epoch in range(8)]
    assert (len(set(pools)) > 1) == (order.POOL_CHUNKS < 6)  # chunks are dealt anew in each epoch


def test_pinned(pool_chunks):
    """Never changes: a resumed run sees what it would have seen."""
    lengths = np.array([3, 2, 4, 1, 2])
    steps = plan_steps(lengths, 7, 4, 1, 6)
    expected = {
        512: (
            [(0, 0, 1, 2, 1), (1, 0, 0, 3, 3)],
            {
                1: [(2, 2), (2, 0), (2, 3), (1, 0)],
                2: [(0, 0), (0, 2), (4, 1), (0, 1)],
                3: [(3, 0), (0, 2), (2, 1), (2, 2)],
                4: [(1, 0), (1, 1), (4, 1), (4, 0)],
                5: [(0, 0), (2, 3), (0, 1), (2, 0)],
            },
        ),
        3: (
            [(0, 0, 1, 1, 1), (0, 1, 0, 2, 2), (1, 0, 0, 2, 4)],
            {
                1: [(4, 1), (0, 1), (-1, -1), (-1, -1)],
                2: [(1, 1), (2, 0), (2, 1), (2, 3)],
                3: [(1, 0), (2, 2), (-1, -1), (-1, -1)],
                4: [(3, 0), (0, 2), (4, 1), (4, 0)],
                5: [(0, 0), (0, 1), (-1, -1), (-1, -1)],
            },
        ),
    }[pool_chunks]
    assert ([tuple(each) for each in steps], batches_of(lengths, 7, 4, steps)) == expected
