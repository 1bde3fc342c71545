"""Every needed frame decoded once and encoded once, into the feature store.

    jobs -> decode_job (CPU tasks) -> FrameEncoder (GPU actors) -> commit (CPU tasks) -> one status row per chunk

A job is up to JOB_CHUNKS consecutive chunks of one file, which is opened once. A chunk that cannot be read travels on as
an error, and ends in the report. What is in the store is not in the plan.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import ray

from sarm_ray.console import Progress
from sarm_ray.core.episodes import BITMAP_BYTES, CHUNK_FRAMES, Chunks, count_frames, frames_of, plan_chunks
from sarm_ray.core.windows import Window, bitmaps_by_length, needed_frames
from sarm_ray.data import storage
from sarm_ray.data.features import (
    SCHEMA,
    FeatureKey,
    FeatureStore,
    StoreIndex,
    commit_features,
    compact_parts,
    describe_store,
    fingerprint_sources,
    held_frames,
    open_store,
    plan_compaction,
    read_index,
)
from sarm_ray.data.lerobot import Dataset
from sarm_ray.data.video import FrameRequest, read_frames
from sarm_ray.errors import DatasetError, VideoError
from sarm_ray.model.encoder import EncoderInfo, load_image_encoder
from sarm_ray.pipelines.runtime import (
    ARROW,
    Cluster,
    actor_options,
    commit_options,
    decode_options,
    jobs_dataset,
    prepare_actor,
    stream_rows,
)

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

    def rows_to_read(self) -> np.ndarray:
        """Episodes of which a frame is missing, as positions in the dataset's table."""
        return np.unique(self.chunks.row[self.missing.any(axis=1)])

    def failure(self, status: dict) -> ChunkFailure:
        """The failure that a pipeline's status row (chunk, error, message) tells of."""
        chunk = status["chunk"]
        episode = int(self.dataset.episode_index[self.chunks.row[chunk]])
        start, stop = int(self.chunks.start[chunk]), int(self.chunks.stop[chunk])
        return ChunkFailure(episode, self.camera, start, stop, status["error"], status["message"])

    def index(self) -> StoreIndex:
        """What the store holds now."""
        episodes = self.dataset.episode_index
        return read_index(self.store, self.chunks, episodes, self.layout, self.source)


@dataclass
class IngestReport:
    """What an ingest did.

    Args:
        num_needed, num_encoded: frames.
        failures: chunks that could not be read.
        seconds: wall time.
        decode_cpu_s, encode_cpu_s: CPU time of the tasks and actors.
    """

    num_needed: int = 0
    num_encoded: int = 0
    failures: list[ChunkFailure] = field(default_factory=list)
    seconds: float = 0.0
    decode_cpu_s: float = 0.0
    encode_cpu_s: float = 0.0


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


def ingest(plan: IngestPlan, cluster: Cluster, quiet: bool = False) -> IngestReport:
    """Decode and encode what is missing. Finished chunks survive a crash at any point."""
    report = IngestReport(num_needed=int(count_frames(plan.needed).sum()))
    if not plan.missing.any():
        return report
    storage.remove_temporaries(plan.store.location)
    describe_store(plan.store, plan.key)
    progress = Progress("encode", int(count_frames(plan.missing).sum()), quiet)
    for status in stream_rows(encode_pipeline(plan, cluster)):
        report.decode_cpu_s += status["decode_cpu_s"]
        report.encode_cpu_s += status["encode_cpu_s"]
        if status["error"] is None:
            report.num_encoded += status["num_frames"]
        else:
            report.failures.append(plan.failure(status))
        progress.add(status["num_frames"])
    compact = ray.remote(num_cpus=1)(compact_parts)
    ray.get([compact.remote(plan.store, names) for names in plan_compaction(plan.store)])
    check_store(plan, report)
    report.seconds = progress.finish()
    return report


def check_store(plan: IngestPlan, report: IngestReport) -> None:
    """Every needed frame is in the store by now, or its chunk is among the failures."""
    absent = (plan.needed & ~held_frames(plan.index(), len(plan.chunks))).any(axis=1)
    failed = {(failure.episode_index, failure.start) for failure in report.failures}
    for chunk in np.flatnonzero(absent).tolist():
        episode, start = int(plan.dataset.episode_index[plan.chunks.row[chunk]]), int(plan.chunks.start[chunk])
        if (episode, start) not in failed:
            raise DatasetError(
                f"{plan.store.location}: features of episode {episode}, frames {start} and on, were written but are not "
                "there for this process; give a --cache that all nodes reach"
            )


def encode_pipeline(plan: IngestPlan, cluster: Cluster) -> ray.data.Dataset:
    """The chain. Rows in: plan_jobs; rows out: chunk, num_frames, error, message, decode_cpu_s, encode_cpu_s."""
    jobs = plan_jobs(plan)
    chunk_bytes = CHUNK_FRAMES * plan.encoder.image_size**2 * 3
    encoder = {
        "info": plan.encoder,
        "precision": plan.key.precision,
        "dtype": plan.store.dtype,
        "device": cluster.device,
    }
    return (
        jobs_dataset(jobs, block_bytes=chunk_bytes)
        .map_batches(decode_job, batch_size=1, **ARROW, **decode_options(cluster, jobs.num_rows))
        .map_batches(
            FrameEncoder, batch_size=1, fn_constructor_kwargs=encoder, **ARROW, **actor_options(cluster, jobs.num_rows)
        )
        .map_batches(
            commit_features,  # type: ignore[arg-type]  # ray's type knows no fn_kwargs
            fn_kwargs={"store": plan.store},
            **ARROW,
            **commit_options(cluster),
        )
    )


def plan_jobs(plan: IngestPlan) -> pa.Table:
    """One row per decode job: location, image_key, fps, size, and of each of its chunks the place and missing frames."""
    dataset, chunks = plan.dataset, plan.chunks
    files = dataset.camera_files(plan.camera)
    todo = np.flatnonzero(plan.missing.any(axis=1))
    file, start_s = (
        files.file[chunks.row[todo]],
        files.from_timestamp[chunks.row[todo]] + chunks.start[todo] / dataset.fps,
    )
    todo = todo[np.lexsort((start_s, chunks.row[todo] if not dataset.is_video(plan.camera) else start_s, file))]
    file = files.file[chunks.row[todo]]
    first_of_file = np.searchsorted(file, file)
    job = file * (len(todo) + 1) + (np.arange(len(todo)) - first_of_file) // JOB_CHUNKS
    bounds = np.flatnonzero(np.diff(job, prepend=-1, append=-1))
    jobs = []
    for first, last in itertools.pairwise(bounds):
        own = todo[first:last]
        rows = chunks.row[own]
        jobs.append(
            {
                "location": dataset.location(files.paths[file[first]]),
                "image_key": None if dataset.is_video(plan.camera) else plan.camera,
                "fps": dataset.fps,
                "size": plan.encoder.image_size,
                "several_episodes": dataset.version == "v3.0",
                "chunk": own,
                "episode_index": dataset.episode_index[rows],
                "start": chunks.start[own],
                "from_timestamp": files.from_timestamp[rows],
                "frames": [bitmap.tobytes() for bitmap in plan.missing[own]],
                "layout": plan.layout[rows],
                "source": plan.source[rows],
            }
        )
    return pa.Table.from_pylist(jobs, schema=JOB_SCHEMA)


JOB_SCHEMA = pa.schema(
    [
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
CHUNK_FIELDS = [("chunk", pa.int64()), *((name, SCHEMA.field(name).type) for name in SCHEMA.names[:-1])]
OUTCOME_FIELDS = [("error", pa.string()), ("message", pa.string()), ("decode_cpu_s", pa.float64())]
DECODED_SCHEMA = pa.schema([*CHUNK_FIELDS, *OUTCOME_FIELDS, ("images", pa.large_binary())])
ENCODED_SCHEMA = pa.schema(
    [*CHUNK_FIELDS, *OUTCOME_FIELDS, ("encode_cpu_s", pa.float64()), ("features", pa.large_binary())]
)


def decode_job(jobs: pa.Table) -> Iterator[pa.Table]:
    """One job row in; one row per chunk out, with its images (k, size, size, 3) uint8 as bytes, or the error."""
    for job in jobs.to_pylist():
        started = time.process_time()
        requests = [
            FrameRequest(episode if job["several_episodes"] else None, from_timestamp, frames_of(frames, start))
            for episode, from_timestamp, frames, start in zip(
                job["episode_index"], job["from_timestamp"], job["frames"], job["start"], strict=True
            )
        ]
        results = read_frames(job["location"], requests, job["fps"], job["size"], job["image_key"])
        for position, result in enumerate(results):
            error, message, images = None, None, None
            if isinstance(result, VideoError):
                error, message = type(result).__name__, str(result)
            else:
                images = _large_binary(result)
            cpu_s, started = time.process_time() - started, time.process_time()
            chunk = {name: [job[name][position]] for name, _ in CHUNK_FIELDS}
            outcome = {"error": [error], "message": [message], "decode_cpu_s": [cpu_s]}
            yield pa.table({**chunk, **outcome, "images": images or [None]}, schema=DECODED_SCHEMA)


class FrameEncoder:
    """Rows of decode_job in; the same chunks out, with features (k, D) of the stored dtype as bytes."""

    def __init__(self, info: EncoderInfo, precision: str, dtype: str, device: str):
        prepare_actor(device)
        self.size, self.dtype = info.image_size, dtype
        self.encode = load_image_encoder(info, precision, device)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        started = time.process_time()
        features: list[bytes | None] = []
        for cell in decoded["images"].chunk(0):
            if not cell.is_valid:
                features.append(None)
                continue
            images = np.frombuffer(cell.as_buffer(), dtype=np.uint8).reshape(-1, self.size, self.size, 3)
            features.append(self.encode(images).astype(self.dtype).tobytes())
        kept = decoded.drop_columns(["images"])
        cpu_s = (time.process_time() - started) / max(len(features), 1)
        return kept.append_column("encode_cpu_s", pa.array([cpu_s] * len(features))).append_column(
            "features", pa.array(features, type=pa.large_binary())
        )


def _large_binary(array: np.ndarray) -> pa.Array:
    """One cell over the array's own memory."""
    offsets = pa.py_buffer(np.array([0, array.nbytes], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(np.ascontiguousarray(array))])
