"""The baseline of a single frame: ridge regression from its features to progress."""

from dataclasses import dataclass

import numpy as np

RIDGE = 1e-3


@dataclass(frozen=True)
class Probe:
    """A fitted one.

    Args:
        mean, std: (D,) float64, of the features that it was fitted on.
        weights: (D + 1,) float64, the last one the constant.
    """

    mean: np.ndarray
    std: np.ndarray
    weights: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Progress of frames: (F, D) -> (F,) float32 in [0, 1]."""
        inputs = np.column_stack([(features - self.mean) / self.std, np.ones(len(features))])
        return np.clip(inputs @ self.weights, 0, 1).astype(np.float32)


def fit_probe(features: np.ndarray, progress: np.ndarray) -> Probe:
    """Fit progress by features, both sides in float64.

    Args:
        features: (F, D).
        progress: (F,), at least one frame.
    """
    features = features.astype(np.float64)
    mean, std = features.mean(0), features.std(0) + 1e-6
    inputs = np.column_stack([(features - mean) / std, np.ones(len(features))])
    gram = inputs.T @ inputs + RIDGE * len(inputs) * np.eye(inputs.shape[1])
    return Probe(mean, std, np.linalg.solve(gram, inputs.T @ progress.astype(np.float64)))
