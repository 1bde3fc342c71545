"""Datasets that are broken as a whole: one line that says what, where and the way out; exit code 2; nothing is touched."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from tests.datasets import CAMERA, write_dataset
from tests.pipelines.reference import write_model
from tests.pipelines.runs import run_here

WRIST = "observation.images.wrist"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def edit_info(root: Path, **changes) -> None:
    """Change keys of meta/info.json; None takes one away."""
    path = root / "meta/info.json"
    info = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in info.items() if value is not None}))


def edit_features(root: Path, edit: Callable[[dict], dict]) -> None:
    edit_info(root, features=edit(json.loads((root / "meta/info.json").read_text())["features"]))


def edit_episodes(root: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(edit(pq.read_table(root / EPISODES)), root / EPISODES)


def edit_lines(root: Path, edit: Callable[[list[str]], list[str]]) -> None:
    path = root / "meta/episodes.jsonl"
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")


def with_column(table: pa.Table, name: str, values: list) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))


def without_task(root: Path) -> None:
    edit_episodes(root, lambda table: with_column(table, "tasks", [["push"], []]))
    (root / "meta/tasks.parquet").unlink()


def spoil_statistics(root: Path) -> None:
    path = root / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats["observation.state"]["mean"][2] = float("nan")
    path.write_text(json.dumps(stats))


TEMPLATE = "chunk-{chunk_index:03d}/file-{file_index:03d}"

# name -> version, what is done to the sound dataset, flags, the line ("ROOT" is the dataset's folder, "…" any words)
REFUSED: dict[str, tuple[str, Callable[[Path], object], list[str], str]] = {
    "not a dataset": (
        "v3.0",
        lambda root: (root / "meta/info.json").unlink(),
        [],
        "ROOT: not a LeRobot dataset (there is no meta/info.json)",
    ),
    "unknown version": (
        "v3.0",
        lambda root: edit_info(root, codebase_version="v4.2"),
        [],
        "ROOT/meta/info.json: codebase_version 'v4.2' is not one of v3.0, v2.1, v2.0",
    ),
    "malformed info.json": (
        "v2.1",
        lambda root: (root / "meta/info.json").write_text('{"codebase_version": "v2.1", "fps": 30,'),
        [],
        "ROOT/meta/info.json: malformed JSON (…)",
    ),
    "info.json in another encoding": (
        "v2.1",
        lambda root: (root / "meta/info.json").write_bytes(b"\xff\xfe\x00{}"),
        [],
        "ROOT/meta/info.json: malformed JSON (…)",
    ),
    "no fps": (
        "v3.0",
        lambda root: edit_info(root, fps=None),
        [],
        "ROOT/meta/info.json: fps must be a positive number, not None",
    ),
    "no data_path": (
        "v3.0",
        lambda root: edit_info(root, data_path=None),
        [],
        "ROOT/meta/info.json: data_path must be a path template, not None",
    ),
    "video path out of the root": (
        "v3.0",
        lambda root: edit_info(root, video_path="videos/../../{video_key}/" + TEMPLATE + ".mp4"),
        [],
        f"ROOT/meta/info.json: path 'videos/../../{CAMERA}/chunk-000/file-000.mp4' leaves the dataset's folder",
    ),
    "absolute data path": (
        "v3.0",
        lambda root: edit_info(root, data_path="/etc/" + TEMPLATE + ".parquet"),
        [],
        "ROOT/meta/info.json: path '/etc/chunk-000/file-000.parquet' leaves the dataset's folder",
    ),
    "path template of another format": (
        "v2.1",
        lambda root: edit_info(root, data_path="data/{episode}.parquet"),
        [],
        "ROOT/meta/info.json: path template 'data/{episode}.parquet' uses episode; LeRobot's fields are chunk_index, "
        "episode_chunk, episode_index, file_index, video_key",
    ),
    "unknown camera": (
        "v3.0",
        lambda root: None,
        ["--image-key", "observation.images.wrst"],
        f"NAME: no camera 'observation.images.wrst'; did you mean '{WRIST}'? --image-key takes {WRIST}, {CAMERA}",
    ),
    "camera like none": (
        "v3.0",
        lambda root: None,
        ["--image-key", "zzz"],
        f"NAME: no camera 'zzz'; --image-key takes {CAMERA}, {WRIST}",
    ),
    "camera without a place": (
        "v3.0",
        lambda root: edit_features(root, lambda f: f | {"observation.images.top": f[CAMERA]}),
        ["--image-key", "observation.images.top"],
        "NAME: meta/info.json declares observation.images.top, the episode table has no place for it; choose another with "
        "--image-key",
    ),
    "unknown state": (
        "v3.0",
        lambda root: None,
        ["--state-key", "observation.stat"],
        "NAME: no state 'observation.stat'; did you mean 'observation.state'? --state-key takes observation.state, "
        "action, timestamp",
    ),
    "statistics with a hole": (
        "v3.0",
        spoil_statistics,
        [],
        "NAME: the statistics of observation.state are no numbers in dimensions 2",
    ),
    "no task text": (
        "v3.0",
        without_task,
        [],
        "NAME: episode 1 has no task text; give one with --task TEXT",
    ),
    "no episode table": (
        "v3.0",
        lambda root: shutil.rmtree(root / "meta/episodes"),
        [],
        "ROOT: no episode table under meta/episodes",
    ),
    "truncated episode table": (
        "v3.0",
        lambda root: (root / EPISODES).write_bytes((root / EPISODES).read_bytes()[:-50]),
        [],
        f"ROOT/{EPISODES}: not a readable parquet file (…)",
    ),
    "episode table without lengths": (
        "v3.0",
        lambda root: edit_episodes(root, lambda table: table.drop_columns(["length"])),
        [],
        "ROOT/meta: malformed episode metadata (…length…)",
    ),
    "episode listed twice, v3.0": (
        "v3.0",
        lambda root: edit_episodes(root, lambda table: table.take([0, 1, 1])),
        [],
        "ROOT/meta: episode 1 is listed 2 times",
    ),
    "episode of length 0": (
        "v3.0",
        lambda root: edit_episodes(root, lambda table: with_column(table, "length", [3, 0])),
        [],
        "ROOT: episode 1 has no frames",
    ),
    "no episodes.jsonl": (
        "v2.1",
        lambda root: (root / "meta/episodes.jsonl").unlink(),
        [],
        "ROOT: there is no meta/episodes.jsonl",
    ),
    "malformed line": (
        "v2.1",
        lambda root: edit_lines(root, lambda lines: [lines[0], lines[1][:-9]]),
        [],
        "ROOT/meta/episodes.jsonl: line 2: malformed JSON (…)",
    ),
    "episode listed twice, v2.1": (
        "v2.1",
        lambda root: edit_lines(root, lambda lines: [*lines, lines[0]]),
        [],
        "ROOT/meta: episode 0 is listed 2 times",
    ),
    "no episodes at all": (
        "v2.1",
        lambda root: edit_lines(root, lambda lines: []),
        [],
        "ROOT: no episodes",
    ),
    "every video missing": (
        "v2.1",
        lambda root: shutil.rmtree(root / "videos"),
        [],
        f"NAME: camera {CAMERA} has no files under ROOT (videos/chunk-000/{CAMERA}/episode_000000.mp4 is not there)",
    ),
    "no such episode": (
        "v2.1",
        lambda root: None,
        ["--episodes", "0:2,7"],
        "NAME: episodes '0:2,7': there is no episode 7 (the last one is 1)",
    ),
}  # fmt: skip


def contents_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def assert_refused(place: Path, message: str, *arguments: object) -> None:
    """One line on stderr, nothing on stdout, exit code 2, and not a byte below `place` changed."""
    before = contents_below(place)
    result = run_here("score", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(re.escape(f"error: {message}").replace("…", ".+"), line), line
    assert contents_below(place) == before


@pytest.fixture(scope="module")
def model(tmp_path_factory, encoder) -> str:
    return write_model(tmp_path_factory.mktemp("model"), encoder)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    """A small sound dataset of each version."""
    folder = tmp_path_factory.mktemp("sound")
    options = {"lengths": [3, 2], "size": (32, 32), "tasks": ["push"], "cameras": (CAMERA, WRIST)}
    return {version: write_dataset(folder / version, version, **options) for version in ("v3.0", "v2.1")}


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_and_nothing_is_touched(name, sound, model, tmp_path):
    version, spoil, flags, message = REFUSED[name]
    root = tmp_path / "set"
    shutil.copytree(sound[version], root)
    spoil(root)
    assert_refused(tmp_path, message.replace("ROOT", str(root)).replace("NAME", "set"), root, "--model", model, *flags)


def test_an_output_that_exists(sound, model, tmp_path):
    root = shutil.copytree(sound["v2.1"], tmp_path / "set")
    (root / "sarm_progress.parquet").write_text("mine")
    message = f"{root}/sarm_progress.parquet exists; replace it with --overwrite, or choose another --output"
    assert_refused(tmp_path, message, root, "--model", model)


def test_a_model_of_another_camera(sound, encoder, tmp_path):
    root = shutil.copytree(sound["v2.1"], tmp_path / "set")
    model = write_model(tmp_path / "model", encoder, cameras=["observation.images.top"])
    cameras = f"observation.images.top, the dataset has {CAMERA}, {WRIST}"
    message = f"set: the model was trained on {cameras}; choose with --image-key"
    assert_refused(tmp_path, message, root, "--model", model)


def test_a_model_of_two_cameras(sound, encoder, tmp_path):
    root = shutil.copytree(sound["v2.1"], tmp_path / "set")
    one, two = write_model(tmp_path / "one", encoder), write_model(tmp_path / "two", encoder, cameras=[CAMERA, "top"])
    both = ("--image-key", CAMERA, "--image-key", WRIST)
    message = f"{one} takes 1 camera ({CAMERA}), --image-key gives 2: {CAMERA}, {WRIST}"
    assert_refused(tmp_path, message, root, "--model", one, *both)
    takes = f"{two} takes 2 cameras ({CAMERA}, top)"
    assert_refused(tmp_path, f"{takes}, --image-key gives 1: {CAMERA}", root, "--model", two, "--image-key", CAMERA)
    message = f"set: {takes}; the dataset has {CAMERA}, {WRIST}; name 2 with --image-key"
    assert_refused(tmp_path, message, root, "--model", two)
    twice = ("--image-key", CAMERA, "--image-key", CAMERA)
    assert_refused(tmp_path, f"a camera is given twice: {CAMERA}, {CAMERA}", root, "--model", two, *twice)


def test_a_state_of_another_width_than_the_checkpoint_records(sound, encoder, tmp_path):
    """Beside the weights lie the statistics of a robot with one joint more."""
    root = shutil.copytree(sound["v2.1"], tmp_path / "set")
    model = write_model(tmp_path / "model", encoder)
    stats = {f"observation.state.{name}": np.ones(7, dtype=np.float32) for name in ("mean", "std")}
    save_file(stats, tmp_path / "model/policy_preprocessor_step_3_normalizer_processor.safetensors")
    message = (
        "set: observation.state is 6 wide, the model was trained on 7. Choose the right state with --state-key, or give "
        "--state-stats dataset if the width alone differs"
    )
    assert_refused(tmp_path, message, root, "--model", model)


def test_another_encoder_than_the_sidecars(sound, encoder, tmp_path):
    root = shutil.copytree(sound["v2.1"], tmp_path / "set")
    model = write_model(tmp_path / "model", replace(encoder, weights="0" * 64))
    message = (
        f"{model} was trained on features of efficientnet-lite0; efficientnet-lite0 is another encoder. "
        "Leave --encoder out"
    )
    assert_refused(tmp_path, message, root, "--model", model)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_refused_dataset_stops_the_whole_run(sound, model, tmp_path, order):
    roots = [shutil.copytree(sound[version], tmp_path / version) for version in ("v3.0", "v2.1")]
    edit_info(roots[1], fps=-1)
    message = f"{roots[1]}/meta/info.json: fps must be a positive number, not -1"
    arguments = [roots[position] for position in order]
    assert_refused(tmp_path, message, *arguments, "--model", model, "--output", tmp_path / "out")


def test_two_datasets_of_one_name(sound, model, tmp_path):
    roots = [shutil.copytree(sound["v2.1"], tmp_path / place / "set") for place in "ab"]
    output = tmp_path / "out/set/sarm_progress.parquet"
    message = f"two datasets named set would both be written to {output}; score them apart"
    assert_refused(tmp_path, message, *roots, "--model", model, "--output", tmp_path / "out")
