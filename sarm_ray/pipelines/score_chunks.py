"""Scoring on a pool of actors: chunk rows in, part files out, for one or several datasets at once.

chunks -> ChunkScorer (GPU actors: features of the chunk and its halo from the store -> SARM) -> commit -> status row
"""

import functools
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import ray

from sarm_ray.console import Progress
from sarm_ray.core.episodes import BITMAP_BYTES, chunk_keys, count_frames, frames_of, is_among
from sarm_ray.core.windows import window_slots
from sarm_ray.data import progress_io
from sarm_ray.data.features import read_chunk
from sarm_ray.data.rows import read_rows
from sarm_ray.errors import DatasetError, name_list
from sarm_ray.model.scorer import Scorer
from sarm_ray.pipelines.frame_features import frame_features
from sarm_ray.pipelines.ingest_plan import ChunkFailure, chunk_list
from sarm_ray.pipelines.model_files import CHECKPOINT_FILES, carry_files, folder_here
from sarm_ray.pipelines.pools import pool_watch
from sarm_ray.pipelines.rounds import work_through
from sarm_ray.pipelines.runtime import (
    ARROW,
    Cluster,
    actor_options,
    commit_options,
    jobs_dataset,
    make_aside,
    prepare_actor,
    work_clock,
)
from sarm_ray.pipelines.score_job import DatasetJob, ScoreJob, make_score_job
from sarm_ray.pipelines.score_plan import ScorePlan
from sarm_ray.pipelines.stopping import Stop, is_stopping

MAX_CHUNKS_PER_BLOCK = 8


@dataclass
class ScoredChunks:
    """What scoring did of one dataset: frames, failures, and what looks strange in the rows."""

    num_scored: int = 0
    failures: list[ChunkFailure] = field(default_factory=list)
    strange_dimensions: set[int] = field(default_factory=set)
    misplaced_episodes: set[int] = field(default_factory=set)

    def notices(self) -> list[str]:
        notices = []
        if self.strange_dimensions:
            numbers = name_list(map(str, sorted(self.strange_dimensions)))
            notices.append(
                f"state dimensions {numbers} vary although constant in training, or lie beyond 10 sigma of it"
            )
        if self.misplaced_episodes:
            numbers = name_list(map(str, sorted(self.misplaced_episodes)), limit=5)
            notices.append(
                f"the index column of episodes {numbers} does not count rows from the dataset's start; the output's does"
            )
        return notices


@dataclass
class Scoring:
    """What the scoring of a run did: its datasets, wall time, seconds that workers spent."""

    datasets: list[ScoredChunks]
    seconds: float = 0.0
    busy_s: float = 0.0


def score_missing(plans: Sequence[ScorePlan], cluster: Cluster, stop: Stop, quiet: bool = False) -> Scoring:
    """Score the chunks that no part holds yet, all datasets in one pool."""
    scoring = Scoring([ScoredChunks() for _ in plans])
    todo = chunk_list([chunks_to_score(plan) for plan in plans])
    if not len(todo) or stop.requested:
        return scoring
    progress = Progress("score", count_todo(plans, todo), quiet)
    files = carry_files(plans[0].checkpoint.folder, CHECKPOINT_FILES, cluster)
    job = make_aside(make_score_job, plans, files, cluster, todo, stop.marker)

    def record(status: dict, attempt: int) -> None:
        done, plan, chunk = scoring.datasets[status["dataset"]], plans[status["dataset"]].ingest, status["chunk"]
        done.num_scored += status["num_frames"]
        scoring.busy_s += status["score_s"]
        done.strange_dimensions.update(status["strange_dimensions"])
        if status["misplaced"]:
            done.misplaced_episodes.add(int(plan.dataset.episode_index[plan.chunks.row[chunk]]))
        if status["error"] is not None:
            done.failures.append(plan.failure(chunk, status["error"], status["message"], attempt))
        progress.add(status["num_frames"])

    def pipeline(todo: np.ndarray, alone: bool) -> ray.data.Dataset:
        return score_pipeline(plans, cluster.now(), todo, job, alone)

    lost = work_through(todo, pipeline, record, stop, quiet)
    for number, chunk in lost.tolist():
        scoring.datasets[number].failures.append(plans[number].ingest.gave_up(chunk))
        commit_holes(plans[number], chunk)
    scoring.seconds = progress.finish()
    return scoring


def count_todo(plans: Sequence[ScorePlan], todo: np.ndarray) -> int:
    """Frames to compute in some chunks, (N, 2) int64 of dataset and chunk."""
    return sum(int(count_frames(plan.computed[todo[todo[:, 0] == n, 1]]).sum()) for n, plan in enumerate(plans))


def score_pipeline(
    plans: Sequence[ScorePlan], cluster: Cluster, todo: np.ndarray, job: ray.ObjectRef, alone: bool = False
) -> ray.data.Dataset:
    """The chain. Rows in: dataset, chunk, frames; rows out: `OUTCOME_FIELDS` and num_frames."""
    bitmaps = [plans[number].computed[chunk].tobytes() for number, chunk in todo.tolist()]
    frames = pa.array(bitmaps, type=pa.binary(BITMAP_BYTES))
    num_frames = count_todo(plans, todo)
    jobs = pa.table({"dataset": todo[:, 0], "chunk": todo[:, 1], "frames": frames})
    # neighbouring chunks share the features around their border, so they go to one actor where there is enough for all
    rows_per_block = 1 if alone else min(max(len(todo) // (4 * cluster.num_actors), 1), MAX_CHUNKS_PER_BLOCK)
    num_blocks = -(-len(todo) // rows_per_block)
    chunk_frames = max(int(count_frames(plan.computed).max(initial=0)) for plan in plans)
    return (
        jobs_dataset(
            jobs,
            block_bytes=2**20,
            rows_per_block=rows_per_block,
            name="score",
            watch=pool_watch("score") if cluster.tells_pools else None,
        )
        .map_batches(
            ChunkScorer,
            batch_size=1,
            fn_constructor_kwargs={"job": job},
            **ARROW,
            # counted in windows of LeRobot's default shape, of which a chunk takes about as long as a process to start
            **actor_options(
                cluster, num_blocks, math.ceil(num_frames * plans[0].checkpoint.shape.relative_cost), alone
            ),
        )
        .map_batches(
            progress_io.commit_scores,  # type: ignore[arg-type]  # ray's type knows no fn_kwargs
            fn_kwargs={"folders": [plan.parts_folder for plan in plans], "heads": plans[0].heads},
            **ARROW,
            **commit_options(cluster, chunk_frames),
        )
    )


class ChunkScorer:
    """Chunk rows in; one row per chunk out, with part columns (`progress_io.part_schema`) and the outcome.

    It reads the chunk's features from the store with the halo of frames that its windows reach into. Chunks that were not
    begun when the run was asked to stop are left out.
    """

    def __init__(self, job: ray.ObjectRef):
        own: ScoreJob = ray.get(job)
        self.job, self.clock = own, work_clock(own.device)
        prepare_actor(own.device)
        readout = own.datasets[0].window.readout_slot
        checkpoint = replace(own.checkpoint, folder=folder_here(own.files))
        self.scorer = Scorer(checkpoint, own.heads, readout, own.precision, own.device)
        self.indices = [list(dataset.indices) for dataset in own.datasets]
        self.read_chunk = functools.lru_cache(maxsize=16 * own.checkpoint.shape.num_cameras)(self._read_chunk)
        self.read_states = functools.lru_cache(maxsize=2)(self._read_states)

    def __call__(self, chunks: pa.Table) -> pa.Table:
        rows = [] if is_stopping(self.job.stop_marker) else [self.score_chunk(**row) for row in chunks.to_pylist()]
        return pa.Table.from_pylist(rows, schema=scored_schema(self.job.heads))

    def score_chunk(self, dataset: int, chunk: int, frames: bytes) -> dict:
        started = self.clock()
        own = self.job.datasets[dataset]
        plan = own.features
        row, start = int(plan.chunks.row[chunk]), int(plan.chunks.start[chunk])
        length = int(plan.dataset.length[row])
        slots = window_slots(frames_of(frames, start), length, own.window)
        used, positions = np.unique(slots, return_inverse=True)
        features, present = self._read_features(dataset, row, used)
        error, message = None, None
        try:
            states, finite, strange, misplaced = self.read_states(dataset, row)
            broken = frames_of(plan.needed[chunk], start)
            broken = broken[~finite[broken]]
            if len(broken):
                error, message = "DatasetError", _describe_broken(own, row, broken)
        except DatasetError as failure:
            error, message = type(failure).__name__, str(failure)
            states = np.zeros((length, self.job.checkpoint.config.max_state_dim), dtype=np.float32)
            finite, strange, misplaced = np.zeros(length, dtype=bool), [], False
        positions = positions.reshape(slots.shape)
        whole = (present & finite[used])[positions].all(axis=1)
        scores = self.scorer.score(features, states[used], own.texts[row], positions, whole)
        outputs = {}
        for head, result in scores.items():
            outputs[f"progress_{head}"] = result.progress
            outputs[f"probabilities_{head}"] = result.probabilities.ravel()
        return {
            "episode_index": int(plan.dataset.episode_index[row]),
            "start": start,
            "num_holes": int((~whole).sum()) or int(error is not None),
            "frames": frames,
            **outputs,
            "dataset": dataset,
            "chunk": chunk,
            "error": error,
            "message": message,
            "strange_dimensions": strange,
            "misplaced": misplaced,
            "score_s": self.clock() - started,
        }

    def _read_features(self, dataset: int, row: int, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features of some frames of an episode, (U, D), and which of them the stores have, (U,) bool."""
        cameras = self.job.datasets[dataset].cameras
        return frame_features(cameras, row, used, lambda camera, chunk: self.read_chunk(dataset, camera, chunk))

    def _read_chunk(self, dataset: int, camera: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        plan, indices = self.job.datasets[dataset].cameras[camera], self.indices[dataset]
        try:
            return read_chunk(plan.store, indices[camera], chunk)
        except FileNotFoundError:  # another run merged small parts meanwhile
            indices[camera] = plan.index()
            return read_chunk(plan.store, indices[camera], chunk)

    def _read_states(self, number: int, row: int) -> tuple[np.ndarray, np.ndarray, list[int], bool]:
        """An episode's states, normalised and padded (L, S), which are finite (L,), dimensions that look strange, and
        whether its index column says other than the metadata.
        """
        own, config = self.job.datasets[number], self.job.checkpoint.config
        dataset = own.features.dataset
        values = read_rows(dataset, row, [own.state_key], optional=["index"])
        states, index = values[own.state_key], values.get("index")
        misplaced = index is not None and bool((index != dataset.from_index[row] + np.arange(len(index))).any())
        states = states.reshape(len(states), -1).astype(np.float32)
        if states.shape[1] != len(own.normalizer.mean):
            location = dataset.location(dataset.data_files.path(row))
            raise DatasetError(f"{location}: {own.state_key} is {states.shape[1]} wide, not {len(own.normalizer.mean)}")
        finite = np.isfinite(states).all(axis=1)
        strange = own.normalizer.strange_dimensions(states[finite]) if finite.any() else np.zeros(0, dtype=np.int64)
        padded = own.normalizer.apply(np.nan_to_num(states), config.max_state_dim)
        return padded, finite, strange.tolist(), misplaced


def commit_holes(plan: ScorePlan, chunk: int) -> None:
    """Put a chunk that was given up into a part: all NaN, so that its rows are there and the next run tries it again."""
    data, num_frames = plan.ingest, int(count_frames(plan.computed[chunk][None])[0])
    row = {
        "episode_index": int(data.dataset.episode_index[data.chunks.row[chunk]]),
        "start": int(data.chunks.start[chunk]),
        "num_holes": num_frames,
        "frames": plan.computed[chunk].tobytes(),
    }
    for head in plan.heads:
        row[f"progress_{head}"] = np.full(num_frames, np.nan)
        row[f"probabilities_{head}"] = np.full(num_frames * plan.checkpoint.config.shape.num_stages(head), np.nan)
    table = pa.Table.from_pylist([row], schema=progress_io.part_schema(plan.heads))
    progress_io.write_part(plan.parts_folder, uuid.uuid4().hex, table)


OUTCOME_FIELDS = [
    ("dataset", pa.int64()),
    ("chunk", pa.int64()),
    ("error", pa.string()),
    ("message", pa.string()),
    ("strange_dimensions", pa.list_(pa.int64())),
    ("misplaced", pa.bool_()),
    ("score_s", pa.float64()),
]


def scored_schema(heads: tuple[str, ...]) -> pa.Schema:
    return pa.schema([*progress_io.part_schema(heads), *(pa.field(*f) for f in OUTCOME_FIELDS)])


def _describe_broken(own: DatasetJob, row: int, frames: np.ndarray) -> str:
    dataset, count = own.features.dataset, len(frames)
    which = f"frame {frames[0]}" if count == 1 else f"{count} frames, the first is {frames[0]}"
    return f"{dataset.location(dataset.data_files.path(row))}: {own.state_key} is NaN or infinite in {which}"


def chunks_to_score(plan: ScorePlan) -> np.ndarray:
    """(N,) int64, chunks that no part holds whole."""
    chunks = plan.ingest.chunks
    episode, start, num_holes = progress_io.read_done(plan.parts_folder)
    whole = num_holes == 0
    planned = chunk_keys(plan.ingest.dataset.episode_index[chunks.row], chunks.start)
    return np.flatnonzero(~is_among(planned, chunk_keys(episode[whole], start[whole])))
