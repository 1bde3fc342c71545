"""`sarm-ray visualize`: pictures and videos of a dataset's episodes, their scores and their annotations.

    progress file -> predictions (PNG) or videos (mp4)        annotation -> annotations (PNG)

What is drawn is decided before anything is written. An episode that cannot be drawn, or not whole, is named in the report
with why, and takes no other with it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sarm_ray.config.loading import dump_config, require
from sarm_ray.config.visualize import VisualizeConfig
from sarm_ray.console import Progress, say, tell
from sarm_ray.data import storage
from sarm_ray.data.annotation_io import Annotations, annotation_of
from sarm_ray.data.lerobot import Dataset
from sarm_ray.data.pictures import camera_shape, read_pictures
from sarm_ray.errors import DatasetError, VideoError
from sarm_ray.report.annotations import (
    AnnotatedEpisode,
    annotation_name,
    draw_annotation,
    episode_subtasks,
    mid_frame,
    picture_size,
    stage_order,
)
from sarm_ray.report.predictions import THUMBNAIL_SIZE, draw_prediction, prediction_name, thumbnail_frames
from sarm_ray.report.scored import read_prediction, read_text
from sarm_ray.report.side_by_side import SIDE, video_name, write_side_by_side
from sarm_ray.report.visualize_plan import Plan, plan_visualization

CONFIG_FILE = "visualize.yaml"
CROPPED = "centre of the picture, as the model sees it"


@dataclass(frozen=True)
class Problem:
    """Why an episode was not drawn, or not whole."""

    episode_index: int
    message: str


@dataclass(frozen=True)
class VisualizeReport:
    """What a run did.

    Args:
        type: `predictions`, `videos` or `annotations`.
        output_dir: where they are.
        num_episodes: that were drawn.
        paths: of the files, in the order of the episodes.
        problems: episodes that could not be drawn, or not whole.
    """

    type: str
    output_dir: str
    num_episodes: int
    paths: tuple[str, ...]
    problems: tuple[Problem, ...]


def visualize(
    config: VisualizeConfig, quiet: bool = False, annotations: dict[str, Annotations] | None = None
) -> VisualizeReport:
    """Draw episodes of a dataset; pictures that are there are replaced.

    Args:
        config: without a model: the command scores first, and then draws from that progress file.
        quiet: say nothing.
        annotations: where they are not the dataset's own, of which the metadata cannot be written to.

    Raises:
        SarmRayError: what does not exist or does not fit, or nothing at all could be drawn.
    """
    require(config.model is None, "visualize draws from a progress file; score with the model first, and give progress")
    plan = plan_visualization(config, annotations)
    if not quiet:
        _describe_plan(plan)
    resolved = replace(
        config,
        dataset=plan.dataset.repo_id or plan.dataset.root,
        revision=plan.dataset.revision,
        type=plan.type,  # type: ignore[arg-type]
        progress=plan.scores.location if plan.scores else None,
        image_key=plan.camera,
        output_dir=plan.folder,
    )
    storage.write_file(storage.join(plan.folder, CONFIG_FILE), dump_config(resolved).encode())
    return _draw(plan, quiet)


def describe_visualization(report: VisualizeReport) -> str:
    """What a person wants to know at the end."""
    what = "video" if report.type == "videos" else "picture"
    lines = [f"{_number(len(report.paths), what)} of {_number(report.num_episodes, 'episode')} in {report.output_dir}"]
    return "\n".join([*lines, *(f"  episode {each.episode_index}: {each.message}" for each in report.problems)])


def _describe_plan(plan: Plan) -> None:
    dataset = plan.dataset
    source = f" of {plan.scores.location}" if plan.scores else ""
    lines = {
        "dataset": f"{dataset.root} (LeRobot {dataset.version}, {dataset.fps:g} fps)",
        "drawing": f"{plan.type}{source}, {' and '.join(plan.kinds)} ({plan.reason})",
        "episodes": f"{len(plan.rows):,} of {len(dataset.length):,}",
        "camera": plan.camera,
        "output": plan.folder,
    }
    for name, text in lines.items():
        say(f"{name:<9} {text}")
    tell(plan.notices)


def _draw(plan: Plan, quiet: bool) -> VisualizeReport:
    drawers = {"annotations": _draw_annotations, "predictions": _draw_predictions, "videos": _draw_videos}
    total = int(plan.dataset.length[plan.rows].sum()) * len(plan.kinds)
    progress = Progress("video", total, quiet or plan.type != "videos")
    paths: list[str] = []
    problems: list[Problem] = []
    num_episodes = 0
    for row in plan.rows.tolist():
        episode, before = int(plan.dataset.episode_index[row]), len(paths)
        try:
            found = drawers[plan.type](plan, row, paths, progress.add)
        except (DatasetError, VideoError) as error:
            found = [f"not drawn: {error}"]
        problems += [Problem(episode, message) for message in found]
        num_episodes += len(paths) > before
        if not quiet and plan.type != "videos" and len(paths) > before:
            say(f"episode {episode}: {', '.join(path.rsplit('/', 1)[-1] for path in paths[before:])}")
    if not paths:
        first = problems[0]
        raise DatasetError(
            f"{plan.dataset.name}: none of {_number(len(plan.rows), 'episode')} could be drawn; episode "
            f"{first.episode_index}: {first.message.removeprefix('not drawn: ')}"
        )
    if plan.type == "videos":
        progress.finish()
    return VisualizeReport(plan.type, plan.folder, num_episodes, tuple(paths), tuple(problems))


def _draw_annotations(plan: Plan, row: int, paths: list[str], tick: Callable[[int], None]) -> list[str]:
    """Draw the annotations of an episode, and add their paths; what is missing in them."""
    dataset, problems = plan.dataset, []
    episode, length = int(dataset.episode_index[row]), int(dataset.length[row])
    annotated = [(kind, subtasks) for kind in plan.kinds if (subtasks := episode_subtasks(plan.annotations, kind, row))]
    if not annotated:
        broken = any(own.broken[row] for kind in plan.kinds if (own := annotation_of(plan.annotations, kind)))
        why = "its subtasks have not as many names as bounds" if broken else "it has no subtasks"
        raise DatasetError(f"{why} ({' or '.join(plan.kinds)})")
    for kind, subtasks in annotated:
        own = annotation_of(plan.annotations, kind)
        shown = [mid_frame(subtask, length) for subtask in subtasks]
        frames = np.unique([frame for frame in shown if frame is not None]).astype(np.int64)
        aspect = _aspect(dataset, plan.camera)
        pictures, errors = _read(plan, row, frames, picture_size(len(subtasks), aspect))
        if errors and len(errors) == len(frames):
            raise errors[0]
        drawn = AnnotatedEpisode(
            episode_index=episode,
            kind=kind,
            text=read_text(dataset, row),
            fps=dataset.fps,
            length=length,
            subtasks=subtasks,
            stage_names=stage_order(own) if own else (),
            pictures=tuple(None if frame is None else pictures[frame] for frame in shown),
            aspect=aspect,
        )
        path = storage.join(plan.folder, annotation_name(episode, kind))
        draw_annotation(path, drawn)
        paths.append(path)
        problems += _unreadable(errors, len(frames))
        problems += [
            f"{kind} subtask {subtask.name!r} (frames {subtask.start} to {subtask.end}) is not inside its {length} frames"
            for subtask, frame in zip(subtasks, shown, strict=True)
            if frame is None
        ]
    return problems


def _draw_predictions(plan: Plan, row: int, paths: list[str], tick: Callable[[int], None]) -> list[str]:
    """As `_draw_annotations`; without any thumbnail the curves are drawn all the same."""
    assert plan.scores is not None
    dataset = plan.dataset
    predictions = [read_prediction(plan.scores, dataset, row, head) for head in plan.kinds]
    frames = thumbnail_frames(int(dataset.length[row]))
    pictures, errors = _read(plan, row, frames, THUMBNAIL_SIZE)
    for prediction in predictions:
        path = storage.join(plan.folder, prediction_name(prediction.episode_index, prediction.head))
        draw_prediction(path, replace(prediction, thumbnails=tuple(pictures.items())))
        paths.append(path)
    return _unreadable(errors, len(frames))


def _draw_videos(plan: Plan, row: int, paths: list[str], tick: Callable[[int], None]) -> list[str]:
    """As `_draw_annotations`; a video needs some of its frames."""
    assert plan.scores is not None
    dataset, problems, length = plan.dataset, [], int(plan.dataset.length[row])
    sides = [side for side in dataset.features[plan.camera].get("shape") or () if side not in (1, 3, 4)]
    note = "" if len(set(sides)) == 1 else CROPPED
    for head in plan.kinds:
        prediction = read_prediction(plan.scores, dataset, row, head)
        path = storage.join(plan.folder, video_name(prediction.episode_index, head))
        frames = read_pictures(dataset, plan.camera, row, np.arange(length), SIDE)
        errors = write_side_by_side(path, prediction, frames, note, tick)
        paths.append(path)
        problems += _unreadable(errors, length)
    return list(dict.fromkeys(problems))


def _aspect(dataset: Dataset, camera: str) -> float:
    """Height of a camera's pictures over their width, within what looks well in a row."""
    height, width = camera_shape(dataset, camera)
    return min(max(height / width, 0.4), 1.5)


def _read(
    plan: Plan, row: int, frames: np.ndarray, size: int | tuple[int, int]
) -> tuple[dict[int, np.ndarray | None], list[VideoError]]:
    """Pictures by frame, None where it cannot be read; and why."""
    results = list(read_pictures(plan.dataset, plan.camera, row, frames, size))
    errors = [result for result in results if isinstance(result, VideoError)]
    pictures = [None if isinstance(result, VideoError) else result for result in results]
    return dict(zip(frames.tolist(), pictures, strict=True)), errors


def _unreadable(errors: list[VideoError], number: int) -> list[str]:
    return [f"{len(errors)} of {_number(number, 'frame')} cannot be read ({errors[0]})"] if errors else []


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
