"""What an inspection yields: facts, and findings with a verdict and what to do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import name_list

VERDICTS = ("bad", "warn", "note", "ok")
LONGEST_SELECTION = 60  # characters


@dataclass(frozen=True)
class Finding:
    """One checked point.

    Args:
        topic: metadata, files, lengths, tasks, annotations, statistics, rows, or the name of a feature.
        verdict: `ok`; `note`: good to know, nothing to do; `warn`: usable, but look at it; `bad`: frames, states or labels
            are lost or wrong until it is mended.
        found: what is the case, naming episode, file and camera.
        action: what to do; empty where there is nothing.
    """

    topic: str
    verdict: str
    found: str
    action: str = ""


@dataclass(frozen=True)
class LengthFacts:
    """Spread of the episodes' lengths, in frames."""

    minimum: int
    p05: float
    median: float
    p95: float
    maximum: int


@dataclass(frozen=True)
class CameraFacts:
    """A camera: what is declared, what lies there, and what the opened files say.

    Args:
        key: its feature.
        kind: `video` or `image`.
        height, width: pixels; of the opened files, else as declared.
        codec, pix_fmt: of the opened files; None where none was opened.
        fps: of the opened files.
        keyframe_interval: frames from one keyframe to the next, the median over the opened files.
        num_files, num_missing, num_empty, num_opened: files.
        num_bytes: of all of them; those of the data files for an image camera.
    """

    key: str
    kind: str
    height: int | None
    width: int | None
    codec: str | None
    pix_fmt: str | None
    fps: float | None
    keyframe_interval: float | None
    num_files: int
    num_missing: int
    num_empty: int
    num_opened: int
    num_bytes: int


@dataclass(frozen=True)
class VectorFacts:
    """A feature of numbers.

    Args:
        key: its name.
        dtype, width: as declared.
        constant: dimensions that never change, by the statistics where there are some, else in the sample.
        not_finite: dimensions with NaN or infinity in the sample -> share of its rows.
    """

    key: str
    dtype: str
    width: int
    constant: tuple[str, ...]
    not_finite: dict[str, float]


@dataclass(frozen=True)
class TaskFacts:
    """Task texts, the most frequent ones with their number of episodes."""

    num_texts: int
    num_without: int
    most_frequent: dict[str, int]


@dataclass(frozen=True)
class AnnotationFacts:
    """Subtask annotations of one kind (`sparse`, `dense`, or `unprefixed`)."""

    kind: str
    num_episodes: int
    stages: tuple[str, ...]


@dataclass(frozen=True)
class SampleFacts:
    """What was opened.

    Args:
        episodes: episode numbers, spread over the dataset, the same ones every time.
        num_video_files, num_data_files: files opened.
        num_frames: pictures decoded.
    """

    episodes: tuple[int, ...]
    num_video_files: int
    num_data_files: int
    num_frames: int


@dataclass(frozen=True)
class Inspection:
    """All of it. `findings` begin with the worst."""

    name: str
    root: str
    version: str
    robot_type: str | None
    fps: float
    num_episodes: int
    num_frames: int
    hours: float
    lengths: LengthFacts
    cameras: tuple[CameraFacts, ...]
    vectors: tuple[VectorFacts, ...]
    tasks: TaskFacts
    annotations: tuple[AnnotationFacts, ...]
    sample: SampleFacts
    findings: tuple[Finding, ...]
    seconds: dict[str, float]

    @property
    def num_bad(self) -> int:
        return sum(finding.verdict == "bad" for finding in self.findings)


def episode_list(dataset: Dataset, rows: Iterable[int], limit: int = 8) -> str:
    """`episode 3`, `episodes 3, 7 and 12 more`."""
    numbers = [str(dataset.episode_index[row]) for row in rows]
    return f"episode{'s' if len(numbers) != 1 else ''} {name_list(numbers, limit)}"


def count(number: int, noun: str) -> str:
    """`1 file`, `1,200 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def selection_without(dataset: Dataset, rows: Sequence[int] | np.ndarray) -> str:
    """The flag of `sarm-ray score` that leaves some episodes out; empty where it would be long or nothing is left."""
    dropped = np.unique(dataset.episode_index[rows])
    kept = np.setdiff1d(dataset.episode_index, dropped)
    bounds = [-1, *dropped.tolist()[:LONGEST_SELECTION], int(dataset.episode_index[-1]) + 1]
    spans = [(low + 1, high) for low, high in pairwise(bounds) if ((kept > low) & (kept < high)).any()]
    text = ",".join(f"{start}:{stop}" for start, stop in spans)
    return f"--episodes {text}" if len(dropped) <= LONGEST_SELECTION and 0 < len(text) <= LONGEST_SELECTION else ""


def leave_out(dataset: Dataset, rows: Sequence[int] | np.ndarray) -> str:
    """`leave it out with --episodes ...`, for the end of what to do."""
    selection = selection_without(dataset, rows)
    them = "it" if len(rows) == 1 else "them"
    return f"leave {them} out with {selection}" if selection else f"leave {them} out with --episodes"
