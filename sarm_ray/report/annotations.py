"""One picture per episode and kind of annotation: a timeline of its subtasks, and the frame in the middle of each.

LeRobot's episode_{i:04d}_{kind}.png in name and parts. Subtasks come in the order of time and are numbered, so that a
name that comes again can be told from its first time; it keeps its colour, in all episodes of a dataset.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sarm_ray.data.annotation_io import Annotations, annotation_of
from sarm_ray.report.pictures import (
    DPI,
    FAINT,
    INK,
    MISSING,
    ink_on,
    new_figure,
    shortened,
    stage_colours,
    style,
    write_png,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 14.0  # this and what follows in inches
LEFT, RIGHT = 0.5, 13.75
TIMELINE_TOP, TIMELINE_HEIGHT = 1.62, 0.45
TILES_TOP = 2.95
TILE_MAX = 4.25
GAP = 0.3
CAPTION_HEIGHT = 1.3
NUMBER_SPACING = 0.27
MAX_COLUMNS = 5


@dataclass(frozen=True)
class Subtask:
    """A segment of an episode: its name and its frames, from start up to end."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class AnnotatedEpisode:
    """What an annotation says of one episode.

    Args:
        episode_index: its number.
        kind: `sparse` or `dense`.
        text: the task.
        fps: frames per second.
        length: frames.
        subtasks: S segments in the order of time.
        stage_names: the names of the whole dataset in the order of the stages, which gives them their colours.
        pictures: S mid-frames, (H, W, 3) uint8 each; None where it cannot be read.
        aspect: of the pictures, height over width.
    """

    episode_index: int
    kind: str
    text: str
    fps: float
    length: int
    subtasks: tuple[Subtask, ...]
    stage_names: tuple[str, ...]
    pictures: tuple[np.ndarray | None, ...]
    aspect: float = 1.0


def annotation_name(episode_index: int, kind: str) -> str:
    return f"episode_{episode_index:04d}_{kind}.png"


def episode_subtasks(annotations: dict[str, Annotations], kind: str, row: int) -> tuple[Subtask, ...]:
    """An episode's subtasks in the order of time; none where it is not annotated.

    Args:
        annotations: of its dataset, by kind.
        kind: `sparse` or `dense`.
        row: position of the episode in the table.
    """
    own = annotation_of(annotations, kind)
    if own is None:
        return ()
    segments = range(own.offsets[row], own.offsets[row + 1])
    found = [Subtask(own.stages[own.stage[each]], int(own.start[each]), int(own.end[each])) for each in segments]
    return tuple(sorted(found, key=lambda subtask: subtask.start))


def stage_order(own: Annotations) -> tuple[str, ...]:
    """The names of an annotation in the order of the stages: that of the file of proportions, then as they appear."""
    return tuple(dict.fromkeys([*(own.proportions or ()), *own.stages]))


def mid_frame(subtask: Subtask, length: int) -> int | None:
    """The frame in the middle of a subtask; None for one that does not lie inside the episode's frames."""
    if not 0 <= subtask.start < length or subtask.end < subtask.start:
        return None
    return (subtask.start + min(subtask.end, length)) // 2 if subtask.end > subtask.start else subtask.start


def draw_annotation(path: str, episode: AnnotatedEpisode) -> None:
    """Write the picture, whole or not at all, to a local path or URL: a PNG 2100 pixels wide, as high as it must be."""
    write_png(path, lambda: annotation_figure(episode))


def annotation_figure(episode: AnnotatedEpisode) -> "Figure":
    """The picture as matplotlib's object."""
    num_rows, num_columns, side = _tiles(len(episode.subtasks))
    tall = side * episode.aspect
    height = TILES_TOP + num_rows * (tall + CAPTION_HEIGHT)
    palette = dict(zip(episode.stage_names, stage_colours(len(episode.stage_names)), strict=True))
    with style():
        figure = new_figure(WIDTH, height)
        _draw_title(figure, episode, height)
        timeline = _inches(figure, LEFT, TIMELINE_TOP, RIGHT - LEFT, TIMELINE_HEIGHT, gid="timeline")
        _draw_timeline(timeline, episode, palette)
        for number in range(len(episode.subtasks)):
            row, column = divmod(number, num_columns)
            left, top = LEFT + column * (side + GAP), TILES_TOP + row * (tall + CAPTION_HEIGHT)
            axes = _inches(figure, left, top, side, tall, gid=f"subtask {number + 1}")
            _draw_tile(axes, episode, number, palette[episode.subtasks[number].name], side)
    return figure


def picture_size(num_subtasks: int, aspect: float) -> tuple[int, int]:
    """(height, width) in pixels at which a mid-frame is shown, where there are so many."""
    side = _tiles(num_subtasks)[2] * DPI
    return round(side * aspect), round(side)


def _tiles(number: int) -> tuple[int, int, float]:
    """Rows, columns and side of so many tiles."""
    num_rows = max(1, -(-number // MAX_COLUMNS))
    num_columns = max(1, -(-number // num_rows))
    return num_rows, num_columns, min((RIGHT - LEFT + GAP) / num_columns - GAP, TILE_MAX)


def _inches(figure: "Figure", left: float, top: float, width: float, height: float, gid: str) -> "Axes":
    """Axes at a place in inches from the upper left corner."""
    whole_width, whole_height = figure.get_size_inches()
    place = (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    return figure.add_axes(place, gid=gid)


def _draw_title(figure: "Figure", episode: AnnotatedEpisode, height: float) -> None:
    title = f"Episode {episode.episode_index}, {episode.kind} annotation"
    left, right = LEFT / WIDTH, RIGHT / WIDTH
    figure.text(left, 1 - 0.3 / height, title, fontsize=17, fontweight="bold", va="top")
    number, length = len(episode.subtasks), episode.length
    facts = [
        f"{length:,} frame{'s' if length > 1 else ''}, {length / episode.fps:.1f} s",
        f"{number} subtask{'s' if number > 1 else ''}",
    ]
    bare = _unannotated(episode)
    if bare.any():
        facts.append(f"{int(bare.sum()):,} frame{'s' if bare.sum() > 1 else ''} not annotated")
    figure.text(right, 1 - 0.34 / height, "   ".join(facts), ha="right", va="top")
    figure.text(left, 1 - 0.68 / height, shortened(episode.text, 130), fontsize=12, va="top", color="#555555")


def _shown_end(subtask: Subtask, length: int) -> int:
    """One past a subtask's last frame: an end that is the episode's last frame includes it."""
    return length if subtask.end >= length - 1 else subtask.end


def _unannotated(episode: AnnotatedEpisode) -> np.ndarray:
    """(L,) bool, frames in no subtask."""
    bare = np.ones(episode.length, dtype=bool)
    for subtask in episode.subtasks:
        bare[max(subtask.start, 0) : max(_shown_end(subtask, episode.length), 0)] = False
    return bare


def _draw_timeline(axes: "Axes", episode: AnnotatedEpisode, palette: dict[str, tuple[float, float, float]]) -> None:
    """Bars with their names where these fit, and above each its number, moved aside where bars are too narrow."""
    fps, total_s = episode.fps, episode.length / episode.fps
    axes.set(xlim=(0, total_s), ylim=(0, 1), yticks=[], xlabel="time (s)")
    axes.spines[["top", "left", "right"]].set_visible(False)
    if _unannotated(episode).any():
        axes.axvspan(0, total_s, facecolor="#eeeeee", edgecolor=FAINT, hatch="///", linewidth=0, zorder=0)
    shown = [n for n, subtask in enumerate(episode.subtasks) if mid_frame(subtask, episode.length) is not None]
    spans = np.array([(s.start, _shown_end(s, episode.length)) for s in episode.subtasks])[shown].reshape(-1, 2) / fps
    centres = spans.mean(1)
    places = spread_labels(centres, NUMBER_SPACING * total_s / (RIGHT - LEFT), total_s)
    for number, (start_s, end_s), centre, place in zip(shown, spans, centres, places, strict=True):
        subtask = episode.subtasks[number]
        colour = palette[subtask.name]
        axes.barh(0.5, max(end_s - start_s, 0.002 * total_s), 1.0, start_s, color=colour, ec="white", linewidth=0.8)
        name = axes.text(centre, 0.48, subtask.name, ha="center", va="center", color=ink_on(colour), clip_on=True)
        width_s = name.get_window_extent().width / DPI * total_s / (RIGHT - LEFT)
        if width_s > 0.94 * (end_s - start_s):
            name.remove()
        axes.plot([centre, centre, place], [0.94, 1.06, 1.22], color=INK, linewidth=0.8, clip_on=False)
        axes.text(place, 1.52, str(number + 1), **_chip(colour), fontsize=9)


def _chip(colour: tuple[float, float, float]) -> dict[str, Any]:
    """How a subtask's number is written: on a spot of its colour."""
    box = {"boxstyle": "round,pad=0.3,rounding_size=0.7", "facecolor": colour, "edgecolor": "none"}
    return {"bbox": box, "ha": "center", "va": "center", "fontweight": "bold", "color": ink_on(colour)}


def spread_labels(wanted: np.ndarray, spacing: float, limit: float) -> np.ndarray:
    """Places as near as may be to the wanted ones, in their order and no two nearer than `spacing`.

    Args:
        wanted: (n,) float, in 0..limit.
        spacing: least distance; less where n of them do not fit.
        limit: the largest place.

    Returns:
        (n,) float, ascending where `wanted` is.
    """
    places, spacing = wanted.astype(np.float64), min(spacing, limit / max(len(wanted), 1))
    steps = np.arange(len(places)) * spacing
    places = np.maximum.accumulate(places - steps) + steps  # pushed to the right
    latest = limit - steps[::-1] - spacing / 2
    return np.maximum(np.minimum(places, latest), spacing / 2 + steps)


def _draw_tile(
    axes: "Axes", episode: AnnotatedEpisode, number: int, colour: tuple[float, float, float], side: float
) -> None:
    subtask, picture = episode.subtasks[number], episode.pictures[number]
    frame, fps = mid_frame(subtask, episode.length), episode.fps
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=3)
    if picture is None:
        axes.imshow(np.full((2, 2, 3), MISSING), aspect="auto")
        said = "outside\nthe episode" if frame is None else "cannot\nbe read"
        axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", va="center", color="#444444")
    else:
        axes.imshow(picture, interpolation="antialiased", aspect="auto")
    name = shortened(subtask.name, int((side - 0.4) / 0.1), 2)
    said = f"frames {subtask.start:,} to {subtask.end:,}, {subtask.start / fps:.1f} to {subtask.end / fps:.1f} s"
    if frame is not None:
        said += f"\nshown: frame {frame:,}, {frame / fps:.2f} s"
    at: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(str(number + 1), (0, 0), (10, -18), **at, **_chip(colour), fontsize=11)
    axes.annotate(name, (0, 0), (27, -12), fontsize=11.5, fontweight="bold", va="top", **at)
    below = -33 - 17 * name.count("\n")
    axes.annotate(said, (0, 0), (0, below), fontsize=10, linespacing=1.35, color="#444444", va="top", **at)
