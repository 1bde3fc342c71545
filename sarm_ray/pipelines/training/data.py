"""Features in, global batches out, in the planned order: what Ray Data hands to the training processes.

    pool rows -> training_rows (CPU tasks: the pool's features, states and targets once) -> one row per pass of a process

A row is the whole batch of one pass, so that batches are cut by the plan and by nothing that happens on the way. Rows are
laid out by step, pass, rank; Ray Train deals row k to rank k mod num_workers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray

from sarm_ray.core.augment import Augmentation, TrainingSlots, clean_slots, training_slots
from sarm_ray.core.draws import Stream, uniform
from sarm_ray.core.order import PADDING, PoolSteps, pool_batches
from sarm_ray.core.targets import episode_targets
from sarm_ray.core.windows import Window
from sarm_ray.data.features import StoreIndex, read_chunk
from sarm_ray.data.rows import read_rows
from sarm_ray.errors import DatasetError, name_list
from sarm_ray.model.checkpoint import StateNormalizer
from sarm_ray.pipelines.frame_features import frame_features
from sarm_ray.pipelines.runtime import ARROW, SMALL_TASK_SHARE, Rest, jobs_dataset
from sarm_ray.pipelines.training.labels import HeadLabels
from sarm_ray.pipelines.training.plan import TrainSource

POOLS_AT_ONCE = 2


@dataclass(frozen=True)
class TrainJob:
    """What the tasks that make batches need, put into the object store once.

    Args:
        sources: the datasets, and of each an index of every camera's feature store and the text number of each episode
            (N,) int64.
        chunks: (C, 2) int64, dataset and chunk, of training. lengths: (C,) int64, their frames.
        labels: of each head.
        augmentation, teacher_forcing: what is done to a sample, and how often the true stage is given.
        num_texts, num_phrases: task texts, and those of language perturbation, which are numbered after them.
        batch_size, num_passes: a step's samples, and in how many passes; groups of processes of any number share a job.
    """

    sources: tuple[TrainSource, ...]
    indices: tuple[tuple[StoreIndex, ...], ...]
    text: tuple[np.ndarray, ...]
    chunks: np.ndarray
    lengths: np.ndarray
    labels: dict[str, HeadLabels]
    state_key: str
    normalizer: StateNormalizer
    max_state_dim: int
    augmentation: Augmentation
    teacher_forcing: float
    seed: int
    num_texts: int
    num_phrases: int
    batch_size: int
    num_passes: int

    def samples_per_row(self, num_workers: int) -> int:
        return self.batch_size // (num_workers * self.num_passes)


@dataclass(frozen=True)
class Samples:
    """B samples, by reference: whose frames they show, and what each is.

    Args:
        index: (B,) int64, global frame index of the centre; -1 for padding.
        frames: (B, T) int64, global frame index of each slot.
        lengths: (B,) int64, valid slots.
        text: (B,) int64, text number.
        force: (B,) bool, the true stage is given.
        perturbed: (B,) bool, all targets are 0.
        weights: head -> (B,) float32, 1 where the sample counts for the head.
    """

    index: np.ndarray
    frames: np.ndarray
    lengths: np.ndarray
    text: np.ndarray
    force: np.ndarray
    perturbed: np.ndarray
    weights: dict[str, np.ndarray]


@dataclass(frozen=True)
class Frames:
    """U frames, by value.

    Args:
        index: (U,) int64, global frame indices, ascending.
        features: (U, num_cameras * D) as stored. states: (U, S) float32, normalised and padded.
        stage: head -> (U,) int64. tau: head -> (U,) float32.
    """

    index: np.ndarray
    features: np.ndarray
    states: np.ndarray
    stage: dict[str, np.ndarray]
    tau: dict[str, np.ndarray]


def batches_dataset(reference: ray.ObjectRef, steps: Sequence[PoolSteps], num_workers: int) -> ray.data.Dataset:
    """The chain: rows as `batch_layout` says, `num_passes * num_workers` of them per step."""
    pools = pa.table({name: [getattr(each, name) for each in steps] for name in PoolSteps._fields})
    dataset = jobs_dataset(pools, block_bytes=1).map_batches(
        training_rows,  # type: ignore[arg-type]  # ray's type knows no fn_kwargs
        batch_size=1,
        fn_kwargs={"job": reference, "num_workers": num_workers},
        num_cpus=SMALL_TASK_SHARE,
        compute=ray.data.TaskPoolStrategy(size=POOLS_AT_ONCE),
        **ARROW,
    )
    dataset.context.max_errored_blocks = 0  # a batch is never left out: a task that died is run again, by Ray
    dataset.context.custom_execution_callback_classes = [Rest]  # type: ignore[list-item]  # ray's base class is private
    return dataset


def batch_layout(job: TrainJob, num_workers: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Columns of a row: name -> dtype and shape of the array that its cell holds."""
    source = job.sources[0]
    b, t = job.samples_per_row(num_workers), source.window.num_slots + job.augmentation.max_rewind_steps
    store = source.ingest.store
    layout: dict[str, tuple[str, tuple[int, ...]]] = {
        "index": ("int64", (b,)),
        "vision": (store.dtype, (b, t, len(source.cameras) * store.feature_dim)),
        "states": ("float32", (b, t, job.max_state_dim)),
        "text": ("int64", (b,)),
        "lengths": ("int64", (b,)),
        "force": ("bool", (b,)),
    }
    for head in job.labels:
        layout[f"stage_{head}"] = ("int64", (b, t))
        layout[f"tau_{head}"] = ("float32", (b, t))
        layout[f"weight_{head}"] = ("float32", (b,))
        layout[f"count_{head}"] = ("int64", ())  # of the global batch
    return layout


def unpack_row(row: pa.Table, layout: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """The arrays of one row, over its own memory."""
    cells = {name: row[name].chunk(0)[0].as_buffer() for name in layout}
    return {name: np.frombuffer(cells[name], dtype=dtype).reshape(shape) for name, (dtype, shape) in layout.items()}


def training_rows(pools: pa.Table, job: ray.ObjectRef, num_workers: int) -> Iterator[pa.Table]:
    """One pool row in; `num_passes * num_workers` rows out for each of its steps."""
    own: TrainJob = ray.get(job)
    layout = batch_layout(own, num_workers)
    for pool in pools.to_pylist():
        for number, arrays in enumerate(pool_arrays(own, PoolSteps(**pool), num_workers)):
            step, part = divmod(number, own.num_passes * num_workers)
            cells = {name: [np.asarray(arrays[name], dtype=dtype).tobytes()] for name, (dtype, _) in layout.items()}
            types = {name: pa.array(cell, type=pa.large_binary()) for name, cell in cells.items()}
            yield pa.table({"step": [pool["step"] + step], "part": [part], **types})


def pool_arrays(job: TrainJob, steps: PoolSteps, num_workers: int) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of every pass of every process, for the steps of one pool. Its frames are loaded once."""
    chunk, offset = pool_batches(job.lengths, job.seed, steps.epoch, steps.pool, job.batch_size)
    used = slice(steps.first_batch, steps.first_batch + steps.num_batches)
    samples = make_samples(job, chunk[used].ravel(), offset[used].ravel(), steps.epoch)
    frames = load_frames(job, np.unique(samples.frames))
    for first in range(0, len(samples.index), job.batch_size):
        batch = slice(first, first + job.batch_size)
        counts: dict[str, np.ndarray] = {
            f"count_{head}": np.asarray((samples.lengths[batch] * weight[batch]).sum())
            for head, weight in samples.weights.items()
        }
        size = job.samples_per_row(num_workers)
        for start in range(first, first + job.batch_size, size):
            yield {**gather(samples, slice(start, start + size), frames), **counts}


def make_samples(job: TrainJob, chunk: np.ndarray, offset: np.ndarray, epoch: int) -> Samples:
    """Augmented samples around frames.

    Args:
        chunk, offset: (B,) int64, position in `job.chunks` and frame inside the chunk; PADDING repeats the first sample
            with weight 0.
        epoch: key of the draws.
    """
    padded = chunk == PADDING
    chunk, offset = np.where(padded, chunk[0], chunk), np.where(padded, offset[0], offset)
    number, place = job.chunks[chunk].T

    def augment(source: TrainSource, frame: np.ndarray, length: np.ndarray, index: np.ndarray) -> TrainingSlots:
        return training_slots(frame, length, index, source.window, job.augmentation, job.seed, epoch)

    samples = _samples(job, number, place, offset, augment)
    force = uniform(job.seed, epoch, samples.index, Stream.TEACHER_FORCING) < job.teacher_forcing
    weights = {head: np.where(padded, np.float32(0), weight) for head, weight in samples.weights.items()}
    index = np.where(padded, -1, samples.index)
    return Samples(index, samples.frames, samples.lengths, samples.text, force, samples.perturbed, weights)


def clean_samples(job: TrainJob, chunks: np.ndarray, offset: np.ndarray, live: bool) -> Samples:
    """Samples without augmentation: (B, 2) int64 dataset and chunk, (B,) int64 frame inside it; `live` cuts the future."""

    def augment(source: TrainSource, frame: np.ndarray, length: np.ndarray, _: np.ndarray) -> TrainingSlots:
        window = source.window
        return clean_slots(frame, length, Window(window.n_obs_steps, window.frame_gap, window.kind, live))

    return _samples(job, chunks[:, 0], chunks[:, 1], offset, augment)


def _samples(job: TrainJob, number: np.ndarray, place: np.ndarray, offset: np.ndarray, augment) -> Samples:
    parts, order = [], []
    for each in np.unique(number).tolist():
        chosen = np.flatnonzero(number == each)
        source, data = job.sources[each], job.sources[each].ingest
        row = data.chunks.row[place[chosen]]
        frame = data.chunks.start[place[chosen]] + offset[chosen]
        first = source.first_index + (np.cumsum(data.dataset.length) - data.dataset.length)[row]
        slots: TrainingSlots = augment(source, frame, data.dataset.length[row], first + frame)
        text = job.text[each][np.searchsorted(data.rows, row)]
        phrase = job.num_texts + np.floor(slots.phrase * job.num_phrases).astype(np.int64)
        parts.append(
            Samples(
                index=first + frame,
                frames=first[:, None] + slots.frames,
                lengths=slots.lengths,
                text=np.where(slots.perturbed, phrase, text),
                force=np.zeros(len(chosen), dtype=bool),
                perturbed=slots.perturbed,
                weights={head: own.annotated[each][row].astype(np.float32) for head, own in job.labels.items()},
            )
        )
        order.append(chosen)
    back = np.argsort(np.concatenate(order))

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])[back]

    weights = {head: np.concatenate([part.weights[head] for part in parts])[back] for head in job.labels}
    names = ("index", "frames", "lengths", "text", "force", "perturbed")
    return Samples(**{name: joined(name) for name in names}, weights=weights)


def gather(samples: Samples, chosen: slice, frames: Frames) -> dict[str, np.ndarray]:
    """The arrays of some samples, as `batch_layout` names them, without the counts."""
    place = np.searchsorted(frames.index, samples.frames[chosen])
    lost = samples.perturbed[chosen][:, None]
    arrays = {
        "index": samples.index[chosen],
        "vision": frames.features[place],
        "states": frames.states[place],
        "text": samples.text[chosen],
        "lengths": samples.lengths[chosen],
        "force": samples.force[chosen],
    }
    for head, weight in samples.weights.items():
        arrays[f"stage_{head}"] = np.where(lost, 0, frames.stage[head][place])
        arrays[f"tau_{head}"] = np.where(lost, np.float32(0), frames.tau[head][place])
        arrays[f"weight_{head}"] = weight[chosen]
    return arrays


def load_frames(job: TrainJob, index: np.ndarray) -> Frames:
    """Features, states and targets of frames: (U,) int64 ascending global indices -> Frames.

    Raises:
        DatasetError: a feature that is not in the store, a state that is NaN.
    """
    store = job.sources[0].ingest.store
    features = np.zeros((len(index), len(job.sources[0].cameras) * store.feature_dim), dtype=store.dtype)
    states = np.zeros((len(index), job.max_state_dim), dtype=np.float32)
    stage = {head: np.zeros(len(index), dtype=np.int64) for head in job.labels}
    tau = {head: np.zeros(len(index), dtype=np.float32) for head in job.labels}
    for number, source in enumerate(job.sources):
        lengths = source.ingest.dataset.length
        starts = source.first_index + np.cumsum(lengths) - lengths
        bounds = np.searchsorted(index, [starts[0], starts[-1] + lengths[-1]])
        rows = np.unique(np.searchsorted(starts, index[bounds[0] : bounds[1]], side="right") - 1)
        for row in rows.tolist():
            own = slice(*np.searchsorted(index, [starts[row], starts[row] + lengths[row]]))
            frame = index[own] - starts[row]
            features[own] = _episode_features(source, job.indices[number], row, frame)
            states[own] = episode_states(job, number, row)[frame]
            for head, labels in job.labels.items():
                if labels.annotated[number][row]:
                    targets = episode_targets(labels.segments[number], row, labels.durations[number], int(lengths[row]))
                    stage[head][own], tau[head][own] = targets[0][frame], targets[1][frame]
    return Frames(index, features, states, stage, tau)


def episode_states(job: TrainJob, number: int, row: int) -> np.ndarray:
    """An episode's states, normalised and padded: (L, S) float32.

    Raises:
        DatasetError: rows that cannot be read, or that are NaN: the episode and the column.
    """
    dataset = job.sources[number].ingest.dataset
    states = read_rows(dataset, row, [job.state_key])[job.state_key]
    states = states.reshape(len(states), -1).astype(np.float32)
    check_states(dataset, row, job.state_key, states, len(job.normalizer.mean))
    return job.normalizer.apply(states, job.max_state_dim)


def check_states(dataset, row: int, state_key: str, states: np.ndarray, width: int) -> None:
    """Raise a DatasetError unless the states (L, D) of an episode are numbers, as many as the model takes."""
    where = f"{dataset.name}: episode {dataset.episode_index[row]}: {state_key}"
    if states.shape[1] != width:
        raise DatasetError(f"{where} is {states.shape[1]} wide, not {width}")
    frame, column = np.nonzero(~np.isfinite(states))
    if len(frame):
        raise DatasetError(
            f"{where} is NaN or infinite in frame {frame[0]}, dimension {column[0]}; mend it, or leave the episode out "
            "with --episodes"
        )


def _episode_features(source: TrainSource, indices: Sequence[StoreIndex], row: int, frame: np.ndarray) -> np.ndarray:
    """Features of some frames of an episode: (k,) int64 -> (k, num_cameras * D)."""

    def read(camera: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        return read_chunk(source.cameras[camera].store, indices[camera], chunk)

    features, present = frame_features(source.cameras, row, frame, read)
    if not present.all():
        data = source.ingest
        episode, stores = data.dataset.episode_index[row], name_list(each.store.location for each in source.cameras)
        raise DatasetError(f"{stores}: features of episode {episode} vanished during the run")
    return features


def check_rows(job: TrainJob, number: int, rows: np.ndarray) -> None:
    """Raise a DatasetError for the first episode whose rows cannot be trained on: NaN states say where."""
    for row in rows.tolist():
        episode_states(job, number, row)


check_rows_task = ray.remote(num_cpus=SMALL_TASK_SHARE)(check_rows)
