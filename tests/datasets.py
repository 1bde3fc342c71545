"""Real LeRobot datasets in a temporary folder, for tests: `write_dataset` and the pieces it is made of.

Every picture carries its own number in 16 black and white blocks of its centre square, so that `read_number` tells from
the pixels which frame of which episode was decoded, whatever the codec, the resizing and the crop did to it. Below the
blocks something moves, so that a codec has work to do.
"""

import io
import json
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SHARED = Path(__file__).parents[1].parent / "shared"
CAMERA = "observation.images.base"
TASKS = ("push the red block into the green zone", "place the blue cup on the shelf")
SPARSE_STAGES = {"approach": 0.3, "push": 0.5, "retract": 0.2}
DENSE_STAGES = {"reach block": 0.2, "align gripper": 0.1, "push forward": 0.3, "release": 0.2, "go home": 0.2}
FRAMES_PER_EPISODE_CODE = 2048
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


# ---------------------------------------------------------------------------------------------------------- pictures


def frame_code(episode: int, frame: int) -> int:
    """The number that a dataset draws into a frame: 16 bits."""
    return (episode % 32) * FRAMES_PER_EPISODE_CODE + frame % FRAMES_PER_EPISODE_CODE


def draw_frame(number: int, height: int, width: int) -> np.ndarray:
    """A picture that shows a 16-bit number: (height, width, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width]
    wave = np.sin((x + 3 * number) / 9.0) * np.cos((y - number) / 7.0)
    image = np.stack([120 + 90 * wave, 60 + 120 * x / width, 200 - 120 * y / height], axis=-1).astype(np.uint8)
    top, left, block_height, block_width = _blocks(height, width)
    for bit in range(16):
        row, column = divmod(bit, 8)
        rows = slice(top + round(row * block_height), top + round((row + 1) * block_height))
        columns = slice(left + round(column * block_width), left + round((column + 1) * block_width))
        image[rows, columns] = 235 if number >> bit & 1 else 16
    return image


def read_number(image: np.ndarray) -> int:
    """The number that `draw_frame` put into a picture, also after compression, resizing and a centre crop."""
    top, left, block_height, block_width = _blocks(*image.shape[:2])
    number = 0
    for bit in range(16):
        row, column = divmod(bit, 8)
        y, x = top + (row + 0.5) * block_height, left + (column + 0.5) * block_width
        dy, dx = max(block_height / 4, 0.5), max(block_width / 4, 0.5)
        patch = image[int(y - dy) : int(np.ceil(y + dy)), int(x - dx) : int(np.ceil(x + dx))]
        number |= int(patch.mean() > 125) << bit
    return number


def read_numbers(images: Iterable[np.ndarray]) -> list[int]:
    return [read_number(image) for image in images]


def _blocks(height: int, width: int) -> tuple[int, int, float, float]:
    """Place of the two rows of eight blocks: the upper half of the centre square."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side / 4, side / 8


# ------------------------------------------------------------------------------------------------------------ videos


def write_video(
    path: Path,
    numbers: Sequence[int],
    *,
    fps: float = 30,
    size: tuple[int, int] = (64, 96),
    codec: str = "libx264",
    gop: int = 10,
    bframes: int = 0,
    open_gop: bool = False,
    presented: Sequence[float] | None = None,
    keyframes: Iterable[int] = (),
    container_options: dict[str, str] | None = None,
) -> None:
    """An mp4 whose frames show `numbers`.

    Args:
        path: of the file; its folder is made.
        numbers: what each frame shows, 16 bits each.
        fps: frames per second, a fraction where it must be (29.97).
        size: height and width, even.
        codec: `libx264` or `libsvtav1`.
        gop: largest distance of keyframes.
        bframes: consecutive B-frames of libx264, always as many as this.
        open_gop: let libx264 end a group after the next keyframe.
        presented: time of each frame in units of 1 / fps; 0, 1, 2, ... if not given.
        keyframes: positions that are keyframes in any case.
        container_options: of ffmpeg's mp4 muxer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    time_base = Fraction(1, int(fps)) if float(fps).is_integer() and presented is None else Fraction(1, 90_000)
    presented = range(len(numbers)) if presented is None else presented
    forced = set(keyframes)
    with av.open(str(path), "w", format="mp4", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = time_base
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        if codec == "libx264":
            # Without mbtree: with B-frames, x264's AVX-512 code for it makes another file of the same pictures every time
            # (28,589 to 28,889 bytes), on one thread too. A share of a file must hold the same frames in every run.
            x264 = f"scenecut=0:b-adapt=0:mbtree=0:keyint={gop}:min-keyint={gop}:open-gop={int(open_gop)}:threads=1"
            stream.options = {"preset": "veryfast", "crf": "18", "bf": str(bframes), "x264-params": x264}
        else:
            stream.options = {"preset": "12", "crf": "25", "svtav1-params": "lp=1"}
        for position, (number, moment) in enumerate(zip(numbers, presented, strict=True)):
            frame = av.VideoFrame.from_ndarray(draw_frame(number, height, width), format="rgb24")
            frame.time_base, frame.pts = time_base, round(moment / fps / time_base)
            if position in forced:
                frame.pict_type = av.video.frame.PictureType.I
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def decode_all(path: Path) -> list[np.ndarray]:
    """Every frame of a video, sequentially: full-size RGB."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


# ---------------------------------------------------------------------------------------------------------- datasets


def write_dataset(
    root: Path,
    version: str = "v3.0",
    lengths: Sequence[int] = (40, 30, 50),
    *,
    fps: float = 30,
    size: tuple[int, int] = (64, 96),
    codec: str = "libx264",
    gop: int = 10,
    bframes: int = 0,
    cameras: Sequence[str] = (CAMERA,),
    image_dataset: bool = False,
    episodes_per_video: int = 2,
    episodes_per_data_file: int = 2,
    episodes_per_metadata_file: int = 2,
    tasks: Sequence[str | tuple[str, ...]] = TASKS,
    state_dim: int = 6,
    annotated: bool = False,
    stats: bool = True,
    chunks_size: int = 1000,
    seed: int = 0,
) -> Path:
    """Write a LeRobot dataset with real videos.

    Args:
        root: its folder; made if it is not there.
        version: `v3.0`, `v2.1` or `v2.0`.
        lengths: frames of each episode.
        fps, size, codec, gop, bframes: of the videos (`write_video`).
        cameras: features with pictures; frame k of episode e shows `frame_code(e, k)` in the first one, and the number
            plus the camera's position in the others.
        image_dataset: PNGs inside the data files instead of videos.
        episodes_per_video, episodes_per_data_file, episodes_per_metadata_file: of v3.0; file-000, file-001, ...
        tasks: episode e has `tasks[e % len(tasks)]`; a tuple divides the episode's frames among several texts.
        state_dim: width of observation.state and action.
        annotated: SPARSE_STAGES and DENSE_STAGES as subtask columns, and meta/temporal_proportions_*.json.
        stats: whether statistics are written.
        chunks_size: files (v3.0) or episodes (v2) per chunk folder.
        seed: of the states.

    Returns:
        The root.
    """
    root = Path(root)
    (root / "meta").mkdir(parents=True, exist_ok=True)
    texts = [tasks[e % len(tasks)] for e in range(len(lengths))]
    texts = [(text,) if isinstance(text, str) else text for text in texts]
    task_names = list(dict.fromkeys(name for names in texts for name in names))
    episodes, from_index = [], 0
    for episode, length in enumerate(lengths):
        table = _episode_rows(episode, length, from_index, fps, texts[episode], task_names, state_dim, seed)
        if image_dataset:
            for number, camera in enumerate(cameras):
                table = table.add_column(number, camera, _png_column(episode, length, number, size))
        entry = {"episode_index": episode, "tasks": sorted(set(texts[episode])), "length": length}
        episodes.append({"entry": entry, "rows": table, "stats": _episode_stats(table, cameras, episode, size)})
        if annotated:
            entry |= _annotations(length, fps)
        from_index += length
    video = {} if image_dataset else {"fps": fps, "size": size, "codec": codec, "gop": gop, "bframes": bframes}
    info = _info(version, episodes, fps, size, cameras, image_dataset, codec, gop, state_dim, chunks_size, task_names)
    if version == "v3.0":
        per_file = (episodes_per_video, episodes_per_data_file, episodes_per_metadata_file)
        _write_v3(root, info, episodes, cameras, video, per_file, task_names, stats)
    else:
        _write_v2(root, info, episodes, cameras, video, task_names, stats)
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    if annotated:
        for kind, stages in (("sparse", SPARSE_STAGES), ("dense", DENSE_STAGES)):
            (root / f"meta/temporal_proportions_{kind}.json").write_text(json.dumps(stages, indent=2))
    return root


def _write_v3(root, info, episodes, cameras, video, per_file, task_names, with_stats) -> None:
    per_video, per_data, per_meta = per_file
    chunks_size = info["chunks_size"]
    for number, episode in enumerate(episodes):
        entry = episode["entry"]
        annotations = {key: entry.pop(key) for key in list(entry) if "subtask" in key}
        first_row = sum(e["entry"]["length"] for e in episodes[:number])
        entry["data/chunk_index"], entry["data/file_index"] = divmod(number // per_data, chunks_size)
        entry["dataset_from_index"], entry["dataset_to_index"] = first_row, first_row + entry["length"]
        for camera in cameras if video else ():
            video_file = number // per_video
            before = [e["entry"]["length"] for e in episodes[video_file * per_video : number]]
            place = divmod(video_file, chunks_size)
            entry[f"videos/{camera}/chunk_index"], entry[f"videos/{camera}/file_index"] = place
            entry[f"videos/{camera}/from_timestamp"] = sum(before) / info["fps"]
            entry[f"videos/{camera}/to_timestamp"] = (sum(before) + entry["length"]) / info["fps"]
        if with_stats:
            for feature, values in episode["stats"].items():
                entry |= {f"stats/{feature}/{stat}": value for stat, value in values.items()}
        entry["meta/episodes/chunk_index"], entry["meta/episodes/file_index"] = divmod(number // per_meta, chunks_size)
        entry |= annotations
    for group in _groups(episodes, per_data):
        _write_parquet(root / info["data_path"].format(**_place(group[0], "data/")), [e["rows"] for e in group])
    for position, camera in enumerate(cameras if video else ()):
        for group in _groups(episodes, per_video):
            numbers = [code for e in group for code in _episode_codes(e, position)]
            starts = np.cumsum([0] + [e["entry"]["length"] for e in group[:-1]]).tolist()
            path = info["video_path"].format(video_key=camera, **_place(group[0], f"videos/{camera}/"))
            write_video(root / path, numbers, keyframes=starts, **video)
    for group in _groups(episodes, per_meta):
        table = pa.Table.from_pylist([e["entry"] for e in group])
        path = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        _write_parquet(root / path.format(**_place(group[0], "meta/episodes/")), [table])
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
            {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
        ],
        "pandas_version": "2.3.3",
    }
    tasks = pa.table({"task_index": pa.array(range(len(task_names)), pa.int64()), "task": task_names})
    pq.write_table(tasks.replace_schema_metadata({"pandas": json.dumps(pandas)}), root / "meta/tasks.parquet")
    if with_stats:
        (root / "meta/stats.json").write_text(json.dumps(_dataset_stats(episodes), indent=4))


def _write_v2(root, info, episodes, cameras, video, task_names, with_stats) -> None:
    for number, episode in enumerate(episodes):
        place = {"episode_index": number, "episode_chunk": number // info["chunks_size"]}
        _write_parquet(root / info["data_path"].format(**place), [episode["rows"]])
        for position, camera in enumerate(cameras if video else ()):
            path = root / info["video_path"].format(video_key=camera, **place)
            write_video(path, _episode_codes(episode, position), **video)
    _write_jsonl(root / "meta/episodes.jsonl", [e["entry"] for e in episodes])
    _write_jsonl(root / "meta/tasks.jsonl", [{"task_index": i, "task": name} for i, name in enumerate(task_names)])
    if with_stats and info["codebase_version"] == "v2.1":
        keep = ("min", "max", "mean", "std", "count")
        _write_jsonl(
            root / "meta/episodes_stats.jsonl",
            [
                {"episode_index": n, "stats": {f: {k: v[k] for k in keep} for f, v in e["stats"].items()}}
                for n, e in enumerate(episodes)
            ],
        )
    elif with_stats:
        (root / "meta/stats.json").write_text(json.dumps(_dataset_stats(episodes), indent=4))


def _info(version, episodes, fps, size, cameras, image_dataset, codec, gop, state_dim, chunks_size, tasks) -> dict:
    height, width = size
    video_info = {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264" if codec == "libx264" else "av1",
        "video.pix_fmt": "yuv420p",
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
        "video.g": gop,
        "is_depth_map": False,
    }
    picture = {
        "dtype": "image" if image_dataset else "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
    }
    joints = [f"joint_{number}" for number in range(state_dim)]
    features = {camera: picture | ({} if image_dataset else {"info": video_info}) for camera in cameras}
    for key in ("observation.state", "action"):
        features[key] = {"dtype": "float32", "shape": [state_dim], "names": joints}
    for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        features[key] = {"dtype": "float32" if key == "timestamp" else "int64", "shape": [1], "names": None}
    info = {
        "codebase_version": version,
        "fps": fps,
        "features": features,
        "total_episodes": len(episodes),
        "total_frames": sum(e["entry"]["length"] for e in episodes),
        "total_tasks": len(tasks),
        "chunks_size": chunks_size,
        "robot_type": "toy",
        "splits": {"train": f"0:{len(episodes)}"},
    }
    if version == "v3.0":
        return info | {
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": None
            if image_dataset
            else "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        }
    return info | {
        "total_videos": 0 if image_dataset else len(episodes) * len(cameras),
        "total_chunks": -(-len(episodes) // chunks_size),
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None
        if image_dataset
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }


def _episode_rows(episode, length, from_index, fps, texts, task_names, state_dim, seed) -> pa.Table:
    """LeRobot's columns: vectors as fixed-size lists of float32, a float32 timestamp, four int64."""
    rng = np.random.default_rng([seed, episode])
    frame = np.arange(length)
    phase = frame[:, None] / max(length - 1, 1) + np.arange(state_dim)[None] / 5 + episode / 17
    state = (np.sin(3 * phase) * (1 + np.arange(state_dim)) + rng.normal(0, 0.02, (length, state_dim))).astype(
        np.float32
    )
    action = np.concatenate([state[1:], state[-1:]])
    text = [task_names.index(texts[k * len(texts) // length]) for k in range(length)]
    columns = {
        "observation.state": pa.FixedSizeListArray.from_arrays(state.ravel(), state_dim),
        "action": pa.FixedSizeListArray.from_arrays(action.ravel(), state_dim),
        "timestamp": pa.array((frame / fps).astype(np.float32)),
        "frame_index": pa.array(frame, pa.int64()),
        "episode_index": pa.array(np.full(length, episode), pa.int64()),
        "index": pa.array(from_index + frame, pa.int64()),
        "task_index": pa.array(text, pa.int64()),
    }
    return pa.table(columns)


def _png_column(episode: int, length: int, camera: int, size: tuple[int, int]) -> pa.Array:
    cells = []
    for frame in range(length):
        buffer = io.BytesIO()
        Image.fromarray(draw_frame(frame_code(episode, frame) + camera, *size)).save(buffer, format="PNG")
        cells.append({"bytes": buffer.getvalue(), "path": f"frame-{frame:06d}.png"})
    return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def _episode_codes(episode: dict, camera: int) -> list[int]:
    entry = episode["entry"]
    return [frame_code(entry["episode_index"], frame) + camera for frame in range(entry["length"])]


def _episode_stats(table: pa.Table, cameras: Sequence[str], episode: int, size: tuple[int, int]) -> dict[str, dict]:
    stats = {}
    sample = np.stack([draw_frame(frame_code(episode, k), *size) for k in range(0, table.num_rows, 25)]) / 255
    for camera in cameras:
        channels = sample.reshape(-1, 3)
        stats[camera] = {
            key: np.reshape(value, (3, 1, 1)).tolist() for key, value in _summary(channels).items() if key != "count"
        } | {"count": [len(sample)]}
    for name in table.column_names:
        if name not in cameras:
            column = table[name].combine_chunks()
            values = column.flatten().to_numpy() if pa.types.is_fixed_size_list(column.type) else column.to_numpy()
            values = values.reshape(table.num_rows, -1).astype(np.float64)
            stats[name] = {key: np.ravel(value).tolist() for key, value in _summary(values).items()}
    return stats


def _summary(values: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "count": np.array([len(values)]),
        **{name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()},
    }


def _dataset_stats(episodes: list[dict]) -> dict[str, dict]:
    """LeRobot's aggregation: weighted mean and variance, envelopes for the rest."""
    total = {}
    for feature in episodes[0]["stats"]:
        each = [{k: np.asarray(v, dtype=np.float64) for k, v in e["stats"][feature].items()} for e in episodes]
        count = np.array([e["count"][0] for e in each])
        share = (count / count.sum()).reshape(-1, *[1] * each[0]["mean"].ndim)
        mean, std = np.stack([e["mean"] for e in each]), np.stack([e["std"] for e in each])
        mixed = (share * mean).sum(0)
        total[feature] = {
            "min": np.min([e["min"] for e in each], axis=0).tolist(),
            "max": np.max([e["max"] for e in each], axis=0).tolist(),
            "mean": mixed.tolist(),
            "std": np.sqrt((share * (std**2 + (mean - mixed) ** 2)).sum(0)).tolist(),
            "count": [int(count.sum())],
            **{q: (np.min if q <= "q50" else np.max)([e[q] for e in each], axis=0).tolist() for q in QUANTILES},
        }
    return total


def _annotations(length: int, fps: float) -> dict[str, list]:
    """Subtask columns as LeRobot's tool writes them: an end equals the next start, times in whole seconds."""
    columns: dict[str, list] = {}
    for prefix, stages in (("sparse_", SPARSE_STAGES), ("", SPARSE_STAGES), ("dense_", DENSE_STAGES)):
        bounds = np.rint(np.cumsum([0, *stages.values()]) * length).astype(int).tolist()
        times = [round(bound / fps) for bound in bounds]
        columns[f"{prefix}subtask_names"] = list(stages)
        columns[f"{prefix}subtask_start_times"], columns[f"{prefix}subtask_end_times"] = times[:-1], times[1:]
        columns[f"{prefix}subtask_start_frames"], columns[f"{prefix}subtask_end_frames"] = bounds[:-1], bounds[1:]
    return columns


def _groups(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _place(episode: dict, prefix: str) -> dict[str, int]:
    return {key: episode["entry"][f"{prefix}{key}"] for key in ("chunk_index", "file_index")}


def _write_parquet(path: Path, tables: list[pa.Table]) -> None:
    """One row group per table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)


def _write_jsonl(path: Path, entries: list[dict]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
