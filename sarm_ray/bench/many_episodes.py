"""Metadata of very many episodes, with files that are listed but empty: what planning reads, and nothing else."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.core.episodes import BITMAP_BYTES, CHUNK_FRAMES, Chunks, count_frames, plan_chunks
from sarm_ray.data.features import SCHEMA, FeatureStore, fingerprint_sources, write_part
from sarm_ray.data.lerobot import Dataset, open_dataset
from sarm_ray.data.progress_io import part_schema

CAMERA = "observation.images.top"
STATE = "observation.state"
STATE_DIM = 14
FPS = 30
MOMENTS = ("min", "max", "mean", "std")
TASKS = ("move the square", "fold the towel", "open the drawer", "stack the cups", "wipe the table")
EPISODES_PER_FILE = 20  # LeRobot v3.0 fills mp4s up to 200 MB
EPISODES_PER_TABLE = 1000
FILES_PER_FOLDER = 1000
CHUNKS_PER_PART = 256  # 64 MB of CLIP's 512 float16 numbers


def write_metadata(root: Path, num_episodes: int, version: str, frames_per_episode: int) -> None:
    """A dataset of which only metadata can be read.

    Args:
        root: folder to make.
        num_episodes: all of them listed.
        version: `v3.0` (20 episodes per mp4 and data file, 1000 per episode table) or `v2.1` (a file each).
        frames_per_episode: the mean; lengths vary by a sixth.
    """
    rng = np.random.default_rng(0)
    spread = frames_per_episode // 6
    length = rng.integers(frames_per_episode - spread, frames_per_episode + spread + 1, num_episodes)
    meta = root / "meta"
    meta.mkdir(parents=True)
    (meta / "info.json").write_text(json.dumps(_info(length, version), indent=2))
    moments: dict[str, list] = {name: rng.random(STATE_DIM).tolist() for name in MOMENTS}
    moments["count"] = [int(length.sum())]
    (meta / "stats.json").write_text(json.dumps({STATE: moments}))
    if version == "v3.0":
        _write_v3(root, length)
    else:
        _write_v2(root, length, moments)


def fill_store(store: FeatureStore, root: Path) -> int:
    """Commit every chunk of a dataset of `write_metadata`, in parts of as many rows as 64 MB of CLIP features have.

    The features themselves are one byte each: planning does not read them.

    Returns:
        The number of parts.
    """
    dataset = open_dataset(str(root))
    chunks = plan_chunks(np.arange(len(dataset.length)), dataset.length)
    layout, source = fingerprint_sources(dataset, CAMERA)
    whole = np.arange(CHUNK_FRAMES) < (chunks.stop - chunks.start)[:, None]
    frames = np.packbits(whole, axis=1, bitorder="little")
    table = pa.table(
        {
            "episode_index": dataset.episode_index[chunks.row],
            "start": chunks.start,
            "frames": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(BITMAP_BYTES), len(chunks), [None, pa.py_buffer(frames)]
            ),
            "layout": layout[chunks.row],
            "source": source[chunks.row],
            "features": pa.array([b"\0"], pa.large_binary()).take(np.zeros(len(chunks), dtype=np.int64)),
        },
        schema=SCHEMA,
    )
    assert count_frames(frames).sum() == dataset.length.sum()
    starts = range(0, len(chunks), CHUNKS_PER_PART)
    for first in starts:
        write_part(store, table.slice(first, CHUNKS_PER_PART), f"merged-{first:012d}")
    return len(starts)


def fill_parts(
    folder: Path, dataset: Dataset, chunks: Chunks, computed: np.ndarray, head: str, chunks_per_part: int
) -> int:
    """Noisy rising progress of every chunk, in parts as a run leaves them, under names in no order.

    Args:
        folder: of the parts, to make.
        dataset, chunks: C chunks of it.
        computed: (C, BITMAP_BYTES) uint8, frames that have a score.
        head: of a single stage, so that a frame has one probability.
        chunks_per_part: the last part may have fewer.

    Returns:
        The number of parts.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    schema = part_schema((head,))
    starts = range(0, len(chunks), chunks_per_part)
    for first in starts:
        own = slice(first, first + chunks_per_part)
        chunk, bit = np.nonzero(np.unpackbits(computed[own], axis=1, bitorder="little"))
        rows, start = chunks.row[own], chunks.start[own]
        share = (start[chunk] + bit) / dataset.length[rows][chunk]
        progress = np.clip(share + rng.normal(0, 0.05, len(share)), 0, 1).astype(np.float32)
        offsets = pa.array(np.searchsorted(chunk, np.arange(len(rows) + 1)), pa.int32())
        bitmaps = pa.py_buffer(np.ascontiguousarray(computed[own]))
        columns = {
            "episode_index": dataset.episode_index[rows],
            "start": start,
            "num_holes": np.zeros(len(rows), dtype=np.int64),
            "frames": pa.FixedSizeBinaryArray.from_buffers(pa.binary(BITMAP_BYTES), len(rows), [None, bitmaps]),
            f"progress_{head}": pa.ListArray.from_arrays(offsets, pa.array(progress)),
            f"probabilities_{head}": pa.ListArray.from_arrays(offsets, pa.array(np.ones_like(progress))),
        }
        # not `write_part`, which waits for the disk each time
        pq.write_table(pa.table(columns, schema=schema), folder / f"{rng.bytes(16).hex()}.parquet")
    return len(starts)


def _write_v3(root: Path, length: np.ndarray) -> None:
    num_episodes = len(length)
    episode = np.arange(num_episodes)
    chunk, file = np.divmod(episode // EPISODES_PER_FILE, FILES_PER_FOLDER)
    ends = np.cumsum(length)
    starts = ends - length
    table = pa.table(
        {
            "episode_index": episode,
            "tasks": pa.array([[TASKS[number % len(TASKS)]] for number in range(num_episodes)]),
            "length": length,
            "dataset_from_index": starts,
            "dataset_to_index": ends,
            "data/chunk_index": chunk,
            "data/file_index": file,
            f"videos/{CAMERA}/chunk_index": chunk,
            f"videos/{CAMERA}/file_index": file,
            f"videos/{CAMERA}/from_timestamp": (starts - starts[episode // EPISODES_PER_FILE * EPISODES_PER_FILE])
            / FPS,
            f"videos/{CAMERA}/to_timestamp": (ends - starts[episode // EPISODES_PER_FILE * EPISODES_PER_FILE]) / FPS,
        }
    )
    for number, first in enumerate(range(0, num_episodes, EPISODES_PER_TABLE)):
        folder, place = divmod(number, FILES_PER_FOLDER)
        path = root / f"meta/episodes/chunk-{folder:03d}/file-{place:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(first, EPISODES_PER_TABLE), path)
    places = sorted(set(zip(chunk.tolist(), file.tolist(), strict=True)))
    _touch(root, [f"data/chunk-{c:03d}/file-{f:03d}.parquet" for c, f in places])
    _touch(root, [f"videos/{CAMERA}/chunk-{c:03d}/file-{f:03d}.mp4" for c, f in places])
    tasks = pa.table({"task_index": np.arange(len(TASKS)), "task": TASKS})
    pq.write_table(tasks, root / "meta/tasks.parquet")


def _write_v2(root: Path, length: np.ndarray, moments: dict) -> None:
    rng = np.random.default_rng(0)
    width = {"action": STATE_DIM, CAMERA: 3}
    others = ("action", CAMERA, "timestamp", "frame_index", "episode_index", "index", "task_index")
    rest = json.dumps({key: {name: rng.random(width.get(key, 1)).tolist() for name in MOMENTS} for key in others})
    episodes, stats = [], []
    for episode, frames in enumerate(length.tolist()):
        tasks = [TASKS[episode % len(TASKS)]]
        episodes.append(json.dumps({"episode_index": episode, "tasks": tasks, "length": frames}))
        own = json.dumps({**moments, "count": [frames]})
        stats.append(f'{{"episode_index": {episode}, "stats": {{"{STATE}": {own}, {rest[1:-1]}}}}}')
    (root / "meta/episodes.jsonl").write_text("\n".join(episodes) + "\n")
    (root / "meta/episodes_stats.jsonl").write_text("\n".join(stats) + "\n")
    tasks = [json.dumps({"task_index": number, "task": task}) for number, task in enumerate(TASKS)]
    (root / "meta/tasks.jsonl").write_text("\n".join(tasks) + "\n")
    places = [(episode // FILES_PER_FOLDER, episode) for episode in range(len(length))]
    _touch(root, [f"data/chunk-{c:03d}/episode_{e:06d}.parquet" for c, e in places])
    _touch(root, [f"videos/chunk-{c:03d}/{CAMERA}/episode_{e:06d}.mp4" for c, e in places])


def _touch(root: Path, paths: list[str]) -> None:
    for folder in {path.rsplit("/", 1)[0] for path in paths}:
        (root / folder).mkdir(parents=True)
    for path in paths:
        (root / path).touch()


def _info(length: np.ndarray, version: str) -> dict:
    v3 = version == "v3.0"
    return {
        "codebase_version": version,
        "robot_type": "none",
        "fps": FPS,
        "total_episodes": len(length),
        "total_frames": int(length.sum()),
        "total_tasks": len(TASKS),
        "chunks_size": FILES_PER_FOLDER,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        if v3
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if v3
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            CAMERA: {"dtype": "video", "shape": [480, 640, 3], "names": ["height", "width", "channels"]},
            STATE: {"dtype": "float32", "shape": [STATE_DIM], "names": None},
        },
    }
