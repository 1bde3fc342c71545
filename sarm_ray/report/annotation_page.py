"""The page on which a person checks subtasks that a model found: videos, timelines, starts to correct, a CSV to take back.

annotations -> segments that tile each episode, flags     here
videos      -> small videos, pictures, dead cameras       page_film, page_media
all of it   -> one HTML file (+ a folder beside it)       page_html, assets/annotation_page.*

The page corrects starts alone; an end is the next start. So a stored annotation with gaps is shown without them, and says
so; one whose subtasks cannot lie one after the other is named and left out of the CSV.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sarm_ray.console import tell
from sarm_ray.core.subtasks import FrameSubtasks, is_uniform_split
from sarm_ray.data import storage
from sarm_ray.data.annotation_io import PREFIXES, Annotations, annotation_of, read_annotations
from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import DatasetError
from sarm_ray.report.annotations import Subtask, episode_subtasks, stage_order
from sarm_ray.report.page_html import Parts, assemble_page
from sarm_ray.report.page_media import Media, film_episodes, filmed_object, folder_beside, media_object, remove_others

MAX_EPISODES = 24
CSV_FILE = "segments.csv"
CSV_COLUMNS = ("episode_index", "kind", "name", "start_s", "end_s", "start_frame", "end_frame")
FLAGS = {
    "note": "Noted when it was annotated.",
    "missing": "It has no subtasks of this kind. They cannot be added here.",
    "unusable": "Its subtasks cannot lie one after the other: two start at the same frame, or one starts outside the "
    "episode. They are not shown, and the CSV leaves them out.",
    "uniform": "All subtasks are equally long, which is what a model says that did not look.",
    "gaps": "As stored, subtasks leave a gap, overlap, or do not reach from the first frame to the last. Here, and in the "
    "CSV, each lasts until the next one.",
    "dead": "What the camera shows cannot be trusted.",
}
PAGE = Parts(
    body="annotation_page.html",
    styles=("page.css", "page_viewer.css", "annotation_page.css"),
    scripts=(
        "page_base.js",
        "page_player.js",
        "annotation_edits.js",
        "annotation_episode.js",
        "annotation_page.js",
    ),
    start="startPage();",
)


@dataclass(frozen=True)
class AnnotationPage:
    """A page that was written.

    Args:
        output: where it is.
        num_bytes: its size.
        files: names in the folder beside it; none where everything is in the page.
        shown: (n,) int64, episode numbers on the page, ascending.
        num_flagged: of them, those with a note or flag.
        num_left_out: episodes that were asked for and did not fit.
        num_videos: episodes with a video.
        notices: what could not be shown.
    """

    output: str
    num_bytes: int
    files: tuple[str, ...]
    shown: np.ndarray
    num_flagged: int
    num_left_out: int
    num_videos: int
    notices: tuple[str, ...]


@dataclass(frozen=True)
class _Timeline:
    """The subtasks of one kind of an episode.

    Args:
        names, starts: one each per subtask, in the order of time; none where they are missing or cannot be shown.
        flags: keys of FLAGS.
    """

    names: tuple[str, ...]
    starts: tuple[int, ...]
    flags: tuple[str, ...]


def write_annotation_page(
    path: str,
    dataset: Dataset,
    rows: np.ndarray,
    kinds: Sequence[str],
    camera: str | None,
    notes: Mapping[int, Sequence[str]] | None = None,
    max_episodes: int = MAX_EPISODES,
    source: str | None = None,
    quiet: bool = False,
    annotations: dict[str, Annotations] | None = None,
) -> AnnotationPage:
    """Write the page, whole or not at all; one that is there is replaced.

    Args:
        path: local path or URL, ending in `.html`. Much video goes into `<path without .html>.files`.
        dataset: whose annotations are read anew.
        rows: (N,) int64, positions in its table of the episodes that may be shown.
        kinds: `sparse`, `dense` or both; those of which the dataset has no annotation are left out.
        camera: to show, or None.
        notes: episode number -> short words on how it was annotated, such as "asked 3 times".
        max_episodes: how many are shown at most: those with notes or flags first, the rest in the order of `rows`.
        source: what `sarm-ray annotate` calls the dataset; its id or root where it is not given.
        quiet: print nothing.
        annotations: where they are not the dataset's own, of which the metadata cannot be written to.

    Raises:
        DatasetError: columns that are no annotation, or none of these kinds.
        ValueError: an unknown kind, or `max_episodes` below 1.
    """
    if not set(kinds) <= set(PREFIXES) - {"unprefixed"} or max_episodes < 1:
        raise ValueError(f"kinds {list(kinds)} and {max_episodes} episodes; expected sparse or dense, and 1 or more")
    annotations = read_annotations(dataset) if annotations is None else annotations
    kinds = [kind for kind in dict.fromkeys(kinds) if annotation_of(annotations, kind) is not None]
    if not kinds:
        raise DatasetError(f"{dataset.name} has no annotation to show; sarm-ray annotate makes one")
    notices = list(dataset.notices)
    shown, timelines, flags = _choose_episodes(dataset, rows, kinds, annotations, notes or {}, max_episodes)
    folder = folder_beside(path)
    every = np.ones(len(shown), dtype=bool)
    media = film_episodes(dataset, camera, shown, np.arange(len(shown)), every, folder, notices, quiet)
    flags = [own + seen for own, seen in zip(flags, _camera_flags(media), strict=True)]
    data = {
        "dataset": {"name": dataset.name, "version": dataset.version, "fps": dataset.fps, "camera": camera},
        "command": f"sarm-ray annotate {shlex.quote(source or dataset.repo_id or dataset.root)} --from {CSV_FILE}",
        "file": CSV_FILE,
        "columns": CSV_COLUMNS,
        "flags": FLAGS,
        "left_out": len(rows) - len(shown),
        "episodes": filmed_object(dataset, shown, media) | {"flags": flags},
        "media": media_object(media),
        "notices": notices,
        **_segments_object(timelines, kinds, annotations),
    }
    page = assemble_page(f"{dataset.name}: annotations", data, media.embedded, PAGE)
    storage.write_file(path, page)
    remove_others(folder, media.files)
    if not quiet:
        tell(notices)
    return _page_report(path, page, media, dataset.episode_index[shown], data, notices)


def _choose_episodes(
    dataset: Dataset,
    rows: np.ndarray,
    kinds: Sequence[str],
    annotations: dict[str, Annotations],
    notes: Mapping[int, Sequence[str]],
    max_episodes: int,
) -> tuple[np.ndarray, list[dict[str, _Timeline]], list[list[tuple[str, str]]]]:
    """Rows to show, (n,) int64 ascending, those with notes or flags before others; of each its timelines and its flags."""
    timelines = {row: {kind: _timeline(annotations, kind, row, dataset) for kind in kinds} for row in rows.tolist()}
    flags = {row: _flags(timelines[row], notes.get(int(dataset.episode_index[row]), ())) for row in timelines}
    chosen = sorted(sorted(timelines, key=lambda row: not flags[row])[:max_episodes])
    return np.array(chosen, dtype=np.int64), [timelines[row] for row in chosen], [flags[row] for row in chosen]


def _timeline(annotations: dict[str, Annotations], kind: str, row: int, dataset: Dataset) -> _Timeline:
    """Subtasks that follow each other from the first frame to the last; an annotation is shown as far as it allows that."""
    own, length = annotation_of(annotations, kind), int(dataset.length[row])
    subtasks = episode_subtasks(annotations, kind, row)
    if not subtasks:
        broken = own is not None and own.broken[row]
        return _Timeline((), (), ("unusable" if broken else "missing",))
    names = tuple(subtask.name for subtask in subtasks)
    starts = (0, *(subtask.start for subtask in subtasks[1:]))
    if starts[-1] >= length or min(np.diff([*starts, length])) < 1:
        return _Timeline((), (), ("unusable",))
    ends = (*starts[1:], length - 1)
    uniform = is_uniform_split(FrameSubtasks(names, starts, ends))
    found = {"uniform": uniform, "gaps": _moved(subtasks, starts, ends, dataset.fps)}
    return _Timeline(names, starts, tuple(flag for flag, there in found.items() if there))


def _moved(subtasks: Sequence[Subtask], starts: Sequence[int], ends: Sequence[int], fps: float) -> bool:
    """Whether a bound is not the stored one. The last end may be a second off: LeRobot's tool writes whole seconds."""
    off = [abs(subtask.start - start) for subtask, start in zip(subtasks, starts, strict=True)]
    off += [abs(subtask.end - end) for subtask, end in zip(subtasks, ends[:-1], strict=False)]
    return max(off) > 1 or abs(subtasks[-1].end - ends[-1]) > max(fps, 1)


def _flags(timelines: Mapping[str, _Timeline], notes: Sequence[str]) -> list[tuple[str, str]]:
    """Key of FLAGS and words of what somebody should look at; a kind is named where not all have it."""
    words = {
        "missing": "not annotated",
        "unusable": "unusable bounds",
        "uniform": "uniform split",
        "gaps": "gaps closed",
    }
    found = [("note", str(note)) for note in notes]
    for flag, text in words.items():
        own = [kind for kind, timeline in timelines.items() if flag in timeline.flags]
        if own:
            found.append((flag, text if len(own) == len(timelines) else f"{own[0]}: {text}"))
    return found


def _camera_flags(media: Media) -> list[list[tuple[str, str]]]:
    """Of each episode what keeps its video from being believed."""
    said = [
        f"camera is {dead}" if dead else "video cannot be read" if problem else None
        for dead, problem in zip(media.dead, media.problem, strict=True)
    ]
    return [[("dead", words)] if words else [] for words in said]


def _segments_object(
    timelines: Sequence[Mapping[str, _Timeline]], kinds: Sequence[str], annotations: dict[str, Annotations]
) -> dict[str, Any]:
    """Stage names, whose places give them their colours, and per kind and episode [place, start frame] of each subtask."""
    orders = {kind: stage_order(own) for kind in kinds if (own := annotation_of(annotations, kind)) is not None}
    names = list(dict.fromkeys((kind, name) for kind, order in orders.items() for name in order))
    place = {key: number for number, key in enumerate(names)}
    segments = {
        kind: [
            [[place[kind, name], start] for name, start in zip(each[kind].names, each[kind].starts, strict=True)]
            for each in timelines
        ]
        for kind in kinds
    }
    return {"kinds": list(kinds), "names": [name for _, name in names], "segments": segments}


def _page_report(
    path: str, page: bytes, media: Media, shown: np.ndarray, data: Mapping[str, Any], notices: Sequence[str]
) -> AnnotationPage:
    return AnnotationPage(
        output=path,
        num_bytes=len(page),
        files=media.files,
        shown=shown,
        num_flagged=sum(bool(flags) for flags in data["episodes"]["flags"]),
        num_left_out=data["left_out"],
        num_videos=sum(video is not None for video in media.video),
        notices=tuple(notices),
    )
