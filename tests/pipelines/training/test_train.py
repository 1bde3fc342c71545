"""`train` on real data: the same numbers on any number of processes and any ZeRO stage, and after a resume; what it leaves.

Tolerances: with dropout 0, losses and gradient norms agree to 1e-4 of themselves and weights to 2e-5 after 4 steps at
lr 1e-3, whatever the stage, the number of processes and the passes; sums are made in another order. One process that goes on
from its checkpoint makes the same bits, dropout and all.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sarm_ray.config.score import ScoreConfig
from sarm_ray.errors import CheckpointError
from sarm_ray.pipelines.training.report import describe_report
from tests.datasets import CAMERA, write_dataset
from tests.pipelines.runs import CLIP_TINY, PARITY, needs_parity, read_progress, score_one
from tests.pipelines.training.tiny import (
    DATASET,
    assert_same_run,
    curve,
    metrics_of,
    state_of,
    train_here,
    weights_of,
)
from tests.sampling import others_slow

pytestmark = needs_parity

LEROBOT = PARITY / "lerobot_train_checkpoint/pretrained_model"
LOSS, WEIGHTS = 1e-4, 2e-5
NO_DROPOUT = {"dropout": 0.0}
STEADY = {"eps": 1e-5}  # the gradient of a key's bias is 0 but for rounding, which Adam at 1e-8 would blow up to a step


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache) -> Path:
    """One process under plain data parallelism, without dropout: what others are compared with."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train_here(folder, cache, deepspeed_stage=0, model=NO_DROPOUT, optimizer=STEADY)
    return folder


def forget_after(folder: Path, step: int) -> None:
    """Make a run look as if it had been killed after the checkpoint of this step; its lines of metrics stay."""
    checkpoints = folder / "checkpoints"
    for path in checkpoints.glob("0*"):
        if int(path.name) > step:
            shutil.rmtree(path)
    for link in ("last", "best"):  # the kill came before they were made: a run that goes on mends them
        (checkpoints / link).unlink(missing_ok=True)
    (folder / "summary.json").unlink()


@pytest.mark.parametrize(
    ("stage", "num_workers", "passes"),
    others_slow([(0, 2, 2), (1, 1, 2), (2, 2, 1), (3, 2, 1)], [(2, 2, 1)]),
)
def test_the_same_on_any_stage_and_number_of_processes(alone, cache, tmp_path, stage, num_workers, passes):
    train_here(
        tmp_path / "run",
        cache,
        deepspeed_stage=stage,
        num_workers=num_workers,
        gradient_accumulation_steps=passes,
        model=NO_DROPOUT,
        optimizer=STEADY,
    )
    assert_same_run(tmp_path / "run", alone, LOSS, WEIGHTS)
    moments = [state_of(folder).exp_avg for folder in (tmp_path / "run", alone)]
    assert list(moments[0]) == list(moments[1])
    for name, tensor in moments[0].items():
        torch.testing.assert_close(tensor, moments[1][name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.slow
def test_from_two_processes_on_stage_1_to_one_on_stage_2(cache, tmp_path):
    """40 steps on the former are 20 there and 20 more on the latter."""
    straight, folder = tmp_path / "straight", tmp_path / "run"
    options = {"steps": 40, "save_freq": 20, "keep": 9, "model": NO_DROPOUT, "optimizer": STEADY}
    train_here(folder, cache, deepspeed_stage=1, num_workers=2, **options)
    shutil.copytree(folder, straight, symlinks=True)
    forget_after(folder, 20)
    train_here(folder, cache, deepspeed_stage=2, num_workers=1, **options, resume=True)
    assert list(curve(folder)) == list(range(1, 41))
    assert_same_run(folder, straight, LOSS, WEIGHTS)


def test_a_resumed_run_makes_the_same_bits(cache, tmp_path, monkeypatch):
    """40 steps are 20 and 20 more, with dropout; the metrics hold each step once, and wandb has one run."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    straight, folder = tmp_path / "straight", tmp_path / "run"
    options = {"steps": 40, "eval_freq": 10, "save_freq": 20, "keep": 9, "wandb_project": "sarm-test"}
    report = train_here(folder, cache, **options)
    shutil.copytree(folder, straight, symlinks=True)
    forget_after(folder, 20)
    resumed = train_here(folder, cache, **options, resume=True)
    assert_same_run(folder, straight, 0, 0)
    ours, theirs = state_of(folder), state_of(straight)
    for group in ("exp_avg", "exp_avg_sq"):
        for name, tensor in getattr(ours, group).items():
            assert torch.equal(tensor, getattr(theirs, group)[name]), name
    assert ours.facts == theirs.facts
    assert list(curve(folder)) == list(range(1, 41))
    looks = [[line for line in metrics_of(each) if "validation" in line] for each in (folder, straight)]
    assert looks[0] == looks[1]
    assert [line["step"] for line in looks[0]] == [10, 20, 30, 40]
    assert (resumed.validation, resumed.best_validation) == (report.validation, report.best_validation)
    assert Path(resumed.best).resolve().parent.name == f"{report.best_validation['step']:06d}"
    assert state_of(folder).facts["best_step"] == report.best_validation["step"]
    runs = [path.name.rsplit("-", 1)[1] for path in (folder / "wandb").glob("offline-run-*")]
    assert len(runs) == 2
    assert len(set(runs)) == 1
    assert not (folder / ".ray").exists()
    again = train_here(folder, cache, **options, resume=True)  # finished: nothing to do
    assert again.training == resumed.training


def test_fine_tuned_from_lerobots_checkpoint_scored_and_pruned(cache, tmp_path):
    """LeRobot's own folder goes in; what comes out has its files, its tensors and its config's keys, and is scored."""
    shape = {"hidden_dim": 64, "num_layers": 2, "num_heads": 4}
    report = train_here(
        tmp_path / "run",
        cache,
        init_from=str(LEROBOT),
        model=shape,
        optimizer={"lr": 1e-9, "decay_lr": 0.0},
        save_freq=1,
        keep=2,
        val_fraction=0.0,
    )
    folder = Path(report.last)
    assert report.best is None
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["000003", "000004", "last"]
    assert folder.resolve().parent.name == "000004"
    before, after = weights_of_folder(LEROBOT), weights_of(tmp_path / "run")
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6, msg=name)
    ours, theirs = (json.loads((each / "config.json").read_text()) for each in (folder, LEROBOT))
    assert sorted(ours) == sorted(theirs)
    statistics = {path.name for path in LEROBOT.glob("*normalizer*.safetensors")}
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "sarm_ray.json", "policy_preprocessor.json"}
    assert {name for name in names if "normalizer" in name} == statistics
    sidecar = json.loads((folder / "sarm_ray.json").read_text())
    assert (sidecar["window"], sidecar["fps"], sidecar["image_keys"]) == ("centered", 30, ["observation.images.base"])
    out = tmp_path / "progress.parquet"
    score_one(
        ScoreConfig(
            dataset=DATASET, model=str(folder), encoder=CLIP_TINY, output=str(out), head_mode="both",
            cache=str(cache), episodes="0:1", num_visualizations=0,
        )
    )  # fmt: skip
    progress = read_progress(out)
    assert len(progress["progress_sparse"]) == 300
    assert ((progress["progress_dense"] >= 0) & (progress["progress_dense"] <= 1)).all()


def weights_of_folder(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_dense_only_on_two_datasets_with_a_past_window(cache, tmp_path):
    report = train_here(
        tmp_path / "run",
        cache,
        dataset=[DATASET, str(PARITY / "dataset_v21")],
        annotation_mode="dense_only",
        window="past",
        episodes="0:2",
        val_fraction=0.4,
    )
    assert (report.num_episodes, report.num_held_out) == (2, 2)
    config = json.loads((Path(report.last) / "config.json").read_text())
    assert (config["annotation_mode"], config["num_sparse_stages"], config["sparse_subtask_names"]) == (
        "dense_only", 1, ["task"],
    )  # fmt: skip
    assert config["num_dense_stages"] == len(config["dense_subtask_names"]) == 5
    assert set(report.validation) == {
        f"offline_{head}_{name}"
        for head in ("sparse", "dense")
        for name in ("progress_mse", "stage_accuracy", "tau_mae")
    }  # no live view: a past window has no future
    assert json.loads((Path(report.last) / "sarm_ray.json").read_text())["window"] == "past"


@pytest.mark.slow
def test_bfloat16_learns_on_stage_1(cache, tmp_path):
    report = train_here(
        tmp_path / "run",
        cache,
        annotation_mode="single_stage",
        precision="bf16",
        steps=40,
        optimizer={"lr": 5e-3},
        model=NO_DROPOUT,
    )
    losses = list(curve(tmp_path / "run").values())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert {tensor.dtype for tensor in weights_of(tmp_path / "run").values()} == {torch.float32}
    assert report.training["data_wait"] < 1


@pytest.mark.slow
def test_a_resume_in_bfloat16_keeps_the_fp32_weights(cache, tmp_path):
    """DeepSpeed makes its fp32 weights from the bfloat16 model; a resumed run has the digits that this loses."""
    straight, folder = tmp_path / "straight", tmp_path / "run"
    options = {"annotation_mode": "single_stage", "precision": "bf16", "save_freq": 2}
    train_here(folder, cache, **options)
    shutil.copytree(folder, straight, symlinks=True)
    forget_after(folder, 2)
    train_here(folder, cache, **options, resume=True)
    assert_same_run(folder, straight, 0, 0)


def test_two_cameras_in_one_model(cache, tmp_path):
    """Trained, resumed, scored; LeRobot's config says nothing of the second camera, so the sidecar and the report do."""
    cameras = [CAMERA, "observation.images.wrist"]
    root = write_dataset(tmp_path / "set", "v3.0", (50, 40, 30), cameras=cameras, annotated=True)
    options = {"dataset": str(root), "image_key": cameras, "model": {"frame_gap": 5}, "save_freq": 2, "window": "past"}
    folder, straight = tmp_path / "run", tmp_path / "straight"
    report = train_here(folder, cache, **options)
    assert report.strange_to_lerobot == [
        "2 cameras",
        f"features of {CLIP_TINY} (if that is no copy of openai/clip-vit-base-patch32)",
        "a past window",
    ]
    assert "for sarm_ray alone, as LeRobot knows nothing of 2 cameras, features of" in describe_report(report)
    sidecar = json.loads((Path(report.last) / "sarm_ray.json").read_text())
    assert (sidecar["num_cameras"], sidecar["image_keys"]) == (2, cameras)
    assert json.loads((Path(report.last) / "config.json").read_text())["image_key"] == CAMERA
    shutil.copytree(folder, straight, symlinks=True)
    forget_after(folder, 2)
    train_here(folder, cache, **options, resume=True)
    assert_same_run(folder, straight, 0, 0)

    config = ScoreConfig(
        dataset=str(root), model=report.last, encoder=CLIP_TINY, cache=str(cache), num_visualizations=1,
        output=str(tmp_path / "o.parquet"), head_mode="both",
    )  # fmt: skip
    scored = score_one(config)
    assert (scored.num_decoded, scored.num_cached, scored.cameras) == (0, 240, cameras)
    assert np.isfinite(read_progress(tmp_path / "o.parquet")["progress_dense"]).all()
    with pytest.raises(CheckpointError, match=r"has cameras 2 \(.*\), this run 1; give as many with --image-key$"):
        train_here(tmp_path / "tuned", cache, **{**options, "image_key": CAMERA}, init_from=report.last)
