"""What a page is about: a dataset with its progress file, read into what the page shows (of a log: `page_rollouts`)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sarm_ray.config.report import ReportConfig
from sarm_ray.data import storage
from sarm_ray.data.annotation_io import Annotations, read_annotations
from sarm_ray.data.json_files import read_json
from sarm_ray.data.lerobot import Dataset, open_dataset
from sarm_ray.data.outcomes import dataset_outcomes
from sarm_ray.errors import ConfigError, DatasetError, OutputExistsError, name_list, nearest
from sarm_ray.report.flags import Flag
from sarm_ray.report.page_data import Curves, read_curves, read_metadata
from sarm_ray.report.page_html import number_or_none
from sarm_ray.report.page_media import Media, film_episodes
from sarm_ray.report.page_stages import Lanes, read_lanes
from sarm_ray.report.page_weights import weights_object
from sarm_ray.report.scored import Scores, open_scores
from sarm_ray.report.weights import find_progress

PAGE_FILE = "report.html"
EVALUATION_FILE = "evaluation.json"
# order (E,) int64, with_video (E,) bool, folder, notices, quiet -> what there is to see; see `film_episodes`
Filming = Callable[[np.ndarray, np.ndarray, str, list[str], bool], Media]


@dataclass(frozen=True)
class Subject:
    """What a page is about, wherever its scores come from.

    Args:
        dataset: the table of episodes; of rollouts it is one without files.
        output: where the page goes.
        source: `head`, `model` and `live` of the scores.
        camera: that is shown, or None.
        curves, lanes: of E episodes.
        flags: of each episode, what is odd beside its curve.
        outcomes: (rows,) float64 in 0..1 by row of the table, NaN where not known.
        film: makes pictures and videos of the episodes.
        evaluation: what `evaluate` found, or None.
        weights: RA-BC's panel; None where nobody could train on the frames.
        noun: `episode` or `rollout`.
        about: further properties of the dataset for the page.
        details: further properties of the episodes: one list each, an entry per episode.
        notices: what could not be shown.
    """

    dataset: Dataset
    output: str
    source: dict[str, Any]
    camera: str | None
    curves: Curves
    lanes: Lanes
    flags: tuple[tuple[Flag, ...], ...]
    outcomes: np.ndarray
    film: Filming
    evaluation: dict[str, Any] | None = None
    weights: dict[str, Any] | None = None
    noun: str = "episode"
    about: dict[str, Any] = field(default_factory=dict)
    details: dict[str, list[Any]] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def open_scored_dataset(config: ReportConfig) -> Subject:
    """A LeRobotDataset with its progress file.

    Raises:
        OutputExistsError: the page is there already, and may not be replaced.
        SarmRayError: bad input.
    """
    dataset = open_dataset(config.dataset, config.revision)
    notices = list(dataset.notices)
    progress = storage.absolute(config.progress or find_progress(config.dataset, config.revision)[0])
    own = config.progress is not None or dataset.repo_id is None  # a Hub dataset's lies in its cache
    output = place_page(config, storage.parent(progress) if own else None, PAGE_FILE, dataset.name)
    scores = open_scores(progress, _read_annotations(dataset, notices))
    head, about = _choose_head(scores, config.head_mode), read_metadata(progress)
    camera = _choose_camera(dataset, config.image_key, scores.run)
    evaluation = _read_evaluation(config.evaluation, progress, head)
    outcomes = _read_outcomes(dataset, config.labels, notices)
    curves = read_curves(progress, head, dataset, config.chunk_size)
    lanes = read_lanes(dataset, curves, scores, head, outcomes)
    if camera is None:
        notices.append(f"{dataset.name} has no camera; there are curves alone")
    return Subject(
        dataset=dataset,
        output=output,
        source={"head": head, "model": about.get("reward_model_path"), "live": about.get("live") == "true"},
        camera=camera,
        curves=curves,
        lanes=lanes,
        flags=((),) * len(curves.rows),
        outcomes=outcomes,
        film=partial(film_episodes, dataset, camera, curves.rows),
        evaluation=evaluation,
        weights=weights_object(curves.distribution, config.chunk_size, progress, head),
        about={"version": dataset.version},
        notices=(*notices, *lanes.notices),
    )


def place_page(config: ReportConfig, folder: str | None, name: str, title: str) -> str:
    """Where the page goes: where the user says, else into a folder, else into ./<title>/ where that cannot be written to.

    Args:
        folder: that the scores are in; None where nothing may be put there, such as a Hub cache.
        name: of the page in there.
        title: of the dataset.
    """
    if config.output is not None:
        output = storage.absolute(config.output)
        if storage.is_folder(output):
            raise ConfigError(f"{output} is a folder; give --output a file, such as {output}/{PAGE_FILE}")
    elif folder is not None and storage.is_local(folder) and storage.is_writable_folder(folder):
        output = storage.join(folder, name)
    else:
        output = str(Path.cwd() / title.rsplit("/", 1)[-1] / PAGE_FILE)
    if not config.overwrite and storage.exists(output):
        raise OutputExistsError(f"{output} exists; replace it with --overwrite, or choose another --output")
    return output


def _read_annotations(dataset: Dataset, notices: list[str]) -> dict[str, Annotations]:
    try:
        return read_annotations(dataset)
    except DatasetError as error:  # `inspect` says what is wrong with them; curves need none
        notices.append(f"annotations are not shown ({error})")
        return {}


def _choose_head(scores: Scores, wanted: str | None) -> str:
    if wanted is not None and wanted not in scores.heads:
        raise DatasetError(f"{scores.location}: no column 'progress_{wanted}'; it has the {scores.heads[0]} head alone")
    return wanted or scores.heads[0]


def _choose_camera(dataset: Dataset, wanted: str | None, run: Mapping[str, Any]) -> str | None:
    """The camera to show: the one asked for, that was scored, or the first one; None where the dataset has none."""
    if wanted is not None and wanted not in dataset.cameras:
        close = nearest(wanted, dataset.cameras)
        raise ConfigError(f"{dataset.name} has no camera {wanted!r}; it has {name_list(dataset.cameras)}{close}")
    cameras = [camera for camera in dataset.cameras if not dataset.is_video(camera) or camera in dataset.videos]
    scored = np.ravel(run.get("image_key") or ()).tolist()
    return wanted or next((camera for camera in [*scored, *cameras] if camera in cameras), None)


def _read_outcomes(dataset: Dataset, labels: str | None, notices: list[str]) -> np.ndarray:
    """Grades by row; of a column that nobody asked for and that cannot be read, a notice."""
    try:
        return dataset_outcomes(dataset, labels)
    except DatasetError as error:
        if labels is not None:
            raise
        notices.append(f"outcomes are not shown ({error})")
        return np.full(len(dataset.length), np.nan)


def _read_evaluation(given: str | None, progress: str, head: str) -> dict[str, Any] | None:
    """What `evaluate` found: `figures` (label, value, low, high, and the head) and `diagnosis` (texts, by head)."""
    location = storage.absolute(given) if given else storage.join(storage.parent(progress), EVALUATION_FILE)
    if not storage.exists(location):
        if given is None:
            return None
        raise DatasetError(f"{given}: no such file; make it with sarm-ray evaluate, or leave --evaluation out")
    value = read_json(storage.parent(location), location.rsplit("/", 1)[-1])
    figures, diagnosis = value.get("figures"), value.get("diagnosis") or []
    if not isinstance(figures, list) or not all(isinstance(figure, dict) for figure in figures):
        raise DatasetError(f"{location}: 'figures' must be a list of objects with label, value, low and high")
    own = [
        figure for figure in figures if figure.get("head", head) == head and _number(figure.get("value")) is not None
    ]
    texts = diagnosis.get(head, []) if isinstance(diagnosis, dict) else diagnosis
    shown = [
        {"label": str(figure.get("label") or figure.get("name"))}
        | {key: _number(figure.get(key)) for key in ("value", "low", "high")}
        for figure in own
    ]
    return {"figures": shown, "diagnosis": [str(text) for text in texts]} if shown or texts else None


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    return number_or_none(value, 6) if isinstance(value, int | float) else None
