"""Whether a dataset that others write is whole: its totals agree, its files are all there and not cut off.

A writer that was stopped, or is at work, leaves its marks: LeRobot counts an episode in meta/info.json before its table has
it, a parquet file gets its footer when it is closed, an mp4 its index. Of a file no more is read than tells that.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import IO

import av
import av.error
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.data import storage
from sarm_ray.data.json_files import read_json
from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import StoreError

READERS = 16
HEADER_BLOCK_BYTES = 2**16
LFS_POINTER = b"version https://git-lfs"
OTHER_CONTAINER = "no mp4"
MAX_BOXES = 10_000  # a fragmented mp4 has two for every fragment


def unfinished_totals(dataset: Dataset) -> str | None:
    """In what meta/info.json and the episode table disagree; None where they do not.

    Raises:
        DatasetError: meta/info.json cannot be read.
    """
    info = read_json(dataset.root, "meta/info.json")
    counted = {"total_episodes": len(dataset.length), "total_frames": int(dataset.length.sum())}
    for key, number in counted.items():
        said = info.get(key)
        if isinstance(said, int) and said != number:
            noun = key.removeprefix("total_")
            return f"meta/info.json says {said:,} {noun if said != 1 else noun[:-1]}, the episode table has {number:,}"
    return None


def unfinished_files(dataset: Dataset, cameras: tuple[str, ...], rows: np.ndarray, sound: dict[str, str]) -> str | None:
    """Which file that some episodes need is not there, or is not whole; None where all are.

    Args:
        dataset: the dataset, with the stamps of what is there.
        cameras: whose frames are needed.
        rows: (N,) int64, the episodes, as positions in the dataset's table.
        sound: path -> stamp of files that were found whole; those found now are added to it, and not opened again.

    Raises:
        StoreError: the store does not answer or refuses us.
    """
    needed = [dataset.data_files, *(dataset.camera_files(camera) for camera in cameras)]
    paths = list(dict.fromkeys(files.paths[file] for files in needed for file in np.unique(files.file[rows])))
    missing = [path for path in paths if path not in dataset.files]
    if missing:
        return f"{_name_first(missing)} not there yet"
    opened = [path for path in paths if sound.get(path) != dataset.files[path]]
    videos = {path for camera in cameras if dataset.is_video(camera) for path in dataset.videos[camera].paths}

    def defect(path: str) -> str | None:
        return (video_defect if path in videos else parquet_defect)(dataset.location(path))

    with ThreadPoolExecutor(READERS) as pool:
        defects = dict(zip(opened, pool.map(defect, opened), strict=True))
    sound.update({path: dataset.files[path] for path, reason in defects.items() if reason is None})
    broken = [path for path, reason in defects.items() if reason is not None]
    return f"{_name_first(broken)} not whole ({defects[broken[0]]})" if broken else None


def _name_first(paths: list[str]) -> str:
    """The first of some files, the others counted, and the verb."""
    others = len(paths) - 1
    return f"{paths[0]} and {others:,} more file{'s' if others > 1 else ''} are" if others else f"{paths[0]} is"


def parquet_defect(location: str) -> str | None:
    """Why a parquet file cannot be read: mostly, that its writer has not closed it. None where its footer is there."""
    try:
        with storage.open_input(location, HEADER_BLOCK_BYTES) as stream:
            pq.read_metadata(stream)
    except StoreError:
        raise
    except FileNotFoundError:
        return "it has gone"
    except (pa.ArrowException, OSError):
        return "no parquet footer: still being written, or cut off"
    return None


def video_defect(location: str) -> str | None:
    """Why an mp4 cannot be read whole; None where nothing is missing. Its frames are not looked at."""
    try:
        with storage.open_input(location, HEADER_BLOCK_BYTES) as stream:
            defect = mp4_defect(stream, stream.seek(0, 2))
            if defect == OTHER_CONTAINER:
                stream.seek(0)
                av.open(stream, mode="r").close()
                return None
            return defect
    except StoreError:
        raise
    except FileNotFoundError:
        return "it has gone"
    except (av.error.FFmpegError, OSError, IndexError, ValueError):
        return "not a readable video"


def mp4_defect(stream: IO[bytes], num_bytes: int) -> str | None:
    """What is missing of an mp4 by the sizes of its outermost boxes; None where it is whole.

    Args:
        stream: the file.
        num_bytes: its size.
    """
    place = 0
    kinds: list[bytes] = []
    while place < num_bytes and len(kinds) < MAX_BOXES:
        stream.seek(place)
        header = stream.read(24)
        if place == 0 and header.startswith(LFS_POINTER):
            return "a Git LFS pointer; fetch the video with git lfs pull"
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        elif size == 0 and kind.isalnum():
            size = num_bytes - place  # the last box reaches to the end
        if place == 0 and kind != b"ftyp":
            return OTHER_CONTAINER if header.strip(b"\0") else "nothing but zeros: still being written"
        if size < 8 or not kind.isascii():
            return "what follows its first boxes is none: still being written"
        kinds.append(kind)
        place += size
    if place > num_bytes:
        return f"cut off: {num_bytes:,} of {place:,} bytes or more"
    if b"moov" not in kinds:
        return "no index: still being written, or cut off"
    return None
