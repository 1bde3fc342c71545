"""Checks that need the metadata and the list of files alone: vectorised, so that 100,000 episodes take a second."""

from typing import Any

import numpy as np
import pyarrow as pa

from sarm_ray.data.inspection.findings import (
    Finding,
    LengthFacts,
    count,
    episode_list,
    leave_out,
)
from sarm_ray.data.lerobot import Dataset, EpisodeFiles
from sarm_ray.errors import name_list

WINDOW_FRAMES = 240  # 8 steps of 30 frames: what one window of SARM spans by default
USUAL_FPS = (5, 120)
OUTLIER = 3  # times longer or shorter than the median
SMALL_FILE = 0.1  # of the median number of bytes per frame
INDEX_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def check_totals(dataset: Dataset, info: dict[str, Any], num_tasks: int | None) -> list[Finding]:
    """info.json's totals against the tables and the files.

    Args:
        dataset, info: the dataset and its info.json.
        num_tasks: rows of the table of tasks; None where there is no such table.
    """
    num_episodes, last = len(dataset.length), int(dataset.episode_index[-1]) + 1
    truth = {"total_episodes": num_episodes, "total_frames": int(dataset.length.sum())}
    if num_tasks is not None:
        truth["total_tasks"] = num_tasks
    if dataset.version != "v3.0":
        truth["total_videos"] = sum(sum(p in dataset.files for p in f.paths) for f in dataset.videos.values())
        truth["total_chunks"] = -(-last // int(info.get("chunks_size") or 1000))
    wrong = [f"{key} is {info[key]}, not {value}" for key, value in truth.items() if key in info and info[key] != value]
    splits = info.get("splits")
    for name, span in (splits if isinstance(splits, dict) else {}).items():
        stop = str(span).rpartition(":")[2]
        if stop.isdigit() and int(stop) > last:
            wrong.append(f"split {name!r} is {span} of {num_episodes} episodes")
    if wrong:
        told = f"meta/info.json contradicts the tables: {'; '.join(wrong)}"
        return [
            Finding("metadata", "warn", told, "correct meta/info.json: LeRobot believes it, sarm-ray counts itself")
        ]
    totals = f"{count(num_episodes, 'episode')}, {count(int(dataset.length.sum()), 'frame')}"
    return [Finding("metadata", "ok", f"meta/info.json's totals agree with the tables and files: {totals}")]


def check_placement(dataset: Dataset, columns: pa.Table | None) -> list[Finding]:
    """Where the metadata put each episode: numbers, global frames, and v3.0's place inside a video.

    Args:
        dataset: the dataset.
        columns: v3.0's dataset_to_index and videos/<camera>/to_timestamp, as far as there are; None for v2.x.
    """
    findings = [
        Finding("metadata", "warn", text, "correct the path template: LeRobot itself does not find these files")
        for text in dataset.notices
    ]
    if not np.array_equal(dataset.episode_index, np.arange(len(dataset.length))):
        told = f"episodes are numbered {dataset.episode_index[0]} to {dataset.episode_index[-1]} with gaps"
        findings.append(
            Finding(
                "metadata", "warn", told, "renumber them from 0: LeRobot takes the place in the table for the number"
            )
        )
    first = np.cumsum(dataset.length) - dataset.length
    wrong = dataset.from_index != first
    if columns is not None and "dataset_to_index" in columns.column_names:
        wrong |= columns["dataset_to_index"].to_numpy() != dataset.from_index + dataset.length
    if wrong.any():
        told = f"dataset_from_index and dataset_to_index contradict the lengths in {_some(dataset, wrong)}"
        action = (
            "rewrite them in meta/episodes: progress is joined to frames by this index, so weights go to wrong frames"
        )
        findings.append(Finding("metadata", "bad", told, action))
    for camera, files in dataset.videos.items():
        key = f"videos/{camera}/to_timestamp"
        stop = columns[key].to_numpy() if columns is not None and key in columns.column_names else None
        findings += _check_times(dataset, camera, files, stop)
    return findings


def _check_times(dataset: Dataset, camera: str, files: EpisodeFiles, stop: np.ndarray | None) -> list[Finding]:
    findings, tolerance_s = [], 0.5 / dataset.fps
    start, seconds = files.from_timestamp, dataset.length / dataset.fps
    strange = ~np.isfinite(start) | (start < 0)
    if stop is not None:
        strange |= ~(np.abs(stop - start - seconds) <= tolerance_s)
    if strange.any():
        told = f"from_timestamp and to_timestamp contradict the length in {_some(dataset, strange)}"
        action = "rewrite them in meta/episodes (seconds; length / fps apart): frames are found by from_timestamp"
        findings.append(Finding(camera, "bad", told, action))
    order = np.lexsort((start, files.file))
    before, after = order[:-1], order[1:]
    overlap = (files.file[before] == files.file[after]) & (start[after] < start[before] + seconds[before] - tolerance_s)
    if overlap.any():
        row = int(after[overlap][0])
        told = (
            f"{_some(dataset, after[overlap])} begin before the episode ahead in the same file ends "
            f"({files.path(row)} at {start[row]:.3f} s)"
        )
        findings.append(
            Finding(camera, "bad", told, "correct from_timestamp in meta/episodes: they show others' frames")
        )
    return findings


def check_features(dataset: Dataset) -> list[Finding]:
    """What info.json declares of the features, against itself."""
    findings = []
    absent = [name for name in INDEX_COLUMNS if name not in dataset.features]
    if absent:
        told = f"meta/info.json declares no {name_list(absent)}"
        action = (
            "add the column for LeRobot; sarm-ray takes rows in the file's order" if "frame_index" in absent else ""
        )
        findings.append(Finding("metadata", "warn", told, action or "add the column: LeRobot needs it"))
    for key, spec in dataset.features.items():
        names, shape = flat_names(spec.get("names")), declared_shape(spec)
        if shape is None:
            told = f"shape {spec.get('shape')!r} in meta/info.json is no list of sizes"
            findings.append(Finding(key, "bad", told, "correct meta/info.json"))
        elif key in dataset.cameras:
            findings += _check_declared_video(dataset, key, spec)
        elif names and len(shape) == 1 and len(names) != shape[0]:
            told = f"{count(len(names), 'name')} for {count(int(shape[0]), 'dimension')} in meta/info.json"
            findings.append(Finding(key, "warn", told, "correct names or shape in meta/info.json"))
    if not dataset.cameras:
        findings.append(Finding("cameras", "bad", "meta/info.json declares no camera", "SARM needs one: record video"))
    return findings


def _check_declared_video(dataset: Dataset, camera: str, spec: dict) -> list[Finding]:
    declared = declared_video(spec)
    fps, size = declared.get("video.fps"), declared_size(spec)
    wrong = []
    if isinstance(fps, int | float) and abs(fps - dataset.fps) > 1e-6:
        wrong.append(f"video.fps is {fps:g}, fps is {dataset.fps:g}")
    for name, value in zip(("height", "width"), size or (), strict=False):
        other = declared.get(f"video.{name}")
        if isinstance(other, int | float) and other != value:
            wrong.append(f"video.{name} is {other:g}, the shape says {value}")
    if wrong:
        action = "correct meta/info.json; what the opened videos say is under their camera"
        return [Finding(camera, "warn", f"meta/info.json contradicts itself: {'; '.join(wrong)}", action)]
    return []


def check_files(dataset: Dataset, sizes: dict[str, np.ndarray]) -> list[Finding]:
    """Every file that an episode refers to is there and is not empty; none is suspiciously small. Sizes: `file_sizes`."""
    findings = []
    kinds: list[tuple[str, EpisodeFiles | None]] = [("rows", dataset.data_files)]
    kinds += [(camera, dataset.videos.get(camera)) for camera in dataset.cameras if dataset.is_video(camera)]
    filled = [topic for topic, _ in kinds[1:] if (sizes[topic] > 0).any()]
    filled += [camera for camera in dataset.cameras if not dataset.is_video(camera)]
    for topic, files in kinds:
        size = sizes[topic]
        if topic != "rows" and not (size > 0).any():
            told = "declared in meta/info.json, but none of its files is there"
            other = f"score takes {filled[0]}" if len(filled) == 1 else "choose another with --image-key"
            other = f"remove it from meta/info.json; {other}" if filled else "fetch or record the videos"
            findings.append(Finding(topic, "warn" if filled else "bad", told, other))
            continue
        assert files is not None
        small = _small_files(dataset, files, size)
        for what, mask in (("missing", size == -1), ("empty", size == 0)):
            if mask.any():
                rows = np.flatnonzero(mask[files.file])
                told = f"{mask.sum():,} of {count(len(size), 'file')} {'is' if mask.sum() == 1 else 'are'} {what}: "
                told += (
                    f"{name_list([files.paths[i] for i in np.flatnonzero(mask)], 3)} ({episode_list(dataset, rows)})"
                )
                action = f"fetch or record again; else {leave_out(dataset, rows)}"
                findings.append(Finding(topic, "bad", told, action))
        if small.any():
            told = f"{count(int(small.sum()), 'file')} with less than {SMALL_FILE:.0%} of the usual bytes per frame: "
            told += name_list([files.paths[i] for i in np.flatnonzero(small)], 3)
            findings.append(Finding(topic, "warn", told, "look at them: cut short, or nothing moves in them"))
    if not findings:
        total = sum(len(files.paths) for _, files in kinds if files is not None)
        findings.append(Finding("files", "ok", f"all {count(total, 'file')} of the episodes are there, none is empty"))
    return findings


def suspicious_rows(dataset: Dataset, sizes: dict[str, np.ndarray], limit: int) -> np.ndarray:
    """The first episodes of files that are suspiciously small: worth opening besides the sample. (k,) int64."""
    rows = []
    for topic, files in (("rows", dataset.data_files), *dataset.videos.items()):
        small = np.flatnonzero(_small_files(dataset, files, sizes[topic]))[:limit]
        rows += [int(np.flatnonzero(files.file == file)[0]) for file in small]
    return np.unique(np.array(rows, dtype=np.int64))[:limit]


def file_sizes(dataset: Dataset) -> dict[str, np.ndarray]:
    """Bytes of each file by its stamp, -1 where it is not there: `rows` or a camera -> (F,) int64, in the order of paths."""
    sizes = {}
    for topic, files in (("rows", dataset.data_files), *dataset.videos.items()):
        stamps = (dataset.files.get(path) for path in files.paths)
        sizes[topic] = np.array([-1 if s is None else int(s.split("-", 1)[0]) for s in stamps], dtype=np.int64)
    for camera in dataset.cameras:
        none = np.zeros(0, dtype=np.int64)  # a camera that the episode table has no place for
        sizes.setdefault(camera, none if dataset.is_video(camera) else sizes["rows"])
    return sizes


def _small_files(dataset: Dataset, files: EpisodeFiles, size: np.ndarray) -> np.ndarray:
    """Files with far fewer bytes per frame than half of the others: (F,) bool."""
    frames = np.bincount(files.file, weights=dataset.length, minlength=len(files.paths))
    share = size / np.maximum(frames, 1)
    there = size > 0
    return (
        there & (share < SMALL_FILE * np.median(share[there])) if there.sum() > 2 else np.zeros(len(size), dtype=bool)
    )


def check_lengths(dataset: Dataset) -> list[Finding]:
    """Episodes shorter than a window, and those far from the others."""
    length, findings = dataset.length, []
    short = length <= WINDOW_FRAMES
    if short.any():
        told = f"{short.sum():,} of {count(len(length), 'episode')} no longer than one window ({WINDOW_FRAMES} frames: "
        told += f"8 steps of 30): {_some(dataset, short)}"
        action = "training sees mostly repeated first and last frames there; train with a smaller frame_gap"
        findings.append(Finding("lengths", "warn" if short.mean() > 0.5 else "note", told, action))
    median = float(np.median(length))
    for what, mask in (("longer", length > OUTLIER * median), ("shorter", length * OUTLIER < median)):
        if mask.any():
            extreme = int(length[mask].max() if what == "longer" else length[mask].min())
            told = f"{_some(dataset, mask)}: more than {OUTLIER} times {what} than the median "
            told += f"({extreme:,} frames against {median:,.0f})"
            action = f"look at them (pauses, cut-off or joined takes?); {leave_out(dataset, np.flatnonzero(mask))}"
            findings.append(Finding("lengths", "warn", told, action))
    if not findings:
        told = f"all longer than one window ({WINDOW_FRAMES} frames), none {OUTLIER} times longer or shorter than the median"
        findings.append(Finding("lengths", "ok", told))
    return findings


def check_fps(dataset: Dataset) -> list[Finding]:
    fps, low, high = dataset.fps, *USUAL_FPS
    if not low <= fps <= high:
        action = "check fps in meta/info.json: frames are found in the videos by it"
        return [Finding("fps", "warn", f"{fps:g} frames per second is unusual ({low} to {high})", action)]
    if fps != round(fps):
        return [Finding("fps", "note", f"{fps:g} is no whole number", "LeRobot wants one; sarm-ray takes it as it is")]
    if fps != 30:
        told = f"SARM's usual window of 8 steps of 30 frames spans {8 * 30 / fps:.3g} s here, at 30 fps it is 8 s"
        action = (
            "a checkpoint with sarm_ray.json is converted by time; for LeRobot's own, train at this rate or resample"
        )
        return [Finding("fps", "note", told, action)]
    return [Finding("fps", "ok", "30, for which SARM's default window is made")]


def length_facts(length: np.ndarray) -> LengthFacts:
    p05, median, p95 = (float(value) for value in np.percentile(length, [5, 50, 95]))
    return LengthFacts(int(length.min()), p05, median, p95, int(length.max()))


def flat_names(names: object) -> list[str]:
    """Names of a feature's dimensions: a list, a list in a list, or an object whose values are lists."""
    if isinstance(names, dict):
        names = list(names.values()) if all(isinstance(value, list) for value in names.values()) else list(names)
    if not isinstance(names, list):
        return []
    return [text for name in names for text in (flat_names(name) if isinstance(name, list) else [str(name)])]


def declared_shape(spec: dict) -> tuple[int, ...] | None:
    """A feature's sizes, (1,) where none are given; None for something else."""
    shape = spec.get("shape")
    if shape is None or shape == []:
        return (1,)
    if isinstance(shape, list) and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        return tuple(shape)
    return None


def declared_video(spec: dict) -> dict:
    """What info.json says of a camera's videos: `info`, or `video_info` of older datasets."""
    declared = spec.get("info") or spec.get("video_info")
    return declared if isinstance(declared, dict) else {}


def declared_size(spec: dict) -> tuple[int, int] | None:
    """Height and width of a camera's declared shape, whichever place the channels have."""
    shape, names = declared_shape(spec), flat_names(spec.get("names"))
    if shape is None or len(shape) != 3:
        return None
    if "height" in names and "width" in names and len(names) == 3:
        return shape[names.index("height")], shape[names.index("width")]
    return (shape[1], shape[2]) if shape[0] in (1, 3, 4) else (shape[0], shape[1])


def _some(dataset: Dataset, which: np.ndarray) -> str:
    """Names of the episodes of a mask (E,) or of rows (k,)."""
    return episode_list(dataset, np.flatnonzero(which) if which.dtype == bool else which)
