"""Inputs of full size without a network: a dataset of drawn video, CLIP and SARM with random weights.

Weights are random, so the numbers that come out mean nothing; the work to get them is the real one.
"""

import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sarm_ray.data.images import jpeg
from sarm_ray.model.checkpoint import SarmConfig, Sidecar, StateNormalizer
from sarm_ray.model.checkpoint_writer import save_checkpoint
from sarm_ray.model.encoder import EncoderInfo
from sarm_ray.model.sarm import Sarm

CAMERA = "observation.images.top"
FPS = 30
STATE_DIM = 14
TASK = "move the square"
# lp=1: with its default parallelism SVT-AV1 3.1 now and then stops for good on a busy machine, all threads waiting
CODECS = {
    "av1": ("libsvtav1", {"preset": "12", "crf": "30", "svtav1-params": "lp=1"}),
    "h264": ("libx264", {"preset": "veryfast", "crf": "23"}),
}


def write_dataset(
    root: Path,
    num_frames: int,
    episode_frames: int = 512,
    size: tuple[int, int] = (480, 640),
    codec: str = "av1",
    gop: int = 2,
) -> None:
    """A LeRobotDataset v2.1 with LeRobot's own video settings (AV1, a keyframe every 2 frames).

    Args:
        root: folder to make.
        num_frames: of the whole dataset.
        episode_frames: of each episode but the last.
        size: height and width of the video.
        codec: `av1` or `h264`.
        gop: frames from keyframe to keyframe.
    """
    lengths = [min(episode_frames, num_frames - first) for first in range(0, num_frames, episode_frames)]
    rng = np.random.default_rng(0)
    episodes, stats = [], []
    for episode, length in enumerate(lengths):
        path = f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4"
        write_video(root / path, draw_frames(length, size, rng), size, codec, gop)
        state = rng.standard_normal((length, STATE_DIM)).astype(np.float32)
        table = pa.table(
            {
                "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(state.ravel()), STATE_DIM),
                "timestamp": np.arange(length, dtype=np.float32) / FPS,
                "frame_index": np.arange(length),
                "episode_index": np.full(length, episode),
                "index": sum(lengths[:episode]) + np.arange(length),
                "task_index": np.zeros(length, dtype=np.int64),
            }
        )
        data = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, data)
        episodes.append({"episode_index": episode, "tasks": [TASK], "length": length})
        moments = {"mean": state.mean(0).tolist(), "std": state.std(0).tolist(), "count": [length]}
        stats.append({"episode_index": episode, "stats": {"observation.state": moments}})
    meta = root / "meta"
    meta.mkdir()
    (meta / "info.json").write_text(json.dumps(_info(lengths, size, codec), indent=2))
    (meta / "episodes.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in episodes))
    (meta / "episodes_stats.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in stats))
    (meta / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": TASK}) + "\n")


def draw_frames(num_frames: int, size: tuple[int, int], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A square moving over a textured table, with camera noise: (H, W, 3) uint8 each.

    With as much texture and noise as makes AV1 of 640x480 decode about as fast as real robot video does (bare PyAV: 758
    frames per CPU-second of this, 716 of g1_bottle).
    """
    height, width = size
    coarse = rng.integers(60, 190, (-(-height // 16), -(-width // 16), 3))
    texture = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    for frame in range(num_frames):
        image = texture + rng.integers(-2, 3, (height, width, 1))
        y, x = int(height * (0.4 + 0.3 * np.sin(frame / 40))), int(width * (0.4 + 0.3 * np.cos(frame / 30)))
        image[y : y + height // 8, x : x + height // 8] = (220, 40, 40)
        yield np.clip(image, 0, 255).astype(np.uint8)


def write_video(path: Path, frames: Iterator[np.ndarray], size: tuple[int, int], codec: str, gop: int) -> None:
    name, options = CODECS[codec]
    path.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 describes itself on stderr otherwise
    with av.open(str(path), "w") as container:
        stream = cast(av.VideoStream, container.add_stream(name, rate=FPS, options={**options, "g": str(gop)}))
        stream.height, stream.width = size
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, FPS)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_clip(folder: Path) -> None:
    """CLIP ViT-B/32 with random weights and a tokenizer that knows single characters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.utils import logging

    torch.manual_seed(0)
    logging.disable_progress_bar()
    CLIPModel(CLIPConfig(projection_dim=512)).save_pretrained(folder)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(folder)


def write_sarm(folder: Path) -> None:
    """SARM of LeRobot's default size, dual, 3 sparse and 5 dense stages, random weights."""
    torch.manual_seed(0)
    config = SarmConfig(
        annotation_mode="dual",
        image_key=CAMERA,
        num_sparse_stages=3,
        sparse_subtask_names=list("abc"),
        sparse_temporal_proportions=[0.3, 0.5, 0.2],
        num_dense_stages=5,
        dense_subtask_names=list("vwxyz"),
        dense_temporal_proportions=[0.2] * 5,
    )
    save_checkpoint(str(folder), config, Sarm(config.shape))


def _info(lengths: list[int], size: tuple[int, int], codec: str) -> dict:
    video: dict[str, Any] = {"dtype": "video", "shape": [*size, 3], "names": ["height", "width", "channels"]}
    video["info"] = {"video.fps": FPS, "video.codec": codec, "video.pix_fmt": "yuv420p", "has_audio": False}
    scalars = {
        "timestamp": "float32",
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64"),
    }
    return {
        "codebase_version": "v2.1",
        "robot_type": "drawn",
        "fps": FPS,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 1,
        "total_videos": len(lengths),
        "total_chunks": 1,
        "chunks_size": 1000,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            CAMERA: video,
            "observation.state": {"dtype": "float32", "shape": [STATE_DIM], "names": None},
            **{name: {"dtype": kind, "shape": [1], "names": None} for name, kind in scalars.items()},
        },
    }


def write_live_sarm(folder: Path, encoder: EncoderInfo, hidden_dim: int, num_layers: int) -> None:
    """A small dual SARM with random weights on an encoder's features, with all that a live server wants on record."""
    torch.manual_seed(0)
    config = SarmConfig(
        annotation_mode="dual",
        image_key=CAMERA,
        image_dim=encoder.image_dim,
        text_dim=encoder.text_dim,
        hidden_dim=hidden_dim,
        num_layers=num_layers,
        num_sparse_stages=3,
        sparse_subtask_names=list("abc"),
        num_dense_stages=5,
        dense_subtask_names=list("vwxyz"),
    )
    record = Sidecar(
        encoder=encoder.name, encoder_weights=encoder.weights, fps=FPS, image_keys=[CAMERA], task_texts=[TASK]
    )
    moments = StateNormalizer(np.zeros(STATE_DIM, dtype=np.float32), np.ones(STATE_DIM, dtype=np.float32))
    save_checkpoint(str(folder), config, Sarm(config.shape), record, moments)


def write_pictures(folder: Path, num_pictures: int = 96, size: tuple[int, int] = (224, 224)) -> int:
    """JPEGs of a moving square, numbered: the mean of their sizes in bytes. About as large as a camera's of that size."""
    folder.mkdir()
    total = 0
    for number, image in enumerate(draw_frames(num_pictures, size, np.random.default_rng(0))):
        total += (folder / f"{number:04d}.jpg").write_bytes(jpeg(image, quality=95))
    return total // num_pictures
