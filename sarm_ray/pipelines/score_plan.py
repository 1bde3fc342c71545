"""What a scoring run will do, decided before it does anything: inputs resolved, work counted, outputs placed."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sarm_ray.config.loading import dump_config
from sarm_ray.config.score import ScoreConfig
from sarm_ray.core.episodes import count_frames
from sarm_ray.core.windows import (
    Window,
    bitmaps_by_length,
    cheaper_stride,
    computed_mask,
)
from sarm_ray.data import hub, progress_io, storage
from sarm_ray.data.lerobot import Dataset, fetch_files, open_dataset
from sarm_ray.data.progress_io import PROGRESS_FILE
from sarm_ray.data.rows import episode_texts
from sarm_ray.errors import (
    ConfigError,
    DatasetError,
    OutputExistsError,
    name_list,
)
from sarm_ray.model.checkpoint import Checkpoint, StateNormalizer, open_checkpoint
from sarm_ray.model.encoder import EncoderInfo
from sarm_ray.pipelines.ingest_plan import IngestPlan, plan_cameras
from sarm_ray.pipelines.inputs import (
    choose_cameras,
    choose_encoder,
    choose_heads,
    choose_normalizer,
    choose_window,
    has_files,
    model_folder,
    select_episodes,
)
from sarm_ray.pipelines.runtime import Cluster
from sarm_ray.pipelines.score_facts import (
    FINGERPRINT,
    STATISTICS,
    describe_inputs,
    describe_options,
    describe_statistics,
    fingerprint,
    precision_of,
    state_key_of,
)

NO_EPISODES = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class ScoreModel:
    """What all datasets of a run are scored by.

    Args:
        checkpoint, encoder, heads: see `ScorePlan`.
        notices: what the user should know of them.
    """

    checkpoint: Checkpoint
    encoder: EncoderInfo
    heads: tuple[str, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class ScoreTarget:
    """What is to be scored of a dataset, and where to.

    Args:
        dataset: opened.
        output: the progress file.
        rows: (N,) int64, episodes to score, as positions in the dataset's table.
        kept: (K,) int64, episodes whose rows are taken over from the output that is there; none of `rows`.
        push_to: see `ScorePlan`.
    """

    dataset: Dataset
    output: str
    rows: np.ndarray
    kept: np.ndarray
    push_to: tuple[str, str | None] | None = None


@dataclass(frozen=True)
class ScorePlan:
    """A scoring run, decided.

    Args:
        cameras: the features it needs, of each camera in the model's order.
        checkpoint, heads, window, precision: how they are scored.
        state_key, normalizer, state_source: the state and the statistics it is normalised by.
        texts: N task texts, one per episode of the run.
        computed: (C, BITMAP_BYTES) uint8, frames whose progress is computed.
        stride: the others are interpolated.
        output: the progress file.
        kept: (K,) int64, episodes whose rows it has already and keeps, as positions in the dataset's table.
        metadata: of that file.
        stage_probabilities: whether to write them.
        push_to: Hub repository that gets the output, and its branch (None: the default one); None pushes nothing.
        notices: what the user should know.
    """

    cameras: tuple[IngestPlan, ...]
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
    kept: np.ndarray
    metadata: dict[str, str]
    stage_probabilities: bool
    push_to: tuple[str, str | None] | None
    notices: tuple[str, ...]

    @property
    def ingest(self) -> IngestPlan:
        """The first camera's; dataset, episodes and chunks are the same for all."""
        return self.cameras[0]

    @property
    def run_folder(self) -> str:
        """Everything of the run but its output."""
        return f"{self.output}.run"

    @functools.cached_property  # a second for a million episodes, and asked for again and again
    def parts_folder(self) -> str:
        """Scored chunks, under a name that changes with anything their values depend on."""
        data = self.ingest
        facts = {
            "metadata": {key: value for key, value in self.metadata.items() if key != "reward_model_path"},
            "checkpoint": self.checkpoint.weights,
            "window": repr(self.window),
            "features": [camera.key.folder for camera in self.cameras],
            "precision": self.precision,
            "state": [self.state_key, self.normalizer.mean.tolist(), self.normalizer.std.tolist()],
            "texts": self.texts,
            "rows": data.rows.tolist(),
            "videos": [camera.source[data.rows].tolist() for camera in self.cameras],
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        return storage.join(self.run_folder, f"{progress_io.PARTS_PREFIX}{digest}")

    def write_config(self, config: ScoreConfig) -> None:
        """What is run, with what was left open filled in: `--config` takes it."""
        data = self.ingest
        resolved = replace(
            config,
            dataset=self.push_to[0] if self.push_to else data.dataset.repo_id or data.dataset.root,
            revision=self.push_to[1] if self.push_to else data.dataset.revision,
            output=self.output,
            follow=None,
            image_key=[camera.camera for camera in self.cameras] if len(self.cameras) > 1 else data.camera,
            state_key=self.state_key,
            state_stats=self.state_source,  # type: ignore[arg-type]
            encoder=data.encoder.name,
            precision="bf16" if self.precision == "bf16" else config.precision,
        )
        storage.write_file(storage.join(self.run_folder, "config.yaml"), dump_config(resolved).encode())


def plan_scores(config: ScoreConfig, cluster: Cluster) -> list[ScorePlan]:
    """The plan of every dataset of a run. Writes nothing.

    Raises:
        SarmRayError: naming what does not exist or does not fit, and the way out.
    """
    checkpoint = open_checkpoint(config.model, model_folder(config.model))
    datasets = [open_dataset(name, config.revision) for name in config.datasets]
    outputs = _place_outputs(config, datasets)
    model = choose_model(config, checkpoint)
    plans: list[ScorePlan] = []
    for name, dataset, output in zip(config.datasets, datasets, outputs, strict=True):
        push_to = hub.place_push(name, config.revision) if config.push_to_hub else None
        target = ScoreTarget(dataset, output, select_episodes(config.episodes, dataset), NO_EPISODES, push_to)
        plans.append(plan_score(config, target, model, cluster, () if plans else model.notices))
        refuse_finished(plans[-1], config)
    return plans


def choose_model(config: ScoreConfig, checkpoint: Checkpoint) -> ScoreModel:
    """The encoder and the heads that go with a checkpoint.

    Raises:
        CheckpointError, EncoderError: they do not fit, or are not there.
    """
    notices: list[str] = []
    encoder = choose_encoder(config.encoder, checkpoint, notices)
    return ScoreModel(checkpoint, encoder, choose_heads(config.head_mode, checkpoint, notices), tuple(notices))


def plan_score(
    config: ScoreConfig, target: ScoreTarget, model: ScoreModel, cluster: Cluster, told: Sequence[str] = ()
) -> ScorePlan:
    """The plan of one dataset. Writes nothing.

    Args:
        config: of the run.
        target: the dataset.
        model: what scores it.
        cluster: where.
        told: notices that come before its own.

    Raises:
        SarmRayError: naming what does not fit, and the way out.
    """
    dataset, checkpoint, encoder, rows = target.dataset, model.checkpoint, model.encoder, target.rows
    notices = [*told, *dataset.notices]
    keys = choose_cameras(dataset, config.image_keys, checkpoint, notices)
    notices += _notice_of_empty(dataset, keys)
    fetch_files(dataset, rows)
    state_key = state_key_of(config, checkpoint)
    normalizer, state_source = choose_normalizer(config.state_stats, dataset, checkpoint, state_key, notices)
    window = replace(choose_window(dataset, checkpoint, notices), live=config.live)
    precision = precision_of(config, cluster)
    cameras = _plan_features(config, target, keys, encoder, precision, window, notices)
    made_from = fingerprint(dataset, np.union1d(rows, target.kept), [(own.layout, own.source) for own in cameras])
    return ScorePlan(
        cameras=cameras,
        checkpoint=checkpoint,
        heads=model.heads,
        window=window,
        precision=precision,
        state_key=state_key,
        normalizer=normalizer,
        state_source=state_source,
        texts=tuple(episode_texts(dataset, rows, config.task)),
        computed=bitmaps_by_length(dataset.length[rows], lambda length: computed_mask(length, config.stride)),
        stride=config.stride,
        output=target.output,
        kept=target.kept,
        metadata={
            **describe_options(config, checkpoint, encoder),
            **describe_inputs(config, keys, checkpoint, encoder, cluster),
            STATISTICS: describe_statistics(normalizer, state_source),
            FINGERPRINT: made_from,
        },
        stage_probabilities=config.stage_probabilities,
        push_to=target.push_to,
        notices=tuple(notices),
    )


def _plan_features(
    config: ScoreConfig,
    target: ScoreTarget,
    keys: Sequence[str],
    encoder: EncoderInfo,
    precision: str,
    window: Window,
    notices: list[str],
) -> tuple[IngestPlan, ...]:
    """The features that are needed of each camera."""
    cameras = plan_cameras(
        target.dataset,
        keys,
        encoder,
        precision=precision if encoder.bf16 else "fp32",
        dtype="float32" if config.precision == "fp32" else "float16",
        rows=target.rows,
        stride=config.stride,
        window=window,
        cache=config.cache,
    )
    for camera in cameras:
        _check_sources(camera, notices)
    if config.stride > 1:
        _advise_stride(cameras[0], config.stride, window, notices)
    return cameras


def _notice_of_empty(dataset: Dataset, keys: Sequence[str]) -> list[str]:
    empty = [key for key in dataset.cameras if key not in keys and not has_files(dataset, key)]
    declared = f"meta/info.json declares {name_list(empty)}, of which there are no files"
    return [f"{declared}; {name_list(keys)} {'is' if len(keys) == 1 else 'are'} scored"] if empty else []


def refuse_finished(plan: ScorePlan, config: ScoreConfig) -> None:
    """Keep an output that is there, unless told otherwise or a run like this one was cut off after writing it."""
    if config.overwrite or config.dry_run or not storage.exists(plan.output):
        return
    if not storage.list_files(plan.parts_folder):
        raise OutputExistsError(f"{plan.output} exists; replace it with --overwrite, or choose another --output")


def _place_outputs(config: ScoreConfig, datasets: list[Dataset]) -> list[str]:
    """Where each dataset's progress file goes; never inside a Hub cache."""
    outputs = [_place_output(config, dataset) for dataset in datasets]
    for output, dataset in zip(outputs, datasets, strict=True):
        if outputs.count(output) > 1:
            raise ConfigError(f"two datasets named {dataset.name} would both be written to {output}; score them apart")
        if storage.is_folder(output):
            raise ConfigError(f"{output} is a folder; give --output a file, such as {output}/{PROGRESS_FILE}")
    return outputs


def _place_output(config: ScoreConfig, dataset: Dataset) -> str:
    name = dataset.name.rsplit("/", 1)[-1]
    if config.output is not None and len(config.datasets) > 1:
        return storage.join(storage.absolute(config.output), name, PROGRESS_FILE)
    if config.output is not None:
        return storage.absolute(config.output)
    if dataset.repo_id is None and storage.is_local(dataset.root) and storage.is_writable_folder(dataset.root):
        return storage.join(dataset.root, PROGRESS_FILE)
    return str(Path.cwd() / name / PROGRESS_FILE)


def _check_sources(data: IngestPlan, notices: list[str]) -> None:
    """A camera whose videos were moved away can be scored from the store; one that never had any cannot."""
    dataset, files = data.dataset, data.dataset.camera_files(data.camera)
    gone = [files.paths[file] for file in np.unique(files.file[data.rows]) if files.paths[file] not in dataset.files]
    if not gone:
        return
    if data.missing.any() and not has_files(dataset, data.camera):
        raise DatasetError(
            f"{dataset.name}: camera {data.camera} has no files under {dataset.root} ({gone[0]} is not there)"
        )
    which = f"a file of {data.camera} is" if len(gone) == 1 else f"{len(gone)} files of {data.camera} are"
    notices.append(f"{which} not there ({name_list(gone, 2)}); only stored features count")


def _advise_stride(data: IngestPlan, stride: int, window: Window, notices: list[str]) -> None:
    share = count_frames(data.needed).sum() / data.dataset.length[data.rows].sum()
    better = cheaper_stride(stride, window)
    advice = f"; stride {better} needs clearly fewer" if better and share > 1.5 / stride else ""
    notices.append(
        f"stride {stride} with windows {window.frame_gap} frames apart needs {share:.0%} of the frames{advice}"
    )
