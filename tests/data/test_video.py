"""Frames of real videos: the right ones, all of them, or an error that names the one that is not there."""

import itertools
import pickle
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarm_ray.core.windows import Window, needed_frames
from sarm_ray.data import video
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.resizing import resize_and_crop
from sarm_ray.data.video import FrameRequest, read_frames
from sarm_ray.errors import VideoError
from tests.datasets import (
    CAMERA,
    SHARED,
    decode_all,
    draw_frame,
    frame_code,
    read_numbers,
    write_dataset,
    write_video,
)

SIZE = 32
LENGTH = 150
ENCODINGS = {
    "h264": {"gop": 12},
    "h264 with B-frames": {"gop": 12, "bframes": 3},
    "h264 with open groups": {"gop": 12, "bframes": 3, "open_gop": True},
    "h264 with many B-frames and long open groups": {"gop": 40, "bframes": 7, "open_gop": True},
    "h264 with one keyframe": {"gop": 250, "bframes": 2},
    "av1, LeRobot's": {"codec": "libsvtav1", "gop": 2},
    "av1 with long groups": {"codec": "libsvtav1", "gop": 24},
}


def request(frames, from_timestamp: float = 0.0, episode: int = 0) -> FrameRequest:
    return FrameRequest(episode, from_timestamp, np.array(list(frames), dtype=np.int64))


def read(path: Path, requests: list[FrameRequest], fps: float = 30, size: int = SIZE) -> list:
    return list(read_frames(str(path), requests, fps, size))


def described(results: list) -> list:
    """Numbers where there are frames, the error's text where there are none."""
    return [str(result) if isinstance(result, VideoError) else read_numbers(result) for result in results]


def split(frames: list[int], size: int) -> list[list[int]]:
    return [list(group) for _, group in itertools.groupby(frames, key=lambda frame: frame // size)]


class Videos(dict[str, tuple[Path, np.ndarray]]):
    def __repr__(self) -> str:
        return "videos"  # a failing property prints its arguments


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Videos:
    """Each encoding's file, and all its frames decoded one after the other and made small."""
    folder = tmp_path_factory.mktemp("videos")
    made = Videos()
    for name, options in ENCODINGS.items():
        path = folder / f"{name.replace(' ', '-')}.mp4"
        write_video(path, range(LENGTH), **options)
        made[name] = path, np.stack([resize_and_crop(image, SIZE) for image in decode_all(path)])
    return made


# ------------------------------------------------------------------------------------------------- which frames come


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_whole_video_is_what_sequential_decoding_gives(videos, encoding):
    path, sequential = videos[encoding]
    (frames,) = read(path, [request(range(LENGTH))])
    assert read_numbers(frames) == list(range(LENGTH))
    assert np.array_equal(frames, sequential)
    assert (frames.dtype, frames.shape) == (np.uint8, (LENGTH, SIZE, SIZE, 3))


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_skipping_groups_changes_no_pixel(videos, encoding, data):
    path, sequential = videos[encoding]
    strided = st.builds(
        lambda first, last, stride: list(range(first, last + 1, stride)),
        st.integers(0, LENGTH - 1),
        st.integers(LENGTH // 2, LENGTH - 1),
        st.integers(1, 60),
    ).filter(bool)
    scattered = st.sets(st.integers(0, LENGTH - 1), min_size=1, max_size=12).map(sorted)
    frames = data.draw(strided | scattered)
    groups = split(frames, data.draw(st.integers(3, 70)))
    results = read(path, [request(group) for group in groups])
    assert [read_numbers(result) for result in results] == groups
    assert np.array_equal(np.concatenate(results), sequential[frames])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_frame_can_be_sought_alone(videos, encoding):
    """Seeking finds frames just before, at and after each keyframe."""
    path, sequential = videos[encoding]
    for frame in range(30, LENGTH, 7 if "one keyframe" in encoding else 1):
        (found,) = read(path, [request([frame])])
        assert np.array_equal(found[0], sequential[frame]), frame


@pytest.mark.parametrize(
    ("encoding", "wanted", "decoded"),
    [
        ("av1, LeRobot's", [0, 61, 120], [0, 1, 60, 61, 120, 121]),
        ("h264", [30], list(range(24, 36))),
        ("h264 with open groups", [30], list(range(21, 33))),  # keyframe 24 comes before 21..23, keyframe 36 before 33
        ("h264 with open groups", [23], list(range(9, 33))),  # 23 refers to the group before its own
    ],
)
def test_only_groups_that_somebody_needs_are_decoded(videos, encoding, wanted, decoded):
    path, _ = videos[encoding]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assembly = video._Assembly([request(wanted)], 30, SIZE)
        groups = video._needed_groups(container, stream, assembly, float(stream.time_base))
        shown = {round(packet.pts * packet.time_base * 30) for group, _ in groups for packet in group}
    assert shown == set(decoded)


def test_frames_that_strided_scoring_needs(videos):
    path, sequential = videos["h264 with open groups"]
    mask = needed_frames(LENGTH, 6, Window(frame_gap=12))
    frames = np.flatnonzero(mask).tolist()
    assert 0 < len(frames) < LENGTH / 2
    results = read(path, [request(group) for group in split(frames, 64)])
    assert np.array_equal(np.concatenate(results), sequential[mask])


def test_several_episodes_and_chunks_of_one_file(tmp_path):
    dataset = open_dataset(
        str(write_dataset(tmp_path / "d", lengths=[40, 55, 33], episodes_per_video=3, gop=7, bframes=2))
    )
    files = dataset.camera_files(CAMERA)
    assert len(files.paths) == 1
    wanted = [(0, range(0, 20)), (0, range(20, 40)), (1, range(0, 55, 5)), (2, [0]), (2, [31, 32])]
    requests = [request(frames, files.from_timestamp[row], row) for row, frames in wanted]
    results = read(Path(dataset.location(files.path(0))), requests)
    assert [read_numbers(result) for result in results] == [
        [frame_code(row, frame) for frame in frames] for row, frames in wanted
    ]
    middle = read(Path(dataset.location(files.path(0))), requests[2:3])
    assert np.array_equal(middle[0], results[2])


@pytest.mark.parametrize("fps", [29.97, 23.976, 12.5, 7.0])
def test_frame_rates_that_are_no_whole_number(tmp_path, fps):
    write_video(tmp_path / "v.mp4", range(70), fps=fps, bframes=2)
    results = read(tmp_path / "v.mp4", [request(range(0, 40)), request([45, 69])], fps=fps)
    assert [read_numbers(result) for result in results] == [list(range(40)), [45, 69]]


def test_twice_the_frame_rate_of_the_rows(tmp_path):
    write_video(tmp_path / "v.mp4", range(80), fps=60)
    (frames,) = read(tmp_path / "v.mp4", [request(range(40))], fps=30)
    assert read_numbers(frames) == list(range(0, 80, 2))


@pytest.mark.real
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_real_video_with_b_frames():
    """gr1_sim: h264 with B-frames; chunks in the middle equal what sequential decoding gives."""
    path = SHARED / "real/gr1_sim/videos/chunk-000/observation.images.ego_view/episode_000004.mp4"
    sequential = decode_all(path)
    assert len(sequential) == 328
    groups = [list(range(3)), [255], [256, 270, 327]]
    results = read(path, [request(group) for group in groups], fps=20.0, size=64)
    for group, result in zip(groups, results, strict=True):
        assert np.array_equal(result, np.stack([resize_and_crop(sequential[frame], 64) for frame in group]))


# ---------------------------------------------------------------------------------------------- identity by the clock


def test_dropped_frames_are_named_and_shift_nothing(tmp_path):
    path = tmp_path / "dropped.mp4"
    kept = [frame for frame in range(60) if frame not in (17, 18, 44)]
    write_video(path, kept, presented=kept, bframes=2)
    results = read(path, [request(range(start, start + 10)) for start in range(0, 60, 10)])
    cause = "the video has no frame at its time"
    last = " (last one at 1.967 s)"  # said once decoding has come to its end
    assert described(results) == [
        list(range(10)),
        f"{path}: frame 17: {cause}; 2 of its chunk's 10 frames are missing",
        list(range(20, 30)),
        list(range(30, 40)),
        f"{path}: frame 44: {cause}{last}; 1 of its chunk's 10 frames are missing",
        list(range(50, 60)),
    ]
    assert (results[1].path, results[1].frame) == (str(path), 17)


def test_dropped_frames_that_nobody_asks_for_do_no_harm(tmp_path):
    kept = [frame for frame in range(60) if frame not in (17, 18, 44)]
    write_video(tmp_path / "v.mp4", kept, presented=kept, bframes=2)
    assert described(read(tmp_path / "v.mp4", [request(range(0, 60, 5))])) == [list(range(0, 60, 5))]


@pytest.mark.parametrize("start", [0.6, 1, 1.5, 2, 15])
def test_a_video_that_does_not_start_at_zero_is_refused(tmp_path, start):
    """Counted or timed, its frames could be off by some: never a guess."""
    path = tmp_path / "late.mp4"
    write_video(path, range(60), presented=[start + frame for frame in range(60)])
    results = read(path, [request(range(10)), request(range(30, 40))])
    seconds = int(start / 30 * 1000) / 1000  # an mp4's edit list counts in milliseconds
    text = f"the video starts at {seconds:.3f} s instead of 0, so its frames cannot be told from shifted ones"
    assert described(results) == [f"{path}: frame 0: {text}", f"{path}: frame 30: {text}"]


def test_a_clock_that_is_less_than_half_a_frame_late_changes_nothing(tmp_path):
    write_video(tmp_path / "v.mp4", range(60), presented=[frame + 0.3 for frame in range(60)])
    assert described(read(tmp_path / "v.mp4", [request(range(60))])) == [list(range(60))]


def test_jittering_times_give_the_nearest_frame(tmp_path):
    rng = np.random.default_rng(0)
    presented = [0.0, *(np.arange(1, 60) + rng.uniform(-0.3, 0.3, 59)).tolist()]
    write_video(tmp_path / "v.mp4", range(60), presented=presented)
    results = read(tmp_path / "v.mp4", [request(range(20)), request(range(20, 60))])
    assert described(results) == [list(range(20)), list(range(20, 60))]


def test_a_video_that_is_too_short(tmp_path):
    path = tmp_path / "short.mp4"
    write_video(path, range(25), bframes=2)
    results = read(path, [request(range(10)), request(range(10, 22)), request(range(22, 30)), request(range(30, 40))])
    last = "the video has no frame at its time (last one at 0.800 s)"
    assert described(results) == [
        list(range(10)),
        list(range(10, 22)),
        f"{path}: frame 25: {last}; 5 of its chunk's 8 frames are missing",
        f"{path}: frame 30: {last}; 10 of its chunk's 10 frames are missing",
    ]


def test_an_episode_beyond_the_end_of_its_file(tmp_path):
    path = tmp_path / "short.mp4"
    write_video(path, range(25))
    (error,) = read(path, [request(range(5), from_timestamp=100.0)])
    assert isinstance(error, VideoError)
    assert (error.path, error.frame) == (str(path), 0)
    assert "the video has no frame at its time" in error.cause


# ------------------------------------------------------------------------------------------------------ broken files


def test_missing_file(tmp_path):
    path = tmp_path / "none.mp4"
    assert described(read(path, [request([0]), request([1])])) == [f"{path}: no such file"] * 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"these are not the frames you are looking for", "Invalid data found when processing input"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer; fetch the video with git lfs pull"),
    ],
)
def test_a_file_that_is_no_video(tmp_path, content, reason):
    path = tmp_path / "v.mp4"
    path.write_bytes(content)
    texts = described(read(path, [request([0]), request([1])]))
    assert texts == [f"{path}: not a readable video ({reason})"] * 2


def test_a_file_without_pictures(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert described(read(path, [request([0])])) == [f"{path}: not a readable video (it has no video stream)"]


def test_a_folder_in_place_of_a_file(tmp_path):
    (text,) = described(read(tmp_path, [request([0])]))
    assert text.startswith(f"{tmp_path}: not a readable video (")


def test_a_file_cut_before_its_index(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, range(50))
    path.write_bytes(path.read_bytes()[:-200])
    texts = described(read(path, [request([0]), request([1])]))
    assert len(texts) == 2
    assert all(text.startswith(f"{path}: not a readable video (") for text in texts)


@pytest.mark.parametrize("options", [{}, {"bframes": 3}, {"bframes": 3, "open_gop": True}, {"codec": "libsvtav1"}])
@pytest.mark.parametrize("share", [0.3, 0.62, 0.9])
def test_a_file_cut_short_loses_exactly_what_is_cut_off(tmp_path, options, share):
    """What comes back is whole and bit-equal; all that is lost is named; the loss is where the cut is."""
    path = tmp_path / "v.mp4"
    write_video(path, range(120), gop=10, size=(96, 96), container_options={"movflags": "faststart"}, **options)
    whole = np.concatenate(read(path, [request(range(120))]))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    results = read(path, [request(range(start, start + 4)) for start in range(0, 120, 4)])
    lost = [isinstance(result, VideoError) for result in results]
    num_whole = lost.index(True)
    assert lost == [False] * num_whole + [True] * (30 - num_whole)
    assert np.array_equal(np.concatenate(results[:num_whole]), whole[: 4 * num_whole])
    assert 120 * share * 0.6 < 4 * num_whole < 120 * min(share * 1.3, 0.99)
    for number, error in enumerate(results[num_whole:], num_whole):
        assert 4 * number <= error.frame < 4 * number + 4
        assert "last one at" in error.cause


@pytest.mark.parametrize("options", [{}, {"bframes": 3}, {"bframes": 3, "open_gop": True}, {"codec": "libsvtav1"}])
def test_damage_never_passes_for_a_picture(tmp_path, options):
    """A broken packet costs its group and what leans on it at most, what may refer to it at least; all else is bit-equal."""
    path = tmp_path / "v.mp4"
    write_video(path, range(80), gop=10, size=(96, 96), **options)
    groups: list[list[tuple[int, int, int]]] = []  # packets from each keyframe: place, size, and the frame they show
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.pts is not None:
                groups += [[]] if packet.is_keyframe else []
                groups[-1].append((packet.pos, packet.size, round(packet.pts * packet.time_base * 30)))
    requests = [request(range(start, start + 2)) for start in range(0, 80, 2)]
    whole, content = read(path, requests), path.read_bytes()
    for previous, group, following in zip([[], *groups], groups, [*groups[1:], []], strict=False):
        number = 7 * group[0][2] % len(group)
        position, num_bytes, frame = group[number]
        path.write_bytes(content[:position] + b"\xff" * num_bytes + content[position + num_bytes :])
        results = read(path, requests)
        lost = {k for k, result in enumerate(results) if isinstance(result, VideoError)}
        leading = {shown for _, _, shown in following if shown < following[0][2]}
        assert {shown // 2 for shown in {shown for _, _, shown in group[number:]} | leading} <= lost, frame
        # A broken keyframe is no keyframe: its group then counts as the end of the one before.
        suspects = {shown for _, _, shown in [*group, *(previous if number == 0 else [])]} | leading
        assert lost <= {shown // 2 for shown in suspects}, frame
        for k, result in enumerate(results):
            if k in lost:
                assert "decoder error after" in result.cause
            else:
                assert np.array_equal(result, whole[k]), (frame, k)


# ------------------------------------------------------------------------------------------------------------ images


def test_image_datasets_come_through_the_same_call(tmp_path):
    root = write_dataset(tmp_path / "d", lengths=[12, 9, 7], image_dataset=True, episodes_per_data_file=2)
    dataset = open_dataset(str(root))
    files = dataset.camera_files(CAMERA)
    assert not dataset.is_video(CAMERA)
    assert files is dataset.data_files
    location = dataset.location(files.path(1))
    requests = [request(range(12), 0.0, 0), request([0, 3, 8], 0.0, 1)]
    first, second = read_frames(location, requests, 30, 64, CAMERA)
    assert read_numbers(first) == [frame_code(0, frame) for frame in range(12)]
    assert read_numbers(second) == [frame_code(1, frame) for frame in (0, 3, 8)]
    assert np.array_equal(second[1], resize_and_crop(draw_frame(frame_code(1, 3), 64, 96), 64))


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_image_datasets_of_older_versions(tmp_path, version):
    dataset = open_dataset(str(write_dataset(tmp_path / "d", version, [5, 6], image_dataset=True)))
    location = dataset.location(dataset.camera_files(CAMERA).path(1))
    (frames,) = read_frames(location, [request([1, 5], 0.0, 1)], 30, SIZE, CAMERA)
    assert read_numbers(frames) == [frame_code(1, 1), frame_code(1, 5)]


def test_broken_images_are_named(tmp_path):
    root = write_dataset(tmp_path / "d", lengths=[10], image_dataset=True)
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    cells = table[CAMERA].to_pylist()
    cells[3]["bytes"] = cells[3]["bytes"][:200]
    cells[6]["bytes"] = None
    cells[8] = None
    broken = table.set_column(0, CAMERA, pa.array(cells, table[CAMERA].type))
    pq.write_table(broken.take([*range(9)]), path)
    groups = [[0, 1, 2], [3, 4], [4, 5], [6], [7], [8], [8, 9], [9]]
    results = list(read_frames(str(path), [request(group) for group in groups], 30, SIZE, CAMERA))
    texts = described(results)
    assert [text for text in texts if isinstance(text, list)] == [[0, 1, 2], [4, 5], [7]]
    assert texts[1].startswith(f"{path}: frame 3: not a readable image (")
    assert texts[3].startswith(f"{path}: frame 6: not a readable image (")
    assert texts[5].startswith(f"{path}: frame 8: not a readable image (")
    assert texts[6].startswith(f"{path}: frame 8: not a readable image (")
    assert texts[7] == f"{path}: frame 9: the episode's 9 rows do not have it"


def test_a_lost_row_shifts_no_image(tmp_path):
    root = write_dataset(tmp_path / "d", lengths=[10], image_dataset=True)
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take([0, 1, 2, 4, 5, 9, 8, 7, 6]), path)
    results = read_frames(str(path), [request([0, 1, 2]), request([3, 4]), request([4, 9])], 30, SIZE, CAMERA)
    assert described(list(results)) == [
        [0, 1, 2],
        f"{path}: frame 3: the episode's 9 rows do not have it",
        [4, 9],
    ]


def test_image_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "none.parquet"
    assert described(list(read_frames(str(path), [request([0])], 30, SIZE, CAMERA))) == [f"{path}: no such file"]
    path.write_bytes(b"PAR1 not really")
    (text,) = described(list(read_frames(str(path), [request([0])], 30, SIZE, CAMERA)))
    assert text.startswith(f"{path}: not a readable parquet file (")


def test_odd_sizes_of_images(tmp_path):
    """PNG datasets may have odd sides; the numbers survive."""
    root = write_dataset(tmp_path / "d", lengths=[4], image_dataset=True, size=(65, 97))
    path = root / "data/chunk-000/file-000.parquet"
    (frames,) = read_frames(str(path), [request(range(4))], 30, SIZE, CAMERA)
    assert read_numbers(frames) == [0, 1, 2, 3]


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(VideoError("/a/b.mp4", 7, "gone")))  # noqa: S301  what Ray does
    assert (str(error), error.path, error.frame) == ("/a/b.mp4: frame 7: gone", "/a/b.mp4", 7)
    assert str(VideoError("/a/b.mp4", None, "gone")) == "/a/b.mp4: gone"
