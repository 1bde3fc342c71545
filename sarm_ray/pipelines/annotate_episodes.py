"""The chain of an annotation run: episodes in, answers in the journal.

    episodes -> read_episode (CPU tasks) -> EpisodeAsker (VLM actors, which write the journal) -> one status row per episode

Sparse and dense subtasks are asked of the same frames, decoded once. An answer is in the journal the moment it is there, so
a crash costs the questions under way and no other.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from sarm_ray.console import Progress
from sarm_ray.core.questions import describe_episode
from sarm_ray.data.annotation_journal import Entry, read_entry, write_entry
from sarm_ray.data.pictures import read_marked_frames
from sarm_ray.errors import AnnotatorError, DatasetError, VideoError
from sarm_ray.model.annotator import Annotator, MarkedFrames, ask
from sarm_ray.model.annotator_openai import Endpoint, OpenAIAnnotator
from sarm_ray.model.annotator_transformers import LocalVlm, TransformersAnnotator
from sarm_ray.pipelines.annotate_plan import AnnotatePlan, gpus_of_nodes
from sarm_ray.pipelines.nodes import prefer
from sarm_ray.pipelines.pools import pool_watch
from sarm_ray.pipelines.rounds import MAX_ATTEMPTS, work_through
from sarm_ray.pipelines.runtime import (
    ARROW,
    CPU_ACTOR_SHARE,
    GPU_ACTOR_CPUS,
    ONE_ACTOR_ATTEMPT,
    SMALL_TASK_SHARE,
    Cluster,
    decode_options,
    jobs_dataset,
    make_aside,
    prepare_actor,
)
from sarm_ray.pipelines.stopping import Stop, is_stopping

HOPELESS = 20  # questions without an answer and none with one, after which a run is not worth its hours
GAVE_UP = "its worker process died at every attempt"


@dataclass(frozen=True)
class AskJob:
    """What every actor needs, put into the object store once; the engine may hold a key, which nobody is shown."""

    plan: AnnotatePlan
    engine: LocalVlm | Endpoint
    stop_marker: str


@dataclass(frozen=True)
class UnansweredEpisode:
    """An episode that could not be asked about, or whose question found no answer that can be taken.

    Args:
        episode_index, kind, error, message, attempts: as in failed.parquet.
    """

    episode_index: int
    kind: str
    error: str
    message: str
    attempts: int = 1


@dataclass
class Asking:
    """What the asking of a run did."""

    num_answered: int
    failures: list[UnansweredEpisode]
    num_prompt_tokens: int = 0
    num_answer_tokens: int = 0
    num_asked: int = 0
    seconds: float = 0.0


def ask_episodes(
    plan: AnnotatePlan,
    todo: dict[int, tuple[str, ...]],
    engine: LocalVlm | Endpoint,
    pool: tuple[int, int] | None,
    concurrency: int,
    cluster: Cluster,
    stop: Stop,
    quiet: bool,
) -> Asking:
    """Ask about episodes, by row the kinds; answers go into the journal.

    Raises:
        AnnotatorError: the engine cannot be used at all; what is answered is kept.
    """
    asking = Asking(0, [])
    if not todo or stop.requested:
        return asking
    progress = Progress("annotate", len(todo), quiet, unit="episodes")
    size = pool_size(engine, pool, cluster, len(todo))
    concurrency = min(concurrency, -(-len(todo) // size[1])) if isinstance(engine, Endpoint) else 1
    job = make_aside(AskJob, plan, engine, stop.marker)

    def record(status: dict, attempt: int) -> None:
        progress.add(1)
        episode = int(plan.dataset.episode_index[status["chunk"]])
        for kind, error, message, attempts in zip(
            status["kinds"], status["errors"], status["messages"], status["attempts"], strict=True
        ):
            if error is None:
                asking.num_answered += 1
            else:
                asking.failures.append(UnansweredEpisode(episode, kind, error, message, attempts))
        if not asking.num_answered:
            unanswered = [failure for failure in asking.failures if failure.error == "NoAnswerError"]
            if len(unanswered) >= HOPELESS:
                raise AnnotatorError(
                    f"none of the first {len(unanswered)} questions was answered; {unanswered[-1].message}"
                )
        asking.num_asked += sum(status["attempts"])
        asking.num_prompt_tokens += status["num_prompt_tokens"]
        asking.num_answer_tokens += status["num_answer_tokens"]

    chunks = np.array([[0, row] for row in sorted(todo)], dtype=np.int64)

    def pipeline(left: np.ndarray, alone: bool) -> ray.data.Dataset:
        rows = {row: todo[row] for row in left[:, 1].tolist()}
        return ask_pipeline(plan, rows, engine, size, job, 1 if alone else concurrency, cluster, alone)

    lost = work_through(chunks, pipeline, record, stop, quiet, noun="episode")
    for row in lost[:, 1].tolist():
        episode = int(plan.dataset.episode_index[row])
        asking.failures += [
            UnansweredEpisode(episode, kind, "WorkerDied", GAVE_UP, MAX_ATTEMPTS)
            for kind in todo[row]
            if read_entry(plan.run_folder, kind, episode) is None
        ]
    asking.failures.sort(key=lambda failure: (failure.episode_index, failure.kind))
    asking.seconds = progress.finish()
    return asking


def pool_size(
    engine: LocalVlm | Endpoint, wanted: tuple[int, int] | None, cluster: Cluster, num_episodes: int
) -> tuple[int, int]:
    """Fewest and most actors: as wanted, else one for an endpoint, else as many as the GPUs carry."""
    if wanted is None:
        spread = engine.num_gpus if isinstance(engine, LocalVlm) else 0
        there = sum(gpus // spread for gpus in gpus_of_nodes()) if spread else 1
        wanted = (1, max(there * (cluster.growth if spread else 1), 1))
    most = max(1, min(wanted[1], num_episodes))
    return min(wanted[0], most), most


def ask_pipeline(
    plan: AnnotatePlan,
    todo: dict[int, tuple[str, ...]],
    engine: LocalVlm | Endpoint,
    size: tuple[int, int],
    job: ray.ObjectRef,
    concurrency: int,
    cluster: Cluster,
    alone: bool,
) -> ray.data.Dataset:
    """The chain. Rows in: dataset, chunk (the row of the episode), kinds; rows out: STATUS_SCHEMA."""
    jobs = pa.table(
        {"dataset": [0] * len(todo), "chunk": list(todo), "kinds": [list(kinds) for kinds in todo.values()]},
        schema=pa.schema([("dataset", pa.int64()), ("chunk", pa.int64()), ("kinds", pa.list_(pa.string()))]),
    )
    height, width = plan.sizes[0][0], sum(size[1] for size in plan.sizes)
    episode_bytes = max(len(plan.frames(row)) for row in todo) * height * width * 3
    # as many at a time as an actor has threads, and one that waits; alone, none waits behind one that may kill it
    pool = ActorPoolStrategy(
        min_size=size[0],
        max_size=size[1],
        initial_size=size[0],
        max_tasks_in_flight_per_actor=concurrency + (not alone),
    )
    resources: dict[str, Any] = {"num_cpus": 2 * SMALL_TASK_SHARE}  # unlike a decoder's: Ray would fuse the two
    if isinstance(engine, LocalVlm):
        gpus = {"num_gpus": engine.num_gpus, "num_cpus": GPU_ACTOR_CPUS}
        resources = {**(gpus if cluster.num_gpus else {"num_cpus": CPU_ACTOR_SHARE}), **prefer("gpu")}
    waiting = 3 * size[1] * concurrency * episode_bytes
    return (
        # an episode is a block: it leaves the decoder as soon as it is read
        jobs_dataset(
            jobs,
            block_bytes=1,
            waiting_bytes=max(waiting, 2**26),
            name="annotate",
            watch=pool_watch("annotate") if cluster.tells_pools else None,
        )
        .map_batches(
            read_episode,  # type: ignore[arg-type]  # ray's type knows no fn_kwargs
            batch_size=1,
            fn_kwargs={"job": job},
            **ARROW,
            **decode_options(cluster, len(todo), int(plan.dataset.length[list(todo)].sum())),
        )
        .map_batches(
            EpisodeAsker,
            batch_size=1,
            fn_constructor_kwargs={"job": job},
            compute=pool,
            max_concurrency=concurrency,
            **ARROW,
            **resources,
            **ONE_ACTOR_ATTEMPT,
        )
    )


READ_SCHEMA = pa.schema(
    [
        ("dataset", pa.int64()),
        ("chunk", pa.int64()),
        ("kinds", pa.list_(pa.string())),
        ("error", pa.string()),
        ("message", pa.string()),
        ("images", pa.large_binary()),
    ]
)
STATUS_SCHEMA = pa.schema(
    [
        ("dataset", pa.int64()),
        ("chunk", pa.int64()),
        ("kinds", pa.list_(pa.string())),
        ("errors", pa.list_(pa.string())),
        ("messages", pa.list_(pa.string())),
        ("attempts", pa.list_(pa.int64())),
        ("num_prompt_tokens", pa.int64()),
        ("num_answer_tokens", pa.int64()),
    ]
)


def read_episode(jobs: pa.Table, job: ray.ObjectRef) -> Iterator[pa.Table]:
    """Episode rows in; each with its frames, (k, H, W, 3) uint8 as bytes, or the error. None once the run is to stop."""
    own = _fetch_job(job)
    plan = own.plan
    for row in jobs.to_pylist():
        if is_stopping(own.stop_marker):
            return
        read: dict[str, Any] = {**row, "error": None, "message": None, "images": b""}
        try:
            images = read_marked_frames(plan.dataset, plan.cameras, row["chunk"], plan.frames(row["chunk"]), plan.sizes)
            read["images"] = images.tobytes()
        except (VideoError, DatasetError) as error:
            read |= {"error": type(error).__name__, "message": str(error)}
        yield pa.Table.from_pylist([read], schema=READ_SCHEMA)


@functools.lru_cache(maxsize=1)
def _fetch_job(job: ray.ObjectRef) -> AskJob:
    """The job, once per process: with the metadata of a large dataset in it, it takes longer to read than an episode."""
    return ray.get(job)


class EpisodeAsker:
    """Episodes with their frames in; one status row per episode out, whose answers are in the journal then.

    Ray calls it from several threads where an endpoint is asked. Episodes whose turn had not come when the run was asked to
    stop are left out.
    """

    def __init__(self, job: ray.ObjectRef):
        self.job = _fetch_job(job)
        self.annotator = make_annotator(self.job.engine)
        self.text_of_row = dict(zip(self.job.plan.rows.tolist(), self.job.plan.texts, strict=True))

    def __call__(self, episodes: pa.Table) -> pa.Table:
        statuses = [self.ask_episode(row) for row in episodes.to_pylist()]
        return pa.Table.from_pylist([status for status in statuses if status is not None], schema=STATUS_SCHEMA)

    def ask_episode(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """Ask each question about one episode that the journal does not answer yet."""
        if is_stopping(self.job.stop_marker):
            return None
        status: dict[str, Any] = {"dataset": row["dataset"], "chunk": row["chunk"], "kinds": row["kinds"]}
        if row["error"] is not None:
            lost = len(row["kinds"])
            failed = {"errors": [row["error"]] * lost, "messages": [row["message"]] * lost, "attempts": [0] * lost}
            return {**status, **failed, "num_prompt_tokens": 0, "num_answer_tokens": 0}
        entries = [self._entry(kind, row["chunk"], row["images"]) for kind in row["kinds"]]
        every = [attempt for entry in entries for attempt in entry.attempts]
        return {
            **status,
            "errors": [None if entry.subtasks else "NoAnswerError" for entry in entries],
            "messages": [entry.error for entry in entries],
            "attempts": [len(entry.attempts) for entry in entries],
            "num_prompt_tokens": sum(attempt["num_prompt_tokens"] for attempt in every),
            "num_answer_tokens": sum(attempt["num_answer_tokens"] for attempt in every),
        }

    def _entry(self, kind: str, row: int, images: bytes) -> Entry:
        """The journal's, where a round before this one got it before its process died; else the VLM's."""
        plan = self.job.plan
        dataset, question, episode = plan.dataset, plan.questions[kind], int(plan.dataset.episode_index[row])
        there = read_entry(plan.run_folder, kind, episode)
        if there is not None and plan.is_answer(there, question):
            return there
        frames, rules = plan.frames(row), plan.rules(kind, row)
        height, width = plan.sizes[0][0], sum(size[1] for size in plan.sizes)
        pixels = np.frombuffer(images, dtype=np.uint8).reshape(len(frames), height, width, 3)
        length = int(dataset.length[row])
        marked = MarkedFrames(pixels, frames, dataset.fps, length)
        description = describe_episode(dataset.name, episode, self.text_of_row[row], rules.duration_s, marked.times_s)
        outcome = ask(self.annotator, question, rules, description, marked)
        attempts = [attempt._asdict() for attempt in outcome.attempts]
        entry = Entry(
            episode, kind, question.key, length, outcome.subtasks, outcome.is_uniform, outcome.error, attempts
        )
        write_entry(plan.run_folder, entry)
        return entry


def make_annotator(engine: LocalVlm | Endpoint) -> Annotator:
    """The engine, loaded, in the process that uses it."""
    if isinstance(engine, Endpoint):
        return OpenAIAnnotator(engine)
    prepare_actor(engine.device)
    return TransformersAnnotator(engine)
