"""Metadata and rows of LeRobot datasets: LeRobot's own, real ones, generated ones, and broken ones."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sarm_ray.data.lerobot import fetch_files, open_dataset
from sarm_ray.data.rows import episode_texts, read_rows, state_statistics
from sarm_ray.errors import DatasetError
from tests.datasets import CAMERA, SHARED, TASKS, write_dataset
from tests.hub import Hub, hub_environment, serve_hub

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
PARITY = SHARED / "lerobot_parity"
RED, CUP = TASKS
COLUMNS = ["observation.state", "action", "timestamp", "frame_index", "episode_index", "index", "task_index"]


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_table(path: Path, column: str, values: list) -> None:
    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(
        table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type)), path
    )


def fails_with(message: str):
    return pytest.raises(DatasetError, match=f"^{re.escape(message)}")


# ------------------------------------------------------------------------------------- what LeRobot itself has written


@needs_shared
@pytest.mark.parity
def test_lerobots_v3_and_v21_are_the_same_dataset():
    new, old = open_dataset(str(PARITY / "dataset_v3")), open_dataset(str(PARITY / "dataset_v21"))
    assert (new.version, old.version) == ("v3.0", "v2.1")
    lengths = [300, 330, 360, 400, 315, 345]
    for dataset in (new, old):
        assert dataset.length.tolist() == lengths
        assert dataset.from_index.tolist() == [0, 300, 630, 990, 1390, 1705]
        assert dataset.episode_index.tolist() == [0, 1, 2, 3, 4, 5]
        assert dataset.tasks == ((RED,),) * 4 + ((CUP,),) * 2
        assert episode_texts(dataset, np.arange(6)) == [RED] * 4 + [CUP] * 2
        assert dataset.cameras == (CAMERA,)
        assert dataset.fps == 30.0
        assert dataset.notices == ()
        assert set(dataset.videos[CAMERA].paths) | set(dataset.data_files.paths) <= set(dataset.files)
    assert new.videos[CAMERA].paths == (f"videos/{CAMERA}/chunk-000/file-000.mp4",)
    np.testing.assert_allclose(new.videos[CAMERA].from_timestamp, new.from_index / 30, rtol=0, atol=1e-9)
    assert old.videos[CAMERA].path(5) == f"videos/chunk-000/{CAMERA}/episode_000005.mp4"
    assert not old.videos[CAMERA].from_timestamp.any()
    for row in range(6):
        a, b = read_rows(new, row, COLUMNS), read_rows(old, row, COLUMNS)
        for column in COLUMNS:
            assert a[column].dtype == b[column].dtype
            assert np.array_equal(a[column], b[column]), (row, column)
        assert a["observation.state"].shape == (lengths[row], 14)
        assert a["index"].tolist() == list(range(new.from_index[row], new.from_index[row] + lengths[row]))


@needs_shared
@pytest.mark.parity
@pytest.mark.parametrize("key", ["observation.state", "action"])
def test_statistics_of_v3_v21_and_the_rows_agree(key, tmp_path):
    new = open_dataset(str(PARITY / "dataset_v3"))
    mean, std = state_statistics(new, key)
    stats = json.loads((PARITY / "dataset_v3/meta/stats.json").read_text())[key]
    assert mean.tolist() == stats["mean"]
    assert std.tolist() == stats["std"]
    aggregated = state_statistics(open_dataset(str(PARITY / "dataset_v21")), key)
    np.testing.assert_allclose(aggregated, (mean, std), rtol=0, atol=1e-8)

    bare = tmp_path / "bare"
    shutil.copytree(PARITY / "dataset_v21", bare, ignore=shutil.ignore_patterns("episodes_stats.jsonl", "*.mp4"))
    from_rows = state_statistics(open_dataset(str(bare)), key)
    np.testing.assert_allclose(from_rows, (mean, std), rtol=0, atol=1e-5)  # LeRobot sums in float32


# ------------------------------------------------------------------------------------------------------ real datasets


@needs_shared
@pytest.mark.real
def test_g1_bottle_is_sound():
    dataset = open_dataset(str(SHARED / "real/g1_bottle"))
    assert (dataset.version, dataset.fps, dataset.notices) == ("v2.1", 30.0, ())
    assert len(dataset.length) == 24
    assert dataset.length.sum() == 8488
    assert episode_texts(dataset, np.arange(24)) == ["Pick up the yellow bottle on the table."] * 24
    for row in range(24):
        assert dataset.data_files.path(row) in dataset.files
        assert dataset.camera_files("observation.images.cam_high").path(row) in dataset.files
    assert read_rows(dataset, 23, ["observation.state"])["observation.state"].shape == (dataset.length[23], 26)
    mean, std = state_statistics(dataset, "observation.state")
    states = np.concatenate([read_rows(dataset, row, ["observation.state"])["observation.state"] for row in range(24)])
    np.testing.assert_allclose(mean, states.mean(0, dtype=np.float64), rtol=0, atol=1e-5)
    np.testing.assert_allclose(std, states.std(0, dtype=np.float64), rtol=0, atol=1e-5)


@needs_shared
@pytest.mark.real
def test_gr1_sim_is_recovered_from_its_wrong_metadata():
    """Templates that resolve for episode 0 only, a camera without files, no frame_index, two tasks per episode."""
    dataset = open_dataset(str(SHARED / "real/gr1_sim"))
    camera = "observation.images.ego_view"
    assert (dataset.version, dataset.fps) == ("v2.0", 20.0)
    assert dataset.length.tolist() == [416, 470, 470, 412, 328]
    assert dataset.cameras == ("observation.images.egoview", camera)
    assert dataset.notices == (
        "meta/info.json's path template 'data/chunk-{episode_index:03d}/episode_{episode_index:06d}.parquet' misses "
        "4 of 5 files; each was found by its name (data/chunk-001/episode_000001.parquet at "
        "data/chunk-000/episode_000001.parquet)",
        "meta/info.json's path template 'videos/chunk-{episode_index:03d}/{video_key}/episode_{episode_index:06d}.mp4' "
        f"misses 4 of 5 files; each was found by its name (videos/chunk-001/{camera}/episode_000001.mp4 at "
        f"videos/chunk-000/{camera}/episode_000001.mp4)",
    )
    for row in range(5):
        for path in (dataset.data_files.path(row), dataset.camera_files(camera).path(row)):
            assert path in dataset.files
            assert Path(dataset.location(path)).resolve().is_relative_to(Path(dataset.root).resolve())
        assert dataset.camera_files("observation.images.egoview").path(row) not in dataset.files
    assert episode_texts(dataset, np.arange(5)) == [
        f"pick the {thing} from the counter and place it in the plate"
        for thing in ("pear", "sweet potato", "meat", "salt", "cupcake")
    ]
    rows = read_rows(dataset, 4, ["observation.state", "index"])
    assert rows["observation.state"].shape == (328, 44)
    assert rows["observation.state"].dtype == np.float64
    assert rows["index"].tolist() == list(range(1768, 2096))
    assert dataset.from_index.tolist() == [0, 416, 886, 1356, 1768]
    assert state_statistics(dataset, "observation.state")[0].shape == (44,)


# -------------------------------------------------------------------------------------------------- generated datasets

LENGTHS = [12, 7, 20, 5, 9, 15, 1]


@pytest.mark.parametrize("version", ["v3.0", "v2.1", "v2.0"])
@pytest.mark.parametrize("image_dataset", [False, True])
def test_generated_datasets_read_back(tmp_path, version, image_dataset):
    root = write_dataset(tmp_path / "toy", version, LENGTHS, image_dataset=image_dataset, chunks_size=2, annotated=True)
    dataset = open_dataset(str(root))
    assert (dataset.name, dataset.root, dataset.version, dataset.repo_id) == ("toy", str(root), version, None)
    assert dataset.episode_index.tolist() == list(range(7))
    assert dataset.length.tolist() == LENGTHS
    assert dataset.from_index.tolist() == [0, 12, 19, 39, 44, 53, 68]
    assert dataset.tasks == ((RED,), (CUP,)) * 3 + ((RED,),)
    assert dataset.cameras == (CAMERA,)
    assert dataset.is_video(CAMERA) != image_dataset
    assert dataset.notices == ()
    assert set(dataset.camera_files(CAMERA).paths) <= set(dataset.files)
    for row, length in enumerate(LENGTHS):
        rows = read_rows(dataset, row, COLUMNS)
        assert rows["frame_index"].tolist() == list(range(length))
        assert rows["episode_index"].tolist() == [row] * length
        assert rows["index"].tolist() == list(range(dataset.from_index[row], dataset.from_index[row] + length))
        assert rows["observation.state"].shape == (length, 6)
        assert rows["observation.state"].dtype == np.float32
        assert rows["timestamp"].dtype == np.float32


def test_v3_with_several_files_of_every_kind(tmp_path):
    root = write_dataset(
        tmp_path / "toy",
        lengths=LENGTHS,
        episodes_per_video=3,
        episodes_per_data_file=2,
        episodes_per_metadata_file=3,
        chunks_size=2,
        cameras=("observation.images.top", "observation.images.wrist"),
    )
    dataset = open_dataset(str(root))
    assert dataset.data_files.paths == (
        "data/chunk-000/file-000.parquet",
        "data/chunk-000/file-001.parquet",
        "data/chunk-001/file-000.parquet",
        "data/chunk-001/file-001.parquet",
    )
    assert dataset.data_files.file.tolist() == [0, 0, 1, 1, 2, 2, 3]
    for camera in dataset.cameras:
        files = dataset.videos[camera]
        assert files.paths == tuple(
            f"videos/{camera}/{place}.mp4"
            for place in ("chunk-000/file-000", "chunk-000/file-001", "chunk-001/file-000")
        )
        assert files.file.tolist() == [0, 0, 0, 1, 1, 1, 2]
        np.testing.assert_allclose(files.from_timestamp * 30, [0, 12, 19, 0, 5, 14, 0], rtol=0, atol=1e-9)
    assert len(list((root / "meta/episodes").rglob("*.parquet"))) == 3


def test_statistics_of_generated_datasets_agree_in_every_version(tmp_path):
    expected = None
    for version in ("v3.0", "v2.1", "v2.0"):
        with_stats = open_dataset(str(write_dataset(tmp_path / version, version, LENGTHS)))
        without = open_dataset(str(write_dataset(tmp_path / f"{version}-bare", version, LENGTHS, stats=False)))
        states = np.concatenate([read_rows(without, row, ["action"])["action"] for row in range(7)]).astype(np.float64)
        expected = expected if expected is not None else (states.mean(0), states.std(0))
        np.testing.assert_allclose(state_statistics(with_stats, "action"), expected, rtol=0, atol=1e-8)
        np.testing.assert_allclose(state_statistics(without, "action"), expected, rtol=0, atol=1e-8)


def test_the_first_frames_task_is_the_episodes_text(tmp_path):
    for version in ("v3.0", "v2.1"):
        root = write_dataset(tmp_path / version, version, [6, 6], tasks=[("wipe", "also fine"), "solo"])
        dataset = open_dataset(str(root))
        assert dataset.tasks == (("also fine", "wipe"), ("solo",))
        assert episode_texts(dataset, np.array([1, 0])) == ["solo", "wipe"]
        assert episode_texts(dataset, np.array([1, 0]), "mine") == ["mine", "mine"]


def test_rows_come_in_the_order_of_frames(tmp_path):
    root = write_dataset(tmp_path / "d", lengths=[5, 4])
    path = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).take([7, 3, 0, 8, 2, 5, 1, 4, 6]), path)
    dataset = open_dataset(str(root))
    assert read_rows(dataset, 0, ["index"])["index"].tolist() == [0, 1, 2, 3, 4]
    assert read_rows(dataset, 1, ["index"])["index"].tolist() == [5, 6, 7, 8]


def test_episodes_may_lie_in_any_order_and_have_gaps_in_their_numbers(tmp_path):
    root = write_dataset(tmp_path / "d", "v2.1", [5, 4, 3, 2])
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    (root / "meta/episodes.jsonl").write_text("\n".join([lines[3], "", lines[0], lines[2]]) + "\n")
    dataset = open_dataset(str(root))
    assert dataset.episode_index.tolist() == [0, 2, 3]
    assert dataset.length.tolist() == [5, 3, 2]
    assert dataset.data_files.path(1) == "data/chunk-000/episode_000002.parquet"
    assert read_rows(dataset, 1, ["episode_index"])["episode_index"].tolist() == [2, 2, 2]


def test_what_a_killed_writer_left_is_not_read(tmp_path):
    root = write_dataset(tmp_path / "d", lengths=[5, 4])
    (root / "meta/episodes/chunk-000/.tmp-1-abc-file-000.parquet").write_bytes(b"PAR1 half a tab")
    assert open_dataset(str(root)).length.tolist() == [5, 4]


def test_a_moved_video_is_found_by_name_only_where_that_is_unambiguous(tmp_path):
    root = write_dataset(tmp_path / "d", "v2.1", [5, 4])
    old = root / f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    new = root / f"videos/chunk-007/{CAMERA}/episode_000001.mp4"
    new.parent.mkdir(parents=True)
    old.rename(new)
    dataset = open_dataset(str(root))
    assert dataset.videos[CAMERA].path(1) == str(new.relative_to(root))
    assert len(dataset.notices) == 1
    assert "misses 1 of 2 files; each was found by its name" in dataset.notices[0]

    twin = root / f"videos/chunk-008/{CAMERA}/episode_000001.mp4"
    twin.parent.mkdir(parents=True)
    shutil.copy(new, twin)
    dataset = open_dataset(str(root))
    assert dataset.videos[CAMERA].path(1) == str(old.relative_to(root))
    assert dataset.videos[CAMERA].path(1) not in dataset.files
    assert dataset.notices == ()


def test_names(tmp_path, monkeypatch):
    root = write_dataset(tmp_path / "toy", "v2.1", [3])
    monkeypatch.chdir(root)
    for name in (str(root), f"{root}/", "."):
        assert (open_dataset(name).name, open_dataset(name).root) == ("toy", str(root))
    assert open_dataset(f"file://{root}").name == "toy"
    assert open_dataset(f"file://{root}").length.tolist() == [3]


# ------------------------------------------------------------------------------------------------------ broken datasets


def test_not_a_dataset(tmp_path):
    with fails_with(f"{tmp_path}: not a LeRobot dataset (there is no meta/info.json)"):
        open_dataset(str(tmp_path))
    with fails_with(f"{tmp_path}/no/such: not a LeRobot dataset (there is no meta/info.json)"):
        open_dataset(str(tmp_path / "no/such"))


@pytest.fixture
def v3(tmp_path) -> Path:
    return write_dataset(tmp_path / "v3", lengths=[5, 4])


@pytest.fixture
def v21(tmp_path) -> Path:
    return write_dataset(tmp_path / "v21", "v2.1", [5, 4])


def test_unknown_version(v3):
    edit_json(v3 / "meta/info.json", codebase_version="v3.1")  # lerobot-annotate's: the same, and columns of language
    assert open_dataset(str(v3)).version == "v3.0"
    edit_json(v3 / "meta/info.json", codebase_version="v1.6")
    with fails_with(f"{v3}/meta/info.json: codebase_version 'v1.6' is not one of v3.0, v2.1, v2.0"):
        open_dataset(str(v3))


@pytest.mark.parametrize("fps", [0, -30, "30", None, float("nan")])
def test_fps_that_is_none(v3, fps):
    edit_json(v3 / "meta/info.json", fps=fps)
    with fails_with(f"{v3}/meta/info.json: fps must be a positive number, not {fps!r}"):
        open_dataset(str(v3))


def test_features_that_are_none(v3):
    edit_json(v3 / "meta/info.json", features=["observation.state"])
    with fails_with(f"{v3}/meta/info.json: features must be an object, not list"):
        open_dataset(str(v3))


def test_malformed_json(v3, v21):
    (v3 / "meta/info.json").write_text('{"fps": 30,')
    with fails_with(f"{v3}/meta/info.json: malformed JSON (Expecting"):
        open_dataset(str(v3))
    (v3 / "meta/info.json").write_text("[1]")
    with fails_with(f"{v3}/meta/info.json: expected an object, found list"):
        open_dataset(str(v3))
    with (v21 / "meta/episodes.jsonl").open("a") as file:
        file.write("{episode_index: 2}\n")
    with fails_with(f"{v21}/meta/episodes.jsonl: line 3: malformed JSON (Expecting"):
        open_dataset(str(v21))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"episode_index": 2}, "KeyError: 'length'"),
        ({"length": 2}, "KeyError: 'episode_index'"),
        ({"episode_index": 2, "length": "many"}, "ValueError: "),
        ([2, 2], "TypeError: "),
    ],
)
def test_malformed_episodes(v21, line, reason):
    with (v21 / "meta/episodes.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    with fails_with(f"{v21}/meta: malformed episode metadata ({reason}"):
        open_dataset(str(v21))


def test_missing_parts_of_the_metadata(v3, v21):
    (v21 / "meta/episodes.jsonl").unlink()
    with fails_with(f"{v21}: there is no meta/episodes.jsonl"):
        open_dataset(str(v21))
    shutil.rmtree(v3 / "meta/episodes")
    with fails_with(f"{v3}: no episode table under meta/episodes"):
        open_dataset(str(v3))


def test_an_episode_table_without_a_column(v3):
    path = v3 / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["length"]), path)
    with fails_with(f"{v3}/meta: malformed episode metadata (KeyError: "):
        open_dataset(str(v3))
    path.write_bytes(b"PAR1 half a table")
    with fails_with(f"{path}: not a readable parquet file ("):
        open_dataset(str(v3))


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("../../{video_key}/episode_{episode_index:06d}.mp4", f"../../{CAMERA}/episode_000000.mp4"),
        ("videos/../../{video_key}/{episode_index}.mp4", f"videos/../../{CAMERA}/0.mp4"),
        ("/etc/{video_key}/{episode_index}.mp4", f"/etc/{CAMERA}/0.mp4"),
        ("C:/{video_key}/{episode_index}.mp4", f"C:/{CAMERA}/0.mp4"),
        ("videos\\..\\{video_key}{episode_index}.mp4", f"videos\\..\\{CAMERA}0.mp4"),
        ("s3://elsewhere/{episode_index}.mp4", "s3://elsewhere/0.mp4"),
    ],
)
def test_paths_stay_inside_the_root(v21, template, path):
    edit_json(v21 / "meta/info.json", video_path=template)
    with fails_with(f"{v21}/meta/info.json: path {path!r} leaves the dataset's folder"):
        open_dataset(str(v21))
    edit_json(v21 / "meta/info.json", video_path="videos/{episode_index}.mp4", data_path=template)
    with fails_with(f"{v21}/meta/info.json: path {path.replace(CAMERA, 'None')!r} leaves the dataset's folder"):
        open_dataset(str(v21))


def test_a_camera_name_cannot_leave_the_root_either(v3):
    info = json.loads((v3 / "meta/info.json").read_text())
    info["features"]["../../../x"] = info["features"].pop(CAMERA)
    (v3 / "meta/info.json").write_text(json.dumps(info))
    path = v3 / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([name.replace(CAMERA, "../../../x") for name in table.column_names]), path)
    with fails_with(
        f"{v3}/meta/info.json: path 'videos/../../../x/chunk-000/file-000.mp4' leaves the dataset's folder"
    ):
        open_dataset(str(v3))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "data/{chunk}/{episode_index}.parquet",
            "ROOT/meta/info.json: path template 'data/{chunk}/{episode_index}.parquet' uses chunk; LeRobot's fields are ",
        ),
        (
            "data/{episode_index.__class__}.parquet",
            "ROOT/meta/info.json: path template 'data/{episode_index.__class__}.parquet' uses episode_index.__class__; ",
        ),
        ("data/{episode_index:03d", "ROOT/meta: malformed episode metadata (ValueError: "),
        ("data/{episode_index:zz}.parquet", "ROOT/meta: malformed episode metadata (ValueError: "),
        (None, "ROOT/meta/info.json: data_path must be a path template, not None"),
        (7, "ROOT/meta/info.json: data_path must be a path template, not 7"),
    ],
)
def test_templates_that_are_none(v21, template, message):
    edit_json(v21 / "meta/info.json", data_path=template)
    with fails_with(message.replace("ROOT", str(v21))):
        open_dataset(str(v21))


def test_empty_episodes_and_datasets(v3, v21):
    edit_table(v3 / "meta/episodes/chunk-000/file-000.parquet", "length", [5, 0])
    with fails_with(f"{v3}: episode 1 has no frames"):
        open_dataset(str(v3))
    (v21 / "meta/episodes.jsonl").write_text("")
    with fails_with(f"{v21}: no episodes"):
        open_dataset(str(v21))


@pytest.mark.parametrize("tasks", [[], None])
def test_an_episode_without_listed_tasks_has_its_first_frames(v3, tasks):
    texts = episode_texts(open_dataset(str(v3)), np.array([0, 1]))
    edit_table(v3 / "meta/episodes/chunk-000/file-000.parquet", "tasks", [[texts[0]], tasks])
    assert episode_texts(open_dataset(str(v3)), np.array([0, 1])) == texts


@pytest.mark.parametrize("tasks", [[], None, [""], ["  "]])
def test_missing_task_text_names_the_episode(v3, tasks):
    edit_table(v3 / "meta/episodes/chunk-000/file-000.parquet", "tasks", [["fine"], tasks])
    (v3 / "meta/tasks.parquet").unlink()
    dataset = open_dataset(str(v3))
    assert episode_texts(dataset, np.array([0])) == ["fine"]
    assert episode_texts(dataset, np.array([0, 1]), "given") == ["given", "given"]
    with fails_with("v3: episode 1 has no task text; give one with --task TEXT"):
        episode_texts(dataset, np.array([0, 1]))


def test_row_counts_that_differ(v3, v21):
    edit_table(v3 / "meta/episodes/chunk-000/file-000.parquet", "length", [5, 6])
    with fails_with(f"{v3}/data/chunk-000/file-000.parquet: episode 1 has 4 rows, the metadata say 6"):
        read_rows(open_dataset(str(v3)), 1, ["index"])
    path = v21 / "data/chunk-000/episode_000000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 3), path)
    with fails_with(f"{path}: episode 0 has 3 rows, the metadata say 5"):
        read_rows(open_dataset(str(v21)), 0, ["index"])


def test_files_and_columns_that_are_missing(v21):
    dataset = open_dataset(str(v21))
    path = v21 / "data/chunk-000/episode_000000.parquet"
    with fails_with(f"{path}: no column 'observation.velocity'; it has observation.state, action, timestamp"):
        read_rows(dataset, 0, ["observation.velocity"])
    path.write_bytes(path.read_bytes()[:100])
    with fails_with(f"{path}: not a readable parquet file ("):
        read_rows(dataset, 0, ["index"])
    path.unlink()
    with fails_with(f"{path}: no such file"):
        read_rows(dataset, 0, ["index"])


# ------------------------------------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(tmp_path) -> Iterator[Hub]:
    root = write_dataset(tmp_path / "hub/toy", lengths=[5, 4, 6, 3, 7], annotated=True)
    with serve_hub({"datasets/someone/toy": root}) as hub:
        yield hub


def fetched(hub: Hub) -> list[str]:
    return [name.removeprefix("datasets/someone/toy:") for name in hub.fetched]


def run_python(code: str, tmp_path: Path, endpoint: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a piece of Python against a Hub."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=hub_environment(endpoint, tmp_path / "hf", **environment),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_only_the_needed_files_of_a_hub_dataset_are_fetched(hub, tmp_path):
    code = f"""
import json, numpy as np
from pathlib import Path
from sarm_ray.data.lerobot import fetch_files, open_dataset
from sarm_ray.data.rows import episode_texts, read_rows, state_statistics
dataset = open_dataset("someone/toy")
assert dataset.videos["{CAMERA}"].path(4) in dataset.files
print(json.dumps([dataset.name, dataset.repo_id, dataset.length.tolist(), list(dataset.notices)]))
print(json.dumps(episode_texts(dataset, np.arange(2))))
print(len(state_statistics(dataset, "observation.state")[0]))
fetch_files(dataset, np.array([2]))
fetch_files(dataset, np.array([2]), "{CAMERA}")
print(read_rows(dataset, 2, ["index"])["index"].tolist())
print(Path(dataset.location(dataset.camera_files("{CAMERA}").path(2))).stat().st_size)
fetch_files(dataset, np.array([2, 3]), "{CAMERA}")
"""
    result = run_python(code, tmp_path, hub.url)
    assert result.returncode == 0, result.stderr
    data, video = "data/chunk-000/file-001.parquet", f"videos/{CAMERA}/chunk-000/file-001.mp4"
    assert result.stdout.splitlines() == [
        '["someone/toy", "someone/toy", [5, 4, 6, 3, 7], []]',
        json.dumps([RED, CUP]),
        "6",
        "[9, 10, 11, 12, 13, 14]",
        str(hub.paths("datasets/someone/toy")[video].stat().st_size),
    ]
    metadata = [name for name in hub.paths("datasets/someone/toy") if name.startswith("meta/")]
    assert len(metadata) == 8
    assert sorted(fetched(hub)) == sorted([*metadata, data, video])
    assert set(fetched(hub)[-2:]) == {data, video}


def test_lerobots_own_folder_is_preferred(hub, tmp_path):
    home = tmp_path / "lerobot"
    write_dataset(home / "someone/toy", "v2.1", [3, 2])
    code = "from sarm_ray.data.lerobot import open_dataset as f; d = f('someone/toy'); print(d.root, d.name, d.repo_id)"
    for variables in ({"HF_LEROBOT_HOME": str(home)}, {"HF_HOME": str(tmp_path)}):
        result = run_python(code, tmp_path, hub.url, **variables)
        assert result.stdout.split() == [str(home / "someone/toy"), "someone/toy", "None"], result.stderr
    assert fetched(hub) == []


def test_a_folder_of_that_name_is_preferred_to_the_hub(tmp_path, monkeypatch):
    write_dataset(tmp_path / "someone/toy", "v2.1", [3, 2])
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("someone/toy")
    assert (dataset.root, dataset.repo_id) == (str(tmp_path / "someone/toy"), None)
    fetch_files(dataset, np.array([0]), CAMERA)


@pytest.mark.parametrize("name", ["someone/else"])
def test_a_repository_that_does_not_exist(hub, tmp_path, name):
    code = f"""
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.errors import DatasetError
try:
    open_dataset("{name}")
except DatasetError as error:
    print(error)
"""
    for endpoint in (hub.url, "http://127.0.0.1:9"):
        result = run_python(code, tmp_path, endpoint)
        assert result.stdout.startswith(
            f"{name}: no such local folder, and the Hub has no such dataset within reach ("
        ), result.stderr


def test_a_hub_that_went_away(hub, tmp_path):
    code = """
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.errors import DatasetError
try:
    print(open_dataset("someone/toy").length.tolist())
except DatasetError as error:
    print(error)
"""
    assert run_python(code, tmp_path, hub.url).stdout == "[5, 4, 6, 3, 7]\n"
    gone = run_python(code, tmp_path, "http://127.0.0.1:9")
    assert gone.stdout.startswith("someone/toy: the Hub does not list its files ("), gone.stderr
    assert gone.stdout.endswith("; with HF_HUB_OFFLINE=1 those that are on this machine are used\n")
    assert run_python(code, tmp_path, hub.url, HF_HUB_OFFLINE="1").stdout == "[5, 4, 6, 3, 7]\n"


# ------------------------------------------------------------------------------------------- contradictions in metadata


def test_a_missing_file_is_not_replaced_by_another_episodes(tmp_path):
    """Files of one name in several chunk folders: the one that is left belongs to other episodes."""
    root = write_dataset(tmp_path / "d", lengths=[3, 4], episodes_per_video=1)
    table = root / "meta/episodes/chunk-000/file-000.parquet"
    key = f"videos/{CAMERA}"
    edit_table(table, f"{key}/chunk_index", [0, 1])
    edit_table(table, f"{key}/file_index", [0, 0])
    (root / f"{key}/chunk-000/file-001.mp4").unlink()
    dataset = open_dataset(str(root))
    assert dataset.notices == ()
    assert dataset.videos[CAMERA].path(1) == f"{key}/chunk-001/file-000.mp4"
    assert dataset.videos[CAMERA].path(1) not in dataset.files


def test_an_episode_that_is_listed_twice(v3, v21):
    edit_table(v3 / "meta/episodes/chunk-000/file-000.parquet", "episode_index", [1, 1])
    with fails_with(f"{v3}/meta: episode 1 is listed 2 times"):
        open_dataset(str(v3))
    line = (v21 / "meta/episodes.jsonl").read_text().splitlines()[0]
    (v21 / "meta/episodes.jsonl").write_text(f"{line}\n{line}\n")
    with fails_with(f"{v21}/meta: episode 0 is listed 2 times"):
        open_dataset(str(v21))


def test_a_feature_that_is_no_object(v3):
    edit_json(v3 / "meta/info.json", features={"observation.state": "float32"})
    with fails_with(f"{v3}/meta/info.json: every feature must be an object"):
        open_dataset(str(v3))


def test_v21_prefers_the_statistics_of_its_episodes_to_a_relic(v21):
    before = state_statistics(open_dataset(str(v21)), "observation.state")
    (v21 / "meta/stats.json").write_text(json.dumps({"observation.state": {"mean": [7.0] * 6, "std": [1.0] * 6}}))
    np.testing.assert_array_equal(state_statistics(open_dataset(str(v21)), "observation.state"), before)
    lines = (v21 / "meta/episodes_stats.jsonl").read_text().splitlines()
    (v21 / "meta/episodes_stats.jsonl").write_text(lines[0] + "\n")  # not of every episode
    assert state_statistics(open_dataset(str(v21)), "observation.state")[0].tolist() == [7.0] * 6


def test_statistics_that_are_no_numbers(v3):
    edit_json(v3 / "meta/stats.json", **{"observation.state": {"mean": ["a"], "std": [1.0]}})
    with fails_with(f"{v3}/meta: malformed statistics of observation.state ("):
        state_statistics(open_dataset(str(v3)), "observation.state")
