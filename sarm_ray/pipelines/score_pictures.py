"""Pictures of the first episodes of a run, drawn from its parts by one Ray task per episode."""

import itertools
from dataclasses import replace

import numpy as np
import pyarrow as pa
import ray

from sarm_ray.console import first_line, tell
from sarm_ray.core.episodes import Chunks
from sarm_ray.data import storage
from sarm_ray.data.annotation_io import read_annotations
from sarm_ray.data.lerobot import Dataset
from sarm_ray.data.progress_merge import merge_parts
from sarm_ray.errors import DatasetError, SarmRayError
from sarm_ray.pipelines.rounds import cause_of
from sarm_ray.pipelines.score_plan import ScorePlan
from sarm_ray.report.predictions import (
    Prediction,
    draw_prediction,
    prediction_name,
    read_thumbnails,
    thumbnail_frames,
    with_annotation,
)

PICTURES_FOLDER = "visualizations"


def draw_pictures(plan: ScorePlan, num_episodes: int) -> list[str]:
    """Draw the predictions of the first episodes of a run, whose parts must still be there.

    Args:
        plan: of one dataset.
        num_episodes: how many; 0 draws nothing.

    Returns:
        Locations of the PNG files.
    """
    rows = plan.ingest.rows[:num_episodes]
    if not len(rows):
        return []
    data, chunks = plan.ingest, plan.ingest.chunks
    own = np.isin(chunks.row, rows)
    tables = merge_parts(
        plan.parts_folder,
        plan.heads,
        Chunks(chunks.row[own], chunks.start[own], chunks.stop[own]),
        data.dataset.episode_index,
        data.dataset.length,
        data.dataset.from_index,
    )
    table = pa.concat_tables(tables)
    try:
        annotations = read_annotations(data.dataset)
    except DatasetError:  # `inspect` says what is wrong with them; scores need none
        annotations = {}
    ends = np.cumsum(data.dataset.length[rows])
    folder = storage.join(plan.run_folder, PICTURES_FOLDER)
    draw = ray.remote(num_cpus=1, max_retries=1)(_draw_episode)
    pending = []
    for number, (row, (first, end)) in enumerate(zip(rows, itertools.pairwise([0, *ends]), strict=True)):
        predictions = [
            with_annotation(
                _prediction(plan, number, head, table.slice(first, end - first)),
                annotations,
                int(row),
                plan.checkpoint.config.breakpoints(head),
            )
            for head in plan.heads
        ]
        job = (data.dataset, data.camera, int(row), predictions, folder)
        pending.append((draw.remote(*job, True), job))
    paths: list[str] = []
    for drawing, job in pending:
        try:
            paths += _drawn(drawing) or ray.get(draw.remote(*job, False))
        except (ray.exceptions.RayError, SarmRayError) as error:  # scores matter, pictures do not
            episode = data.dataset.episode_index[job[2]]
            tell([f"episode {episode} could not be drawn ({first_line(cause_of(error))})"])
    return paths


def _drawn(drawing: ray.ObjectRef) -> list[str] | None:
    """The pictures of an episode; None where the process died over them, most likely of a frame."""
    try:
        return ray.get(drawing)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError:
        return None


def _prediction(plan: ScorePlan, number: int, head: str, table: pa.Table) -> Prediction:
    dataset, config = plan.ingest.dataset, plan.checkpoint.config
    row = int(plan.ingest.rows[number])
    names = config.sparse_subtask_names if head == "sparse" else config.dense_subtask_names
    num_stages = config.shape.num_stages(head)
    return Prediction(
        episode_index=int(dataset.episode_index[row]),
        head=head,
        text=plan.texts[number],
        fps=dataset.fps,
        progress=table[f"progress_{head}"].to_numpy().astype(np.float32),
        probabilities=_stacked(table[f"probabilities_{head}"].combine_chunks(), num_stages),
        stage_names=tuple(names or (f"stage {stage}" for stage in range(num_stages))),
    )


def _stacked(lists: pa.ListArray, num_stages: int) -> np.ndarray:
    """(L, K) float32, NaN rows where there is no list."""
    values = np.full((len(lists), num_stages), np.nan, dtype=np.float32)
    values[lists.is_valid().to_numpy(zero_copy_only=False)] = lists.flatten().to_numpy().reshape(-1, num_stages)
    return values


def _draw_episode(
    dataset: Dataset, camera: str, row: int, predictions: list[Prediction], folder: str, thumbnails: bool
) -> list[str]:
    frames = thumbnail_frames(int(dataset.length[row]))
    shown = (
        read_thumbnails(dataset, camera, row, frames) if thumbnails else tuple((int(frame), None) for frame in frames)
    )
    paths = []
    for prediction in predictions:
        path = storage.join(folder, prediction_name(prediction.episode_index, prediction.head))
        draw_prediction(path, replace(prediction, thumbnails=shown))
        paths.append(path)
    return paths
