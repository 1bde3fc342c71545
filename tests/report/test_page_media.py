"""Strips and videos of episodes: the frames they say, at the times they say, and what is made of damage."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sarm_ray.data.lerobot import open_dataset
from sarm_ray.report import page_media
from sarm_ray.report.page_film import STRIP_FRAMES, STRIP_HEIGHT, film_episode, strip_frames
from sarm_ray.report.page_media import choose_videos, make_media, remove_others
from tests.datasets import CAMERA, frame_code, read_number, write_dataset, write_video

LENGTHS = (40, 30, 50)


def frames_of(video: bytes) -> tuple[list[float], list[int], av.VideoStream]:
    """Time and number of each frame, and the stream."""
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        shown = [(frame.time, read_number(frame.to_ndarray(format="rgb24"))) for frame in container.decode(stream)]
        return [time for time, _ in shown], [number for _, number in shown], stream


def numbers_of(strip: np.ndarray) -> list[int]:
    return [read_number(picture) for picture in np.split(strip, STRIP_FRAMES, axis=1)]


@pytest.mark.parametrize("image_dataset", [False, True])
@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_strip_and_video_show_the_frames_of_the_episode(tmp_path, version, image_dataset):
    root = write_dataset(tmp_path / "set", version, LENGTHS, fps=20, image_dataset=image_dataset, bframes=2)
    dataset = open_dataset(str(root))
    for row, length in enumerate(LENGTHS):
        film = film_episode(dataset, CAMERA, row, True)
        assert (film.num_frames, film.dead, film.problem) == (length, None, None)
        expected = [frame_code(row, frame) for frame in strip_frames(length).tolist()]
        assert numbers_of(film.strip) == expected
        assert film.strip.shape == (STRIP_HEIGHT, STRIP_FRAMES * 144, 3)
        times, numbers, stream = frames_of(film.video)
        assert numbers == [frame_code(row, frame) for frame in range(length)]
        np.testing.assert_allclose(times, np.arange(length) / 20, atol=1e-6)
        assert (stream.codec_context.name, stream.pix_fmt, stream.width, stream.height) == ("h264", "yuv420p", 96, 64)
        sparse = film_episode(dataset, CAMERA, row, False)
        assert (sparse.video, numbers_of(sparse.strip)) == (None, expected)


def test_av1_becomes_h264(tmp_path):
    dataset = open_dataset(str(write_dataset(tmp_path / "set", "v3.0", LENGTHS, codec="libsvtav1")))
    film = film_episode(dataset, CAMERA, 1, True)
    _, numbers, stream = frames_of(film.video)
    assert (stream.codec_context.name, numbers) == ("h264", [frame_code(1, frame) for frame in range(30)])
    assert numbers_of(film_episode(dataset, CAMERA, 1, False).strip) == numbers_of(film.strip)


def test_the_index_of_a_video_comes_first(tmp_path):
    dataset = open_dataset(str(write_dataset(tmp_path / "set", "v2.1", (30,))))
    video = film_episode(dataset, CAMERA, 0, True).video
    assert 0 < video.index(b"moov") < video.index(b"mdat")


def test_a_large_picture_is_made_small_and_even(tmp_path):
    dataset = open_dataset(str(write_dataset(tmp_path / "set", "v2.1", (8,), size=(402, 538), fps=29.97)))
    film = film_episode(dataset, CAMERA, 0, True)
    _, numbers, stream = frames_of(film.video)
    assert (stream.height, stream.width) == (320, 428)
    assert float(stream.average_rate) == pytest.approx(29.97)
    assert numbers == [frame_code(0, frame) for frame in range(8)]


def test_a_video_that_ends_early_is_shown_up_to_there(tmp_path):
    root = write_dataset(tmp_path / "set", "v2.1", LENGTHS)
    dataset = open_dataset(str(root))
    path = dataset.camera_files(CAMERA).path(2)
    write_video(root / path, [frame_code(2, frame) for frame in range(31)])
    film = film_episode(dataset, CAMERA, 2, True)
    assert film.problem == f"{path}: it has 31 of 50 frames"
    assert film.num_frames == 31
    assert len(frames_of(film.video)[0]) == 31
    assert numbers_of(film.strip)[:4] == [frame_code(2, frame) for frame in strip_frames(50)[:4].tolist()]
    assert film.strip[:, 4 * 144 :].max() == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no video", "not a readable video (Invalid data found when processing input)"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "it is a Git LFS pointer; fetch the video with git",
        ),
        (None, "no such file"),
    ],
)
def test_a_video_that_cannot_be_read_is_a_problem_and_no_error(tmp_path, content, words):
    root = write_dataset(tmp_path / "set", "v2.1", (20,))
    dataset = open_dataset(str(root))
    path = dataset.camera_files(CAMERA).path(0)
    (root / path).unlink() if content is None else (root / path).write_bytes(content)
    for with_video in (True, False):
        film = film_episode(dataset, CAMERA, 0, with_video)
        assert (film.strip, film.video, film.num_frames, film.dead) == (None, None, 0, None)
        assert film.problem.startswith(f"{path}: ")
        assert words in film.problem


def test_a_dead_camera_is_noticed(tmp_path):
    root = write_dataset(tmp_path / "set", "v2.1", (20, 20, 20))
    dataset = open_dataset(str(root))
    paths = dataset.camera_files(CAMERA).paths
    write_video(root / paths[0], [5] * 20)
    with av.open(str(root / paths[1]), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    for with_video in (True, False):
        dead = [film_episode(dataset, CAMERA, row, with_video).dead for row in range(3)]
        assert dead == ["frozen", "black", None]


def test_videos_go_to_the_best_the_worst_and_the_flagged():
    final = np.linspace(0.99, 0.0, 100)
    final[50] = np.nan
    flagged = np.zeros(100, dtype=bool)
    flagged[[20, 30, 40]] = True
    chosen = choose_videos(final, flagged, 12)
    assert np.flatnonzero(chosen).tolist() == [0, 1, 2, 3, 20, 30, 40, 95, 96, 97, 98, 99]
    assert choose_videos(final, flagged, 100).all()
    assert np.flatnonzero(~choose_videos(final, flagged, 99)).tolist() == [50]
    assert not choose_videos(final, flagged, 0).any()
    assert choose_videos(final, np.ones(100, dtype=bool), 12).sum() == 12
    assert choose_videos(np.array([0.5]), np.array([True]), 60).tolist() == [True]


def media_of(root, folder, embed: bool, monkeypatch):
    monkeypatch.setattr(page_media, "MAX_EMBEDDED_EPISODES", 99 if embed else 0)
    monkeypatch.setattr(page_media, "STRIPS_PER_SPRITE", 2)
    dataset = open_dataset(str(root))
    rows, order = np.arange(3), np.array([2, 0, 1])
    return make_media(dataset, CAMERA, rows, order, np.array([True, False, True]), str(folder), quiet=True)


def test_a_small_report_has_everything_inside(tmp_path, monkeypatch):
    root = write_dataset(tmp_path / "set", "v2.1", LENGTHS)
    media = media_of(root, tmp_path / "page.files", True, monkeypatch)
    assert media.files == ()
    assert not (tmp_path / "page.files").exists()
    assert media.video == ("#", None, "#")
    assert sorted(media.embedded) == [0, 2]
    assert media.strip == ((0, 1), (1, 0), (0, 0))  # in the order in which they are shown
    assert media.num_rows == (2, 1)
    assert media.aspect == 1.5
    assert all(sprite.startswith("data:image/jpeg;base64,") for sprite in media.sprites)


def test_a_large_report_has_its_files_beside_it(tmp_path, monkeypatch):
    root = write_dataset(tmp_path / "set", "v2.1", LENGTHS)
    folder = tmp_path / "my page.files"
    media = media_of(root, folder, False, monkeypatch)
    assert sorted(path.name for path in folder.iterdir()) == sorted(media.files)
    assert media.embedded == {}
    assert [source.split("/")[0] for source in (*media.sprites, media.video[0])] == ["my%20page.files"] * 3
    with Image.open(folder / Path(media.sprites[0]).name) as sprite:
        picture = np.asarray(sprite)
    assert picture.shape == (2 * STRIP_HEIGHT, STRIP_FRAMES * 144, 3)
    assert numbers_of(picture[STRIP_HEIGHT:]) == [frame_code(0, frame) for frame in strip_frames(40).tolist()]
    assert frames_of((folder / Path(media.video[2]).name).read_bytes())[1][:2] == [frame_code(2, 0), frame_code(2, 1)]


def test_what_is_too_large_to_be_inside_goes_beside(tmp_path, monkeypatch):
    root = write_dataset(tmp_path / "set", "v2.1", LENGTHS)
    monkeypatch.setattr(page_media, "MAX_EMBEDDED_BYTES", 20_000)
    media = media_of(root, tmp_path / "page.files", True, monkeypatch)
    assert sorted(path.name for path in (tmp_path / "page.files").iterdir()) == sorted(media.files)
    assert len(media.files) == 4
    assert media.embedded == {}
    assert media.video[0].startswith("page.files/video-000000-")


def test_files_of_an_earlier_page_go_and_others_stay(tmp_path):
    folder = tmp_path / "page.files"
    remove_others(str(folder), ())
    folder.mkdir()
    for name in ("video-000001-aa.mp4", "sprite-000000-bb.jpg", "notes.txt"):
        (folder / name).write_text("x")
    remove_others(str(folder), ("sprite-000000-bb.jpg",))
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "sprite-000000-bb.jpg"]
    (folder / "notes.txt").unlink()
    remove_others(str(folder), ())
    assert not folder.exists()
