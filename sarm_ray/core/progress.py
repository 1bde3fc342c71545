"""From stage and tau to progress in [0, 1]: LeRobot's breakpoints, and interpolation between computed frames."""

import numpy as np


def stage_breakpoints(num_stages: int, proportions: list[float] | None) -> np.ndarray:
    """Progress at which each stage begins.

    Args:
        num_stages: K.
        proportions: K mean shares of an episode's duration, or None for equal shares.

    Returns:
        (K + 1,) float64 from 0 to 1: cumulated proportions, renormalised when their sum is off by more than 1e-6, the
        last one forced to 1 (LeRobot's normalize_stage_tau; paper formula (1)).

    Raises:
        ValueError: another number of proportions than stages, or a negative or non-finite one.
    """
    shares = np.full(num_stages, 1 / num_stages) if proportions is None else np.asarray(proportions, dtype=np.float64)
    if shares.shape != (num_stages,):
        raise ValueError(f"{num_stages} stages need {num_stages} temporal proportions, not {shares.size}")
    if not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
        raise ValueError(f"temporal proportions must be positive numbers, not {shares.tolist()}")
    if abs(shares.sum() - 1) > 1e-6:
        shares = shares / shares.sum()
    points = np.concatenate([[0.0], np.cumsum(shares)])
    points[-1] = 1.0
    return points


def normalize_progress(stage_tau: np.ndarray, breakpoints: np.ndarray) -> np.ndarray:
    """Progress of y = stage + tau.

    Args:
        stage_tau: (...) float, y in 0..K; NaN stays NaN.
        breakpoints: (K + 1,) float64.

    Returns:
        (...) float32 in [0, 1]: P_k + (y - k)(P_{k+1} - P_k).
    """
    y = np.asarray(stage_tau, dtype=np.float64)
    return np.interp(y, np.arange(len(breakpoints)), breakpoints).astype(np.float32)


def interpolate_progress(computed: np.ndarray, values: np.ndarray, length: int) -> np.ndarray:
    """Every frame's progress from that of some.

    A frame between two computed ones is interpolated linearly; where either neighbour is NaN it is NaN: interpolation
    never bridges a hole (LeRobot's np.interp drops the NaN and does).

    Args:
        computed: (k,) int64, ascending, first 0 and last length - 1.
        values: (k,) float32.
        length: frames of the episode.

    Returns:
        (length,) float32; computed frames keep their value bit for bit.
    """
    if len(computed) == length:
        return np.asarray(values, dtype=np.float32)
    frames = np.arange(length)
    right = np.searchsorted(computed, frames)
    left = np.maximum(right - (computed[right] != frames), 0)
    weight = (frames - computed[left]) / np.maximum(computed[right] - computed[left], 1)
    low, high = values[left].astype(np.float64), values[right].astype(np.float64)
    return np.where(left == right, values[right], low + weight * (high - low)).astype(np.float32)
