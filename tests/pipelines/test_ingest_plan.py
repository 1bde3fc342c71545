"""Decode jobs: every missing chunk once, each job one file opened once, read from front to back."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarm_ray.core.episodes import frames_of
from sarm_ray.core.windows import Window, computed_frames, window_slots
from sarm_ray.data.lerobot import Dataset, EpisodeFiles
from sarm_ray.model.encoder import EFFICIENTNET, EncoderInfo
from sarm_ray.pipelines.ingest_plan import ChunkFailure, IngestPlan, one_per_chunk, plan_ingest, plan_jobs

CAMERA = "observation.images.base"
WINDOW = Window(8, 10)


def dataset_of(lengths: list[int], episodes_per_file: int, version: str, is_video: bool) -> Dataset:
    """Metadata alone: episodes one after the other in files of equally many."""
    length = np.array(lengths, dtype=np.int64)
    file = np.arange(len(lengths)) // episodes_per_file
    before = np.array(
        [length[file == file[row]][: row - int((file < file[row]).sum())].sum() for row in range(len(file))]
    )
    paths = tuple(f"file-{number}" for number in range(int(file[-1]) + 1))
    files = EpisodeFiles(paths, file, before / 30)
    return Dataset(
        root="/nowhere",
        name="drawn",
        version=version,
        fps=30.0,
        features={CAMERA: {"dtype": "video" if is_video else "image"}},
        episode_index=np.arange(len(lengths)) * 3,
        length=length,
        from_index=np.cumsum(length) - length,
        tasks=(("push",),) * len(lengths),
        data_files=files,
        videos={CAMERA: files} if is_video else {},
        files=dict.fromkeys(paths, "1-1"),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("features"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 700), min_size=1, max_size=6),
    st.integers(1, 4),
    st.sampled_from(["v3.0", "v2.1"]),
    st.booleans(),
    st.integers(1, 40),
    st.integers(1, 5),
    st.data(),
)
def test_every_missing_chunk_is_in_one_job(cache, encoder, lengths, per_file, version, is_video, stride, per_job, data):
    dataset = dataset_of(lengths, per_file, version, is_video)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1), min_size=1))))
    plan = plan_of(dataset, encoder, rows, stride, cache)
    todo = np.flatnonzero(plan.missing.any(axis=1))
    jobs = plan_jobs(plan, todo, 5, per_job).to_pylist()
    assert sorted(chunk for job in jobs for chunk in job["chunk"]) == todo.tolist()
    wanted = {}
    for row in rows.tolist():
        slots = window_slots(computed_frames(lengths[row], stride), lengths[row], WINDOW)
        wanted[row * 3] = set(slots.ravel().tolist())
    asked: dict[int, list[int]] = {episode: [] for episode in wanted}
    for job in jobs:
        assert 1 <= len(job["chunk"]) <= per_job
        assert (job["dataset"], job["fps"], job["image_key"]) == (5, 30.0, None if is_video else CAMERA)
        times = []
        for position, episode in enumerate(job["episode_index"]):
            row = episode // 3
            assert job["location"] == f"/nowhere/{dataset.data_files.path(row)}"
            assert job["from_timestamp"][position] == dataset.data_files.from_timestamp[row]
            frames = frames_of(job["frames"][position], job["start"][position])
            asked[episode] += frames.tolist()
            times += (job["from_timestamp"][position] + frames / 30).tolist()
        assert times == sorted(times)
    assert {episode: set(frames) for episode, frames in asked.items()} == wanted
    assert all(len(set(frames)) == len(frames) for frames in asked.values())


def plan_of(dataset: Dataset, encoder: EncoderInfo, rows: np.ndarray, stride: int, cache: str) -> IngestPlan:
    assert encoder.name == EFFICIENTNET
    return plan_ingest(dataset, CAMERA, encoder, "fp32", "float32", rows, stride, WINDOW, cache)


def test_failures_are_one_per_chunk_in_the_order_of_the_dataset():
    def failure(episode: int, start: int, message: str) -> ChunkFailure:
        return ChunkFailure(episode, CAMERA, start, start + 256, "VideoError", message)

    met = [failure(2, 256, "a"), failure(0, 512, "b"), failure(2, 0, "c"), failure(0, 512, "d")]
    assert one_per_chunk(met) == [met[1], met[2], met[0]]
    assert one_per_chunk([]) == []
    assert one_per_chunk([replace(met[3], attempts=2)])[0].attempts == 2
