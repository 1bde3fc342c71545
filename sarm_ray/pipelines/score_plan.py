"""What a scoring run will do, decided before it does anything: inputs resolved, work counted, outputs placed."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sarm_ray import __version__
from sarm_ray.config import ScoreConfig, dump_config
from sarm_ray.console import note, say, size
from sarm_ray.core.episodes import count_frames, parse_selection
from sarm_ray.core.windows import (
    Window,
    bitmaps_by_length,
    cheaper_stride,
    computed_mask,
    gap_in_frames,
)
from sarm_ray.data import progress_io, storage
from sarm_ray.data.lerobot import Dataset, fetch_files, open_dataset
from sarm_ray.data.rows import episode_texts, state_statistics
from sarm_ray.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    EncoderError,
    OutputExistsError,
    name_list,
    nearest,
)
from sarm_ray.model.checkpoint import Checkpoint, StateNormalizer, open_checkpoint
from sarm_ray.model.encoder import CLIP, EFFICIENTNET, WEIGHT_FILES, EncoderInfo, describe_encoder
from sarm_ray.pipelines.ingest import IngestPlan, plan_ingest
from sarm_ray.pipelines.runtime import Cluster

PROGRESS_FILE = "sarm_progress.parquet"
CHECKPOINT_FILES = ["config.json", "model.safetensors", "*normalizer*.safetensors", "sarm_ray.json"]
CLIP_FILES = ["config.json", "*token*", "vocab.json", "merges.txt"]


@dataclass(frozen=True)
class ScorePlan:
    """A scoring run, decided.

    Args:
        ingest: the features it needs.
        checkpoint, heads, window, precision: how they are scored.
        state_key, normalizer, state_source: the state and the statistics it is normalised by.
        texts: N task texts, one per episode of the run.
        computed: (C, BITMAP_BYTES) uint8, frames whose progress is computed.
        stride: the others are interpolated.
        output: the progress file.
        metadata: of that file.
        stage_probabilities: whether to write them.
        notices: what the user should know.
    """

    ingest: IngestPlan
    checkpoint: Checkpoint
    heads: tuple[str, ...]
    window: Window
    precision: str
    state_key: str
    normalizer: StateNormalizer
    state_source: str
    texts: tuple[str, ...]
    computed: np.ndarray
    stride: int
    output: str
    metadata: dict[str, str]
    stage_probabilities: bool
    notices: tuple[str, ...]

    @property
    def run_folder(self) -> str:
        """Everything of the run but its output."""
        return f"{self.output}.run"

    @property
    def parts_folder(self) -> str:
        """Scored chunks, under a name that changes with anything their values depend on."""
        data = self.ingest
        facts = {
            "metadata": {key: value for key, value in self.metadata.items() if key != "reward_model_path"},
            "checkpoint": self.checkpoint.weights,
            "window": repr(self.window),
            "features": data.key.folder,
            "precision": self.precision,
            "state": [self.state_key, self.normalizer.mean.tolist(), self.normalizer.std.tolist()],
            "texts": self.texts,
            "rows": data.rows.tolist(),
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        return storage.join(self.run_folder, f"parts-{digest}")

    def write_config(self, config: ScoreConfig) -> None:
        progress_io.write_text(storage.join(self.run_folder, "config.yaml"), dump_config(config))


def plan_score(config: ScoreConfig, cluster: Cluster) -> ScorePlan:
    """Resolve inputs, check that they fit together, and count the work. Writes nothing.

    Raises:
        SarmRayError: naming what does not exist or does not fit, and the way out.
    """
    dataset = open_dataset(config.dataset, config.revision)
    checkpoint = open_checkpoint(config.model, _model_folder(config.model))
    notices = list(dataset.notices)
    output = _place_output(config, dataset)
    camera = choose_camera(dataset, config.image_key, checkpoint)
    empty = [key for key in dataset.cameras if key != camera and not _has_files(dataset, key)]
    if empty:
        notices.append(f"meta/info.json declares {name_list(empty)}, of which there are no files; {camera} is scored")
    rows = _select_episodes(config, dataset)
    fetch_files(dataset, rows, camera)
    encoder = choose_encoder(config.encoder, checkpoint, notices)
    state_key = config.state_key or checkpoint.config.state_key
    normalizer, state_source = choose_normalizer(config.state_stats, dataset, checkpoint, state_key, notices)
    window = _choose_window(dataset, checkpoint, notices)
    heads = _choose_heads(config.head_mode, checkpoint, notices)
    precision = config.precision if config.precision != "auto" else ("bf16" if cluster.bf16 else "fp32")
    data = plan_ingest(
        dataset,
        camera,
        encoder,
        precision=precision if encoder.bf16 else "fp32",
        dtype="float32" if config.precision == "fp32" else "float16",
        rows=rows,
        stride=config.stride,
        window=window,
        cache=config.cache,
    )
    _check_sources(data, notices)
    if config.stride > 1:
        _advise_stride(data, config.stride, window, notices)
    return ScorePlan(
        ingest=data,
        checkpoint=checkpoint,
        heads=heads,
        window=window,
        precision=precision,
        state_key=state_key,
        normalizer=normalizer,
        state_source=state_source,
        texts=tuple(episode_texts(dataset, rows, config.task)),
        computed=bitmaps_by_length(dataset.length[rows], lambda length: computed_mask(length, config.stride)),
        stride=config.stride,
        output=output,
        metadata={
            "reward_model_path": config.model,
            "sarm_ray_version": __version__,
            "encoder": encoder.name,
            "head_mode": config.head_mode,
            "stride": str(config.stride),
            "dataset_fingerprint": _fingerprint(data),
        },
        stage_probabilities=config.stage_probabilities,
        notices=tuple(notices),
    )


def describe_plan(plan: ScorePlan, cluster: Cluster) -> None:
    """The plan on screen."""
    data, dataset, config = plan.ingest, plan.ingest.dataset, plan.checkpoint.config
    num_frames, stages = int(dataset.length[data.rows].sum()), plan.checkpoint.config.shape.num_stages
    needed, missing = int(count_frames(data.needed).sum()), int(count_frames(data.missing).sum())
    bytes_per_frame = data.key.feature_dim * np.dtype(data.store.dtype).itemsize
    window = f"{plan.window.kind}, {plan.window.num_slots} frames {plan.window.frame_gap} apart"
    heads = ", ".join(f"{head} ({stages(head)} stages)" for head in plan.heads)
    lines = {
        "dataset": f"{dataset.root} (LeRobot {dataset.version}, {dataset.fps:g} fps)",
        "episodes": f"{len(data.rows):,} of {len(dataset.length):,}, {num_frames:,} frames",
        "camera": data.camera,
        "model": f"{plan.checkpoint.folder} ({config.annotation_mode}; {heads}; window {window}; {plan.precision})",
        "encoder": f"{data.encoder.name} ({data.key.precision}, stored as {data.store.dtype})",
        "state": f"{plan.state_key}, {len(plan.normalizer.mean)} wide, statistics of the {plan.state_source}",
        "scored": f"{int(count_frames(plan.computed).sum()):,} frames, stride {plan.stride}",
        "features": f"{needed:,} frames needed, {needed - missing:,} in the store, {missing:,} to decode and encode in "
        f"{int(data.missing.any(axis=1).sum()):,} chunks, {size(missing * bytes_per_frame)}",
        "store": data.store.location,
        "workers": f"up to {cluster.num_actors} on {cluster.describe()}",
        "output": plan.output,
    }
    for name, text in lines.items():
        say(f"{name:<9} {text}")
    for text in plan.notices:
        note(text)


def choose_camera(dataset: Dataset, wanted: str | None, checkpoint: Checkpoint) -> str:
    """The camera to score: the given one, else the one the model was trained on, else the only one that has files."""
    if wanted is not None:
        if wanted not in dataset.cameras:
            hint = nearest(wanted, dataset.cameras)
            raise DatasetError(f"{dataset.name}: no camera {wanted!r}{hint}; it has {name_list(dataset.cameras)}")
        return wanted
    trained = checkpoint.sidecar.image_keys if checkpoint.sidecar else [checkpoint.config.image_key]
    filled = [camera for camera in dataset.cameras if _has_files(dataset, camera)] or list(dataset.cameras)
    for camera in (*trained, *(filled if len(filled) == 1 else ())):
        if camera in filled:
            return camera
    raise DatasetError(
        f"{dataset.name}: the model was trained on {name_list(trained)}, the dataset has {name_list(filled)}; "
        "choose with --image-key"
    )


def choose_encoder(wanted: str | None, checkpoint: Checkpoint, notices: list[str]) -> EncoderInfo:
    """The checkpoint's encoder. One without our sidecar counts as LeRobot's CLIP, and --encoder may replace that."""
    sidecar, config = checkpoint.sidecar, checkpoint.config
    name = wanted or (sidecar.encoder if sidecar else CLIP)
    encoder = describe_encoder(name, None if name == EFFICIENTNET else _encoder_folder(name))
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


def choose_normalizer(
    wanted: str | None, dataset: Dataset, checkpoint: Checkpoint, state_key: str, notices: list[str]
) -> tuple[StateNormalizer, str]:
    """State statistics and where they are from: the checkpoint, or (asked for, or for want of those) the dataset."""
    if state_key not in dataset.features:
        vectors = [key for key, spec in dataset.features.items() if str(spec.get("dtype", "")).startswith("float")]
        raise DatasetError(
            f"{dataset.name}: no state {state_key!r}{nearest(state_key, vectors)}; it has {name_list(vectors)}. "
            "Choose with --state-key"
        )
    width = int(np.prod(dataset.features[state_key].get("shape") or [1]))
    if wanted == "checkpoint" and checkpoint.normalizer is None:
        raise CheckpointError(f"{checkpoint.name} has no state statistics; use --state-stats dataset")
    if wanted != "dataset" and checkpoint.normalizer is not None:
        recorded = len(checkpoint.normalizer.mean)
        if recorded != width:
            raise DatasetError(
                f"{dataset.name}: {state_key} is {width} wide, the model was trained on {recorded}. Choose the right state "
                "with --state-key, or give --state-stats dataset if the width alone differs"
            )
        return checkpoint.normalizer, "checkpoint"
    if wanted is None:
        notices.append("the checkpoint has no state statistics; the scored dataset's are used, as LeRobot does")
    mean, std = state_statistics(dataset, state_key)
    if len(mean) != width:
        raise DatasetError(f"{dataset.name}: {state_key} is {width} wide, its statistics have {len(mean)} numbers")
    return StateNormalizer(mean.astype(np.float32), std.astype(np.float32)), "dataset"


def _choose_window(dataset: Dataset, checkpoint: Checkpoint, notices: list[str]) -> Window:
    trained_fps = checkpoint.sidecar.fps if checkpoint.sidecar else None
    trained_gap = checkpoint.config.frame_gap
    gap = gap_in_frames(trained_gap, trained_fps, dataset.fps)
    if gap != trained_gap:
        notices.append(
            f"trained at {trained_fps:g} fps with {trained_gap} frames between slots; at {dataset.fps:g} fps that is {gap}"
        )
    return checkpoint.window(gap)


def _choose_heads(head_mode: str, checkpoint: Checkpoint, notices: list[str]) -> tuple[str, ...]:
    wanted = ("sparse", "dense") if head_mode == "both" else (head_mode,)
    trained = checkpoint.config.heads
    if not set(wanted) <= set(trained):
        notices.append(f"the checkpoint has the {trained[0]} head alone; it is scored instead of {head_mode}")
        return trained
    return wanted


def _select_episodes(config: ScoreConfig, dataset: Dataset) -> np.ndarray:
    if config.episodes is None:
        return np.arange(len(dataset.length))
    try:
        return parse_selection(config.episodes, dataset.episode_index)
    except ValueError as error:
        raise ConfigError(f"{dataset.name}: {error}") from error


def _place_output(config: ScoreConfig, dataset: Dataset) -> str:
    """Where the progress file goes; never inside a Hub cache."""
    if config.output is not None:
        output = storage.absolute(config.output)
    elif dataset.repo_id is None and storage.is_local(dataset.root) and storage.is_writable_folder(dataset.root):
        output = storage.join(dataset.root, PROGRESS_FILE)
    else:
        output = str(Path.cwd() / dataset.name.rsplit("/", 1)[-1] / PROGRESS_FILE)
    if storage.exists(output) and not config.overwrite and not config.dry_run:
        raise OutputExistsError(f"{output} exists; replace it with --overwrite, or choose another --output")
    return output


def _model_folder(name: str) -> str:
    local = Path(name).expanduser()
    if local.exists() or not storage.is_hub_id(name):
        if not local.is_dir():
            raise CheckpointError(f"{name}: no such folder")
        return str(local.resolve())
    return storage.download_from_hub(name, CHECKPOINT_FILES, None, "model")


def _encoder_folder(name: str) -> str:
    local = Path(name).expanduser()
    if local.exists() or not storage.is_hub_id(name):
        if not local.is_dir():
            raise EncoderError(f"{name}: no such folder; known by name: {EFFICIENTNET}, {CLIP}")
        return str(local.resolve())
    folder = storage.download_from_hub(name, [*CLIP_FILES, WEIGHT_FILES[0]], None, "model")
    if not (Path(folder) / WEIGHT_FILES[0]).exists():
        folder = storage.download_from_hub(name, [*CLIP_FILES, WEIGHT_FILES[1]], None, "model")
    return folder


def _has_files(dataset: Dataset, camera: str) -> bool:
    if dataset.is_video(camera) and camera not in dataset.videos:
        return False
    return any(path in dataset.files for path in dataset.camera_files(camera).paths)


def _check_sources(data: IngestPlan, notices: list[str]) -> None:
    dataset = data.dataset
    gone = [path for path in dataset.camera_files(data.camera).paths if path not in dataset.files]
    if not gone:
        return
    if data.missing.any() and not _has_files(dataset, data.camera):
        raise DatasetError(
            f"{dataset.name}: camera {data.camera} has no files under {dataset.root} ({gone[0]} is not there)"
        )
    notices.append(f"{len(gone)} files of {data.camera} are not there ({name_list(gone, 2)}); stored features stand in")


def _advise_stride(data: IngestPlan, stride: int, window: Window, notices: list[str]) -> None:
    share = count_frames(data.needed).sum() / data.dataset.length[data.rows].sum()
    better = cheaper_stride(stride, window)
    advice = f"; stride {better} needs clearly fewer" if better and share > 1.5 / stride else ""
    notices.append(
        f"stride {stride} with windows {window.frame_gap} frames apart needs {share:.0%} of the frames{advice}"
    )


def _fingerprint(data: IngestPlan) -> str:
    """What the run's rows were made from: layout of its episodes and stamps of their data files."""
    dataset = data.dataset
    stamps = [dataset.files.get(path, "") for path in dataset.data_files.paths]
    digest = hashlib.sha256(data.layout[data.rows].tobytes())
    digest.update(json.dumps(stamps).encode())
    return digest.hexdigest()[:16]
