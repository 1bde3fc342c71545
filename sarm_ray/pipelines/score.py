"""`sarm-ray score`: a dataset and a checkpoint in, sarm_progress.parquet out.

    plan -> ingest (features that are missing) -> score_chunk (GPU actors) -> parts -> merge

The output is a pure function of dataset, checkpoint and options: passes through the networks are cut by the plan, and
which worker did what, in what order, after how many crashes, leaves no trace in it.
"""

import functools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
import ray

from sarm_ray.config import ScoreConfig
from sarm_ray.console import Progress, tell
from sarm_ray.core.episodes import BITMAP_BYTES, CHUNK_FRAMES, count_frames, frames_of
from sarm_ray.core.windows import Window, window_slots
from sarm_ray.data import progress_io, storage
from sarm_ray.data.features import StoreIndex, read_chunk
from sarm_ray.data.lerobot import fetch_files
from sarm_ray.data.rows import read_rows
from sarm_ray.errors import DatasetError, name_list
from sarm_ray.model.checkpoint import Checkpoint, StateNormalizer
from sarm_ray.model.encoder import encode_texts
from sarm_ray.model.scorer import Scorer
from sarm_ray.pipelines.ingest import ChunkFailure, IngestPlan, IngestReport, ingest
from sarm_ray.pipelines.runtime import (
    ARROW,
    Cluster,
    actor_options,
    commit_options,
    connect,
    jobs_dataset,
    prepare_actor,
    stream_rows,
)
from sarm_ray.pipelines.score_plan import ScorePlan, plan_score
from sarm_ray.pipelines.score_report import ScoreReport, describe_plan

MAX_CHUNKS_PER_BLOCK = 8


@dataclass(frozen=True)
class ScoreJob:
    """What every scoring actor needs, put into the object store once."""

    features: IngestPlan
    index: StoreIndex
    checkpoint: Checkpoint
    heads: tuple[str, ...]
    window: Window
    precision: str
    device: str
    state_key: str
    normalizer: StateNormalizer
    texts: dict[int, np.ndarray]


def score(config: ScoreConfig, quiet: bool = False) -> ScoreReport | None:
    """Score a dataset. None after a dry run.

    Raises:
        SarmRayError: bad input; nothing was run.
    """
    started = time.monotonic()
    with connect(config.address) as cluster:
        plan = plan_score(config, cluster)
        if not quiet:
            describe_plan(plan, cluster)
            tell(plan.notices)
        if config.dry_run:
            return None
        for folder in (storage.parent(plan.output), plan.run_folder, plan.parts_folder):
            storage.remove_temporaries(folder)
        plan.write_config(config)
        fetch_files(plan.ingest.dataset, plan.ingest.rows_to_read(), plan.ingest.camera)
        ingested = ingest(plan.ingest, cluster, quiet)
        scored = score_missing(plan, cluster, quiet)
        if not quiet:
            tell(scored.notices())
        report = _finish(plan, ingested, scored, started)
    progress_io.write_json(storage.join(plan.run_folder, "summary.json"), asdict(report))
    return report


@dataclass
class ScoredChunks:
    """What scoring did: frames, failures, state dimensions that look strange, wall and CPU time."""

    num_scored: int = 0
    failures: list[ChunkFailure] = field(default_factory=list)
    strange_dimensions: set[int] = field(default_factory=set)
    misplaced_episodes: set[int] = field(default_factory=set)
    seconds: float = 0.0
    cpu_s: float = 0.0

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


def score_missing(plan: ScorePlan, cluster: Cluster, quiet: bool = False) -> ScoredChunks:
    """Score the chunks that no part holds yet."""
    todo = _chunks_to_score(plan)
    done = ScoredChunks()
    if not len(todo):
        return done
    progress = Progress("score", int(count_frames(plan.computed[todo]).sum()), quiet)
    for status in stream_rows(score_pipeline(plan, cluster, todo)):
        done.num_scored += status["num_frames"]
        done.cpu_s += status["cpu_s"]
        done.strange_dimensions.update(status["strange_dimensions"])
        if status["misplaced"]:
            chunk_row = plan.ingest.chunks.row[status["chunk"]]
            done.misplaced_episodes.add(int(plan.ingest.dataset.episode_index[chunk_row]))
        if status["error"] is not None:
            done.failures.append(plan.ingest.failure(status))
        progress.add(status["num_frames"])
    done.seconds = progress.finish()
    return done


def score_pipeline(plan: ScorePlan, cluster: Cluster, todo: np.ndarray) -> ray.data.Dataset:
    """The chain. Rows in: chunk, frames; rows out: chunk, num_frames, error, message, strange_dimensions, cpu_s."""
    frames = pa.array([bitmap.tobytes() for bitmap in plan.computed[todo]], type=pa.binary(BITMAP_BYTES))
    jobs = pa.table({"chunk": todo, "frames": frames})
    job = ray.put(_score_job(plan, cluster, todo))
    # neighbouring chunks share the features around their border, so they go to one actor where there is enough for all
    rows_per_block = min(max(len(todo) // (4 * cluster.num_actors), 1), MAX_CHUNKS_PER_BLOCK)
    num_blocks = -(-len(todo) // rows_per_block)
    return (
        jobs_dataset(jobs, block_bytes=2**20, rows_per_block=rows_per_block)
        .map_batches(
            ChunkScorer, batch_size=1, fn_constructor_kwargs={"job": job}, **ARROW, **actor_options(cluster, num_blocks)
        )
        .map_batches(
            progress_io.commit_scores,  # type: ignore[arg-type]  # ray's type knows no fn_kwargs
            fn_kwargs={"folder": plan.parts_folder, "heads": plan.heads},
            **ARROW,
            **commit_options(cluster),
        )
    )


class ChunkScorer:
    """Chunk rows in; one row per chunk out, with part columns (`progress_io.part_schema`) and the outcome.

    It reads the chunk's features from the store with the halo of frames that its windows reach into.
    """

    def __init__(self, job: ray.ObjectRef):
        own: ScoreJob = ray.get(job)
        self.job = own
        prepare_actor(own.device)
        self.scorer = Scorer(own.checkpoint, own.heads, own.window.readout_slot, own.precision, own.device)
        self.index = own.index
        self.read_chunk = functools.lru_cache(maxsize=16)(self._read_chunk)
        self.read_states = functools.lru_cache(maxsize=2)(self._read_states)

    def __call__(self, chunks: pa.Table) -> pa.Table:
        rows = [self.score_chunk(row["chunk"], row["frames"]) for row in chunks.to_pylist()]
        return pa.Table.from_pylist(rows, schema=scored_schema(self.job.heads))

    def score_chunk(self, chunk: int, bitmap: bytes) -> dict:
        started = time.process_time()
        dataset, row = self.job.features.dataset, int(self.job.features.chunks.row[chunk])
        start = int(self.job.features.chunks.start[chunk])
        frames = frames_of(bitmap, start)
        slots = window_slots(frames, int(dataset.length[row]), self.job.window)
        used, positions = np.unique(slots, return_inverse=True)
        features, present = self._read_features(row, used)
        error, message = None, None
        try:
            states, finite, strange, misplaced = self.read_states(row)
        except DatasetError as failure:
            error, message = type(failure).__name__, str(failure)
            length = int(dataset.length[row])
            states = np.zeros((length, self.job.checkpoint.config.max_state_dim), dtype=np.float32)
            finite, strange, misplaced = np.zeros(length, dtype=bool), [], False
        positions = positions.reshape(slots.shape)
        whole = (present & finite[used])[positions].all(axis=1)
        scores = self.scorer.score(features, states[used], self.job.texts[row], positions, whole)
        outputs = {}
        for head, result in scores.items():
            outputs[f"progress_{head}"] = result.progress
            outputs[f"probabilities_{head}"] = result.probabilities.ravel()
        return {
            "episode_index": int(dataset.episode_index[row]),
            "start": start,
            "num_holes": int((~whole).sum()),
            "frames": bitmap,
            **outputs,
            "chunk": chunk,
            "error": error,
            "message": message,
            "strange_dimensions": strange,
            "misplaced": misplaced,
            "cpu_s": time.process_time() - started,
        }

    def _read_features(self, row: int, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features of some frames of an episode, (U, D), and which of them the store has, (U,) bool."""
        store = self.job.features.store
        features = np.zeros((len(used), store.feature_dim), dtype=store.dtype)
        present = np.zeros(len(used), dtype=bool)
        first_chunk = int(np.searchsorted(self.job.features.chunks.row, row))
        for number in np.unique(used // CHUNK_FRAMES).tolist():
            values, there = self.read_chunk(first_chunk + number)
            inside = used // CHUNK_FRAMES == number
            features[inside], present[inside] = values[used[inside] % CHUNK_FRAMES], there[used[inside] % CHUNK_FRAMES]
        return features, present

    def _read_chunk(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            return read_chunk(self.job.features.store, self.index, chunk)
        except FileNotFoundError:  # another run merged small parts meanwhile
            self.index = self.job.features.index()
            return read_chunk(self.job.features.store, self.index, chunk)

    def _read_states(self, row: int) -> tuple[np.ndarray, np.ndarray, list[int], bool]:
        """An episode's states, normalised and padded (L, S), which are finite (L,), dimensions that look strange, and
        whether its index column says other than the metadata.
        """
        config, normalizer, dataset = self.job.checkpoint.config, self.job.normalizer, self.job.features.dataset
        values = read_rows(dataset, row, [self.job.state_key], optional=["index"])
        states, index = values[self.job.state_key], values.get("index")
        misplaced = index is not None and bool((index != dataset.from_index[row] + np.arange(len(index))).any())
        states = states.reshape(len(states), -1).astype(np.float32)
        if states.shape[1] != len(normalizer.mean):
            path = dataset.data_files.path(row)
            raise DatasetError(f"{path}: {self.job.state_key} is {states.shape[1]} wide, not {len(normalizer.mean)}")
        finite = np.isfinite(states).all(axis=1)
        strange = normalizer.strange_dimensions(states[finite]) if finite.any() else np.zeros(0, dtype=np.int64)
        return normalizer.apply(np.nan_to_num(states), config.max_state_dim), finite, strange.tolist(), misplaced


def scored_schema(heads: tuple[str, ...]) -> pa.Schema:
    outcome = [
        ("chunk", pa.int64()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("strange_dimensions", pa.list_(pa.int64())),
        ("misplaced", pa.bool_()),
        ("cpu_s", pa.float64()),
    ]
    return pa.schema([*progress_io.part_schema(heads), *(pa.field(*f) for f in outcome)])


def _chunks_to_score(plan: ScorePlan) -> np.ndarray:
    chunks, episodes = plan.ingest.chunks, plan.ingest.dataset.episode_index
    episode, start, num_holes = progress_io.read_done(plan.parts_folder)
    whole = num_holes == 0
    done = set(zip(episode[whole].tolist(), start[whole].tolist(), strict=True))
    planned = zip(episodes[chunks.row].tolist(), chunks.start.tolist(), strict=True)
    return np.array([number for number, key in enumerate(planned) if key not in done], dtype=np.int64)


def _score_job(plan: ScorePlan, cluster: Cluster, todo: np.ndarray) -> ScoreJob:
    ingest_plan = plan.ingest
    rows = np.unique(ingest_plan.chunks.row[todo])
    text_of_row = dict(zip(ingest_plan.rows.tolist(), plan.texts, strict=True))
    distinct = sorted({text_of_row[row] for row in rows.tolist()})
    by_text = dict(zip(distinct, encode_texts(ingest_plan.encoder, distinct), strict=True))
    return ScoreJob(
        features=ingest_plan,
        index=ingest_plan.index(),
        checkpoint=plan.checkpoint,
        heads=plan.heads,
        window=plan.window,
        precision=plan.precision,
        device=cluster.device,
        state_key=plan.state_key,
        normalizer=plan.normalizer,
        texts={row: by_text[text_of_row[row]] for row in rows.tolist()},
    )


def _finish(plan: ScorePlan, ingested: IngestReport, scored: ScoredChunks, started: float) -> ScoreReport:
    """Merge the parts into the output; the parts go last."""
    merge_started = time.monotonic()
    dataset, run = plan.ingest.dataset, plan.run_folder
    failures = ingested.failures + scored.failures
    progress_io.write_failed(storage.join(run, "failed.parquet"), [asdict(failure) for failure in failures])
    num_nan = dict.fromkeys(plan.heads, 0)

    def tables() -> Iterator[pa.Table]:
        return progress_io.merge_parts(
            plan.parts_folder, plan.heads, plan.ingest.chunks, dataset.episode_index, dataset.length, dataset.from_index
        )

    def counted_tables() -> Iterator[pa.Table]:
        for table in tables():
            for head in plan.heads:
                num_nan[head] += int(np.isnan(table[f"progress_{head}"].to_numpy()).sum())
            yield table

    probabilities = storage.join(run, "stage_probabilities.parquet")
    storage.remove_file(probabilities)  # one of an earlier run would not belong to this output
    if plan.stage_probabilities:
        progress_io.write_probabilities(probabilities, plan.heads, tables)
    schema = progress_io.progress_schema(plan.heads, plan.metadata)
    num_frames = progress_io.write_progress(plan.output, counted_tables, schema)
    progress_io.remove_parts(run)
    total = time.monotonic() - started
    cpu_s = {"decode": ingested.decode_cpu_s, "encode": ingested.encode_cpu_s, "score": scored.cpu_s}
    phases = {"encode": ingested.seconds, "score": scored.seconds, "merge": time.monotonic() - merge_started}
    busy = sum(cpu_s.values())
    return ScoreReport(
        output=plan.output,
        num_frames=num_frames,
        num_scored=scored.num_scored,
        num_decoded=ingested.num_encoded,
        num_cached=int(count_frames(plan.ingest.needed & ~plan.ingest.missing).sum()),
        num_nan=num_nan,
        notices=(*plan.notices, *scored.notices()),
        failures=failures,
        seconds={**phases, "total": total},
        cpu_s=cpu_s,
        frames_per_s=num_frames / total,
        frames_per_cpu_s=scored.num_scored / busy if busy else None,
    )
