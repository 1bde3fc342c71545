"""Several episodes in one file, whatever its encoding: any frames of any of them are what full decoding gives.

`test_video.py` draws frames of one episode from seven encodings; here episodes begin in the middle of groups of pictures,
as they do in files that were joined without encoding them anew.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarm_ray.data.resizing import resize_and_crop
from sarm_ray.data.video import FrameRequest, read_frames
from tests.datasets import decode_all, write_video

SIZE = 32
LENGTHS = (47, 1, 72)
STARTS = (0, 47, 48)
# options of write_video
ENCODINGS = [
    {"gop": 1},
    {"gop": 5, "bframes": 1, "open_gop": True},
    {"gop": 9, "bframes": 2},
    {"gop": 16, "bframes": 5, "open_gop": True},
    {"gop": 30, "bframes": 3, "open_gop": True, "fps": 24000 / 1001},
    {"gop": 120},
    {"codec": "libsvtav1", "gop": 1},
    {"codec": "libsvtav1", "gop": 7, "fps": 15},
    {"codec": "libsvtav1", "gop": 60},
]


class Videos(list[tuple[Path, float, np.ndarray]]):
    def __repr__(self) -> str:
        return "videos"  # a failing property prints its arguments


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Videos:
    """Each encoding's file, its frame rate, and all its frames decoded one after the other and made small."""
    made, folder = Videos(), tmp_path_factory.mktemp("videos")
    for number, options in enumerate(ENCODINGS):
        path = folder / f"{number}.mp4"
        write_video(path, range(sum(LENGTHS)), **options)
        frames = np.stack([resize_and_crop(image, SIZE) for image in decode_all(path)])
        assert len(frames) == sum(LENGTHS)
        made.append((path, options.get("fps", 30), frames))
    return made


@st.composite
def frames_of_episodes(draw) -> list[tuple[int, list[int]]]:
    """Chunks in the order of the file: (episode, frames), each on a grid of its own; some episodes are passed over."""
    chunks = []
    for episode in sorted(draw(st.sets(st.integers(0, len(LENGTHS) - 1), min_size=1))):
        last, grid = LENGTHS[episode] - 1, draw(st.integers(1, 40))
        dense = st.integers(1, 30).map(lambda stride, last=last: list(range(0, last + 1, stride)))
        frames = draw(dense | st.sets(st.integers(0, last), min_size=1, max_size=8).map(sorted))
        groups = itertools.groupby(frames, key=lambda frame, grid=grid: frame // grid)
        chunks += [(episode, list(group)) for _, group in groups]
    return chunks


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(ENCODINGS) - 1), frames_of_episodes())
def test_any_frames_of_any_episodes_equal_full_decoding(videos, encoding, chunks):
    path, fps, sequential = videos[encoding]
    requests = [FrameRequest(episode, STARTS[episode] / fps, np.array(frames)) for episode, frames in chunks]
    results = list(read_frames(str(path), requests, fps, SIZE))
    assert len(results) == len(chunks)
    for (episode, frames), pixels in zip(chunks, results, strict=True):
        assert isinstance(pixels, np.ndarray), str(pixels)
        assert np.array_equal(pixels, sequential[STARTS[episode] + np.array(frames)]), (episode, frames)
