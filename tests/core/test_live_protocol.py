"""What a robot may send: whatever comes is a message or a refusal that says why, never another error."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.core.live import LiveWindow
from sarm_ray.core.live_frames import Frame, read_frame, split_clip
from sarm_ray.core.live_protocol import MAX_STATE_DIM, Hello, LiveLimits, Refusal, read_hello, read_outcome
from sarm_ray.core.live_session import Session
from sarm_ray.core.windows import Window

LIMITS = LiveLimits()
HEADS = ("sparse", "dense")
HELLO = {"type": "hello", "protocol": 1, "task": "push", "fps": 30, "state_dim": 3}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def frame_bytes(state=(1.0, 2.0, 3.0), images=((0, 2, 4, bytes(24)),), time_s=0.5, flags=0, version=1) -> bytes:
    message = struct.pack("<BBBxId", version, flags, len(images), len(state), time_s)
    message += np.array(state, dtype="<f4").tobytes()
    for kind, height, width, data in images:
        message += struct.pack("<BxHHxxI", kind, height, width, len(data)) + data
    return message


def taken(function, *arguments):
    """What a function makes of its arguments, or its refusal; any other error is a bug."""
    try:
        return function(*arguments)
    except Refusal as refusal:
        return refusal


def test_a_frame_comes_apart_as_it_was_put_together():
    hello = Hello("push", 30.0, 3)
    pixels = bytes(range(24))
    frame = read_frame(frame_bytes(images=((0, 2, 4, pixels), (1, 0, 0, b"jpeg")), flags=1), hello, 2, LIMITS)
    assert (frame.time_s, frame.replayed, frame.num_bytes) == (0.5, True, 28)
    assert frame.state.tolist() == [1.0, 2.0, 3.0]
    raw, jpeg = frame.images
    assert (raw.kind, raw.height, raw.width, bytes(raw.data)) == ("raw", 2, 4, pixels)
    assert (jpeg.kind, bytes(jpeg.data)) == ("jpeg", b"jpeg")


@given(message=st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_a_refusal(message):
    frame = taken(read_frame, message, Hello("push", 30.0, 3), 1, LIMITS)
    assert isinstance(frame, Frame) or (frame.message and not frame.fatal)


@given(place=st.integers(0, 63), value=st.integers(0, 255), cut=st.integers(0, 64))
def test_a_frame_with_a_wrong_byte_or_cut_short_is_a_frame_or_a_refusal(place, value, cut):
    message = bytearray(frame_bytes())
    assert len(message) == 64
    message[place] = value
    message = bytes(message[: len(message) - cut])
    frame = taken(read_frame, message, Hello("push", 30.0, 3), 1, LIMITS)
    if isinstance(frame, Refusal):
        assert frame.code in {"bad_message", "state_size", "not_finite", "bad_image", "image_too_large"}
    else:
        assert cut == 0
        assert np.isfinite(frame.state).all()


@given(value=JSON)
def test_any_json_is_a_hello_or_a_fatal_refusal(value):
    hello = taken(read_hello, json.dumps(value), HEADS, 3)
    assert isinstance(hello, Hello) or hello.fatal


@given(key=st.sampled_from([*HELLO, "heads", "score_hz", "resume"]), value=JSON)
def test_a_hello_with_one_odd_value_is_a_hello_or_a_fatal_refusal(key, value):
    hello = taken(read_hello, json.dumps(HELLO | {key: value}), HEADS, 3)
    if isinstance(hello, Refusal):
        assert hello.fatal
        assert len(hello.message) < 300  # whatever the client put there
    else:
        assert 0 < hello.fps <= 1000
        assert hello.state_dim == 3
        assert set(hello.heads) <= set(HEADS)


@given(
    curve=st.dictionaries(st.sampled_from(["time_s", "frame_index", "progress_sparse", "x"]), JSON, max_size=4)
    | st.lists(st.integers(0, 30), unique=True, max_size=9).map(
        lambda frames: {"time_s": [f / 30 for f in sorted(frames)], "frame_index": sorted(frames)}
    )
)
def test_any_curve_that_a_client_brings_is_columns_of_numbers_or_refused(curve):
    resume = {"first_time_s": 0, "last_time_s": 1, "curve": curve}
    hello = taken(read_hello, json.dumps(HELLO | {"resume": resume}), HEADS, 3)
    if isinstance(hello, Refusal):
        assert hello.fatal
        return
    columns = hello.resume.columns
    assert len({len(column) for column in columns.values()}) <= 1
    assert "x" not in columns
    # and what passed makes a session whose curve can be written down
    live = LiveWindow(Window(live=True), hello.fps, 3)
    session = Session("one", hello, live, HEADS, LIMITS, 0.0)
    assert len(session.replay_times()) <= 50
    json.dumps(session.curve_message(), allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_dim": True}, f"state_dim must be a whole number up to {MAX_STATE_DIM}"),
        ({"fps": float("nan")}, "the message is not JSON"),
        ({"fps": 10**400}, f"fps must be within 0.001 and 1000, not 1{39 * '0'}..."),
        ({"score_hz": -1}, "score_hz must be within 0.001 and 1000, not -1"),
        ({"resume": 3}, "resume must be an object"),
        ({"resume": {"first_time_s": 5, "last_time_s": 4}}, "resume.last_time_s must be within 5 and 14405, not 4"),
        (
            {"resume": {"first_time_s": 0, "last_time_s": 1, "curve": {"time_s": [1], "frame_index": [1, 2]}}},
            "resume.curve needs time_s, frame_index and progress of equal lengths",
        ),
        (
            {"resume": {"first_time_s": 0, "last_time_s": 1, "curve": {"time_s": ["a"], "frame_index": [1]}}},
            "resume.curve.time_s must be a number, not 'a'",
        ),
        (
            {"resume": {"first_time_s": 0, "last_time_s": 1, "curve": {"time_s": [0.5, 0.5], "frame_index": [1, 2]}}},
            "resume.curve.time_s must ascend",
        ),
        (
            {"resume": {"first_time_s": 0, "last_time_s": 1, "curve": {"time_s": [0.5], "frame_index": [10**300]}}},
            f"resume.curve.frame_index must be within 0 and 30, not 1{39 * '0'}...",
        ),
        (
            {"resume": {"first_time_s": -1e308, "last_time_s": 1e308}},
            "resume.first_time_s must be within -1e+12 and 1e+12, not -1e+308",
        ),
        ({"task": "\ud800"}, "task must be a text of at most 1000 characters"),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    with pytest.raises(Refusal) as refused:
        read_hello(json.dumps(HELLO | changes), HEADS, 3)
    assert refused.value.message == message


def test_deeply_nested_json_is_refused():
    with pytest.raises(Refusal, match="not JSON"):
        read_hello("[" * 100_000, HEADS, 3)


def test_an_outcome_is_one_of_three():
    assert read_outcome({"outcome": "success"}) == "success"
    assert read_outcome({}) is None
    with pytest.raises(Refusal, match="outcome must be success, partial, failure or null"):
        read_outcome({"outcome": ["success"]})


@given(messages=st.lists(st.binary(max_size=30), max_size=10))
def test_a_clip_comes_apart_as_it_was_put_together(messages):
    body = b"".join(struct.pack("<I", len(message)) + message for message in messages)
    assert [bytes(message) for message in split_clip(body, LIMITS)] == messages


@given(body=st.binary(max_size=100))
def test_any_body_is_messages_or_a_refusal(body):
    messages = taken(split_clip, body, LIMITS)
    if isinstance(messages, Refusal):
        assert messages.fatal
    else:
        assert sum(4 + len(message) for message in messages) == len(body)


def test_a_clip_of_too_many_messages_is_refused():
    with pytest.raises(Refusal, match="a clip has at most 4 frames"):
        split_clip(struct.pack("<I", 0) * 6, LiveLimits(max_clip_frames=4))
