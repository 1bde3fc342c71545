"""Figures against curves whose figures are known."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.core.figures import summarize_episodes
from sarm_ray.core.metrics import (
    Prediction,
    Truth,
    falls_within,
    max_drawdown,
    measure_episode,
)

FPS = 10.0


def truth_of(*segments, length=None):
    """Segments (stage, end) of equal shares; progress rises inside each."""
    num_stages = max(stage for stage, _ in segments) + 1
    length = length or segments[-1][1]
    stage, progress, start = np.zeros(length, dtype=np.int64), np.zeros(length, dtype=np.float32), 0
    starts = []
    for number, end in segments:
        stage[start:end] = number
        progress[start:end] = (number + np.arange(end - start) / (end - start)) / num_stages
        starts.append(start)
        start = end
    return Truth(progress, stage, tuple(starts[1:]), tuple(number for number, _ in segments[1:]))


CLEAN = truth_of((0, 20), (1, 40))
DROPPED = truth_of((0, 20), (1, 35), (0, 50), (1, 80))


def figures(*facts):
    return {figure.name: figure for figure in summarize_episodes(facts)}


def measure(progress, truth=None, grade=float("nan"), stage=None, live=None, backwards=None, episode=0, chunk_size=10):
    views = {"offline": Prediction(np.asarray(progress, dtype=np.float32), stage)}
    if live is not None:
        views["live"] = Prediction(np.asarray(live, dtype=np.float32), stage)
    return measure_episode(views, truth, grade, FPS, chunk_size, episode, backwards)


def test_a_perfect_prediction():
    found = figures(
        measure(CLEAN.progress, CLEAN, stage=CLEAN.stage, live=CLEAN.progress),
        measure(DROPPED.progress, DROPPED, stage=DROPPED.stage, live=DROPPED.progress, episode=1),
    )
    expected = {
        "offline_progress_mse": 0, "offline_progress_mae": 0, "offline_stage_accuracy": 1, "offline_boundary_error_s": 0,
        "offline_delta_sign": 1, "offline_delta_sign_falling": 1, "offline_drop_detection": 1, "live_drop_detection": 1,
        "offline_false_drawdowns": 0, "offline_progress_r2": 1, "truncation_mean": 0,
        "truncation_p95": 0, "truncated_above_0.8": 0,
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-6), name
    assert found["offline_voc"].num_episodes == 2  # blind to the drop, or nearly
    assert 0.7 < found["offline_voc"].value < 1
    assert found["offline_drop_detection"].num_episodes == 1
    assert found["offline_false_drawdowns"].num_episodes == 1  # the other one falls for a reason
    assert found["offline_clock_r2"].value < 0.7
    assert "auroc" not in found


def test_time_alone_misses_drops_and_is_not_fooled_by_them():
    clock = np.arange(80) / 79
    found = figures(measure(clock, DROPPED))
    assert found["offline_drop_detection"].value == 0
    assert found["offline_clock_r2"].value == pytest.approx(1)
    assert found["offline_delta_sign_falling"].value == 0
    assert "offline_false_drawdowns" not in found


def test_regressions_are_falls_of_the_annotation():
    assert DROPPED.regressions(FPS) == [35]
    assert CLEAN.regressions(FPS) == []
    small = Truth(np.full(40, 0.5, dtype=np.float32), DROPPED.stage[:40], (20, 35), (1, 0))
    assert small.regressions(FPS) == []  # a lower stage, but hardly less progress


@pytest.mark.parametrize(("late", "seen"), [(0, 1), (9, 1), (10, 1), (25, 0)])
def test_a_fall_counts_within_a_second_of_the_drop(late, seen):
    progress = np.where(np.arange(80) < 35 + late, 0.8, 0.2)
    assert figures(measure(progress, DROPPED))["offline_drop_detection"].value == seen


def test_a_prediction_that_wobbles_sees_every_drop_and_is_not_trusted():
    wobble = np.where(np.arange(80) % 8 < 4, 0.6, 0.3)
    found = figures(measure(wobble, DROPPED))
    assert found["offline_drop_detection"].value == 1
    falls = np.arange(80)[:-1][np.diff(wobble) < 0]  # 3, 11, ... 75: each is one run of falling frames
    near = [fall for fall in falls if fall >= 35 - 10 and fall - 3 <= 35 + 10]
    assert found["offline_drop_f1"].value == pytest.approx(2 / (1 + 1 + len(falls) - len(near)))
    sure = np.where(np.arange(80) < 35, 0.6, 0.3)
    assert figures(measure(sure, DROPPED))["offline_drop_f1"].value == 1
    assert figures(measure(np.full(80, 0.5), DROPPED))["offline_drop_f1"].value == 0


def test_a_slow_decline_is_no_drop():
    progress = 0.9 - 0.009 * np.arange(80)
    assert figures(measure(progress, DROPPED))["offline_drop_detection"].value == 0


def test_boundaries_are_the_first_frames_in_a_stage_or_beyond():
    stage = np.where(np.arange(40) < 26, 0, 1)
    found = figures(measure(CLEAN.progress, CLEAN, stage=stage))
    assert found["offline_boundary_error_s"].value == pytest.approx(0.6)
    assert found["offline_stage_accuracy"].value == pytest.approx(34 / 40)
    never = figures(measure(CLEAN.progress, CLEAN, stage=np.zeros(40, dtype=np.int64)))
    assert never["offline_boundary_error_s"].value == pytest.approx(2.0)


def test_frames_without_progress_count_nowhere():
    progress = CLEAN.progress.copy()
    progress[10:20] = np.nan
    stage = np.where(np.isfinite(progress), CLEAN.stage, -1)
    found = figures(measure(progress, CLEAN, stage=stage))
    assert found["offline_progress_mse"].value == 0
    assert found["offline_stage_accuracy"].value == 1
    assert found["offline_false_drawdowns"].value == 0
    assert figures(measure(np.full(40, np.nan), CLEAN, stage=np.full(40, -1))) == {}


def test_false_drawdowns_of_annotated_successes_alone():
    wobble = np.clip(CLEAN.progress + np.where(np.arange(40) == 20, -0.3, 0), 0, 1)
    assert figures(measure(wobble, CLEAN))["offline_false_drawdowns"].value == 1
    assert figures(measure(wobble, CLEAN, grade=1.0))["offline_false_drawdowns"].value == 1
    assert "offline_false_drawdowns" not in figures(measure(wobble, CLEAN, grade=0.0))
    assert "offline_false_drawdowns" not in figures(measure(np.tile(wobble, 2), DROPPED))
    assert "offline_false_drawdowns" not in figures(measure(wobble, grade=1.0))  # it may have dropped and recovered


def test_outcomes():
    rising, stuck = np.linspace(0, 1, 30), np.linspace(0, 0.4, 30)
    facts = [
        measure(rising, grade=1.0),
        measure(rising * 0.95, grade=1.0),
        measure(rising * 0.7, grade=0.5),
        measure(stuck, grade=0.0),
        measure(rising * 0.98, grade=0.0),
        measure(rising),  # not graded
    ]
    found = figures(*facts)
    assert found["auroc"].value == pytest.approx(3 / 4)
    assert found["auroc"].num_episodes == 4
    assert found["kendall_tau_b"].num_episodes == 5
    assert found["final_success"].value == pytest.approx(0.975)
    assert found["final_partial"].value == pytest.approx(0.7)
    assert found["failures_above_0.8"].value == 0.5
    for figure in found.values():
        if np.isfinite(figure.low):
            assert figure.low <= figure.value + 1e-9
            assert figure.value <= figure.high + 1e-9


def test_a_grade_goes_by_the_highest_progress_and_success_by_the_last():
    fell = np.concatenate([np.linspace(0, 0.9, 20), np.full(10, 0.1)])
    stuck = np.linspace(0, 0.3, 30)
    done = np.linspace(0, 1, 30)
    found = figures(measure(fell, grade=0.5), measure(stuck, grade=0.0), measure(done, grade=1.0))
    assert found["kendall_tau_b"].value == pytest.approx(1)
    assert found["final_partial"].value == pytest.approx(0.1)


def test_cuts_compare_live_with_offline_where_work_is_left():
    live = np.clip(CLEAN.progress + 0.25, 0, 1)
    facts = measure(CLEAN.progress, CLEAN, live=live)
    assert len(facts.cut_scores) == 3
    np.testing.assert_allclose(facts.cut_differences, 0.25, atol=1e-6)
    assert facts.cut_scores == measure(CLEAN.progress, CLEAN, live=live).cut_scores
    assert max(facts.cut_scores) < 0.7 + 0.25 + 1e-6
    late = measure(CLEAN.progress, live=live, grade=1.0)  # without an annotation: the first 70 % of the episode
    assert max(late.cut_scores) <= CLEAN.progress[27] + 0.25 + 1e-6


def test_backwards_every_fifth_of_the_progress_should_fall():
    back = CLEAN.progress[::-1]
    found = figures(measure(CLEAN.progress, CLEAN, backwards=back))
    assert found["offline_reversed_drop_detection"].value == 1
    half = np.where(back > 0.5, 0.9, back)
    assert figures(measure(CLEAN.progress, CLEAN, backwards=half))[
        "offline_reversed_drop_detection"
    ].value == pytest.approx(0.6)
    assert "offline_reversed_drop_detection" not in figures(measure(DROPPED.progress, DROPPED, backwards=back))


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), min_size=1, max_size=30), st.integers(1, 8))
def test_falls_by_definition(values, reach):
    progress = np.array(values)
    found = falls_within(progress, reach)
    for place in range(len(progress)):
        later = progress[place : place + reach + 1]
        later = later[np.isfinite(later)]
        expected = max(progress[place] - later.min(), 0) if np.isfinite(progress[place]) else 0
        assert found[place] == pytest.approx(expected)
    known = progress[np.isfinite(progress)]
    pairs = [known[i] - known[j] for i in range(len(known)) for j in range(i, len(known))]
    assert max_drawdown(progress) == pytest.approx(max(pairs, default=0.0))


def test_an_episode_that_was_left_in_its_last_stage_but_one_is_no_success():
    left = replace(CLEAN, completed=False)
    assert "offline_false_drawdowns" not in figures(measure(CLEAN.progress, left))
    assert "offline_voc" not in figures(measure(CLEAN.progress, left))
    assert "offline_voc" in figures(measure(CLEAN.progress, left, grade=1.0))


def test_falls_alone_make_no_f1_and_one_episode_no_interval():
    wobble = np.where(np.arange(40) % 8 < 4, 0.6, 0.3)
    found = figures(measure(wobble, CLEAN))
    assert "offline_drop_f1" not in found
    assert np.isnan([found["offline_progress_mse"].low, found["offline_progress_mse"].high]).all()
    both = figures(measure(wobble, CLEAN), measure(DROPPED.progress, DROPPED))
    assert 0 < both["offline_drop_f1"].value < 1  # the falls of the clean one count there
    assert both["offline_progress_mse"].low < both["offline_progress_mse"].high


def test_a_drop_that_nobody_could_score_is_not_missed():
    progress = DROPPED.progress.copy()
    progress[20:50] = np.nan
    assert "offline_drop_detection" not in figures(measure(progress, DROPPED))


def test_no_episodes_no_figures():
    assert summarize_episodes([]) == []
