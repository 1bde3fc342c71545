"""Windows and strides against slow, direct computations."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.core.episodes import frames_of, plan_chunks
from sarm_ray.core.windows import (
    Window,
    bitmaps_by_length,
    cheaper_stride,
    computed_frames,
    computed_mask,
    gap_in_frames,
    needed_frames,
    window_slots,
)

windows = st.builds(
    Window, st.sampled_from([2, 4, 8, 10]), st.integers(1, 40), st.sampled_from(["centered", "past"]), st.booleans()
)


def slow_window(frame: int, length: int, window: Window) -> list[int]:
    """The definition, slot by slot."""
    n, gap = window.n_obs_steps, window.frame_gap
    if window.kind == "centered":
        last = frame if window.live else length - 1
        return [min(max(frame + (slot - n // 2) * gap, 0), last) for slot in range(n + 1)]
    if frame >= n * gap:
        return [0] + [frame - (n - slot) * gap for slot in range(1, n + 1)]
    return [0] + [round(frame * slot / n) for slot in range(1, n + 1)]


@given(windows, st.integers(1, 200), st.data())
def test_backwards_is_the_window_of_the_episode_played_backwards(window, length, data):
    frames = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=20)))
    mirrored = window_slots(length - 1 - frames, length, window)
    slots = window_slots(frames, length, replace(window, backwards=True))
    np.testing.assert_array_equal(slots, length - 1 - mirrored)
    lengths = np.full(len(frames), length)
    np.testing.assert_array_equal(window_slots(frames, lengths, replace(window, backwards=True)), slots)


@given(windows, st.integers(1, 400), st.data())
def test_slots_equal_the_definition(window, length, data):
    frames = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=20)))
    slots = window_slots(frames, length, window)
    assert slots.tolist() == [slow_window(int(frame), length, window) for frame in frames]
    assert (slots[:, window.readout_slot] == frames).all()
    assert slots.shape == (len(frames), window.num_slots)
    assert (np.diff(slots, axis=1) >= 0).all()
    assert slots.min() >= 0
    assert slots.max() < length


@given(windows, st.lists(st.tuples(st.integers(1, 400), st.integers(0, 399)), min_size=1, max_size=20))
def test_windows_of_several_episodes_at_once(window, samples):
    lengths = np.array([length for length, _ in samples])
    frames = np.array([frame % length for length, frame in samples])
    assert window_slots(frames, lengths, window).tolist() == [
        slow_window(int(frame), int(length), window) for frame, length in zip(frames, lengths, strict=True)
    ]


def test_default_window_is_lerobots():
    window = Window()
    assert (window.num_slots, window.readout_slot) == (9, 4)
    assert window_slots(np.array([300]), 2000, window).tolist() == [[180, 210, 240, 270, 300, 330, 360, 390, 420]]
    assert window_slots(np.array([0, 199]), 200, window).tolist() == [
        [0, 0, 0, 0, 0, 30, 60, 90, 120],
        [79, 109, 139, 169, 199, 199, 199, 199, 199],
    ]


def test_past_window_pins_the_start_and_never_looks_ahead():
    window = Window(kind="past")
    assert window.readout_slot == 8
    assert window_slots(np.array([240, 300, 16, 0]), 2000, window).tolist() == [
        [0, 30, 60, 90, 120, 150, 180, 210, 240],
        [0, 90, 120, 150, 180, 210, 240, 270, 300],
        [0, 2, 4, 6, 8, 10, 12, 14, 16],
        [0] * 9,
    ]


@given(windows, st.integers(1, 400), st.data())
def test_live_windows_never_look_ahead_and_are_the_same_elsewhere(window, length, data):
    frames = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=20)))
    whole = window_slots(frames, length, replace(window, live=False))
    live = window_slots(frames, length, replace(window, live=True))
    assert live.tolist() == np.minimum(whole, frames[:, None]).tolist()
    assert (live[:, window.readout_slot] == frames).all()
    if window.kind == "past":
        assert live.tolist() == whole.tolist()


@given(windows, st.integers(1, 60), st.integers(1, 400))
def test_a_live_score_does_not_depend_on_what_comes_later(window, more, length):
    """The windows of an episode that is still being recorded are those of the finished one."""
    frames, live = np.arange(length), replace(window, live=True)
    assert window_slots(frames, length, live).tolist() == window_slots(frames, length + more, live).tolist()


def test_live_window_by_hand():
    slots = window_slots(np.array([0, 50, 199]), 200, Window(live=True))
    assert slots.tolist() == [[0] * 9, [0, 0, 0, 20, 50, 50, 50, 50, 50], [79, 109, 139, 169, 199, 199, 199, 199, 199]]


def test_an_episode_of_one_frame():
    for kind in ("centered", "past"):
        assert window_slots(np.array([0]), 1, Window(kind=kind)).tolist() == [[0] * 9]
    assert computed_frames(1, 30).tolist() == [0]
    assert needed_frames(1, 7, Window()).tolist() == [True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_obs_steps": 7}, "n_obs_steps must be even and at least 2, not 7"),
        ({"n_obs_steps": 0}, "n_obs_steps must be even and at least 2, not 0"),
        ({"frame_gap": 0}, "frame_gap must be at least 1 frame, not 0"),
        ({"kind": "future"}, "window must be centered or past, not 'future'"),
    ],
)
def test_window_errors(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Window(**arguments)


@given(st.integers(1, 500), st.integers(1, 60))
def test_computed_frames_are_every_stride_th_and_the_last(length, stride):
    expected = [frame for frame in range(length) if frame % stride == 0 or frame == length - 1]
    assert computed_frames(length, stride).tolist() == expected
    assert np.flatnonzero(computed_mask(length, stride)).tolist() == expected


@given(st.integers(1, 300), st.integers(1, 40), windows)
def test_needed_frames_are_what_some_window_holds(length, stride, window):
    expected = {slot for frame in computed_frames(length, stride) for slot in slow_window(int(frame), length, window)}
    assert set(np.flatnonzero(needed_frames(length, stride, window)).tolist()) == expected


@pytest.mark.parametrize(("stride", "share"), [(1, 1), (5, 1 / 5), (6, 1 / 6), (10, 1 / 10), (15, 1 / 15), (7, 1)])
def test_share_of_needed_frames(stride, share):
    assert needed_frames(30_000, stride, Window()).mean() == pytest.approx(share, rel=0.02)


def test_cheaper_stride():
    assert cheaper_stride(1, Window()) == 2
    assert cheaper_stride(7, Window()) == 8  # gcd(8, 30) = 2: half the frames
    assert cheaper_stride(10, Window()) == 15
    assert cheaper_stride(15, Window()) == 30
    assert cheaper_stride(30, Window()) is None
    assert cheaper_stride(4, Window(frame_gap=4)) is None


@given(st.integers(1, 29))
def test_cheaper_stride_is_the_first_that_saves_a_quarter(stride):
    window = Window()
    share = {s: needed_frames(10_000, s, window).mean() for s in range(stride, 31)}
    saving = [s for s in range(stride + 1, 31) if share[s] < 0.75 * share[stride]]
    assert cheaper_stride(stride, window) == (saving[0] if saving else None)


@pytest.mark.parametrize(
    ("gap", "training_fps", "data_fps", "expected"),
    [
        (30, None, 50.0, 30),
        (30, 30.0, 30.0, 30),
        (30, 30.0, 20.0, 20),
        (30, 30.0, 29.97, 30),
        (30, 50.0, 10.0, 6),
        (7, 30.0, 50.0, 12),
        (1, 30.0, 5.0, 1),
    ],
)
def test_gap_in_frames(gap, training_fps, data_fps, expected):
    assert gap_in_frames(gap, training_fps, data_fps) == expected


@given(st.lists(st.integers(1, 700), min_size=1, max_size=6), st.integers(1, 12), windows)
def test_bitmaps_by_length_follow_the_plan(lengths, stride, window):
    """Bit k of chunk c is the frame that the chunk plan and a slow loop say."""
    bitmaps = bitmaps_by_length(np.array(lengths), lambda length: needed_frames(length, stride, window))
    chunks = plan_chunks(np.arange(len(lengths)), np.array(lengths))
    planned = [
        (row, frame)
        for row, start, bitmap in zip(chunks.row.tolist(), chunks.start.tolist(), bitmaps, strict=True)
        for frame in frames_of(bitmap, start).tolist()
    ]
    expected = [
        (row, slot)
        for row, length in enumerate(lengths)
        for slot in sorted({s for f in computed_frames(length, stride) for s in slow_window(int(f), length, window)})
    ]
    assert planned == expected
