"""The demo's table: a wooden top, a plate, a block, and an arm that holds a gripper over them.

What does not move in an episode (table, plate, the arm's foot) is drawn once, and the rest over it, frame by frame.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from sarm_ray.demo.drawing import (
    DRAWN,
    Camera,
    Colour,
    box_corners,
    cast_shadows,
    disc,
    draw_box,
    draw_rod,
    project,
    projection,
    shade,
    shadow_of,
)

SIZE = DRAWN // 2  # pixels, of a picture's side

BLOCK = 0.07  # side
PLATE = 0.074  # radius
PLATE_HEIGHT = 0.005  # of what lies on it over the table
FINGER = (0.018, 0.034, 0.100)  # width, depth, height
OPEN_GAP = 0.132  # between the fingers
PALM = (0.170, 0.040, 0.028)
BETWEEN = (0.03, 0.05, 0.055)  # how far a block may be from the hand and keep the fingers from closing
WRIST = 0.05  # from the palm's top to the arm's last joint
FOOT, SHOULDER = np.array([[0.02, 0.46, 0.0], [0.02, 0.46, 0.20]])
UPPER_ARM, FOREARM = 0.27, 0.27
ROD_RADII = (0.036, 0.031, 0.024)  # upper arm, forearm, wrist
ELBOW_SIDE = np.array([0.8, 0.0, 0.6])  # where the elbow points

TABLE_X, TABLE_Y = (-0.70, 0.70), (-0.30, 0.58)  # metres, of the sheet that the table is cut from
TABLE_TOP = ((-0.69, -0.29), (0.69, -0.29), (0.69, 0.57), (-0.69, 0.57))
GRAIN = 420  # pixels per metre of the table's picture
NOISE_PIXELS = SIZE + 64  # side of an episode's sheet of noise, of which each frame shows another part

COLOURS: dict[str, Colour] = {
    "red": (206, 58, 50),
    "blue": (46, 104, 190),
    "green": (60, 146, 84),
    "yellow": (238, 184, 50),
    "white": (242, 240, 234),
    "grey": (96, 104, 116),
    "teal": (72, 158, 160),
    "purple": (128, 82, 170),
    "orange": (234, 124, 40),
    "pink": (228, 150, 168),
    "black": (52, 52, 58),
}
SHELL: Colour = (232, 233, 234)
JOINT: Colour = (66, 72, 82)
METAL: Colour = (92, 98, 108)
RUBBER: Colour = (40, 44, 52)
WALL: Colour = (206, 212, 214)


@dataclass(frozen=True)
class Look:
    """How an episode's pictures look.

    Args:
        camera: where from.
        block, plate: keys of COLOURS.
        wood: colour of the table.
        light: factor of brightness.
        noise: standard deviation of the camera's noise, of 255.
        seed: of the grain and the noise.
    """

    camera: Camera
    block: str
    plate: str
    wood: Colour
    light: float
    noise: float
    seed: int


@dataclass(frozen=True)
class Pose:
    """What moves, at one moment.

    Args:
        hand: (3,) the point between the fingertips, at half a block's height above them.
        opening: of the gripper, 0 closed to 1 open. Fingers that have the block between them stop at its sides.
        block: (3,) its centre.
        yaw: of the block, radians.
    """

    hand: np.ndarray
    opening: float
    block: np.ndarray
    yaw: float

    @property
    def between(self) -> bool:
        """Whether the block is between the fingers."""
        return bool((np.abs(self.block - self.hand) < BETWEEN).all())


@dataclass(frozen=True)
class Backdrop:
    """What does not move in an episode.

    Args:
        look: of the episode.
        matrix: its camera's `projection`.
        picture: RGB, DRAWN wide and high.
        noise: (NOISE_PIXELS, NOISE_PIXELS, 3) int16.
    """

    look: Look
    matrix: np.ndarray
    picture: Image.Image
    noise: np.ndarray


@dataclass(frozen=True)
class _Box:
    """Corners (8, 3), a colour, and how much brighter the edges are."""

    corners: np.ndarray
    colour: Colour
    edge: float


def draw_backdrop(look: Look, target: np.ndarray) -> Backdrop:
    """Draw the table, the plate and the arm's foot.

    Args:
        look: of the episode.
        target: (2,) the plate's centre.
    """
    rng = np.random.default_rng(look.seed)
    matrix = projection(look.camera)
    picture = _draw_table(look, matrix, rng)
    x, y = target.tolist()
    cast_shadows(picture, [disc(matrix, (x + 0.004, y - 0.004, 0.0), PLATE * 1.1)], blur=2.0, strength=0.6)
    draw = ImageDraw.Draw(picture)
    colour = COLOURS[look.plate]
    for radius, height, light in ((1.0, 0.001, 0.70), (1.0, 0.008, 1.08), (0.83, 0.008, 0.80), (0.80, 0.005, 0.94)):
        _draw_disc(draw, disc(matrix, (x, y, height), PLATE * radius), shade(colour, look.light * light))
    foot = (float(FOOT[0]), float(FOOT[1]))
    cast_shadows(picture, [disc(matrix, (foot[0] + 0.03, foot[1] - 0.01, 0.0), 0.075)], blur=4.0, strength=0.6)
    draw = ImageDraw.Draw(picture)
    for height, light in ((0.0, 0.8), (0.018, 1.15)):
        _draw_disc(draw, disc(matrix, (*foot, height), 0.07), shade(JOINT, look.light * light))
    draw_rod(draw, matrix, np.stack([FOOT, SHOULDER]), 0.045, SHELL, look.light)
    noise = rng.normal(0, look.noise, (NOISE_PIXELS, NOISE_PIXELS, 3)).round().astype(np.int16)
    return Backdrop(look, matrix, picture, noise)


def draw_frame(backdrop: Backdrop, pose: Pose, rng: np.random.Generator) -> np.ndarray:
    """The picture of one moment: (SIZE, SIZE, 3) uint8 RGB.

    Args:
        backdrop: of the episode.
        pose: of the moment.
        rng: chooses the camera's noise.
    """
    matrix, look = backdrop.matrix, backdrop.look
    picture = backdrop.picture.copy()
    fingers, palm, joints = _gripper(pose)
    rods = [(joints[k : k + 2], radius) for k, radius in enumerate(ROD_RADII)]
    block = _Box(box_corners(pose.block, (BLOCK, BLOCK, BLOCK), pose.yaw), COLOURS[look.block], 1.16)
    solids = [box.corners for box in (block, palm, *fingers)] + [_thick(ends, radius) for ends, radius in rods]
    cast_shadows(picture, [shadow_of(matrix, solid) for solid in solids], blur=1.7, strength=0.5)
    draw = ImageDraw.Draw(picture)
    # what is nearer to the camera comes later; the arm is over everything that lies on the table, unless before the hand
    before = not pose.between and pose.block[1] < pose.hand[1] - BLOCK / 2
    hand = [*fingers, block] if pose.between else fingers
    hand = [*sorted(hand, key=lambda box: -np.linalg.norm(box.corners.mean(0) - look.camera.position)), palm]
    if not pose.between and not before:
        _draw_boxes(draw, backdrop, [block])
    for ends, radius in rods:
        draw_rod(draw, matrix, ends, radius, SHELL, look.light)
        draw_rod(draw, matrix, ends[[0, 0]], radius * 1.12, JOINT, look.light)
    _draw_boxes(draw, backdrop, [*hand, block] if before else hand)
    top, left = rng.integers(0, NOISE_PIXELS - SIZE, 2).tolist()
    noise = backdrop.noise[top : top + SIZE, left : left + SIZE]
    return np.clip(np.asarray(picture.reduce(2)) + noise, 0, 255).astype(np.uint8)


def _draw_boxes(draw: ImageDraw.ImageDraw, backdrop: Backdrop, boxes: Sequence[_Box]) -> None:
    for box in boxes:
        draw_box(draw, backdrop.matrix, box.corners, box.colour, backdrop.look.light, box.edge)


def _draw_disc(draw: ImageDraw.ImageDraw, outline: np.ndarray, fill: Colour) -> None:
    draw.polygon(list(map(tuple, (outline * DRAWN).tolist())), fill=fill)


def _gripper(pose: Pose) -> tuple[list[_Box], _Box, np.ndarray]:
    """The two fingers, the palm, and the arm's joints from the shoulder on, (4, 3)."""
    gap = max(pose.opening * OPEN_GAP, BLOCK if pose.between else 0.0)
    x, y, z = pose.hand.tolist()
    low = z - BLOCK / 2 + 0.006  # so far over the table, the tips do not touch it
    aside, middle = (gap + FINGER[0]) / 2, low + FINGER[2] / 2
    fingers = [_Box(box_corners((x + side * aside, y, middle), FINGER), RUBBER, 1.5) for side in (-1, 1)]
    palm = _Box(box_corners((x, y, low + FINGER[2] + PALM[2] / 2), PALM), METAL, 1.12)
    top = np.array([x, y, low + FINGER[2] + PALM[2]])
    wrist = np.array([x, y, top[2] + WRIST])
    return fingers, palm, np.stack([SHOULDER, _elbow(wrist), wrist, top])


def _elbow(wrist: np.ndarray) -> np.ndarray:
    """Where the elbow is, (3,): of the circle that both lengths leave, the point towards ELBOW_SIDE."""
    reach = wrist - SHOULDER
    distance = min(float(np.linalg.norm(reach)), 0.999 * (UPPER_ARM + FOREARM))
    along = reach / np.linalg.norm(reach)
    foot = (distance**2 + UPPER_ARM**2 - FOREARM**2) / (2 * distance)
    aside = ELBOW_SIDE - along * (along @ ELBOW_SIDE)
    return SHOULDER + along * foot + aside / np.linalg.norm(aside) * math.sqrt(max(UPPER_ARM**2 - foot**2, 0.0))


def _thick(ends: np.ndarray, radius: float) -> np.ndarray:
    """Points around a rod, for its shadow: (8, 3)."""
    around = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]) * radius
    return (ends[:, None] + around).reshape(-1, 3)


def _draw_table(look: Look, matrix: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Planks from left to right with a grain along them, and the wall behind: RGB, DRAWN wide and high."""
    width, depth = (round((b - a) * GRAIN) for a, b in (TABLE_X, TABLE_Y))
    tone = np.zeros((depth, width))
    for stretch, strength in ((24, 0.040), (70, 0.035)):  # short and long fibres
        fibres = rng.normal(size=(depth, width // stretch + 2)).astype(np.float32)
        sheet = Image.fromarray(fibres).resize((width, depth), Image.Resampling.BICUBIC)
        tone += strength * np.asarray(sheet)
    plank = np.floor((np.arange(depth) / GRAIN + rng.uniform(0, 0.1)) / 0.105).astype(int)
    tone += rng.normal(0, 0.035, plank.max() + 1)[plank][:, None]
    tone[np.flatnonzero(np.diff(plank, prepend=plank[0]))] -= 0.22  # the gaps
    pixels = np.clip(np.array(look.wood) * look.light * (1 + tone[..., None]), 0, 255).astype(np.uint8)
    corners = np.array([[x, y, 0.0] for y in TABLE_Y for x in TABLE_X])
    sheet = Image.fromarray(pixels)
    there = project(matrix, corners) * DRAWN
    here = [(0, 0), (width, 0), (0, depth), (width, depth)]
    coefficients = _homography(there, np.array(here, dtype=np.float64))
    picture = Image.new("RGB", (DRAWN, DRAWN), shade(WALL, look.light))
    warped = sheet.transform((DRAWN, DRAWN), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
    mask = Image.new("L", (DRAWN, DRAWN))
    top = project(matrix, np.array([[x, y, 0.0] for x, y in TABLE_TOP])) * DRAWN
    ImageDraw.Draw(mask).polygon(list(map(tuple, top.tolist())), fill=255)
    picture.paste(warped, mask=mask)
    ImageDraw.Draw(picture).line(list(map(tuple, top[2:].tolist())), fill=shade(look.wood, look.light * 0.8), width=3)
    return picture


def _homography(source: np.ndarray, result: np.ndarray) -> list[float]:
    """The eight coefficients of Pillow's perspective transform that take four places (4, 2) to four others."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source.tolist(), result.tolist(), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(rows), np.array(values)).tolist()
