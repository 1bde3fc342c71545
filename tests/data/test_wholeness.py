"""A file that is still being written, or was cut off anywhere, is not whole; a finished one is."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarm_ray.data.lerobot import Dataset, open_dataset
from sarm_ray.data.wholeness import mp4_defect, parquet_defect, unfinished_files, unfinished_totals, video_defect
from tests.datasets import CAMERA, write_dataset, write_video

LAYOUTS = {
    "index last": {},
    "index first": {"movflags": "faststart"},
    "fragments": {"movflags": "frag_keyframe+empty_moov"},
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("videos")
    for name, options in LAYOUTS.items():
        write_video(folder / f"{name}.mp4", range(30), size=(32, 32), container_options=options)
    return {name: (folder / f"{name}.mp4").read_bytes() for name in LAYOUTS}


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("toy") / "toy", "v2.1", [5, 4, 3], size=(32, 32))


def defect(content: bytes) -> str | None:
    return mp4_defect(io.BytesIO(content), len(content))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_video_is(videos, layout):
    assert defect(videos[layout]) is None


@settings(max_examples=200)
@given(layout=st.sampled_from(["index last", "index first"]), share=st.floats(0, 1, exclude_max=True))
def test_a_video_that_is_cut_off_anywhere_is_not(videos, layout, share):
    content = videos[layout]
    assert defect(content[: int(share * len(content))])


@settings(max_examples=100)
@given(share=st.floats(0, 1, exclude_max=True))
def test_nor_is_one_whose_place_on_the_disk_was_taken_beforehand(videos, share):
    content = videos["index last"]
    written = content[: int(share * (content.rindex(b"moov") - 4))]
    assert defect(written + bytes(len(content) - len(written)))


def test_what_is_no_mp4(tmp_path):
    def defect_of(content: bytes) -> str | None:
        (tmp_path / "x.mp4").write_bytes(content)
        return video_defect(str(tmp_path / "x.mp4"))

    assert defect_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n") == (
        "a Git LFS pointer; fetch the video with git lfs pull"
    )
    assert defect_of(b"these are not the frames you are looking for\n" * 9) == "not a readable video"
    assert defect_of(b"") == "no index: still being written, or cut off"
    assert video_defect(str(tmp_path / "nowhere.mp4")) == "it has gone"


def test_a_video_in_another_container_counts_if_it_opens(tmp_path):
    write_video(tmp_path / "x.mp4", range(5), size=(32, 32))
    import av

    with av.open(str(tmp_path / "x.mp4")) as source, av.open(str(tmp_path / "y.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert video_defect(str(tmp_path / "y.mkv")) is None


@settings(max_examples=50)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_parquet_file_that_is_cut_off_anywhere_has_no_footer(tmp_path_factory, share):
    path = tmp_path_factory.mktemp("cut") / "x.parquet"
    pq.write_table(pa.table({"x": range(100)}), path)
    assert parquet_defect(str(path)) is None
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert parquet_defect(str(path)) == "no parquet footer: still being written, or cut off"


def test_a_parquet_file_whose_writer_is_open_has_none_either(tmp_path):
    path = tmp_path / "x.parquet"
    writer = pq.ParquetWriter(path, pa.schema([("x", pa.int64())]))
    writer.write_table(pa.table({"x": range(10_000)}))
    assert parquet_defect(str(path))
    writer.close()
    assert parquet_defect(str(path)) is None


def test_totals_that_are_ahead_of_the_table_or_behind(toy, tmp_path):
    root = shutil.copytree(toy, tmp_path / "toy")
    assert unfinished_totals(open_dataset(str(root))) is None
    info = json.loads((root / "meta/info.json").read_text())

    def said(**changes: int) -> str | None:
        (root / "meta/info.json").write_text(json.dumps({**info, **changes}))
        return unfinished_totals(open_dataset(str(root)))

    assert said(total_episodes=4) == "meta/info.json says 4 episodes, the episode table has 3"
    assert said(total_episodes=1) == "meta/info.json says 1 episode, the episode table has 3"
    assert said(total_frames=99) == "meta/info.json says 99 frames, the episode table has 12"
    assert said() is None


def files_of(root: Path) -> Dataset:
    return open_dataset(str(root))


def test_files_that_are_not_there_or_not_whole_of_the_episodes_that_are_wanted_alone(toy, tmp_path):
    root = shutil.copytree(toy, tmp_path / "toy")
    rows = np.arange(3)
    video = root / f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    content = video.read_bytes()
    video.unlink()
    there = f"videos/chunk-000/{CAMERA}/episode_000001.mp4 is not"
    assert unfinished_files(files_of(root), (CAMERA,), rows, {}) == f"{there} there yet"
    assert unfinished_files(files_of(root), (CAMERA,), np.array([0, 2]), {}) is None
    video.write_bytes(content[: len(content) // 2])
    said = unfinished_files(files_of(root), (CAMERA,), rows, {})
    assert said is not None
    assert said.startswith(f"{there} whole (cut off: {len(content) // 2:,} of ")
    for number in (0, 2):
        path = root / f"data/chunk-000/episode_00000{number}.parquet"
        path.write_bytes(path.read_bytes()[:-5])
    assert unfinished_files(files_of(root), (CAMERA,), rows, {}) == (
        "data/chunk-000/episode_000000.parquet and 2 more files are not whole "
        "(no parquet footer: still being written, or cut off)"
    )


def test_what_was_found_whole_is_not_opened_again_until_it_changes(toy, tmp_path):
    """That it is not opened shows in what is not noticed: a file that was emptied, under its old stamp."""
    root = shutil.copytree(toy, tmp_path / "toy")
    dataset, rows, sound = files_of(root), np.arange(3), {}
    assert unfinished_files(dataset, (CAMERA,), rows, sound) is None
    assert sound == {path: stamp for path, stamp in dataset.files.items() if path.startswith(("data/", "videos/"))}
    (root / "data/chunk-000/episode_000001.parquet").write_bytes(b"")
    assert unfinished_files(dataset, (CAMERA,), rows, sound) is None
    assert unfinished_files(files_of(root), (CAMERA,), rows, sound) == (
        "data/chunk-000/episode_000001.parquet is not whole (no parquet footer: still being written, or cut off)"
    )
