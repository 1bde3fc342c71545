"""`sarm-ray annotate` against an endpoint that answers well, badly, late and not at all; imports; what is written."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sarm_ray.pipelines.annotate_episodes as annotate_episodes
from sarm_ray.config.annotate import AnnotateConfig
from sarm_ray.core.subtasks import FrameSubtasks
from sarm_ray.data.annotation_io import read_annotations
from sarm_ray.data.annotation_journal import read_journal
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.errors import AnnotatorError, ConfigError
from sarm_ray.pipelines.annotate import annotate
from tests.datasets import write_dataset
from tests.pipelines.annotation_oracle import MODEL, Oracle, oracle_of
from tests.pipelines.runs import files_below, run_here, sarm_ray
from tests.vlm.tiny import needs_torchvision, vlm_environment

FPS = 10.0
LENGTHS = (60, 80, 50, 70, 45, 66, 90, 53, 72)
SPARSE = ("reach", "grasp", "place")
DENSE = ("approach", "close gripper", "lift", "lower, slowly")
LABELS = {"sparse": SPARSE, "dense": DENSE}
KEY = "sk-very-secret-0123456789"


def boundaries(kind: str, length: int) -> list[float]:
    """Seconds at which subtasks begin, none of them equally long."""
    shares = {"sparse": [0, 0.3, 0.45], "dense": [0, 0.2, 0.35, 0.7]}[kind]
    return [round(share * length / FPS, 1) for share in shares]


def truth_of(lengths=LENGTHS) -> dict:
    truth = {}
    for episode, length in enumerate(lengths):
        for kind, labels in LABELS.items():
            starts = boundaries(kind, length)
            truth[(kind, episode)] = list(zip(labels, starts, [*starts[1:], length / FPS], strict=True))
    return truth


def expected(kind: str, episode: int) -> FrameSubtasks:
    starts = tuple(round(start * FPS) for start in boundaries(kind, LENGTHS[episode]))
    return FrameSubtasks(LABELS[kind], starts, (*starts[1:], LENGTHS[episode] - 1))


def found_in(root: Path, kind: str) -> dict[int, FrameSubtasks]:
    """What a dataset's metadata says now."""
    dataset = open_dataset(str(root))
    own = read_annotations(dataset).get(kind)
    found = {}
    for row in range(len(dataset.length)) if own else ():
        part = slice(own.offsets[row], own.offsets[row + 1])
        if part.start < part.stop:
            names = tuple(own.stages[stage] for stage in own.stage[part])
            found[int(dataset.episode_index[row])] = FrameSubtasks(
                names, tuple(own.start[part].tolist()), tuple(own.end[part].tolist())
            )
    return found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "toy"
    return write_dataset(folder, "v3.0", LENGTHS, fps=FPS, size=(64, 96), episodes_per_metadata_file=4)


@pytest.fixture
def dataset(drawn, tmp_path) -> Path:
    shutil.copytree(drawn, tmp_path / "toy")
    return tmp_path / "toy"


def config_of(dataset: Path, oracle: Oracle, **options) -> AnnotateConfig:
    values = {
        "dataset": str(dataset), "sparse_subtasks": list(SPARSE), "dense_subtasks": list(DENSE), "engine": "openai",
        "endpoint": oracle.url, "model": MODEL, "num_visualizations": 0, "timeout_s": 30.0, **options,
    }  # fmt: skip
    return AnnotateConfig(**values)


def test_good_malformed_late_truncated_and_refused(dataset, monkeypatch, capfd):
    """Right annotations, asked again with the reason, failures on record, nothing lost, the key nowhere."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    moods = {
        ("sparse", 0): ["malformed"],
        ("dense", 0): ["busy", "broken"],
        ("sparse", 1): ["wrong"],
        ("dense", 1): ["truncated"],
        ("sparse", 2): ["refused"],
        ("dense", 2): ["malformed"] * 3,
        ("sparse", 3): ["hung up"],
        ("dense", 3): ["equal"],
        ("sparse", 4): ["equal", "equal"],
        ("dense", 4): ["late"],
    }
    with oracle_of(truth_of(), LABELS, moods, key=KEY) as oracle:
        result = run_here(
            "annotate", dataset, "--sparse-subtasks", ",".join(SPARSE),
            *(word for name in DENSE for word in ("--dense-subtasks", name)), "--engine", "openai", "--endpoint",
            oracle.url, "--model", MODEL, "--num-visualizations", "2", "--timeout-s", "2.5",
        )  # fmt: skip
        assert result.exit_code == 1, result.output
        asked = {case: oracle.count(*case) for case in truth_of()}
        again = [each.turns for each in oracle.asked if (each.kind, each.episode) == ("sparse", 1)][1]
        assert {each.authorization for each in oracle.asked} == {f"Bearer {KEY}"}
    uniform = FrameSubtasks(SPARSE, (0, 15, 30), (15, 30, 44))
    sparse = {episode: expected("sparse", episode) for episode in range(9) if episode != 2} | {4: uniform}
    dense = {episode: expected("dense", episode) for episode in range(9) if episode != 2}
    assert found_in(dataset, "sparse") == sparse
    assert found_in(dataset, "dense") == dense
    often = {("sparse", 0): 2, ("dense", 0): 3, ("sparse", 1): 2, ("dense", 1): 2, ("sparse", 2): 1, ("dense", 2): 3,
             ("sparse", 3): 2, ("dense", 3): 2, ("sparse", 4): 2, ("dense", 4): 2}  # fmt: skip
    assert asked == {case: often.get(case, 1) for case in asked}
    assert again[2]["role"] == "assistant"
    assert again[3]["content"].startswith(
        "That answer cannot be taken:\n- 'reach' ends at 00:02.4, not after its start 00:09.9\n"
    )
    run = dataset / "annotation.run"
    failed = pq.read_table(run / "failed.parquet").to_pylist()
    no_json = 'there is no complete and valid JSON object {"subtasks": [...]} in the answer'
    assert failed == [
        {"episode_index": 2, "kind": "dense", "error": "NoAnswerError", "message": no_json, "attempts": 3},
        {"episode_index": 2, "kind": "sparse", "error": "NoAnswerError", "message": "refused: I will not, Bearer ***",
         "attempts": 1},
    ]  # fmt: skip
    journal = read_journal(str(run))
    assert len(journal) == 2 * len(LENGTHS)
    assert journal[("sparse", 4)].is_uniform
    assert [attempt["objections"] for attempt in journal[("dense", 1)].attempts] == [
        ["the answer was cut off after 2048 tokens; give the JSON alone"], [],
    ]  # fmt: skip
    assert journal[("sparse", 0)].attempts[0]["answer"] == "It begins with a reach, I think."
    assert "  episodes annotated: sparse 8, dense 8; 2 questions failed\n" in result.output
    assert "  split into equal parts: 1; look at them\n" in result.output
    out, err = capfd.readouterr()
    texts = [
        result.output,
        out,
        err,
        *(path.read_bytes().decode("latin-1") for path in dataset.rglob("*") if path.is_file()),
    ]
    assert not any(KEY in text or KEY[3:15] in text for text in texts)
    assert [name for name in files_below(run) if not name.startswith("pictures/")] == [
        "annotations.html", "config.yaml", "failed.parquet", "journal.parquet", "segments.csv", "summary.json",
    ]  # fmt: skip
    assert [name for name in files_below(run / "pictures") if name.endswith("png")] == [
        f"episode_000{episode}_{kind}.png" for episode in (0, 1) for kind in ("dense", "sparse")
    ]


def test_run_again_asks_what_failed_and_nothing_else(dataset):
    moods = {("sparse", 2): ["refused"], ("dense", 5): ["malformed"] * 3}
    with oracle_of(truth_of(), LABELS, moods) as oracle:
        config = config_of(dataset, oracle)
        first = annotate(config, quiet=True)
        assert [(row["episode_index"], row["kind"]) for row in first.failures] == [(2, "sparse"), (5, "dense")]
        oracle.asked.clear()
        second = annotate(config, quiet=True)
        assert sorted((each.kind, each.episode) for each in oracle.asked) == [("dense", 5), ("sparse", 2)]
        assert (second.failures, second.num_asked) == ([], 2)
        oracle.asked.clear()
        third = annotate(config, quiet=True)
        assert (oracle.asked, third.num_asked) == ([], 0)
    for kind in LABELS:
        assert found_in(dataset, kind) == {episode: expected(kind, episode) for episode in range(len(LENGTHS))}
    assert not (dataset / "annotation.run/failed.parquet").exists()


def test_skip_existing_looks_at_the_kind_being_annotated(dataset):
    """LeRobot looks at sparse ones alone, so its dense runs never resume."""
    with oracle_of(truth_of(), LABELS) as oracle:
        annotate(config_of(dataset, oracle, dense_subtasks=None, episodes="0:3"), quiet=True)
        oracle.asked.clear()
        report = annotate(
            config_of(dataset, oracle, episodes="1:5", skip_existing=True, output_dir=str(dataset / "second")),
            quiet=True,
        )
        asked = sorted((each.kind, each.episode) for each in oracle.asked)
    assert asked == [*(("dense", episode) for episode in (1, 2, 3, 4)), ("sparse", 3), ("sparse", 4)]
    assert report.num_annotated == {"sparse": 2, "dense": 4}
    assert sorted(found_in(dataset, "sparse")) == [0, 1, 2, 3, 4]
    assert sorted(found_in(dataset, "dense")) == [1, 2, 3, 4]
    shares = json.loads((dataset / "meta/temporal_proportions_sparse.json").read_text())
    lengths = np.array([LENGTHS[episode] - 1 for episode in range(5)])
    first = np.array([expected("sparse", episode).end[0] for episode in range(5)])
    assert list(shares) == list(SPARSE)
    assert shares["reach"] == pytest.approx((first / lengths).mean(), rel=1e-12)  # old ones and new ones


def test_dense_only_has_one_sparse_task(dataset):
    with oracle_of(truth_of(), LABELS) as oracle:
        report = annotate(config_of(dataset, oracle, sparse_subtasks=None, dense_only=True), quiet=True)
        assert {each.kind for each in oracle.asked} == {"dense"}
    assert report.num_annotated == {"sparse": 9, "dense": 9}
    assert found_in(dataset, "sparse") == {
        episode: FrameSubtasks(("task",), (0,), (length - 1,)) for episode, length in enumerate(LENGTHS)
    }
    assert json.loads((dataset / "meta/temporal_proportions_sparse.json").read_text()) == {"task": 1.0}


def test_an_endpoint_is_tried_before_any_work(dataset, monkeypatch):
    before = {path: path.read_bytes() for path in dataset.rglob("*.parquet")}
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    flags = ("--sparse-subtasks", "a,b", "--engine", "openai", "--model", MODEL)
    with oracle_of(truth_of(), LABELS, key=KEY) as oracle:
        refused = run_here("annotate", dataset, *flags, "--endpoint", oracle.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        unknown = run_here("annotate", dataset, *flags, "--endpoint", oracle.url, "--model", "gpt-0")
        assert not oracle.asked
        url = oracle.url
    gone = run_here("annotate", dataset, *flags, "--endpoint", url)
    assert [each.exit_code for each in (refused, unknown, gone)] == [2, 2, 2]
    assert f"error: {url} does not let us in; set OPENAI_API_KEY to its key (Error code: 401 - " in refused.output
    assert "sk-wrong" not in refused.output
    assert f"error: {url} has no model 'gpt-0'; it has {MODEL}\n" in unknown.output
    assert f"error: {url} does not answer (" in gone.output
    assert {path: path.read_bytes() for path in dataset.rglob("*.parquet")} == before


def test_an_endpoint_without_schemas_is_asked_without(dataset):
    with oracle_of(truth_of(), LABELS, {("sparse", 0): ["no schema"]}) as oracle:
        report = annotate(config_of(dataset, oracle, dense_subtasks=None, episodes="0:2", concurrency=1), quiet=True)
        assert oracle.count("sparse", 0) == 2
    assert report.failures == []
    assert found_in(dataset, "sparse") == {episode: expected("sparse", episode) for episode in (0, 1)}


def test_a_broken_video_costs_its_episodes(dataset):
    video = sorted(dataset.glob("videos/*/*/*.mp4"))[1]  # episodes 2 and 3
    video.write_bytes(video.read_bytes()[:200])
    with oracle_of(truth_of(), LABELS) as oracle:
        report = annotate(config_of(dataset, oracle), quiet=True)
        assert {each.episode for each in oracle.asked} == {0, 1, 4, 5, 6, 7, 8}
    assert [(row["episode_index"], row["kind"], row["error"]) for row in report.failures] == [
        (episode, kind, "VideoError") for episode in (2, 3) for kind in ("dense", "sparse")
    ]
    assert all(row["message"].startswith(f"{video}: ") for row in report.failures)
    assert sorted(found_in(dataset, "dense")) == [0, 1, 4, 5, 6, 7, 8]


def test_the_plan_says_what_it_costs(dataset):
    result = run_here("annotate", dataset, "--sparse-subtasks", "a,b,c", "--dense-subtasks", "d,e,f", "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[:6] == [
        "dataset   toy: 9 of 9 episodes",
        "sparse    a, b, c: 9 episodes to ask",
        "dense     d, e, f: 9 episodes to ask",
        "frames    6 to 10 an episode, 96 x 64 pixels, of observation.images.base",
        "model     Qwen/Qwen3-VL-30B-A3B-Instruct at the cluster's GPUs, by transformers",
        "estimate  18 questions, about 11.9 k prompt and 5.4 k answer tokens; 0.1 GPU hours,",
    ]
    assert not (dataset / "annotation.run").exists()


def test_exported_corrected_imported(dataset):
    """What a person corrects in the CSV is what the metadata says then, to the frame; the rest stays."""
    with oracle_of(truth_of(), LABELS) as oracle:
        annotate(config_of(dataset, oracle), quiet=True)
    file = dataset / "annotation.run/segments.csv"
    before = {kind: found_in(dataset, kind) for kind in LABELS}
    assert run_here("annotate", dataset, "--from", file).exit_code == 0
    assert {kind: found_in(dataset, kind) for kind in LABELS} == before
    lines = file.read_text().splitlines()
    first, second = (
        n for n, line in enumerate(lines) if line.startswith("3,sparse,") and ("reach" in line or "grasp" in line)
    )
    lines[first] = "3,sparse,reach,0,00:02.5,,"
    lines[second] = "3,sparse,grasp,2.5,3.1,,"
    lines.append("4,sparse,fly,0,1,,")
    (dataset / "mine.csv").write_text("\n".join(lines) + "\n")
    result = run_here("annotate", dataset, "--from", dataset / "mine.csv")
    assert result.exit_code == 1
    assert "episode 4 sparse: 'fly' is not one of the labels" in result.output
    after = found_in(dataset, "sparse")
    assert after.pop(3) == FrameSubtasks(SPARSE, (0, 25, 31), (25, 31, 69))
    assert before["sparse"].pop(3) == expected("sparse", 3)
    assert after == before["sparse"]


@needs_torchvision
def test_a_model_on_this_machine(dataset):
    """The whole command with transformers' engine: a real Qwen3-VL of random weights, whose nonsense annotates nothing."""
    model = dataset.parent / "model"
    make = [sys.executable, "-m", "tests.vlm.tiny", str(model), "curt"]
    subprocess.run(make, env=vlm_environment(), check=True, capture_output=True)
    before = {path: path.read_bytes() for path in (dataset / "meta").rglob("*") if path.is_file()}
    result = sarm_ray(
        "annotate", dataset, "--sparse-subtasks", ",".join(SPARSE), "--model", model, "--episodes", "0:3",
        env=vlm_environment(),
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert f"model     {model} at the cluster's GPUs, by transformers\n" in result.stderr
    assert "  episodes annotated: sparse 0; 3 questions failed\n" in result.stdout
    journal = read_journal(str(dataset / "annotation.run"))
    assert {key: len(entry.attempts) for key, entry in journal.items()} == {
        ("sparse", episode): 3 for episode in range(3)
    }
    assert all(attempt["num_prompt_tokens"] > 300 for entry in journal.values() for attempt in entry.attempts)
    failed = pq.read_table(dataset / "annotation.run/failed.parquet").to_pylist()
    assert [(row["episode_index"], row["error"]) for row in failed] == [(n, "NoAnswerError") for n in range(3)]
    assert {path: path.read_bytes() for path in (dataset / "meta").rglob("*") if path.is_file()} == before


def test_a_model_that_is_none(dataset, tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/config.json").write_text(json.dumps({"model_type": "clip"}))
    for model, words in (
        (tmp_path / "nowhere", f"{tmp_path}/nowhere: no such folder, and no Hub id"),
        (tmp_path / "clip", f"{tmp_path}/clip is a clip, which answers no questions about videos; take a Qwen3-VL"),
    ):
        result = run_here("annotate", dataset, "--sparse-subtasks", "a,b", "--model", model)
        assert (result.exit_code, result.output.splitlines()[-1]) == (2, f"error: {words}")


def test_what_people_correct_stands(dataset):
    """A VLM's answers do not come back over it, the file that was imported stays as it is, and --overwrite asks anew."""
    with oracle_of(truth_of(), LABELS, {("sparse", 5): ["refused"]}) as oracle:
        config = config_of(dataset, oracle, dense_subtasks=None)
        annotate(config, quiet=True)
        file = dataset / "annotation.run/segments.csv"
        text = file.read_text().replace("1,sparse,reach,0,2.4", "1,sparse,reach,0,1.9")
        text = text.replace("1,sparse,grasp,2.4", "1,sparse,grasp,1.9").replace("2,sparse,grasp", "2,sparse,grapple")
        file.write_text(text)
        corrected = annotate(
            AnnotateConfig(dataset=str(dataset), from_file=str(file), num_visualizations=0), quiet=True
        )
        assert [(row["episode_index"], row["error"]) for row in corrected.failures] == [(2, "AnswerError")]
        assert file.read_text() == text
        by_hand = FrameSubtasks(SPARSE, (0, 19, 36), (19, 36, 79))
        assert found_in(dataset, "sparse")[1] == by_hand
        oracle.asked.clear()
        annotate(config, quiet=True)
        assert [each.episode for each in oracle.asked] == [5]
        assert found_in(dataset, "sparse") == {
            episode: by_hand if episode == 1 else expected("sparse", episode) for episode in range(len(LENGTHS))
        }
        oracle.asked.clear()
        annotate(config_of(dataset, oracle, dense_subtasks=None, episodes="1", overwrite=True), quiet=True)
        assert [each.episode for each in oracle.asked] == [1]
        assert found_in(dataset, "sparse")[1] == expected("sparse", 1)
        assert len(read_journal(str(dataset / "annotation.run"))) == len(LENGTHS)


def test_overwrite_forgets_nothing_before_somebody_answers(dataset):
    with oracle_of(truth_of(), LABELS) as oracle:
        annotate(config_of(dataset, oracle, dense_subtasks=None), quiet=True)
        config = config_of(dataset, oracle, dense_subtasks=None, overwrite=True)
    with pytest.raises(AnnotatorError, match="does not answer"):
        annotate(config, quiet=True)
    assert len(read_journal(str(dataset / "annotation.run"))) == len(LENGTHS)


def test_other_lengths_are_another_question(dataset, tmp_path):
    """A run folder that was another recording's answers nothing about this one."""
    shared, other = tmp_path / "shared", tmp_path / "other/toy"
    write_dataset(
        other, "v3.0", [length + 7 for length in LENGTHS], fps=FPS, size=(64, 96), episodes_per_metadata_file=4
    )
    with oracle_of(truth_of(), LABELS) as oracle:
        annotate(config_of(dataset, oracle, dense_subtasks=None, output_dir=str(shared)), quiet=True)
    with oracle_of(truth_of([length + 7 for length in LENGTHS]), LABELS) as oracle:
        report = annotate(config_of(other, oracle, dense_subtasks=None, output_dir=str(shared)), quiet=True)
        assert len(oracle.asked) == len(LENGTHS)
    assert report.failures == []


def test_a_dataset_that_cannot_be_written_to(dataset, tmp_path, monkeypatch):
    """Its metadata goes to a folder of its name here; there it is skipped, drawn and completed the next time."""
    monkeypatch.chdir(tmp_path.parent)
    for path in (dataset, dataset / "meta", dataset / "meta/episodes"):
        path.chmod(0o555)
    here = tmp_path.parent / "toy"
    shutil.rmtree(here, ignore_errors=True)
    with oracle_of(truth_of(), LABELS) as oracle:
        first = annotate(
            config_of(dataset, oracle, dense_subtasks=None, episodes="0:4", num_visualizations=1), quiet=True
        )
        second = annotate(config_of(dataset, oracle, dense_subtasks=None, skip_existing=True), quiet=True)
        assert len(oracle.asked) == len(LENGTHS)
    assert (first.notices, second.num_annotated) == ((), {"sparse": 5})
    own = read_annotations(replace(open_dataset(str(dataset)), root=str(here)))["sparse"]
    assert own.annotated.all()
    assert (here / "annotation.run/annotations.html").exists()
    assert (here / "annotation.run/pictures/episode_0000_sparse.png").exists()
    assert not (dataset / "annotation.run").exists()
    assert found_in(dataset, "sparse") == {}


def test_a_column_of_rewards(dataset):
    """opensarm's labels; one episode's are broken, and cost that episode alone."""
    for path in sorted(dataset.glob("data/*/*.parquet")):
        table = pq.read_table(path)
        rewards = np.zeros(table.num_rows, dtype=np.float32)
        for episode in np.unique(table["episode_index"].to_numpy()).tolist():
            own = table["episode_index"].to_numpy() == episode
            rewards[own] = np.linspace(0, 2.99, own.sum())
            if episode == 3:
                rewards[np.flatnonzero(own)[4]] = np.nan
        pq.write_table(table.append_column("reward", pa.array(rewards)), path)
    info = json.loads((dataset / "meta/info.json").read_text())
    info["features"]["reward"] = {"dtype": "float32", "shape": [1], "names": None}
    (dataset / "meta/info.json").write_text(json.dumps(info))
    config = {"dataset": str(dataset), "from_file": "reward", "num_visualizations": 0}
    with pytest.raises(ConfigError, match="reward holds numbers of stages; name them in order"):
        annotate(AnnotateConfig(**config), quiet=True)
    report = annotate(AnnotateConfig(**config, sparse_subtasks=list(SPARSE)), quiet=True)
    assert [(row["episode_index"], row["error"]) for row in report.failures] == [(3, "DatasetError")]
    assert sorted(found_in(dataset, "sparse")) == [0, 1, 2, 4, 5, 6, 7, 8]
    assert found_in(dataset, "sparse")[0].names == SPARSE


def test_nonsense_alone_ends_the_run(dataset, monkeypatch):
    """So many questions without any answer that could be taken are enough; the run says what was wrong with the last."""
    monkeypatch.setattr(annotate_episodes, "HOPELESS", 10)
    with oracle_of(truth_of(), LABELS, {case: ["malformed"] * 3 for case in truth_of()}) as oracle:
        config = config_of(dataset, oracle)
        with pytest.raises(
            AnnotatorError, match=r"none of the first 1[01] questions was answered; there is no complete"
        ):
            annotate(config, quiet=True)
