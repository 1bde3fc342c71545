"""Datasets with broken pieces: what is broken is named and NaN, everything else is scored as if nothing were broken.

Each case is a dataset of its own, a copy of a sound one that was then spoilt. One command scores them all, so that each
also shows that it takes nothing from its neighbours; another one scores them again after they were mended.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from sarm_ray.core.windows import Window, window_slots
from tests.datasets import CAMERA, write_dataset
from tests.pipelines.broken import CASES, SOUND, Case
from tests.pipelines.reference import write_model
from tests.pipelines.runs import files_below, read_progress, run_here

WINDOW = Window(8, 10)
HEADS = ("progress_sparse", "progress_dense")


@dataclass(frozen=True)
class Run:
    """What a command left: its result, and per dataset the progress, rows of failed.parquet, summary and files."""

    result: Result
    folder: Path
    progress: dict[str, dict[str, np.ndarray]]
    failed: dict[str, list[dict]]
    summary: dict[str, dict]
    files: dict[str, list[str]]


def score_all(roots: list[Path], model: str, folder: Path, *flags: object) -> Run:
    result = run_here(
        "score", *roots, "--model", model, "--output", folder, "--head-mode", "both", "--precision", "fp32",
        "--num-visualizations", 0, *flags,
    )  # fmt: skip
    assert result.exit_code in (0, 1), result.output
    run = Run(result, folder, {}, {}, {}, {})
    for root in roots:
        progress = folder / root.name / "sarm_progress.parquet"
        failed = Path(f"{progress}.run/failed.parquet")
        run.progress[root.name] = read_progress(progress)
        run.failed[root.name] = pq.read_table(failed).to_pylist() if failed.exists() else []
        run.summary[root.name] = json.loads(Path(f"{progress}.run/summary.json").read_text())
        run.files[root.name] = files_below(progress.parent)
    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory, encoder) -> str:
    return write_model(tmp_path_factory.mktemp("model"), encoder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """The folder of all datasets; their features lie beside them."""
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def sound(sets, model, tmp_path_factory) -> Run:
    """The undisturbed run that others are compared with."""
    roots = [
        write_dataset(sets / kind, version, lengths, size=(64, 64), **options)
        for kind, (version, lengths, options) in SOUND.items()
    ]
    run = score_all(roots, model, tmp_path_factory.mktemp("sound"))
    assert run.result.exit_code == 0
    return run


@pytest.fixture(scope="module")
def broken(sets, sound, model, tmp_path_factory) -> Run:
    """All cases, and a sound dataset among them. Chunks whose pictures a case spoils were never in the store."""
    for name, case in CASES.items():
        shutil.copytree(sets / case.kind, sets / name)
        shutil.copytree(sets / f"{case.kind}.sarm_features", sets / f"{name}.sarm_features")
        spoilt = [(episode, start) for episode, start, _, error, _ in case.failures if error == "VideoError"]
        for part in (sets / f"{name}.sarm_features").rglob("*.parquet"):
            rows = pq.read_table(part, columns=["episode_index", "start"]).to_pylist()
            if any((row["episode_index"], row["start"]) in spoilt for row in rows):
                assert len(rows) == 1
                part.unlink()
        case.spoil(sets / name)
    roots = [sets / "v21", *(sets / name for name in CASES)]
    return score_all(roots, model, tmp_path_factory.mktemp("broken"))


@pytest.fixture(scope="module")
def mended(sets, broken, model) -> Run:
    """The same command after every dataset was given back what it had."""
    for name, case in CASES.items():
        shutil.rmtree(sets / name)
        shutil.copytree(sets / case.kind, sets / name)
    return score_all([sets / name for name in CASES], model, broken.folder, "--overwrite")


def expected_holes(case: Case) -> np.ndarray:
    """Frames of the dataset whose window holds a lost one: (frames,) bool."""
    holes = []
    for episode, length in enumerate(case.lengths):
        slots = window_slots(np.arange(length), length, WINDOW)
        holes.append(np.isin(slots, list(case.lost.get(episode, []))).any(axis=1))
    return np.concatenate(holes)


def pattern(message: str, root: Path) -> str:
    return re.escape(message.replace("ROOT", str(root))).replace("…", ".+")


@pytest.mark.parametrize("name", CASES)
def test_what_is_broken_is_named_and_nan_and_all_else_is_scored(name, sets, sound, broken):
    case = CASES[name]
    rows = broken.failed[name]
    assert [(row["episode_index"], row["start"], row["stop"], row["error"]) for row in rows] == [
        failure[:4] for failure in case.failures
    ]
    assert {(row["camera"], row["attempts"]) for row in rows} == {(CAMERA, 1)}
    for row, (*_, message) in zip(rows, case.failures, strict=True):
        assert re.fullmatch(pattern(message, sets / name), row["message"]), row["message"]
    ours, theirs, holes = broken.progress[name], sound.progress[case.kind], expected_holes(case)
    assert list(ours) == list(theirs)
    for column in ("index", "episode_index", "frame_index"):
        np.testing.assert_array_equal(ours[column], theirs[column])
    for head in HEADS:
        np.testing.assert_array_equal(np.isnan(ours[head]), holes)
        np.testing.assert_array_equal(ours[head][~holes], theirs[head][~holes])
    assert broken.result.exit_code == 1
    assert broken.summary[name]["failures"] == rows
    assert broken.files[name] == ["sarm_progress.parquet"] + [
        f"sarm_progress.parquet.run/{file}" for file in ("config.yaml", "failed.parquet", "summary.json")
    ]


@pytest.mark.parametrize("name", CASES)
def test_the_report_says_so(name, sets, broken):
    case = CASES[name]
    total, num_holes = sum(case.lengths), int(expected_holes(case).sum())
    cached = total - case.decoded - case.num_undecoded
    episode, start, stop, _, message = case.failures[0]
    output = broken.folder / name / "sarm_progress.parquet"
    plural = "s" if len(case.failures) > 1 else ""
    lines = [
        re.escape(str(output)),
        f"  {total} frames: {case.decoded} decoded, {cached} from the store, {total} scored, "
        f"{len(case.failures)} chunk{plural} failed",
        f"  {num_holes} rows of progress_sparse are NaN",
        f"  {num_holes} rows of progress_dense are NaN",
        f"  failed: episode {episode}, frames {start} to {stop - 1}: {pattern(message, sets / name)}",
        f"  all of them: {re.escape(str(output))}\\.run/failed\\.parquet; mend the files and run again with --overwrite",
    ]
    assert re.search("^" + "\n".join(lines) + "$", broken.result.stdout, re.MULTILINE), broken.result.stdout


def test_a_sound_dataset_among_broken_ones_is_none_the_worse(sound, broken):
    assert broken.failed["v21"] == []
    assert "sarm_progress.parquet.run/failed.parquet" not in broken.files["v21"]
    for column, values in sound.progress["v21"].items():
        np.testing.assert_array_equal(broken.progress["v21"][column], values)


def test_nothing_but_words_is_printed(broken):
    assert "Traceback" not in broken.result.output
    assert broken.result.exception is None or isinstance(broken.result.exception, SystemExit)


@pytest.mark.parametrize(("allowed", "exit_code"), [(1, 1), (2, 0)])
def test_allowed_failures(sets, broken, model, tmp_path, allowed, exit_code):
    """The exit code alone changes."""
    name = "video_of_two_episodes"
    run = score_all([sets / name, sets / "v30"], model, tmp_path, "--allow-failures", allowed)
    assert run.result.exit_code == exit_code
    assert run.failed[name] == broken.failed[name]
    for column, values in broken.progress[name].items():
        np.testing.assert_array_equal(run.progress[name][column], values)


@pytest.mark.parametrize("name", CASES)
def test_after_mending_only_what_was_missing_is_decoded(name, sound, mended):
    """Runs last: the datasets are broken no more."""
    case = CASES[name]
    assert mended.result.exit_code == 0
    summary = mended.summary[name]
    total = sum(case.lengths)
    assert (summary["num_decoded"], summary["num_cached"]) == (case.num_undecoded, total - case.num_undecoded)
    assert (summary["failures"], mended.failed[name]) == ([], [])
    assert mended.files[name] == ["sarm_progress.parquet"] + [
        f"sarm_progress.parquet.run/{file}" for file in ("config.yaml", "summary.json")
    ]
    for column, values in sound.progress[case.kind].items():
        np.testing.assert_array_equal(mended.progress[name][column], values)
