"""The demo's three datasets: demonstrations to train on, held-out episodes with graded rollouts, and a changed scene."""

import csv
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sarm_ray.demo.drawing import Camera, Colour
from sarm_ray.demo.lerobot_writer import Format, Recording, write_lerobot
from sarm_ray.demo.motion import FPS, STAGES, SUBTASKS, segments_of
from sarm_ray.demo.plans import Episode, plan_episode
from sarm_ray.demo.scene import SIZE, Look, Pose, draw_backdrop, draw_frame

TEMPOS = (0.85, 2.55)  # the slowest and the fastest episode of each dataset
STATE_NAMES = ("x", "y", "z", "gripper")
STATE_NOISE = np.array([0.003, 0.003, 0.003, 0.02])  # of the measurement: metres, and a share of the gripper's way
FORMAT = Format("drawn_arm", FPS, SIZE, STATE_NAMES, {"sparse": STAGES, "dense": SUBTASKS})


@dataclass(frozen=True)
class Scenery:
    """What a dataset's looks are drawn from.

    Args:
        camera: its usual place, off which each episode's is a little.
        wood: the table's usual colour.
        blocks, plates: keys of scene.COLOURS.
    """

    camera: Camera
    wood: Colour
    blocks: tuple[str, ...]
    plates: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """One of the datasets.

    Args:
        scenery: its looks.
        demonstrations: kind -> number of annotated episodes.
        rollouts: kind -> number of graded episodes without annotation, which come after them.
    """

    scenery: Scenery
    demonstrations: dict[str, int]
    rollouts: dict[str, int]


@dataclass(frozen=True)
class PlannedEpisode:
    """An episode that is not drawn yet.

    Args:
        episode: what happens.
        look: how it looks.
        annotated: whether it is a demonstration.
        seed: of its noise.
    """

    episode: Episode
    look: Look
    annotated: bool
    seed: tuple[int, ...]

    @property
    def task(self) -> str:
        """The text."""
        return f"put the {self.look.block} block on the {self.look.plate} plate"


@dataclass(frozen=True)
class DemoPaths:
    """Where the demo's datasets are.

    Args:
        train: annotated demonstrations.
        test: held-out annotated demonstrations, then rollouts without annotation.
        variant: annotated demonstrations in colours and from a place that `train` does not have.
        labels: a CSV of the outcomes of `test`, the same as its episode table's column.
    """

    train: Path
    test: Path
    variant: Path
    labels: Path


USUAL = Scenery(
    Camera((0.0, -0.78, 0.82), (0.0, 0.105, 0.085), 2.4),
    (214, 178, 136),
    ("red", "blue", "green", "yellow"),
    ("white", "grey", "pink"),
)
CHANGED = Scenery(
    Camera((0.30, -0.70, 0.88), (0.0, 0.105, 0.085), 2.4), (186, 168, 150), ("purple", "orange"), ("teal", "black")
)
SPLITS = {
    "train": Split(USUAL, {"clean": 32, "drop": 9, "misgrasp": 5, "empty carry": 4, "hesitation": 6}, {}),
    "test": Split(
        USUAL,
        {"clean": 8, "drop": 3, "misgrasp": 1, "empty carry": 1, "hesitation": 1},
        {
            "clean": 6,
            "drop": 1,
            "left beside": 2,
            "stopped midway": 2,
            "phantom carry": 3,
            "never grasps": 2,
            "dropped and idle": 2,
            "knocked away": 2,
        },
    ),
    "variant": Split(CHANGED, {"clean": 5, "drop": 2, "misgrasp": 1}, {}),
}


def demo_paths(folder: Path) -> DemoPaths:
    """Where `write_demo` puts what it draws into a folder."""
    train, test, variant = (folder / f"tabletop_{name}" for name in ("train", "test", "variant"))
    return DemoPaths(train, test, variant, folder / "tabletop_test_labels.csv")


def write_demo(folder: Path, seed: int, frame_written: Callable[[], None] | None = None) -> DemoPaths:
    """Draw the demo's datasets, each of which is there once it is complete; what was there of their names is replaced.

    The same seed gives the same rows and pictures.

    Args:
        folder: where to.
        seed: of everything that is random.
        frame_written: called after every frame, of which there are `num_frames(plan_demo(seed))`.
    """
    for name in SPLITS:
        write_split(folder, seed, name, frame_written)
    return demo_paths(folder)


def write_split(folder: Path, seed: int, name: str, frame_written: Callable[[], None] | None = None) -> None:
    """One of the datasets of `write_demo`, by its key in SPLITS; with the test set come its labels."""
    paths, planned = demo_paths(folder), plan_demo(seed)[name]
    place = getattr(paths, name)
    unfinished = folder / f".{name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    write_lerobot(unfinished, FORMAT, [record(each) for each in planned], frame_written)
    if place.exists():
        shutil.rmtree(place)
    unfinished.rename(place)
    if name == "test":
        _write_labels(paths.labels, planned)


def plan_demo(seed: int) -> dict[str, list[PlannedEpisode]]:
    """The episodes of each dataset of the demo: key of SPLITS -> episodes in order."""
    return {name: _plan_split(split, (seed, number)) for number, (name, split) in enumerate(SPLITS.items())}


def num_frames(plans: dict[str, list[PlannedEpisode]]) -> int:
    """Of all datasets together."""
    return sum(len(each.episode.motion) for planned in plans.values() for each in planned)


def _plan_split(split: Split, seed: tuple[int, ...]) -> list[PlannedEpisode]:
    rng = np.random.default_rng(seed)
    kinds: list[str] = []
    for group in (split.demonstrations, split.rollouts):
        kinds += rng.permutation([kind for kind, number in group.items() for _ in range(number)]).tolist()
    num_annotated = sum(split.demonstrations.values())
    # evenly over the range, so that every seed has its slowest and fastest, and about as many frames
    tempos = rng.permutation(np.linspace(*TEMPOS, len(kinds))).tolist()
    planned = []
    for number, (kind, tempo) in enumerate(zip(kinds, tempos, strict=True)):
        own = np.random.default_rng((*seed, number))
        look = _draw_look(split.scenery, number, own)
        planned.append(PlannedEpisode(plan_episode(kind, tempo, own), look, number < num_annotated, (*seed, number, 1)))
    return planned


def _draw_look(scenery: Scenery, number: int, rng: np.random.Generator) -> Look:
    usual = scenery.camera
    x, y, z = (np.array(usual.position) + rng.uniform(-0.015, 0.015, 3)).tolist()
    aim_x, aim_y, aim_z = (np.array(usual.aim) + rng.uniform(-0.006, 0.006, 3)).tolist()
    red, green, blue = np.rint(np.array(scenery.wood) * rng.uniform(0.96, 1.04, 3)).astype(int).tolist()
    return Look(
        camera=Camera((x, y, z), (aim_x, aim_y, aim_z), usual.focal * float(rng.uniform(0.985, 1.015))),
        block=scenery.blocks[number % len(scenery.blocks)],
        plate=str(rng.choice(scenery.plates)),
        wood=(red, green, blue),
        light=float(rng.uniform(0.92, 1.06)),
        noise=float(rng.uniform(2.0, 3.0)),
        seed=int(rng.integers(2**31)),
    )


def record(planned: PlannedEpisode) -> Recording:
    motion = planned.episode.motion
    pose = np.column_stack([motion.hand, motion.opening])
    noise = np.random.default_rng(planned.seed).normal(size=pose.shape) * STATE_NOISE
    annotation = {"sparse": segments_of(motion.stages), "dense": segments_of(motion.subtasks)}
    return Recording(
        task=planned.task,
        state=(pose + noise).astype(np.float32),
        action=np.concatenate([pose[1:], pose[-1:]]).astype(np.float32),
        pictures=lambda: draw_pictures(planned),
        outcome=planned.episode.outcome,
        annotation=annotation if planned.annotated else None,
    )


def draw_pictures(planned: PlannedEpisode) -> Iterator[np.ndarray]:
    """The pictures of an episode, (SIZE, SIZE, 3) uint8 RGB each."""
    motion = planned.episode.motion
    backdrop = draw_backdrop(planned.look, np.array(planned.episode.target))
    rng = np.random.default_rng((*planned.seed, 1))
    for frame in range(len(motion)):
        pose = Pose(motion.hand[frame], float(motion.opening[frame]), motion.block[frame], float(motion.yaw[frame]))
        yield draw_frame(backdrop, pose, rng)


def _write_labels(path: Path, planned: list[PlannedEpisode]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("episode_index", "outcome"))
        writer.writerows((number, each.episode.outcome) for number, each in enumerate(planned))
