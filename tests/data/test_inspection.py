"""Inspection of sound datasets, real ones, and ones broken in every way that we have seen; always real files."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from sarm_ray.cli import main
from sarm_ray.data.inspection.findings import Finding, selection_without
from sarm_ray.data.inspection.footage import Span, is_black, is_frozen, missing_frames
from sarm_ray.data.inspection.inspect import inspect_dataset
from sarm_ray.data.inspection.labels import group_alike
from sarm_ray.data.inspection.metadata import declared_size
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.report.inspection import describe_inspection, inspection_object
from tests.datasets import CAMERA, SHARED, SPARSE_STAGES, TASKS, write_dataset, write_video
from tests.hub import hub_environment, serve_hub

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
LENGTHS = (250, 245, 260)
V2_VIDEO = f"videos/chunk-000/{CAMERA}/episode_{{:06d}}.mp4"
V2_DATA = "data/chunk-000/episode_{:06d}.parquet"
V3_VIDEO = f"videos/{CAMERA}/chunk-000/file-{{:03d}}.mp4"
V3_TABLE = "meta/episodes/chunk-000/file-{:03d}.parquet"
RED, CUP = TASKS


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    """Sound datasets: nothing to complain of in either."""
    folder = tmp_path_factory.mktemp("originals")
    options = {"lengths": LENGTHS, "size": (32, 48), "gop": 10, "annotated": True}
    return {version: write_dataset(folder / version, version, **options) for version in ("v3.0", "v2.1")}


@pytest.fixture
def v3(originals, tmp_path) -> Path:
    return Path(shutil.copytree(originals["v3.0"], tmp_path / "v3"))


@pytest.fixture
def v2(originals, tmp_path) -> Path:
    return Path(shutil.copytree(originals["v2.1"], tmp_path / "v2"))


def finding_of(root: Path, topic: str, words: str, sample: int = 20) -> Finding:
    """The one finding of a topic that says something."""
    findings = inspect_dataset(str(root), sample=sample).findings
    found = [finding for finding in findings if finding.topic == topic and words in finding.found]
    assert len(found) == 1, "\n".join(f"{f.verdict} {f.topic}: {f.found} -> {f.action}" for f in findings)
    return found[0]


def edit_info(root: Path, **changes) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_feature(root: Path, key: str, **changes) -> None:
    features = json.loads((root / "meta/info.json").read_text())["features"]
    edit_info(root, features=features | {key: features[key] | changes})


def edit_lines(path: Path, change: Callable[[dict], object]) -> None:
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        change(entry)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def edit_column(path: Path, name: str, change: Callable[[list], list]) -> None:
    """Change a column of a parquet file, keeping its type."""
    table = pq.read_table(path)
    place = table.column_names.index(name)
    field = table.schema.field(place)
    values = change(table[name].to_pylist())
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), path)


def still_video(path: Path, level: int, length: int, fps: int = 30) -> None:
    """Every frame shows the same picture, black for level 0; noise as a codec at a usual quality makes it."""
    y, x = np.mgrid[0:32, 0:48]
    picture = np.clip(level * (1 + np.sin(x / 5) * np.cos(y / 4)), 0, 255)[..., None].repeat(3, axis=2).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "28", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = 48, 32, "yuv420p", 10
        for _ in range(length):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


# ------------------------------------------------------------------------------------------------- what is as it should


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_a_sound_dataset_has_nothing_but_ok(originals, version):
    found = inspect_dataset(str(originals[version]))
    assert {finding.verdict for finding in found.findings} == {"ok"}
    assert not any(finding.action for finding in found.findings)
    assert (found.version, found.fps, found.num_episodes, found.num_frames) == (version, 30, 3, 755)
    assert found.hours == pytest.approx(755 / 30 / 3600)
    assert (found.lengths.minimum, found.lengths.median, found.lengths.maximum) == (245, 250, 260)
    (camera,) = found.cameras
    assert (camera.key, camera.kind, camera.height, camera.width) == (CAMERA, "video", 32, 48)
    assert (camera.codec, camera.pix_fmt, camera.fps, camera.keyframe_interval) == ("h264", "yuv420p", 30, 10)
    num_files = 2 if version == "v3.0" else 3
    assert (camera.num_files, camera.num_missing, camera.num_empty, camera.num_opened) == (num_files, 0, 0, num_files)
    assert [(v.key, v.width, v.constant, v.not_finite) for v in found.vectors] == [
        ("observation.state", 6, (), {}),
        ("action", 6, (), {}),
    ]
    assert found.tasks.most_frequent == {RED: 2, CUP: 1}
    assert [(a.kind, a.num_episodes) for a in found.annotations] == [("sparse", 3), ("dense", 3), ("unprefixed", 3)]
    assert found.annotations[0].stages == tuple(SPARSE_STAGES)
    assert found.sample.episodes == (0, 1, 2)
    assert (found.sample.num_video_files, found.sample.num_data_files, found.sample.num_frames) == (
        num_files,
        num_files,
        15,
    )


def test_the_sample_is_spread_and_always_the_same(tmp_path):
    root = write_dataset(tmp_path, lengths=[3] * 40, size=(16, 16), episodes_per_video=4, episodes_per_data_file=8)
    first, again = (inspect_dataset(str(root), sample=5).sample for _ in range(2))
    assert first == again
    assert len(first.episodes) == 5
    assert (first.episodes[0], first.episodes[-1]) == (0, 39)
    assert all(8 * part <= episode < 8 * (part + 1) for part, episode in enumerate(first.episodes))
    none = inspect_dataset(str(root), sample=0)
    assert (none.sample.episodes, none.sample.num_frames) == ((), 0)
    assert none.cameras[0].codec is None
    assert {"files", "lengths", "tasks"} <= {finding.topic for finding in none.findings}


def test_image_datasets(tmp_path):
    root = write_dataset(tmp_path, lengths=(12, 9), size=(32, 48), image_dataset=True)
    found = inspect_dataset(str(root))
    (camera,) = found.cameras
    assert (camera.kind, camera.height, camera.width, camera.codec) == ("image", 32, 48, "png")
    assert finding_of(root, CAMERA, "2 files opened").verdict == "ok"
    (path,) = root.glob("data/*/*.parquet")
    table = pq.read_table(path)
    cells = table[CAMERA].to_pylist()
    for row in range(12, 21):
        cells[row] = cells[12]
    cells[11] = {"bytes": b"no picture", "path": None}
    edit_column(path, CAMERA, lambda _: cells)
    frozen, damaged = finding_of(root, CAMERA, "frozen"), finding_of(root, CAMERA, "frame 11 is not a readable image")
    assert (frozen.verdict, damaged.verdict) == ("bad", "bad")
    assert "1 of 2 episodes looked at is frozen: the same picture from beginning to end: episode 1" in frozen.found
    assert "--episodes 1:2" in damaged.action


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_missing_video(v2):
    (v2 / V2_VIDEO.format(1)).unlink()
    finding = finding_of(v2, CAMERA, "missing")
    assert finding.verdict == "bad"
    assert finding.found == f"1 of 3 files is missing: {V2_VIDEO.format(1)} (episode 1)"
    assert finding.action == "fetch or record again; else leave it out with --episodes 0:1,2:3"
    assert finding_of(v2, "metadata", "total_videos is 3, not 2").verdict == "warn"
    assert inspect_dataset(str(v2)).cameras[0].num_missing == 1


def test_an_empty_video_and_an_empty_data_file(v3):
    (v3 / V3_VIDEO.format(0)).write_bytes(b"")
    (v3 / "data/chunk-000/file-001.parquet").write_bytes(b"")
    video, data = finding_of(v3, CAMERA, "empty"), finding_of(v3, "rows", "empty")
    assert (video.verdict, data.verdict) == ("bad", "bad")
    assert video.found == f"1 of 2 files is empty: {V3_VIDEO.format(0)} (episodes 0, 1)"
    assert video.action.endswith("leave them out with --episodes 2:3")
    assert data.found == "1 of 2 files is empty: data/chunk-000/file-001.parquet (episode 2)"


def test_a_camera_that_exists_on_paper_alone(v3):
    feature = json.loads((v3 / "meta/info.json").read_text())["features"][CAMERA]
    edit_feature(v3, "action")
    features = json.loads((v3 / "meta/info.json").read_text())["features"]
    edit_info(v3, features=features | {"observation.images.wrist": feature})
    finding = finding_of(v3, "observation.images.wrist", "none of its files is there")
    assert finding.verdict == "warn"
    assert finding.action == f"remove it from meta/info.json; score takes {CAMERA}"
    assert inspect_dataset(str(v3)).num_bad == 0


def test_no_video_at_all(v3):
    shutil.rmtree(v3 / "videos")
    finding = finding_of(v3, CAMERA, "none of its files is there")
    assert (finding.verdict, finding.action) == ("bad", "fetch or record the videos")


def test_a_video_that_ends_early(v2):
    """The header stands at the beginning, so the file opens; its frames are gone from some point on."""
    path = v2 / V2_VIDEO.format(1)
    frames = list(range(245))
    write_video(path, frames, size=(32, 48), gop=10, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    finding = finding_of(v2, CAMERA, "without a frame")
    assert finding.verdict == "bad"
    assert f"{path.relative_to(v2)} holds " in finding.found
    assert "frames for 245 rows, cut short by " in finding.found
    assert "(episode 1 from frame " in finding.found
    assert "--episodes 0:1,2:3" in finding.action


def test_a_video_whose_header_is_gone(v2):
    path = v2 / V2_VIDEO.format(2)
    path.write_bytes(path.read_bytes()[:-200])
    finding = finding_of(v2, CAMERA, "not a readable video (Invalid data found when processing input)")
    assert finding.verdict == "bad"
    assert "episode 2" in finding.found
    assert "--episodes 0:2" in finding.action


def test_a_git_lfs_pointer(v2):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    (v2 / V2_VIDEO.format(0)).write_text(pointer)
    assert "git lfs pull" in finding_of(v2, CAMERA, "Git LFS pointer").found
    assert finding_of(v2, CAMERA, "1 file with less than 10% of the usual bytes per frame").verdict == "warn"


def test_small_files_are_opened_besides_the_sample(tmp_path):
    root = write_dataset(tmp_path, "v2.1", [30] * 12, size=(32, 48))
    (root / V2_VIDEO.format(7)).write_bytes(b"cut short")
    found = inspect_dataset(str(root), sample=2)
    assert found.sample.episodes == (0, 7, 11)
    assert "episode 7" in finding_of(root, CAMERA, "not a readable video", sample=2).found


def test_a_data_file_that_is_no_parquet(v2):
    (v2 / V2_DATA.format(0)).write_bytes(b"something else")
    finding = finding_of(v2, "rows", "not a readable parquet file")
    assert finding.verdict == "bad"
    assert finding.found.startswith(f"{V2_DATA.format(0)}: ")
    assert "--episodes 1:3" in finding.action


# --------------------------------------------------------------------------------------------------------------- videos


def test_black_and_frozen_cameras(v2):
    still_video(v2 / V2_VIDEO.format(0), 0, LENGTHS[0])
    still_video(v2 / V2_VIDEO.format(2), 110, LENGTHS[2])
    black, frozen = finding_of(v2, CAMERA, "black"), finding_of(v2, CAMERA, "frozen")
    assert black.found == f"1 of 3 episodes looked at is black: episode 0 ({V2_VIDEO.format(0)})"
    assert frozen.found.endswith(f"from beginning to end: episode 2 ({V2_VIDEO.format(2)})")
    assert (black.verdict, frozen.verdict) == ("bad", "bad")
    assert black.action == "record again; else leave it out with --episodes 1:3"


def test_an_episode_of_a_shared_video_is_frozen(v3):
    """Two episodes in one file: the second one's frames all show the same."""
    numbers = [*range(LENGTHS[0]), *[7] * LENGTHS[1]]
    write_video(v3 / V3_VIDEO.format(0), numbers, size=(32, 48), gop=10, keyframes=[LENGTHS[0]])
    assert "episode 1 (" in finding_of(v3, CAMERA, "1 of 3 episodes looked at is frozen").found


def test_a_camera_that_is_always_black(v2):
    for episode, length in enumerate(LENGTHS):
        still_video(v2 / V2_VIDEO.format(episode), 0, length)
    assert finding_of(v2, CAMERA, "black").action == "record again; else choose another camera with --image-key"


def test_fewer_frames_than_rows_in_a_shared_video(v3):
    write_video(v3 / V3_VIDEO.format(0), list(range(480)), size=(32, 48), gop=10)
    finding = finding_of(v3, CAMERA, "without a frame")
    assert finding.verdict == "bad"
    told = f"{V3_VIDEO.format(0)} holds 480 frames for 495 rows: 15 rows without a frame (episode 1 from frame 230 on)"
    assert finding.found == told
    assert finding.action.endswith("leave it out with --episodes 0:1,2:3")


@pytest.mark.parametrize("bframes", [0, 3])
def test_a_gap_in_the_middle(v2, bframes):
    moments = [*range(100), *range(120, 265)]
    write_video(v2 / V2_VIDEO.format(1), range(245), size=(32, 48), presented=moments, bframes=bframes)
    assert "20 rows without a frame (episode 1 from frame 100 on)" in finding_of(v2, CAMERA, "without a frame").found


@pytest.mark.parametrize("options", [{"bframes": 3}, {"codec": "libsvtav1"}, {"gop": 1000}])
def test_sound_videos_of_other_kinds(v2, options):
    write_video(v2 / V2_VIDEO.format(1), range(245), size=(64, 96), **options)
    write_video(v2 / V2_VIDEO.format(0), range(250), size=(32, 48), container_options={"movflags": "frag_keyframe"})
    verdicts = [f for f in inspect_dataset(str(v2)).findings if f.topic == CAMERA and f.verdict == "bad"]
    assert verdicts == []


def test_more_frames_than_rows(v2, v3):
    write_video(v2 / V2_VIDEO.format(1), range(275), size=(32, 48))
    finding = finding_of(v2, CAMERA, "holds 275 frames for 245 rows")
    assert (finding.verdict, "surplus is not used" in finding.action) == ("warn", True)
    write_video(v3 / V3_VIDEO.format(1), range(275), size=(32, 48))
    assert finding_of(v3, CAMERA, "holds 275 frames for 260 rows").verdict == "note"


def test_a_video_that_starts_late(v2):
    moments = [k + 15 for k in range(245)]
    write_video(v2 / V2_VIDEO.format(1), range(245), size=(32, 48), presented=moments)
    finding = finding_of(v2, CAMERA, "starts at")
    assert (finding.verdict, "0.500 s instead of 0" in finding.found) == ("bad", True)
    assert "ffmpeg" in finding.action


@pytest.mark.parametrize(("fps", "verdict"), [(15, "bad"), (60, "warn"), (29.97, "warn")])
def test_another_frame_rate(v2, fps, verdict):
    write_video(v2 / V2_VIDEO.format(0), range(500), size=(32, 48), fps=fps)
    finding = finding_of(v2, CAMERA, "plays at")
    assert finding.verdict == verdict
    assert (
        finding.found
        == f"{V2_VIDEO.format(0)} plays at {fps:.5g} frames per second, the dataset at 30 (1 of 3 opened files)"
    )


def test_pictures_and_codec_other_than_declared(v2):
    feature = json.loads((v2 / "meta/info.json").read_text())["features"][CAMERA]
    edit_feature(v2, CAMERA, shape=[480, 640, 3], info=feature["info"] | {"video.codec": "av1", "video.height": 480})
    told = "the pictures are 48x32, meta/info.json says 640x480; the codec is h264, meta/info.json says av1"
    assert finding_of(v2, CAMERA, told).verdict == "warn"
    write_video(v2 / V2_VIDEO.format(0), range(250), size=(64, 96))
    assert finding_of(v2, CAMERA, "the opened files differ in size: 96x64, 48x32").verdict == "warn"


def test_damage_inside_a_video(v2):
    path = v2 / V2_VIDEO.format(1)
    write_video(path, range(245), size=(32, 48), codec="libsvtav1")
    data = bytearray(path.read_bytes())
    start, length = data.index(b"mdat") + 400, len(data) // 2
    data[start : start + length] = b"\xff" * length
    path.write_bytes(bytes(data))
    finding = finding_of(v2, CAMERA, "decoder")
    assert (finding.verdict, "episode 1" in finding.found) == ("bad", True)


# ----------------------------------------------------------------------------------------------------- rows and vectors


def test_nan_and_constant_dimensions(v2):
    path = v2 / V2_DATA.format(0)

    def spoil(rows: list) -> list:
        return [[float("nan") if k % 10 == 0 else row[0], *row[1:]] for k, row in enumerate(rows)]

    def rest(entry: dict) -> None:
        for moment in ("min", "max", "mean"):
            entry["stats"]["observation.state"][moment][4] = 0.25

    edit_column(path, "observation.state", spoil)
    edit_lines(v2 / "meta/episodes_stats.jsonl", rest)
    holes, still = finding_of(v2, "observation.state", "NaN"), finding_of(v2, "observation.state", "never change")
    assert (holes.verdict, holes.found) == ("bad", "NaN or infinity in joint_0 (0.033 of rows), in the sample")
    assert "scored NaN" in holes.action
    assert (still.verdict, still.found) == ("note", "1 of 6 dimensions never change: joint_4")
    facts = inspect_dataset(str(v2)).vectors[0]
    assert (facts.constant, facts.not_finite) == (("joint_4",), {"joint_0": pytest.approx(25 / 755)})


def test_without_statistics_constant_is_what_the_sample_shows(v3):
    (v3 / "meta/stats.json").unlink()
    for path in v3.glob("data/*/*.parquet"):
        edit_column(path, "observation.state", lambda rows: [[0.5] * 6 for _ in rows])
    finding = finding_of(v3, "observation.state", "never change")
    assert (finding.verdict, "--state-key" in finding.action) == ("bad", True)
    assert finding_of(v3, "statistics", "there are none of observation.state, action").verdict == "warn"


def test_another_width_than_declared(v2):
    edit_feature(v2, "observation.state", shape=[7])
    rows = finding_of(v2, "rows", "observation.state is 6 wide, meta/info.json says 7")
    assert (rows.verdict, rows.found.endswith("(episode 0; likewise episodes 1, 2)")) == ("bad", True)
    assert finding_of(v2, "observation.state", "6 names for 7 dimensions").verdict == "warn"
    assert finding_of(v2, "statistics", "observation.state: 6 numbers of min for 7 dimensions").verdict == "bad"


def test_no_state(v2):
    features = json.loads((v2 / "meta/info.json").read_text())["features"]
    edit_info(v2, features={key: spec for key, spec in features.items() if key != "observation.state"})
    finding = finding_of(v2, "observation.state", "there is no such feature")
    assert (finding.verdict, finding.action) == ("warn", "choose with --state-key: action")


def test_a_state_wider_than_sarm(tmp_path):
    root = write_dataset(tmp_path, lengths=(5, 5), size=(16, 16), state_dim=40)
    assert "40 wide; SARM reads the first 32" in finding_of(root, "observation.state", "40 wide; ").found


def test_statistics_that_are_no_numbers(v3):
    path = v3 / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats["observation.state"]["std"][2] = float("nan")
    path.write_text(json.dumps(stats))
    assert finding_of(v3, "statistics", "observation.state: std is not finite in joint_2").verdict == "bad"
    stats["observation.state"]["std"] = "wide"
    path.write_text(json.dumps(stats))
    assert "malformed statistics" in finding_of(v3, "statistics", "stats.json").found


def test_statistics_of_some_episodes(v2):
    path = v2 / "meta/episodes_stats.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert finding_of(v2, "statistics", "meta/episodes_stats.jsonl lacks 1 of 3 episodes").verdict == "warn"


@pytest.mark.parametrize(
    ("column", "change", "verdict", "words", "action"),
    [
        ("timestamp", lambda v: [t + 0.05 for t in v], "warn", "timestamp of frame ", "LeRobot looks frames up"),
        ("frame_index", lambda v: [k + 1 for k in v], "bad", "frame_index of row 0 is 1, not 0", "rewrite"),
        ("index", lambda v: [k + 9 for k in v], "bad", "index of row 0 is 259, not 250", "rewrite"),
        ("episode_index", lambda v: [5] * len(v), "bad", "episode_index of row 0 is 5, not 1", "rewrite"),
        ("task_index", lambda v: [7] * len(v), "warn", "task_index 7 is not in the table of tasks", "meta/tasks"),
    ],
)
def test_index_columns(v2, column, change, verdict, words, action):
    edit_column(v2 / V2_DATA.format(1), column, change)
    finding = finding_of(v2, "rows", words)
    assert (finding.verdict, action in finding.action) == (verdict, True)
    assert finding.found.startswith(f"{V2_DATA.format(1)}: ")
    assert "(episode 1)" in finding.found


def test_fewer_rows_than_the_metadata_say(v2, v3):
    path = v2 / V2_DATA.format(1)
    pq.write_table(pq.read_table(path).slice(0, 200), path)
    finding = finding_of(v2, "rows", "200 rows, the metadata say 245")
    assert (finding.verdict, "--episodes 0:1,2:3" in finding.action) == ("bad", True)
    path = v3 / "data/chunk-000/file-001.parquet"
    extra = pq.read_table(path).slice(0, 9)
    edited = extra.set_column(extra.column_names.index("episode_index"), "episode_index", pa.array([77] * 9))
    pq.write_table(pa.concat_tables([pq.read_table(path), edited]), path)
    assert finding_of(v3, "rows", "the file has 269 rows, its episodes sum to 260").verdict == "bad"


def test_a_column_that_is_declared_and_not_there(v2):
    path = v2 / V2_DATA.format(2)
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)
    assert finding_of(v2, "rows", "no column 'action', which meta/info.json declares").verdict == "bad"


# ------------------------------------------------------------------------------------------------------------- metadata


def test_wrong_totals(v2):
    edit_info(v2, total_frames=99, total_episodes=4, total_tasks=5, total_videos=6, splits={"train": "0:100"})
    finding = finding_of(v2, "metadata", "contradicts the tables")
    assert finding.verdict == "warn"
    for part in ("total_episodes is 4, not 3", "total_frames is 99, not 755", "total_tasks is 5, not 2"):
        assert part in finding.found
    assert "total_videos is 6, not 3; split 'train' is 0:100 of 3 episodes" in finding.found


def test_contradictions_of_v3_placement(v3):
    table = v3 / V3_TABLE.format(0)
    edit_column(table, "dataset_to_index", lambda v: [v[0], v[1] + 3])
    edit_column(table, f"videos/{CAMERA}/to_timestamp", lambda v: [v[0], v[1] + 1])
    edit_column(table, f"videos/{CAMERA}/from_timestamp", lambda v: [v[0], v[1] - 2])
    index = finding_of(v3, "metadata", "dataset_from_index and dataset_to_index contradict the lengths in episode 1")
    times = finding_of(v3, CAMERA, "from_timestamp and to_timestamp contradict the length in episode 1")
    overlap = finding_of(v3, CAMERA, "episode 1 begin before the episode ahead in the same file ends")
    assert (index.verdict, times.verdict, overlap.verdict) == ("bad", "bad", "bad")


def test_declared_frame_rate_of_the_video(v2):
    feature = json.loads((v2 / "meta/info.json").read_text())["features"][CAMERA]
    edit_feature(v2, CAMERA, info=feature["info"] | {"video.fps": 60, "video.width": 7})
    told = "meta/info.json contradicts itself: video.fps is 60, fps is 30; video.width is 7, the shape says 48"
    assert finding_of(v2, CAMERA, told).verdict == "warn"


@pytest.mark.parametrize(
    ("fps", "verdict", "words"),
    [(0.5, "warn", "0.5 frames per second is unusual"), (29.97, "note", "no whole number"), (10, "note", "spans 24 s")],
)
def test_odd_frame_rates(v2, fps, verdict, words):
    edit_info(v2, fps=fps)
    assert finding_of(v2, "fps", words).verdict == verdict


def test_files_that_the_template_misses(v2):
    edit_info(v2, data_path="data/chunk-{episode_index:03d}/episode_{episode_index:06d}.parquet")
    finding = finding_of(v2, "metadata", "misses 2 of 3 files; each was found by its name")
    assert (finding.verdict, "correct the path template" in finding.action) == ("warn", True)


def test_features_that_are_not_declared(v2):
    features = json.loads((v2 / "meta/info.json").read_text())["features"]
    edit_info(v2, features={key: spec for key, spec in features.items() if key not in ("frame_index", "timestamp")})
    assert finding_of(v2, "metadata", "declares no timestamp, frame_index").verdict == "warn"


def test_numbers_with_gaps(v2):
    edit_lines(v2 / "meta/episodes.jsonl", lambda entry: entry.update(episode_index=entry["episode_index"] * 2))
    assert finding_of(v2, "metadata", "episodes are numbered 0 to 4 with gaps").verdict == "warn"


def test_short_and_outlying_episodes(tmp_path):
    root = write_dataset(tmp_path, lengths=(300, 40, 310, 290, 1000), size=(16, 16))
    short = finding_of(root, "lengths", "no longer than one window")
    assert (short.verdict, short.found.endswith("(240 frames: 8 steps of 30): episode 1")) == ("note", True)
    long, brief = finding_of(root, "lengths", "times longer"), finding_of(root, "lengths", "times shorter")
    assert long.found == "episode 4: more than 3 times longer than the median (1,000 frames against 300)"
    assert (long.verdict, brief.verdict) == ("warn", "warn")
    assert long.action.endswith("leave it out with --episodes 0:4")
    only_short = write_dataset(tmp_path / "short", lengths=(40, 30, 50), size=(16, 16))
    assert finding_of(only_short, "lengths", "3 of 3 episodes no longer than one window").verdict == "warn"


# ----------------------------------------------------------------------------------------------- texts and annotations


def edit_tasks(root: Path, *texts: list[str]) -> None:
    given = iter(texts)
    edit_lines(root / "meta/episodes.jsonl", lambda entry: entry.update(tasks=next(given)))


def test_task_texts(v2):
    edit_tasks(v2, [RED], [RED.upper() + "."], [])
    alike, none = finding_of(v2, "tasks", "differ only in"), finding_of(v2, "tasks", "without a task text")
    assert f"{RED!r} (1) / {RED.upper() + '.'!r} (1)" in alike.found
    assert (alike.verdict, alike.action) == ("warn", "make them one text: SARM sees each as a task of its own")
    assert (none.verdict, none.found) == ("bad", "1 episode without a task text: episode 2")
    assert "--task TEXT" in none.action
    assert finding_of(v2, "tasks", "1 text of episodes not in the table of tasks").verdict == "warn"
    edit_tasks(v2, [RED, CUP], [RED], ["x" * 400])
    assert finding_of(v2, "tasks", f"1 episode with several texts, such as {RED!r}, {CUP!r}").verdict == "note"
    assert finding_of(v2, "tasks", "1 text of more than 300 characters").verdict == "note"


def edit_annotation(root: Path, episode: int, **changes) -> None:
    def change(entry: dict) -> None:
        if entry["episode_index"] == episode:
            entry |= {f"sparse_subtask_{key}": value for key, value in changes.items()}

    edit_lines(root / "meta/episodes.jsonl", change)


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        (
            {"names": None, "start_frames": None, "end_frames": None},
            "warn",
            "sparse: 2 of 3 episodes annotated; not episode 1",
        ),
        ({"end_frames": [9]}, "bad", "sparse: names without as many starts and ends in episode 1"),
        ({"start_frames": [0, 100, 90]}, "bad", "sparse: subtasks that begin before the one ahead ends in episode 1"),
        ({"end_frames": [73, 196, 400]}, "bad", "sparse: subtasks outside the episode in episode 1"),
        ({"end_frames": [0, 196, 245]}, "bad", "sparse: subtasks that do not end after they start in episode 1"),
        (
            {"names": ["push", "approach", "retract"]},
            "warn",
            "most (2) have approach > push > retract, episode 1 has push > approach > retract",
        ),
        ({"names": ["approach", "Push", "retract"]}, "bad", "'push' / 'Push'"),
        ({"names": ["approach", "pull", "retract"]}, "bad", "do not have the same names: 'pull'"),
    ],
)
def test_annotations_of_one_episode(v2, changes, verdict, words):
    edit_annotation(v2, 1, **changes)
    finding = finding_of(v2, "annotations", words)
    assert finding.verdict == verdict
    assert finding.action
    assert finding_of(v2, "annotations", "the columns subtask_* differ").verdict == "warn"


def test_proportions(v2):
    path = v2 / "meta/temporal_proportions_sparse.json"
    path.write_text(json.dumps({"approach": 0.5, "push": 0.5, "retract": 0.5}))
    assert finding_of(v2, "annotations", "sum to 1.5, not 1").verdict == "warn"
    path.unlink()
    finding = finding_of(v2, "annotations", "there is no meta/temporal_proportions_sparse.json")
    assert (finding.verdict, "LeRobot's training refuses" in finding.action) == ("warn", True)
    (v2 / "meta/temporal_proportions_dense.json").write_text("[]")
    assert finding_of(v2, "annotations", "expected an object, found list").verdict == "bad"


def test_unprefixed_annotations_alone(v2):
    drop = lambda e: [e.pop(key) for key in list(e) if key.startswith(("sparse_", "dense_"))]  # noqa: E731
    edit_lines(v2 / "meta/episodes.jsonl", drop)
    finding = finding_of(v2, "annotations", "without the prefix")
    assert (finding.verdict, "sparse_subtask_*" in finding.action) == ("note", True)


def test_no_annotations(tmp_path):
    root = write_dataset(tmp_path, lengths=(5, 5), size=(16, 16))
    finding = finding_of(root, "annotations", "no episode has subtasks")
    assert (finding.verdict, "single_stage" in finding.action) == ("note", True)


# ------------------------------------------------------------------------------------------- metadata of any other shape


@pytest.mark.parametrize(
    "value", [None, "x", -1, [], [None], {"a": 1}, True, 1e9, [[1, 2], [3]], float("nan")], ids=repr
)
def test_metadata_of_any_shape_is_inspected_or_refused(tmp_path, value):
    """Whatever stands where it should not, what comes is a report or one line."""
    root = write_dataset(tmp_path, "v2.1", (6, 5), size=(16, 16), annotated=True)
    info, lines = root / "meta/info.json", root / "meta/episodes.jsonl"
    whole, first = json.loads(info.read_text()), json.loads(lines.read_text().splitlines()[0])
    state, camera = whole["features"]["observation.state"], whole["features"][CAMERA]
    spoiled = [whole | {key: value} for key in ("total_frames", "splits", "robot_type", "chunks_size")]
    spoiled += [whole | {"features": whole["features"] | {"action": state | {key: value}}} for key in state]
    spoiled += [whole | {"features": whole["features"] | {CAMERA: camera | {key: value}}} for key in ("info", "names")]
    results = []
    for text in map(json.dumps, spoiled):
        info.write_text(text)
        results.append(run(str(root), "--sample", "1", "--json"))
    info.write_text(json.dumps(whole))
    for key in ("tasks", "sparse_subtask_names", "sparse_subtask_end_frames"):
        edit_lines(lines, lambda entry, key=key: entry.update({key: value}))
        results.append(run(str(root), "--sample", "1"))
        edit_lines(lines, lambda entry, key=key: entry.update({key: first[key]}))
    assert {result.exit_code for result in results} <= {0, 1, 2}
    assert not any("Traceback" in result.output or "NaN," in result.output for result in results)


# ---------------------------------------------------------------------------------------------------------- pure pieces


def test_texts_that_are_alike():
    texts = Counter({"Fold the shirt": 5, "fold  the shirt.": 2, "fold the skirt": 9, "??": 1, "!": 1})
    assert group_alike(texts) == [["Fold the shirt", "fold  the shirt."]]


def test_missing_frames_by_time():
    spans = (Span(4, 0.0, 10), Span(5, 1.0, 5))
    times = np.array([*np.arange(10), *np.arange(11, 14)]) / 10
    assert {row: frames.tolist() for row, frames in missing_frames(times, spans, 10).items()} == {5: [0, 4]}
    assert missing_frames(np.zeros(0), spans[1:], 10)[5].tolist() == [0, 1, 2, 3, 4]


def test_black_and_frozen():
    dark, scene = np.full((5, 4, 6), 3.0), np.random.default_rng(0).uniform(0, 255, (5, 4, 6))
    assert (is_black(dark), is_black(scene)) == (True, False)
    still = np.repeat(scene[:1], 5, axis=0)
    assert is_frozen(still + np.random.default_rng(1).uniform(-2, 2, still.shape))
    assert not is_frozen(scene)
    assert not is_frozen(still[:2])  # two pictures may well be alike


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ({"shape": [480, 640, 3], "names": ["height", "width", "channels"]}, (480, 640)),
        ({"shape": [3, 480, 640], "names": ["channels", "height", "width"]}, (480, 640)),
        ({"shape": [3, 480, 640]}, (480, 640)),
        ({"shape": [640, 480, 3], "names": ["width", "height", "channel"]}, (480, 640)),
        ({"shape": "big"}, None),
    ],
)
def test_declared_size(spec, size):
    assert declared_size(spec) == size


def test_selection_without(originals):
    dataset = open_dataset(str(originals["v2.1"]))
    assert selection_without(dataset, [1]) == "--episodes 0:1,2:3"
    assert selection_without(dataset, [2]) == "--episodes 0:2"
    assert selection_without(dataset, [0, 1, 2]) == ""


# -------------------------------------------------------------------------------------------------------- real datasets


@needs_shared
@pytest.mark.real
def test_g1_bottle():
    found = inspect_dataset(str(SHARED / "real/g1_bottle"), sample=30)
    assert (found.num_episodes, found.num_frames, found.fps, found.robot_type) == (24, 8488, 30, "Unitree_G1_Inspire")
    assert (found.lengths.minimum, found.lengths.maximum) == (265, 464)
    (camera,) = found.cameras
    assert (camera.width, camera.height, camera.codec, camera.keyframe_interval) == (640, 480, "av1", 2)
    assert [(v.key, v.width, v.constant) for v in found.vectors] == [("observation.state", 26, ()), ("action", 26, ())]
    assert found.tasks.most_frequent == {"Pick up the yellow bottle on the table.": 24}
    assert [(f.topic, f.verdict) for f in found.findings if f.verdict != "ok"] == [("annotations", "note")]
    assert len(found.sample.episodes) == 24


@needs_shared
@pytest.mark.real
def test_gr1_sim_and_its_known_faults():
    found = inspect_dataset(str(SHARED / "real/gr1_sim"))
    assert (found.num_episodes, found.num_frames, found.fps, found.num_bad) == (5, 2096, 20, 0)
    cameras = {camera.key: camera for camera in found.cameras}
    assert cameras["observation.images.egoview"].num_missing == 5
    seen = cameras["observation.images.ego_view"]
    assert (seen.width, seen.height, seen.codec, seen.keyframe_interval) == (256, 256, "h264", 250)
    assert [(v.width, len(v.constant)) for v in found.vectors] == [(44, 18), (44, 25)]
    warned = [finding.found for finding in found.findings if finding.verdict == "warn"]
    for words in (
        "total_videos is 2, not 5; total_chunks is 0, not 1; split 'train' is 0:100 of 5 episodes",
        "misses 4 of 5 files; each was found by its name (data/",
        "misses 4 of 5 files; each was found by its name (videos/",
        "declares no frame_index",
        "declared in meta/info.json, but none of its files is there",
        "timestamp of frame ",
    ):
        assert sum(words in told for told in warned) == 1, warned
    assert len(warned) == 6
    assert any(f.verdict == "note" and "5 episodes with several texts" in f.found for f in found.findings)


@needs_shared
@pytest.mark.parity
@pytest.mark.parametrize("name", ["dataset_v3", "dataset_v21"])
def test_lerobots_own_datasets_have_nothing_but_ok(name):
    found = inspect_dataset(str(SHARED / "lerobot_parity" / name))
    assert {finding.verdict for finding in found.findings} == {"ok"}
    assert (found.num_frames, found.cameras[0].keyframe_interval) == (2050, 2)


# ------------------------------------------------------------------------------------------------------ on the terminal


def run(*arguments: str):
    return CliRunner().invoke(main, ["inspect", *arguments])


def test_the_report(v2):
    edit_tasks(v2, [RED], [RED], [])
    result = run(str(v2))
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= 100
    assert " ".join(result.output.split()).startswith(f"dataset {v2} (LeRobot v2.1, 30 fps, toy) episodes 3, ")
    assert "episodes     3, 755 frames, 25.2 seconds" in lines
    assert "state        observation.state: 6 wide, float32" in lines
    assert "sparse       3 of 3 episodes: approach, push, retract" in lines
    first = next(number for number, line in enumerate(lines) if line.startswith("bad"))
    assert lines[first - 1] == ""
    assert lines[first] == "bad   tasks: 1 episode without a task text: episode 2"
    assert lines[first + 1].startswith("      -> write it into the episode table")
    assert lines[-1].startswith("1 bad, ")
    assert "\x1b" not in result.output


def test_colours_and_width(originals):
    found = inspect_dataset(str(originals["v3.0"]))
    assert "\x1b[32mok" in describe_inspection(found)
    words = " ".join(describe_inspection(found, 80).split())
    assert words == " ".join(describe_inspection(found, 120).split())


def test_json_is_one_object(v3):
    for path in v3.glob("data/*/*.parquet"):
        edit_column(path, "observation.state", lambda rows: [[float("nan")] * 6 for _ in rows])
    result = run(str(v3), "--json", "--sample", "2")
    assert result.exit_code == 1

    def refuse(literal: str) -> None:
        raise AssertionError(f"{literal} is no JSON")

    found = json.loads(result.output, parse_constant=refuse)
    assert found["num_bad"] == 1
    assert found["findings"][0] == {
        "topic": "observation.state",
        "verdict": "bad",
        "found": "NaN or infinity in joint_0 (1 of rows), joint_1 (1 of rows), joint_2 (1 of rows), joint_3 (1 of rows) "
        "and 2 more, in the sample",
        "action": "mend the rows: every frame whose window holds one is scored NaN",
    }
    assert found["cameras"][0]["codec"] == "h264"
    assert found["sample"]["episodes"] == [0, 2]
    assert json.dumps(inspection_object(inspect_dataset(str(v3))), allow_nan=False)


def test_of_a_hub_dataset_the_samples_files_are_fetched(v3, tmp_path):
    with serve_hub({"datasets/someone/toy": v3}) as hub:
        command = [sys.executable, "-m", "sarm_ray", "inspect", "someone/toy", "--sample", "1", "--json"]
        environment = hub_environment(hub.url, tmp_path / "hf")
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        fetched = {name.partition(":")[2] for name in hub.fetched if ":meta/" not in name}
    assert fetched == {V3_VIDEO.format(0), "data/chunk-000/file-000.parquet"}
    found = json.loads(result.stdout)
    assert (found["name"], found["sample"]["episodes"], found["sample"]["num_frames"]) == ("someone/toy", [0], 5)


def test_exit_codes(originals, tmp_path):
    assert run(str(originals["v2.1"])).exit_code == 0
    result = run(str(tmp_path))
    assert result.exit_code == 2
    assert result.output == f"error: {tmp_path}: not a LeRobot dataset (there is no meta/info.json)\n"
    assert run(str(originals["v2.1"]), "--sample", "-1").exit_code == 2
