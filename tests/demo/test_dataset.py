"""The demo's datasets: what is in them for any seed, and their files by LeRobot's schema, from a small demo."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from sarm_ray.core.targets import annotated_segments, temporal_proportions
from sarm_ray.data.annotation_io import read_annotations
from sarm_ray.data.inspection.inspect import inspect_dataset
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.outcomes import dataset_outcomes
from sarm_ray.data.rows import read_rows, read_task_table
from sarm_ray.demo import dataset as demo
from sarm_ray.demo.dataset import (
    CHANGED,
    SPLITS,
    STATE_NOISE,
    USUAL,
    DemoPaths,
    Split,
    draw_pictures,
    num_frames,
    plan_demo,
    write_demo,
)
from sarm_ray.demo.lerobot_writer import CAMERA, EPISODES_PER_FILE
from sarm_ray.demo.motion import STAGES, SUBTASKS, segments_of
from sarm_ray.demo.plans import OUTCOMES
from sarm_ray.demo.scene import SIZE

GRADES = {"failure": 0.0, "partial": 0.5, "success": 1.0}
SMALL = {
    "train": Split(USUAL, {"clean": 1, "drop": 1, "misgrasp": 1}, {}),
    "test": Split(USUAL, {"drop": 1}, {"phantom carry": 1, "stopped midway": 1}),
    "variant": Split(CHANGED, {"clean": 1}, {}),
}
SCALARS = {
    "timestamp": "float",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


@pytest.fixture(scope="module")
def patched():
    """A demo of seven episodes, two of them in a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SPLITS", SMALL)
        patch.setattr(demo, "TEMPOS", (1.8, 2.16))
        patch.setattr("sarm_ray.demo.lerobot_writer.EPISODES_PER_FILE", 2)
        yield


@pytest.fixture(scope="module")
def written(patched, tmp_path_factory) -> DemoPaths:
    return write_demo(tmp_path_factory.mktemp("demo"), seed=5)


@pytest.fixture(scope="module")
def planned(patched):
    return plan_demo(5)


def decode(root: Path) -> list[np.ndarray]:
    pictures = []
    for path in sorted(root.glob(f"videos/{CAMERA}/chunk-000/*.mp4")):
        with av.open(str(path)) as container:
            pictures += [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return pictures


# ---------------------------------------------------------------------------------------------- any seed, not drawn


@pytest.mark.parametrize("seed", range(8))
def test_every_demo_has_all_that_it_is_to_show(seed):
    plans = plan_demo(seed)
    assert num_frames(plans) <= 8000
    for name, split in SPLITS.items():
        kinds = Counter(each.episode.kind for each in plans[name])
        assert kinds == Counter(split.demonstrations) + Counter(split.rollouts)
        annotated = [each.annotated for each in plans[name]]
        assert annotated == sorted(annotated, reverse=True)  # rollouts come last
        assert all(each.episode.outcome == "success" for each in plans[name] if each.annotated)
        tempos = [each.episode.tempo for each in plans[name]]
        assert max(tempos) / min(tempos) == pytest.approx(3)
    kinds = {each.episode.kind for each in plans["train"] + plans["test"]}
    assert kinds == set(OUTCOMES)
    assert {each.episode.outcome for each in plans["test"] if not each.annotated} == set(GRADES)
    assert 0.5 < np.mean([each.episode.kind == "clean" for each in plans["train"]]) <= 0.6
    assert len({each.look.block for each in plans["train"]}) == len(USUAL.blocks)
    assert len({each.look.plate for each in plans["train"]}) == len(USUAL.plates)


def test_the_variant_has_no_colour_and_no_place_of_the_camera_that_the_others_have():
    assert not set(CHANGED.blocks + CHANGED.plates) & set(USUAL.blocks + USUAL.plates)
    assert np.linalg.norm(np.subtract(CHANGED.camera.position, USUAL.camera.position)) > 0.2


def test_a_plan_is_a_function_of_its_seed_and_episodes_do_not_repeat():
    first, second, other = plan_demo(0), plan_demo(0), plan_demo(1)
    for name in SPLITS:
        assert [each.look for each in first[name]] == [each.look for each in second[name]]
        np.testing.assert_array_equal(first[name][0].episode.motion.hand, second[name][0].episode.motion.hand)
        assert first[name][0].look != other[name][0].look
    targets = [each.episode.target for planned in first.values() for each in planned]
    assert len(set(targets)) == len(targets)


def test_the_state_says_nothing_of_the_block(planned):
    """The same path of the hand over another block gives the same state, to the last bit."""
    each = planned["train"][0]
    motion = replace(each.episode.motion, block=each.episode.motion.block + 1.0, yaw=each.episode.motion.yaw + 1.0)
    moved = replace(each, episode=replace(each.episode, motion=motion, target=(9.0, 9.0)))
    state, other = demo.record(each).state, demo.record(moved).state
    np.testing.assert_array_equal(state, other)
    truth = np.column_stack([motion.hand, motion.opening])
    error = state - truth
    assert (np.abs(error) < 5 * STATE_NOISE).all()
    np.testing.assert_allclose(error.std(0), STATE_NOISE, rtol=0.4)


# ---------------------------------------------------------------------------------------------------- what is written


def test_there_are_three_datasets_and_nothing_unfinished(written, planned):
    folder = written.train.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "tabletop_test", "tabletop_test_labels.csv", "tabletop_train", "tabletop_variant",
    ]  # fmt: skip
    for name in SMALL:
        dataset = open_dataset(str(getattr(written, name)))
        assert dataset.version == "v3.0"
        assert dataset.length.tolist() == [len(each.episode.motion) for each in planned[name]]
        assert dataset.tasks == tuple((each.task,) for each in planned[name])
        assert not dataset.notices


@pytest.mark.parametrize("name", SMALL)
def test_inspection_finds_nothing_bad(written, name):
    inspection = inspect_dataset(str(getattr(written, name)))
    assert [finding for finding in inspection.findings if finding.verdict == "bad"] == []
    warned = {finding.topic for finding in inspection.findings if finding.verdict == "warn"}
    assert warned <= {"lengths", "annotations"}  # shorter than 24 s; recoveries go through a stage twice


def test_data_files_hold_lerobots_columns_one_row_group_per_episode(written, planned):
    first = 0
    for number, path in enumerate(sorted(written.train.glob("data/chunk-000/*.parquet"))):
        file = pq.ParquetFile(path)
        types = {field.name: str(field.type) for field in file.schema_arrow}
        vector = "fixed_size_list<element: float>[4]"
        assert types == {"observation.state": vector, "action": vector, **SCALARS}
        assert file.num_row_groups == len(planned["train"][2 * number : 2 * number + 2])
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            episode = 2 * number + group
            length = len(planned["train"][episode].episode.motion)
            assert table["episode_index"].to_pylist() == [episode] * length
            assert table["frame_index"].to_pylist() == list(range(length))
            assert table["index"].to_pylist() == list(range(first, first + length))
            np.testing.assert_array_equal(table["timestamp"].to_numpy(), (np.arange(length) / 10).astype(np.float32))
            first += length


def test_an_action_is_the_next_pose_without_noise(written, planned):
    dataset = open_dataset(str(written.train))
    motion = planned["train"][1].episode.motion
    rows = read_rows(dataset, 1, ["observation.state", "action"])
    np.testing.assert_allclose(rows["action"][:-1, :3], motion.hand[1:], atol=1e-6)
    np.testing.assert_allclose(rows["action"][:-1, 3], motion.opening[1:], atol=1e-6)
    assert (np.abs(rows["observation.state"][1:] - rows["action"][:-1]) < 6 * STATE_NOISE).all()


@pytest.mark.parametrize("name", SMALL)
def test_every_row_has_its_picture(written, planned, name):
    pictures = decode(getattr(written, name))
    assert len(pictures) == num_frames({name: planned[name]})
    drawn = [picture for each in planned[name] for picture in draw_pictures(each)]
    for picture, original in zip(pictures[::7], drawn[::7], strict=True):
        assert np.abs(picture.astype(float) - original).mean() < 6  # of 255; the codec's loss, with the noise
        assert np.abs(picture.astype(float).mean((0, 1)) - original.mean((0, 1))).max() < 3


def test_videos_play_in_a_browser_and_every_episode_begins_with_a_keyframe(written):
    table = pq.read_table(written.train / "meta/episodes")
    for number, path in enumerate(sorted(written.train.glob(f"videos/{CAMERA}/chunk-000/*.mp4"))):
        raw = path.read_bytes()
        assert raw.index(b"moov") < raw.index(b"mdat")  # can be shown before it is loaded whole
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert (stream.width, stream.height, stream.average_rate) == (SIZE, SIZE, 10)
            frames = [(float(frame.time), frame.key_frame) for frame in container.decode(video=0)]
        np.testing.assert_allclose([moment for moment, _ in frames], np.arange(len(frames)) / 10, atol=1e-6)
        keyframes = {round(moment * 10) for moment, key in frames if key}
        own = table.filter(np.array(table[f"videos/{CAMERA}/file_index"]) == number)
        assert {round(moment * 10) for moment in own[f"videos/{CAMERA}/from_timestamp"].to_pylist()} <= keyframes
        assert np.diff(sorted(keyframes)).max() <= 10


def test_annotations_are_the_plans_and_absent_from_rollouts(written, planned):
    for name in SMALL:
        annotations = read_annotations(open_dataset(str(getattr(written, name))))
        assert set(annotations) == {"sparse", "dense", "unprefixed"}
        for kind, names in (("sparse", STAGES), ("dense", SUBTASKS), ("unprefixed", STAGES)):
            a = annotations[kind]
            assert a.annotated.tolist() == [each.annotated for each in planned[name]]
            assert set(a.stages) == set(names)
            for row, each in enumerate(planned[name]):
                motion = each.episode.motion
                expected = segments_of(motion.subtasks if kind == "dense" else motion.stages) if each.annotated else ()
                own = slice(a.offsets[row], a.offsets[row + 1])
                told = zip(a.stage[own].tolist(), a.start[own].tolist(), a.end[own].tolist(), strict=True)
                assert [(a.stages[stage], start, end) for stage, start, end in told] == [
                    (segment.name, segment.start, segment.end) for segment in expected
                ]


def test_proportions_are_the_papers_and_in_the_order_of_the_stages(written):
    for kind, names in (("sparse", STAGES), ("dense", SUBTASKS)):
        a = read_annotations(open_dataset(str(written.train)))[kind]
        position = np.array([names.index(stage) for stage in a.stages])
        segments = annotated_segments(a.offsets, position[a.stage], a.start, a.end)
        shares = json.loads((written.train / f"meta/temporal_proportions_{kind}.json").read_text())
        assert tuple(shares) == names
        np.testing.assert_allclose(list(shares.values()), temporal_proportions(segments, names))


def test_outcomes_are_in_the_table_and_in_the_labels(written, planned):
    dataset = open_dataset(str(written.test))
    expected = [GRADES[each.episode.outcome] for each in planned["test"]]
    assert sorted(expected) == [0.0, 0.5, 1.0]
    assert dataset_outcomes(dataset, None).tolist() == expected
    assert dataset_outcomes(dataset, str(written.labels)).tolist() == expected


def test_tasks_name_the_colours(written, planned):
    tasks = read_task_table(open_dataset(str(written.train)))
    first = planned["train"][0]
    assert tasks[0] == first.task == f"put the {first.look.block} block on the {first.look.plate} plate"
    schema = pq.read_schema(written.train / "meta/tasks.parquet")
    assert json.loads(schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_info_describes_what_is_there(written, planned):
    info = json.loads((written.test / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["chunks_size"]) == ("v3.0", 10, 1000)
    assert (info["total_episodes"], info["total_frames"]) == (3, num_frames({"test": planned["test"]}))
    assert info["splits"] == {"train": "0:3"}
    features = info["features"]
    assert set(features) == {CAMERA, "observation.state", "action", *SCALARS}
    assert features[CAMERA]["shape"] == [SIZE, SIZE, 3]
    assert features["observation.state"] == {"dtype": "float32", "shape": [4], "names": ["x", "y", "z", "gripper"]}


def test_statistics_are_those_of_the_rows_and_pictures(written):
    stats = json.loads((written.train / "meta/stats.json").read_text())
    dataset = open_dataset(str(written.train))
    state = np.concatenate([read_rows(dataset, row, ["observation.state"])["observation.state"] for row in range(3)])
    for name, figure in (("mean", state.mean(0)), ("std", state.std(0)), ("min", state.min(0)), ("max", state.max(0))):
        np.testing.assert_allclose(stats["observation.state"][name], figure, atol=1e-6)
    assert stats["observation.state"]["count"] == [len(state)]
    pictures = np.stack(decode(written.train)) / 255
    assert np.shape(stats[CAMERA]["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["mean"]), pictures.mean((0, 1, 2)), atol=0.02)
    table = pq.read_table(written.train / "meta/episodes")
    for name, values in stats.items():
        counts = np.concatenate(table[f"stats/{name}/count"].to_pylist())
        means = np.array(table[f"stats/{name}/mean"].to_pylist()).reshape(3, -1)
        np.testing.assert_allclose(counts @ means / counts.sum(), np.ravel(values["mean"]), rtol=1e-6)
        assert counts.sum() == values["count"][0]


def test_the_same_seed_writes_the_same_and_replaces_what_was_there(patched, written, planned, tmp_path):
    (tmp_path / ".train.unfinished").mkdir()
    (tmp_path / ".train.unfinished/half.mp4").touch()
    (tmp_path / "train").mkdir()
    (tmp_path / "train/old.parquet").touch()
    frames = []
    again = write_demo(tmp_path, seed=5, frame_written=lambda: frames.append(1))
    assert len(frames) == num_frames(planned)
    for name in SMALL:
        old, new = getattr(written, name), getattr(again, name)
        paths = sorted(path.relative_to(old) for path in old.rglob("*") if path.is_file())
        assert paths == sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file())
        for path in paths:
            if path.suffix == ".parquet":
                assert pq.read_table(old / path).equals(pq.read_table(new / path))
            elif path.suffix == ".json":
                assert (old / path).read_text() == (new / path).read_text()
        np.testing.assert_array_equal(decode(old), decode(new))


def test_files_hold_several_episodes():
    assert EPISODES_PER_FILE > 1
