"""`sarm-ray score --follow`: what appears is scored once each, what is half there waits, and the values are `score`'s."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from sarm_ray.errors import ConfigError
from tests.datasets import CAMERA, frame_code, write_dataset, write_video
from tests.pipelines.crashes import busy_workers, wait_until
from tests.pipelines.followers import (
    arguments,
    copy_slowly,
    expected,
    follow_here,
    follower,
    said_of,
    write_models,
)
from tests.pipelines.runs import assert_same_values, quick_config, read_progress, read_summary, run_here, score_one
from tests.s3 import BUCKET, s3_environment, serve_s3
from tests.sampling import others_slow

OUTPUT = "sarm_progress.parquet"
VIDEO = f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
SMALL = {"size": (48, 48)}


@pytest.fixture(scope="module")
def models(tmp_path_factory, encoder) -> dict[str, str]:
    return write_models(tmp_path_factory.mktemp("models"), encoder)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Whole datasets; `grown` is `two` with an episode more, `odd` has another state than the models take."""
    folder = tmp_path_factory.mktemp("sources")
    return {
        "three": write_dataset(folder / "three", "v3.0", [40, 7, 30], **SMALL),
        "two": write_dataset(folder / "two", "v2.1", [20, 9], **SMALL),
        "grown": write_dataset(folder / "grown", "v2.1", [20, 9, 15], **SMALL),
        "odd": write_dataset(folder / "odd", "v2.1", [5], state_dim=5, **SMALL),
    }


@pytest.fixture(scope="module")
def scored(models, sources, tmp_path_factory) -> dict[str, Path]:
    """What `score` makes of each: source -> output."""
    folder = tmp_path_factory.mktemp("scored")
    return {name: expected(sources[name], models["own"], folder) for name in ("three", "two", "grown")}


@pytest.fixture(scope="module")
def once(models, sources, tmp_path_factory) -> Path:
    """A folder with `two`, scored by `score`, as `x`."""
    folder = tmp_path_factory.mktemp("once")
    root = shutil.copytree(sources["two"], folder / "x")
    score_one(quick_config(dataset=str(root), model=models["own"], head_mode="both", precision="fp32"))
    return folder


def place_scored(once: Path, root: Path) -> Path:
    """A copy of it, with its features."""
    shutil.copytree(f"{once}/x.sarm_features", f"{root}.sarm_features")
    return shutil.copytree(once / "x", root)


def outputs(folder: Path) -> dict[str, int]:
    """Progress files below a folder -> when each was written."""
    return {str(path.parent.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob(OUTPUT)}


def count_in(folder: Path) -> tuple[int, int]:
    """Frames that the last round decoded and scored of a dataset."""
    summary = read_summary(folder / OUTPUT)
    return summary["num_decoded"], summary["num_scored"]


HALVES = {  # what is not there of a dataset yet: source, how it is told
    "missing": ("two", f"{VIDEO} is not there yet"),
    "cut": ("two", f"{VIDEO} is not whole (cut off: 1,000 of "),
    "ahead": ("two", "meta/info.json says 3 episodes, the episode table has 2"),
    "open": (
        "three",
        "data/chunk-000/file-000.parquet is not whole (no parquet footer: still being written, or cut off)",
    ),
    "begun": ("three", "no episode table under meta/episodes"),
}


def spoil(root: Path, kind: str) -> None:
    """Leave a dataset as a recorder or a copy leaves it half-way."""
    if kind == "missing":
        (root / VIDEO).unlink()
    elif kind == "cut":
        (root / VIDEO).write_bytes((root / VIDEO).read_bytes()[:1000])
    elif kind == "ahead":
        info = json.loads((root / "meta/info.json").read_text())
        (root / "meta/info.json").write_text(json.dumps({**info, "total_episodes": 3}))
    elif kind == "open":
        path = root / "data/chunk-000/file-000.parquet"
        path.write_bytes(path.read_bytes()[:-100])
    else:
        shutil.rmtree(root / "meta/episodes")


@pytest.fixture(scope="module")
def followed(models, sources, scored, tmp_path_factory) -> Path:
    """A folder in which a follower lived through everything that may happen to it."""
    place = tmp_path_factory.mktemp("followed")
    folder = place / "rollouts"
    folder.mkdir()
    with follower(place, arguments(folder, models["own"])) as own:
        wait_until(lambda: own.lines("follow"), own.process)
        for kind, (source, _) in HALVES.items():
            shutil.copytree(sources[source], folder / kind)
            spoil(folder / kind, kind)
        shutil.copytree(sources["odd"], folder / "odd")
        (folder / "junk/deeper").mkdir(parents=True)
        (folder / "junk/deeper/notes.txt").write_text("no dataset")
        copy_slowly(sources["three"], folder / "day1/run/a", pause_s=0.2)
        wait_until(lambda: len(own.lines("waiting")) >= 5 and own.lines("left") and own.lines("scored"), own.process)
        assert list(outputs(folder)) == ["day1/run/a"]  # and nothing of what is half there
        assert_idle()

        for kind, (source, _) in HALVES.items():
            copy_slowly(sources[source], folder / kind)
        wait_until(lambda: len(outputs(folder)) == 6 and len(own.lines("scored")) == 6, own.process)
        assert_idle()

        assert count_in(folder / "missing") == (29, 29)
        copy_slowly(sources["grown"], folder / "missing", pause_s=0.2)
        wait_until(lambda: len(own.lines("scored")) == 7, own.process)
        assert count_in(folder / "missing") == (15, 15)  # the new episode's, and no other frame

        own.process.send_signal(signal.SIGTERM)
        assert own.process.wait() == 0
    return place


def assert_idle() -> None:
    """Nothing of the cluster is held."""
    wait_until(lambda: not busy_workers())
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


def test_each_has_the_values_of_score_on_the_complete_dataset(followed, scored):
    kinds = {"day1/run/a": "three", **{kind: source for kind, (source, _) in HALVES.items()}, "missing": "grown"}
    assert outputs(followed / "rollouts").keys() == kinds.keys()
    for place, source in kinds.items():
        output = followed / "rollouts" / place / OUTPUT
        assert_same_values(output, scored[source])
        assert pq.read_schema(output).remove_metadata() == pq.read_schema(scored[source]).remove_metadata()
        num_frames = sum(count_in(output.parent))
        assert num_frames == 2 * (15 if place == "missing" else len(read_progress(output)["index"]))
        left = sorted(path.name for path in Path(f"{output}.run").iterdir())
        assert left == ["config.yaml", "summary.json"]


def test_what_it_said(followed):
    text, root = (followed / "stderr").read_text(), followed / "rollouts"
    assert said_of(text, "follow") == ["rollouts: every 0.3 s; Ctrl-C ends"]
    waiting = said_of(text, "waiting")
    for kind, (_, reason) in HALVES.items():
        of_it = [line for line in waiting if line.startswith(f"rollouts/{kind}: ")]
        assert len([line for line in of_it if line.startswith(f"rollouts/{kind}: {reason}")]) == 1
        assert len(of_it) == len(set(of_it))
    assert said_of(text, "left") == [
        "rollouts/odd: observation.state is 5 wide, the model was trained on 6. Choose the right state with --state-key, "
        "or give --state-stats dataset if the width alone differs"
    ]
    found = said_of(text, "found")
    assert sorted(found) == sorted(
        [
            "rollouts/day1/run/a: 3 episodes, 77 frames",
            *(f"rollouts/{kind}: 2 episodes, 29 frames" for kind in ("missing", "cut", "ahead")),
            *(f"rollouts/{kind}: 3 episodes, 77 frames" for kind in ("open", "begun")),
            "rollouts/missing: 1 more episode, 15 frames (2 are scored already)",
        ]
    )
    done = said_of(text, "scored")
    assert done[-1].startswith("rollouts/missing: 1 episode in ")
    assert done[-1].endswith(f"s -> {root}/missing/{OUTPUT}")
    assert (followed / "stdout").read_text().splitlines()[0].startswith("16 episodes, 333 frames scored in ")
    assert (
        (followed / "stdout")
        .read_text()
        .splitlines()[0]
        .endswith("0 chunks failed; 7 datasets there, 1 of them not scored whole")
    )
    assert "Traceback" not in text


def test_one_that_is_started_again_does_nothing_twice(followed, models):
    before = outputs(followed / "rollouts")
    result = follow_here(arguments(followed / "rollouts", models["own"]), lambda: True, looks=10)
    assert result.exit_code == 0, result.output
    assert said_of(result.stderr, "found") == ["6 datasets scored already"]
    assert said_of(result.stderr, "scored") == []
    assert result.stdout.startswith(
        "0 episodes, 0 frames scored in 0 rounds, 0 chunks failed; 7 datasets there, 1 of them not scored whole"
    )
    assert outputs(followed / "rollouts") == before


def test_a_dry_run_says_what_is_ready_and_what_waits_and_runs_nothing(models, sources, tmp_path):
    for kind in ("whole", "cut"):
        shutil.copytree(sources["two"], tmp_path / "rollouts" / kind)
    spoil(tmp_path / "rollouts/cut", "cut")
    result = run_here(*arguments(tmp_path / "rollouts", models["own"], "--dry-run"))
    assert result.exit_code == 0, result.output
    assert "episodes  2 of 2, 29 frames" in result.stderr
    assert result.stderr.count("dataset   ") == 1
    assert f"waiting   rollouts/cut: {HALVES['cut'][1]}" in result.stderr
    assert not list(tmp_path.rglob(f"{OUTPUT}*"))


@pytest.mark.slow
def test_outputs_of_other_options_are_left_and_with_overwrite_replaced_once(models, once, tmp_path):
    """The second follower, with the same flags, replaces nothing."""
    folder = tmp_path / "rollouts"
    for name in ("a", "b"):
        place_scored(once, folder / name / "x")
    before = outputs(folder)
    other = arguments(folder, models["own"], "--stride", "2")
    left = run_here(*other, "--dry-run")
    assert said_of(left.stderr, "left") == [
        f"rollouts/{name}/x: {OUTPUT} is of stride 1, not 2; replace it with --overwrite" for name in "ab"
    ]
    assert outputs(folder) == before
    for name, reason in (
        ("other", f"by another model ({models['own']})"),
        ("none", "by the statistics of the checkpoint, "),
    ):
        assert reason in run_here(*arguments(folder, models[name]), "--dry-run").stderr
    for options, reason in (
        (["--task", "fold"], "is of task none, not fold; replace it with --overwrite"),
        (["--precision", "bf16"], "is of precision fp32, not bf16; replace it with --overwrite"),
    ):
        assert reason in run_here(*arguments(folder, models["own"], *options), "--dry-run").stderr
    replaced = follow_here([*other, "--overwrite"], lambda: not before.items() & outputs(folder).items())
    assert replaced.exit_code == 0, replaced.output
    assert len(said_of(replaced.stderr, "scored")) == 2
    assert count_in(folder / "a/x") == (0, 16)  # from the store: every second frame and the last one of each episode
    after = outputs(folder)
    again = follow_here([*other, "--overwrite"], lambda: True, looks=8)
    assert said_of(again.stderr, "found") == ["2 datasets scored already"]
    assert outputs(folder) == after


def test_an_episode_that_failed_is_tried_again_when_its_files_change(models, sources, scored, tmp_path):
    """Two videos are too short. One is mended: then both are tried, and the other one stands in failed.parquet still."""
    root = shutil.copytree(sources["grown"], tmp_path / "rollouts/x")
    output, videos = root / OUTPUT, [root / VIDEO, root / VIDEO.replace("01.mp4", "02.mp4")]
    for number, video in enumerate(videos, 1):
        write_video(video, [frame_code(number, frame) for frame in range(4)], size=(48, 48))
    command = arguments(tmp_path / "rollouts", models["own"], "--stage-probabilities")
    probabilities = Path(f"{output}.run/stage_probabilities.parquet")

    def failed() -> list[int]:
        path = Path(f"{output}.run/failed.parquet")
        return pq.read_table(path)["episode_index"].to_pylist() if path.exists() else []

    first = follow_here(command, output.exists)
    assert first.exit_code == 1
    assert failed() == [1, 2]
    assert ", 2 chunks failed (" in said_of(first.stderr, "scored")[0]
    written, kept = outputs(tmp_path), pq.read_table(probabilities).slice(0, 20)
    again = follow_here(command, lambda: True, looks=8)
    assert (again.exit_code, said_of(again.stderr, "found")) == (0, ["1 dataset scored already"])
    assert outputs(tmp_path) == written

    shutil.copyfile(sources["grown"] / VIDEO, videos[0])
    mended = follow_here(command, lambda: outputs(tmp_path) != written)
    assert mended.exit_code == 1
    assert said_of(mended.stderr, "found") == ["rollouts/x: 2 more episodes, 24 frames (1 are scored already)"]
    assert failed() == [2]
    ours, theirs = read_progress(output), read_progress(scored["grown"])
    np.testing.assert_array_equal(ours["progress_sparse"][:29], theirs["progress_sparse"][:29])
    assert np.isnan(ours["progress_sparse"][29:]).all()

    written = outputs(tmp_path)
    shutil.copyfile(sources["grown"] / videos[1].relative_to(root), videos[1])
    whole = follow_here(command, lambda: outputs(tmp_path) != written)
    assert (whole.exit_code, failed()) == (0, [])
    table = pq.read_table(probabilities)
    assert table["index"].to_pylist() == list(range(44))
    assert table.slice(0, 20).equals(kept)
    assert table["sparse"].null_count == table["dense"].null_count == 0
    assert_same_values(output, scored["grown"])


@pytest.mark.slow
def test_what_a_dataset_is_normalised_by_changes_when_it_grows(models, sources, tmp_path):
    """So all is scored anew, from the store, and the output is that of the dataset as it is now."""
    root = shutil.copytree(sources["two"], tmp_path / "rollouts/x")
    command = arguments(tmp_path / "rollouts", models["none"], "--output", tmp_path / "out")
    follow_here(command, lambda: outputs(tmp_path))
    before = outputs(tmp_path)
    copy_slowly(sources["grown"], root)
    result = follow_here(command, lambda: outputs(tmp_path) != before)
    assert said_of(result.stderr, "found") == [
        "rollouts/x: 3 episodes, 44 frames (all anew, by the statistics of the states that it has now)"
    ]
    assert count_in(tmp_path / "out/x") == (15, 44)
    assert_same_values(tmp_path / "out/x" / OUTPUT, expected(sources["grown"], models["none"], tmp_path))


@pytest.mark.parametrize("fault", others_slow(["parts complete", "output renamed"], ["parts complete"]))
def test_killed_in_the_middle_of_a_round(models, sources, scored, once, tmp_path, fault):
    """Two datasets, one of which has grown: what is done by then is not done again, and nothing shows."""
    folder = tmp_path / "rollouts"
    place_scored(once, folder / "grown")
    command = arguments(folder, models["own"])
    before = outputs(folder)
    copy_slowly(sources["grown"], folder / "grown")
    shutil.copytree(sources["three"], folder / "three")
    with follower(tmp_path / "first", command, "tests.pipelines.injected", fault) as own:
        assert own.process.wait() == -signal.SIGKILL
    done = outputs(folder)
    assert (len(done), done == before) == ((1, True) if fault == "parts complete" else (2, False))
    result = follow_here(
        command, lambda: len(outputs(folder)) == 2 and not list(folder.rglob("parts-*")) and outputs(folder) != before
    )
    assert result.exit_code == 0, result.output
    for name in ("grown", "three"):
        assert_same_values(folder / name / OUTPUT, scored[name])
        assert not list(folder.rglob("parts-*")) + list(folder.rglob("lease.json"))
        if fault == "parts complete":
            assert count_in(folder / name) == (0, 0)


def test_two_followers_and_one_that_is_asked_to_stop_in_the_middle_of_a_round(models, sources, scored, tmp_path):
    """The first one is held in the middle of a chunk. The second leaves its dataset, scores another one, and then takes over
    what the first one left when it was stopped.
    """
    folder = tmp_path / "rollouts"
    held = shutil.copytree(sources["three"], folder / "held")
    command = arguments(folder, models["own"])
    with follower(tmp_path / "first", command, "tests.pipelines.injected", "hold scoring until stop") as own:
        wait_until(lambda: len(list(held.glob("begun-*"))) >= 2, own.process)
        shutil.copytree(sources["two"], folder / "free")
        second = follow_here(command, lambda: "free" in outputs(folder))
        assert second.exit_code == 0, second.output
        reasons = said_of(second.stderr, "waiting")
        assert (
            len([reason for reason in reasons if reason.startswith(f"rollouts/held: process {own.process.pid} on ")])
            == 1
        )
        assert [line.split(":")[0] for line in said_of(second.stderr, "scored")] == ["rollouts/free"]
        own.process.send_signal(signal.SIGTERM)
        assert own.process.wait() == 130
        words = own.stderr.read_text()
    assert words.count("SIGTERM: chunks in flight are being finished; once more to stop at once\n") == 1
    assert "\nfollow    0 episodes, 0 frames scored in 0 rounds, 0 chunks failed before this round\n" in words
    assert words.endswith("scored in this run, all kept; run the same command again to go on\n")
    assert list(outputs(folder)) == ["free"]
    third = follow_here(command, lambda: "held" in outputs(folder))
    assert third.exit_code == 0, third.output
    assert count_in(held)[0] == 0
    assert_same_values(held / OUTPUT, scored["three"])


@pytest.mark.slow
def test_a_bucket_that_is_filled_while_it_is_followed(models, sources, scored, tmp_path):
    with serve_s3() as s3:
        environment = s3_environment(s3.endpoint, SARM_RAY_CACHE=str(tmp_path / "node"))
        s3.put("elsewhere", b"x")
        url, out = f"s3://{BUCKET}/rollouts", f"s3://{BUCKET}/out"
        command = arguments(url, models["own"], "--output", out, "--cache", f"s3://{BUCKET}/features")
        with follower(tmp_path, command, env=environment) as own:
            wait_until(lambda: own.lines("follow"), own.process)
            s3.upload(sources["two"], "rollouts/day1/x")
            s3.put(f"rollouts/day1/x/{VIDEO}", (sources["two"] / VIDEO).read_bytes()[:1000])
            wait_until(lambda: [line for line in own.lines("waiting") if "cut off: 1,000 of" in line], own.process)
            s3.upload(sources["two"], "rollouts/day1/x")
            wait_until(lambda: own.lines("scored"), own.process)
            own.process.send_signal(signal.SIGINT)
            assert own.process.wait() == 0
        assert s3.keys("rollouts") == sorted(
            f"rollouts/day1/x/{path.relative_to(sources['two'])}"
            for path in sources["two"].rglob("*")
            if path.is_file()
        )
        s3.download("out/", tmp_path / "out")
    assert_same_values(tmp_path / "out/day1/x" / OUTPUT, scored["two"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"follow": 0.0}, "follow takes seconds above 0, not 0.0"),
        (
            {"follow": 1, "episodes": "0:2"},
            "--episodes is for datasets that are given by name; leave it out with --follow",
        ),
        ({"follow": 1, "push_to_hub": True}, "--push-to-hub is for datasets that are given by name"),
        ({"follow": 1, "output": "out.parquet"}, "--output is a folder with --follow, not a file like out.parquet"),
    ],
)
def test_options_that_do_not_go_together(options, words):
    with pytest.raises(ConfigError, match=words):
        quick_config(dataset="somewhere", model="model", **options)


def test_what_cannot_be_followed(models, tmp_path):
    def said(*arguments_: object) -> str:
        result = run_here("score", *arguments_, "--model", models["own"], "--follow", "1")
        assert result.exit_code == 2
        return result.stderr

    assert (
        "someone/robots: no such folder; --follow takes folders that are there, local ones or URLs; the Hub is not"
        in (said("someone/robots"))
    )
    assert said(tmp_path / "nowhere").startswith(f"error: {tmp_path}/nowhere: no such folder; --follow takes folders")
    for name in ("a", "b"):
        (tmp_path / name / "same").mkdir(parents=True)
    assert "have the same name, and so would their outputs" in said(tmp_path / "a/same", tmp_path / "b/same")
