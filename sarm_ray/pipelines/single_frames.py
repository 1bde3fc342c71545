"""The baseline of a single frame, on stored features: a linear probe fitted on the training dataset."""

import numpy as np

from sarm_ray.core.probe import Probe, fit_probe
from sarm_ray.data.outcomes import dataset_outcomes
from sarm_ray.pipelines.frame_features import StoredFeatures
from sarm_ray.pipelines.runtime import call_aside
from sarm_ray.pipelines.score_plan import ScorePlan
from sarm_ray.pipelines.truths import read_truths

PROBE_FRAMES = 8192


def fit_single_frames(trained: ScorePlan, plan: ScorePlan) -> dict[str, Probe]:
    """A probe for each head that the training dataset has truth for, from at most PROBE_FRAMES frames spread evenly.

    Args:
        trained: of the training dataset, whose features must be in the store.
        plan: of the evaluated one, for its heads.
    """
    return call_aside(_fit, trained, plan.heads)


def predict_single_frames(
    probes: dict[str, Probe], stored: StoredFeatures, row: int, length: int
) -> dict[str, np.ndarray]:
    """Progress of an episode's frames by the probes: head -> (L,) float32, NaN where a feature is missing."""
    if not probes:
        return {}
    features, present = stored.read(row, np.arange(length))
    return {head: np.where(present, probe.predict(features), np.nan) for head, probe in probes.items()}


def _fit(trained: ScorePlan, heads: tuple[str, ...]) -> dict[str, Probe]:
    data = trained.ingest
    dataset, rows = data.dataset, data.rows
    truths = read_truths(dataset, trained.checkpoint.config, heads, rows, dataset_outcomes(dataset, None), [])
    stored = StoredFeatures(trained.cameras)
    every = max(int(dataset.length[rows].sum()) // PROBE_FRAMES, 1)
    inputs: dict[str, list[np.ndarray]] = {head: [] for head in heads}
    targets: dict[str, list[np.ndarray]] = {head: [] for head in heads}
    for row in rows.tolist():
        length = int(dataset.length[row])
        known = {head: truth for head in heads if (truth := truths[head].of_episode(row, length)) is not None}
        if not known:
            continue
        frames = np.arange(0, length, every)
        features, present = stored.read(row, frames)
        for head, truth in known.items():
            inputs[head].append(features[present])
            targets[head].append(truth.progress[frames[present]])
    return {
        head: fit_probe(np.concatenate(inputs[head]), np.concatenate(targets[head]))
        for head in heads
        if sum(map(len, inputs[head]))
    }
