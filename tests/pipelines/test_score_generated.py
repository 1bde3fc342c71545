"""`score` on datasets the tests draw: many files, short episodes, images, sidecars; compared with one process and no Ray."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sarm_ray.config.loading import load_config
from sarm_ray.config.score import ScoreConfig
from sarm_ray.core.windows import Window
from sarm_ray.errors import SarmRayError
from sarm_ray.model.encoder import EFFICIENTNET
from sarm_ray.pipelines.ingest import check_store, ingest
from sarm_ray.pipelines.runtime import Cluster
from sarm_ray.pipelines.score import score
from sarm_ray.pipelines.score_plan import plan_scores
from sarm_ray.pipelines.score_report import describe_report
from sarm_ray.pipelines.stopping import Stop
from tests.datasets import CAMERA, write_dataset
from tests.pipelines.reference import score_without_ray, write_model
from tests.pipelines.runs import quick_config, read_progress, score_one

LENGTHS = [1, 40, 300, 7]


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("v3.0", {"episodes_per_video": 3, "episodes_per_data_file": 2, "episodes_per_metadata_file": 2}),
        pytest.param("v3.0", {"image_dataset": True, "episodes_per_data_file": 2}, marks=pytest.mark.slow),
        pytest.param("v2.0", {"codec": "libsvtav1", "gop": 2}, marks=pytest.mark.slow),
    ],
)
def test_values_equal_those_of_a_plain_loop(tmp_path, encoder, layout, options):
    root = str(write_dataset(tmp_path / "data", layout, LENGTHS, size=(96, 128), tasks=["push", "pull"], **options))
    model = write_model(tmp_path / "model", encoder)
    output = tmp_path / "out.parquet"
    config = quick_config(
        dataset=root, model=model, head_mode="both", precision="fp32", output=str(output), cache=str(tmp_path / "cache")
    )
    report = score_one(config)
    assert (report.num_frames, report.num_decoded, report.failures) == (348, 348, [])
    ours = read_progress(output)
    theirs = score_without_ray(root, model, encoder, Window(8, 10), ("sparse", "dense"))
    for head in ("sparse", "dense"):
        np.testing.assert_array_equal(ours[f"progress_{head}"], theirs[head])
    np.testing.assert_array_equal(ours["frame_index"], np.concatenate([np.arange(length) for length in LENGTHS]))
    np.testing.assert_array_equal(ours["episode_index"], np.repeat(np.arange(4), LENGTHS))


def test_the_sidecars_window_and_frame_rate_are_honoured(tmp_path, encoder, capfd):
    root = str(write_dataset(tmp_path / "data", "v2.1", LENGTHS, fps=30, size=(64, 64)))
    model = write_model(tmp_path / "model", encoder, window="past", fps=60.0)
    config = quick_config(
        dataset=root, model=model, precision="fp32", output=str(tmp_path / "o.parquet"), cache=str(tmp_path / "c")
    )
    score(config)
    theirs = score_without_ray(root, model, encoder, Window(8, 5, "past"), ("sparse",))
    np.testing.assert_array_equal(read_progress(tmp_path / "o.parquet")["progress_sparse"], theirs["sparse"])
    said = capfd.readouterr().err
    assert "trained at 60 fps with 10 frames between slots; at 30 fps that is 5" in said
    assert f"encoder   {EFFICIENTNET} (fp32, stored as float32)" in said


def test_a_single_stage_model_has_the_sparse_head_alone(tmp_path, encoder, capfd):
    root = str(write_dataset(tmp_path / "data", "v2.1", LENGTHS[:2], size=(64, 64)))
    model = write_model(tmp_path / "model", encoder, mode="single_stage")
    output = tmp_path / "o.parquet"
    score(quick_config(dataset=root, model=model, head_mode="both", output=str(output), cache=str(tmp_path / "c")))
    assert list(read_progress(output)) == ["index", "episode_index", "frame_index", "progress_sparse"]
    assert "the checkpoint has the sparse head alone; it is scored instead of both" in capfd.readouterr().err
    assert pq.read_schema(output).metadata[b"encoder"] == EFFICIENTNET.encode()


def test_a_re_recorded_episode_is_encoded_again_and_annotations_change_nothing(tmp_path, encoder):
    root = tmp_path / "data"
    write_dataset(root, "v2.1", LENGTHS, size=(64, 64))
    model = write_model(tmp_path / "model", encoder)
    config = quick_config(dataset=str(root), model=model, output=str(tmp_path / "o.parquet"), overwrite=True)
    assert score_one(config).num_decoded == 348
    with (root / "meta/episodes.jsonl").open() as stream:
        lines = [line.replace('"length"', '"subtask_names": ["a"], "length"') for line in stream]
    (root / "meta/episodes.jsonl").write_text("".join(lines))
    assert score_one(config).num_decoded == 0
    other = tmp_path / "other"
    write_dataset(other, "v2.1", LENGTHS, size=(80, 80))
    video = f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    shutil.copy(other / video, root / video)
    assert score_one(config).num_decoded == 40


def test_an_episode_without_a_task_text_stops_the_run_unless_given(tmp_path, encoder):
    root = tmp_path / "data"
    write_dataset(root, "v2.1", LENGTHS[:2], size=(64, 64))
    entries = (root / "meta/episodes.jsonl").read_text().splitlines()
    (root / "meta/episodes.jsonl").write_text(entries[0] + "\n" + '{"episode_index": 1, "tasks": [], "length": 40}\n')
    (root / "meta/tasks.jsonl").unlink()
    config = quick_config(
        dataset=str(root), model=write_model(tmp_path / "model", encoder), output=str(tmp_path / "o.parquet")
    )
    with pytest.raises(SarmRayError, match="episode 1 has no task text; give one with --task TEXT"):
        score(config, quiet=True)
    assert score_one(replace(config, task="push")).num_frames == 41


def test_weights_that_do_not_fit_stop_the_run_before_any_work(tmp_path, encoder):
    root = str(write_dataset(tmp_path / "data", "v2.1", [2], size=(64, 64)))
    model = Path(write_model(tmp_path / "model", encoder))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_sparse_stages": 4}))
    with pytest.raises(
        SarmRayError, match=r"do not fit config.json: stage_model.heads.sparse.bias should be \(4,\), is"
    ):
        score(quick_config(dataset=root, model=str(model), output=str(tmp_path / "o.parquet")), quiet=True)
    assert not (tmp_path / "data.sarm_features").exists()


def test_statistics_with_a_hole_stop_the_run(tmp_path, encoder):
    root = write_dataset(tmp_path / "data", "v3.0", [2], size=(64, 64))
    stats = json.loads((root / "meta/stats.json").read_text())
    stats["observation.state"]["std"][1] = None
    (root / "meta/stats.json").write_text(json.dumps(stats))
    config = quick_config(dataset=str(root), model=write_model(tmp_path / "model", encoder))
    with pytest.raises(SarmRayError, match=r"the statistics of observation.state are no numbers in dimensions 1$"):
        score(config, quiet=True)


def test_a_state_row_that_is_missing_costs_its_episode_alone(tmp_path, encoder):
    root = write_dataset(tmp_path / "data", "v2.1", LENGTHS[:2], size=(64, 64))
    path = root / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    states = [row if number != 5 else None for number, row in enumerate(table["observation.state"].to_pylist())]
    place = table.schema.get_field_index("observation.state")
    pq.write_table(table.set_column(place, "observation.state", pa.array(states, pa.list_(pa.float32()))), path)
    config = quick_config(
        dataset=str(root), model=write_model(tmp_path / "model", encoder), output=str(tmp_path / "o.parquet")
    )
    report = score_one(config)
    (failure,) = report.failures
    assert (failure.episode_index, failure.start, failure.stop, failure.error) == (1, 0, 40, "DatasetError")
    assert failure.message.endswith("episode 1: column 'observation.state': 1 rows are missing")
    assert np.isnan(read_progress(report.output)["progress_sparse"]).tolist() == [False] + [True] * 40


def test_parts_of_a_run_that_was_cut_off_are_not_used_for_another_video(tmp_path, encoder):
    """What a part depends on is in its folder's name: a re-recorded video, a changed state, another text."""
    root = write_dataset(tmp_path / "data", "v2.1", LENGTHS[:2], size=(64, 64))
    config = quick_config(
        dataset=str(root), model=write_model(tmp_path / "model", encoder), output=str(tmp_path / "o.parquet")
    )
    cluster = Cluster(1, 0, "cpu", bf16=True)
    before = plan_scores(config, cluster)[0]
    assert plan_scores(config, cluster)[0].parts_folder == before.parts_folder
    others = [replace(config, task="other"), replace(config, stride=2), replace(config, precision="fp32")]
    video = root / f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    video.write_bytes(video.read_bytes() + b"\0")
    plans = [plan_scores(each, cluster)[0] for each in (config, *others)]
    assert len({before.parts_folder, *(plan.parts_folder for plan in plans)}) == 5
    assert plans[0].metadata["dataset_fingerprint"] != before.metadata["dataset_fingerprint"]


def test_features_that_vanish_are_an_error_not_silent_nan(tmp_path, encoder):
    root = write_dataset(tmp_path / "data", "v2.1", LENGTHS[:2], size=(64, 64))
    config = quick_config(
        dataset=str(root), model=write_model(tmp_path / "model", encoder), output=str(tmp_path / "o.parquet")
    )
    cluster = Cluster(2, 0, "cpu", bf16=True)
    plan = plan_scores(config, cluster)[0].ingest
    elsewhere = replace(plan, store=replace(plan.store, location=str(tmp_path / "elsewhere")))
    ingest([[plan]], cluster, Stop(str(tmp_path / "stop")), quiet=True)
    check_store(plan, [])
    with pytest.raises(SarmRayError, match="features of episode 0, frames 0 and on, were written but are not there"):
        check_store(elsewhere, [])


def test_the_index_column_is_compared_with_the_metadata(tmp_path, encoder):
    root = write_dataset(tmp_path / "data", "v2.1", LENGTHS[:2], size=(64, 64))
    path = root / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("index")
    pq.write_table(table.set_column(place, "index", pa.array(np.arange(40))), path)
    config = quick_config(
        dataset=str(root), model=write_model(tmp_path / "model", encoder), output=str(tmp_path / "o.parquet")
    )
    report = score_one(config)
    notice = "the index column of episodes 1 does not count rows from the dataset's start; the output's does"
    assert notice in report.notices
    assert read_progress(report.output)["index"].tolist() == list(range(41))


def test_two_cameras_are_two_vision_streams(tmp_path, encoder, capfd):
    """Each camera's features are kept by themselves; a video of one that cannot be read costs the frames it shows."""
    cameras = [CAMERA, "observation.images.wrist"]
    root = str(write_dataset(tmp_path / "data", "v2.1", LENGTHS, size=(64, 64), cameras=cameras))
    model = write_model(tmp_path / "model", encoder, cameras=cameras)
    output, cache = tmp_path / "out.parquet", tmp_path / "cache"
    config = quick_config(
        dataset=root, model=model, head_mode="both", precision="fp32", output=str(output), cache=str(cache)
    )
    report = score(config)
    (own,) = report.datasets
    assert (own.num_frames, own.num_decoded, own.num_cached, own.cameras) == (348, 696, 0, cameras)
    assert f"camera    {CAMERA}, observation.images.wrist" in capfd.readouterr().err
    assert "348 frames: 696 decoded, 0 from the store (of 2 cameras), 348 scored" in describe_report(report)
    theirs = score_without_ray(root, model, encoder, Window(8, 10), ("sparse", "dense"))
    for head in ("sparse", "dense"):
        np.testing.assert_array_equal(read_progress(output)[f"progress_{head}"], theirs[head])
    resolved = load_config(ScoreConfig, f"{output}.run/config.yaml", {})
    assert resolved.image_key == cameras
    swapped = score_one(replace(resolved, image_key=cameras[::-1], output=str(tmp_path / "swapped.parquet")))
    assert swapped.num_cached == 696
    assert f"{model} was trained on {', '.join(cameras)}, in this order; --image-key gives another" in swapped.notices
    assert (read_progress(tmp_path / "swapped.parquet")["progress_dense"] != theirs["dense"]).mean() > 0.5

    (Path(root) / f"videos/chunk-000/{cameras[1]}/episode_000001.mp4").write_bytes(b"")
    broken = score_one(replace(resolved, overwrite=True))
    assert [(f.episode_index, f.camera, f.start, f.stop) for f in broken.failures] == [(1, cameras[1], 0, 40)]
    assert (broken.num_decoded, broken.num_cached) == (0, 656)
    expected = theirs["dense"].copy()
    expected[1:41] = np.nan
    np.testing.assert_array_equal(read_progress(output)["progress_dense"], expected)

    shutil.rmtree(f"{root}/videos")
    stored = score_one(replace(config, overwrite=True))
    assert (stored.num_decoded, stored.num_cached, stored.failures) == (0, 696, [])
    np.testing.assert_array_equal(read_progress(output)["progress_dense"], theirs["dense"])
