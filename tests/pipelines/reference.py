"""Small models on embedded encoder weights, and scoring as a plain loop: one process, no store, no Ray."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sarm_ray.core.windows import Window, window_slots
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.rows import episode_texts, read_rows, state_statistics
from sarm_ray.data.video import FrameRequest, read_frames
from sarm_ray.model.checkpoint import SarmConfig, Sidecar, StateNormalizer, open_checkpoint, sarm_shape
from sarm_ray.model.checkpoint_writer import save_checkpoint
from sarm_ray.model.encoder import EFFICIENTNET, encode_texts, load_image_encoder
from sarm_ray.model.sarm import Sarm
from sarm_ray.model.scorer import Scorer
from tests.datasets import CAMERA


def write_model(
    folder: Path,
    encoder,
    mode: str = "dual",
    cameras: Sequence[str] = (CAMERA,),
    normalizer: StateNormalizer | None = None,
    **sidecar,
) -> str:
    """A small SARM with random weights on EfficientNet features of one camera or several."""
    torch.manual_seed(0)
    stages = {"num_sparse_stages": 3, "num_dense_stages": 4} if mode == "dual" else {"num_sparse_stages": 1}
    config = SarmConfig(
        annotation_mode=mode, frame_gap=10, image_dim=1280, text_dim=512, hidden_dim=32, num_heads=4, num_layers=2,
        image_key=cameras[0], **stages,
    )  # fmt: skip
    record = Sidecar(
        encoder=EFFICIENTNET,
        encoder_weights=encoder.weights,
        image_keys=list(cameras),
        num_cameras=len(cameras),
        **sidecar,
    )
    save_checkpoint(str(folder), config, Sarm(sarm_shape(config, record)), record, normalizer)
    return str(folder)


def score_without_ray(root: str, model: str, encoder, window: Window, heads: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The same, chunk by chunk, in a loop; on one thread as the workers, whose number shows in the last bit."""
    torch.set_num_threads(1)
    dataset, checkpoint = open_dataset(root), open_checkpoint(model, model)
    rows = np.arange(len(dataset.length))
    texts = encode_texts(encoder, episode_texts(dataset, rows))
    mean, std = state_statistics(dataset, "observation.state")
    normalizer = StateNormalizer(mean.astype(np.float32), std.astype(np.float32))
    encode = load_image_encoder(encoder, "fp32", "cpu")
    scorer = Scorer(checkpoint, heads, window.readout_slot, "fp32", "cpu")
    progress: dict[str, list[np.ndarray]] = {head: [] for head in heads}
    for row in rows.tolist():
        length = int(dataset.length[row])
        features = np.concatenate(
            [encode(episode_images(dataset, camera, row)) for camera in checkpoint.cameras], axis=1
        )
        states = normalizer.apply(read_rows(dataset, row, ["observation.state"])["observation.state"], 32)
        for start in range(0, length, 256):
            frames = np.arange(start, min(start + 256, length))
            slots = window_slots(frames, length, window)
            scores = scorer.score(features, states, texts[row], slots, np.ones(len(frames), dtype=bool))
            for head in heads:
                progress[head].append(scores[head].progress)
    return {head: np.concatenate(values) for head, values in progress.items()}


def episode_images(dataset, camera: str, row: int) -> np.ndarray:
    """All frames of an episode: (L, 224, 224, 3) uint8."""
    files, key = dataset.camera_files(camera), None if dataset.is_video(camera) else camera
    frames = np.arange(int(dataset.length[row]))
    request = FrameRequest(int(dataset.episode_index[row]), files.from_timestamp[row], frames)
    return next(read_frames(dataset.location(files.path(row)), [request], dataset.fps, 224, key))
