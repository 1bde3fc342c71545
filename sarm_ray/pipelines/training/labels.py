"""What each head is trained towards: stage names, segments, durations and proportions, over all datasets of a run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sarm_ray.core.targets import Segments, completed_durations, temporal_proportions
from sarm_ray.data.annotation_io import (
    Annotations,
    annotation_of,
    of_episodes,
    read_annotations,
    read_proportions,
    segments_by_stage,
)
from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import DatasetError, name_list

WHOLE_TASK = "task"


@dataclass(frozen=True)
class HeadLabels:
    """One head's annotation.

    Args:
        stages: K names in order.
        proportions: (K,) float64, mean share of an episode (paper formula (1)).
        durations: one (K,) float64 per dataset, how long a completed stage takes in its frames; the mean over all of them.
        segments: one per dataset, over all its episodes; empty for a head of one stage.
        annotated: one (E,) bool per dataset, episodes that carry this head.
    """

    stages: tuple[str, ...]
    proportions: np.ndarray
    durations: tuple[np.ndarray, ...]
    segments: tuple[Segments, ...]
    annotated: tuple[np.ndarray, ...]


def read_labels(datasets: Sequence[Dataset], rows: Sequence[np.ndarray], mode: str) -> dict[str, HeadLabels]:
    """The labels of each head of an annotation mode: head -> HeadLabels.

    Args:
        datasets: of the run.
        rows: one (N,) int64 per dataset, the episodes that count.
        mode: `single_stage` and `dense_only` have a sparse head of one stage, which needs no annotation.

    Raises:
        DatasetError: columns that are missing, no usable episode, or stage names that differ.
    """
    labels = {"sparse": _whole_task(datasets) if mode != "dual" else _annotated_head("sparse", datasets, rows, mode)}
    if mode != "single_stage":
        labels["dense"] = _annotated_head("dense", datasets, rows, mode)
    return labels


def _whole_task(datasets: Sequence[Dataset]) -> HeadLabels:
    """LeRobot's single stage: progress runs evenly over every episode."""
    empty = np.zeros(0, dtype=np.int64)
    none = np.zeros(0, dtype=bool)
    segments = tuple(
        Segments(np.zeros(len(each.length) + 1, dtype=np.int64), empty, empty, empty, none) for each in datasets
    )
    everything = tuple(np.ones(len(each.length), dtype=bool) for each in datasets)
    return HeadLabels((WHOLE_TASK,), np.ones(1), tuple(np.ones(1) for _ in datasets), segments, everything)


def _annotated_head(kind: str, datasets: Sequence[Dataset], rows: Sequence[np.ndarray], mode: str) -> HeadLabels:
    annotations = [_read_kind(dataset, kind, mode) for dataset in datasets]
    names_by_dataset = [
        _stage_names(dataset, own, chosen, kind)
        for dataset, own, chosen in zip(datasets, annotations, rows, strict=True)
    ]
    stages = names_by_dataset[0]
    for dataset, names in zip(datasets[1:], names_by_dataset[1:], strict=True):
        if set(names) != set(stages):
            raise DatasetError(
                f"the {kind} subtasks differ: {datasets[0].name} has {name_list(stages)}; {dataset.name} has "
                f"{name_list(names)}. Rename them, or train on one of the datasets"
            )
    annotations = [of_episodes(own, chosen) for own, chosen in zip(annotations, rows, strict=True)]
    segments = tuple(head_segments(dataset, own, stages) for dataset, own in zip(datasets, annotations, strict=True))
    speeds = [dataset.fps / datasets[0].fps for dataset in datasets]
    pooled = pool_segments(segments, rows, speeds)
    if len(stages) < 2:
        raise DatasetError(
            f"{datasets[0].name}: a {kind} head needs at least two subtasks, the annotation has {stages[0]}"
        )
    try:
        return HeadLabels(
            stages=stages,
            proportions=temporal_proportions(pooled, stages),
            durations=tuple(completed_durations(pooled, len(stages)) * speed for speed in speeds),
            segments=segments,
            annotated=tuple(own.annotated for own in annotations),
        )
    except ValueError as error:
        raise DatasetError(f"{name_list(dataset.name for dataset in datasets)}: {kind} subtasks: {error}") from error


def _read_kind(dataset: Dataset, kind: str, mode: str) -> Annotations:
    """The annotation of a kind; the columns without a prefix, which older tools wrote, are sparse."""
    kinds = read_annotations(dataset)
    found = annotation_of(kinds, kind)
    if found is None or not found.annotated.any():
        what = "has no" if found is None else "has an empty"
        raise DatasetError(
            f"{dataset.name}: {mode} training needs {kind} subtasks, and meta/episodes {what} column "
            f"{kind}_subtask_names; make it with sarm-ray annotate or LeRobot's subtask_annotation.py "
            f"--{kind}-subtasks, or train with --annotation-mode single_stage, which needs none"
        )
    return found


def _stage_names(dataset: Dataset, own: Annotations, rows: np.ndarray, kind: str) -> tuple[str, ...]:
    """The head's stages in order: those of meta/temporal_proportions, else the set that most episodes have.

    Raises:
        DatasetError: an episode with a subtask that is not among them.
    """
    chosen = np.isin(own.row, rows)
    if not chosen.any():
        raise DatasetError(f"{dataset.name}: none of the {len(rows)} chosen episodes has {kind} subtasks")
    by_episode = {
        row: tuple(dict.fromkeys(own.stages[number] for number in own.stage[own.offsets[row] : own.offsets[row + 1]]))
        for row in np.unique(own.row[chosen]).tolist()
    }
    listed = read_proportions(dataset, kind)
    stages = tuple(listed) if listed else _usual_order(own, chosen, by_episode)
    source = "meta/temporal_proportions" if listed else "most episodes"
    for row, names in by_episode.items():
        if not set(names) <= set(stages):
            raise DatasetError(
                f"{dataset.name}: the {kind} subtasks of episode {dataset.episode_index[row]} are {name_list(names)}; "
                f"those of {source} are {name_list(stages)}. Correct the names, or leave the episode out with --episodes"
            )
    return stages


def _usual_order(own: Annotations, chosen: np.ndarray, by_episode: dict[int, tuple[str, ...]]) -> tuple[str, ...]:
    """The most frequent set of names, the earliest to begin first."""
    most = Counter(frozenset(names) for names in by_episode.values())
    largest = max(most, key=lambda names: (most[names], len(names)))
    start = {
        name: float(own.start[chosen & (own.stage == number)].mean())
        for number, name in enumerate(own.stages)
        if name in largest
    }
    return tuple(sorted(start, key=lambda name: start[name]))


def head_segments(
    dataset: Dataset, own: Annotations, stages: tuple[str, ...], outcomes: np.ndarray | None = None
) -> Segments:
    """`segments_by_stage`, its errors named after the dataset."""
    try:
        return segments_by_stage(own, stages, outcomes)
    except ValueError as error:
        raise DatasetError(f"{dataset.name}: {error}") from error


def pool_segments(segments: Sequence[Segments], rows: Sequence[np.ndarray], speeds: Sequence[float]) -> Segments:
    """The segments of the chosen episodes of all datasets, in frames of the first one, and parts of such: start and end are
    float64. `speeds`: frame rates relative to the first one's.
    """
    kept = [np.isin(each.row, own) for each, own in zip(segments, rows, strict=True)]
    counts = [np.bincount(each.row[keep], minlength=1) for each, keep in zip(segments, kept, strict=True)]
    counts = [count[count > 0] for count in counts]
    times = [
        {"start": each.start / speed, "end": each.end / speed} for each, speed in zip(segments, speeds, strict=True)
    ]
    fields = {
        name: np.concatenate([getattr(each, name)[keep] for each, keep in zip(segments, kept, strict=True)])
        for name in ("stage", "interrupted")
    }
    fields |= {
        name: np.concatenate([each[name][keep] for each, keep in zip(times, kept, strict=True)])
        for name in ("start", "end")
    }
    return Segments(np.concatenate([[0], np.cumsum(np.concatenate(counts))]), **fields)
