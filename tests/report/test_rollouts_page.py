"""The page about a log of live rollouts: every value at its time, holes where nothing was scored, and the pictures."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from sarm_ray.cli import main
from sarm_ray.config.report import ReportConfig
from sarm_ray.data.rollout_log import append_rollouts, read_rollouts
from sarm_ray.errors import ConfigError, DatasetError, OutputExistsError
from sarm_ray.report import page_media
from sarm_ray.report.page import describe_page, report
from sarm_ray.report.page_data import NO_VALUE, PROGRESS_SCALE, quantize_progress
from sarm_ray.report.page_rollouts import STRIP_THUMBNAILS, film_thumbnails, grid_frames, grid_progress, grid_stages
from sarm_ray.report.page_stages import NO_STAGE
from tests.datasets import read_number
from tests.rollouts import HOSTILE, START, draw_jpeg, make_rollout, make_thumbnails, some_rollouts


def make(folder, **options):
    return report(ReportConfig(dataset=str(folder), **options), quiet=True)


def data_of(output: str) -> dict:
    text = Path(output).read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def unpacked(text: str, dtype) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


@pytest.fixture
def log(tmp_path):
    rollouts = some_rollouts()
    append_rollouts(str(tmp_path / "live"), rollouts[2:])
    append_rollouts(str(tmp_path / "live"), rollouts[:2])
    return tmp_path / "live"


def test_the_page_has_every_rollout_by_its_start(log):
    made = make(log)
    assert made.output == str(log / "_report.html")
    assert len(pd.read_parquet(log)) == 80 + 80 + 50  # the page does not stand in the way
    assert (made.num_episodes, made.num_videos, made.files) == (4, 0, ())
    assert made.flagged == {"unfinished": 1, "drop": 1, "stall": 1, "unscored": 2, "cut": 2, "overload": 1}
    assert describe_page(made).startswith("4 rollouts, 745 frames, mean final progress 0.74\n4 rollouts are flagged: ")
    data = data_of(made.output)
    assert data["noun"] == "rollout"
    assert data["dataset"] == {
        "name": "live",
        "fps": 30.0,
        "camera": None,
        "num_episodes": 4,
        "num_frames": 745,
        "when": "2026-05-02 05:33 to 05:35 UTC",
    }
    assert data["progress"] == {"head": "sparse", "model": "models/bottle", "live": True}
    assert (data["weights"], data["evaluation"], data["notices"]) == (None, None, [])
    episodes = data["episodes"]
    assert episodes["name"] == ["arm-1", "arm-2", "arm-1", HOSTILE[:40]]
    assert episodes["number"] == [0, 1, 2, 3]
    assert episodes["length"] == [238, 238, 268, 1]
    assert episodes["final"] == [0.93, 0.4, 0.9, None]
    assert episodes["outcome"] == [1, 0, None, None]
    assert episodes["facts"][1] == [
        "2026-05-02 05:34:20 UTC",
        "240 frames, 80 scored, 20 dropped",
        "connection lost",
        "models/bottle",
    ]
    kinds = [kind for kind, _, _ in data["kinds"]]
    assert [kinds[flag[0]] for flag in episodes["flags"][1]] == ["unfinished", "stall", "cut", "overload"]
    assert episodes["flags"][1][-1][3] == 0.2


def test_curves_stand_at_their_frames_and_holes_stay_open(log):
    data = data_of(make(log).output)
    rollouts = read_rollouts(str(log))
    progress, stages = unpacked(data["curves"]["progress"], "<u2"), unpacked(data["curves"]["predicted"], "u1")
    start = 0
    for rollout, points in zip(rollouts, data["episodes"]["points"], strict=True):
        own, lane = progress[start : start + points], stages[start : start + points]
        start += points
        scored = quantize_progress(rollout.heads["sparse"].progress)
        np.testing.assert_array_equal(own[rollout.frame_index], scored)
        np.testing.assert_array_equal(lane[rollout.frame_index], rollout.heads["sparse"].stage)
    whole, holed = progress[:238], progress[238 * 2 : -1]
    frames = rollouts[0].frame_index
    expected = np.interp(np.arange(238), frames, rollouts[0].heads["sparse"].progress)
    np.testing.assert_allclose(whole / PROGRESS_SCALE, expected, atol=1e-4)
    hole = np.arange(24 * 3 + 1, 25 * 3 + 120)
    np.testing.assert_array_equal(np.flatnonzero(holed == NO_VALUE), hole)
    np.testing.assert_array_equal(np.flatnonzero(stages[238 * 2 : -1] == NO_STAGE), hole)
    assert (progress[-1], stages[-1]) == (NO_VALUE, NO_STAGE)
    assert data["curves"]["stages"] == ["reach", "grasp", "lift"]


def test_another_frame_rate_keeps_the_times():
    rollout = make_rollout("arm", START, progress=np.linspace(0, 1, 40), stride=1, fps=10.0)
    frames = grid_frames(rollout, 30.0)
    np.testing.assert_allclose(frames / 30.0, rollout.time_s)
    progress = grid_progress(rollout, "sparse", 30.0, int(frames[-1]) + 1)
    np.testing.assert_array_equal(progress[frames], rollout.heads["sparse"].progress)
    np.testing.assert_allclose(progress, np.linspace(0, 1, 118), atol=1e-6)
    fewer = grid_frames(rollout, 4.0)
    assert np.abs(fewer / 4.0 - rollout.time_s).max() <= 0.5 / 4.0
    few = grid_progress(rollout, "sparse", 4.0, int(fewer[-1]) + 1)
    assert (few[0], few[-1], np.isnan(few).any()) == (rollout.heads["sparse"].progress[1], 1.0, False)
    assert (np.diff(grid_stages(rollout, "sparse", 4.0, len(few))) >= 0).all()


def test_scores_that_are_always_far_apart_are_no_holes_but_nan_is():
    slow = make_rollout("arm", START, progress=np.linspace(0, 1, 10), stride=60)
    assert np.isfinite(grid_progress(slow, "sparse", 30.0, 541)).all()
    values = np.array([0.1, np.nan, 0.3, np.inf, 0.5, 0.6])
    late = make_rollout("arm", START, progress=values, frame_index=np.arange(2, 14, 2))
    found = grid_progress(late, "sparse", 30.0, 13)
    assert np.flatnonzero(np.isfinite(found)).tolist() == [2, 6, 10, 11, 12]
    assert grid_stages(late, "sparse", 30.0, 13).tolist() == [-1, -1, 0, 0, -1, -1, 0, 0, -1, -1, 1, 1, 1]


def test_most_rollouts_decide_on_the_frame_rate(tmp_path):
    rates = (10.0, 30.0, 30.0)
    append_rollouts(str(tmp_path), [make_rollout(f"arm-{i}", START + i, fps=fps) for i, fps in enumerate(rates)])
    data = data_of(make(tmp_path).output)
    assert (data["dataset"]["fps"], data["episodes"]["length"]) == (30.0, [82, 28, 28])


def test_strips_are_the_thumbnails_nearest_in_time(log):
    film, width = film_thumbnails(make_thumbnails(100, np.arange(9)), 8.0, None)
    assert (width, film.strip.shape, film.dead) == (128, (96, STRIP_THUMBNAILS * 128, 3), None)
    pictures = np.split(film.strip, STRIP_THUMBNAILS, axis=1)
    nearest = np.abs(np.arange(9)[None] - np.linspace(0, 8, STRIP_THUMBNAILS)[:, None]).argmin(axis=1)
    assert [read_number(picture) for picture in pictures] == (100 + nearest).tolist()
    wide = ((0.0, b"no picture"), (1.0, draw_jpeg(7, (64, 256))))
    film, width = film_thumbnails(wide, 8.0, 128)
    assert (width, film.strip.shape) == (128, (96, STRIP_THUMBNAILS * 128, 3))
    assert film_thumbnails(((0.0, b"no picture"),), 8.0, None)[0].strip is None
    same = tuple((float(moment), draw_jpeg(7)) for moment in range(4))
    assert film_thumbnails(same, 8.0, None)[0].dead == "frozen"
    data = data_of(make(log).output)
    assert data["episodes"]["strip"] == [[0, 0], None, None, None]
    assert data["media"]["strip_frames"] == STRIP_THUMBNAILS


def test_a_head_that_only_some_have_is_a_notice(tmp_path):
    both, dense = ("sparse", "dense"), ("dense",)
    append_rollouts(str(tmp_path), [make_rollout("a", START, heads=both), make_rollout("b", START + 1, heads=dense)])
    made = make(tmp_path)
    assert (made.num_episodes, data_of(made.output)["progress"]["head"]) == (1, "sparse")
    assert made.notices == ("1 of 2 rollouts are not shown: they have no sparse head",)
    assert make(tmp_path, head_mode="dense", overwrite=True).num_episodes == 2
    append_rollouts(str(tmp_path / "dense"), [make_rollout("b", START, heads=dense, model="")])
    made = make(tmp_path / "dense")
    assert data_of(made.output)["progress"] == {"head": "dense", "model": None, "live": True}
    with pytest.raises(DatasetError, match="no rollout has a sparse head"):
        make(tmp_path / "dense", head_mode="sparse", overwrite=True)


def test_a_clock_that_jumps_does_not_fill_the_memory(tmp_path):
    jumped = make_rollout("a", START, frame_index=np.array([0, 10**15]), progress=np.array([0, 1]))
    append_rollouts(str(tmp_path), [jumped, make_rollout("b", START)])
    assert make(tmp_path).notices == ("1 of 2 rollouts are not shown: their frames' times span more than 24 hours",)


def test_what_is_about_datasets_is_refused(log, tmp_path):
    with pytest.raises(ConfigError, match=r"live is a log of rollouts, which has no use for --labels and --image-key"):
        make(log, labels="x.csv", image_key="top")
    make(log)
    with pytest.raises(OutputExistsError, match=r"_report.html exists; replace it with --overwrite"):
        make(log)
    result = CliRunner().invoke(main, ["weights", str(log)])
    assert result.exit_code == 2
    assert "is a log of live rollouts: its frames are in no dataset that a policy could be trained on" in result.output


def test_many_rollouts_have_their_pictures_beside_the_page(log, monkeypatch):
    monkeypatch.setattr(page_media, "MAX_EMBEDDED_EPISODES", 0)
    made = make(log)
    assert [path.name for path in (log / "_report.files").iterdir()] == list(made.files)
    assert len(pd.read_parquet(log)) == 210


def test_a_log_in_a_store_has_its_page_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    append_rollouts("memory://page/live", some_rollouts())
    assert make("memory://page/live").output == str(tmp_path / "live" / "report.html")
