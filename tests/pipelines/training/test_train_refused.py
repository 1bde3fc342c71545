"""What `train` does not take: one line that says what, where and the way out, exit code 2, no folder; and what it takes all
the same: an episode shorter than a window, and one that cannot be read.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from tests.datasets import CAMERA, DENSE_STAGES, SPARSE_STAGES, write_dataset
from tests.pipelines.broken import half, overwrite, put_states, v21_data
from tests.pipelines.crashes import wait_until
from tests.pipelines.runs import CLIP_TINY, needs_parity, run_here

pytestmark = needs_parity

TINY = [f"--set=model.{key}" for key in ("hidden_dim=16", "num_layers=1", "num_heads=2", "frame_gap=10")]
SIZES = ["--steps", 2, "--batch-size", 8, "--num-workers", 1]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """Annotated."""
    return write_dataset(tmp_path_factory.mktemp("sound") / "sound", "v2.1", (60, 50, 40), annotated=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Without annotation; the second episode is short."""
    return write_dataset(tmp_path_factory.mktemp("plain") / "plain", "v2.1", (60, 12, 70, 60))


def arguments(folder: Path, *more: object) -> list[object]:
    return [
        "train",
        "--output-dir",
        folder / "run",
        "--encoder",
        CLIP_TINY,
        "--cache",
        folder / "c",
        *TINY,
        *SIZES,
        *more,
    ]


def refused(folder: Path, *more: object) -> str:
    """The line with which the command refuses; nothing is left."""
    result = run_here(*arguments(folder, *more))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    return last.removeprefix("error: ")


def with_stages(root: Path, copy: Path, episode: int, prefix: str, rename: dict[str, str], proportions: bool) -> Path:
    """A dataset with the subtasks of an episode (all where it is None) renamed."""
    write_dataset(copy, "v3.0", (60, 50, 40), annotated=True)
    for path in sorted((copy / "meta/episodes").rglob("*.parquet")):
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            if episode is None or row["episode_index"] == episode:
                for name in [f"{prefix}_subtask_names"]:
                    row[name] = [rename.get(stage, stage) for stage in row[name]]
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    if not proportions:
        for path in (copy / "meta").glob("temporal_proportions_*.json"):
            path.unlink()
    return copy


@pytest.mark.parametrize(("mode", "kind"), [("dual", "sparse"), ("dense_only", "dense")])
def test_no_annotation(plain, tmp_path, mode, kind):
    assert refused(tmp_path, plain, "--annotation-mode", mode) == (
        f"plain: {mode} training needs {kind} subtasks, and meta/episodes has no column {kind}_subtask_names; make it with "
        f"sarm-ray annotate or LeRobot's subtask_annotation.py --{kind}-subtasks, or train with --annotation-mode "
        "single_stage, which needs none"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("proportions", [True, False])
def test_stage_names_that_differ_between_episodes(sound, tmp_path, proportions):
    root = with_stages(sound, tmp_path / "odd", 1, "sparse", {"push": "shove"}, proportions)
    assert refused(tmp_path, root, "--annotation-mode", "dual") == (
        "odd: the sparse subtasks of episode 1 are approach, shove, retract; those of "
        f"{'meta/temporal_proportions' if proportions else 'most episodes'} are {', '.join(SPARSE_STAGES)}. Correct the "
        "names, or leave the episode out with --episodes"
    )


def test_stage_names_that_differ_between_datasets(sound, tmp_path):
    root = with_stages(sound, tmp_path / "other", None, "dense", {"release": "let go"}, proportions=False)
    theirs = [stage.replace("release", "let go") for stage in DENSE_STAGES]
    assert refused(tmp_path, sound, root, "--annotation-mode", "dense_only") == (
        f"the dense subtasks differ: sound has {', '.join(DENSE_STAGES)}; other has {', '.join(theirs)}. Rename them, or "
        "train on one of the datasets"
    )


def test_a_state_that_is_nan(tmp_path):
    root = write_dataset(tmp_path / "nan", "v2.1", (20, 20))
    put_states(v21_data(1), 5, float("nan"))(root)
    assert refused(tmp_path, root) == (
        "nan: episode 1: observation.state is NaN or infinite in frame 5, dimension 3; mend it, or leave the episode out "
        "with --episodes"
    )
    assert not (tmp_path / "run/checkpoints").exists()


REFUSED = {
    "batch larger than the data": (
        ["--batch-size", 300, "--val-fraction", 0],
        "--batch-size 300 is larger than the training data, 202 frames of 4 episodes",
    ),
    "workers that do not divide the batch": (
        ["--num-workers", 3],
        "3 workers do not divide the batch of 8; 1, 2, 4 would, or choose another --batch-size",
    ),
    "workers and passes that do not divide the batch": (
        ["--num-workers", 2, "--gradient-accumulation-steps", 3],
        "2 workers x 3 passes do not divide the batch of 8; 2, 4, 8 would, or choose another --batch-size",
    ),
    "not enough workers": (
        ["--num-workers", 4, "--set", "wait_s=0.2"],
        "4 training processes need as many CPU cores, the cluster has 2, and after 0.2 s no more came; add nodes or give "
        "--num-workers",
    ),
    "unknown key": (["--set", "sede=3"], "unknown key 'sede'; did you mean 'seed'?"),
    "unknown nested key": (
        ["--set", "model.hiden_dim=3"],
        "unknown key 'model.hiden_dim'; did you mean 'hidden_dim'?",
    ),
    "key inside an option that has none": (
        ["--set", "steps.first=3"],
        "--set steps.first: steps has no options",
    ),
    "value of another type": (["--set", "optimizer.lr=fast"], "optimizer.lr must be a number, not 'fast'"),
    "value out of range": (["--set", "model.dropout=1"], "model.dropout must be in [0, 1), not 1"),
    "no number": (["--set", "optimizer.lr=nan"], "optimizer.lr must be positive, not nan"),
    "no value": (["--set", "seed"], "--set takes KEY=VALUE, not 'seed'"),
    "heads that do not divide the width": (
        ["--set", "model.num_heads=3"],
        "model.num_heads must divide model.hidden_dim 16, not be 3",
    ),
    "no YAML": (["--set", "seed=["], "--set seed: '[' is not YAML"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_option(plain, tmp_path, case):
    options, line = REFUSED[case]
    assert refused(tmp_path, plain, *options) == line
    assert not (tmp_path / "run").exists()


def test_a_short_episode_trains_and_a_broken_one_is_left_out(tmp_path):
    """Then the folder is used: a new run, or one that differs, is refused."""
    root = write_dataset(tmp_path / "some", "v2.1", (60, 12, 70, 60))
    overwrite(f"videos/chunk-000/{CAMERA}/episode_000003.mp4", half)(root)
    run = [root, "--val-fraction", 0]
    result = run_here(*arguments(tmp_path, *run))
    assert result.exit_code == 1, result.output
    words = " ".join(result.output.split())
    assert (
        "some: 1 of 4 episodes are shorter than the window of 40 frames; their windows repeat the first and the last frame"
        in words
    )
    assert "some: 1 episodes cannot be read and are left out" in words
    assert "2 steps on 142 frames of 3 episodes" in words
    assert "1 chunks could not be read; episodes 3 were left out, see failed.parquet" in words
    failed = pq.read_table(tmp_path / "run/failed.parquet").to_pylist()
    assert [row["episode_index"] for row in failed] == [3]
    assert (tmp_path / "run/checkpoints/last/pretrained_model/config.json").exists()

    where = tmp_path / "run"
    assert refused(tmp_path, *run) == (
        f"{where} holds a training run (config.yaml); go on with it by --resume, or choose another --output-dir"
    )
    ways_out = f"give the options of {where}/config.yaml (--config takes it), or choose another --output-dir"
    for more, what in [
        (["--seed", 7], "seed"),
        (["--set", "model.num_layers=2"], "model"),
        (["--set", "optimizer.lr=1e-3", "--steps", 3], "optimizer, steps"),
    ]:
        assert re.sub("^.*?: ", "", refused(tmp_path, *run, "--resume", *more)) == (
            f"--resume goes on with the same run, and this one differs in {what}; {ways_out}"
        )
    again = run_here("train", "--config", where / "config.yaml", "--allow-failures", 1)
    assert again.exit_code == 0, again.output


def test_a_cluster_that_is_too_small_is_asked_to_grow(plain, tmp_path):
    """What waits is what an autoscaler goes by; it is taken back when the run gives up."""
    before = set(ray.util.placement_group_table())
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "sarm_ray",
            *map(str, arguments(tmp_path, plain, "--num-workers", 4, "--set", "wait_s=6")),
        ],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stderr=subprocess.PIPE,
        text=True,
    )

    def asked() -> list[dict]:
        return [own for name, own in ray.util.placement_group_table().items() if name not in before]

    wait_until(asked, process)
    (group,) = asked()
    assert (group["state"], list(group["bundles"].values())) == ("PENDING", [{"CPU": 0.9}] * 4)
    _, said = process.communicate()
    assert process.returncode == 2
    assert "the cluster has 2; waiting up to 6 s for more\n" in said
    (group,) = asked()
    assert group["state"] == "REMOVED"
