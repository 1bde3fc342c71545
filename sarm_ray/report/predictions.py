"""One picture per episode and head: progress, stage probabilities, and the frames themselves.

LeRobot's sarm_prediction_ep{i}_{head}.png in name, size and parts. Every caption is about exactly the frame above it, and
nothing is drawn where nothing was computed: frames without progress are marked, interpolated frames have no probabilities.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sarm_ray.core.progress import normalize_progress
from sarm_ray.core.targets import completed_durations, episode_targets
from sarm_ray.data.annotation_io import Annotations, annotation_of, segments_by_stage
from sarm_ray.data.lerobot import Dataset
from sarm_ray.data.pictures import read_pictures
from sarm_ray.errors import VideoError
from sarm_ray.report.pictures import (
    CURVE,
    FAINT,
    INK,
    MISSING,
    new_figure,
    shortened,
    stage_colours,
    style,
    write_png,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE_INCHES = (14, 12)
NUM_THUMBNAILS = 8
THUMBNAIL_SIZE = 224
MAX_BARS = 300  # more computed frames than this, with others between them, are drawn without gaps


@dataclass(frozen=True)
class Prediction:
    """What one head says of one episode of L frames.

    Args:
        episode_index: its number.
        head: `sparse` or `dense`.
        text: the task.
        fps: frames per second.
        progress: (L,) float32, NaN where a frame was not scored.
        probabilities: (L, K) float32 of the stages, NaN rows for frames that were interpolated or not scored; None where
            they were not kept.
        stage_names: K names.
        truth: (L,) float32, progress that the annotation implies; None without one.
        boundaries: first frames of the annotated stages but the first.
        annotated_stage: (L,) int64, the stage that the annotation has at each frame; None without one.
        thumbnails: (frame, (S, S, 3) uint8), the picture being None where it cannot be read.
    """

    episode_index: int
    head: str
    text: str
    fps: float
    progress: np.ndarray
    probabilities: np.ndarray | None
    stage_names: tuple[str, ...]
    truth: np.ndarray | None = None
    boundaries: tuple[int, ...] = ()
    annotated_stage: np.ndarray | None = None
    thumbnails: tuple[tuple[int, np.ndarray | None], ...] = ()


def prediction_name(episode_index: int, head: str) -> str:
    return f"sarm_prediction_ep{episode_index}_{head}.png"


def thumbnail_frames(length: int, count: int = NUM_THUMBNAILS) -> np.ndarray:
    """Evenly spread frames, first and last among them: (min(count, length),) int64."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(np.int64))


def with_annotation(
    prediction: Prediction, annotations: dict[str, Annotations], row: int, breakpoints: np.ndarray
) -> Prediction:
    """With the progress that the episode's annotation implies, where there is one in the prediction's stages.

    Args:
        prediction: of an episode, with K stages.
        annotations: of its dataset, by kind.
        row: position of the episode in the table.
        breakpoints: (K + 1,) float64, progress at which each stage begins.
    """
    own = annotation_of(annotations, prediction.head)
    if own is None or not own.annotated[row]:
        return prediction
    length = len(prediction.progress)
    try:
        segments = segments_by_stage(own, prediction.stage_names)
        segment = slice(segments.offsets[row], segments.offsets[row + 1])
        if (segments.stage[segment] < 0).any() and len(prediction.stage_names) > 1:
            return prediction  # stages of another task
        durations = completed_durations(segments, len(prediction.stage_names))
        stage, tau = episode_targets(segments, row, durations, length)
    except ValueError:  # an annotation that `inspect` calls bad
        return prediction
    truth = normalize_progress(stage + tau, breakpoints)
    starts = segments.start[segment].tolist()
    boundaries = tuple(start for start in starts if 0 < start < length)
    return replace(prediction, truth=truth, boundaries=boundaries, annotated_stage=stage)


def read_thumbnails(
    dataset: Dataset, camera: str, row: int, frames: np.ndarray, size: int = THUMBNAIL_SIZE
) -> tuple[tuple[int, np.ndarray | None], ...]:
    """Pictures of some frames of an episode.

    Args:
        dataset: of a video or image camera.
        camera: its key.
        row: position of the episode in the table.
        frames: (k,) int64, ascending, counted inside the episode.
        size: side in pixels; the centre of wider pictures.

    Returns:
        k pairs of the frame and its (size, size, 3) uint8 RGB, or None where it cannot be read.
    """
    pictures = [
        None if isinstance(picture, VideoError) else picture
        for picture in read_pictures(dataset, camera, row, frames, size)
    ]
    return tuple(zip(frames.tolist(), pictures, strict=True))


def draw_prediction(path: str, prediction: Prediction) -> None:
    """Write the picture, whole or not at all, to a local path or URL: a PNG of 2100 by 1800 pixels."""
    write_png(path, lambda: figure_of(prediction))


def figure_of(prediction: Prediction) -> "Figure":
    """The picture as matplotlib's object."""
    with style():
        figure = new_figure(*SIZE_INCHES)
        place = {"left": 0.06, "right": 0.83, "top": 0.9, "bottom": 0.255, "hspace": 0.16}
        grid = figure.add_gridspec(2, 1, height_ratios=[5, 4], **place)
        curve = figure.add_subplot(grid[0])
        stages = figure.add_subplot(grid[1], sharex=curve)
        _draw_title(figure, prediction)
        _draw_progress(curve, prediction)
        _draw_stages(stages, prediction)
        _draw_thumbnails(figure, prediction)
    return figure


def _draw_title(figure: "Figure", prediction: Prediction) -> None:
    num_frames = len(prediction.progress)
    title = f"Episode {prediction.episode_index}, {prediction.head} head"
    figure.text(0.06, 0.975, title, fontsize=17, fontweight="bold", va="top")
    known = prediction.progress[np.isfinite(prediction.progress)]
    facts = [f"{num_frames:,} frame{'s' if num_frames > 1 else ''}, {num_frames / prediction.fps:.1f} s"]
    if len(known):
        facts.append(f"last {known[-1]:.2f}" + ("" if np.isfinite(prediction.progress[-1]) else " (end not scored)"))
        facts.append(f"highest {known.max():.2f}")
    if prediction.truth is not None and len(known):
        error = np.nanmean(np.abs(prediction.progress.astype(np.float64) - prediction.truth))
        facts.append(f"mean |error| against the annotation {error:.3f}")
    figure.text(0.985, 0.972, "   ".join(facts), ha="right", va="top", color=INK)
    figure.text(0.06, 0.944, shortened(prediction.text, 130), fontsize=12, va="top", color="#555555")


def draw_curve(axes: "Axes", prediction: Prediction) -> None:
    """The predicted progress over time in seconds, with nothing where there is none."""
    progress, known = prediction.progress, np.isfinite(prediction.progress)
    time_s = np.arange(len(progress)) / prediction.fps
    axes.fill_between(time_s, 0, progress, where=known, color=CURVE, alpha=0.18, linewidth=0)
    axes.plot(time_s, progress, color=CURVE, linewidth=1.8, label="predicted")
    around = np.pad(known, 1)
    alone = known & ~around[:-2] & ~around[2:]
    axes.plot(time_s[alone], progress[alone], ".", color=CURVE)  # a line needs two frames


def _draw_progress(axes: "Axes", prediction: Prediction) -> None:
    from matplotlib.ticker import MaxNLocator

    progress, fps = prediction.progress, prediction.fps
    time_s, known = np.arange(len(progress)) / fps, np.isfinite(progress)
    draw_curve(axes, prediction)
    if prediction.truth is not None:
        axes.plot(time_s, prediction.truth, "--", color=INK, linewidth=1.3, label="annotated")
    shown = np.array([frame for frame, _ in prediction.thumbnails if known[frame]], dtype=np.int64)
    if len(shown):
        dots = axes.plot(shown / fps, progress[shown], "o", color="white", ms=6, zorder=3, label="frames below")
        dots[0].set(markeredgecolor=CURVE, clip_on=False)
    mark_unscored(axes, known, fps)
    axes.set(xlim=(-0.5 / fps, (len(progress) - 0.5) / fps), ylim=(0, 1.03), ylabel="progress")
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelbottom=False)
    _legend_beside(axes, *axes.get_legend_handles_labels())
    above = axes.secondary_xaxis("top", functions=(lambda x: np.asarray(x) * fps, lambda x: np.asarray(x) / fps))
    above.xaxis.set_major_locator(MaxNLocator(integer=True))
    above.tick_params(labelsize=9, colors=FAINT)
    axes.text(1.01, 1.022, "frame", transform=axes.transAxes, fontsize=9, color=FAINT)


def _draw_stages(axes: "Axes", prediction: Prediction) -> None:
    fps, known = prediction.fps, np.isfinite(prediction.progress)
    axes.set(ylim=(0, 1), ylabel="stage probability", xlabel="time (s)")
    axes.spines[["top", "right"]].set_visible(False)
    if prediction.probabilities is None:
        axes.text(0.5, 0.5, "no stage probabilities were kept", transform=axes.transAxes, ha="center", color=FAINT)
        return
    frames = np.flatnonzero(np.isfinite(prediction.probabilities).all(axis=1))
    x, source = _blocks(frames, known)
    tops = np.cumsum(prediction.probabilities[frames], axis=1)
    bottoms = np.concatenate([np.zeros((len(frames), 1)), tops[:, :-1]], axis=1)
    handles: list[Artist] = [
        axes.fill_between(
            x / fps,
            np.where(source < 0, np.nan, bottoms[source, stage]),
            np.where(source < 0, np.nan, tops[source, stage]),
            color=colour,
            alpha=0.85,
            linewidth=0,
        )
        for stage, colour in enumerate(stage_colours(len(prediction.stage_names)))
    ]
    lines = np.where(source[:, None] < 0, np.nan, tops[source, :-1])
    axes.plot(x / fps, lines, color="white", linewidth=0.6)  # neighbours of a long ramp look much alike
    names = [shortened(name, 26, 2) or name for name in prediction.stage_names]
    for boundary in prediction.boundaries:  # the frame that starts a stage begins half a frame before its own time
        line = axes.axvline((boundary - 0.5) / fps, color="white", linewidth=3, alpha=0.8)
        line = axes.axvline((boundary - 0.5) / fps, color=INK, linewidth=1.3, linestyle="--")
    handles, names = handles[::-1], names[::-1]  # as they are stacked
    if prediction.boundaries:
        handles, names = [*handles, line], [*names, "annotated start"]
    if len(frames) < known.sum():
        axes.set_title(
            "computed frames only; those between were interpolated", loc="left", fontsize=10, color="#555555"
        )
    mark_unscored(axes, known, fps)
    _legend_beside(axes, handles, names)


def _blocks(frames: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outline of what is drawn for each computed frame: a block around it, joined to its neighbour's where they meet.

    Args:
        frames: (k,) int64, ascending.
        known: (L,) bool, frames with progress; no block reaches into one without.

    Returns:
        x (m,) float64 in frames, and source (m,) int64, the position in `frames` whose values hold there; -1 for a gap.
    """
    gaps = np.diff(frames, prepend=-np.inf, append=np.inf)
    usual = np.median(gaps[1:-1]) if len(frames) > 1 else 1.0
    width = np.minimum(np.minimum(gaps[:-1], gaps[1:])[: len(frames)], usual)
    if len(frames) <= MAX_BARS:
        width = np.where(width > 1, 0.8 * width, width)
    holes = np.concatenate([[-np.inf], np.flatnonzero(~known), [np.inf]])
    after = np.searchsorted(holes, frames)
    left = np.maximum(frames - width / 2, holes[after - 1] + 0.5)
    right = np.minimum(frames + width / 2, holes[after] - 0.5)
    apart = np.append(right[:-1] < left[1:] - 1e-6, False)[: len(frames)]
    keep = np.stack([np.ones_like(apart), np.ones_like(apart), apart], axis=1)
    x = np.stack([left, right, right], axis=1)
    source = np.stack([np.arange(len(frames))] * 2 + [np.full(len(frames), -1)], axis=1)
    return x[keep], source[keep]


def _draw_thumbnails(figure: "Figure", prediction: Prediction) -> None:
    """The strip at the bottom, over the whole width; each picture above what is known of its frame."""
    for position, (frame, image) in enumerate(prediction.thumbnails):
        width = 0.925 / NUM_THUMBNAILS
        left = 0.06 + position * width
        axes = figure.add_axes((left, 0.055, width * 0.94, 0.125), anchor="S", gid=f"thumbnail {frame}")
        axes.set(xticks=[], yticks=[])
        if image is None:
            axes.imshow(np.full((2, 2, 3), MISSING))
            axes.text(0.5, 0.5, "cannot\nbe read", transform=axes.transAxes, ha="center", va="center", color="#444444")
        else:
            axes.imshow(image, interpolation="antialiased")
        value = prediction.progress[frame]
        said = f"progress {value:.2f}" if np.isfinite(value) else "not scored"
        axes.set_xlabel(f"frame {frame:,}, {frame / prediction.fps:.2f} s\n{said}", fontsize=10, labelpad=4)


def mark_unscored(axes: "Axes", known: np.ndarray, fps: float) -> None:
    """Hatch the frames without progress."""
    edges = np.flatnonzero(np.diff(~known, prepend=False, append=False))
    for number, (first, last) in enumerate(edges.reshape(-1, 2)):
        span = ((first - 0.5) / fps, (last - 0.5) / fps)
        label = None if number else "not scored"
        axes.axvspan(*span, facecolor="#eeeeee", edgecolor=FAINT, hatch="///", linewidth=0, label=label, zorder=0.5)


def _legend_beside(axes: "Axes", handles: "list[Artist]", names: list[str]) -> None:
    """To the right of the panel, never over a curve; smaller where there are many stages."""
    size = max(5.0, min(11.0, 140 / sum(name.count("\n") + 1 for name in names)))
    axes.legend(
        handles, names, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=size, borderaxespad=0
    )
