"""The two networks as Serve deployments. Each takes what several ingress replicas send at once in one pass.

A batch is counted in images (windows), not in calls: an ingress replica sends as many at once as its sessions have waiting.
"""

import asyncio
import time
from collections.abc import Callable

import numpy as np
from ray import serve

from sarm_ray.model.encoder import LIVE_IMAGES_PER_PASS, load_live_encoder, load_text_encoder
from sarm_ray.model.scorer import HeadScores, Scorer
from sarm_ray.pipelines.runtime import prepare_actor
from sarm_ray.pipelines.serving.plan import LiveModel

MAX_BATCH = LIVE_IMAGES_PER_PASS["cuda"][-1]
BATCH_WAIT_S = 0.001  # batches fill while the one before is worked on; waiting longer only adds to the latency


def _num_images(calls: list[np.ndarray]) -> int:
    return sum(len(images) for images in calls)


def _num_windows(calls: list[tuple]) -> int:
    return sum(len(features) for features, *_ in calls)


class EncoderReplica:
    """Images to features, task texts to features."""

    def __init__(self, model: LiveModel):
        prepare_actor(model.device)
        self.model = model
        self.encode_images = load_live_encoder(model.encoder, model.encoder_precision, model.device)
        self.encode_one_text: Callable[[str], np.ndarray] | None = None
        self.text_turn = asyncio.Lock()
        size = model.encoder.image_size
        self.encode_images(
            np.zeros((1, size, size, 3), dtype=np.uint8)
        )  # the first pass is slow; no robot waits for it

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S, batch_size_fn=_num_images)
    async def encode(self, calls: list[np.ndarray]) -> list[tuple[np.ndarray, float]]:
        """Each call's images (N, S, S, 3) uint8 -> features (N, D) in the dtype they are kept in, and the pass's seconds."""
        started = time.perf_counter()
        images = np.concatenate(calls)
        features = (await asyncio.to_thread(self.encode_images, images)).astype(self.model.dtype)
        seconds = time.perf_counter() - started
        ends = np.cumsum([len(call) for call in calls])[:-1]
        return [(part, seconds) for part in np.split(features, ends)]

    async def encode_text(self, text: str) -> np.ndarray:
        """(E,) float32, one text at a time; the tower is loaded for the first one."""
        async with self.text_turn:
            if self.encode_one_text is None:
                self.encode_one_text = await asyncio.to_thread(load_text_encoder, self.model.encoder)
            return await asyncio.to_thread(self.encode_one_text, text)

    async def ready(self) -> bool:
        return True


class ScorerReplica:
    """Windows to progress."""

    def __init__(self, model: LiveModel):
        prepare_actor(model.device)
        readout = model.checkpoint.window(model.checkpoint.config.frame_gap).readout_slot
        self.scorer = Scorer(model.checkpoint, model.heads, readout, model.precision, model.device)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S, batch_size_fn=_num_windows)
    async def score(self, calls: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[tuple[dict, float]]:
        """Each call's features (B, T, D), states (B, T, S), texts (B, E) -> head -> HeadScores, and the pass's seconds."""
        started = time.perf_counter()
        features, states, texts = (np.concatenate(parts) for parts in zip(*calls, strict=True))
        whole = np.ones(len(features), dtype=bool)
        scores = await asyncio.to_thread(self.scorer.score_windows, features, states, texts, whole)
        seconds = time.perf_counter() - started
        ends = np.cumsum([len(call[0]) for call in calls])
        return [
            ({head: _part(score, end - len(call[0]), end) for head, score in scores.items()}, seconds)
            for call, end in zip(calls, ends.tolist(), strict=True)
        ]

    async def ready(self) -> bool:
        return True


def _part(scores: HeadScores, first: int, end: int) -> HeadScores:
    return HeadScores(scores.progress[first:end], scores.probabilities[first:end], scores.tau[first:end])
