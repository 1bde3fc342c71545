"""`evaluate` on LeRobot's dataset and checkpoint, and on what cannot be evaluated."""

import json

import numpy as np
import pytest

from sarm_ray.config.evaluate import EvaluateConfig
from sarm_ray.config.loading import load_config
from sarm_ray.core.probe import fit_probe
from sarm_ray.core.progress import normalize_progress
from sarm_ray.core.targets import completed_durations, episode_targets
from sarm_ray.core.windows import Window
from sarm_ray.data import progress_io
from sarm_ray.data.annotation_io import read_annotations, segments_by_stage
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.model.checkpoint import open_checkpoint
from sarm_ray.model.encoder import load_image_encoder
from tests.datasets import CAMERA, write_dataset
from tests.pipelines.reference import episode_images, score_without_ray, write_model
from tests.pipelines.runs import CLIP_TINY, EXPECTED, PARITY, SARM_TINY, needs_parity, read_progress, run_here

DATASET = str(PARITY / "dataset_v3")


def figures_of(path) -> dict[tuple[str, str], dict]:
    return {(each["head"], each["name"]): each for each in json.loads(path.read_text())["figures"]}


GRADES = np.array([1, 1, 0.5, 0, np.nan, 0])


def true_progress(head: str) -> np.ndarray:
    """Annotated progress of all frames; the last stage of an episode that did not succeed is not completed."""
    dataset, config = open_dataset(DATASET), open_checkpoint(SARM_TINY, SARM_TINY).config
    names = config.sparse_subtask_names if head == "sparse" else config.dense_subtask_names
    segments = segments_by_stage(read_annotations(dataset)[head], names, GRADES)
    durations = completed_durations(segments, len(names))
    targets = [episode_targets(segments, row, durations, length) for row, length in enumerate(dataset.length.tolist())]
    return np.concatenate([normalize_progress(stage + tau, config.breakpoints(head)) for stage, tau in targets])


@needs_parity
def test_figures_are_those_of_lerobots_scores(tmp_path):
    labels, output = tmp_path / "labels.csv", tmp_path / "evaluation.json"
    labels.write_text("episode_index,outcome\n0,success\n1,success\n2,partial\n3,failure\n5,failure\n")
    command = [
        "evaluate", DATASET, "--model", SARM_TINY, "--encoder", CLIP_TINY, "--precision", "fp32", "--labels", labels,
        "--train-dataset", PARITY / "dataset_v21", "--output", output, "--cache", tmp_path / "cache", "--chunk-size", 30,
    ]  # fmt: skip
    result = run_here(*command)
    assert result.exit_code == 0, result.output
    figures, scores = figures_of(output), read_progress(EXPECTED / "progress_both.parquet")
    episode = scores["episode_index"]
    last = np.flatnonzero(np.diff(episode, append=-1))
    for head in ("sparse", "dense"):
        progress, truth = scores[f"progress_{head}"].astype(np.float64), true_progress(head)
        assert figures[head, "offline_progress_mse"]["value"] == pytest.approx(
            np.mean((progress - truth) ** 2), abs=1e-5
        )
        assert figures[head, "offline_progress_mae"]["value"] == pytest.approx(
            np.abs(progress - truth).mean(), abs=1e-5
        )
        final = progress[last]
        assert figures[head, "final_success"]["value"] == pytest.approx(final[:2].mean(), abs=1e-5)
        assert figures[head, "final_failure"]["value"] == pytest.approx(final[[3, 5]].mean(), abs=1e-5)
        wins = np.mean(final[:2, None] > final[[3, 5]])
        assert figures[head, "auroc"]["value"] == pytest.approx(wins)
        r2 = np.corrcoef(progress, truth)[0, 1] ** 2
        assert figures[head, "offline_progress_r2"]["value"] == pytest.approx(r2, abs=1e-4)
        assert figures[head, "probe_progress_mse"]["value"] < figures[head, "offline_progress_mse"]["value"]
        assert figures[head, "time_drop_detection"]["value"] if (head, "time_drop_detection") in figures else True
        assert 0 <= figures[head, "offline_reversed_drop_detection"]["value"] <= 1
        assert figures[head, "truncation_mean"]["num_episodes"] == 6
        assert (head, "live_progress_mse") in figures
    found = json.loads(output.read_text())
    assert (found["num_episodes"], found["num_annotated"], found["num_graded"], found["failures"]) == (6, 6, 5, [])
    assert found["diagnosis"].keys() == {"sparse", "dense"}
    assert "progress MSE" in result.stdout
    assert "time alone" in result.stdout
    assert not list((tmp_path / "evaluation.json.run").glob("parts-*"))
    written = load_config(EvaluateConfig, str(tmp_path / "evaluation.json.run/config.yaml"), {})
    assert (written.chunk_size, written.labels) == (30, str(labels))

    again = run_here(*command)
    assert again.exit_code == 2
    assert f"{output} exists; replace it with --overwrite, or choose another --output" in again.output


@needs_parity
def test_a_broken_video_costs_its_own_frames_and_is_listed(tmp_path, encoder):
    root = write_dataset(tmp_path / "data", "v2.1", [40, 60, 50], annotated=True)
    model = write_model(tmp_path / "model", encoder, mode="single_stage")
    video = sorted((root / "videos").rglob("*.mp4"))[1]
    whole_video = video.read_bytes()
    video.write_bytes(whole_video[:200])
    output = tmp_path / "evaluation.json"
    result = run_here(
        "evaluate", root, "--model", model, "--precision", "fp32", "--output", output, "--cache", tmp_path / "cache",
        "--quiet", "--json",
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert found == json.loads(output.read_text())
    (failure,) = found["failures"]
    assert (failure["episode_index"], failure["start"], failure["stop"]) == (1, 0, 60)
    figures = figures_of(output)
    assert figures["sparse", "offline_progress_mse"]["num_episodes"] == 2
    assert ("sparse", "offline_stage_accuracy") not in figures  # one stage is always right
    video.write_bytes(whole_video)  # so that the loop can run over it
    whole = [0, 2]
    lengths = [40, 60, 50]
    for view, window in {"offline": Window(8, 10), "live": Window(8, 10, live=True)}.items():
        progress = np.split(score_without_ray(str(root), model, encoder, window, ("sparse",))["sparse"], [40, 100])
        errors = [progress[row] - np.arange(lengths[row]) / (lengths[row] - 1) for row in whole]
        expected = np.mean(np.concatenate(errors).astype(np.float64) ** 2)
        assert figures["sparse", f"{view}_progress_mse"]["value"] == pytest.approx(expected, rel=1e-4)


def test_the_probe_is_fitted_on_what_is_not_evaluated(tmp_path, encoder):
    root = write_dataset(tmp_path / "data", "v2.1", [40, 30, 50])
    command = ["evaluate", root, "--precision", "fp32", "--cache", tmp_path / "cache", "--episodes", "1", "--quiet"]
    model = write_model(tmp_path / "single", encoder, mode="single_stage")
    output = tmp_path / "single.json"
    result = run_here(*command, "--model", model, "--train-dataset", root, "--output", output)
    assert result.exit_code == 0, result.output
    features, progress = [], []
    dataset, encode = open_dataset(str(root)), load_image_encoder(encoder, "fp32", "cpu")
    for row in (0, 2):
        features.append(encode(episode_images(dataset, CAMERA, row)))
        progress.append(np.linspace(0, 1, len(features[-1])))
    probe = fit_probe(np.concatenate(features), np.concatenate(progress))
    predicted = probe.predict(encode(episode_images(dataset, CAMERA, 1)))
    expected = np.mean((predicted - np.linspace(0, 1, 30)) ** 2)
    assert figures_of(output)["sparse", "probe_progress_mse"]["value"] == pytest.approx(expected, rel=1e-3)

    dual, other = write_model(tmp_path / "dual", encoder), tmp_path / "dual.json"
    result = run_here(*command, "--model", dual, "--train-dataset", root, "--output", other)
    assert result.exit_code == 0, result.output
    said = json.loads(other.read_text())["notices"]
    assert [each for each in said if each.startswith("no linear probe: data: no chosen episode has sparse subtasks")]
    assert ("sparse", "probe_progress_mse") not in figures_of(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--chunk-size", "0"], "chunk_size must be at least 1 frame, not 0"),
        (["--train-dataset", "nowhere"], "nowhere"),
        (["--train-dataset", "DATA"], "is what is evaluated; leave some of it out with --episodes"),
        (["--output", "DATA"], "data is a folder; give --output a file, such as "),
        (["--episodes", "7"], "episode 7"),
    ],
)
def test_bad_input_is_one_line_and_runs_nothing(tmp_path, encoder, arguments, message):
    root = write_dataset(tmp_path / "data", "v2.1", [20, 20])
    model = write_model(tmp_path / "model", encoder)
    arguments = [str(root) if each == "DATA" else each for each in arguments]
    result = run_here("evaluate", root, "--model", model, "--cache", tmp_path / "cache", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "cache").exists()
    assert not (root / "evaluation.json").exists()


def test_killed_after_its_output_was_written(tmp_path, encoder, monkeypatch):
    """A rerun tidies up instead of refusing to overwrite; the one after it refuses."""
    root = write_dataset(tmp_path / "data", "v2.1", [20, 20])
    model, output = write_model(tmp_path / "model", encoder, mode="single_stage"), tmp_path / "evaluation.json"
    command = ["evaluate", root, "--model", model, "--cache", tmp_path / "cache", "--output", output, "--quiet"]
    with monkeypatch.context() as patch:
        remove_files = progress_io.remove_files

        def die(folder: str, prefix: str) -> None:
            if prefix == progress_io.PARTS_PREFIX:
                raise KeyboardInterrupt
            remove_files(folder, prefix)

        patch.setattr(progress_io, "remove_files", die)
        assert run_here(*command).exit_code == 130
    assert output.exists()
    before = figures_of(output)
    assert run_here(*command).exit_code == 0
    assert figures_of(output) == before
    assert not list((tmp_path / "evaluation.json.run").glob("parts-*"))
    assert run_here(*command).exit_code == 2
