"""Several datasets in one run, live scores, pictures and advice: compared with a plain loop, without Ray."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from sarm_ray.core.windows import Window
from tests.datasets import write_dataset
from tests.pipelines.reference import score_without_ray, write_model
from tests.pipelines.runs import files_below, read_progress, run_here

FAST, SLOW = [3, 41], [30, 5]  # lengths of the episodes, at 30 and at 15 frames per second
PICTURES = "sarm_progress.parquet.run/visualizations/sarm_prediction_ep"


@dataclass(frozen=True)
class Runs:
    """Two datasets scored twice by one command: as they are, with pictures, and live, without."""

    roots: dict[str, str]
    model: str
    folder: Path
    whole: Result
    live: Result


@pytest.fixture(scope="module")
def runs(tmp_path_factory, encoder) -> Runs:
    folder = tmp_path_factory.mktemp("several")
    fast = write_dataset(folder / "fast", "v3.0", FAST, size=(64, 64), fps=30, tasks=["push"])
    slow = write_dataset(folder / "slow", "v2.1", SLOW, size=(48, 64), fps=15, tasks=["pull"], seed=1)
    model = write_model(folder / "model", encoder, fps=30.0)
    common = ["score", fast, slow, "--model", model, "--precision", "fp32", "--cache", folder / "features"]
    whole = run_here(*common, "--head-mode", "both", "--num-visualizations", 1, "--output", folder / "whole")
    live = run_here(*common, "--live", "--num-visualizations", 0, "--output", folder / "live")
    assert whole.exit_code == 0, whole.output
    assert live.exit_code == 0, live.output
    return Runs({"fast": str(fast), "slow": str(slow)}, model, folder, whole, live)


@pytest.mark.parametrize(("name", "lengths", "gap"), [("fast", FAST, 10), ("slow", SLOW, 5)])
@pytest.mark.parametrize("live", [False, True])
def test_each_dataset_has_the_values_of_a_plain_loop(runs, encoder, name, lengths, gap, live):
    """At the rate of each: the gap of 10 frames at 30 fps is one of 5 at 15."""
    heads = ("sparse",) if live else ("sparse", "dense")
    ours = read_progress(runs.folder / ("live" if live else "whole") / name / "sarm_progress.parquet")
    theirs = score_without_ray(runs.roots[name], runs.model, encoder, Window(8, gap, live=live), heads)
    assert list(ours) == ["index", "episode_index", "frame_index", *(f"progress_{head}" for head in heads)]
    for head in heads:
        np.testing.assert_array_equal(ours[f"progress_{head}"], theirs[head])
    np.testing.assert_array_equal(ours["frame_index"], np.concatenate([np.arange(length) for length in lengths]))


def test_live_scores_differ_where_there_is_a_future_to_see(runs):
    """The last frame of an episode has none."""
    whole, live = (read_progress(runs.folder / place / "fast/sarm_progress.parquet") for place in ("whole", "live"))
    differs = whole["progress_sparse"] != live["progress_sparse"]
    ends = np.cumsum(FAST) - 1
    assert not differs[ends].any()
    assert differs[: ends[-1]].mean() > 0.8


def test_one_pool_encodes_and_scores_both(runs):
    total = sum(FAST) + sum(SLOW)
    for phase in ("encode", "score"):
        last = [line for line in runs.whole.stderr.splitlines() if line.startswith(phase) and "100%" in line]
        assert len(last) == 1
        assert f" {total}/{total} frames 100%" in last[0]
    assert not [line for line in runs.live.stderr.splitlines() if line.startswith("encode ")]  # all in the store
    assert runs.whole.stderr.count("trained at 30 fps with 10 frames between slots; at 15 fps that is 5") == 1
    assert [line.split()[1] for line in runs.whole.stderr.splitlines() if line.startswith("dataset")] == [
        runs.roots["fast"],
        runs.roots["slow"],
    ]


def test_the_outputs_lie_in_the_folder_by_name_and_pictures_where_they_were_asked_for(runs):
    files = [f"sarm_progress.parquet{file}" for file in ("", ".run/config.yaml", ".run/summary.json")]
    pictures = [f"{PICTURES}0_{head}.png" for head in ("dense", "sparse")]
    assert files_below(runs.folder / "whole") == sorted(f"{n}/{f}" for n in runs.roots for f in [*files, *pictures])
    assert files_below(runs.folder / "live") == sorted(f"{name}/{file}" for name in runs.roots for file in files)
    for name in runs.roots:
        for picture in pictures:
            with Image.open(runs.folder / "whole" / name / picture) as image:
                assert image.format == "PNG"
                assert min(image.size) > 300
    assert runs.whole.stdout.count("  2 pictures in ") == 2
    assert f"  2 pictures in {runs.folder}/whole/slow/sarm_progress.parquet.run/visualizations\n" in runs.whole.stdout
    assert "pictures" not in runs.live.stdout


def test_what_ra_bc_will_make_of_it_is_said_of_each_dataset_and_head(runs):
    said = re.findall(
        r"^  RA-BC on (progress_\w+) at kappa 0\.01: mean weight \d\.\d\d, <?\d+% of frames weigh 0, <?\d+% weigh 1 "
        r"\(assuming that your policy's chunk_size is 50\)\n  (?:healthy|unhealthy)",
        runs.whole.stdout,
        re.MULTILINE,
    )
    assert said == ["progress_sparse", "progress_dense"] * 2
    assert runs.live.stdout.count("  RA-BC on progress_sparse at kappa 0.01: ") == 2


def test_the_report_has_each_datasets_counts(runs):
    for name, lengths in (("fast", FAST), ("slow", SLOW)):
        total = sum(lengths)
        for place, counts in (("whole", (total, 0)), ("live", (0, total))):
            output = runs.folder / place / name / "sarm_progress.parquet"
            line = f"  {total} frames: {counts[0]} decoded, {counts[1]} from the store, {total} scored, 0 chunks failed"
            assert f"{output}\n{line}\n" in (runs.whole if place == "whole" else runs.live).stdout


def test_the_output_of_several_datasets_that_exists_is_refused_before_any_work(runs):
    """The second dataset's alone is there."""
    (runs.folder / "whole/fast/sarm_progress.parquet").rename(runs.folder / "moved.parquet")
    before = files_below(runs.folder)
    result = run_here("score", *runs.roots.values(), "--model", runs.model, "--output", runs.folder / "whole")
    assert result.exit_code == 2
    output = runs.folder / "whole/slow/sarm_progress.parquet"
    assert result.stderr == f"error: {output} exists; replace it with --overwrite, or choose another --output\n"
    assert files_below(runs.folder) == before
