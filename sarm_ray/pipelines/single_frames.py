"""The baseline of a single frame, on stored features: a linear probe fitted on the training dataset."""

import numpy as np

from sarm_ray.core.probe import Probe, fit_probe
from sarm_ray.pipelines.frame_features import StoredFeatures
from sarm_ray.pipelines.score_plan import ScorePlan
from sarm_ray.pipelines.truths import HeadTruths

PROBE_FRAMES = 8192


def fit_single_frames(trained: ScorePlan, truths: dict[str, HeadTruths]) -> dict[str, Probe]:
    """A probe for each head that has truth, from at most PROBE_FRAMES frames spread evenly over all annotated episodes.

    Args:
        trained: of the training dataset, whose features must be in the store.
        truths: of that dataset, by head.
    """
    data, stored = trained.ingest, StoredFeatures(trained.cameras)
    lengths = data.dataset.length
    rows = [row for row in data.rows.tolist() if any(truth.annotated[row] for truth in truths.values())]
    every = -(-int(lengths[rows].sum()) // PROBE_FRAMES)
    inputs: dict[str, list[np.ndarray]] = {head: [] for head in truths}
    targets: dict[str, list[np.ndarray]] = {head: [] for head in truths}
    before = 0
    for row in rows:
        length = int(lengths[row])
        frames = np.arange(-before % every, length, every)
        before += length
        if not len(frames):
            continue
        features, present = stored.read(row, frames)
        for head, own in truths.items():
            truth = own.of_episode(row, length)
            if truth is not None:
                inputs[head].append(features[present])
                targets[head].append(truth.progress[frames[present]])
    return {
        head: fit_probe(np.concatenate(inputs[head]), np.concatenate(targets[head]))
        for head in truths
        if sum(map(len, inputs[head]))
    }


def predict_single_frames(
    probes: dict[str, Probe], stored: StoredFeatures, row: int, length: int
) -> dict[str, np.ndarray]:
    """Progress of an episode's frames by the probes: head -> (L,) float32, NaN where a feature is missing."""
    if not probes:
        return {}
    features, present = stored.read(row, np.arange(length))
    return {head: np.where(present, probe.predict(features), np.nan) for head, probe in probes.items()}
