"""Which camera, encoder, statistics, window and heads a run uses, from what was asked for and what is there.

Each choice follows one rule, says in a notice what the user might not expect, and refuses what does not fit.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sarm_ray.core.episodes import parse_selection
from sarm_ray.core.windows import Window, gap_in_frames
from sarm_ray.data import hub
from sarm_ray.data.lerobot import Dataset
from sarm_ray.data.model_store import copy_model
from sarm_ray.data.rows import state_statistics
from sarm_ray.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    EncoderError,
    SarmRayError,
    by_nearness,
    name_list,
    nearest,
)
from sarm_ray.model.checkpoint import Checkpoint, StateNormalizer
from sarm_ray.model.encoder import CLIP, EFFICIENTNET, WEIGHT_FILES, EncoderInfo, describe_encoder

CHECKPOINT_FILES = ["config.json", "model.safetensors", "*normalizer*.safetensors", "sarm_ray.json"]
CLIP_FILES = ["config.json", "*token*", "vocab.json", "merges.txt"]


def select_episodes(selection: str | None, dataset: Dataset) -> np.ndarray:
    """Episodes that a selection names, None for all: (N,) int64, positions in the dataset's table.

    Raises:
        ConfigError: see `parse_selection`.
    """
    if selection is None:
        return np.arange(len(dataset.length))
    try:
        return parse_selection(selection, dataset.episode_index)
    except ValueError as error:
        raise ConfigError(f"{dataset.name}: {error}") from error


def choose_cameras(
    dataset: Dataset, wanted: Sequence[str], checkpoint: Checkpoint, notices: list[str]
) -> tuple[str, ...]:
    """As many cameras as a model takes: the given ones, else those it was trained on; see `choose_camera` for one.

    Raises:
        DatasetError: too few or too many, or one that is not there.
    """
    num_cameras, trained = checkpoint.shape.num_cameras, checkpoint.cameras
    if num_cameras == 1 and len(wanted) < 2:
        return (choose_camera(dataset, wanted[0] if wanted else None, trained),)
    takes = f"{checkpoint.name} takes {num_cameras} camera{'s' if num_cameras > 1 else ''} ({name_list(trained)})"
    if wanted and len(wanted) != num_cameras:
        raise DatasetError(f"{takes}, --image-key gives {len(wanted)}: {name_list(wanted)}")
    if not wanted and not set(trained) <= set(dataset.cameras):
        there = name_list(dataset.cameras)
        raise DatasetError(f"{dataset.name}: {takes}; the dataset has {there}; name {num_cameras} with --image-key")
    notices += notice_of_order(wanted, checkpoint)
    return tuple(choose_camera(dataset, camera) for camera in wanted or trained)


def notice_of_order(wanted: Sequence[str], checkpoint: Checkpoint) -> list[str]:
    """A notice where the cameras are those of a model in another order: it tells them apart by that alone."""
    trained = checkpoint.cameras
    if sorted(wanted) != sorted(trained) or list(wanted) == trained:
        return []
    return [f"{checkpoint.name} was trained on {name_list(trained)}, in this order; --image-key gives another"]


def choose_camera(dataset: Dataset, wanted: str | None, trained: Sequence[str] = ()) -> str:
    """A camera: the given one, else the one the model was trained on, else the only one that has files."""
    if wanted is not None:
        if wanted not in dataset.cameras:
            there = name_list(by_nearness(wanted, dataset.cameras))
            hint = nearest(wanted, dataset.cameras) or ";"
            raise DatasetError(f"{dataset.name}: no camera {wanted!r}{hint} --image-key takes {there}")
        if dataset.is_video(wanted) and wanted not in dataset.videos:
            raise DatasetError(
                f"{dataset.name}: meta/info.json declares {wanted}, the episode table has no place for it; choose another "
                "with --image-key"
            )
        return wanted
    filled = [camera for camera in dataset.cameras if has_files(dataset, camera)] or list(dataset.cameras)
    for camera in (*trained, *(filled if len(filled) == 1 else ())):
        if camera in filled:
            return camera
    model = f"the model was trained on {name_list(trained)}, " if trained else ""
    raise DatasetError(f"{dataset.name}: {model}the dataset has {name_list(filled)}; choose with --image-key")


def choose_encoder(wanted: str | None, checkpoint: Checkpoint, notices: list[str]) -> EncoderInfo:
    """The checkpoint's encoder. One without our sidecar counts as LeRobot's CLIP, and --encoder may replace that."""
    sidecar, config = checkpoint.sidecar, checkpoint.config
    name = wanted or (sidecar.encoder if sidecar else CLIP)
    encoder = open_encoder(name)
    if sidecar and encoder.weights != sidecar.encoder_weights:
        raise EncoderError(
            f"{checkpoint.name} was trained on features of {sidecar.encoder}; {name} is another encoder. Leave --encoder out"
        )
    if (encoder.image_dim, encoder.text_dim) != (config.image_dim, config.text_dim):
        raise EncoderError(
            f"{name} makes features of {encoder.image_dim} (image) and {encoder.text_dim} (text) numbers; {checkpoint.name} "
            f"takes {config.image_dim} and {config.text_dim}. Give the encoder it was trained with: --encoder"
        )
    if wanted and not sidecar and wanted != CLIP:
        notices.append(f"the checkpoint does not record its encoder; {wanted} takes the place of LeRobot's {CLIP}")
    return encoder


def open_encoder(name: str) -> EncoderInfo:
    """An encoder by its name, folder or Hub id; its files are fetched where need be."""
    return describe_encoder(name, None if name == EFFICIENTNET else _encoder_folder(name))


def state_width(dataset: Dataset, state_key: str) -> int:
    """How many numbers a dataset's state has.

    Raises:
        DatasetError: there is no such state; those there are, nearest first.
    """
    if state_key not in dataset.features:
        vectors = [key for key, spec in dataset.features.items() if str(spec.get("dtype", "")).startswith("float")]
        there, hint = name_list(by_nearness(state_key, vectors)), nearest(state_key, vectors) or ";"
        raise DatasetError(f"{dataset.name}: no state {state_key!r}{hint} --state-key takes {there}")
    return int(np.prod(dataset.features[state_key].get("shape") or [1]))


def choose_normalizer(
    wanted: str | None, dataset: Dataset, checkpoint: Checkpoint, state_key: str, notices: list[str]
) -> tuple[StateNormalizer, str]:
    """State statistics and where they are from: the checkpoint, or (asked for, or for want of those) the dataset."""
    width = state_width(dataset, state_key)
    if wanted == "checkpoint" and checkpoint.normalizer is None:
        raise CheckpointError(f"{checkpoint.name} has no state statistics; use --state-stats dataset")
    if wanted != "dataset" and checkpoint.normalizer is not None:
        recorded = len(checkpoint.normalizer.mean)
        if recorded != width:
            raise DatasetError(
                f"{dataset.name}: {state_key} is {width} wide, the model was trained on {recorded}. Choose the right state "
                "with --state-key, or give --state-stats dataset if the width alone differs"
            )
        return check_statistics(checkpoint.normalizer, checkpoint.name, state_key), "checkpoint"
    if wanted is None:
        notices.append("the checkpoint has no state statistics; the scored dataset's are used, as LeRobot does")
    mean, std = state_statistics(dataset, state_key)
    if len(mean) != width:
        raise DatasetError(f"{dataset.name}: {state_key} is {width} wide, its statistics have {len(mean)} numbers")
    normalizer = StateNormalizer(mean.astype(np.float32), std.astype(np.float32))
    return check_statistics(normalizer, dataset.name, state_key), "dataset"


def check_statistics(normalizer: StateNormalizer, owner: str, state_key: str) -> StateNormalizer:
    """Statistics that can be divided by: one NaN in them would make every score NaN."""
    mean, std = normalizer.mean, normalizer.std
    if mean.shape != std.shape:
        raise DatasetError(f"{owner}: {state_key} has {len(mean)} means and {len(std)} standard deviations")
    bad = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(std) & (std >= 0)))
    if len(bad):
        raise DatasetError(
            f"{owner}: the statistics of {state_key} are no numbers in dimensions {name_list(map(str, bad))}"
        )
    return normalizer


def choose_window(dataset: Dataset, checkpoint: Checkpoint, notices: list[str]) -> Window:
    """The checkpoint's window at the data's frame rate."""
    trained_fps = checkpoint.sidecar.fps if checkpoint.sidecar else None
    trained_gap = checkpoint.config.frame_gap
    gap = gap_in_frames(trained_gap, trained_fps, dataset.fps)
    if gap != trained_gap:
        notices.append(
            f"trained at {trained_fps:g} fps with {trained_gap} frames between slots; at {dataset.fps:g} fps that is {gap}"
        )
    return checkpoint.window(gap)


def choose_heads(head_mode: str, checkpoint: Checkpoint, notices: list[str]) -> tuple[str, ...]:
    """The heads asked for, of those the checkpoint has."""
    wanted = ("sparse", "dense") if head_mode == "both" else (head_mode,)
    trained = checkpoint.config.heads
    if not set(wanted) <= set(trained):
        notices.append(f"the checkpoint has the {trained[0]} head alone; it is scored instead of {head_mode}")
        return trained
    return wanted


def model_folder(name: str) -> str:
    """Where a checkpoint's files are on this machine; fetched from the Hub or a store where need be."""
    if "://" in name:
        return _remote_folder(name, CHECKPOINT_FILES, CheckpointError)
    local = _local_folder(name, CheckpointError, "")
    return local or hub.download_from_hub(name, CHECKPOINT_FILES, None, "model")


def _encoder_folder(name: str) -> str:
    if "://" in name:
        return _remote_folder(name, [*CLIP_FILES, *WEIGHT_FILES], EncoderError)
    local = _local_folder(name, EncoderError, f"; known by name: {EFFICIENTNET}, {CLIP}")
    if local is not None:
        return local
    folder = hub.download_from_hub(name, [*CLIP_FILES, WEIGHT_FILES[0]], None, "model")
    if (Path(folder) / WEIGHT_FILES[0]).exists():
        return folder
    return hub.download_from_hub(name, [*CLIP_FILES, WEIGHT_FILES[1]], None, "model")


def _remote_folder(url: str, patterns: list[str], error: type[SarmRayError]) -> str:
    try:
        return copy_model(url, patterns)
    except FileNotFoundError:
        raise error(f"{url}: there is no model in that folder (none of {name_list(patterns)})") from None


def _local_folder(name: str, error: type[SarmRayError], hint: str) -> str | None:
    """The folder of that name on this machine, or None for what can only be a Hub id."""
    local = Path(name).expanduser()
    if local.is_dir():
        return str(local.resolve())
    if local.exists() or not hub.is_hub_id(name):
        raise error(f"{name}: no such folder{hint}")
    return None


def has_files(dataset: Dataset, camera: str) -> bool:
    """Whether any of a declared camera's files is there."""
    if dataset.is_video(camera) and camera not in dataset.videos:
        return False
    return any(path in dataset.files for path in dataset.camera_files(camera).paths)
