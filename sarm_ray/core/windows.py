"""Which frames SARM looks at around a frame: the one window gatherer of train, score and serve.

A window has num_slots = n_obs_steps + 1 frames. LeRobot's is centred (readout in the middle slot, frames outside the
episode clamped to its ends). `past` is ours: the last slot is the frame itself, slot 0 is pinned to the episode's first
frame, and while there is less history than the window wants, the slots spread evenly over what there is.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sarm_ray.core.episodes import pack_frames


@dataclass(frozen=True)
class Window:
    """Shape of SARM's observation window.

    Args:
        n_obs_steps: LeRobot's name; the window has one slot more. Even.
        frame_gap: distance of neighbouring slots, in frames of the data it is applied to.
        kind: `centered` (LeRobot) or `past`.
        live: cut the future at the scored frame, as a robot would have seen it: later slots repeat that frame. LeRobot's
            centred window otherwise looks n_obs_steps / 2 gaps ahead.
        backwards: look at the episode played backwards; frames keep the numbers that they have in the episode.

    Raises:
        ValueError: odd or non-positive n_obs_steps (LeRobot loses a frame silently there), frame_gap below 1.
    """

    n_obs_steps: int = 8
    frame_gap: int = 30
    kind: Literal["centered", "past"] = "centered"
    live: bool = False
    backwards: bool = False

    def __post_init__(self) -> None:
        if self.n_obs_steps < 2 or self.n_obs_steps % 2:
            raise ValueError(f"n_obs_steps must be even and at least 2, not {self.n_obs_steps}")
        if self.frame_gap < 1:
            raise ValueError(f"frame_gap must be at least 1 frame, not {self.frame_gap}")
        if self.kind not in ("centered", "past"):
            raise ValueError(f"window must be centered or past, not {self.kind!r}")

    @property
    def num_slots(self) -> int:
        return self.n_obs_steps + 1

    @property
    def readout_slot(self) -> int:
        """The slot that shows the scored frame."""
        return self.n_obs_steps // 2 if self.kind == "centered" else self.n_obs_steps


def gap_in_frames(frame_gap: int, training_fps: float | None, data_fps: float) -> int:
    """The checkpoint's gap at the data's frame rate: converted by time and rounded; in frames where no rate is on record."""
    if training_fps is None:
        return frame_gap
    return max(1, round(frame_gap * data_fps / training_fps))


def window_slots(frames: np.ndarray, length: int | np.ndarray, window: Window) -> np.ndarray:
    """The frames in each window.

    Args:
        frames: (B,) int64, scored frames, counted inside the episode, all in 0..length-1.
        length: frames of the episode, or (B,) int64 where each window is of another one.
        window: its shape.

    Returns:
        (B, num_slots) int64, frames counted inside the episode. Source: LeRobot's observation_delta_indices, or
        opensarm's past window.
    """
    if window.backwards:
        last = np.reshape(length, (-1, 1)) - 1
        return last - window_slots(last[:, 0] - frames, length, replace(window, backwards=False))
    steps = np.arange(window.num_slots)
    if window.kind == "centered":
        slots = frames[:, None] + (steps - window.readout_slot)[None] * window.frame_gap
        last = frames[:, None] if window.live else np.reshape(length, (-1, 1)) - 1
        return np.clip(slots, 0, last)
    spaced = frames[:, None] - (window.n_obs_steps - steps)[None] * window.frame_gap
    spread = np.rint(frames[:, None] * steps[None] / window.n_obs_steps).astype(np.int64)
    slots = np.where(frames[:, None] >= window.n_obs_steps * window.frame_gap, spaced, spread)
    slots[:, 0] = 0
    return slots


def computed_frames(length: int, stride: int) -> np.ndarray:
    """Frames whose progress is computed, not interpolated: every stride-th and the last one. (k,) int64."""
    frames = np.arange(0, length, stride)
    return frames if frames[-1] == length - 1 else np.append(frames, length - 1)


def needed_frames(length: int, stride: int, window: Window) -> np.ndarray:
    """Which frames some window needs: (length,) bool. These alone are decoded and encoded."""
    mask = np.zeros(length, dtype=bool)
    mask[window_slots(computed_frames(length, stride), length, window)] = True
    return mask


def computed_mask(length: int, stride: int) -> np.ndarray:
    """`computed_frames` as (length,) bool."""
    mask = np.zeros(length, dtype=bool)
    mask[computed_frames(length, stride)] = True
    return mask


def bitmaps_by_length(lengths: np.ndarray, mask_of_length) -> np.ndarray:
    """Bitmaps of all chunks of many episodes, each different length worked out once.

    Args:
        lengths: (N,) int64, in the order of the chunk plan.
        mask_of_length: length -> (length,) bool.

    Returns:
        (C, BITMAP_BYTES) uint8, in the order of `plan_chunks`.
    """
    packed = {int(length): pack_frames(mask_of_length(int(length))) for length in np.unique(lengths)}
    return np.concatenate([packed[int(length)] for length in lengths])


def cheaper_stride(stride: int, window: Window, length: int = 10_000) -> int | None:
    """The next larger stride that needs clearly fewer frames than `stride`, or None.

    A stride that divides frame_gap needs 1/stride of the frames, another one about 1/gcd(stride, frame_gap).
    """
    share = needed_frames(length, stride, window).mean()
    for candidate in range(stride + 1, window.frame_gap + 1):
        if needed_frames(length, candidate, window).mean() < 0.75 * share:
            return candidate
    return None
