"""`sarm-ray report`: a dataset and its progress in, one page out that opens anywhere, offline, on a phone.

progress file -> curves, flags, RA-BC's sums        page_data, flags, page_weights
annotation    -> stages and true progress           page_stages
videos        -> strips, small videos, dead cameras page_film, page_media
all of it     -> report.html (+ report.files/)      page_html
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sarm_ray.config.report import ReportConfig
from sarm_ray.console import size, tell
from sarm_ray.core.metrics import DONE
from sarm_ray.data import storage
from sarm_ray.data.annotation_io import Annotations, read_annotations
from sarm_ray.data.json_files import read_json
from sarm_ray.data.lerobot import Dataset, open_dataset
from sarm_ray.data.outcomes import dataset_outcomes
from sarm_ray.errors import ConfigError, DatasetError, OutputExistsError, name_list, nearest
from sarm_ray.report.flags import KINDS, Flag
from sarm_ray.report.page_data import (
    DELTA_SCALE,
    NO_DELTA,
    NO_VALUE,
    PROGRESS_SCALE,
    Curves,
    read_curves,
    read_metadata,
)
from sarm_ray.report.page_html import assemble_page, number_or_none, packed
from sarm_ray.report.page_media import (
    Media,
    choose_videos,
    film_episodes,
    filmed_object,
    folder_beside,
    media_object,
    remove_others,
)
from sarm_ray.report.page_stages import NO_STAGE, Lanes, read_lanes
from sarm_ray.report.page_weights import weights_object
from sarm_ray.report.scored import Scores, open_scores
from sarm_ray.report.weights import find_progress

PAGE_FILE = "report.html"
EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True)
class PageReport:
    """A page that was written.

    Args:
        output: where it is.
        num_bytes: its size.
        files: names in the folder beside it; none where everything is in the page.
        num_episodes, num_frames: that it is about.
        mean_final: mean final progress of the episodes whose end is scored; NaN where there is none.
        flagged: kind of flag -> episodes that have it.
        num_flagged: episodes with any flag.
        num_videos: episodes with a video.
        notices: what could not be shown.
    """

    output: str
    num_bytes: int
    files: tuple[str, ...]
    num_episodes: int
    num_frames: int
    mean_final: float
    flagged: dict[str, int]
    num_flagged: int
    num_videos: int
    notices: tuple[str, ...]


def report(config: ReportConfig, quiet: bool = False) -> PageReport:
    """Write the page.

    Raises:
        OutputExistsError: it is there already, and may not be replaced.
        SarmRayError: bad input; nothing was written.
    """
    dataset = open_dataset(config.dataset, config.revision)
    notices = list(dataset.notices)
    progress = storage.absolute(config.progress or find_progress(config.dataset, config.revision)[0])
    output = _place_page(config, dataset, progress)
    scores = open_scores(progress, _read_annotations(dataset, notices))
    head, about = _choose_head(scores, config.head_mode), read_metadata(progress)
    camera = _choose_camera(dataset, config.image_key, scores.run)
    evaluation = _read_evaluation(config.evaluation, progress, head)
    outcomes = _read_outcomes(dataset, config.labels, notices)
    curves = read_curves(progress, head, dataset, config.chunk_size)
    lanes = read_lanes(dataset, curves, scores, head, outcomes)
    folder = folder_beside(output)
    media, curves = _film(dataset, camera, curves, config.max_videos, folder, notices, quiet)
    notices += lanes.notices
    data = {
        "dataset": _dataset_object(dataset, curves, camera),
        "progress": {"head": head, "model": about.get("reward_model_path"), "live": about.get("live") == "true"},
        "done": DONE,
        "kinds": [[kind, *texts] for kind, texts in KINDS.items()],
        "episodes": _episodes_object(dataset, curves, media, outcomes),
        "curves": _curves_object(curves, lanes),
        "media": media_object(media),
        "weights": weights_object(curves.distribution, config.chunk_size, progress, head),
        "evaluation": evaluation,
        "notices": notices,
    }
    page = assemble_page(f"{dataset.name}: progress", data, media.embedded)
    storage.write_file(output, page)
    remove_others(folder, media.files)
    if not quiet:
        tell(notices)
    return _page_report(output, page, media, dataset, curves, tuple(notices))


def describe_page(report: PageReport) -> str:
    """What was written, for people; the last line says where."""
    mean = f", mean final progress {report.mean_final:.2f}" if np.isfinite(report.mean_final) else ""
    lines = [f"{_many(report.num_episodes, 'episode')}, {_many(report.num_frames, 'frame')}{mean}"]
    kinds = [f"{number:,} {KINDS[kind][0]}" for kind, number in report.flagged.items()]
    verb = "is" if report.num_flagged == 1 else "are"
    flagged = f"{_many(report.num_flagged, 'episode')} {verb} flagged: {', '.join(kinds)}"
    lines.append(flagged if kinds else "no episode is flagged")
    beside = f"; the page needs {Path(folder_beside(report.output)).name} beside it" if report.files else ""
    lines.append(f"{report.output} ({size(report.num_bytes)}, {_many(report.num_videos, 'video')}{beside})")
    return "\n".join(lines)


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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


def _place_page(config: ReportConfig, dataset: Dataset, progress: str) -> str:
    """Where the page goes; never inside a Hub cache."""
    folder = storage.parent(progress)
    own = config.progress is not None or dataset.repo_id is None  # a Hub dataset's lies in its cache
    if config.output is not None:
        output = storage.absolute(config.output)
        if storage.is_folder(output):
            raise ConfigError(f"{output} is a folder; give --output a file, such as {output}/{PAGE_FILE}")
    elif own and storage.is_local(folder) and storage.is_writable_folder(folder):
        output = storage.join(folder, PAGE_FILE)
    else:
        output = str(Path.cwd() / dataset.name.rsplit("/", 1)[-1] / PAGE_FILE)
    if not config.overwrite and storage.exists(output):
        raise OutputExistsError(f"{output} exists; replace it with --overwrite, or choose another --output")
    return output


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


def _film(
    dataset: Dataset,
    camera: str | None,
    curves: Curves,
    max_videos: int,
    folder: str,
    notices: list[str],
    quiet: bool,
) -> tuple[Media, Curves]:
    """Pictures of all episodes, and the curves with the flags that pictures give."""
    if camera is None:
        notices.append(f"{dataset.name} has no camera; there are curves alone")
    flagged = np.array([bool(flags) for flags in curves.flags])
    with_video = choose_videos(curves.final, flagged, max_videos)
    order = np.argsort(curves.final, kind="stable")
    media = film_episodes(dataset, camera, curves.rows, order, with_video, folder, notices, quiet)
    flags = []
    for number, own in enumerate(curves.flags):
        kinds = [media.dead[number], "unreadable" if media.problem[number] else None]
        whole = [Flag(kind, 0, int(dataset.length[curves.rows[number]])) for kind in kinds if kind]
        flags.append((*own, *whole))
    return media, replace(curves, flags=tuple(flags))


def _dataset_object(dataset: Dataset, curves: Curves, camera: str | None) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "version": dataset.version,
        "fps": dataset.fps,
        "camera": camera,
        "num_episodes": len(dataset.length),
        "num_frames": int(dataset.length[curves.rows].sum()),
    }


def _episodes_object(dataset: Dataset, curves: Curves, media: Media, outcomes: np.ndarray) -> dict[str, Any]:
    """One list per property, an entry per episode."""
    kinds = {kind: number for number, kind in enumerate(KINDS)}
    return filmed_object(dataset, curves.rows, media) | {
        "final": [number_or_none(value) for value in curves.final],
        "highest": [number_or_none(value) for value in curves.highest],
        "drawdown": [number_or_none(value) for value in curves.drawdown],
        "outcome": [number_or_none(value) for value in outcomes[curves.rows]],
        "flags": [
            [[kinds[flag.kind], flag.start, flag.stop, round(flag.amount, 3)] for flag in flags]
            for flags in curves.flags
        ],
        "points": curves.num_points.tolist(),
    }


def _curves_object(curves: Curves, lanes: Lanes) -> dict[str, Any]:
    return {
        "scale": PROGRESS_SCALE,
        "no_value": NO_VALUE,
        "delta_scale": DELTA_SCALE,
        "no_delta": NO_DELTA,
        "no_stage": NO_STAGE,
        "progress": packed(curves.progress),
        "deltas": packed(curves.deltas),
        "stages": lanes.names,
        "truth": packed(lanes.truth),
        "annotated": packed(lanes.annotated),
        "predicted": packed(lanes.predicted),
    }


def _page_report(
    output: str, page: bytes, media: Media, dataset: Dataset, curves: Curves, notices: tuple[str, ...]
) -> PageReport:
    found = Counter(kind for flags in curves.flags for kind in {flag.kind for flag in flags})
    known = curves.final[np.isfinite(curves.final)]
    return PageReport(
        output=output,
        num_bytes=len(page),
        files=media.files,
        num_episodes=len(curves.rows),
        num_frames=int(dataset.length[curves.rows].sum()),
        mean_final=float(known.mean()) if len(known) else float("nan"),
        flagged={kind: found[kind] for kind in KINDS if found[kind]},
        num_flagged=sum(bool(flags) for flags in curves.flags),
        num_videos=sum(video is not None for video in media.video),
        notices=notices,
    )
