"""RA-BC as the page's slider needs it: sums between the values that kappa can take there, from which every figure follows.

Kappa takes the values `edges`. Deltas of at least 0 are counted in bins: bin 0 holds those of 0, bin j those above edge
j - 1 and up to edge j, the last one those above the last edge. With kappa at edge k the bins 0 to k have soft weights and
the others weigh 1, so the page's figures are `core.rabc.summarize_weights`'s, to the digits that are written.
"""

import shlex
from typing import Any

import numpy as np

from sarm_ray.core.rabc import (
    EDGES_PER_UNIT,
    HEALTHY_MEAN_WEIGHT,
    LEROBOT_KAPPA,
    DeltaDistribution,
    summarize_weights,
)

NUM_EDGES = 1000
SLIDER_SHARE = 0.99  # the slider ends at this quantile of the deltas


def weights_object(distribution: DeltaDistribution, chunk_size: int, progress: str, head: str) -> dict[str, Any]:
    """What the page's RA-BC panel is made from.

    Args:
        distribution: of a dataset's deltas, one at least.
        chunk_size: the horizon in frames.
        progress, head: the file and its head that lerobot-train is to use.

    Returns:
        flags: of lerobot-train, quoted for a shell; kappa's comes after them.
        chunk_size; healthy: the lowest and the highest mean weight that is.
        mean, std: of the deltas. frames, nan, falling: how many there are.
        edges: kappa in millionths, ascending ints.
        count, soft, zero, one: of each bin, its deltas, the sum of their soft weights, and how many of those are 0 and 1.
        presets: name and position in edges, of LeRobot's kappa, of the 75th percentile, and of those that give
            TARGET_MEAN_WEIGHTS. start: the position to begin with.
    """
    summary = summarize_weights(distribution, LEROBOT_KAPPA)
    named = {"LeRobot's": LEROBOT_KAPPA, "auto": summary.auto_kappa}
    named |= {f"weight {target:g}": kappa for target, kappa in summary.kappa_for.items() if kappa is not None}
    micros = {name: round(kappa * EDGES_PER_UNIT) for name, kappa in named.items()}
    highest = max(round(distribution.quantile(SLIDER_SHARE) * EDGES_PER_UNIT), NUM_EDGES)
    step = -(-highest // NUM_EDGES)
    edges = np.unique([*range(0, min(highest + step, EDGES_PER_UNIT + 1), step), *micros.values()])
    count = _bin_counts(distribution)
    soft = distribution.soft_weights()
    starts = np.concatenate([[0], edges + 1])
    flags = {"type": "rabc", "progress_path": progress, "head_mode": head}
    return {
        "flags": [shlex.quote(f"--sample_weighting.{name}={value}") for name, value in flags.items()],
        "chunk_size": chunk_size,
        "mean": distribution.mean,
        "std": distribution.std,
        "frames": distribution.num_frames,
        "nan": distribution.num_nan,
        "falling": distribution.num_falling,
        "healthy": list(HEALTHY_MEAN_WEIGHT),
        "edges": edges.tolist(),
        "count": np.add.reduceat(count, starts).tolist(),
        "soft": np.add.reduceat(soft * count, starts).round(3).tolist(),
        "zero": np.add.reduceat(np.where(soft == 0, count, 0), starts).tolist(),
        "one": np.add.reduceat(np.where(soft == 1, count, 0), starts).tolist(),
        "presets": [[name, int(np.searchsorted(edges, micro))] for name, micro in micros.items()],
        "start": int(np.searchsorted(edges, micros["LeRobot's"])),
    }


def _bin_counts(distribution: DeltaDistribution) -> np.ndarray:
    """Deltas in each of the distribution's bins: (bins,) int64, one bin more than it has edges."""
    rising = distribution.num_valid - distribution.num_falling
    above = np.concatenate([[rising], distribution.count_above(), [0]])
    return -np.diff(above)
