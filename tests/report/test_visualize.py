"""`sarm-ray visualize`: what is drawn by default and on request, from which files, and what is said of the rest."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from sarm_ray.cli import main
from sarm_ray.config.loading import load_config
from sarm_ray.config.visualize import VisualizeConfig
from sarm_ray.data.annotation_io import read_annotations
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.errors import ConfigError, DatasetError
from sarm_ray.report.pictures import DPI
from sarm_ray.report.scored import open_scores, read_prediction
from sarm_ray.report.visualize import visualize
from tests.datasets import CAMERA, DENSE_STAGES, SPARSE_STAGES, TASKS, frame_code, read_number, write_dataset

LENGTHS = (40, 30, 50)
WRIST = "observation.images.wrist"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """An annotated dataset; the working directory is beside it."""
    monkeypatch.chdir(tmp_path)
    return write_dataset(tmp_path / "toy", "v2.1", LENGTHS, annotated=True)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["visualize", *map(str, arguments)])


def write_progress(
    path: Path,
    rows: tuple[int, ...] = (0, 1, 2),
    heads: tuple[str, ...] = ("sparse",),
    num_stages: int | None = 3,
    run_config: dict | None = None,
    model: str | None = None,
) -> Path:
    """A progress file as `score` writes it: rising progress of some episodes, stages one after the other."""
    starts = np.cumsum([0, *LENGTHS])
    frame = np.concatenate([np.arange(LENGTHS[row]) for row in rows])
    share = np.concatenate([np.linspace(0, 1, LENGTHS[row]) for row in rows])
    columns = {
        "index": np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows]),
        "episode_index": np.repeat(rows, [LENGTHS[row] for row in rows]),
        "frame_index": frame,
    }
    table = pa.table({name: pa.array(values, pa.int64()) for name, values in columns.items()})
    for head in heads:
        table = table.append_column(f"progress_{head}", pa.array(share, pa.float32()))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"reward_model_path": model} if model else None), path)
    folder = Path(f"{path}.run")
    folder.mkdir(exist_ok=True)
    if num_stages is not None:
        stage = np.minimum((share * num_stages).astype(int), num_stages - 1)
        lists = pa.array(np.eye(num_stages)[stage].tolist(), pa.list_(pa.float32()))
        kept = pa.table({"index": table["index"], **dict.fromkeys(heads, lists)})
        pq.write_table(kept, folder / "stage_probabilities.parquet")
    (folder / "config.yaml").write_text(yaml.safe_dump(run_config or {}))
    return path


def write_model(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True)
    config = {
        "type": "sarm",
        "num_sparse_stages": 3,
        "sparse_subtask_names": list(SPARSE_STAGES),
        "sparse_temporal_proportions": [0.5, 0.25, 0.25],
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def annotate(root: Path, episode: int, names: list[str] | None, starts: list[int] = (), ends: list[int] = ()) -> None:
    """Give an episode of a v2.1 dataset other sparse subtasks, or none."""
    path = root / "meta/episodes.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    entry = {key: value for key, value in entries[episode].items() if "subtask" not in key}
    if names is not None:
        bounds = {"names": names, "start_frames": list(starts), "end_frames": list(ends)}
        entry |= {f"sparse_subtask_{key}": value for key, value in bounds.items()}
    entries[episode] = entry
    path.write_text("".join(json.dumps(each) + "\n" for each in entries))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tile(path: Path, left: float, top: float, width: float) -> int:
    """The number that a frame of 64 x 96 in a picture shows, its place in inches."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    rows, columns = (
        slice(round(top * DPI), round((top + width * 64 / 96) * DPI)),
        slice(round(left * DPI), round((left + width) * DPI)),
    )
    return read_number(pixels[rows, columns])


# ------------------------------------------------------------------------------------------------- what is drawn


def test_without_scores_annotations_are_drawn(root, tmp_path):
    result = run("toy")
    folder = tmp_path / "sarm_viz/toy"
    assert result.exit_code == 0, result.output
    assert result.stdout == f"6 pictures of 3 episodes in {folder}\n"
    assert result.stderr.splitlines() == [
        f"dataset   {root} (LeRobot v2.1, 30 fps)",
        "drawing   annotations, sparse and dense (there is no progress file)",
        "episodes  3 of 3",
        f"camera    {CAMERA}",
        f"output    {folder}",
        *(f"episode {n}: episode_000{n}_sparse.png, episode_000{n}_dense.png" for n in range(3)),
    ]
    pictures = [f"episode_000{n}_{kind}.png" for n in range(3) for kind in ("dense", "sparse")]
    assert names_in(folder) == [*pictures, "visualize.yaml"]
    for episode, length in enumerate(LENGTHS):
        for kind, stages in (("sparse", SPARSE_STAGES), ("dense", DENSE_STAGES)):
            bounds = np.rint(np.cumsum([0, *stages.values()]) * length).astype(int)
            side = 13.55 / len(stages) - 0.3
            for number, (start, end) in enumerate(itertools.pairwise(bounds)):
                shown = tile(folder / f"episode_000{episode}_{kind}.png", 0.5 + number * (side + 0.3), 2.95, side)
                assert shown == frame_code(episode, (start + end) // 2)


def test_where_there_are_scores_predictions_are_drawn(root, tmp_path):
    progress = write_progress(root / "sarm_progress.parquet", run_config={"model": str(write_model(tmp_path / "m"))})
    result = run("toy", "--num-visualizations", 2, "--output-dir", "out")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"2 pictures of 2 episodes in {tmp_path / 'out'}\n"
    assert result.stderr.splitlines()[1] == (
        f"drawing   predictions of {progress}, sparse (its progress file is there; --type annotations draws its subtasks)"
    )
    assert "note" not in result.stderr
    pictures = [f"sarm_prediction_ep{n}_sparse.png" for n in range(2)]
    assert names_in(tmp_path / "out") == [*pictures, "visualize.yaml"]
    with Image.open(tmp_path / "out" / pictures[0]) as image:
        assert image.size == (2100, 1800)
    again = run("toy", "--type", "annotations", "--visualize-type", "dense", "--episodes", "2", "--output-dir", "out")
    assert again.stdout == f"1 picture of 1 episode in {tmp_path / 'out'}\n"
    assert names_in(tmp_path / "out") == ["episode_0002_dense.png", *pictures, "visualize.yaml"]


def test_videos_beside_the_curve(root, tmp_path):
    progress = write_progress(tmp_path / "other.parquet", heads=("sparse", "dense"), num_stages=None)
    result = run("toy", "--progress", progress, "--type", "videos", "--episodes", "1", "--output-dir", "out")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"2 videos of 1 episode in {tmp_path / 'out'}\n"
    assert "\nvideo            60/60 frames 100%" in result.stderr
    videos = [f"sarm_prediction_ep1_{head}.mp4" for head in ("dense", "sparse")]
    assert names_in(tmp_path / "out") == [*videos, "visualize.yaml"]


def test_pictures_are_replaced_and_other_files_left(root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("episode_0000_sparse.png", "episode_0099_sparse.png", "notes.txt"):
        (out / name).write_text("mine")
    arguments = ("toy", "--visualize-type", "sparse", "--episodes", "0", "--output-dir", "out", "--quiet")
    first = run(*arguments)
    assert (first.stdout, first.stderr) == (f"1 picture of 1 episode in {out}\n", "")
    drawn = (out / "episode_0000_sparse.png").read_bytes()
    assert drawn[:4] == b"\x89PNG"
    assert run(*arguments).exit_code == 0
    assert (out / "episode_0000_sparse.png").read_bytes() == drawn
    assert (out / "episode_0099_sparse.png").read_text() == (out / "notes.txt").read_text() == "mine"


def test_the_resolved_config_draws_the_same_again(root, tmp_path):
    write_progress(root / "sarm_progress.parquet")
    assert run("toy", "--output-dir", "out", "--num-visualizations", 1).exit_code == 0
    config = load_config(VisualizeConfig, str(tmp_path / "out/visualize.yaml"), {})
    assert asdict(config) == asdict(VisualizeConfig(dataset="x")) | {
        "dataset": str(root),
        "type": "predictions",
        "progress": str(root / "sarm_progress.parquet"),
        "num_visualizations": 1,
        "image_key": CAMERA,
        "output_dir": str(tmp_path / "out"),
    }
    assert run("--config", "out/visualize.yaml", "--quiet").stdout == f"1 picture of 1 episode in {tmp_path / 'out'}\n"


def test_the_first_episodes_are_those_that_have_what_is_drawn(root, tmp_path):
    annotate(root, 0, None)
    assert "episode_0001_sparse.png, " in run("toy", "--num-visualizations", 1).stderr
    video = root / f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    video.unlink()
    assert run("toy", "--num-visualizations", 1).stdout.startswith("2 pictures of 1 episode in ")
    assert "episode_0002_sparse.png" in names_in(tmp_path / "sarm_viz/toy")
    write_progress(root / "sarm_progress.parquet", rows=(2,))
    drawn = run("toy", "--output-dir", "out")
    assert "\nepisode 2: sarm_prediction_ep2_sparse.png\n" in drawn.stderr
    assert drawn.stdout == f"1 picture of 1 episode in {tmp_path / 'out'}\n"


def test_the_scored_camera_is_shown_unless_another_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write_dataset(tmp_path / "toy", "v3.0", LENGTHS, cameras=(CAMERA, WRIST), annotated=True)
    first = run("toy", "--num-visualizations", 1)
    assert f"\ncamera    {CAMERA}\n" in first.stderr
    assert f"note: {CAMERA} is shown; --image-key shows another one: {WRIST}" in first.stderr
    write_progress(root / "sarm_progress.parquet", run_config={"image_key": WRIST})
    scored = run("toy", "--num-visualizations", 1)
    assert f"\ncamera    {WRIST}\n" in scored.stderr
    assert "is shown" not in scored.stderr
    asked = run("toy", "--type", "annotations", "--image-key", WRIST, "--episodes", "1", "--visualize-type", "sparse")
    assert asked.exit_code == 0, asked.output
    bounds = np.rint(np.cumsum([0, *SPARSE_STAGES.values()]) * LENGTHS[1]).astype(int)
    side = 13.55 / 3 - 0.3
    shown = tile(tmp_path / "sarm_viz/toy/episode_0001_sparse.png", 0.5 + side + 0.3, 2.95, side)
    assert shown == frame_code(1, (bounds[1] + bounds[2]) // 2) + 1


# ------------------------------------------------------------------------------------------ what the files say


def predictions_of(root: Path, progress: Path, row: int = 0):
    dataset = open_dataset(str(root))
    scores = open_scores(str(progress), read_annotations(dataset))
    return scores, read_prediction(scores, dataset, row, "sparse")


def test_stages_are_the_models(root, tmp_path):
    for number, place in enumerate(("", "pretrained_model", "checkpoints/last/pretrained_model")):
        model = tmp_path / f"model{number}"
        write_model(model / place)
        progress = write_progress(tmp_path / "p.parquet", run_config={"model": str(model), "task": "another task"})
        scores, shown = predictions_of(root, progress, 1)
        assert shown.stage_names == tuple(SPARSE_STAGES)
        assert scores.notices == ()
        assert (shown.text, shown.episode_index, shown.fps) == ("another task", 1, 30.0)
        bounds = np.rint(np.cumsum([0, *SPARSE_STAGES.values()]) * LENGTHS[1]).astype(int)
        assert shown.boundaries == tuple(bounds[1:-1])
        np.testing.assert_allclose(shown.truth[bounds[:-1]], [0, 0.5, 0.75], atol=1e-6)  # by the model's shares
        np.testing.assert_array_equal(shown.annotated_stage, np.searchsorted(bounds[1:-1], np.arange(30), side="right"))
        np.testing.assert_array_equal(shown.progress, np.linspace(0, 1, 30, dtype=np.float32))
        assert shown.probabilities.shape == (30, 3)


def test_lerobots_file_names_its_model_in_the_schema(root, tmp_path):
    progress = write_progress(tmp_path / "p.parquet", num_stages=None, model=str(write_model(tmp_path / "m")))
    scores, shown = predictions_of(root, progress)
    assert shown.stage_names == tuple(SPARSE_STAGES)
    assert shown.probabilities is None
    assert shown.text == TASKS[0]
    assert scores.notices == (
        "there are no stage probabilities beside the progress file; `score --stage-probabilities` keeps them",
    )


def test_without_the_model_the_annotation_names_the_stages(root, tmp_path):
    progress = write_progress(tmp_path / "p.parquet", run_config={"model": "me/elsewhere"})
    scores, shown = predictions_of(root, progress)
    assert scores.notices == (
        "config.json of me/elsewhere is not here; the names of the sparse stages are those of the dataset's annotation",
    )
    assert shown.stage_names == tuple(SPARSE_STAGES)
    np.testing.assert_allclose(shown.truth[[0, 12, 32]], [0, 0.3, 0.8], atol=1e-6)
    (root / "meta/temporal_proportions_sparse.json").unlink()  # then as training would take them
    for row, bounds in enumerate(([0, 10, 40], [0, 15, 30], [0, 25, 50])):
        annotate(root, row, ["a", "b"], bounds[:-1], bounds[1:])
    progress = write_progress(tmp_path / "p.parquet", num_stages=2)
    scores, shown = predictions_of(root, progress)
    assert scores.notices == (
        "the progress file does not say which model made it; the names of the sparse stages are those of the dataset's "
        "annotation",
    )
    np.testing.assert_allclose(shown.truth[10], (0.25 + 0.5 + 0.5) / 3, atol=1e-6)


def test_without_either_the_stages_are_numbers(tmp_path):
    root = write_dataset(tmp_path / "toy", "v3.0", LENGTHS)
    scores, shown = predictions_of(root, write_progress(tmp_path / "p.parquet"))
    assert shown.stage_names == ("stage 0", "stage 1", "stage 2")
    assert shown.truth is None
    assert scores.notices == (
        "the progress file does not say which model made it; the names of the sparse stages are numbers",
    )


def test_an_annotation_of_another_task_is_no_truth(root, tmp_path):
    _, shown = predictions_of(root, write_progress(tmp_path / "p.parquet", num_stages=4))
    assert shown.stage_names == tuple(f"stage {k}" for k in range(4))
    assert shown.truth is None


@pytest.mark.parametrize("content", ["{", "[1]", '{"type": "act"}', '{"type": "sarm", "sparse_subtask_names": 3}'])
def test_a_model_that_cannot_be_read_is_as_none(root, tmp_path, content):
    model = write_model(tmp_path / "m")
    (model / "config.json").write_text(content)
    progress = write_progress(tmp_path / "p.parquet", run_config={"model": str(model)})
    scores, shown = predictions_of(root, progress)
    assert scores.notices[0].startswith(f"config.json of {model} is not here; ")
    assert shown.stage_names == tuple(SPARSE_STAGES)


# ------------------------------------------------------------------------------------------ what cannot be drawn


def test_what_cannot_be_drawn_is_named_and_the_others_are_drawn(root, tmp_path):
    annotate(root, 0, None)
    annotate(root, 1, ["a", "b", "far away"], [0, 10, 60], [10, 30, 70])
    video = root / f"videos/chunk-000/{CAMERA}/episode_000002.mp4"
    video.write_bytes(b"")
    result = run("toy", "--episodes", "0:3", "--visualize-type", "sparse", "--output-dir", "out", "--quiet")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"1 picture of 1 episode in {tmp_path / 'out'}",
        "  episode 0: not drawn: it has no subtasks (sparse)",
        "  episode 1: sparse subtask 'far away' (frames 60 to 70) is not inside its 30 frames",
        f"  episode 2: not drawn: {video}: not a readable video (it is empty)",
    ]
    assert names_in(tmp_path / "out") == ["episode_0001_sparse.png", "visualize.yaml"]


def test_curves_are_drawn_without_their_frames_and_videos_are_not(root, tmp_path):
    progress = write_progress(tmp_path / "p.parquet", rows=(0, 1))
    video = root / f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    video.unlink()
    arguments = ("toy", "--progress", progress, "--episodes", ":", "--output-dir", "out", "--quiet")
    curves = run(*arguments)
    assert curves.exit_code == 1
    lacking = f"  episode 2: not drawn: {progress}: has 0 of the frames 70 to 119"
    assert curves.stdout.splitlines() == [
        f"2 pictures of 2 episodes in {tmp_path / 'out'}",
        f"  episode 1: 8 of 8 frames cannot be read ({video}: no such file)",
        lacking,
    ]
    videos = run(*arguments, "--type", "videos")
    assert videos.exit_code == 1
    assert videos.stdout.splitlines() == [
        f"1 video of 1 episode in {tmp_path / 'out'}",
        f"  episode 1: not drawn: {video}: no such file",
        lacking,
    ]


def test_nothing_drawable_is_an_error(root, tmp_path):
    for video in (root / f"videos/chunk-000/{CAMERA}").iterdir():
        video.write_bytes(b"")
    result = run("toy", "--output-dir", "out", "--quiet")
    assert result.exit_code == 2
    first = f"{root}/videos/chunk-000/{CAMERA}/episode_000000.mp4"
    assert result.stderr == (
        f"error: toy: none of 3 episodes could be drawn; episode 0: {first}: not a readable video (it is empty)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "dataset is missing; give it as an argument or in --config"),
        (
            ("bare",),
            "bare: no episode has sparse or dense subtasks; annotate it, or draw predictions with --progress or --m",
        ),
        (
            ("bare", "--type", "predictions"),
            "or name one with --progress, or let --model score the episodes first",
        ),
        (
            ("toy", "--progress", "p.parquet", "--visualize-type", "dense"),
            ": no progress of the dense head; there is spars",
        ),
        (("toy", "--progress", "nowhere.parquet"), "/nowhere.parquet: no such file; `sarm-ray score` makes one"),
        (("toy", "--progress", "toy/meta/info.json"), "toy/meta/info.json: not a readable parquet file ("),
        (
            ("toy", "--progress", "toy/data/chunk-000/episode_000000.parquet"),
            "episode_000000.parquet: no column 'progress_s",
        ),
        (
            ("toy", "--progress", "none.parquet"),
            "none.parquet: it has none of the episodes of toy; is it that of another ",
        ),
        (
            ("toy", "--image-key", "images.base"),
            f"toy: no camera 'images.base'; did you mean '{CAMERA}'? --image-key takes {CAMERA}",
        ),
        (("toy", "--episodes", "7"), "toy: episodes '7': there is no episode 7 (the last one is 2)"),
        (("toy", "--num-visualizations", "0"), "num_visualizations must be at least 1, not 0"),
        (("toy", "--model", "m", "--progress", "p"), "model and progress are both given; the scores come from one"),
        (
            ("toy", "--model", "m", "--type", "annotations"),
            "model is given, but annotations are drawn without scores; leave it out, or leave type out",
        ),
        (("toy", "--task", "t", "--cache", "c"), "task, cache: for scoring only; give a model too, or leave it out"),
    ],
)
def test_bad_input_is_an_error_with_the_way_out(root, tmp_path, arguments, said):
    write_dataset(tmp_path / "bare", "v3.0", (5,))
    write_progress(tmp_path / "p.parquet")
    empty = pq.read_table(tmp_path / "p.parquet").slice(0, 0)
    pq.write_table(empty, tmp_path / "none.parquet")
    result = run(*arguments, "--quiet")
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.startswith("error: ")
    assert not (tmp_path / "sarm_viz").exists()


def test_the_library_call_draws_and_does_not_score(root, tmp_path):
    with pytest.raises(ConfigError, match=r"score with the model first, and give progress$"):
        visualize(VisualizeConfig(dataset="toy", model="m"))
    _declare(root, "observation.images.ghost")
    with pytest.raises(DatasetError, match=r"^toy: there are no files of observation.images.ghost; choose another one"):
        visualize(VisualizeConfig(dataset="toy", image_key="observation.images.ghost"), quiet=True)
    report = visualize(VisualizeConfig(dataset="toy", episodes="1", output_dir="memory://out"), quiet=True)
    assert (report.type, report.output_dir, report.num_episodes, report.problems) == (
        "annotations",
        "memory://out",
        1,
        (),
    )
    assert report.paths == ("memory://out/episode_0001_sparse.png", "memory://out/episode_0001_dense.png")


def _declare(root: Path, camera: str) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][camera] = info["features"][CAMERA]
    (root / "meta/info.json").write_text(json.dumps(info))
