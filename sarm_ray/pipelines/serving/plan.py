"""What a live server serves, decided before it listens."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sarm_ray import __version__
from sarm_ray.config.serve import ServeConfig
from sarm_ray.core.live import LiveWindow, live_window
from sarm_ray.core.live_protocol import PROTOCOL, Hello, LiveLimits
from sarm_ray.core.windows import gap_in_frames
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.errors import CheckpointError
from sarm_ray.model.checkpoint import Checkpoint, StateNormalizer, open_checkpoint
from sarm_ray.model.encoder import EncoderInfo
from sarm_ray.pipelines.inputs import check_statistics, choose_encoder, choose_normalizer, model_folder
from sarm_ray.pipelines.runtime import Cluster
from sarm_ray.pipelines.serving.guard import Guard, read_token


@dataclass(frozen=True)
class LiveModel:
    """What every replica of a live server needs.

    Args:
        checkpoint, encoder: the networks.
        heads: all that the checkpoint has.
        normalizer: of the robot's state.
        precision, encoder_precision: `fp32` or `bf16`, of SARM and of the encoder.
        dtype: in which features are kept, as `score` stores them.
        device: `cuda` or `cpu`.
        score_hz: frames of a session scored in a second, at most.
        limits: what clients may use up.
        guard: who may come in.
        record: folder for finished rollouts, or None.
        notices: what the user should know.
    """

    checkpoint: Checkpoint
    encoder: EncoderInfo
    heads: tuple[str, ...]
    normalizer: StateNormalizer
    precision: str
    encoder_precision: str
    dtype: str
    device: str
    score_hz: float
    limits: LiveLimits
    guard: Guard
    record: str | None
    notices: tuple[str, ...]

    @property
    def num_cameras(self) -> int:
        return self.checkpoint.shape.num_cameras

    @property
    def state_dim(self) -> int:
        return len(self.normalizer.mean)

    @property
    def stages(self) -> dict[str, list[str]]:
        """head -> names of its stages."""
        return {head: self._stage_names(head) for head in self.heads}

    def _stage_names(self, head: str) -> list[str]:
        config = self.checkpoint.config
        names = config.sparse_subtask_names if head == "sparse" else config.dense_subtask_names
        return list(names or [f"stage {number + 1}" for number in range(config.shape.num_stages(head))])

    def live_window(self, hello: Hello, most_hz: float | None = None) -> LiveWindow:
        """A session's window: the checkpoint's at the session's frame rate, scored as often as both sides want."""
        sidecar = self.checkpoint.sidecar
        gap = gap_in_frames(self.checkpoint.config.frame_gap, sidecar.fps if sidecar else None, hello.fps)
        most_hz = most_hz or self.score_hz
        return live_window(self.checkpoint.window(gap), hello.fps, min(most_hz, hello.score_hz or most_hz))

    def normalize(self, state: np.ndarray) -> np.ndarray:
        """(state_dim,) -> (max_state_dim,) float32."""
        return self.normalizer.apply(state[None], self.checkpoint.config.max_state_dim)[0]

    def describe(self) -> dict[str, Any]:
        """What /v1/model says."""
        checkpoint = self.checkpoint
        window = checkpoint.window(checkpoint.config.frame_gap)
        return {
            "protocol": PROTOCOL,
            "version": __version__,
            "model": checkpoint.name,
            "weights": checkpoint.weights,
            "encoder": self.encoder.name,
            "precision": self.precision,
            "heads": self.stages,
            "tasks": list(checkpoint.sidecar.task_texts) if checkpoint.sidecar else [],
            "window": {
                "kind": window.kind,
                "num_slots": window.num_slots,
                "frame_gap": window.frame_gap,
                "readout_slot": window.readout_slot,
            },
            "fps": checkpoint.sidecar.fps if checkpoint.sidecar else None,
            "state_dim": self.state_dim,
            "num_cameras": self.num_cameras,
            "image_keys": list(checkpoint.cameras),
            "image_size": self.encoder.image_size,
            "score_hz": self.score_hz,
            "limits": dict(vars(self.limits)),
        }


def plan_serving(config: ServeConfig, cluster: Cluster) -> LiveModel:
    """Resolve the checkpoint, its encoder and statistics.

    Raises:
        SarmRayError: something of it cannot be had.
    """
    notices: list[str] = []
    checkpoint = open_checkpoint(config.model, model_folder(config.model))
    encoder = choose_encoder(config.encoder, checkpoint, notices)
    precision = config.precision if config.precision != "auto" else ("bf16" if cluster.bf16 else "fp32")
    if checkpoint.sidecar is None or checkpoint.sidecar.fps is None:
        gap = checkpoint.config.frame_gap
        notices.append(f"the checkpoint has no frame rate on record; its window is {gap} frames a slot at any --fps")
    return LiveModel(
        checkpoint=checkpoint,
        encoder=encoder,
        heads=checkpoint.config.heads,
        normalizer=_choose_statistics(config, checkpoint, notices),
        precision=precision,
        encoder_precision=precision if encoder.bf16 else "fp32",
        dtype="float32" if config.precision == "fp32" else "float16",
        device=cluster.device,
        score_hz=config.score_hz,
        limits=_limits(config),
        guard=Guard(read_token(config.token_file) if config.token_file else None, any_host=config.insecure),
        record=config.record,
        notices=tuple(notices),
    )


def _choose_statistics(config: ServeConfig, checkpoint: Checkpoint, notices: list[str]) -> StateNormalizer:
    key = checkpoint.config.state_key
    if config.dataset is not None:
        return choose_normalizer(None, open_dataset(config.dataset, None), checkpoint, key, notices)[0]
    if checkpoint.normalizer is None:
        raise CheckpointError(
            f"{checkpoint.name} has no state statistics; name the dataset it was trained on with --dataset"
        )
    return check_statistics(checkpoint.normalizer, checkpoint.name, key)


def _limits(config: ServeConfig) -> LiveLimits:
    return LiveLimits(
        max_message_bytes=config.max_message_bytes,
        max_image_pixels=config.max_image_pixels,
        max_frames_per_s=config.max_frames_per_s,
        max_sessions=config.max_sessions,
        idle_s=config.idle_s,
        max_wait_s=config.max_wait_s,
    )
