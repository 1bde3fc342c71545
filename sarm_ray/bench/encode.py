"""`sarm-ray bench encode`: small images to features on one thread, as an actor of an ingest does it."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sarm_ray.bench import synthetic
from sarm_ray.bench.measure import Figures, Timing, compare, describe_hardware, measure, one_torch_thread
from sarm_ray.errors import ConfigError
from sarm_ray.model.encoder import EFFICIENTNET, compile_efficientnet, describe_encoder, load_image_encoder

ENCODERS = ("clip", EFFICIENTNET)
FLOOR_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class EncodeBench(Figures):
    """What was measured.

    Args:
        encoder: one of ENCODERS.
        num_frames: images encoded.
    """

    encoder: str
    num_frames: int


def bench_encode(
    encoder: str = "clip", precision: str | None = None, num_frames: int = 128, repeats: int = 3
) -> EncodeBench:
    """Encode random images on one thread: full-size CLIP ViT-B/32 with random weights, or EfficientNet-Lite0.

    The floor is the bare network (CLIP's vision tower in torch, EfficientNet-Lite0 in OpenVINO) on 32 images that are
    floats already: no preprocessing, no passes of a fixed size.

    Args:
        encoder: one of ENCODERS.
        precision: `fp32` or `bf16`; None is bf16 where the encoder may run in it.
        num_frames: images.
        repeats: medians are over as many, after one that does not count.

    Raises:
        ConfigError: efficientnet-lite0 in bf16.
    """
    if encoder == EFFICIENTNET and precision == "bf16":
        raise ConfigError(f"{EFFICIENTNET} runs in fp32 alone; leave --precision out")
    precision = precision or ("fp32" if encoder == EFFICIENTNET else "bf16")
    images = np.random.default_rng(0).integers(0, 256, (num_frames, 224, 224, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory(prefix="sarm_bench_") as scratch, one_torch_thread():
        folder = None
        if encoder != EFFICIENTNET:
            folder = str(Path(scratch) / "clip")
            synthetic.write_clip(Path(folder))
        encode = load_image_encoder(describe_encoder(encoder, folder), precision, "cpu")
        forward = _bare_efficientnet() if folder is None else _bare_clip(precision)
        work, once = measure(repeats, lambda: encode(images), forward)
    share = num_frames / FLOOR_IMAGES
    return EncodeBench(
        encoder=encoder,
        num_frames=num_frames,
        precision=precision,
        repeats=repeats,
        hardware=describe_hardware(),
        **compare(num_frames, work, Timing(once.wall_s * share, once.cpu_s * share)),
    )


def describe(bench: EncodeBench) -> str:
    """For people."""
    return (
        f"{bench.encoder} {bench.precision}: {bench.frames_per_cpu_s:.1f} images per CPU-second, "
        f"{bench.frames_per_s:.1f} images/s\n"
        f"  the bare network on {FLOOR_IMAGES} images {bench.floor_frames_per_cpu_s:.1f}: ratio {bench.floor_ratio:.2f}"
    )


def _bare_clip(precision: str) -> Callable[[], object]:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=512)).eval()
    model.to(dtype)
    pixels = torch.randn(FLOOR_IMAGES, 3, 224, 224, dtype=dtype)
    return torch.inference_mode()(lambda: model(pixel_values=pixels))


def _bare_efficientnet() -> Callable[[], object]:
    network = compile_efficientnet(FLOOR_IMAGES)
    pixels = np.random.default_rng(0).standard_normal((FLOOR_IMAGES, 3, 224, 224), dtype=np.float32)
    return lambda: network(pixels)
