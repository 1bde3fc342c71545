"""What LeRobot itself computed; ../shared/lerobot_parity/README.md says from what, and how exactly it is met."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sarm_ray.core.windows import Window, window_slots
from sarm_ray.data.lerobot import Dataset, open_dataset
from sarm_ray.data.rows import episode_texts, read_rows, state_statistics
from sarm_ray.model.checkpoint import Checkpoint, StateNormalizer, open_checkpoint

FIXTURES = Path(__file__).parents[2].parent / "shared" / "lerobot_parity"
STATE = "observation.state"


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    if not FIXTURES.is_dir():
        pytest.skip(f"LeRobot's outputs are not at {FIXTURES}")
    return FIXTURES


@pytest.fixture(scope="session")
def dataset(fixtures) -> Dataset:
    return open_dataset(str(fixtures / "dataset_v3"))


@pytest.fixture(scope="session")
def episode_inputs(fixtures, dataset):
    """row, scored frames, normalizer -> arguments of `Scorer.score`, from LeRobot's features.

    Without a normalizer, the dataset's statistics, as LeRobot does.
    """
    arrays = np.load(fixtures / "expected" / "clip_features.npz")
    features, texts = arrays["features"], dict(zip(arrays["tasks"].tolist(), arrays["text_features"], strict=True))
    of_dataset = StateNormalizer(*(part.astype(np.float32) for part in state_statistics(dataset, STATE)))

    def make(row: int, frames: np.ndarray, normalizer: StateNormalizer | None = None) -> dict[str, np.ndarray]:
        length, first = int(dataset.length[row]), int(dataset.from_index[row])
        states = (normalizer or of_dataset).apply(read_rows(dataset, row, [STATE])[STATE], 32)
        text = texts[episode_texts(dataset, np.array([row]))[0]]
        slots = window_slots(frames, length, Window(8, 30))
        return {
            "features_FD": features[first : first + length],
            "states_FS": states,
            "text_E": text,
            "slots_BT": slots,
            "whole_B": np.ones(len(frames), dtype=bool),
        }

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(fixtures) -> Checkpoint:
    return open_checkpoint("sarm_dual_tiny", str(fixtures / "sarm_dual_tiny"))
