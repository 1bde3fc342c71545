"""The batches as training processes get them: which samples, in which order, whatever the number of processes; and what is
in one, against a direct computation per sample.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.train
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig, RunConfig

from sarm_ray.core import order
from sarm_ray.core.augment import training_slots
from sarm_ray.core.draws import Stream, uniform
from sarm_ray.core.order import plan_steps, pool_batches
from sarm_ray.core.targets import episode_targets
from sarm_ray.data.features import read_chunk
from sarm_ray.data.rows import read_rows
from sarm_ray.pipelines.ingest import ingest
from sarm_ray.pipelines.runtime import connect
from sarm_ray.pipelines.stopping import stop_on_signal
from sarm_ray.pipelines.training.data import TrainJob, batch_layout, batches_dataset, pool_arrays, unpack_row
from sarm_ray.pipelines.training.group import rows_in_turn
from sarm_ray.pipelines.training.job import make_job
from sarm_ray.pipelines.training.plan import plan_training
from tests.datasets import CAMERA, write_dataset
from tests.pipelines.runs import needs_parity
from tests.pipelines.training.tiny import tiny_config
from tests.sampling import others_slow

pytestmark = needs_parity

LENGTHS = (50, 40, 30, 60)
CAMERAS = [CAMERA, "observation.images.wrist"]
BATCH = 12
SEED = 1000


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> TrainJob:
    """A real plan over a real store: 180 frames of two cameras, the third episode without annotation."""
    folder = tmp_path_factory.mktemp("batches")
    root = write_dataset(folder / "data", "v2.1", LENGTHS, annotated=True, cameras=CAMERAS)
    lines = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
    for name in [name for name in lines[2] if name.startswith("dense_")]:
        lines[2][name] = None
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tiny_config(
        folder / "run", folder / "c", dataset=str(root), image_key=CAMERAS, batch_size=BATCH, val_fraction=0.0,
        model={"frame_gap": 5},
    )  # fmt: skip
    with connect(None) as cluster:
        plan = plan_training(config, cluster)
        folder.joinpath("run").mkdir()
        with stop_on_signal(str(folder / "run")) as stop:
            assert ingest([source.cameras for source in plan.sources], cluster, stop, True).failures == [[]]
    return make_job(plan, config, [frozenset()])


def steps_of_two_epochs(job: TrainJob) -> list:
    return [each for each in plan_steps(job.lengths, job.seed, BATCH, 0, 1000) if each.epoch < 2]


def rows_of(job: TrainJob, steps: list, num_workers: int) -> list[dict]:
    """The rows of the chain, in order, on the session's Ray."""
    layout = batch_layout(job, num_workers)
    found = []
    dataset = batches_dataset(ray.put(job), steps, num_workers)
    dataset.context.execution_options.preserve_order = True  # as rows_in_turn has it
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert batch.num_rows == 1
        arrays = {name: array.copy() for name, array in unpack_row(batch, layout).items()}
        found.append({"step": batch["step"][0].as_py(), "part": batch["part"][0].as_py(), **arrays})
    return found


def note_indices(options: dict) -> None:
    """What a training process sees, in a file of its own."""
    layout, rank = options["layout"], ray.train.get_context().get_world_rank()
    rows = ray.train.get_dataset_shard("train").iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=2
    )
    seen = [[row["step"][0].as_py(), row["part"][0].as_py(), unpack_row(row, layout)["index"].tolist()] for row in rows]
    Path(options["folder"], f"rank-{rank}.json").write_text(json.dumps(seen))


def seen_by_ranks(job: TrainJob, folder: Path, num_workers: int) -> list[list]:
    """Through a real group, with the data config of training/group.py; a quarter of a core each."""
    folder.mkdir()
    TorchTrainer(
        note_indices,
        train_loop_config={"layout": batch_layout(job, num_workers), "folder": str(folder)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 0.25}),
        run_config=RunConfig(name="seen", storage_path=str(folder), logging_config=LoggingConfig(log_level="ERROR")),
        datasets={"train": batches_dataset(ray.put(job), steps_of_two_epochs(job), num_workers)},
        dataset_config=rows_in_turn(),
    ).fit()
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(num_workers)]


@pytest.mark.parametrize(("num_workers", "num_passes"), others_slow([(1, 1), (2, 2), (3, 1)], [(2, 2)]))
def test_each_rank_sees_its_part_of_the_planned_batches(job, tmp_path, num_workers, num_passes):
    own = replace(job, num_passes=num_passes)
    ranks = seen_by_ranks(own, tmp_path / "group", num_workers)
    num_steps = sum(each.num_batches for each in steps_of_two_epochs(job))
    planned = planned_indices(job)
    assert len(planned) == num_steps == 30
    size = BATCH // (num_workers * num_passes)
    for rank, seen in enumerate(ranks):
        expected = [
            [step, part * num_workers + rank, planned[step][start : start + size]]
            for step in range(num_steps)
            for part in range(num_passes)
            for start in [(part * num_workers + rank) * size]
        ]
        assert seen == expected
    for epoch in (0, 1):
        centres = Counter(index for seen in ranks for step, _, part in seen if step // 15 == epoch for index in part)
        assert centres == dict.fromkeys(range(sum(LENGTHS)), 1)


def planned_indices(job: TrainJob) -> dict[int, list[int]]:
    """Step -> global frame indices of its batch. One chunk per episode, as all are short."""
    starts = np.cumsum([0, *LENGTHS])
    found = {}
    for each in steps_of_two_epochs(job):
        chunk, offset = pool_batches(job.lengths, job.seed, each.epoch, each.pool, BATCH)
        for number in range(each.num_batches):
            index = np.where(chunk[number] < 0, -1, starts[chunk[number]] + offset[number])
            found[each.step + number] = index.tolist()
    return found


def test_what_is_in_a_batch(job):
    """Each sample of an epoch by itself, from the store, the rows and the annotation."""
    source, starts = job.sources[0], np.cumsum([0, *LENGTHS])
    features = [
        np.concatenate(
            [
                read_chunk(camera.store, index, number)[0]
                for camera, index in zip(source.cameras, job.indices[0], strict=True)
            ],
            axis=1,
        )
        for number in range(len(LENGTHS))
    ]
    assert [camera.camera for camera in source.cameras] == CAMERAS
    assert not (features[0][:50, : features[0].shape[1] // 2] == features[0][:50, features[0].shape[1] // 2 :]).all()
    states = [read_rows(source.ingest.dataset, row, [job.state_key])[job.state_key] for row in range(len(LENGTHS))]
    phrases, unannotated = 0, 0
    for arrays in (each for steps in steps_of_two_epochs(job)[1:] for each in pool_arrays(job, steps, 1)):
        for head, labels in job.labels.items():
            counted = (arrays["lengths"] * arrays[f"weight_{head}"]).sum()
            assert arrays[f"count_{head}"] == counted
            assert counted <= BATCH * 13
            assert labels.annotated[0].tolist() == ([True] * 4 if head == "sparse" else [True, True, False, True])
        for place, index in enumerate(arrays["index"].tolist()):
            row = int(np.searchsorted(starts, index, side="right")) - 1
            slots = training_slots(
                np.array([index - starts[row]]),
                LENGTHS[row],
                np.array([index]),
                source.window,
                job.augmentation,
                SEED,
                1,
            )
            frames = slots.frames[0]
            assert arrays["lengths"][place] == slots.lengths[0]
            np.testing.assert_array_equal(arrays["vision"][place], features[row][frames])
            raw = np.stack([np.asarray(states[row][frame], dtype=np.float32).ravel() for frame in frames])
            expected = (raw - job.normalizer.mean) / (job.normalizer.std + 1e-8)
            np.testing.assert_allclose(arrays["states"][place][:, :6], expected, rtol=1e-5, atol=1e-6)
            assert not arrays["states"][place][:, 6:].any()
            perturbed = bool(slots.perturbed[0])
            text = job.num_texts + int(slots.phrase[0] * job.num_phrases) if perturbed else job.text[0][row]
            assert arrays["text"][place] == text
            phrases += perturbed
            draw = uniform(SEED, 1, np.array([index]), Stream.TEACHER_FORCING)[0]
            assert arrays["force"][place] == (draw < job.teacher_forcing)
            for head, labels in job.labels.items():
                annotated = bool(labels.annotated[0][row])
                assert arrays[f"weight_{head}"][place] == float(annotated)
                unannotated += not annotated
                if perturbed or not annotated:
                    assert not arrays[f"stage_{head}"][place].any()
                    assert not arrays[f"tau_{head}"][place].any()
                else:
                    stage, tau = episode_targets(labels.segments[0], row, labels.durations[0], LENGTHS[row])
                    np.testing.assert_array_equal(arrays[f"stage_{head}"][place], stage[frames])
                    np.testing.assert_array_equal(arrays[f"tau_{head}"][place], tau[frames].astype(np.float32))
    assert 10 < phrases < 70  # about a fifth of 180
    assert unannotated == LENGTHS[2]


def test_padding_counts_for_nothing(job):
    own = replace(job, batch_size=50)
    (steps,) = plan_steps(own.lengths, own.seed, 50, 0, 4)
    *_, last = pool_arrays(own, steps, 1)
    assert (last["index"] == -1).tolist() == [False] * 30 + [True] * 20
    for head in own.labels:
        assert not last[f"weight_{head}"][30:].any()
        assert last[f"count_{head}"] == (last["lengths"] * last[f"weight_{head}"])[:30].sum()
    assert np.isfinite(last["vision"]).all()


def test_going_on_in_the_middle_of_a_pool_gives_the_same_rows(job):
    straight = rows_of(job, plan_steps(job.lengths, job.seed, BATCH, 0, 20), 2)
    resumed = rows_of(job, plan_steps(job.lengths, job.seed, BATCH, 7, 20), 2)
    assert [(row["step"], row["part"]) for row in straight] == [(step, part) for step in range(20) for part in (0, 1)]
    assert len(resumed) == 26
    for ours, theirs in zip(resumed, straight[14:], strict=True):
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    assert len(LENGTHS) < order.POOL_CHUNKS  # one pool: step 7 is in its middle
