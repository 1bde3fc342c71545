"""What counts as odd about a curve, at the thresholds and on both sides of them."""

import numpy as np
import pytest

from sarm_ray.report.flags import KINDS, MAX_PER_KIND, Flag, drawdown, find_flags

FPS = 10.0


def kinds(progress, fps: float = FPS) -> list[str]:
    return [flag.kind for flag in find_flags(np.asarray(progress, dtype=np.float32), fps)]


def rise(length: int = 100, end: float = 1.0) -> np.ndarray:
    return np.linspace(0, end, length)


def held(level: float, num_frames: int, length: int = 100) -> np.ndarray:
    """Rises to a level, stays there, and rises to 1."""
    before = (length - num_frames) // 2
    up = np.linspace(0, level, before, endpoint=False)
    return np.concatenate([up, np.full(num_frames, level), np.linspace(level + 0.05, 1, length - before - num_frames)])


def test_a_steady_rise_is_not_flagged():
    assert find_flags(rise(), FPS) == ()
    assert find_flags(np.array([0.9], dtype=np.float32), FPS) == ()
    assert set(KINDS) >= {"stall", "drop", "unfinished", "lost", "frozen", "black", "unreadable", "unscored"}


def test_a_stall_is_longer_than_three_seconds():
    assert kinds(held(0.5, 26)) == []  # 2.5 s, and what the rises add
    (flag,) = find_flags(held(0.5, 40), FPS)
    assert flag.kind == "stall"
    assert flag.amount == pytest.approx((flag.stop - 1 - flag.start) / FPS)
    assert 30 - 4 <= flag.start <= 30  # the rise before it comes within 0.04 of the level
    assert 70 <= flag.stop <= 74


def test_a_stall_is_longer_than_a_fifth_of_the_episode():
    assert kinds(held(0.5, 50, length=400)) == []  # 5 s of 40 s
    assert kinds(held(0.5, 90, length=400)) == ["stall"]


def test_progress_may_waver_by_two_hundredths_in_a_stall():
    wave = held(0.5, 50)
    wave[25:75] += np.where(np.arange(50) % 2, 0.019, -0.019)
    assert kinds(wave) == ["stall"]
    wave[25:75] += np.where(np.arange(50) % 2, 0.004, -0.004)
    assert kinds(wave) == []


def test_resting_when_it_is_done_is_no_stall():
    assert kinds(np.concatenate([rise(60, 0.9), np.full(100, 0.9)])) == []
    assert kinds(np.concatenate([rise(60, 0.7), np.full(100, 0.7)])) == ["unfinished", "stall"]


def test_a_drop_is_more_than_a_tenth_within_a_second():
    progress = rise()
    progress[50:54] = [0.52, 0.5, 0.46, 0.41]
    assert find_flags(progress, FPS) == (Flag("drop", 50, 54, pytest.approx(0.11)),)
    slow = np.concatenate([rise(50, 0.9), np.linspace(0.9, 0.6, 45), rise(60)[40:] * 0 + np.linspace(0.6, 1, 20)])
    assert kinds(slow) == []  # 0.07 in a second
    exact = np.concatenate([np.linspace(0, 0.5, 50), [0.4], np.linspace(0.42, 1, 50)])
    assert kinds(exact) == []


def test_drops_are_counted_one_by_one():
    progress = rise(200)
    for place in (60, 120):
        progress[place : place + 15] -= 0.3
    flags = find_flags(progress, FPS)
    assert [flag.kind for flag in flags] == ["drop", "drop"]
    assert [flag.start for flag in flags] == [59, 119]
    assert [flag.amount for flag in flags] == pytest.approx([0.3 - 1 / 199] * 2)
    noise = np.clip(rise(2000) + np.where(np.arange(2000) % 20 < 10, 0.0, -0.3), 0, 1)
    assert [flag.kind for flag in find_flags(noise, FPS)].count("drop") <= MAX_PER_KIND


def test_one_long_fall_is_one_drop():
    progress = np.concatenate([rise(100, 0.95), np.linspace(0.95, 0.1, 60), np.linspace(0.1, 1, 60)])
    (flag,) = find_flags(progress, FPS)
    assert (flag.kind, flag.start, flag.stop) == ("drop", 99, 160)
    assert flag.amount == pytest.approx(0.85, abs=0.02)


def test_never_finishing_and_falling_back():
    (flag,) = find_flags(rise(end=0.79), FPS)
    assert flag == Flag("unfinished", 0, 100, pytest.approx(0.79))
    assert kinds(rise(end=0.8)) == []
    back = np.concatenate([rise(100, 0.9), np.linspace(0.9, 0.7, 60)])
    (flag,) = find_flags(back, FPS)
    assert (flag.kind, flag.stop, flag.amount) == ("lost", 160, pytest.approx(0.2))
    assert back[flag.start - 1] >= 0.8 > back[flag.start]


def test_what_is_not_scored_is_not_judged():
    progress = rise(end=0.5)
    progress[90:] = np.nan
    assert find_flags(progress, FPS) == (Flag("unscored", 90, 100, pytest.approx(0.1)),)
    assert find_flags(np.full(50, np.nan), FPS) == (Flag("unscored", 0, 50, 1.0),)
    hole = held(0.5, 40)
    hole[50] = np.nan
    assert kinds(hole) == ["unscored"]  # on neither side of it is a stall long enough
    gap = rise()
    gap[40:60] = np.nan
    gap[60:] -= 0.5
    assert "drop" not in kinds(gap)  # 2 s apart


def test_drawdown():
    assert drawdown(rise()) == 0
    assert drawdown(np.array([0.1, 0.7, 0.4, 0.6, 0.5])) == pytest.approx(0.3)
    assert drawdown(np.array([np.nan, 0.7, np.nan, 0.2, np.nan])) == pytest.approx(0.5)
    assert np.isnan(drawdown(np.full(3, np.nan)))


def test_it_is_quick_on_long_episodes():
    """An hour at 30 fps: what is quadratic would not come back."""
    assert kinds(rise(108_000), 30.0) == []
