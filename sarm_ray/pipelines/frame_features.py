"""Image features of some frames of an episode, out of the feature stores of one or several cameras."""

from collections.abc import Callable, Sequence

import numpy as np

from sarm_ray.core.episodes import CHUNK_FRAMES
from sarm_ray.data.features import read_chunk
from sarm_ray.pipelines.ingest_plan import IngestPlan

ReadChunk = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


def frame_features(
    cameras: Sequence[IngestPlan], row: int, frames: np.ndarray, read: ReadChunk
) -> tuple[np.ndarray, np.ndarray]:
    """Features of frames, the cameras side by side.

    Args:
        cameras: the plans of one dataset, in the order that the model takes them.
        row: the episode, as its position in the dataset's table.
        frames: (U,) int64, counted inside the episode.
        read: camera's place and chunk -> values (CHUNK_FRAMES, D) and which are there (CHUNK_FRAMES,).

    Returns:
        (U, num_cameras * D) as stored, and (U,) bool, which frames every camera has; the others are 0 where one lacks.
    """
    width = cameras[0].store.feature_dim
    features = np.zeros((len(frames), len(cameras) * width), dtype=cameras[0].store.dtype)
    present = np.ones(len(frames), dtype=bool)
    first_chunk = int(np.searchsorted(cameras[0].chunks.row, row))
    for number in np.unique(frames // CHUNK_FRAMES).tolist():
        inside = frames // CHUNK_FRAMES == number
        offset = frames[inside] % CHUNK_FRAMES
        for camera in range(len(cameras)):
            values, there = read(camera, first_chunk + number)
            features[inside, camera * width : (camera + 1) * width] = values[offset]
            present[inside] &= there[offset]
    return features, present


class StoredFeatures:
    """Features as the stores of one dataset's cameras hold them when this is made."""

    def __init__(self, cameras: Sequence[IngestPlan]):
        self.cameras = cameras
        self.indices = [camera.index() for camera in cameras]

    def read(self, row: int, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `frame_features`."""
        return frame_features(self.cameras, row, frames, self._read_chunk)

    def _read_chunk(self, number: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        camera = self.cameras[number]
        try:
            return read_chunk(camera.store, self.indices[number], chunk)
        except FileNotFoundError:  # another run merged small parts meanwhile
            self.indices[number] = camera.index()
            return read_chunk(camera.store, self.indices[number], chunk)
