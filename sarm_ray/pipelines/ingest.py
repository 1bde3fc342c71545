"""Every needed frame decoded once and encoded once, into the feature stores of one or several datasets.

    jobs -> decode_job (CPU tasks) -> FrameEncoder (GPU actors) -> commit (CPU tasks) -> one status row per chunk

A job is up to JOB_CHUNKS consecutive chunks of one file, which is opened once. A chunk that cannot be read travels on as
an error, and ends in the report. What is in the store is not in the plan.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import ray

from sarm_ray.console import Progress, first_line, say, tell
from sarm_ray.core.episodes import count_frames, frames_of
from sarm_ray.data.features import (
    SCHEMA,
    commit_features,
    compact_parts,
    describe_store,
    held_frames,
    plan_compaction,
)
from sarm_ray.data.video import FrameRequest, read_frames
from sarm_ray.errors import DatasetError, SarmRayError, VideoError
from sarm_ray.model.encoder import EncoderInfo, load_image_encoder
from sarm_ray.pipelines.ingest_plan import JOB_CHUNKS, ChunkFailure, IngestPlan, chunk_list, plan_jobs
from sarm_ray.pipelines.model_files import ENCODER_FILES, ModelFiles, carry_files, folder_here
from sarm_ray.pipelines.pools import describe_feeding, pool_watch
from sarm_ray.pipelines.rounds import cause_of, work_through
from sarm_ray.pipelines.runtime import (
    ARROW,
    Cluster,
    actor_options,
    call_aside,
    commit_options,
    decode_options,
    jobs_dataset,
    prepare_actor,
    work_clock,
)
from sarm_ray.pipelines.stopping import Stop, is_stopping

# Decoded chunks that may wait for the networks, per core. Of whole chunks the object store holds fewer anyway; but of the
# short ones that short episodes make it would hold thousands, and the driver keeps kilobytes for each of them.
WAITING_CHUNKS = 16


@dataclass
class IngestReport:
    """What an ingest did, with one entry per dataset where there is a list.

    Args:
        num_encoded: frames, each camera's counted.
        failures: chunks that could not be read.
        seconds: wall time.
        busy_s: seconds that workers spent on `decode` and `encode`.
    """

    num_encoded: list[int]
    failures: list[list[ChunkFailure]]
    seconds: float = 0.0
    busy_s: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "encode": 0.0})


def ingest(datasets: Sequence[Sequence[IngestPlan]], cluster: Cluster, stop: Stop, quiet: bool = False) -> IngestReport:
    """Decode and encode what is missing, all in one pool. Finished chunks survive a crash at any point.

    Args:
        datasets: of each the plans of its cameras.
    """
    report = IngestReport([0] * len(datasets), [[] for _ in datasets])
    plans = [plan for cameras in datasets for plan in cameras]
    owner = [number for number, cameras in enumerate(datasets) for _ in cameras]
    todo = chunk_list([plan.todo for plan in plans])
    if not len(todo):
        return report
    for plan in plans:
        if plan.missing.any():
            describe_store(plan.store, plan.key)
    progress = Progress("encode", sum(int(count_frames(plan.missing).sum()) for plan in plans), quiet)

    def record(status: dict, attempt: int) -> None:
        report.busy_s["decode"] += status["decode_s"]
        report.busy_s["encode"] += status["encode_s"]
        progress.add(status["num_frames"])
        plan, dataset = plans[status["dataset"]], owner[status["dataset"]]
        if status["error"] is None:
            report.num_encoded[dataset] += status["num_frames"]
        else:
            failure = plan.failure(status["chunk"], status["error"], status["message"], attempt)
            report.failures[dataset].append(failure)

    info = plans[0].encoder
    files = carry_files(info.folder, ENCODER_FILES, cluster) if info.folder else None

    def pipeline(todo: np.ndarray, alone: bool) -> ray.data.Dataset:
        return encode_pipeline(plans, cluster.now(), todo, stop.marker, alone, files)

    lost = work_through(todo, pipeline, record, stop, quiet)
    for number, chunk in lost.tolist():
        report.failures[owner[number]].append(plans[number].gave_up(chunk))
    report.seconds = progress.finish()
    if not quiet and (
        fed := describe_feeding(cluster, report.busy_s["decode"], report.busy_s["encode"], report.seconds)
    ):
        say(f"balance   {fed}")
    if not stop.requested:
        compact_stores(plans)
        for plan, dataset in zip(plans, owner, strict=True):
            failures = [failure for failure in report.failures[dataset] if failure.camera == plan.camera]
            call_aside(check_store, plan, failures)
    return report


def compact_stores(plans: Sequence[IngestPlan]) -> None:
    """Merge small parts where there are many. That can wait for the next run if it fails; the features are there."""
    compact = ray.remote(num_cpus=1)(compact_parts)
    try:
        ray.get([compact.remote(plan.store, names) for plan in plans for names in plan_compaction(plan.store)])
    except (ray.exceptions.RayError, SarmRayError) as error:
        tell([f"small parts of the feature store were not merged ({first_line(cause_of(error))})"])


def check_store(plan: IngestPlan, failures: list[ChunkFailure]) -> None:
    """Every needed frame is in the store by now, or its chunk is among the failures."""
    absent = (plan.needed & ~held_frames(plan.index(), len(plan.chunks))).any(axis=1)
    failed = {(failure.episode_index, failure.start) for failure in failures}
    for chunk in np.flatnonzero(absent).tolist():
        episode, start = int(plan.dataset.episode_index[plan.chunks.row[chunk]]), int(plan.chunks.start[chunk])
        if (episode, start) not in failed:
            raise DatasetError(
                f"{plan.store.location}: features of episode {episode}, frames {start} and on, were written but are not "
                "there for this process; give a --cache that all nodes reach"
            )


def encode_pipeline(
    plans: Sequence[IngestPlan],
    cluster: Cluster,
    todo: np.ndarray,
    stop_marker: str,
    alone: bool = False,
    files: ModelFiles | None = None,
) -> ray.data.Dataset:
    """The chain. Rows in: plan_jobs; rows out: dataset, chunk, num_frames, error, message, decode_s, encode_s."""
    todo_by_plan = [(plan, todo[todo[:, 0] == number, 1]) for number, plan in enumerate(plans)]
    jobs_by_plan = [
        plan_jobs(plan, own, number, 1 if alone else JOB_CHUNKS) for number, (plan, own) in enumerate(todo_by_plan)
    ]
    jobs = pa.concat_tables(jobs_by_plan).combine_chunks()
    info, precision = plans[0].encoder, plans[0].key.precision
    chunk_frames = max(int(count_frames(plan.missing).max(initial=0)) for plan in plans)
    num_spanned = sum(int((plan.chunks.stop - plan.chunks.start)[own].sum()) for plan, own in todo_by_plan)
    num_frames = sum(int(count_frames(plan.missing[own]).sum()) for plan, own in todo_by_plan)
    frame_bytes = 3 * info.image_size**2
    encoder = {
        "info": info,
        "precision": precision,
        "dtype": plans[0].store.dtype,
        "device": cluster.device,
        "files": files,
    }
    return (
        # a block of one frame: each decoded chunk is one, and leaves its operator as soon as it is there; the status rows
        # of a commit are one together
        jobs_dataset(
            jobs,
            frame_bytes,
            waiting_bytes=WAITING_CHUNKS * cluster.num_cpus * cluster.growth * chunk_frames * frame_bytes,
            name="encode",
            watch=pool_watch("encode") if cluster.tells_pools else None,
        )
        .map_batches(
            decode_job,  # type: ignore[arg-type]  # ray's type knows no fn_kwargs
            batch_size=1,
            fn_kwargs={"stop_marker": stop_marker},
            **ARROW,
            **decode_options(cluster, jobs.num_rows, num_spanned),
        )
        .map_batches(
            FrameEncoder,
            batch_size=1,
            fn_constructor_kwargs={**encoder, "stop_marker": stop_marker},
            **ARROW,
            **actor_options(cluster, jobs.num_rows, math.ceil(num_frames * info.relative_cost), alone),
        )
        .map_batches(
            commit_features,  # type: ignore[arg-type]  # ray's type knows no fn_kwargs
            fn_kwargs={"stores": [plan.store for plan in plans]},
            **ARROW,
            **commit_options(cluster, chunk_frames),
        )
    )


CHUNK_FIELDS = [("chunk", pa.int64()), *((name, SCHEMA.field(name).type) for name in SCHEMA.names[:-1])]
OUTCOME_FIELDS = [("dataset", pa.int64()), ("error", pa.string()), ("message", pa.string()), ("decode_s", pa.float64())]
DECODED_SCHEMA = pa.schema([*CHUNK_FIELDS, *OUTCOME_FIELDS, ("images", pa.large_binary())])
ENCODED_SCHEMA = pa.schema(
    [*CHUNK_FIELDS, *OUTCOME_FIELDS, ("encode_s", pa.float64()), ("features", pa.large_binary())]
)


def decode_job(jobs: pa.Table, stop_marker: str) -> Iterator[pa.Table]:
    """One job row in; one row per chunk out, with its images (k, size, size, 3) uint8 as bytes, or the error.

    Chunks that were not begun when the run was asked to stop are left out.
    """
    for job in jobs.to_pylist():
        requests = [
            FrameRequest(episode if job["several_episodes"] else None, from_timestamp, frames_of(frames, start))
            for episode, from_timestamp, frames, start in zip(
                job["episode_index"], job["from_timestamp"], job["frames"], job["start"], strict=True
            )
        ]
        results = read_frames(job["location"], requests, job["fps"], job["size"], job["image_key"])
        for position in range(len(requests)):
            if is_stopping(stop_marker):
                return
            started = time.process_time()
            result, error, message, images = next(results), None, None, None
            if isinstance(result, VideoError):
                error, message = type(result).__name__, str(result)
            else:
                images = _large_binary(result)
            chunk = {name: [job[name][position]] for name, _ in CHUNK_FIELDS}
            busy_s = time.process_time() - started
            outcome = {"dataset": [job["dataset"]], "error": [error], "message": [message], "decode_s": [busy_s]}
            yield pa.table({**chunk, **outcome, "images": images or [None]}, schema=DECODED_SCHEMA)


class FrameEncoder:
    """Rows of decode_job in; the same chunks out, with features (k, D) of the stored dtype as bytes."""

    def __init__(
        self, info: EncoderInfo, precision: str, dtype: str, device: str, stop_marker: str, files: ModelFiles | None
    ):
        prepare_actor(device)
        if files is not None:
            info = replace(info, folder=folder_here(files))
        self.size, self.dtype, self.stop_marker, self.clock = info.image_size, dtype, stop_marker, work_clock(device)
        self.encode = load_image_encoder(info, precision, device)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        if is_stopping(self.stop_marker):
            return ENCODED_SCHEMA.empty_table()
        started = self.clock()
        features: list[bytes | None] = []
        for cell in decoded["images"].chunk(0):
            if not cell.is_valid:
                features.append(None)
                continue
            images = np.frombuffer(cell.as_buffer(), dtype=np.uint8).reshape(-1, self.size, self.size, 3)
            features.append(self.encode(images).astype(self.dtype).tobytes())
        kept = decoded.drop_columns(["images"])
        busy_s = (self.clock() - started) / max(len(features), 1)
        return kept.append_column("encode_s", pa.array([busy_s] * len(features))).append_column(
            "features", pa.array(features, type=pa.large_binary())
        )


def _large_binary(array: np.ndarray) -> pa.Array:
    """One cell over the array's own memory."""
    offsets = pa.py_buffer(np.array([0, array.nbytes], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(np.ascontiguousarray(array))])
