"""The windows SARM is trained on: cut at either end, rewound, or shown with a text that is not theirs.

All augmentations are choices of frames: image feature, state and target of a slot come from the one frame named here.
(LeRobot's rewound images are 120 frames away from their labels.) Every sample has its own coins, keyed by seed, epoch and
global frame index.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from sarm_ray.core.draws import Stream, uniform
from sarm_ray.core.windows import Window, window_slots

EDGE_SHARE = 0.5  # of the future cuts are at the live edge, the window a robot sees


@dataclass(frozen=True)
class Augmentation:
    """How often a training sample is changed, and how far back it is rewound.

    Args:
        rewind_probability: the window is followed by 1 to max_rewind_steps slots that walk back from its last frame.
        max_rewind_steps: the most of them.
        language_perturbation_probability: the text is replaced, and the target is 0.
        future_cut_probability: the window's later slots repeat an earlier one. Not for a `past` window, which has none.
        past_cut_probability: the window's first slots repeat a later one, as in a recording that starts mid-task.

    Raises:
        ValueError: a probability outside 0..1, or negative max_rewind_steps.
    """

    rewind_probability: float = 0.8
    max_rewind_steps: int = 4
    language_perturbation_probability: float = 0.2
    future_cut_probability: float = 0.25
    past_cut_probability: float = 0.1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_probability") and not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {value}")
        if self.max_rewind_steps < 0:
            raise ValueError(f"max_rewind_steps must be at least 0, not {self.max_rewind_steps}")


@dataclass(frozen=True)
class TrainingSlots:
    """What each of B samples is made of.

    Args:
        frames: (B, T) int64, frames counted inside the episode: the window, then the rewind. Slots past `lengths` repeat
            the last valid one.
        lengths: (B,) int64, valid slots.
        perturbed: (B,) bool, the text is to be replaced and the target of all valid slots to be 0.
        phrase: (B,) float64 in [0, 1), picks the text that replaces it.
    """

    frames: np.ndarray
    lengths: np.ndarray
    perturbed: np.ndarray
    phrase: np.ndarray


def clean_slots(frame: np.ndarray, length: int | np.ndarray, window: Window) -> TrainingSlots:
    """Samples without augmentation, of window.num_slots slots: the held-out loss. Arguments as for `window_slots`."""
    frames, num_samples = window_slots(frame, length, window), len(frame)
    full = np.full(num_samples, window.num_slots, dtype=np.int64)
    return TrainingSlots(frames, full, np.zeros(num_samples, dtype=bool), np.zeros(num_samples))


def training_slots(
    frame: np.ndarray,
    length: int | np.ndarray,
    index: np.ndarray,
    window: Window,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
) -> TrainingSlots:
    """Augmented samples. Each is a function of its frame, episode, seed and epoch, and of no other sample.

    Args:
        frame: (B,) int64, anchor frames, counted inside the episode.
        length: frames of the episode, or (B,) int64.
        index: (B,) int64, global index of each anchor frame.
        window: the model's.
        augmentation: what is done to it, how often.
        seed, epoch: keys of the draws.

    Returns:
        TrainingSlots with T = window.num_slots + augmentation.max_rewind_steps.
    """
    draw = partial(uniform, seed, epoch, index)
    frames = np.take_along_axis(window_slots(frame, length, window), _slots_shown(draw, window, augmentation), axis=1)

    last_shown = frames[:, -1]
    most = np.minimum(augmentation.max_rewind_steps, last_shown // window.frame_gap)
    rewound = (draw(Stream.REWIND) < augmentation.rewind_probability) & (most > 0)
    steps = np.where(rewound, 1 + _below(draw(Stream.REWIND_STEPS), most), 0)
    back = np.minimum(np.arange(1, augmentation.max_rewind_steps + 1)[None], steps[:, None])
    rewind = last_shown[:, None] - back * window.frame_gap
    return TrainingSlots(
        frames=np.concatenate([frames, rewind], axis=1),
        lengths=window.num_slots + steps,
        perturbed=draw(Stream.PERTURBATION) < augmentation.language_perturbation_probability,
        phrase=draw(Stream.PHRASE),
    )


def _slots_shown(draw: Callable[[Stream], np.ndarray], window: Window, augmentation: Augmentation) -> np.ndarray:
    """Which slot of the whole window each slot repeats, itself where nothing is cut: (B, num_slots) int64."""
    half = window.n_obs_steps // 2
    past_cut = draw(Stream.PAST_CUT) < augmentation.past_cut_probability
    first = np.where(past_cut, _below(draw(Stream.PAST_CUT_SLOT), half + 1), 0)
    last = np.full_like(first, window.n_obs_steps)
    if window.kind == "centered":
        between = half - 1  # slots between the live edge and the last one; a window of three has none
        later = half + min(between, 1) + _below(draw(Stream.FUTURE_CUT_SLOT), between)
        slot = np.where(draw(Stream.FUTURE_CUT_AT_EDGE) < EDGE_SHARE, half, later)
        last = np.where(draw(Stream.FUTURE_CUT) < augmentation.future_cut_probability, slot, last)
    return np.clip(np.arange(window.num_slots)[None], first[:, None], last[:, None])


def _below(draw: np.ndarray, count: int | np.ndarray) -> np.ndarray:
    """A whole number in 0..count-1 from a draw in [0, 1): (B,) int64; 0 where count is 0."""
    return np.floor(draw * count).astype(np.int64)  # draw <= 1 - 2^-53, so the product never rounds up to count
