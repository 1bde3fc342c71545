"""SARM checkpoints, read: LeRobot's files, and our sidecar beside them. `checkpoint_writer.py` writes them.

config.json          LeRobot's SARMConfig, exactly its known keys (it rejects others)
model.safetensors    the networks, LeRobot's tensor names
*normalizer*.safetensors   LeRobot's record of the training statistics, `<feature>.<stat>`
sarm_ray.json        ours: encoder, window, fps, cameras, data, metrics; absent from a checkpoint that LeRobot trained
"""

import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from sarm_ray.core.progress import stage_breakpoints
from sarm_ray.core.windows import Window
from sarm_ray.errors import CheckpointError
from sarm_ray.model.sarm import HEADS, Sarm, SarmShape

SIDECAR = "sarm_ray.json"
WEIGHTS_FILE = "model.safetensors"
CONSTANT_STD = 1e-6
NORMALIZER_EPS = 1e-8
OUTLIER_SIGMAS = 10.0


@dataclass(frozen=True)
class SarmConfig:
    """LeRobot's SARMConfig, field by field; documented in spec/lerobot.md 1.1."""

    annotation_mode: str = "single_stage"
    n_obs_steps: int = 8
    frame_gap: int = 30
    max_rewind_steps: int = 4
    image_dim: int = 512
    text_dim: int = 512
    hidden_dim: int = 768
    num_heads: int = 12
    num_layers: int = 8
    max_state_dim: int = 32
    drop_n_last_frames: int = 1
    batch_size: int = 64
    clip_batch_size: int = 64
    dropout: float = 0.1
    stage_loss_weight: float = 1.0
    rewind_probability: float = 0.8
    language_perturbation_probability: float = 0.2
    num_sparse_stages: int = 1
    sparse_subtask_names: list[str] | None = None
    sparse_temporal_proportions: list[float] | None = None
    num_dense_stages: int | None = None
    dense_subtask_names: list[str] | None = None
    dense_temporal_proportions: list[float] | None = None
    pretrained_model_path: str | None = None
    image_key: str = "observation.images.top"
    state_key: str = "observation.state"

    @property
    def shape(self) -> SarmShape:
        """Of networks with LeRobot's one camera; see `sarm_shape`."""
        own = {f.name for f in fields(self)}
        sizes = {f.name: getattr(self, f.name) for f in fields(SarmShape) if f.name in own and "_stages" not in f.name}
        return SarmShape(self.num_sparse_stages, self.num_dense_stages or self.num_sparse_stages, **sizes)

    @property
    def heads(self) -> tuple[str, ...]:
        """Heads that were trained: single_stage keeps a dense head that was not."""
        return HEADS[:1] if self.annotation_mode == "single_stage" else HEADS

    def breakpoints(self, head: str) -> np.ndarray:
        """(K + 1,) float64, progress at which each stage of a head begins."""
        return stage_breakpoints(self.shape.num_stages(head), getattr(self, f"{head}_temporal_proportions"))


@dataclass(frozen=True)
class StateNormalizer:
    """(x - mean) / (std + 1e-8), as LeRobot; a dimension that was constant in training is fed as 0.

    Args:
        mean, std: (D,) float32.
    """

    mean: np.ndarray
    std: np.ndarray

    def apply(self, states_FD: np.ndarray, max_state_dim: int) -> np.ndarray:
        """Normalise, then zero-pad or cut: (F, D) -> (F, max_state_dim) float32."""
        scaled = (states_FD.astype(np.float32) - self.mean) / (self.std + np.float32(NORMALIZER_EPS))
        scaled[:, self.std < CONSTANT_STD] = 0.0
        padded = np.zeros((len(scaled), max_state_dim), dtype=np.float32)
        width = min(max_state_dim, scaled.shape[1])
        padded[:, :width] = scaled[:, :width]
        return padded

    def strange_dimensions(self, states_FD: np.ndarray) -> np.ndarray:
        """Dimensions that vary though constant in training, or lie beyond 10 sigma: (k,) int64."""
        deviation = np.abs(states_FD.astype(np.float32) - self.mean).max(0)
        constant = self.std < CONSTANT_STD
        return np.flatnonzero(np.where(constant, deviation > 1e-4, deviation > OUTLIER_SIGMAS * self.std))


@dataclass(frozen=True)
class Sidecar:
    """What LeRobot's files do not record.

    Args:
        encoder, encoder_weights: which image encoder, and the sha256 of its weights.
        window: what a window shows, see `core/windows.py`.
        fps: of the training data; None where frame_gap is in frames of whatever is scored.
        image_keys: cameras it was trained on; where num_cameras is above 1, its streams in order.
        task_texts: of the training data.
        data_fingerprint: of the training data.
        metrics: how well it did, by name.
        num_cameras: vision streams of the networks.
    """

    encoder: str
    encoder_weights: str
    window: Literal["centered", "past"] = "centered"
    fps: float | None = None
    image_keys: list[str] = field(default_factory=list)
    task_texts: list[str] = field(default_factory=list)
    data_fingerprint: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    num_cameras: int = 1
    format: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.num_cameras, int) or self.num_cameras < 1:
            raise ValueError(f"num_cameras must be a whole number from 1 up, not {self.num_cameras!r}")
        if self.num_cameras > 1 and len(self.image_keys) != self.num_cameras:
            raise ValueError(f"num_cameras is {self.num_cameras}, but image_keys names {len(self.image_keys)}")


def sarm_shape(config: SarmConfig, sidecar: Sidecar | None) -> SarmShape:
    """Sizes of a checkpoint's networks: LeRobot's config knows all but the number of cameras."""
    return replace(config.shape, num_cameras=sidecar.num_cameras if sidecar else 1)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's description; its weights are read by `load_model`.

    Args:
        name: as the user gave it.
        folder: where its files are.
        config: LeRobot's config.
        normalizer: training statistics of the state, or None where the checkpoint has none.
        sidecar: or None for a checkpoint that LeRobot trained.
        weights: sha256 over config and weights.
    """

    name: str
    folder: str
    config: SarmConfig
    normalizer: StateNormalizer | None
    sidecar: Sidecar | None
    weights: str

    @property
    def shape(self) -> SarmShape:
        """Sizes of its networks."""
        return sarm_shape(self.config, self.sidecar)

    @property
    def cameras(self) -> list[str]:
        """The cameras that it was trained on."""
        return self.sidecar.image_keys if self.sidecar else [self.config.image_key]

    def window(self, frame_gap: int) -> Window:
        kind = self.sidecar.window if self.sidecar else "centered"
        return Window(self.config.n_obs_steps, frame_gap, kind)


def open_checkpoint(name: str, folder: str) -> Checkpoint:
    """Read everything but the weights.

    Args:
        name: as the user gave it, for messages and records.
        folder: a save_pretrained folder, or one of lerobot-train's (`<step>/`, or its output folder: the last step).

    Raises:
        CheckpointError: not a SARM checkpoint, or one that contradicts itself.
    """
    place = _find_folder(name, Path(folder))
    config, sidecar = _read_config(place / "config.json"), _read_sidecar(place / SIDECAR)
    try:
        weights = hashlib.sha256((place / "config.json").read_bytes())
        with (place / "model.safetensors").open("rb") as stream:
            weights.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise CheckpointError(f"{place}: {error.strerror}: {error.filename}") from error
    _check_weights(place / WEIGHTS_FILE, sarm_shape(config, sidecar))
    normalizer = _read_normalizer(place, config.state_key)
    return Checkpoint(name, str(place), config, normalizer, sidecar, weights.hexdigest())


def load_model(checkpoint: Checkpoint) -> Sarm:
    """The networks in float32 and eval mode.

    Raises:
        CheckpointError: unreadable weights, or names and shapes other than the config's.
    """
    with torch.device("meta"):  # weights are not drawn at random first, which takes a second
        model = Sarm(checkpoint.shape)
    path = Path(checkpoint.folder) / WEIGHTS_FILE
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise CheckpointError(f"{path}: the weights do not fit config.json ({reason})") from error
    return model.float().eval()


def _find_folder(name: str, folder: Path) -> Path:
    for candidate in (folder, folder / "pretrained_model", folder / "checkpoints" / "last" / "pretrained_model"):
        if (candidate / "config.json").is_file():
            return candidate
    raise CheckpointError(
        f"{name}: no config.json in it, nor in its pretrained_model or checkpoints/last/pretrained_model"
    )


def check_tensors(path: Path, shape: SarmShape, found: dict[str, tuple[int, ...]]) -> None:
    """Compare names and shapes of weights with the networks they should be of.

    Args:
        path: of the weights, for the message.
        shape: of the networks.
        found: name -> shape.

    Raises:
        CheckpointError: naming the first tensor that is missing, too many or of another shape.
    """
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in Sarm(shape).state_dict().items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{path}: the weights do not fit config.json: {name} should be {expected.get(name, 'absent')}, "
                f"is {found.get(name, 'absent')}"
            )


def _check_weights(path: Path, shape: SarmShape) -> None:
    """From the file's header alone, before any work is done for them."""
    try:
        with safe_open(path, framework="numpy") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    check_tensors(path, shape, found)


def _read_config(path: Path) -> SarmConfig:
    raw = read_object(path)
    if raw.get("type") != "sarm":
        raise CheckpointError(f"{path}: a reward model of type {raw.get('type')!r}, not 'sarm'")
    known = {f.name for f in fields(SarmConfig)}
    try:
        config = SarmConfig(**{key: value for key, value in raw.items() if key in known})
        Window(config.n_obs_steps, config.frame_gap)
        for head in config.heads:
            config.breakpoints(head)
        if config.num_heads < 1 or config.hidden_dim % config.num_heads:
            raise ValueError(f"num_heads must divide hidden_dim {config.hidden_dim}, not be {config.num_heads}")
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if config.annotation_mode not in ("single_stage", "dense_only", "dual"):
        raise CheckpointError(f"{path}: unknown annotation_mode {config.annotation_mode!r}")
    return config


def _read_normalizer(place: Path, state_key: str) -> StateNormalizer | None:
    for path in sorted(place.glob("*normalizer*.safetensors")):
        try:
            arrays = load_arrays(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
        mean, std = arrays.get(f"{state_key}.mean"), arrays.get(f"{state_key}.std")
        if mean is not None and std is not None:
            return StateNormalizer(np.ravel(mean).astype(np.float32), np.ravel(std).astype(np.float32))
    return None


def _read_sidecar(path: Path) -> Sidecar | None:
    if not path.exists():
        return None
    raw = read_object(path)
    if raw.get("format") != 1:
        raise CheckpointError(f"{path}: format {raw.get('format')!r} is newer than this sarm_ray; upgrade it")
    known = {f.name for f in fields(Sidecar)}
    try:
        sidecar = Sidecar(**{key: value for key, value in raw.items() if key in known})
        Window(kind=sidecar.window)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return sidecar


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: unreadable, or something else.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object, found {type(value).__name__}")
    return value
