"""The inspection itself: metadata of everything, the list of all files, and a sample of the files opened."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from sarm_ray.data.annotation_io import read_annotations
from sarm_ray.data.episode_table import read_episode_columns
from sarm_ray.data.inspection.cameras import camera_facts, check_camera
from sarm_ray.data.inspection.findings import VERDICTS, Finding, Inspection, SampleFacts
from sarm_ray.data.inspection.footage import Footage, Span, open_images, open_video
from sarm_ray.data.inspection.labels import (
    annotation_facts,
    check_annotations,
    check_tasks,
    task_facts,
)
from sarm_ray.data.inspection.metadata import (
    check_features,
    check_files,
    check_fps,
    check_lengths,
    check_placement,
    check_totals,
    file_sizes,
    length_facts,
    suspicious_rows,
)
from sarm_ray.data.inspection.rows import (
    SampledRows,
    check_rows,
    check_statistics,
    check_vectors,
    read_statistics,
    sample_rows,
    vector_facts,
)
from sarm_ray.data.json_files import read_json
from sarm_ray.data.lerobot import Dataset, fetch_files, open_dataset
from sarm_ray.data.rows import read_task_table
from sarm_ray.errors import DatasetError

SEED = 0
THREADS = 8
DEFAULT_SAMPLE = 20
MOST_FRAMES = 100_000_000  # 38 days at 30 fps: a longer episode is a slip of the metadata
T = TypeVar("T")


def inspect_dataset(name: str, revision: str | None = None, sample: int = DEFAULT_SAMPLE) -> Inspection:
    """Look a dataset over. Nothing is written; of a Hub dataset the sample's files are downloaded.

    Args:
        name: a local folder, an fsspec URL or a Hub id.
        revision: of a Hub dataset.
        sample: episodes whose files are opened; up to a quarter more where files are suspiciously small. 0 opens none.

    Raises:
        DatasetError: it cannot be opened at all.
    """
    began = time.perf_counter()
    dataset = open_dataset(name, revision)
    if (dataset.length > MOST_FRAMES).any():
        row = int(np.argmax(dataset.length))
        raise DatasetError(f"{dataset.root}: episode {dataset.episode_index[row]} has {dataset.length[row]:,} frames")
    opened = time.perf_counter()
    info = read_json(dataset.root, "meta/info.json")
    sizes = file_sizes(dataset)
    findings: list[Finding] = []
    tasks = _attempt(read_task_table, dataset, "tasks", findings) or {}
    annotations = _attempt(read_annotations, dataset, "annotations", findings) or {}
    columns = _attempt(_placement_columns, dataset, "metadata", findings)
    statistics = _attempt(read_statistics, dataset, "statistics", findings)
    findings += [*check_totals(dataset, info, len(tasks) or None), *check_placement(dataset, columns)]
    findings += [*check_features(dataset), *check_files(dataset, sizes), *check_lengths(dataset), *check_fps(dataset)]
    findings += [*check_tasks(dataset, tasks), *check_annotations(dataset, annotations)]
    findings += check_statistics(dataset, *statistics) if statistics else []
    read = time.perf_counter()
    rows = choose_sample(dataset, sizes, sample)
    sampled = _open_data(dataset, rows, sizes["rows"])
    footage = {
        camera: _open_videos(dataset, camera, rows, sizes[camera])
        if dataset.is_video(camera)
        else _open_images(dataset, camera, sampled)
        for camera in dataset.cameras
    }
    vectors = vector_facts(dataset, statistics[0] if statistics else {}, sampled)
    findings += [*check_vectors(dataset, vectors), *check_rows(dataset, sampled, tasks)]
    findings += [finding for camera, files in footage.items() for finding in check_camera(dataset, camera, files)]
    ended = time.perf_counter()
    return Inspection(
        name=dataset.name,
        root=dataset.root,
        version=dataset.version,
        robot_type=str(info["robot_type"]) if info.get("robot_type") else None,
        fps=dataset.fps,
        num_episodes=len(dataset.length),
        num_frames=int(dataset.length.sum()),
        hours=float(dataset.length.sum() / dataset.fps / 3600),
        lengths=length_facts(dataset.length),
        cameras=tuple(camera_facts(dataset, camera, sizes[camera], files) for camera, files in footage.items()),
        vectors=vectors,
        tasks=task_facts(dataset),
        annotations=annotation_facts(annotations),
        sample=_sample_facts(dataset, rows, footage, sampled),
        findings=tuple(sorted(findings, key=lambda finding: VERDICTS.index(finding.verdict))),
        seconds={"open": opened - began, "metadata": read - opened, "sample": ended - read, "total": ended - began},
    )


def choose_sample(dataset: Dataset, sizes: dict[str, np.ndarray], sample: int) -> np.ndarray:
    """Rows of the episodes to open: one at random from each of `sample` equal parts, the first and the last episode among
    them, and besides those of suspiciously small files. (k,) int64, ascending, the same every time.
    """
    num_episodes = len(dataset.length)
    if sample <= 0:
        return np.zeros(0, dtype=np.int64)
    edges = np.linspace(0, num_episodes, min(sample, num_episodes) + 1).astype(np.int64)
    rows = np.random.default_rng(SEED).integers(edges[:-1], edges[1:])
    rows[-1] = num_episodes - 1
    rows[0] = 0
    return np.union1d(rows, suspicious_rows(dataset, sizes, -(-sample // 4)))


def _attempt(read: Callable[[Dataset], T], dataset: Dataset, topic: str, findings: list[Finding]) -> T | None:
    """What a reader gives; where it cannot, a finding says so and the inspection goes on without."""
    try:
        return read(dataset)
    except DatasetError as error:
        findings.append(Finding(topic, "bad", str(error), "write this file anew"))
        return None


def _placement_columns(dataset: Dataset) -> pa.Table | None:
    if dataset.version != "v3.0":
        return None
    columns: dict[str, Any] = {f"videos/{camera}/to_timestamp": pa.float64() for camera in dataset.videos}
    return read_episode_columns(dataset, {"dataset_to_index": pa.int64(), **columns})


def _open_videos(dataset: Dataset, camera: str, rows: np.ndarray, size: np.ndarray) -> list[Footage]:
    """Open the files of a camera that hold the sampled episodes; those that are missing or empty are known already."""
    files = dataset.videos.get(camera)
    if files is None or not len(rows):
        return []
    rows = rows[size[files.file[rows]] > 0]
    fetch_files(dataset, rows, camera)
    sampled = set(rows.tolist())

    def open_one(file: int) -> Footage:
        inside = np.flatnonzero(files.file == file)
        inside = inside[np.argsort(files.from_timestamp[inside], kind="stable")]
        spans = tuple(Span(row, float(files.from_timestamp[row]), int(dataset.length[row])) for row in inside.tolist())
        path = files.paths[file]
        return open_video(dataset.location(path), path, int(size[file]), spans, sampled, dataset.fps)

    return _in_threads(open_one, np.unique(files.file[rows]).tolist())


def _open_images(dataset: Dataset, camera: str, sampled: list[SampledRows]) -> list[Footage]:
    """Pictures out of the data files that can be read."""

    def open_one(row: int) -> Footage:
        path, span = dataset.data_files.path(row), Span(row, 0.0, int(dataset.length[row]))
        episode = int(dataset.episode_index[row]) if dataset.version == "v3.0" else None
        return open_images(dataset.location(path), path, camera, span, episode)

    return _in_threads(open_one, [each.row for each in sampled if each.problem is None])


def _open_data(dataset: Dataset, rows: np.ndarray, size: np.ndarray) -> list[SampledRows]:
    rows = rows[size[dataset.data_files.file[rows]] > 0]
    fetch_files(dataset, rows)
    return _in_threads(lambda row: sample_rows(dataset, row), rows.tolist())


def _sample_facts(
    dataset: Dataset, rows: np.ndarray, footage: dict[str, list[Footage]], sampled: list[SampledRows]
) -> SampleFacts:
    return SampleFacts(
        episodes=tuple(dataset.episode_index[rows].tolist()),
        num_video_files=sum(len(files) for camera, files in footage.items() if dataset.is_video(camera)),
        num_data_files=len({each.path for each in sampled}),
        num_frames=sum(len(shown) for files in footage.values() for each in files for shown in each.pictures.values()),
    )


def _in_threads(work: Callable[[int], T], items: Iterable[int]) -> list[T]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))
