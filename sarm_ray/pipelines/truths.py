"""What annotations say of a dataset in the stages of a given model: the truth that its scores are held against."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sarm_ray.core.frame_targets import whole_episode_targets
from sarm_ray.core.metrics import Truth
from sarm_ray.core.progress import normalize_progress
from sarm_ray.core.targets import Segments, completed_durations, episode_targets
from sarm_ray.data.annotation_io import Annotations, annotation_of, of_episodes, read_annotations
from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import name_list
from sarm_ray.model.checkpoint import SarmConfig
from sarm_ray.pipelines.training.labels import head_segments, pool_segments


@dataclass(frozen=True)
class HeadTruths:
    """Annotated episodes of a dataset, in the stages of one head.

    Args:
        breakpoints: (K + 1,) float64 of the model, by which stage and tau become progress.
        annotated: (E,) bool, episodes whose truth is known. A head of one stage needs no annotation, but an episode that
            did not succeed has no truth there.
        segments: of the annotated episodes; None for a head of one stage.
        durations: (K,) float64, frames that a completed stage takes.
    """

    breakpoints: np.ndarray
    annotated: np.ndarray
    segments: Segments | None
    durations: np.ndarray

    def of_episode(self, row: int, length: int) -> Truth | None:
        """The truth of an episode, by its row in the table; None where there is none."""
        if not self.annotated[row]:
            return None
        if self.segments is None:
            stage, tau = whole_episode_targets(length)
            return Truth(normalize_progress(stage + tau, self.breakpoints), stage, (), ())
        stage, tau = episode_targets(self.segments, row, self.durations, length)
        own = slice(self.segments.offsets[row], self.segments.offsets[row + 1])
        starts, stages = self.segments.start[own], self.segments.stage[own]
        inside = (starts > 0) & (starts < length)
        progress = normalize_progress(stage + tau, self.breakpoints)
        completed = not self.segments.interrupted[own][-1]
        return Truth(progress, stage, tuple(starts[inside].tolist()), tuple(stages[inside].tolist()), bool(completed))


def read_truths(
    dataset: Dataset,
    config: SarmConfig,
    heads: Sequence[str],
    rows: np.ndarray,
    grades: np.ndarray,
    notices: list[str],
) -> dict[str, HeadTruths]:
    """The truth for each head.

    Args:
        dataset: what is evaluated.
        config: of the model, with its stage names and proportions.
        heads: that are evaluated.
        rows: (N,) int64, the chosen episodes.
        grades: (E,) float64, outcomes; NaN where not known.
        notices: episodes that cannot be used, and why, are added to it.

    Raises:
        DatasetError: annotations that cannot be read.
    """
    kinds = read_annotations(dataset)
    truths = {}
    for head in heads:
        names = config.sparse_subtask_names if head == "sparse" else config.dense_subtask_names
        if config.shape.num_stages(head) == 1:
            ended_well = np.isnan(grades) | (grades == 1)
            truths[head] = HeadTruths(config.breakpoints(head), ended_well, None, np.ones(1))
            continue
        own = annotation_of(kinds, head)
        truths[head] = _annotated_truths(dataset, config, head, tuple(names or ()), own, rows, grades, notices)
    return truths


def _annotated_truths(
    dataset: Dataset,
    config: SarmConfig,
    head: str,
    names: tuple[str, ...],
    own: Annotations | None,
    rows: np.ndarray,
    grades: np.ndarray,
    notices: list[str],
) -> HeadTruths:
    breakpoints, nothing = config.breakpoints(head), np.zeros(len(dataset.length), dtype=bool)
    own = None if own is None else of_episodes(own, rows)
    if own is None or not own.annotated.any():
        notices.append(f"no chosen episode has {head} subtasks; figures that need them are left out")
        return HeadTruths(breakpoints, nothing, None, np.ones(len(names)))
    segments = head_segments(dataset, own, names, grades)
    known = own.annotated.copy()
    known[segments.row[segments.stage < 0]] = False
    strange = np.flatnonzero(own.annotated & ~known)
    if len(strange):
        other = sorted(set(own.stages) - set(names))
        notices.append(
            f"{len(strange)} episodes have {head} subtasks that the model does not know ({name_list(other, 4)}; it knows "
            f"{name_list(names)}); they count as not annotated"
        )
    usable = np.flatnonzero(known)
    if not len(usable):
        return HeadTruths(breakpoints, nothing, None, np.ones(len(names)))
    durations = completed_durations(pool_segments([segments], [usable], [1.0]), len(names))
    return HeadTruths(breakpoints, known, segments, durations)
