"""What all pictures of episodes share: letters, colours, and the frames they show."""

import contextlib
import textwrap
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sarm_ray.data.storage import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
INK, FAINT, CURVE = "#222222", "#8a8a8a", "#0072B2"
MISSING = np.uint8(205)  # grey of a picture that cannot be read
# Okabe and Ito, in an order in which neighbours differ in lightness too; more stages than these get a ramp of viridis
STAGE_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Arial Unicode MS", "Noto Sans")


def write_png(path: str, make: "Callable[[], Figure]") -> None:
    """Write a figure, whole or not at all, to a local path or URL."""
    with style():
        figure = make()
        write_atomically(path, lambda stream: figure.savefig(stream, format="png", dpi=DPI))


def new_figure(width: float, height: float, dpi: float = DPI) -> "Figure":
    """A figure of so many inches on its own Agg canvas: pyplot and its global state are not involved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Settings for making and saving a figure (ticks are made when it is saved), put back afterwards."""
    import matplotlib
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    settings: dict[Any, Any] = {
        "font.family": [name for name in FONTS if name in installed],
        "font.size": 11,
        "text.color": INK,
        "text.parse_math": False,  # task texts and stage names may hold a $
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": INK,
        "ytick.color": INK,
        "hatch.linewidth": 0.6,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # shown as boxes; no news to anybody
        yield


def stage_colours(num_stages: int) -> list[tuple[float, float, float]]:
    """RGB of each stage, each number in 0..1."""
    import matplotlib
    from matplotlib.colors import to_rgb

    if num_stages <= len(STAGE_COLOURS):
        return [to_rgb(colour) for colour in STAGE_COLOURS[:num_stages]]
    return [to_rgb(matplotlib.colormaps["viridis"](share)) for share in np.linspace(0.05, 0.98, num_stages)]


def ink_on(colour: tuple[float, float, float]) -> str:
    """The colour of letters that can be read on a colour."""
    red, green, blue = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.45 else "white"


def shortened(text: str, width: int, num_lines: int = 1) -> str:
    """A text in at most so many lines of about `width` letters, what is left out shown as `…`."""
    lines = textwrap.wrap(text, width, max_lines=num_lines, placeholder=" …")
    return "\n".join(lines)
