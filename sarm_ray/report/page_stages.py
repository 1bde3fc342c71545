"""Stages beside the curves: what the annotation says, the progress it implies, and what the model took each frame for."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.core.progress import normalize_progress, stage_breakpoints
from sarm_ray.core.targets import (
    Segments,
    completed_durations,
    episode_targets,
    temporal_proportions,
)
from sarm_ray.data import storage
from sarm_ray.data.annotation_io import Annotations, annotation_of, segments_by_stage
from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import DatasetError
from sarm_ray.report.annotations import stage_order
from sarm_ray.report.page_data import NO_VALUE, Curves, point_frames, quantize_progress
from sarm_ray.report.scored import Scores, Stages

NO_STAGE = 255
BATCH_ROWS = 2**18


@dataclass(frozen=True)
class Lanes:
    """Stages at the P points of `Curves`.

    Args:
        names: of all stages.
        truth: (P,) uint16, annotated progress as `Curves.progress` stores it; None without annotation.
        annotated, predicted: (P,) uint8, position in `names`, NO_STAGE where there is none; None where nothing is known.
        notices: what could not be shown.
    """

    names: tuple[str, ...] = ()
    truth: np.ndarray | None = None
    annotated: np.ndarray | None = None
    predicted: np.ndarray | None = None
    notices: tuple[str, ...] = ()


def read_lanes(dataset: Dataset, curves: Curves, scores: Scores, head: str, outcomes: np.ndarray) -> Lanes:
    """The stages of every episode. What cannot be read is left out, with a notice.

    Args:
        dataset: that was scored.
        curves: of it.
        scores: what is known of the progress file.
        head: `sparse` or `dense`.
        outcomes: (rows,) float64 in 0..1 by row of the table, NaN where not known.
    """
    notices: list[str] = []
    names: tuple[str, ...] = ()
    truth = annotated = predicted = None
    own = annotation_of(scores.annotations, head)
    try:
        if own is not None and own.annotated.any():
            stages, segments = _annotated_stages(own, scores.stages.get(head), outcomes)
            truth, annotated = _annotated_points(dataset, curves, segments, stages.breakpoints)
            names = stages.names
    except ValueError as error:
        notices.append(f"the {head} annotation is not shown ({error})")
    try:
        if scores.probabilities is not None:
            stage = _predicted_points(dataset, curves, head, scores.probabilities)
            names, predicted = _merge_names(names, _predicted_names(scores.stages.get(head), stage), stage)
    except (DatasetError, ValueError) as error:
        notices.append(f"predicted stages are not shown ({error})")
    return Lanes(names, truth, annotated, predicted, tuple(notices))


def _annotated_stages(own: Annotations, model: Stages | None, outcomes: np.ndarray) -> tuple[Stages, Segments]:
    """The annotation by the model's stages, or by its own where those are of another task."""
    fits = model is not None and set(own.stages) <= set(model.names)
    names = model.names if fits and model is not None else stage_order(own)
    if len(names) >= NO_STAGE:
        raise ValueError(f"it has {len(names)} stages")
    segments = segments_by_stage(own, names, outcomes)
    if fits and model is not None:
        return model, segments
    listed = own.proportions is not None and set(own.proportions) == set(names)
    shares = list((own.proportions or {}).values()) if listed else temporal_proportions(segments, names).tolist()
    return Stages(names, stage_breakpoints(len(names), shares)), segments


def _annotated_points(
    dataset: Dataset, curves: Curves, segments: Segments, breakpoints: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Progress (P,) uint16 and stage (P,) uint8 by the annotation."""
    durations = completed_durations(segments, len(breakpoints) - 1)
    truth = np.full(len(curves.progress), NO_VALUE, dtype=np.uint16)
    stages = np.full(len(curves.progress), NO_STAGE, dtype=np.uint8)
    for row, points, frames in _episodes(dataset, curves):
        if segments.offsets[row] == segments.offsets[row + 1]:
            continue
        with contextlib.suppress(ValueError):  # of an interrupted stage that was never completed nothing is known
            stage, tau = episode_targets(segments, row, durations, int(dataset.length[row]))
            truth[points] = quantize_progress(normalize_progress(stage + tau, breakpoints)[frames])
            stages[points] = stage[frames]
    return truth, stages


def _predicted_points(dataset: Dataset, curves: Curves, head: str, location: str) -> np.ndarray:
    """The most probable stage at each point, (P,) uint8; a frame that was interpolated has that of the one before it."""
    wanted = np.concatenate([dataset.from_index[row] + frames for row, _, frames in _episodes(dataset, curves)])
    order = np.argsort(wanted, kind="stable")
    stages = np.full(len(wanted), NO_STAGE, dtype=np.uint8)
    last = np.uint8(NO_STAGE)
    for index, stage, known in _read_stages(location, head):
        filled = np.maximum.accumulate(np.where(known, np.arange(len(index)), -1))
        stage = np.where(filled < 0, last, stage[filled])
        last = stage[-1]
        bounds = np.searchsorted(wanted, [index[0], index[-1] + 1], sorter=order)
        own = order[bounds[0] : bounds[1]]
        places = np.searchsorted(index, wanted[own])
        there = index[np.minimum(places, len(index) - 1)] == wanted[own]
        stages[own[there]] = stage[places[there]]
    return stages


def _read_stages(location: str, head: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of a stage_probabilities.parquet: index (n,) int64, stage (n,) uint8, and whether the frame was computed."""
    try:
        with storage.open_input(location) as stream, pq.ParquetFile(stream) as file:
            if head not in file.schema_arrow.names:
                return
            for batch in file.iter_batches(BATCH_ROWS, columns=["index", head]):
                lists = batch.column(head)
                known = lists.is_valid().to_numpy(zero_copy_only=False)
                stage = np.full(batch.num_rows, NO_STAGE, dtype=np.uint8)
                if known.any():
                    flat = lists.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(int(known.sum()), -1)
                    scored = np.isfinite(flat).all(axis=1)
                    stage[known] = np.where(scored, np.where(np.isfinite(flat), flat, 0).argmax(axis=1), NO_STAGE)
                yield batch.column("index").to_numpy(), stage, known
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{location}: {str(error).splitlines()[0]}") from error


def _episodes(dataset: Dataset, curves: Curves) -> Iterator[tuple[int, slice, np.ndarray]]:
    """Row, points and frames of each episode."""
    start = 0
    for row, num_points in zip(curves.rows.tolist(), curves.num_points.tolist(), strict=True):
        yield row, slice(start, start + num_points), point_frames(int(dataset.length[row]), num_points)
        start += num_points


def _predicted_names(model: Stages | None, stage: np.ndarray) -> tuple[str, ...]:
    """The head's names, or numbers where there are none that fit."""
    num_stages = int(stage[stage != NO_STAGE].max(initial=0)) + 1
    if model is not None and len(model.names) >= num_stages:
        return model.names
    return tuple(f"stage {number}" for number in range(num_stages))


def _merge_names(
    names: tuple[str, ...], own: tuple[str, ...], stage: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """All names, and stages that count among `own` counted among all; no stages where a head of one has nothing to say."""
    if len(own) < 2 or not (stage != NO_STAGE).any():
        return names, None
    every = tuple(dict.fromkeys([*names, *own]))
    if len(every) >= NO_STAGE:
        raise ValueError(f"there are {len(every)} stages")
    places = np.full(256, NO_STAGE, dtype=np.uint8)
    places[: len(own)] = [every.index(name) for name in own]
    return every, places[stage]
