"""Recordings to a LeRobotDataset v3.0: videos and data files of several episodes each, statistics, tasks, annotations."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.video.frame
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.core.frame_targets import stage_numbers
from sarm_ray.core.targets import annotated_segments, temporal_proportions
from sarm_ray.demo.motion import Segment

CAMERA = "observation.images.top"
EPISODES_PER_FILE = 16
KEYFRAME_EVERY = 10  # frames
CRF = 20
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STATISTICS_EVERY = (8, 4)  # frames and pixels that the pictures' statistics are taken from
INTEGERS = ("frame_index", "episode_index", "index", "task_index")
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"


@dataclass(frozen=True)
class Recording:
    """An episode of F frames to be written.

    Args:
        task: its text.
        state, action: (F, D) float32.
        pictures: makes an iterator over the F pictures, (S, S, 3) uint8 each.
        outcome: of the episode table's column.
        annotation: `sparse` and `dense` -> segments; None where it is not annotated.
    """

    task: str
    state: np.ndarray
    action: np.ndarray
    pictures: Callable[[], Iterator[np.ndarray]]
    outcome: str
    annotation: dict[str, tuple[Segment, ...]] | None


@dataclass(frozen=True)
class Format:
    """What all episodes have in common.

    Args:
        robot: its name.
        fps: frames per second.
        size: side of the pictures, pixels.
        state_names: D names.
        stages: kind of annotation -> its stages in order.
    """

    robot: str
    fps: int
    size: int
    state_names: tuple[str, ...]
    stages: dict[str, tuple[str, ...]]


def write_lerobot(
    root: Path, form: Format, recordings: Sequence[Recording], frame_written: Callable[[], None] | None = None
) -> None:
    """Write a dataset.

    Args:
        root: its folder, which is made.
        form: what all episodes have in common.
        recordings: E of them; those of one file are drawn and encoded one after the other.
        frame_written: called after every frame.

    Raises:
        ValueError: a stage that no annotated episode has.
    """
    tasks = list(dict.fromkeys(recording.task for recording in recordings))
    rows = _rows(form, recordings, tasks)
    statistics: list[dict[str, np.ndarray]] = []
    for first in range(0, len(recordings), EPISODES_PER_FILE):
        together = slice(first, first + EPISODES_PER_FILE)
        place = {"chunk_index": 0, "file_index": first // EPISODES_PER_FILE}
        data = _make_folder(root / DATA_PATH.format(**place))
        with pq.ParquetWriter(data, rows[0].schema) as writer:
            for table in rows[together]:
                writer.write_table(table)  # a row group per episode, as LeRobot has it
        video = _make_folder(root / VIDEO_PATH.format(video_key=CAMERA, **place))
        samples = _write_video(video, form, recordings[together], frame_written)
        statistics += [
            {CAMERA: pixels, **_columns(table)} for pixels, table in zip(samples, rows[together], strict=True)
        ]
    pq.write_table(_episode_table(form, recordings, statistics), _make_folder(root / EPISODES_PATH))
    whole = {name: np.concatenate([each[name] for each in statistics]) for name in statistics[0]}
    _write_json(root / "meta/stats.json", {name: _summary(values) for name, values in whole.items()})
    _write_tasks(root / "meta/tasks.parquet", tasks)
    for kind, names in form.stages.items():
        if any(recording.annotation for recording in recordings):
            _write_json(root / f"meta/temporal_proportions_{kind}.json", _proportions(recordings, kind, names))
    _write_json(root / "meta/info.json", _info(form, recordings, len(tasks)))


def _rows(form: Format, recordings: Sequence[Recording], tasks: list[str]) -> list[pa.Table]:
    """LeRobot's columns of each episode."""
    tables, first = [], 0
    for episode, recording in enumerate(recordings):
        length, width = recording.state.shape
        frame = np.arange(length)
        columns: dict[str, Any] = {
            name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), width)
            for name, values in (("observation.state", recording.state), ("action", recording.action))
        }
        columns["timestamp"] = pa.array((frame / form.fps).astype(np.float32))
        numbers = (frame, np.full(length, episode), first + frame, np.full(length, tasks.index(recording.task)))
        columns |= {name: pa.array(values, pa.int64()) for name, values in zip(INTEGERS, numbers, strict=True)}
        tables.append(pa.table(columns))
        first += length
    return tables


def _columns(table: pa.Table) -> dict[str, np.ndarray]:
    """Columns as (F, D) float64."""
    arrays = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        arrays[name] = values.to_numpy().reshape(table.num_rows, -1).astype(np.float64)
    return arrays


def _write_video(
    path: Path, form: Format, recordings: Sequence[Recording], frame_written: Callable[[], None] | None
) -> list[np.ndarray]:
    """H.264 that browsers play, every episode beginning with a keyframe.

    Returns:
        for each episode some pixels of some of its frames, (n, pixels, 3) float64 in [0, 1].
    """
    sampled = []
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=form.fps)
        stream.width = stream.height = form.size
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, form.fps)
        stream.codec_context.thread_count = 1  # the bytes depend on it
        x264 = f"scenecut=0:keyint={KEYFRAME_EVERY}:min-keyint=1:open-gop=0"
        stream.options = {"preset": "veryfast", "crf": str(CRF), "bf": "0", "x264-params": x264}
        number = 0
        for recording in recordings:
            kept = []
            for frame, picture in enumerate(recording.pictures()):
                encoded = av.VideoFrame.from_ndarray(picture, format="rgb24")
                encoded.pts, encoded.time_base = number, Fraction(1, form.fps)
                if frame == 0:
                    encoded.pict_type = av.video.frame.PictureType.I
                container.mux(stream.encode(encoded))
                if frame % STATISTICS_EVERY[0] == 0:
                    kept.append(picture[:: STATISTICS_EVERY[1], :: STATISTICS_EVERY[1]].reshape(-1, 3) / 255)
                if frame_written is not None:
                    frame_written()
                number += 1
            sampled.append(np.stack(kept))
        container.mux(stream.encode(None))
    return sampled


def _episode_table(
    form: Format, recordings: Sequence[Recording], statistics: Sequence[dict[str, np.ndarray]]
) -> pa.Table:
    length = np.array([len(recording.state) for recording in recordings])
    first, number = np.cumsum(length) - length, np.arange(len(length))
    file = number // EPISODES_PER_FILE
    start = (first - first[file * EPISODES_PER_FILE]) / form.fps
    zero = np.zeros_like(number)
    columns: dict[str, Any] = {
        "episode_index": number,
        "tasks": pa.array([[recording.task] for recording in recordings], pa.list_(pa.string())),
        "length": length,
        "data/chunk_index": zero,
        "data/file_index": file,
        "dataset_from_index": first,
        "dataset_to_index": first + length,
        f"videos/{CAMERA}/chunk_index": zero,
        f"videos/{CAMERA}/file_index": file,
        f"videos/{CAMERA}/from_timestamp": start,
        f"videos/{CAMERA}/to_timestamp": start + length / form.fps,
    }
    for name in statistics[0]:
        each = [_summary(values[name]) for values in statistics]
        columns |= {f"stats/{name}/{key}": pa.array([summary[key] for summary in each]) for key in each[0]}
    columns |= {"meta/episodes/chunk_index": zero, "meta/episodes/file_index": zero}
    if any(recording.annotation for recording in recordings):
        for prefix, kind in (("sparse_", "sparse"), ("dense_", "dense"), ("", "sparse")):
            columns |= _annotation_columns(form, recordings, prefix, kind)
    columns["outcome"] = pa.array([recording.outcome for recording in recordings], pa.string())
    return pa.table(columns)


def _annotation_columns(form: Format, recordings: Sequence[Recording], prefix: str, kind: str) -> dict[str, pa.Array]:
    """The columns of LeRobot's annotation tool: its times are whole seconds, the frames are exact; null, not annotated."""
    parts = [None if recording.annotation is None else recording.annotation[kind] for recording in recordings]
    names = [None if part is None else [segment.name for segment in part] for part in parts]
    columns = {f"{prefix}subtask_names": pa.array(names, pa.list_(pa.string()))}
    for unit, rate in (("times", form.fps), ("frames", 1)):
        for bound in ("start", "end"):
            values = [None if part is None else [round(getattr(s, bound) / rate) for s in part] for part in parts]
            columns[f"{prefix}subtask_{bound}_{unit}"] = pa.array(values, pa.list_(pa.int64()))
    return columns


def _proportions(recordings: Sequence[Recording], kind: str, names: tuple[str, ...]) -> dict[str, float]:
    parts = [recording.annotation[kind] if recording.annotation else () for recording in recordings]
    flat = [segment for part in parts for segment in part]
    segments = annotated_segments(
        np.cumsum([0, *map(len, parts)]),
        stage_numbers([segment.name for segment in flat], names),
        np.array([segment.start for segment in flat]),
        np.array([segment.end for segment in flat]),
    )
    return dict(zip(names, temporal_proportions(segments, names).tolist(), strict=True))


def _summary(values: np.ndarray) -> dict[str, Any]:
    """Statistics of columns (n, D), lists of D; of n frames' pixels (n, pixels, 3), nested as (3, 1, 1)."""
    flat, shape = (values, (-1,)) if values.ndim == 2 else (values.reshape(-1, 3), (3, 1, 1))
    figures = {"min": flat.min(0), "max": flat.max(0), "mean": flat.mean(0), "std": flat.std(0)}
    figures |= {key: np.quantile(flat, share, axis=0) for key, share in QUANTILES.items()}
    return {key: figure.reshape(shape).tolist() for key, figure in figures.items()} | {"count": [len(values)]}


def _write_tasks(path: Path, tasks: list[str]) -> None:
    """As pandas writes a frame whose index is named `task`, which LeRobot reads it with."""
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
            {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
        ],
        "pandas_version": "2.3.3",
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": tasks})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def _info(form: Format, recordings: Sequence[Recording], num_tasks: int) -> dict[str, Any]:
    video = {"dtype": "video", "shape": [form.size, form.size, 3], "names": ["height", "width", "channels"]}
    about = {
        "video.height": form.size,
        "video.width": form.size,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": form.fps,
        "video.channels": 3,
        "video.g": KEYFRAME_EVERY,
        "video.crf": CRF,
        "has_audio": False,
    }
    vector = {"dtype": "float32", "shape": [len(form.state_names)], "names": list(form.state_names)}
    scalars = {"timestamp": "float32", **dict.fromkeys(INTEGERS, "int64")}
    return {
        "codebase_version": "v3.0",
        "robot_type": form.robot,
        "total_episodes": len(recordings),
        "total_frames": sum(len(recording.state) for recording in recordings),
        "total_tasks": num_tasks,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": form.fps,
        "splits": {"train": f"0:{len(recordings)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": {
            CAMERA: {**video, "info": about},
            "observation.state": vector,
            "action": vector,
            **{name: {"dtype": kind, "shape": [1], "names": None} for name, kind in scalars.items()},
        },
    }


def _make_folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=4) + "\n")
