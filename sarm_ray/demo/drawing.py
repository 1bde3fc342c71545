"""Solid things in perspective, with Pillow: a pinhole camera, boxes, rods and discs, soft shadows on the table.

Metres; x to the right, y away from the camera, z up; the table's top is z = 0. Pictures are square. They are drawn at
twice their size and scaled down, which smooths their edges.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

DRAWN = 512  # pixels, of the side that is drawn
SHADED = 128  # pixels, of the side that shadows are drawn at: they are soft anyway
LIGHT = np.array([-0.42, -0.45, 0.79])  # towards it
SHADOW_REACH = np.array([0.34, -0.12])  # how far a point at height 1 casts its shadow, in x and y
SHADOW = (34, 26, 30)
AMBIENT, DIRECT = 0.62, 0.50  # light on a face, whatever its direction and by its direction
# a box's corners are numbered by bits: 1 for the far x, 2 for the far y, 4 for the far z
FACES = np.array([[0, 1, 5, 4], [1, 3, 7, 5], [3, 2, 6, 7], [2, 0, 4, 6], [4, 5, 7, 6]])  # all but the lower one
CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 49)), np.sin(np.linspace(0, 2 * np.pi, 49))], axis=1)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Args:
        position, aim: (x, y, z) of the lens, and of the point in the middle of the picture.
        focal: distance of the picture plane, in widths of the picture.
    """

    position: tuple[float, float, float]
    aim: tuple[float, float, float]
    focal: float


def projection(camera: Camera) -> np.ndarray:
    """(3, 4) float64, from homogeneous points to homogeneous places in a picture of width 1, y downwards."""
    position, aim = np.array(camera.position), np.array(camera.aim)
    forward = (aim - position) / np.linalg.norm(aim - position)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    turned = np.stack([right, np.cross(forward, right), forward])
    lens = np.array([[camera.focal, 0, 0.5], [0, camera.focal, 0.5], [0, 0, 1]])
    return lens @ np.column_stack([turned, -turned @ position])


def project(matrix: np.ndarray, points_N3: np.ndarray) -> np.ndarray:
    """Points to places in a picture of width 1: (..., 3) -> (..., 2)."""
    homogeneous = points_N3 @ matrix[:, :3].T + matrix[:, 3]
    return homogeneous[..., :2] / homogeneous[..., 2:]


def shade(colour: Colour, light: float) -> Colour:
    """A colour under more (above 1) or less light."""
    red, green, blue = (min(255, round(value * light)) for value in colour)
    return red, green, blue


def box_corners(centre: Sequence[float] | np.ndarray, size: tuple[float, float, float], yaw: float = 0.0) -> np.ndarray:
    """(8, 3) float64, numbered as FACES expects."""
    bits = np.arange(8)
    unit = np.stack([bits & 1, bits >> 1 & 1, bits >> 2 & 1], axis=1) - 0.5
    x, y, z = (unit * size).T
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=1) + centre


def draw_box(
    draw: ImageDraw.ImageDraw, matrix: np.ndarray, corners: np.ndarray, colour: Colour, light: float, edge: float = 1.12
) -> None:
    """The faces that the camera sees, each as bright as it is turned to the light, their edges a little brighter."""
    places = project(matrix, corners) * DRAWN
    outlines = places[FACES]
    x, y = outlines[..., 0], outlines[..., 1]
    area = (x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1)
    faces = corners[FACES]
    normals = np.cross(faces[:, 1] - faces[:, 0], faces[:, 3] - faces[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    bright = AMBIENT + DIRECT * np.maximum(normals @ LIGHT, 0)
    for face in np.flatnonzero(area < 0).tolist():  # the others turn their back to the camera
        outline = list(map(tuple, outlines[face].tolist()))
        draw.polygon(outline, fill=shade(colour, light * bright[face]))
        draw.line([*outline, outline[0]], fill=shade(colour, light * bright[face] * edge), width=2, joint="curve")


def draw_rod(
    draw: ImageDraw.ImageDraw, matrix: np.ndarray, ends: np.ndarray, radius: float, colour: Colour, light: float
) -> None:
    """A round rod between two points, (2, 3), with a highlight along it; a ball where they are one."""
    places = project(matrix, ends) * DRAWN
    focal = float(np.linalg.norm(matrix[0, :3] - matrix[2, :3] / 2))
    widths = radius * focal * DRAWN / (ends @ matrix[2, :3] + matrix[2, 3])
    for scale, shift, bright in ((1.0, 0.0, 0.72), (0.82, -0.14, 0.92), (0.42, -0.32, 1.08)):
        drawn = places + np.array([shift, shift * 0.6]) * widths[:, None]
        _draw_capsule(draw, drawn.tolist(), (widths * scale).tolist(), shade(colour, light * bright))


def _draw_capsule(draw: ImageDraw.ImageDraw, ends: list, radii: list, fill: Colour) -> None:
    (ax, ay), (bx, by) = ends
    for (x, y), radius in zip(ends, radii, strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    length = math.hypot(bx - ax, by - ay)
    if length > 1:
        aside = ((ay - by) / length, (bx - ax) / length)
        sides = zip((*ends, *ends[::-1]), (*radii, *radii[::-1]), (1, 1, -1, -1), strict=True)
        corners = [(x + sign * r * aside[0], y + sign * r * aside[1]) for (x, y), r, sign in sides]
        draw.polygon(corners, fill=fill)


def disc(matrix: np.ndarray, centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """The outline of a level disc in a picture of width 1: (49, 2)."""
    rim = np.column_stack([CIRCLE * radius, np.zeros(len(CIRCLE))]) + centre
    return project(matrix, rim)


def cast_shadows(picture: Image.Image, outlines: list[np.ndarray], blur: float, strength: float) -> None:
    """Darken a picture under some outlines, softly.

    Args:
        picture: RGB, DRAWN wide and high; changed in place.
        outlines: (n, 2) each, places in a picture of width 1.
        blur: radius, in pixels of SHADED.
        strength: of the shadow, 0 to 1.
    """
    mask = Image.new("L", (SHADED, SHADED))
    draw = ImageDraw.Draw(mask)
    for outline in outlines:
        draw.polygon(list(map(tuple, (outline * SHADED).tolist())), fill=round(255 * strength))
    soft = mask.filter(ImageFilter.GaussianBlur(blur))
    box = soft.getbbox()
    if box is not None:
        left, top, right, bottom = (side * (DRAWN // SHADED) for side in box)
        soft = soft.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box)
        picture.paste(SHADOW, (left, top, right, bottom), soft)


def shadow_of(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The outline of the shadow that a convex body casts on the table: corners (N, 3) -> (n, 2) in a picture of width 1."""
    height = np.maximum(points[:, 2:], 0.0)
    level = np.column_stack([points[:, :2] + height * SHADOW_REACH, np.zeros(len(points))])
    return _hull_array(project(matrix, level))


def _hull_array(points: np.ndarray) -> np.ndarray:
    """The convex hull of points in a plane, (N, 2) -> (n, 2), by monotone chains (Andrew 1979)."""
    ordered = sorted(map(tuple, points.tolist()))

    def chain(places: list) -> list:
        kept: list = []
        for place in places:
            while len(kept) > 1 and _turn(kept[-2], kept[-1], place) <= 0:
                kept.pop()
            kept.append(place)
        return kept[:-1]

    return np.array(chain(ordered) + chain(ordered[::-1]))


def _turn(a: tuple, b: tuple, c: tuple) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
