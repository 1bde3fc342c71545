"""One HTML file from the parts in assets/: style, scripts and data inside it, and nothing that it would have to ask for.

Texts from datasets reach the page as JSON in a script element that is never run, with every character escaped that HTML
could take for a tag; the scripts put them on screen as text alone.
"""

import base64
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

FRAME = "page_frame.html"


@dataclass(frozen=True)
class Parts:
    """What a page is made of; body, styles and scripts are names in assets/.

    Args:
        body: goes into FRAME.
        styles, scripts: in the order in which they stand in the page.
        start: the script's last lines.
        package: has an assets/ of its own, in which names are looked for first.
        connects: whether its scripts may talk to the server that it came from.
    """

    body: str
    styles: tuple[str, ...]
    scripts: tuple[str, ...]
    start: str
    package: str = "sarm_ray.report"
    connects: bool = False


REPORT = Parts(
    body="page.html",
    styles=("page.css", "page_viewer.css"),
    scripts=(
        "page_elements.js",
        "page_base.js",
        "page.js",
        "page_headline.js",
        "page_list.js",
        "page_chart.js",
        "page_player.js",
        "page_episode.js",
        "page_weights.js",
    ),
    start="startWeights();\nstartList();\nstartViewer();",
)


def assemble_page(title: str, data: Mapping[str, Any], embedded: Mapping[int, str], parts: Parts = REPORT) -> bytes:
    """The page.

    Args:
        title: of the window; any text.
        data: what the scripts read; JSON without NaN.
        embedded: number -> a file in base64, which becomes the element `media-<number>`.
        parts: which page.
    """
    frame, body, style, script = (
        "\n".join(_asset(parts.package, name) for name in names)
        for names in ((FRAME,), (parts.body,), parts.styles, parts.scripts)
    )
    media = (f'<script type="text/plain" id="media-{place}">{text}</script>' for place, text in embedded.items())
    contents = {
        "title": html.escape(title),
        "connect": "; connect-src 'self'" if parts.connects else "",
        "style": style,
        "body": body.rstrip(),
        "data": safe_json(data),
        "media": "\n".join(media),
        "script": f'(() => {{\n"use strict";\n{script}\n{parts.start}\n}})();',
    }
    pieces = frame.split("{{")  # in one go, so that no part is looked for inside another
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        filled += [contents[name], rest]
    return "".join(filled).encode()


def _asset(package: str, name: str) -> str:
    own = files(package).joinpath("assets", name)
    found = own if own.is_file() else files("sarm_ray.report").joinpath("assets", name)
    return found.read_text(encoding="utf-8")


def safe_json(value: Any) -> str:
    """JSON that can stand inside a script element, whatever texts are in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def packed(values: np.ndarray | None) -> str | None:
    """An array's bytes, little endian, in base64; None stays."""
    if values is None:
        return None
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def number_or_none(value: float, digits: int = 4) -> float | None:
    """Rounded; None where it is NaN, which JSON does not have."""
    return round(float(value), digits) if np.isfinite(value) else None
