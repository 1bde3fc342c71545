"""From the plan and what ingest could read to what the tasks and processes of a training run share."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import ray

from sarm_ray.config.train import TrainConfig
from sarm_ray.console import tell
from sarm_ray.core.augment import Augmentation
from sarm_ray.core.phrases import random_phrases
from sarm_ray.data.failures import CHUNKS, write_failed
from sarm_ray.errors import DatasetError
from sarm_ray.model.encoder import encode_texts
from sarm_ray.pipelines.ingest import IngestReport
from sarm_ray.pipelines.ingest_plan import ChunkFailure, one_per_chunk
from sarm_ray.pipelines.rounds import cause_of
from sarm_ray.pipelines.runtime import call_aside, make_aside
from sarm_ray.pipelines.training.data import TrainJob, check_rows_task
from sarm_ray.pipelines.training.plan import TrainPlan, training_lengths
from sarm_ray.pipelines.training.validation import hold_out

NUM_PHRASES = 256
ROWS_PER_CHECK = 256


def unreadable_episodes(
    plan: TrainPlan, ingested: IngestReport, config: TrainConfig, quiet: bool
) -> tuple[list[ChunkFailure], list[frozenset[int]]]:
    """Chunks that could not be encoded, and the episodes that are therefore left out, as positions in each table."""
    failures, left_out = [], []
    for source, own in zip(plan.sources, ingested.failures, strict=True):
        failures += one_per_chunk(own)
        episodes = {failure.episode_index for failure in own}
        left_out.append(
            frozenset(np.flatnonzero(np.isin(source.ingest.dataset.episode_index, list(episodes))).tolist())
        )
        if episodes and not quiet:
            tell([f"{source.ingest.dataset.name}: {len(episodes)} episodes cannot be read and are left out"])
        if not len(source.episodes(held_out=False, left_out=left_out[-1])):
            first = own[0]
            why = f"episode {first.episode_index}: {first.message}"
            raise DatasetError(f"{source.ingest.dataset.name}: no episode to train on can be read; {why}")
    write_failed(config.output_dir, [asdict(failure) for failure in failures], CHUNKS)
    return failures, left_out


def check_all_rows(reference: ray.ObjectRef, plan: TrainPlan, left_out: Sequence[frozenset[int]]) -> None:
    """Look at the states of all episodes, in tasks.

    Raises:
        DatasetError: the first episode whose states cannot be trained on.
    """
    try:
        ray.get([check_rows_task.remote(reference, number, rows) for number, rows in _rows_to_check(plan, left_out)])
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from error


def make_job(plan: TrainPlan, config: TrainConfig, left_out: Sequence[frozenset[int]]) -> TrainJob:
    chunks, lengths = training_lengths(plan, left_out)
    number = {text: place for place, text in enumerate(plan.texts())}
    options = config.augmentation
    return TrainJob(
        sources=plan.sources,
        indices=tuple(tuple(camera.index() for camera in source.cameras) for source in plan.sources),
        text=tuple(np.array([number[text] for text in source.texts], dtype=np.int64) for source in plan.sources),
        chunks=chunks,
        lengths=lengths,
        labels=plan.labels,
        state_key=config.state_key,
        normalizer=plan.normalizer,
        max_state_dim=config.model.max_state_dim,
        augmentation=Augmentation(
            rewind_probability=options.rewind_probability,
            max_rewind_steps=config.model.max_rewind_steps,
            language_perturbation_probability=options.language_perturbation_probability,
            future_cut_probability=options.future_cut_probability,
            past_cut_probability=options.past_cut_probability,
        ),
        teacher_forcing=options.teacher_forcing_probability,
        seed=config.seed,
        num_texts=len(number),
        num_phrases=NUM_PHRASES,
        batch_size=config.batch_size,
        num_passes=config.gradient_accumulation_steps,
    )


def put_held_out(
    reference: ray.ObjectRef, plan: TrainPlan, left_out: Sequence[frozenset[int]], config: TrainConfig
) -> ray.ObjectRef | None:
    """A `HeldOut`, or None where nothing is held out. On the driver's node: any other may be lost during the run."""
    pairs = [
        np.stack([np.full(len(own), number), own], axis=1)
        for number, (source, out) in enumerate(zip(plan.sources, left_out, strict=True))
        for own in [source.chunks(held_out=True, left_out=out)]
    ]
    chunks = np.concatenate(pairs)
    return make_aside(hold_out, reference, chunks, config.val_frames) if len(chunks) else None


def encode_run_texts(plan: TrainPlan, config: TrainConfig) -> np.ndarray:
    """(M, E) float32: task texts, then phrases that have nothing to do with them. In a task: the driver loads no network."""
    texts = [*plan.texts(), *random_phrases(config.seed, NUM_PHRASES)]
    return np.asarray(call_aside(encode_texts, plan.encoder, texts), dtype=np.float32)


def _rows_to_check(plan: TrainPlan, left_out: Sequence[frozenset[int]]) -> list[tuple[int, np.ndarray]]:
    """Episodes whose rows are looked at before the first step: (dataset, rows), some hundreds at a time."""
    return [
        (number, rows[first : first + ROWS_PER_CHECK])
        for number, (source, out) in enumerate(zip(plan.sources, left_out, strict=True))
        for rows in [np.setdiff1d(source.ingest.rows, list(out))]
        for first in range(0, len(rows), ROWS_PER_CHECK)
    ]
