"""`sarm-ray score` on LeRobot's own fixtures and on real robot video: values, rows, files and words."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sarm_ray.config.score import ScoreConfig
from sarm_ray.core.windows import Window, computed_frames, needed_frames, window_slots
from sarm_ray.errors import SarmRayError
from sarm_ray.pipelines.score import score
from tests.pipelines.runs import (
    BASE,
    CLIP_TINY,
    EXPECTED,
    PARITY,
    SARM_TINY,
    SHARED,
    assert_same_values,
    files_below,
    needs_parity,
    needs_real,
    quick_config,
    read_progress,
    sarm_ray,
    score_one,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> ScoreConfig:
    """Both heads of the tiny checkpoint over LeRobot's v3.0 fixture in fp32, one feature cache for the module."""
    return quick_config(
        dataset=str(PARITY / "dataset_v3"),
        model=SARM_TINY,
        encoder=CLIP_TINY,
        head_mode="both",
        precision="fp32",
        cache=str(tmp_path_factory.mktemp("features")),
    )


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> Path:
    """The undisturbed run that others are compared with."""
    output = tmp_path_factory.mktemp("whole") / "progress.parquet"
    report = score_one(replace(base, output=str(output), stage_probabilities=True))
    assert report.num_decoded == report.num_scored == 2050
    return output


@needs_parity
@pytest.mark.parity
def test_the_command_equals_lerobots_own_output(tmp_path):
    (tmp_path / "home").mkdir()
    output = tmp_path / "out.parquet"
    result = sarm_ray(
        "score", PARITY / "dataset_v3", "--model", SARM_TINY, "--encoder", CLIP_TINY, "--head-mode", "both",
        "--precision", "fp32", "--output", output, "--cache", tmp_path / "features",
        env={**os.environ, "HOME": str(tmp_path / "home")}, umask=0o022,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    written = [output, *(tmp_path / "features").rglob("*.parquet"), *Path(f"{output}.run").glob("*.*")]
    assert len(written) > 4
    assert {path.stat().st_mode & 0o777 for path in written} == {0o644}  # for others to read, whoever wrote them
    assert (tmp_path / "home/.ray/auth_token").stat().st_mode & 0o777 == 0o600
    ours, theirs = pq.read_table(output), pq.read_table(EXPECTED / "progress_both.parquet")
    assert [(f.name, f.type) for f in ours.schema] == [(f.name, f.type) for f in theirs.schema]
    assert ours.schema.metadata[b"reward_model_path"] == SARM_TINY.encode()
    for name in ("index", "episode_index", "frame_index"):
        assert ours[name].equals(theirs[name])
    for head in ("sparse", "dense"):
        column = f"progress_{head}"
        assert np.abs(ours[column].to_numpy() - theirs[column].to_numpy()).max() <= 1e-5
    assert f"{output}\n  2,050 frames: 2,050 decoded, 0 from the store, 2,050 scored, 0 chunks failed" in result.stdout
    assert "takes the place of LeRobot's openai/clip-vit-base-patch32" in result.stderr
    assert "the checkpoint has no state statistics; the scored dataset's are used" in result.stderr
    assert "core_worker" not in result.stderr


@needs_parity
@pytest.mark.parity
def test_v21_gives_the_same_values(base, whole, tmp_path):
    output = tmp_path / "v21.parquet"
    score(replace(base, dataset=str(PARITY / "dataset_v21"), output=str(output)), quiet=True)
    assert_same_values(output, whole)


@needs_parity
@pytest.mark.parity
def test_stride_7_computes_and_interpolates_as_lerobot(base, tmp_path):
    output = tmp_path / "stride.parquet"
    report = score_one(replace(base, stride=7, episodes="0:2", output=str(output)))
    ours, theirs = read_progress(output), read_progress(EXPECTED / "interp_stride7.parquet")
    assert report.num_scored == len(computed_frames(300, 7)) + len(computed_frames(330, 7))
    np.testing.assert_array_equal(ours["index"], theirs["index"])
    for head in ("progress_sparse", "progress_dense"):
        np.testing.assert_allclose(ours[head], theirs[head], atol=1e-6, rtol=0)


@needs_parity
@pytest.mark.parity
def test_stage_probabilities_equal_lerobots(whole):
    table = pq.read_table(f"{whole}.run/stage_probabilities.parquet")
    assert [(f.name, str(f.type)) for f in table.schema] == [
        ("index", "int64"),
        ("sparse", "list<element: float>"),
        ("dense", "list<element: float>"),
    ]
    expected = np.load(EXPECTED / "stage_probs.npz")
    for episode in (0, 4):
        rows = expected[f"ep{episode}_index"]
        for head in ("sparse", "dense"):
            ours = np.stack(table[head].to_numpy()[rows])
            np.testing.assert_allclose(ours, expected[f"ep{episode}_stage_probs_{head}"], atol=1e-5, rtol=0)


@needs_parity
@pytest.mark.parity
@pytest.mark.parametrize("state_stats", [None, "dataset"])
def test_a_checkpoint_of_lerobot_train(base, tmp_path, state_stats):
    output = tmp_path / "trained.parquet"
    model = str(PARITY / "lerobot_train_checkpoint")
    score(replace(base, model=model, stride=10, episodes="0", state_stats=state_stats, output=str(output)), quiet=True)
    ours = read_progress(output)
    theirs = read_progress(EXPECTED / "progress_train_checkpoint_stride10_ep0.parquet")
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5, rtol=0)


@needs_parity
def test_interpolated_frames_have_no_probabilities(base, tmp_path):
    output = tmp_path / "sparse.parquet"
    config = replace(base, head_mode="sparse", stride=15, episodes="4", stage_probabilities=True, output=str(output))
    score(config, quiet=True)
    table = pq.read_table(f"{output}.run/stage_probabilities.parquet")
    assert table.column_names == ["index", "sparse"]
    assert np.flatnonzero(table["sparse"].is_valid().to_numpy()).tolist() == computed_frames(315, 15).tolist()
    assert list(read_progress(output)) == ["index", "episode_index", "frame_index", "progress_sparse"]


@needs_parity
@pytest.mark.slow
def test_a_denser_stride_adds_what_is_missing_and_changes_nothing(base, tmp_path):
    window, lengths = Window(8, 30), (300, 330)
    coarse = sum(int(needed_frames(length, 30, window).sum()) for length in lengths)
    fine = sum(int(needed_frames(length, 10, window).sum()) for length in lengths)
    config = replace(base, episodes="0:2", cache=str(tmp_path / "features"))
    first = score_one(replace(config, stride=30, output=str(tmp_path / "coarse.parquet")))
    second = score_one(replace(config, stride=10, output=str(tmp_path / "fine.parquet")))
    assert (first.num_decoded, first.num_cached) == (coarse, 0)
    assert (second.num_decoded, second.num_cached) == (fine - coarse, coarse)
    fresh = replace(config, stride=10, output=str(tmp_path / "fresh.parquet"), cache=str(tmp_path / "other"))
    assert score_one(fresh).num_decoded == fine
    assert_same_values(tmp_path / "fine.parquet", tmp_path / "fresh.parquet")


@needs_parity
def test_another_checkpoint_decodes_nothing_even_without_the_videos(base, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(PARITY / "dataset_v21", dataset)
    make_writable(dataset)
    config = replace(base, dataset=str(dataset), cache=None)
    first = score_one(config)
    assert first.output == str(dataset / "sarm_progress.parquet")
    assert (tmp_path / "dataset.sarm_features").is_dir()
    shutil.move(dataset / "videos", tmp_path / "archive")
    other = str(PARITY / "lerobot_train_checkpoint")
    second = score_one(replace(config, model=other, output=str(tmp_path / "other.parquet")))
    assert (second.num_decoded, second.num_cached, second.num_scored) == (0, 2050, 2050)
    assert second.num_nan == {"sparse": 0, "dense": 0}
    again = score_one(replace(config, overwrite=True))
    assert (again.num_decoded, again.failures) == (0, [])


@needs_parity
def test_unreadable_chunks_are_nan_rows_and_named(base, whole, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(PARITY / "dataset_v21", dataset)
    make_writable(dataset)
    broken = dataset / f"videos/chunk-000/{BASE}/episode_000003.mp4"
    broken.write_bytes(broken.read_bytes()[:1000])
    output = tmp_path / "out.parquet"
    result = sarm_ray(
        "score", dataset, "--model", SARM_TINY, "--encoder", CLIP_TINY, "--head-mode", "both", "--precision", "fp32",
        "--output", output, "--cache", tmp_path / "features",
    )  # fmt: skip
    assert result.returncode == 1
    assert "2 chunks failed" in result.stdout
    assert "400 rows of progress_dense are NaN" in result.stdout
    assert "failed: episode 3, frames 0 to 255:" in result.stdout
    failed = pq.read_table(f"{output}.run/failed.parquet").to_pylist()
    assert [(row["episode_index"], row["camera"], row["start"], row["stop"]) for row in failed] == [
        (3, BASE, 0, 256),
        (3, BASE, 256, 400),
    ]
    assert {(row["error"], row["attempts"]) for row in failed} == {("VideoError", 1)}
    assert all(str(broken) in row["message"] for row in failed)
    ours, theirs = read_progress(output), read_progress(whole)
    lost = theirs["episode_index"] == 3
    for head in ("progress_sparse", "progress_dense"):
        assert np.isnan(ours[head][lost]).all()
        np.testing.assert_array_equal(ours[head][~lost], theirs[head][~lost])
    np.testing.assert_array_equal(ours["index"], theirs["index"])


@needs_parity
@pytest.mark.slow
def test_every_window_that_reaches_into_a_hole_is_nan(base, whole, tmp_path):
    """One chunk of features is taken out and its video too: exactly the windows that need one of its frames are lost."""
    dataset = tmp_path / "dataset"
    shutil.copytree(PARITY / "dataset_v21", dataset)
    make_writable(dataset)
    config = replace(base, dataset=str(dataset), cache=str(tmp_path / "features"))
    score(replace(config, output=str(tmp_path / "first.parquet")), quiet=True)
    for part in (tmp_path / "features").rglob("*.parquet"):
        rows = pq.read_table(part, columns=["episode_index", "start"]).to_pylist()
        if rows == [{"episode_index": 3, "start": 256}]:
            part.unlink()
    (dataset / f"videos/chunk-000/{BASE}/episode_000003.mp4").unlink()
    report = score_one(replace(config, output=str(tmp_path / "second.parquet")))
    assert [(f.episode_index, f.start, f.stop, f.message.split(": ")[-1]) for f in report.failures] == [
        (3, 256, 400, "no such file")
    ]
    ours, theirs = read_progress(tmp_path / "second.parquet"), read_progress(whole)
    slots = window_slots(np.arange(400), 400, Window(8, 30))
    lost = np.zeros(2050, dtype=bool)
    lost[theirs["episode_index"] == 3] = (slots >= 256).any(axis=1)
    assert 0 < lost.sum() < 400
    np.testing.assert_array_equal(np.isnan(ours["progress_sparse"]), lost)
    np.testing.assert_array_equal(ours["progress_sparse"][~lost], theirs["progress_sparse"][~lost])


@needs_parity
def test_nan_states_are_nan_rows(base, whole, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(PARITY / "dataset_v21", dataset)
    make_writable(dataset)
    path = dataset / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    states = np.stack(table["observation.state"].to_numpy()).astype(np.float32)
    states[100, 3] = np.nan
    column = table.schema.get_field_index("observation.state")
    values = pa.FixedSizeListArray.from_arrays(pa.array(states.ravel()), states.shape[1])
    pq.write_table(table.set_column(column, "observation.state", values), path)
    config = replace(base, dataset=str(dataset), episodes="1", output=str(tmp_path / "out.parquet"))
    report = score_one(config)
    (failure,) = report.failures
    assert (failure.episode_index, failure.start, failure.stop, failure.attempts) == (1, 0, 256, 1)
    assert failure.message == f"{path}: observation.state is NaN or infinite in frame 100"
    assert report.num_nan == {"sparse": 8, "dense": 8}
    ours, theirs = read_progress(tmp_path / "out.parquet"), read_progress(whole)
    lost = (window_slots(np.arange(330), 330, Window(8, 30)) == 100).any(axis=1)
    np.testing.assert_array_equal(np.isnan(ours["progress_dense"]), lost)
    np.testing.assert_array_equal(ours["progress_dense"][~lost], theirs["progress_dense"][300:630][~lost])


@needs_parity
def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    result = sarm_ray(
        "score", PARITY / "dataset_v3", "--model", SARM_TINY, "--encoder", CLIP_TINY, "--episodes", "0:2", "--stride", 7,
        "--dry-run", "--output", tmp_path / "out.parquet", "--cache", tmp_path / "features",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "episodes  2 of 6, 630 frames" in result.stderr
    num_needed = sum(int(needed_frames(length, 7, Window(8, 30)).sum()) for length in (300, 330))
    work = f"features  {num_needed} frames needed, 0 in the store, {num_needed} to decode and encode in 4 chunks"
    assert work in result.stderr
    assert (
        "stride 7 with windows 30 frames apart needs 92% of the frames; stride 8 needs clearly fewer" in result.stderr
    )
    assert files_below(tmp_path) == []


@needs_parity
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": "/nowhere"}, "/nowhere: not a LeRobot dataset (there is no meta/info.json)"),
        ({"image_key": "observation.images.bose"}, "did you mean 'observation.images.base'?"),
        ({"state_key": "observation.stat"}, "no state 'observation.stat'; did you mean 'observation.state'?"),
        ({"model": "/nowhere"}, "/nowhere: no such folder"),
        ({"encoder": "efficientnet-lite0"}, "efficientnet-lite0 makes features of 1280 (image) and 512 (text) numbers"),
        ({"episodes": "0:2,9"}, "there is no episode 9 (the last one is 5)"),
        ({"state_stats": "checkpoint"}, "has no state statistics; use --state-stats dataset"),
        ({"output": "/tmp"}, "/tmp is a folder; give --output a file, such as /tmp/sarm_progress.parquet"),
    ],
)
def test_bad_input_stops_before_any_work(base, tmp_path, change, words):
    place = {"output": str(tmp_path / "out.parquet"), "cache": str(tmp_path / "features")}
    config = replace(base, **{**place, **change})
    with pytest.raises(SarmRayError) as caught:
        score(config, quiet=True)
    assert words in str(caught.value)
    assert files_below(tmp_path) == []


@needs_parity
def test_an_output_that_exists_is_kept_unless_told(base, whole, tmp_path):
    output = tmp_path / "out.parquet"
    output.write_text("mine")
    with pytest.raises(SarmRayError, match="exists; replace it with --overwrite"):
        score(replace(base, output=str(output)), quiet=True)
    assert output.read_text() == "mine"
    score(replace(base, output=str(output), overwrite=True), quiet=True)
    assert_same_values(output, whole)
    assert files_below(tmp_path) == ["out.parquet", "out.parquet.run/config.yaml", "out.parquet.run/summary.json"]


@needs_parity
@needs_real
@pytest.mark.real
def test_real_unitree_g1_video(tmp_path):
    output = tmp_path / "g1.parquet"
    config = quick_config(
        dataset=str(SHARED / "real/g1_bottle"),
        model=SARM_TINY,
        encoder=CLIP_TINY,
        head_mode="both",
        image_key="observation.images.cam_high",
        output=str(output),
        cache=str(tmp_path / "features"),
    )
    report = score_one(config)
    assert (report.num_frames, report.num_decoded, report.failures) == (8488, 8488, [])
    assert_rows_are_the_datasets(output, SHARED / "real/g1_bottle")


@needs_parity
@needs_real
@pytest.mark.real
def test_simulated_gr1_with_faulty_metadata(tmp_path, capfd):
    output = tmp_path / "gr1.parquet"
    config = quick_config(
        dataset=str(SHARED / "real/gr1_sim"),
        model=SARM_TINY,
        encoder=CLIP_TINY,
        image_key="observation.images.ego_view",
        output=str(output),
        cache=str(tmp_path / "features"),
    )
    (report,) = score(config).datasets
    assert (report.num_frames, report.num_decoded, report.failures) == (2096, 2096, [])
    assert_rows_are_the_datasets(output, SHARED / "real/gr1_sim")
    said = capfd.readouterr().err
    assert said.count("misses 4 of 5 files; each was found by its name") == 2  # the data's template and the videos'
    assert said.count("declares observation.images.egoview, of which there are no files") == 1


def assert_rows_are_the_datasets(output: Path, dataset: Path) -> None:
    """One row per row of the data files, in order; every one with progress."""
    progress = read_progress(output)
    lengths = [pq.read_metadata(path).num_rows for path in sorted(dataset.glob("data/*/*.parquet"))]
    np.testing.assert_array_equal(progress["index"], np.arange(sum(lengths)))
    np.testing.assert_array_equal(progress["episode_index"], np.repeat(np.arange(len(lengths)), lengths))
    np.testing.assert_array_equal(progress["frame_index"], np.concatenate([np.arange(length) for length in lengths]))
    for name in progress:
        if name.startswith("progress_"):
            assert ((progress[name] >= 0) & (progress[name] <= 1)).all()
            assert progress[name].std() > 0


def make_writable(folder: Path) -> None:
    """Copies of the read-only fixtures keep their mode."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
