"""The order in which training sees the frames: planned, so that it is the same on any number of workers and after a crash.

In each epoch the chunks are permuted and dealt into shuffle pools of POOL_CHUNKS; the frames of a pool are permuted and
cut into global batches, the last one of a pool padded. So every frame is a centre once per epoch, a pool's features are
read once, and batch number s is a pure function of (chunks, seed, s).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sarm_ray.core.draws import Stream, permutation

POOL_CHUNKS = 512
PADDING = -1

_POOL_STREAM = 1 << 16  # the frames of pool p have the stream _POOL_STREAM + p, far from those of `Stream`


class PoolSteps(NamedTuple):
    """Consecutive steps out of one pool.

    Args:
        epoch: counted from 0.
        pool: number in the epoch.
        first_batch: the first one that is used; those before it were done by the run that this one continues.
        num_batches: used ones.
        step: of the first of them, counted over the whole training.
    """

    epoch: int
    pool: int
    first_batch: int
    num_batches: int
    step: int


def plan_steps(
    chunk_lengths: np.ndarray, seed: int, batch_size: int, first_step: int, num_steps: int
) -> list[PoolSteps]:
    """Where the batches of steps first_step..num_steps - 1 come from.

    Args:
        chunk_lengths: (C,) int64, frames of each chunk, all positive.
        seed: of the run.
        batch_size: frames of a global batch.
        first_step: steps that are done already.
        num_steps: of the whole training.
    """
    steps: list[PoolSteps] = []
    for each in _all_steps(chunk_lengths, seed, batch_size):
        if each.step >= num_steps:
            return steps
        skipped = max(first_step - each.step, 0)
        used = min(each.num_batches, num_steps - each.step) - skipped
        if used > 0:
            steps.append(each._replace(first_batch=skipped, num_batches=used, step=each.step + skipped))
    raise AssertionError("epochs never end")


def steps_per_epoch(chunk_lengths: np.ndarray, seed: int, batch_size: int) -> int:
    """Batches of the first epoch; others differ by the padding of their pools."""
    return int(_batches_per_pool(chunk_lengths, seed, 0, batch_size).sum())


def pool_batches(
    chunk_lengths: np.ndarray, seed: int, epoch: int, pool: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The global batches of one pool.

    Returns:
        chunk (N, batch_size) int64 and offset (N, batch_size) int64, the frame's place in its chunk; both PADDING where
        the last batch has no more frames.
    """
    chunks = _pool_chunks(len(chunk_lengths), seed, epoch, pool)
    lengths = chunk_lengths[chunks]
    chunk = np.repeat(chunks, lengths)
    offset = np.arange(len(chunk)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    order = permutation(seed, epoch, _POOL_STREAM + pool, len(chunk))
    padding = np.full(-len(chunk) % batch_size, PADDING, dtype=np.int64)
    batches = [np.concatenate([values[order], padding]).reshape(-1, batch_size) for values in (chunk, offset)]
    return batches[0], batches[1]


def _all_steps(chunk_lengths: np.ndarray, seed: int, batch_size: int) -> Iterator[PoolSteps]:
    step = epoch = 0
    while True:
        for pool, num_batches in enumerate(_batches_per_pool(chunk_lengths, seed, epoch, batch_size).tolist()):
            yield PoolSteps(epoch, pool, 0, num_batches, step)
            step += num_batches
        epoch += 1


def _batches_per_pool(chunk_lengths: np.ndarray, seed: int, epoch: int, batch_size: int) -> np.ndarray:
    order = permutation(seed, epoch, Stream.SHUFFLE, len(chunk_lengths))
    frames = np.add.reduceat(chunk_lengths[order], np.arange(0, len(order), POOL_CHUNKS))
    return -(-frames // batch_size)


def _pool_chunks(num_chunks: int, seed: int, epoch: int, pool: int) -> np.ndarray:
    order = permutation(seed, epoch, Stream.SHUFFLE, num_chunks)
    return order[pool * POOL_CHUNKS : (pool + 1) * POOL_CHUNKS]
