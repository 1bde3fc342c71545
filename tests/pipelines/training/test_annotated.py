"""Annotated here, trained on here: what `annotate` writes is what `train` and `score` read."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from sarm_ray.config.annotate import AnnotateConfig
from sarm_ray.config.score import ScoreConfig
from sarm_ray.config.train import ModelOptions, TrainConfig
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.demo.dataset import FORMAT, plan_demo, record
from sarm_ray.demo.lerobot_writer import write_lerobot
from sarm_ray.pipelines.annotate import annotate
from sarm_ray.pipelines.train import train
from tests.pipelines.annotation_oracle import MODEL, oracle_of
from tests.pipelines.runs import SHARED, needs_real, read_progress, score_one
from tests.pipelines.test_annotate_crash import truth_of

TINY = ModelOptions(hidden_dim=16, num_layers=1, num_heads=2, frame_gap=10)
STAGES = ("reach", "grasp", "carry", "place")
MOVES = ("reach out", "close", "lift", "move over", "lower", "let go")


def train_and_score(dataset: Path, episodes: str | None) -> dict[str, np.ndarray]:
    """Four steps of a dual model, and its progress."""
    run, cache = dataset.parent / "run", str(dataset.parent / "features")
    report = train(
        TrainConfig(
            dataset=str(dataset), output_dir=str(run), encoder="efficientnet-lite0", annotation_mode="dual", steps=4,
            batch_size=12, num_workers=1, val_fraction=0.0, cache=cache, episodes=episodes, model=TINY, use_gpu=False,
        ),
        quiet=True,
    )  # fmt: skip
    assert report.training["sparse_stage_loss"] > 0
    assert report.training["dense_stage_loss"] > 0
    output = str(dataset.parent / "progress.parquet")
    score_one(
        ScoreConfig(
            dataset=str(dataset), model=str(run), output=output, head_mode="both", cache=cache, episodes=episodes,
            num_visualizations=0,
        )
    )  # fmt: skip
    return read_progress(output)


def test_the_demos_task(tmp_path):
    planned = [each for each in plan_demo(0)["train"] if each.annotated][:4]
    dataset = tmp_path / "tabletop"
    recordings = [record(each) for each in planned]
    write_lerobot(dataset, FORMAT, [recording_without(each) for each in recordings])
    kinds = {"sparse": FORMAT.stages["sparse"], "dense": FORMAT.stages["dense"]}
    with oracle_of(truth_of(planned), kinds) as oracle:
        report = annotate(
            AnnotateConfig(
                dataset=str(dataset), sparse_subtasks=list(kinds["sparse"]), dense_subtasks=list(kinds["dense"]),
                engine="openai", endpoint=oracle.url, model=MODEL, allow_repeats=True, num_visualizations=0,
            ),
            quiet=True,
        )  # fmt: skip
    assert report.num_annotated == {"sparse": 4, "dense": 4}
    progress = train_and_score(dataset, None)
    assert len(progress["index"]) == sum(len(each.episode.motion) for each in planned)
    for head in ("sparse", "dense"):
        assert np.isfinite(progress[f"progress_{head}"]).all()


def recording_without(recording):
    """The same episode, not annotated."""
    return type(recording)(**{**vars(recording), "annotation": None})


@needs_real
@pytest.mark.real
@pytest.mark.slow
def test_a_real_unitree_g1_with_segments_of_a_file(tmp_path):
    real = SHARED / "real/g1_bottle"
    dataset = tmp_path / "g1"
    shutil.copytree(real / "meta", dataset / "meta", copy_function=shutil.copyfile)
    (dataset / "meta").chmod(0o755)
    for name in ("data", "videos"):
        os.symlink(real / name, dataset / name)  # noqa: PTH211  # nothing below is written to
    opened = open_dataset(str(dataset))
    with (tmp_path / "segments.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["episode_index", "kind", "name", "start_s", "end_s"])
        for episode in range(2):
            end = opened.length[episode] / opened.fps
            for kind, names, bounds in (
                ("sparse", STAGES, (0, 0.2, 0.35, 0.8, 1)),
                ("dense", MOVES, (0, 0.2, 0.3, 0.4, 0.7, 0.85, 1)),
            ):
                for name, first, last in zip(names, bounds, bounds[1:], strict=False):
                    writer.writerow([episode, kind, name, f"{first * end:.2f}", f"{last * end:.2f}"])
    report = annotate(
        AnnotateConfig(dataset=str(dataset), from_file=str(tmp_path / "segments.csv"), num_visualizations=1), quiet=True
    )
    assert (report.num_annotated, report.failures) == ({"sparse": 2, "dense": 2}, [])
    assert (dataset / "annotation.run/pictures/episode_0000_dense.png").exists()
    progress = train_and_score(dataset, "0:2")
    assert len(progress["index"]) == opened.length[:2].sum()
    assert np.isfinite(progress["progress_sparse"]).all()
