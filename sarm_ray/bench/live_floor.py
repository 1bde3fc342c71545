"""The least that live scoring can take: its two networks by themselves."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sarm_ray.bench.measure import measure, one_torch_thread
from sarm_ray.model.encoder import load_live_encoder
from sarm_ray.model.scorer import Scorer
from sarm_ray.pipelines.serving.plan import LiveModel

FLOOR_REPEATS = 20
Encode = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The networks by themselves, one pass of `batch` frames: wall and CPU milliseconds of the whole pass."""

    batch: int
    encode_ms: float
    score_ms: float
    cpu_ms: float


def measure_floors(model: LiveModel, batches: list[int]) -> list[Floor]:
    """The networks alone, in this process, on one thread, at each batch size."""
    with one_torch_thread():
        encode = load_live_encoder(model.encoder, model.encoder_precision, model.device)
        window = model.checkpoint.window(model.checkpoint.config.frame_gap)
        scorer = Scorer(model.checkpoint, model.heads, window.readout_slot, model.precision, model.device)
        return [_floor(model, encode, scorer, window.num_slots, batch) for batch in batches]


def _floor(model: LiveModel, encode: Encode, scorer: Scorer, num_slots: int, batch: int) -> Floor:
    rng = np.random.default_rng(0)
    size, cameras, config = model.encoder.image_size, model.num_cameras, model.checkpoint.config
    images = rng.integers(0, 256, (batch * cameras, size, size, 3), dtype=np.uint8)
    features = rng.standard_normal((batch, num_slots, cameras * model.encoder.image_dim)).astype(model.dtype)
    states = np.zeros((batch, num_slots, config.max_state_dim), dtype=np.float32)
    texts = rng.standard_normal((batch, model.encoder.text_dim)).astype(np.float32)
    whole = np.ones(batch, dtype=bool)
    encoded, scored = measure(
        FLOOR_REPEATS, lambda: encode(images), lambda: scorer.score_windows(features, states, texts, whole)
    )
    return Floor(
        batch=batch,
        encode_ms=1000 * encoded.wall_s,
        score_ms=1000 * scored.wall_s,
        cpu_ms=1000 * (encoded.cpu_s + scored.cpu_s),
    )
