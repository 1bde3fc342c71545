"""Scores on disk, episode by episode: a progress file, and what lies beside it, as Predictions.

    FILE                                    LeRobot's or ours: progress_<head> of every frame
    FILE.run/stage_probabilities.parquet    ours, if it was asked for
    FILE.run/config.yaml                    ours: model, camera, task text

The stages' names and shares are in none of them: they are the model's, as far as its config.json is on this machine; else
those of the dataset's annotation; else the stages go by their numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sarm_ray.core.frame_targets import stage_numbers
from sarm_ray.core.progress import stage_breakpoints
from sarm_ray.core.targets import annotated_segments, temporal_proportions
from sarm_ray.data import hub, storage
from sarm_ray.data.annotation_io import Annotations, annotation_of
from sarm_ray.data.json_files import read_json
from sarm_ray.data.lerobot import Dataset, fetch_files
from sarm_ray.data.progress_io import read_episode_probabilities, read_episode_progress
from sarm_ray.data.rows import episode_texts
from sarm_ray.errors import DatasetError, SarmRayError, name_list
from sarm_ray.report.annotations import stage_order
from sarm_ray.report.predictions import Prediction, with_annotation

HEADS = ("sparse", "dense")
CONFIG_PLACES = ("", "pretrained_model", "checkpoints/last/pretrained_model")


@dataclass(frozen=True)
class Stages:
    """A head's stages: K names, and (K + 1,) float64, the progress at which each begins."""

    names: tuple[str, ...]
    breakpoints: np.ndarray


@dataclass(frozen=True)
class Scores:
    """A progress file and what is known of it.

    Args:
        location: of the file.
        heads: whose progress it has, of HEADS.
        episodes: (n,) int64, ascending, the episodes it has.
        run: what the run's config.yaml says; empty where there is none.
        probabilities: location of the stage probabilities; None where they were not kept.
        stages: by head; a head of unknown stages is not in it.
        annotations: of the dataset, by kind.
        notices: what the user should know.
    """

    location: str
    heads: tuple[str, ...]
    episodes: np.ndarray
    run: dict[str, Any]
    probabilities: str | None
    stages: dict[str, Stages]
    annotations: dict[str, Annotations]
    notices: tuple[str, ...]


def open_scores(location: str, annotations: dict[str, Annotations]) -> Scores:
    """Everything but the scores themselves.

    Args:
        location: of the progress file.
        annotations: of the dataset, by kind.

    Raises:
        DatasetError: no such file, or not a progress file.
    """
    heads, episodes, model = _read_progress_file(location)
    run = _read_run_config(storage.join(f"{location}.run", "config.yaml"))
    model = run["model"] if isinstance(run.get("model"), str) else model
    config = _read_model_config(model) if model else {}
    by_model = {head: _stages_of_model(config, head) for head in heads}
    found = {head: own or _stages_of_annotation(annotations, head) for head, own in by_model.items()}
    strange = [head for head, own in by_model.items() if own is None]
    notices: list[str] = []
    if strange:
        known = "those of the dataset's annotation" if all(found[head] for head in strange) else "numbers"
        which = f"config.json of {model} is not here" if model else "the progress file does not say which model made it"
        notices.append(f"{which}; the names of the {' and '.join(strange)} stages are {known}")
    probabilities = storage.join(f"{location}.run", "stage_probabilities.parquet")
    kept = probabilities if storage.exists(probabilities) else None
    if kept is None:
        notices.append(
            "there are no stage probabilities beside the progress file; `score --stage-probabilities` keeps them"
        )
    stages = {head: own for head, own in found.items() if own is not None}
    return Scores(location, heads, episodes, run, kept, stages, annotations, tuple(notices))


def read_prediction(scores: Scores, dataset: Dataset, row: int, head: str) -> Prediction:
    """What a head says of an episode, and what the annotation says of it.

    Args:
        scores: of the dataset.
        dataset: the dataset.
        row: position of the episode in the table.
        head: one of scores.heads.

    Raises:
        DatasetError: the files do not have all of the episode's frames.
    """
    first, length = int(dataset.from_index[row]), int(dataset.length[row])
    progress = read_episode_progress(scores.location, head, first, length).astype(np.float32)
    probabilities = None
    if scores.probabilities is not None:
        probabilities = read_episode_probabilities(scores.probabilities, head, first, length)
    stages = scores.stages.get(head)
    if stages is not None and probabilities is not None and probabilities.shape[1] != len(stages.names):
        stages = None  # the annotation of another task
    numbers = range(probabilities.shape[1] if probabilities is not None else 0)
    prediction = Prediction(
        episode_index=int(dataset.episode_index[row]),
        head=head,
        text=read_text(dataset, row, scores.run.get("task")),
        fps=dataset.fps,
        progress=progress,
        probabilities=probabilities,
        stage_names=stages.names if stages else tuple(f"stage {number}" for number in numbers),
    )
    return with_annotation(prediction, scores.annotations, row, stages.breakpoints) if stages else prediction


def read_text(dataset: Dataset, row: int, override: str | None = None) -> str:
    """An episode's task text; empty where there is none."""
    try:
        if override is None and len(set(dataset.tasks[row])) != 1:
            fetch_files(dataset, np.array([row]))
        return episode_texts(dataset, np.array([row]), override)[0]
    except DatasetError:
        return ""


def _read_progress_file(location: str) -> tuple[tuple[str, ...], np.ndarray, str | None]:
    """Heads, episodes and the model that the schema names."""
    try:
        with storage.open_input(location) as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
            names, metadata = file.schema_arrow.names, file.schema_arrow.metadata or {}
            heads = tuple(head for head in HEADS if f"progress_{head}" in names)
            missing = [name for name in ("index", "episode_index") if name not in names]
            if missing or not heads:
                lacking = missing[0] if missing else "progress_sparse"
                raise DatasetError(f"{location}: no column {lacking!r}; it has {name_list(names)}")
            batches = file.iter_batches(2**20, columns=["episode_index"])
            parts = [np.unique(batch["episode_index"].to_numpy()) for batch in batches]
    except FileNotFoundError:
        raise DatasetError(f"{location}: no such file; `sarm-ray score` makes one") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{location}: not a readable parquet file ({str(error).splitlines()[0]})") from error
    episodes = np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
    return heads, episodes, metadata.get(b"reward_model_path", b"").decode(errors="replace") or None


def _read_run_config(location: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(storage.read_bytes(location))
    except (OSError, SarmRayError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _read_model_config(name: str) -> dict[str, Any]:
    """LeRobot's config.json of a model that is on this machine; empty for others: the Hub is not asked for a drawing."""
    from huggingface_hub import try_to_load_from_cache

    folders = [storage.join(storage.absolute(name), place) for place in CONFIG_PLACES] if "://" not in name else []
    if hub.is_hub_id(name):
        try:
            cached = try_to_load_from_cache(name, "config.json")
        except ValueError:
            cached = None
        folders += [str(Path(cached).parent)] if isinstance(cached, str) else []
    for folder in folders:
        try:
            if Path(folder, "config.json").is_file():
                return read_json(folder, "config.json")
        except (DatasetError, OSError):
            continue
    return {}


def _stages_of_model(config: dict[str, Any], head: str) -> Stages | None:
    if config.get("type") != "sarm":
        return None
    names, shares = config.get(f"{head}_subtask_names"), config.get(f"{head}_temporal_proportions")
    number = config.get(f"num_{head}_stages")
    try:
        if names is None and isinstance(number, int):
            names = [f"stage {stage}" for stage in range(number)]
        return Stages(tuple(map(str, names)), stage_breakpoints(len(names), shares)) if names else None
    except (TypeError, ValueError):
        return None


def _stages_of_annotation(annotations: dict[str, Annotations], head: str) -> Stages | None:
    """Names in the order of the file of proportions, and its shares; without it, what training would take."""
    own = annotation_of(annotations, head)
    if own is None:
        return None
    names = stage_order(own)
    try:
        if own.proportions is not None and set(own.proportions) == set(names):
            return Stages(names, stage_breakpoints(len(names), list(own.proportions.values())))
        return Stages(names, stage_breakpoints(len(names), _shares(own, names)))
    except ValueError:  # `inspect` says what is wrong with the annotation
        return None


def _shares(own: Annotations, names: Sequence[str]) -> list[float]:
    stage = stage_numbers(own.stages, names)[own.stage] if len(own.stage) else own.stage
    return temporal_proportions(annotated_segments(own.offsets, stage, own.start, own.end), names).tolist()
