"""An mp4 per episode and head: the episode on the left, its progress on the right, growing up to the frame shown.

sarm_prediction_ep{i}_{head}.mp4. Frame k of the mp4 shows frame k of the episode at the same time: as many frames, the
same rate. The plot is drawn twice, without the prediction and with all of it; each moment is the one with the columns of
the other up to now, a dot, and the numbers of its frame, which takes less time than decoding and encoding it.
"""

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sarm_ray.data.storage import write_atomically
from sarm_ray.errors import VideoError
from sarm_ray.report.pictures import CURVE, FAINT, INK, MISSING, new_figure, shortened, stage_colours, style
from sarm_ray.report.predictions import Prediction, draw_curve, mark_unscored

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 1280, 560  # this and what follows in pixels from the upper left corner
SIDE = 448
FRAME_LEFT, FRAME_TOP = 24, 64
PLOT_LEFT, PLOT_RIGHT = 568, 1256
PROGRESS_TOP, TRUTH_LEFT = 64, 768
LABELS_TOP, LABEL_HEIGHT = 100, 26
STRIP_HEIGHT, STRIP_GAP, STRIPS_BOTTOM = 16, 8, 474
COUNTER_TOP = FRAME_TOP + SIDE + 12
DOT_RADIUS = 7
SCREEN_DPI = 100
KEYFRAME_S = 1.0
CODEC_OPTIONS = {"preset": "superfast", "crf": "21", "bf": "0"}  # no B-frames: every player begins at 0 exactly


@dataclass(frozen=True)
class Canvas:
    """What the frames of a side-by-side video have in common.

    Args:
        empty: (HEIGHT, WIDTH, 3) uint8, the plot without the prediction. whole: the same with all of it.
        x, y: (L,) int64, the place of each frame's dot; y has no meaning where there is no progress.
        top: the row at which the plot begins.
        names: (K, LABEL_HEIGHT, PLOT_RIGHT - PLOT_LEFT, 3) uint8, the name of each stage.
        stages: (L,) int64 for each line of names, the stage to show at each frame, -1 for none.
    """

    empty: np.ndarray
    whole: np.ndarray
    x: np.ndarray
    y: np.ndarray
    top: int
    names: np.ndarray
    stages: tuple[np.ndarray, ...]


def video_name(episode_index: int, head: str) -> str:
    return f"sarm_prediction_ep{episode_index}_{head}.mp4"


def write_side_by_side(
    path: str,
    prediction: Prediction,
    frames: Iterable[np.ndarray | VideoError],
    note: str = "",
    tick: Callable[[int], None] = lambda number: None,
) -> list[VideoError]:
    """Write the video, whole or not at all, to a local path or URL: H.264 in yuv420p, its index at the beginning.

    Args:
        path: of the mp4.
        prediction: of an episode of L frames.
        frames: L of them, (SIDE, SIDE, 3) uint8 RGB, or why it cannot be read: a grey square in its place.
        note: small print below the frames.
        tick: called with the number of frames that were done since it was last called.

    Returns:
        Why frames could not be read, one error each.

    Raises:
        VideoError: no frame can be read; nothing is written.
        StoreError: nothing can be written there.
    """
    errors: list[VideoError] = []
    canvas = lay_out(prediction, note)

    def moments() -> Iterator[np.ndarray]:
        for number, picture in enumerate(frames):
            if isinstance(picture, VideoError):
                errors.append(picture)
                is_whole_file = picture.frame is None or number + 1 == len(prediction.progress)
                if is_whole_file and len(errors) == number + 1:
                    raise picture
            yield moment(canvas, prediction, number, None if isinstance(picture, VideoError) else picture)
            tick(1)

    with tempfile.TemporaryDirectory() as folder:  # an mp4 whose index is moved to its beginning needs a path
        local = Path(folder) / "side_by_side.mp4"
        _encode(local, moments(), prediction.fps)
        with local.open("rb") as finished:
            write_atomically(path, lambda stream: shutil.copyfileobj(finished, stream))
    return errors


def _encode(path: Path, images: Iterable[np.ndarray], fps: float) -> None:
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options=CODEC_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = 1 / rate
        stream.codec_context.gop_size = max(round(KEYFRAME_S * fps), 1)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base, frame.pts = 1 / rate, number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def moment(canvas: Canvas, prediction: Prediction, number: int, picture: np.ndarray | None) -> np.ndarray:
    """One frame of the video: (HEIGHT, WIDTH, 3) uint8.

    Args:
        canvas: of the prediction.
        prediction: of the episode.
        number: of the frame in the episode.
        picture: (SIDE, SIDE, 3) uint8, or None where it cannot be read.
    """
    image = canvas.empty.copy()
    image[FRAME_TOP : FRAME_TOP + SIDE, FRAME_LEFT : FRAME_LEFT + SIDE] = MISSING if picture is None else picture
    if picture is None:
        _write(image, "cannot be read", FRAME_LEFT + 158, FRAME_TOP + 212, 18)
    x, rows = int(canvas.x[number]), slice(canvas.top, STRIPS_BOTTOM)
    image[rows, PLOT_LEFT : x + 1] = canvas.whole[rows, PLOT_LEFT : x + 1]
    image[rows, x] = _rgb(FAINT)
    value = prediction.progress[number]
    if np.isfinite(value):
        _draw_dot(image, x, int(canvas.y[number]))
    said = f"progress {value:.2f}" if np.isfinite(value) else "not scored"
    _write(image, said, PLOT_LEFT, PROGRESS_TOP, 23, CURVE if np.isfinite(value) else FAINT, bold=True)
    if prediction.truth is not None:
        _write(image, f"╌╌ annotated {prediction.truth[number]:.2f}", TRUTH_LEFT, PROGRESS_TOP + 5, 17)
    _write(image, f"frame {number:,}, {number / prediction.fps:.2f} s", FRAME_LEFT, COUNTER_TOP, 17)
    for line, stage in enumerate(canvas.stages):
        if stage[number] >= 0:
            top = LABELS_TOP + line * LABEL_HEIGHT
            image[top : top + LABEL_HEIGHT, PLOT_LEFT:PLOT_RIGHT] = canvas.names[stage[number]]
    return image


def lay_out(prediction: Prediction, note: str = "") -> Canvas:
    """Draw what does not change from frame to frame; `note` is small print below the frames."""
    stages = _stages(prediction)
    top = LABELS_TOP + len(stages) * LABEL_HEIGHT + 16
    length, fps = len(prediction.progress), prediction.fps
    colours = np.array(stage_colours(len(prediction.stage_names))).reshape(-1, 3)
    with style():
        figure = new_figure(WIDTH / SCREEN_DPI, HEIGHT / SCREEN_DPI, SCREEN_DPI)
        _draw_texts(figure, prediction, tuple(stages), note)
        curve = _pixels(figure, top, STRIPS_BOTTOM - len(stages) * (STRIP_HEIGHT + STRIP_GAP))
        curve.set(ylim=(0, 1.03), ylabel="progress")
        draw_curve(curve, prediction)
        mark_unscored(curve, np.isfinite(prediction.progress), fps)
        predicted: list[Artist] = [*curve.lines, *curve.collections, *curve.patches]
        if prediction.truth is not None:
            curve.plot(np.arange(length) / fps, prediction.truth, "--", color=INK, linewidth=1.3)
        curve.grid(color="#dddddd", linewidth=0.7)
        curve.set_axisbelow(True)
        for number, (name, stage) in enumerate(stages.items()):
            figure.axes[-1].tick_params(labelbottom=False, bottom=False)
            bottom = STRIPS_BOTTOM - (len(stages) - 1 - number) * (STRIP_HEIGHT + STRIP_GAP)
            strip = _draw_strip(_pixels(figure, bottom - STRIP_HEIGHT, bottom), name, stage, colours, fps)
            predicted += [strip] if name == "predicted" else []
        for axes in figure.axes:
            axes.set_xlim(-0.5 / fps, (length - 0.5) / fps)
        figure.axes[-1].set_xlabel("time (s)")
        whole = _render(figure)
        for artist in predicted:
            artist.set_visible(False)
        empty = _render(figure)
        names = _draw_names(prediction.stage_names, colours)
    moments = np.stack([np.arange(length) / fps, np.nan_to_num(prediction.progress)], axis=1)
    x, y = curve.transData.transform(moments).T
    x = np.clip(np.floor(x).astype(np.int64), PLOT_LEFT, PLOT_RIGHT - 1)
    return Canvas(empty, whole, x, np.floor(HEIGHT - y).astype(np.int64), top, names, tuple(stages.values()))


def _stages(prediction: Prediction) -> dict[str, np.ndarray]:
    """What there is of `annotated` and `predicted` stages: (L,) int64, the stage of each frame, -1 where there is none."""
    found: dict[str, np.ndarray] = {}
    if len(prediction.stage_names) < 2:
        return found
    if prediction.annotated_stage is not None:
        found["annotated"] = prediction.annotated_stage
    if prediction.probabilities is not None:
        computed = np.isfinite(prediction.probabilities).all(axis=1)
        best = np.where(computed, np.nan_to_num(prediction.probabilities).argmax(axis=1), -1)
        latest = np.maximum.accumulate(np.where(computed, np.arange(len(best)), -1))  # between computed ones: the last
        found["predicted"] = np.where(np.isfinite(prediction.progress) & (latest >= 0), best[latest], -1)
    return found


def _draw_texts(figure: "Figure", prediction: Prediction, lines: tuple[str, ...], note: str) -> None:
    def write(text: str, left: float, top: float, **options) -> None:
        figure.text(left / WIDTH, 1 - top / HEIGHT, text, va="top", **options)

    length = len(prediction.progress)
    write(f"Episode {prediction.episode_index}, {prediction.head} head", FRAME_LEFT, 10, fontsize=14, fontweight="bold")
    facts = f"{length:,} frame{'s' if length > 1 else ''}, {length / prediction.fps:.1f} s"
    write(facts, PLOT_RIGHT, 13, ha="right", fontsize=11)
    write(shortened(prediction.text, 135), FRAME_LEFT, 36, fontsize=11, color="#555555")
    for number, name in enumerate(lines):
        middle = LABELS_TOP + (number + 0.5) * LABEL_HEIGHT
        write(name, PLOT_LEFT - 8, middle - 7, ha="right", fontsize=9)
    write(note, FRAME_LEFT + SIDE, COUNTER_TOP + 4, ha="right", fontsize=9, color=FAINT)


def _pixels(figure: "Figure", top: int, bottom: int) -> "Axes":
    """Axes over the width of the plot between two rows."""
    place = (PLOT_LEFT / WIDTH, 1 - bottom / HEIGHT, (PLOT_RIGHT - PLOT_LEFT) / WIDTH, (bottom - top) / HEIGHT)
    axes = figure.add_axes(place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)
    return axes


def _draw_strip(axes: "Axes", name: str, stage: np.ndarray, colours: np.ndarray, fps: float) -> "Artist":
    """The colour of each frame's stage; white where there is none."""
    axes.set(yticks=[], ylim=(0, 1))
    axes.spines[:].set_visible(False)
    axes.text(-0.012, 0.45, name, transform=axes.transAxes, ha="right", va="center", fontsize=9)
    pixels = np.where(stage[:, None] < 0, 1.0, colours[stage])[None]
    extent = (-0.5 / fps, (len(stage) - 0.5) / fps, 0.0, 1.0)
    return axes.imshow(pixels, extent=extent, aspect="auto", interpolation="nearest")


def _draw_names(stage_names: tuple[str, ...], colours: np.ndarray) -> np.ndarray:
    """A spot of each stage's colour and its name: (K, LABEL_HEIGHT, PLOT_RIGHT - PLOT_LEFT, 3) uint8."""
    number, width = len(stage_names), PLOT_RIGHT - PLOT_LEFT
    figure = new_figure(width / SCREEN_DPI, max(number, 1) * LABEL_HEIGHT / SCREEN_DPI, SCREEN_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(max(number, 1) * LABEL_HEIGHT, 0))
    axes.set_axis_off()
    for stage, colour in enumerate(colours):
        middle = (stage + 0.5) * LABEL_HEIGHT
        axes.plot([8], [middle], "s", ms=11, color=tuple(colour))
        axes.text(24, middle + 1, shortened(stage_names[stage], 70), va="center", fontsize=11)
    return _render(figure)[: number * LABEL_HEIGHT].reshape(number, LABEL_HEIGHT, width, 3)


def _render(figure: "Figure") -> np.ndarray:
    """(height, width, 3) uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]


def _draw_dot(image: np.ndarray, x: int, y: int) -> None:
    """A disc of the curve's colour with a white rim, with soft edges; cut off where it leaves the image."""
    share, colour = _dot()
    reach = len(share) // 2
    place = image[y - reach : y + reach + 1, x - reach : x + reach + 1]
    place[:] = (place * (1 - share) + colour * share).astype(np.uint8)


@functools.lru_cache(maxsize=1)
def _dot() -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel is covered, (n, n, 1) float in 0..1, and its colour, (n, n, 3) float."""
    reach = DOT_RADIUS + 2
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(rows, columns)[..., None]
    inner = np.clip(DOT_RADIUS - 1.5 - distance + 0.5, 0, 1)
    return np.clip(DOT_RADIUS + 0.5 - distance, 0, 1), inner * _rgb(CURVE) + (1 - inner) * 255.0


def _rgb(colour: str) -> np.ndarray:
    """(3,) int64 in 0..255 from #rrggbb."""
    return np.array([int(colour[position : position + 2], 16) for position in (1, 3, 5)])


def _write(image: np.ndarray, text: str, left: int, top: int, size: int, colour: str = INK, bold: bool = False) -> None:
    """Numbers and plain words, one line: matplotlib would take ten times as long."""
    font = _font(size, bold)
    place = image[top : top + round(1.5 * size), left : left + int(font.getlength(text)) + 2]
    patch = Image.fromarray(place)
    ImageDraw.Draw(patch).text((0, 0), text, fill=colour, font=font)
    place[:] = np.asarray(patch)


@functools.lru_cache(maxsize=8)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    from matplotlib import font_manager

    wanted = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(wanted), size)
