"""Live windows: frames placed by time, against the window gatherer of `score --live`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.core.live import History, LiveWindow, live_window
from sarm_ray.core.windows import Window, window_slots

WINDOWS = st.builds(
    Window,
    n_obs_steps=st.sampled_from([2, 4, 8]),
    frame_gap=st.integers(1, 12),
    kind=st.sampled_from(["centered", "past"]),
    live=st.just(True),
)


def feed(history: History, number: int, time_s: float | None = None) -> None:
    time_s = number / history.live.fps if time_s is None else time_s
    history.add(time_s, np.array([number], dtype=np.float16), np.array([number, -number], dtype=np.float32))


@given(window=WINDOWS, fps=st.sampled_from([1.0, 7.0, 10.0, 29.97, 30.0]), length=st.integers(1, 120))
def test_every_frame_of_an_undisturbed_session_has_the_window_of_score_live(window, fps, length):
    history = History(LiveWindow(window, fps, 1))
    for frame in range(length):
        feed(history, frame)
        gathered = history.gather()
        expected = window_slots(np.array([frame]), length, window)[0]
        assert gathered.features[:, 0].tolist() == expected.tolist()
        assert gathered.states.tolist() == [[slot, -slot] for slot in expected]
        assert gathered.missing == ()
        assert gathered.off_s < 1e-9


@given(window=WINDOWS, fps=st.sampled_from([10.0, 30.0]), score_hz=st.floats(0.5, 60), length=st.integers(1, 150))
def test_centered_windows_of_frames_scored_now_and_then_are_those_of_all_frames(window, fps, score_hz, length):
    live = live_window(window, fps, score_hz)
    assert window.frame_gap % live.stride == 0
    assert live.score_hz <= score_hz * (1 + 1e-6) or live.stride == window.frame_gap
    if window.kind == "past":  # while it spreads over a short history, its slots fall between scored frames
        return
    history = History(live)
    for frame in range(0, length, live.stride):
        feed(history, frame)
        assert history.gather().features[:, 0].tolist() == window_slots(np.array([frame]), length, window)[0].tolist()


@given(window=WINDOWS, stride_of=st.integers(0, 11), last=st.integers(0, 200), more=st.integers(1, 60))
def test_a_replay_makes_later_windows_those_of_an_unbroken_session(window, stride_of, last, more):
    strides = [stride for stride in range(1, window.frame_gap + 1) if window.frame_gap % stride == 0]
    live = LiveWindow(window, 10.0, strides[stride_of % len(strides)])
    last -= last % live.stride
    unbroken, resumed = History(live), History(live)
    for frame in range(0, last + 1, live.stride):
        feed(unbroken, frame)
    for time_s in live.replay_times(last / live.fps):
        feed(resumed, live.number(time_s), time_s)
    for frame in range(last + live.stride, last + more + 1, live.stride):
        feed(unbroken, frame)
        feed(resumed, frame)
        a, b = unbroken.gather(), resumed.gather()
        assert a.features.tolist() == b.features.tolist()
        assert a.missing == b.missing


@given(
    times=st.lists(st.integers(0, 400), min_size=1, max_size=80, unique=True).map(sorted),
    gap=st.integers(1, 10),
    kind=st.sampled_from(["centered", "past"]),
)
def test_slots_of_a_robot_that_drops_frames_get_the_nearest_frame_within_half_a_gap_or_none(times, gap, kind):
    """Against all frames that ever came, looked through one by one: nothing that a window reaches is forgotten."""
    window = Window(4, gap, kind, live=True)
    history = History(LiveWindow(window, 10.0, 1))
    first = times[0]
    for count, tick in enumerate(times):
        now = (tick - first) / 10
        feed(history, tick - first, now)
        gathered = history.gather()
        missing, off_s = [], 0.0
        for place, slot in enumerate(window_slots(np.array([tick - first]), tick - first + 1, window)[0]):
            seen = np.array(times[: count + 1]) - first
            nearest = seen[np.argmin(np.abs(seen - slot))]
            if abs(nearest - slot) / 10 > gap / 20 + 1e-6:
                missing.append((slot - (tick - first)) / 10)
                continue
            off_s = max(off_s, abs(nearest - slot) / 10)
            assert abs(gathered.features[place, 0] - slot) == abs(nearest - slot)
        assert sorted(set(missing)) == pytest.approx(sorted(gathered.missing))
        assert gathered.off_s == pytest.approx(off_s)


def test_a_session_keeps_no_more_than_its_windows_reach():
    live = LiveWindow(Window(8, 30, live=True), 30.0, 3)
    history = History(live)
    for frame in range(0, 9000, 3):
        feed(history, frame)
    assert len(history.times) == 46  # 4 s back and half a gap, at 10 a second, and the frame itself
    past = History(LiveWindow(Window(8, 30, "past", live=True), 30.0, 30))
    for frame in range(0, 9000, 30):
        feed(past, frame)
    assert past.times[0] == 0.0
    assert len(past.times) == 10


def test_time_that_does_not_move_forward_is_refused():
    history = History(LiveWindow(Window(live=True), 30.0, 1))
    feed(history, 3)
    with pytest.raises(ValueError, match=r"frame at 0.1 s after one at 0.1 s"):
        feed(history, 3)
