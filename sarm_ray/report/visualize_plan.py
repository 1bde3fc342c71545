"""What `sarm-ray visualize` will draw, decided before anything is written: scores or annotation, camera, episodes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sarm_ray.config.visualize import VisualizeConfig
from sarm_ray.core.episodes import parse_selection
from sarm_ray.data import storage
from sarm_ray.data.annotation_io import Annotations, annotation_of, read_annotations
from sarm_ray.data.lerobot import Dataset, open_dataset
from sarm_ray.data.progress_io import PROGRESS_FILE
from sarm_ray.errors import ConfigError, DatasetError, name_list, nearest
from sarm_ray.report.scored import HEADS, Scores, open_scores
from sarm_ray.report.weights import find_progress

DEFAULT_FOLDER = "sarm_viz"
SCORES_FOLDER = "scores"  # of a run that scores first; nothing else is in there, so it may be replaced


@dataclass(frozen=True)
class Plan:
    """What will be drawn.

    Args:
        dataset: of the episodes.
        type: `predictions`, `videos` or `annotations`.
        rows: (n,) int64, positions of the episodes in the table.
        kinds: heads, or kinds of annotation.
        camera: that is shown.
        folder: of the files.
        annotations: of the dataset, by kind.
        scores: None for annotations.
        reason: for the type, in words.
        notices: what the user should know.
    """

    dataset: Dataset
    type: str
    rows: np.ndarray
    kinds: tuple[str, ...]
    camera: str
    folder: str
    annotations: dict[str, Annotations]
    scores: Scores | None
    reason: str
    notices: tuple[str, ...]


def plan_visualization(config: VisualizeConfig, annotations: dict[str, Annotations] | None = None) -> Plan:
    """The plan of a run without a model. Writes nothing.

    Raises:
        SarmRayError: naming what does not exist or does not fit, and the way out.
    """
    dataset = open_dataset(config.dataset, config.revision)
    location, reason = _find_progress(config)
    kind = config.type or ("predictions" if location else "annotations")
    notices = list(dataset.notices)
    if annotations is None:
        annotations = _read_annotations(dataset, required=kind == "annotations")
    scores = open_scores(location, annotations) if location else None
    if scores is not None:
        notices += scores.notices
        kinds = _choose_kinds(config, scores.heads, f"{scores.location}: no progress of the {{}} head")
        content = np.isin(dataset.episode_index, scores.episodes)
        lacking = f"{scores.location}: it has none of the episodes of {dataset.name}; is it that of another dataset?"
    else:
        own = {kind: annotation_of(annotations, kind) for kind in HEADS}
        annotated = {kind: each.annotated for kind, each in own.items() if each is not None and each.annotated.any()}
        kinds = _choose_kinds(config, tuple(annotated), f"{dataset.name}: no episode has {{}} subtasks")
        content, lacking = np.any([annotated[each] for each in kinds], axis=0), ""
    camera = _choose_camera(dataset, config.image_keys, scores.run.get("image_key") if scores else None, notices)
    if not content.any():
        raise DatasetError(lacking)
    rows = _choose_rows(config, dataset, content, camera)
    folder = _place_folder(config, dataset)
    return Plan(dataset, kind, rows, kinds, camera, folder, annotations, scores, reason, tuple(notices))


def place_scores(config: VisualizeConfig) -> tuple[str, str]:
    """For a run with a model: a selection of the episodes to score, and where the progress file goes.

    Raises:
        SarmRayError: the dataset cannot be opened, or has no files of its cameras.
    """
    dataset = open_dataset(config.dataset, config.revision)
    camera = _choose_camera(dataset, config.image_keys, None, [])
    rows = _choose_rows(config, dataset, np.ones(len(dataset.length), dtype=bool), camera)
    selection = ",".join(map(str, dataset.episode_index[rows]))
    return selection, storage.join(_place_folder(config, dataset), SCORES_FOLDER, PROGRESS_FILE)


def _place_folder(config: VisualizeConfig, dataset: Dataset) -> str:
    return storage.absolute(config.output_dir or str(Path(DEFAULT_FOLDER) / dataset.name.rsplit("/", 1)[-1]))


def _find_progress(config: VisualizeConfig) -> tuple[str | None, str]:
    """The progress file to draw from, None for annotations; and why, in words."""
    if config.type == "annotations":
        return None, "as asked for"
    if config.progress is not None:
        return storage.absolute(config.progress), "as asked for"
    try:
        found = find_progress(config.dataset, config.revision)[0]
    except DatasetError as error:
        if config.type is not None:
            raise DatasetError(
                f"{error}; or name one with --progress, or let --model score the episodes first"
            ) from error
        return None, "there is no progress file"
    return found, "as asked for" if config.type else "its progress file is there; --type annotations draws its subtasks"


def _read_annotations(dataset: Dataset, required: bool) -> dict[str, Annotations]:
    try:
        return read_annotations(dataset)
    except DatasetError:  # `inspect` says what is wrong with them; scores can do without
        if required:
            raise
        return {}


def _choose_kinds(config: VisualizeConfig, there: tuple[str, ...], lacking: str) -> tuple[str, ...]:
    """Those asked for that there are. `both` is content with one."""
    kinds = tuple(kind for kind in config.kinds if kind in there)
    if kinds:
        return kinds
    if there:
        raise DatasetError(f"{lacking.format(config.visualize_type)}; there is {name_list(there)}")
    raise DatasetError(
        f"{lacking.format(' or '.join(config.kinds))}; annotate it, or draw predictions with --progress or --model"
    )


def _choose_camera(dataset: Dataset, wanted: tuple[str, ...], recorded: object, notices: list[str]) -> str:
    """The given camera, else the one that was scored, else the first that has files."""
    if wanted:
        if wanted[0] not in dataset.cameras:
            hint = nearest(wanted[0], dataset.cameras) or ";"
            there = name_list(dataset.cameras)
            raise DatasetError(f"{dataset.name}: no camera {wanted[0]!r}{hint} --image-key takes {there}")
        if not _has_files(dataset, wanted[0]).any():
            raise DatasetError(
                f"{dataset.name}: there are no files of {wanted[0]}; choose another one with --image-key"
            )
        return wanted[0]
    filled = [camera for camera in dataset.cameras if _has_files(dataset, camera).any()]
    if not filled:
        raise DatasetError(f"{dataset.name}: there are no files of its cameras ({name_list(dataset.cameras)})")
    known = recorded if isinstance(recorded, list) else [recorded]
    camera = next((each for each in known if each in filled), filled[0])
    others = [each for each in filled if each != camera]
    if others and camera not in known:
        notices.append(f"{camera} is shown; --image-key shows another one: {name_list(others)}")
    return camera


def _has_files(dataset: Dataset, camera: str) -> np.ndarray:
    """(E,) bool, episodes whose file of a camera is there."""
    if dataset.is_video(camera) and camera not in dataset.videos:
        return np.zeros(len(dataset.length), dtype=bool)
    files = dataset.camera_files(camera)
    return np.array([path in dataset.files for path in files.paths], dtype=bool)[files.file]


def _choose_rows(config: VisualizeConfig, dataset: Dataset, content: np.ndarray, camera: str) -> np.ndarray:
    """The episodes asked for, else the first ones that can be drawn: (n,) int64, positions in the table.

    Args:
        config: says which.
        dataset: of E episodes.
        content: (E,) bool, episodes that are annotated, or scored.
        camera: that is shown.
    """
    if config.episodes is not None:
        try:
            return parse_selection(config.episodes, dataset.episode_index)
        except ValueError as error:
            raise ConfigError(f"{dataset.name}: {error}") from error
    shown = np.flatnonzero(content & _has_files(dataset, camera))
    if not len(shown):
        raise DatasetError(
            f"{dataset.name}: of the episodes that could be drawn no file of {camera} is there; fetch them, or choose "
            "another camera with --image-key"
        )
    return shown[: config.num_visualizations]
