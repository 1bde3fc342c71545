"""Which frames of which episodes: selections, the chunk grid, and sets of frames as bitmaps.

A chunk is CHUNK_FRAMES consecutive frames of one episode (the last one shorter) on a grid that starts at the episode's
first frame: the unit of work, of storage and of failure everywhere. A set of frames inside a chunk is a bitmap of
CHUNK_FRAMES bits, so that the plan of a million chunks is one (C, 32) uint8 array.
"""

from dataclasses import dataclass

import numpy as np

CHUNK_FRAMES = 256
BITMAP_BYTES = CHUNK_FRAMES // 8


@dataclass(frozen=True)
class Chunks:
    """C chunks, ordered by episode and start.

    Args:
        row: (C,) int64, position of the episode in the dataset's episode table.
        start: (C,) int64, first frame, counted inside the episode.
        stop: (C,) int64, one past the last frame.
    """

    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def __len__(self) -> int:
        return len(self.row)


def parse_selection(text: str, episode_indices: np.ndarray) -> np.ndarray:
    """Positions in `episode_indices` that a Python-like selection names: `0:10,15` is episodes 0..9 and 15.

    Slices run over episode numbers 0..max (negative bounds count from the end) and pass over numbers that the dataset
    does not have; a single number must exist.

    Args:
        text: comma-separated numbers and slices.
        episode_indices: (E,) int64, the dataset's episode numbers.

    Returns:
        (N,) int64 positions, ascending, without repeats.

    Raises:
        ValueError: bad syntax, an episode that does not exist, or nothing selected.
    """
    num_episodes = int(episode_indices.max()) + 1 if len(episode_indices) else 0
    wanted = np.zeros(num_episodes, dtype=bool)
    for part in text.split(","):
        try:
            bounds = [int(field) if field.strip() else None for field in part.split(":")]
        except ValueError:
            raise ValueError(f"episodes {text!r}: {part.strip()!r} is not a number or a slice like 0:10") from None
        if len(bounds) == 1 and bounds[0] is not None:
            number = bounds[0] + num_episodes if bounds[0] < 0 else bounds[0]
            if number not in episode_indices:
                raise ValueError(
                    f"episodes {text!r}: there is no episode {bounds[0]} (the last one is {num_episodes - 1})"
                )
            wanted[number] = True
        elif len(bounds) in (2, 3) and bounds[2:] != [0]:
            wanted[slice(*bounds)] = True
        else:
            raise ValueError(f"episodes {text!r}: {part.strip()!r} is not a number or a slice like 0:10")
    positions = np.flatnonzero(wanted[episode_indices])
    if not len(positions):
        raise ValueError(f"episodes {text!r} selects none of the {len(episode_indices)} episodes")
    return positions


def plan_chunks(rows: np.ndarray, lengths: np.ndarray) -> Chunks:
    """Cut episodes into chunks.

    Args:
        rows: (N,) int64, positions of the episodes in the episode table.
        lengths: (N,) int64, frames of each of them.
    """
    num_chunks = -(-lengths // CHUNK_FRAMES)
    first = np.cumsum(num_chunks) - num_chunks
    start = (np.arange(num_chunks.sum()) - np.repeat(first, num_chunks)) * CHUNK_FRAMES
    stop = np.minimum(start + CHUNK_FRAMES, np.repeat(lengths, num_chunks))
    return Chunks(np.repeat(rows, num_chunks), start, stop)


def chunk_keys(episode_index: np.ndarray, start: np.ndarray) -> np.ndarray:
    """One number per chunk, in the order of episodes and starts: (C,) int64 each -> (C,) int64."""
    return episode_index * (1 << 32) + start


def is_among(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of some chunk keys are among others: (N,) and (M,) int64 -> (N,) bool.

    By sorting: of four million keys 0.3 s, of which np.isin takes 5 (NumPy 2.4, measured).
    """
    if not len(others):
        return np.zeros(len(keys), dtype=bool)
    ordered = np.sort(others)
    return ordered[np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)] == keys


def pack_frames(mask: np.ndarray) -> np.ndarray:
    """Bitmaps of an episode's chunks: (L,) bool -> (ceil(L / CHUNK_FRAMES), BITMAP_BYTES) uint8, low bit first."""
    num_chunks = -(-len(mask) // CHUNK_FRAMES)
    padded = np.zeros(num_chunks * CHUNK_FRAMES, dtype=bool)
    padded[: len(mask)] = mask
    return np.packbits(padded.reshape(num_chunks, CHUNK_FRAMES), axis=1, bitorder="little")


def frames_of(bitmap: np.ndarray | bytes, start: int) -> np.ndarray:
    """Frames of one chunk's bitmap, counted inside the episode: (BITMAP_BYTES,) uint8 or bytes -> (k,) int64."""
    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), bitorder="little")
    return np.flatnonzero(bits) + start


def count_frames(bitmaps: np.ndarray) -> np.ndarray:
    """Frames in each bitmap: (C, BITMAP_BYTES) uint8 -> (C,) int64."""
    return np.bitwise_count(bitmaps).sum(axis=1, dtype=np.int64)
