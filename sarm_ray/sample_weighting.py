"""RA-BC for a training loop of one's own: the weights of a batch, or a sampler that draws frames by their weight.

    weights = RABCWeights("sarm_progress.parquet", chunk_size=50, kappa=0.0155)

Weight the loss, as lerobot-train does:

    factors, logged = weights.compute_batch_weights(batch["index"])
    loss = (factors * loss_of_each_sample).mean()

or draw frames in proportion to their weight, and leave the loss alone:

    sampler = ProgressSampler(weights, rank=rank, world_size=world_size)
    loader = DataLoader(dataset, batch_size, sampler=sampler)
    for epoch in range(num_epochs):
        sampler.set_epoch(epoch)

Never both: that would weigh every frame twice. Weight the loss to compare with LeRobot. Draw where decoding costs (of a
frame that weighs 0 nothing is decoded, and RA-BC gives that weight to half of many datasets), where the policy has no
loss per sample (ACT and diffusion in LeRobot), and on several processes: each divides by the weights of its own batch
when the loss is weighted, so that a frame counts more in the poorer batch, while drawn frames all count the same.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from sarm_ray.core.draws import uniform
from sarm_ray.core.rabc import (
    EPSILON,
    FALLBACK_WEIGHT,
    LEROBOT_KAPPA,
    DeltaDistribution,
    grade_weights,
    progress_deltas,
    rabc_weights,
)
from sarm_ray.data.outcomes import read_outcomes
from sarm_ray.data.progress_io import read_progress_blocks
from sarm_ray.errors import DatasetError

_STREAM = 1 << 24  # of core.draws; training a SARM draws from others
_BLOCK = 2**16  # frames drawn at once


class RABCWeights:
    """The weight of every frame of a progress file, LeRobot's RABCWeights to the last bit. 4 bytes per frame.

    Args:
        progress_path: sarm_progress.parquet, ours or LeRobot's; a local path or a URL.
        chunk_size: horizon in frames: the policy's chunk_size.
        head_mode: `sparse` or `dense`.
        kappa: deltas above it weigh 1; `sarm-ray weights` says which is good.
        epsilon: smallest standard deviation, and added to sums that are divided by.
        fallback_weight: of frames without a delta (NaN progress now or at the horizon, or not in the file).
        labels: CSV of episode_index and outcome, or episode -> grade from 0 (failure) to 1 (success): the weights of an
            episode are multiplied by its grade, and stay as they are where there is none. LeRobot has no such thing.

    Attributes:
        raw_weights: (N,) float32, weights of the file's frames in their order, before a batch is normalised.

    Raises:
        DatasetError: a file that cannot be read, lacks the head or has no rows; labels that cannot be used.
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        progress_path: str | os.PathLike[str],
        chunk_size: int,
        head_mode: str = "sparse",
        kappa: float = LEROBOT_KAPPA,
        epsilon: float = EPSILON,
        fallback_weight: float = FALLBACK_WEIGHT,
        labels: str | os.PathLike[str] | Mapping[int, float] | None = None,
    ):
        if not kappa >= 0:
            raise ValueError(f"kappa must be at least 0, not {kappa}")
        if not epsilon > 0:
            raise ValueError(f"epsilon must be above 0, not {epsilon}")
        if not 0 <= fallback_weight < np.inf:
            raise ValueError(f"fallback_weight must be at least 0 and finite, not {fallback_weight}")
        path, grades = os.fspath(progress_path), _grades(labels)
        self.chunk_size, self.head_mode, self.kappa = chunk_size, head_mode, kappa
        self._epsilon, self._fallback_weight = epsilon, fallback_weight
        distribution, self._num_scored = DeltaDistribution(epsilon), 0
        deltas, episodes, lengths, first_index = [], [], [], []
        for block in read_progress_blocks(path, head_mode):
            own, ends = progress_deltas(block.progress, block.lengths, chunk_size), np.cumsum(block.lengths)
            distribution.add(own)
            deltas.append(own.astype(np.float32))
            self._num_scored += int((~np.isnan(block.progress)).sum())
            episodes.append(block.episode_index[ends - 1])
            lengths.append(block.lengths)
            first_index.append(block.index[ends - block.lengths])
        if not deltas:
            raise DatasetError(f"{path}: no rows")
        self.delta_mean, self.delta_std = distribution.mean, distribution.std
        weights = rabc_weights(np.concatenate(deltas), self.delta_mean, self.delta_std, kappa, epsilon, fallback_weight)
        if grades is not None:
            known = np.concatenate(episodes)
            if grades.keys().isdisjoint(known.tolist()):
                raise DatasetError(f"{path}: none of its episodes has a label")
            weights = grade_weights(weights, known, np.concatenate(lengths), grades)
        self.raw_weights = weights
        self._index, self._length = np.concatenate(first_index), np.concatenate(lengths)
        self._row = np.cumsum(self._length) - self._length

    @property
    def index(self) -> np.ndarray:
        """Global indices of the frames that have `raw_weights`: (N,) int64, ascending."""
        return np.repeat(self._index - self._row, self._length) + np.arange(len(self.raw_weights))

    def compute_batch_weights(self, indices: Any) -> tuple[torch.Tensor, dict[str, float]]:
        """Factors for the losses of a batch's samples, and what LeRobot logs about them.

        Args:
            indices: (B,) integers, global frame indices, what LeRobot's batches have under `index`: a tensor, an array or
                a list, one index at least.

        Returns:
            (B,) float32 on the device of `indices`: raw weights times B / (their sum + epsilon), all 0 where each is;
            and, of the raw weights, `mean_weight`, `num_zero_weight` and `num_full_weight` (those that are 1).

        Raises:
            ValueError: no indices, or not a vector of integers.
        """
        raw = self.lookup(indices)
        if not len(raw):
            raise ValueError("a batch without indices has no weights")
        stats = {
            "mean_weight": float(raw.mean()),
            "num_zero_weight": int((raw == 0).sum()),
            "num_full_weight": int((raw == 1).sum()),
        }
        weights = torch.from_numpy(raw)
        weights = weights * len(raw) / (weights.sum() + self._epsilon)
        return weights.to(indices.device if isinstance(indices, torch.Tensor) else "cpu"), stats

    def lookup(self, indices: Any) -> np.ndarray:
        """Raw weights of frames: (B,) integers, global frame indices -> (B,) float32.

        Raises:
            ValueError: not a vector of integers.
        """
        wanted = indices.cpu().numpy() if isinstance(indices, torch.Tensor) else np.asarray(indices)
        if wanted.ndim != 1 or (len(wanted) and not np.issubdtype(wanted.dtype, np.integer)):
            raise ValueError(f"indices must be a vector of integers, not {wanted.dtype} of shape {wanted.shape}")
        wanted = wanted.astype(np.int64)
        episode = np.maximum(np.searchsorted(self._index, wanted, side="right") - 1, 0)
        frame = wanted - self._index[episode]
        known = (frame >= 0) & (frame < self._length[episode])
        row = np.where(known, self._row[episode] + frame, 0)
        return np.where(known, self.raw_weights[row], np.float32(self._fallback_weight))

    def stats(self) -> dict[str, str | int | float]:
        """What LeRobot logs about the dataset: type, num_frames (with progress), chunk_size, head_mode, delta_mean,
        delta_std, kappa.
        """
        return {
            "type": "rabc",
            "num_frames": self._num_scored,
            "chunk_size": self.chunk_size,
            "head_mode": self.head_mode,
            "delta_mean": self.delta_mean,
            "delta_std": self.delta_std,
            "kappa": self.kappa,
        }


class ProgressSampler(Sampler[int]):
    """Draws frames in proportion to their weight, on any number of processes.

    There is one endless sequence of draws for each (seed, epoch), the same whatever the number of processes: rank r gets
    the draws r, r + world_size, r + 2 world_size, ... All ranks get as many, so that none waits for another at the end;
    where num_samples is no multiple of world_size, that is a draw more for some. Frames of weight 0 are never drawn.

    Args:
        weights: RABCWeights, whose frames are drawn by their global index, or (N,) weights of at least 0, whose positions
            are drawn. A dataset that holds a selection of episodes is indexed by position: give it
            weights.lookup(index of each of its frames).
        num_samples: draws of an epoch, over all ranks; None is as many as there are frames that have any weight.
        rank, world_size: which process this is, and of how many.
        seed: of the draws.
        replacement: False draws no frame twice before all that have any weight were drawn; the weights then decide who
            comes first, so num_samples should be well below their number.

    Raises:
        ValueError: no frame has any weight, a weight that is negative or no number, or an argument out of its range.
    """

    def __init__(
        self,
        weights: RABCWeights | np.ndarray | torch.Tensor,
        num_samples: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        replacement: bool = True,
    ):
        raw = weights.raw_weights if isinstance(weights, RABCWeights) else np.asarray(weights)
        if raw.ndim != 1 or not (np.isfinite(raw) & (raw >= 0)).all():
            raise ValueError("weights must be a vector of finite numbers of at least 0")
        drawable = np.flatnonzero(raw)
        if not len(drawable):
            raise ValueError(f"all of {len(raw):,} weights are 0: there is no frame to draw")
        self._weights = raw[drawable].astype(np.float64)
        self._indices = weights.index[drawable] if isinstance(weights, RABCWeights) else drawable
        self.num_samples = len(drawable) if num_samples is None else num_samples
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        if world_size < 1:
            raise ValueError(f"world_size must be at least 1, not {world_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1} where world_size is {world_size}, not {rank}")
        self.rank, self.world_size, self.seed, self.replacement = rank, world_size, seed, replacement
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the sequence to draw from; without a call every epoch draws the same."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Draws of this rank in an epoch."""
        return -(-self.num_samples // self.world_size)

    def __iter__(self) -> Iterator[int]:
        draw = self._draw_by_weight() if self.replacement else self._draw_each_once()
        for start in range(0, len(self), _BLOCK):
            turn = np.arange(start, min(start + _BLOCK, len(self)), dtype=np.int64)
            yield from self._indices[draw(self.rank + self.world_size * turn)].tolist()

    def _draw_by_weight(self) -> Callable[[np.ndarray], np.ndarray]:
        ends = np.cumsum(self._weights)

        def draw(number: np.ndarray) -> np.ndarray:
            place = np.searchsorted(ends, uniform(self.seed, self.epoch, number, _STREAM) * ends[-1], side="right")
            return np.minimum(place, len(ends) - 1)  # the product may have been rounded up to the end

        return draw

    def _draw_each_once(self) -> Callable[[np.ndarray], np.ndarray]:
        """All frames in the order in which exponential clocks of their rates ring: as if drawn one after the other."""
        frame = np.arange(len(self._weights))
        order = np.argsort(-np.log1p(-uniform(self.seed, self.epoch, frame, _STREAM)) / self._weights, kind="stable")
        return lambda number: order[number % len(order)]


def _grades(labels: str | os.PathLike[str] | Mapping[int, float] | None) -> Mapping[int, float] | None:
    if labels is None:
        return None
    if not isinstance(labels, Mapping):
        return read_outcomes(os.fspath(labels))
    for episode, grade in labels.items():
        if not 0 <= grade <= 1:
            raise ValueError(f"labels: the grade of episode {episode} is {grade}, not between 0 and 1")
    return labels
