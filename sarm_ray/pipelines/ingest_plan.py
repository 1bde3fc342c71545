"""Which frames a run needs, which of them no store has, and the decode jobs that this makes; metadata only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sarm_ray.core.episodes import BITMAP_BYTES, Chunks, plan_chunks
from sarm_ray.core.windows import Window, bitmaps_by_length, needed_frames
from sarm_ray.data.features import (
    FeatureKey,
    FeatureStore,
    StoreIndex,
    fingerprint_sources,
    held_frames,
    open_store,
    read_index,
)
from sarm_ray.data.lerobot import Dataset
from sarm_ray.model.encoder import EncoderInfo
from sarm_ray.pipelines.rounds import MAX_ATTEMPTS

JOB_CHUNKS = 16


@dataclass(frozen=True)
class ChunkFailure:
    """One chunk that could not be read or scored."""

    episode_index: int
    camera: str
    start: int
    stop: int
    error: str
    message: str
    attempts: int = 1


def one_per_chunk(failures: Sequence[ChunkFailure]) -> list[ChunkFailure]:
    """Failures in the order of the dataset, whoever met them first; of several ones of a camera's chunk the first."""
    first: dict[tuple[int, int, str], ChunkFailure] = {}
    for failure in failures:
        first.setdefault((failure.episode_index, failure.start, failure.camera), failure)
    return [first[chunk] for chunk in sorted(first)]


@dataclass(frozen=True)
class IngestPlan:
    """Which features a run needs and which of them are missing.

    Args:
        dataset, camera, encoder, key, store: what and where.
        rows: (N,) int64, episodes of the run as positions in the dataset's table.
        chunks: C chunks of those episodes.
        needed, missing: (C, BITMAP_BYTES) uint8.
        layout, source: (E,) int64, see `fingerprint_sources`.
    """

    dataset: Dataset
    camera: str
    encoder: EncoderInfo
    key: FeatureKey
    store: FeatureStore
    rows: np.ndarray
    chunks: Chunks
    needed: np.ndarray
    missing: np.ndarray
    layout: np.ndarray
    source: np.ndarray

    @property
    def todo(self) -> np.ndarray:
        """Chunks of which a frame is missing: (N,) int64."""
        return np.flatnonzero(self.missing.any(axis=1))

    def rows_to_read(self) -> np.ndarray:
        """Episodes of which a frame is missing, as positions in the dataset's table."""
        return np.unique(self.chunks.row[self.todo])

    def failure(self, chunk: int, error: str, message: str, attempts: int = 1) -> ChunkFailure:
        """What to report of a chunk that could not be read or scored."""
        episode = int(self.dataset.episode_index[self.chunks.row[chunk]])
        start, stop = int(self.chunks.start[chunk]), int(self.chunks.stop[chunk])
        return ChunkFailure(episode, self.camera, start, stop, error, message, attempts)

    def gave_up(self, chunk: int) -> ChunkFailure:
        """The failure of a chunk whose worker process died each time."""
        message = "its worker process died each time (a crash inside a library, or the out-of-memory killer)"
        return self.failure(chunk, "WorkerDied", message, MAX_ATTEMPTS)

    def index(self) -> StoreIndex:
        """What the store holds now."""
        episodes = self.dataset.episode_index
        return read_index(self.store, self.chunks, episodes, self.layout, self.source)


def plan_ingest(
    dataset: Dataset,
    camera: str,
    encoder: EncoderInfo,
    precision: str,
    dtype: str,
    rows: np.ndarray,
    stride: int,
    window: Window,
    cache: str | None,
) -> IngestPlan:
    """Work out what is needed and what of it is missing; reads metadata only.

    Args:
        dataset, camera, encoder: what is encoded by what.
        precision: `fp32` or `bf16`; dtype: `float16` or `float32`, as stored.
        rows: (N,) int64, episodes as positions in the dataset's table.
        stride, window: of the scoring; together they say which frames are needed.
        cache: see `open_store`.
    """
    key = FeatureKey(camera, encoder.kind, encoder.weights, encoder.image_size, encoder.image_dim, precision, dtype)
    store = open_store(dataset, key, cache)
    chunks = plan_chunks(rows, dataset.length[rows])
    needed = bitmaps_by_length(dataset.length[rows], lambda length: needed_frames(length, stride, window))
    layout, source = fingerprint_sources(dataset, camera)
    index = read_index(store, chunks, dataset.episode_index, layout, source)
    missing = needed & ~held_frames(index, len(chunks))
    return IngestPlan(dataset, camera, encoder, key, store, rows, chunks, needed, missing, layout, source)


def plan_cameras(
    dataset: Dataset,
    cameras: Sequence[str],
    encoder: EncoderInfo,
    precision: str,
    dtype: str,
    rows: np.ndarray,
    stride: int,
    window: Window,
    cache: str | None,
) -> tuple[IngestPlan, ...]:
    """`plan_ingest` of each of several cameras, in their order."""
    return tuple(
        plan_ingest(dataset, camera, encoder, precision, dtype, rows, stride, window, cache) for camera in cameras
    )


def chunk_list(chunks_by_dataset: Sequence[np.ndarray]) -> np.ndarray:
    """Chunks of several datasets as one array: K x (C_k,) int64 -> (N, 2) int64 of dataset and chunk."""
    pairs = [np.stack([np.full(len(own), number), own], axis=1) for number, own in enumerate(chunks_by_dataset)]
    return np.concatenate(pairs).astype(np.int64)


def plan_jobs(plan: IngestPlan, todo: np.ndarray, number: int, chunks_per_job: int = JOB_CHUNKS) -> pa.Table:
    """One row per decode job: location, image_key, fps, size, and of each of its chunks the place and missing frames.

    Args:
        plan: of one dataset.
        todo: (N,) int64, chunks to do.
        number: of the dataset in the run.
        chunks_per_job: at most so many consecutive chunks of a file.
    """
    dataset, chunks = plan.dataset, plan.chunks
    files = dataset.camera_files(plan.camera)
    file, start_s = (
        files.file[chunks.row[todo]],
        files.from_timestamp[chunks.row[todo]] + chunks.start[todo] / dataset.fps,
    )
    todo = todo[np.lexsort((start_s, chunks.row[todo] if not dataset.is_video(plan.camera) else start_s, file))]
    file = files.file[chunks.row[todo]]
    first_of_file = np.searchsorted(file, file)
    job = file * (len(todo) + 1) + (np.arange(len(todo)) - first_of_file) // chunks_per_job
    first = np.flatnonzero(np.diff(job, prepend=-1))  # places in `todo` where a job begins
    rows, num_jobs = chunks.row[todo], len(first)
    bitmaps = pa.py_buffer(np.ascontiguousarray(plan.missing[todo]))
    of_job = {
        "dataset": np.full(num_jobs, number),
        "location": [dataset.location(files.paths[each]) for each in file[first].tolist()],
        "image_key": [None if dataset.is_video(plan.camera) else plan.camera] * num_jobs,
        "fps": np.full(num_jobs, dataset.fps),
        "size": np.full(num_jobs, plan.encoder.image_size),
        "several_episodes": np.full(num_jobs, dataset.version == "v3.0"),
    }
    of_chunk = {
        "chunk": todo,
        "episode_index": dataset.episode_index[rows],
        "start": chunks.start[todo],
        "from_timestamp": files.from_timestamp[rows],
        "frames": pa.FixedSizeBinaryArray.from_buffers(pa.binary(BITMAP_BYTES), len(todo), [None, bitmaps]),
        "layout": plan.layout[rows],
        "source": plan.source[rows],
    }
    offsets = pa.array(np.append(first, len(todo)), type=pa.int32())
    lists = {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in of_chunk.items()}
    return pa.table({**of_job, **lists}, schema=JOB_SCHEMA)


JOB_SCHEMA = pa.schema(
    [
        ("dataset", pa.int64()),
        ("location", pa.string()),
        ("image_key", pa.string()),
        ("fps", pa.float64()),
        ("size", pa.int64()),
        ("several_episodes", pa.bool_()),
        ("chunk", pa.list_(pa.int64())),
        ("episode_index", pa.list_(pa.int64())),
        ("start", pa.list_(pa.int64())),
        ("from_timestamp", pa.list_(pa.float64())),
        ("frames", pa.list_(pa.binary(BITMAP_BYTES))),
        ("layout", pa.list_(pa.int64())),
        ("source", pa.list_(pa.int64())),
    ]
)
