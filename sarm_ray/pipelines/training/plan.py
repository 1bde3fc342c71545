"""What a training run will do, decided before it does anything: data, labels, split, model, workers."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sarm_ray.config.train import TrainConfig
from sarm_ray.core.windows import Window, gap_in_frames
from sarm_ray.data.lerobot import Dataset, fetch_files, open_dataset
from sarm_ray.data.rows import episode_texts, state_statistics
from sarm_ray.errors import ConfigError, DatasetError, name_list
from sarm_ray.model.checkpoint import Checkpoint, SarmConfig, Sidecar, StateNormalizer
from sarm_ray.model.encoder import CLIP, EncoderInfo
from sarm_ray.pipelines.ingest_plan import IngestPlan, plan_cameras
from sarm_ray.pipelines.inputs import (
    check_statistics,
    choose_camera,
    notice_of_order,
    open_encoder,
    select_episodes,
    state_width,
)
from sarm_ray.pipelines.runtime import Cluster
from sarm_ray.pipelines.training.labels import HeadLabels, read_labels
from sarm_ray.pipelines.training.networks import model_config, open_parent
from sarm_ray.pipelines.training.workers import Workers, choose_precision, choose_stage, choose_workers


@dataclass(frozen=True)
class TrainSource:
    """One dataset of a run.

    Args:
        cameras: the features it needs, of each camera in the model's order.
        window: the model's, at this dataset's frame rate.
        texts: N task texts, one per episode of the run.
        held_out: (N,) bool, which of those episodes are for validation.
        first_index: global index of the dataset's first frame, counted over all datasets.
    """

    cameras: tuple[IngestPlan, ...]
    window: Window
    texts: tuple[str, ...]
    held_out: np.ndarray
    first_index: int

    @property
    def ingest(self) -> IngestPlan:
        """The first camera's; dataset, episodes and chunks are the same for all."""
        return self.cameras[0]

    def episodes(self, held_out: bool, left_out: frozenset[int] = frozenset()) -> np.ndarray:
        """Episodes to train on or held-out ones, without those left out, as positions in the dataset's table: (N,) int64."""
        return np.setdiff1d(self.ingest.rows[self.held_out == held_out], list(left_out))

    def chunks(self, held_out: bool, left_out: frozenset[int] = frozenset()) -> np.ndarray:
        """Their chunks, as positions in the ingest plan's: (C,) int64."""
        return np.flatnonzero(np.isin(self.ingest.chunks.row, self.episodes(held_out, left_out)))


@dataclass(frozen=True)
class TrainPlan:
    """A training run, decided.

    Args:
        sources: its datasets.
        labels: head -> what it is trained towards.
        config: LeRobot's config of the model that comes out.
        encoder, normalizer, fps, texts: what the model is fed.
        init_from: checkpoint to start from, or None.
        workers, deepspeed_stage, precision: of the training processes.
        notices: what the user should know.
    """

    sources: tuple[TrainSource, ...]
    labels: dict[str, HeadLabels]
    config: SarmConfig
    encoder: EncoderInfo
    normalizer: StateNormalizer
    init_from: Checkpoint | None
    workers: Workers
    deepspeed_stage: int
    precision: str
    notices: tuple[str, ...]

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(self.labels)

    @property
    def num_cameras(self) -> int:
        return len(self.sources[0].cameras)

    @property
    def fps(self) -> float:
        """Of the first dataset; the others' windows are converted to it by time."""
        return float(self.sources[0].ingest.dataset.fps)

    def strange_to_lerobot(self) -> list[str]:
        """What LeRobot, which has one camera, one encoder and one window, knows nothing of; empty where it can score."""
        strange = [f"{self.num_cameras} cameras"] if self.num_cameras > 1 else []
        if self.encoder.name != CLIP:
            copy = f" (if that is no copy of {CLIP})" if self.encoder.kind == "clip" else ""
            strange.append(f"features of {self.encoder.name}{copy}")
        return strange + (["a past window"] if self.sources[0].window.kind == "past" else [])

    def texts(self) -> list[str]:
        """The distinct task texts, sorted."""
        return sorted({text for source in self.sources for text in source.texts})

    def sidecar(self) -> Sidecar:
        """What a checkpoint of this run records beside LeRobot's files."""
        cameras = [camera.camera for camera in self.sources[0].cameras]
        if self.num_cameras == 1:  # each dataset may have its own name for it
            cameras = sorted({source.ingest.camera for source in self.sources})
        return Sidecar(
            encoder=self.encoder.name,
            encoder_weights=self.encoder.weights,
            window=self.sources[0].window.kind,
            fps=self.fps,
            image_keys=cameras,
            num_cameras=self.num_cameras,
            task_texts=self.texts(),
            data_fingerprint=self.fingerprint(),
        )

    def fingerprint(self) -> str:
        """Of everything that decides which samples step s sees: a resumed run must have the same."""
        digest = hashlib.sha256()
        for source in self.sources:
            for camera in source.cameras:
                for values in (camera.layout[camera.rows], camera.source[camera.rows]):
                    digest.update(values.tobytes())
                digest.update(camera.key.folder.encode())
            digest.update(source.held_out.tobytes())
            digest.update(json.dumps([repr(source.window), source.texts]).encode())
        for head, labels in self.labels.items():
            digest.update(json.dumps([head, labels.stages]).encode())
            for own in labels.segments:
                for values in (own.offsets, own.stage, own.start, own.end):
                    digest.update(values.tobytes())
        return digest.hexdigest()[:16]


def plan_training(config: TrainConfig, cluster: Cluster) -> TrainPlan:
    """Decide everything that can be decided before a frame is decoded. Writes nothing.

    Raises:
        SarmRayError: naming what does not exist or does not fit, and the way out.
    """
    notices: list[str] = []
    workers = choose_workers(config, cluster)
    datasets = [open_dataset(name, config.revision) for name in config.datasets]
    for dataset in datasets:
        notices += dataset.notices
    rows = [select_episodes(config.episodes, dataset) for dataset in datasets]
    labels = read_labels(datasets, rows, config.annotation_mode)
    encoder = open_encoder(config.encoder)
    precision = choose_precision(config.precision, cluster, workers.on_gpu)
    rows = _labelled_rows(datasets, rows, labels, notices)
    sources = _plan_sources(config, datasets, rows, encoder, cluster, notices)
    normalizer = _pool_statistics(datasets, config.state_key)
    model = model_config(config, labels, encoder, sources[0].ingest.camera)
    num_cameras = len(sources[0].cameras)
    init_from = None if config.init_from is None else open_parent(config.init_from, model, encoder, num_cameras)
    if init_from is not None and num_cameras > 1:
        notices += notice_of_order(config.image_keys, init_from)
    plan = TrainPlan(
        sources=sources,
        labels=labels,
        config=model,
        encoder=encoder,
        normalizer=normalizer,
        init_from=init_from,
        workers=workers,
        deepspeed_stage=choose_stage(config.deepspeed_stage, workers.most, precision),
        precision=precision,
        notices=tuple(notices),
    )
    _check_sizes(config, plan)
    return plan


def training_lengths(plan: TrainPlan, left_out: Sequence[frozenset[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The chunks whose frames training is centred on.

    Args:
        plan: of the run.
        left_out: of each dataset, episodes that cannot be read, as positions in its table.

    Returns:
        (C, 2) int64 dataset and chunk, and (C,) int64 frames of each.
    """
    pairs, lengths = [], []
    for number, (source, out) in enumerate(zip(plan.sources, left_out, strict=True)):
        chunks = source.chunks(held_out=False, left_out=out)
        pairs.append(np.stack([np.full(len(chunks), number), chunks], axis=1))
        lengths.append((source.ingest.chunks.stop - source.ingest.chunks.start)[chunks])
    return np.concatenate(pairs), np.concatenate(lengths)


def _labelled_rows(
    datasets: Sequence[Dataset], rows: Sequence[np.ndarray], labels: dict[str, HeadLabels], notices: list[str]
) -> list[np.ndarray]:
    """Episodes that some multi-stage head can learn from; where there is none such head, all."""
    heads = [head for head, own in labels.items() if len(own.stages) > 1] or list(labels)
    kept = []
    for number, (dataset, own) in enumerate(zip(datasets, rows, strict=True)):
        carried = np.stack([labels[head].annotated[number][own] for head in heads])
        for head, mask in zip(heads, carried, strict=True):
            if not mask.all():
                notices.append(
                    f"{dataset.name}: {int((~mask).sum())} of {len(own)} episodes have no {head} subtasks and are left out "
                    "of that head's loss"
                )
        kept.append(own[carried.any(axis=0)] if len(labels) == len(heads) else own)
    return kept


def _plan_sources(
    config: TrainConfig,
    datasets: Sequence[Dataset],
    rows: Sequence[np.ndarray],
    encoder: EncoderInfo,
    cluster: Cluster,
    notices: list[str],
) -> tuple[TrainSource, ...]:
    sources, first_index = [], 0
    encode = "bf16" if cluster.bf16 and config.precision != "fp32" and encoder.bf16 else "fp32"
    for number, (dataset, own) in enumerate(zip(datasets, rows, strict=True)):
        fetch_files(dataset, own)
        gap = gap_in_frames(config.model.frame_gap, datasets[0].fps, dataset.fps)
        window = Window(config.model.n_obs_steps, gap, config.window)
        keys = [choose_camera(dataset, key) for key in config.image_keys] or [choose_camera(dataset, None)]
        cameras = plan_cameras(
            dataset,
            keys,
            encoder,
            precision=encode,
            dtype="float32" if config.precision == "fp32" else "float16",
            rows=own,
            stride=1,
            window=window,
            cache=config.cache,
        )
        span = (window.n_obs_steps if config.window == "past" else window.n_obs_steps // 2) * gap
        short = int((dataset.length[own] <= span).sum())
        if short:
            notices.append(
                f"{dataset.name}: {short} of {len(own)} episodes are shorter than the window of {span} frames; their "
                "windows repeat the first and the last frame"
            )
        texts = tuple(episode_texts(dataset, own, config.task))
        held_out = _hold_out(config, len(own), number)
        sources.append(TrainSource(cameras, window, texts, held_out, first_index))
        first_index += int(dataset.length.sum())
    return tuple(sources)


def _hold_out(config: TrainConfig, num_episodes: int, number: int) -> np.ndarray:
    """Whole episodes for validation, by seed: (N,) bool. One at least, if there are two."""
    held_out = np.zeros(num_episodes, dtype=bool)
    count = round(config.val_fraction * num_episodes)
    if config.val_fraction > 0 and num_episodes > 1:
        count = min(max(count, 1), num_episodes - 1)
        held_out[np.random.default_rng([config.seed, number]).permutation(num_episodes)[:count]] = True
    return held_out


def _pool_statistics(datasets: Sequence[Dataset], state_key: str) -> StateNormalizer:
    """Mean and standard deviation of the state over all datasets, weighted by frames."""
    widths = {dataset.name: state_width(dataset, state_key) for dataset in datasets}
    if len(set(widths.values())) > 1:
        listed = name_list(f"{name}: {width}" for name, width in widths.items())
        raise DatasetError(f"{state_key} differs in width ({listed}); datasets that train one model must agree")
    moments = [state_statistics(dataset, state_key) for dataset in datasets]
    for dataset, (mean, std) in zip(datasets, moments, strict=True):
        own = StateNormalizer(mean.astype(np.float32), std.astype(np.float32))
        check_statistics(own, dataset.name, state_key)
        if len(mean) != widths[dataset.name]:
            raise DatasetError(
                f"{dataset.name}: {state_key} is {widths[dataset.name]} wide, its statistics have {len(mean)} numbers"
            )
    share = np.array([dataset.length.sum() for dataset in datasets], dtype=np.float64)
    share /= share.sum()
    mean = sum(weight * own for weight, (own, _) in zip(share, moments, strict=True))
    variance = sum(weight * (std**2 + (own - mean) ** 2) for weight, (own, std) in zip(share, moments, strict=True))
    return StateNormalizer(np.asarray(mean, dtype=np.float32), np.sqrt(variance).astype(np.float32))


def _check_sizes(config: TrainConfig, plan: TrainPlan) -> None:
    for head, own in plan.labels.items():
        pairs = zip(own.annotated, plan.sources, strict=True)
        if not any(annotated[source.episodes(held_out=False)].any() for annotated, source in pairs):
            raise DatasetError(
                f"no episode to train on has {head} subtasks, those that have are held out; annotate more, or choose "
                "another --seed or --val-fraction"
            )
    _, lengths = training_lengths(plan, [frozenset()] * len(plan.sources))
    num_frames = int(lengths.sum())
    if config.batch_size > num_frames:
        raise ConfigError(
            f"--batch-size {config.batch_size} is larger than the training data, {num_frames} frames of "
            f"{sum(int((~source.held_out).sum()) for source in plan.sources)} episodes"
        )
