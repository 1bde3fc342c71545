"""The client without a server: what it sends byte for byte, what it remembers, what it would send again, and what it says
where nobody is. Against the real server it is tested in tests/pipelines/test_serve_client.py.
"""

import asyncio
import itertools
import math
import socket
import struct
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.client import (
    AsyncLiveScorer,
    FrameHistory,
    LiveScorer,
    LiveScoringError,
    ScoredRow,
    ScoredRows,
    SentFrame,
    pack_frame,
    parse_score,
    score_clip,
)

JPEG, PNG = b"\xff\xd8\xff\xe0 the rest", b"\x89PNG\r\n\x1a\n the rest"
FPS = 30.0


def sent(time_s: float, size: int = 10) -> SentFrame:
    return SentFrame(time_s, struct.pack("<BBxxd", 1, 0, time_s).ljust(size, b"."), 0.0)


def times_of(frames: list[SentFrame]) -> list[float]:
    return [frame.time_s for frame in frames]


def test_a_frame_is_packed_byte_for_byte():
    raw = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    packed = pack_frame([raw, JPEG, PNG], [1.5, -2.0], 12.25)
    wanted = struct.pack("<BBBBId", 1, 0, 3, 0, 2, 12.25) + struct.pack("<ff", 1.5, -2.0)
    wanted += struct.pack("<BBHHBBI", 0, 0, 2, 3, 0, 0, 18) + bytes(range(18))
    wanted += struct.pack("<BBHHBBI", 1, 0, 0, 0, 0, 0, len(JPEG)) + JPEG
    wanted += struct.pack("<BBHHBBI", 2, 0, 0, 0, 0, 0, len(PNG)) + PNG
    assert packed == wanted
    replayed = SentFrame(12.25, packed, 0.0).replayed
    assert replayed[1] == 1
    assert replayed[:1] + b"\0" + replayed[2:] == packed


def test_one_image_may_come_in_several_forms():
    raw = np.random.default_rng(0).integers(256, size=(4, 6, 3), dtype=np.uint8)
    wanted = pack_frame(raw.copy(), [1], 0.0)
    assert pack_frame([raw], np.float64([1]), 0.0) == wanted
    assert pack_frame(np.asfortranarray(raw), (1,), 0.0) == wanted
    assert pack_frame(raw[:, ::-1], [1], 0.0) == pack_frame(raw[:, ::-1].copy(), [1], 0.0) != wanted
    encoded = pack_frame(JPEG, [1], 0.0)
    for form in (bytearray(JPEG), memoryview(JPEG), np.frombuffer(JPEG, dtype=np.uint8)):
        assert pack_frame(form, [1], 0.0) == encoded


def test_a_packed_image_is_a_copy():
    raw = np.zeros((4, 6, 3), dtype=np.uint8)
    packed = pack_frame(raw, [], 0.0)
    raw[:] = 255
    assert packed == pack_frame(np.zeros_like(raw), [], 0.0)


@pytest.mark.parametrize(
    ("image", "state", "time_s", "code", "says"),
    [
        (np.zeros((4, 6, 3), dtype=np.float32), [1], 0.0, "bad_image", "float32 (4, 6, 3)"),
        (np.zeros((3, 4, 6), dtype=np.uint8), [1], 0.0, "bad_image", "(3, 4, 6)"),
        (np.zeros((4, 6), dtype=np.uint8), [1], 0.0, "bad_image", "(4, 6)"),
        (np.zeros((0, 6, 3), dtype=np.uint8), [1], 0.0, "bad_image", "(0, 6, 3)"),
        (np.zeros((2**16, 1, 3), dtype=np.uint8), [1], 0.0, "bad_image", "(65536, 1, 3)"),
        (b"GIF89a", [1], 0.0, "bad_image", "neither a JPEG nor a PNG"),
        (b"", [1], 0.0, "bad_image", "neither a JPEG nor a PNG"),
        (None, [1], 0.0, "bad_image", "an image must be"),
        (JPEG, [[1]], 0.0, "state_size", "(1, 1)"),
        (JPEG, 1.0, 0.0, "state_size", "()"),
        (JPEG, ["wide open"], 0.0, "state_size", "numbers"),
        (JPEG, [1, math.nan], 0.0, "not_finite", "finite"),
        (JPEG, [1e300], 0.0, "not_finite", "finite"),
        (JPEG, [1], math.inf, "not_finite", "finite"),
    ],
)
def test_what_cannot_be_packed_says_why(image, state, time_s, code, says):
    with pytest.raises(LiveScoringError) as raised:
        pack_frame(image, state, time_s)
    assert raised.value.code == code
    assert raised.value.time_s == time_s
    assert says in str(raised.value)


@st.composite
def sessions(draw):
    """Frame times, and which of the frames were scored."""
    gaps = draw(st.lists(st.floats(0.005, 0.5), min_size=1, max_size=80))
    began_s = draw(st.sampled_from([-1e3, 0.0, 1.7e9]))
    times = [began_s + each for each in itertools.accumulate(gaps)]
    scored = draw(st.lists(st.booleans(), min_size=len(times), max_size=len(times)))
    return times, [time_s for time_s, chosen in zip(times, scored, strict=True) if chosen]


def history_of(times, scored, keep_s, keep_first, late=0, max_bytes=2**20) -> FrameHistory:
    """Frames as they are sent, each score coming `late` frames after its own."""
    history = FrameHistory(max_bytes)
    history.keep_s, history.keep_first = keep_s, keep_first
    for number, time_s in enumerate(times):
        history.sent(sent(time_s))
        if number >= late and times[number - late] in scored:
            history.scored(times[number - late], times[number - late] - times[0])
    return history


@given(sessions(), st.floats(0.1, 5), st.booleans(), st.integers(0, 5))
def test_all_that_a_window_can_reach_is_kept(session, keep_s, keep_first, late):
    times, scored = session
    scored = [time_s for time_s in scored if time_s in times[: max(0, len(times) - late)]]
    history = history_of(times, scored, keep_s, keep_first, late)
    kept = times_of(history.replay(times, None))
    if scored:
        reachable = [each for each in scored if each >= scored[-1] - keep_s]
        assert history.first_time_s == times[0]
        assert set(reachable) <= set(kept) <= set(scored)
        assert len(kept) <= len(reachable) + 1 + keep_first
        assert scored[0] in kept or not keep_first
        assert history.last_time_s == scored[-1]
    else:
        assert kept == []
    unanswered = [each for each in times if not scored or each > scored[-1]]
    assert times_of(history.unanswered(None)) == [each for each in unanswered if each >= times[-1] - 10]


@given(sessions(), st.data())
def test_a_replay_is_the_nearest_frames_each_once_in_order(session, data):
    times, scored = session
    history = history_of(times, scored, math.inf, True)
    asked = data.draw(st.lists(st.floats(times[0] - 1, times[-1] + 1), max_size=20))
    replayed = times_of(history.replay(asked, None))
    assert replayed == sorted(set(replayed))
    if not scored:
        assert replayed == []
        return
    assert set(replayed) <= set(scored)
    distance = [abs(np.array(scored) - each) for each in asked]
    assert all(min(abs(np.array(replayed) - each)) == near.min() for each, near in zip(asked, distance, strict=True))
    # times that are exactly those of frames bring these, and no others
    chosen = data.draw(st.lists(st.sampled_from(scored)))
    assert times_of(history.replay(chosen, None)) == sorted(set(chosen))


@given(sessions(), st.data())
def test_no_frame_is_sent_again_both_as_replayed_and_as_new(session, data):
    times, scored = session
    history = history_of(times, scored, math.inf, True)
    held_s = data.draw(st.none() | st.sampled_from(times))
    again = times_of(history.unanswered(held_s))
    assert set(again).isdisjoint(times_of(history.replay(times, held_s)))
    assert again == [
        each
        for each in times
        if each > max(scored, default=-math.inf) and each > (-math.inf if held_s is None else held_s)
    ]


@given(sessions(), st.integers(10, 400), st.booleans())
def test_memory_is_bounded(session, max_bytes, keep_first):
    times, scored = session
    history = history_of(times, scored, math.inf, keep_first, late=3, max_bytes=max_bytes)
    held = history.replay(times, None) + history.unanswered(None)
    assert sum(len(each.message) for each in held) <= max_bytes + 10 * (1 + keep_first)


def test_frames_that_never_get_an_answer_are_forgotten_in_time():
    history = history_of([number / FPS for number in range(3000)], [], 4.0, True)
    kept = times_of(history.unanswered(None))
    assert kept[-1] == 2999 / FPS
    assert kept[-1] - kept[0] == pytest.approx(10)


def test_a_refused_frame_is_not_sent_again_and_the_session_may_begin_after_it():
    history = FrameHistory(2**20)
    for number in range(4):
        history.sent(sent(100 + number / FPS))
    history.refused(100.0)
    history.refused(100 + 2 / FPS)
    assert times_of(history.unanswered(None)) == [100 + 1 / FPS, 100 + 3 / FPS]
    history.scored(100 + 3 / FPS, 2 / FPS)  # frame 2 of a session that began with the second one
    assert history.first_time_s == 100 + 1 / FPS


def score_message(**changed) -> dict:
    head = {"progress": 0.5, "stage": 1, "confidence": 0.75, "probabilities": [0.25, 0.75]}
    nothing = dict.fromkeys(head)
    message = {"type": "score", "time_s": 1.5, "frame_index": 45, "sparse": head, "dense": nothing}
    return message | {"slots_off_s": 0.01, "missing": [-3.0], "num_received": 46, "num_scored": 16} | changed


def test_a_score_is_read():
    stages = {"sparse": ["reach", "grasp"], "dense": ["a"]}
    score = parse_score(score_message(timings_ms={"total": 9.5}, num_dropped=1), ["sparse", "dense"], stages, 0.02)
    assert (score.time_s, score.frame_index, score.round_trip_s) == (1.5, 45, 0.02)
    assert (score.progress, score.stage, score.stage_name, score.confidence) == (0.5, 1, "grasp", 0.75)
    assert score.heads["sparse"].probabilities == (0.25, 0.75)
    assert score.heads["dense"].progress is score.heads["dense"].stage_name is None
    assert (score.missing, score.slots_off_s, score.timings_ms) == ((-3.0,), 0.01, {"total": 9.5})
    assert (score.num_received, score.num_scored, score.num_dropped, score.num_skipped) == (46, 16, 1, 0)
    of_dense = parse_score(score_message(), ["dense"], {})
    assert of_dense.progress is of_dense.round_trip_s is None


def rows_of(progress: list[float | None], every_s: float = 1.0) -> ScoredRows:
    """Rows that hold these scores."""
    rows = ScoredRows()
    for number, value in enumerate(progress):
        head = {"progress": value, "stage": 0, "confidence": 1.0, "probabilities": [1.0]}
        message = score_message(sparse=head, time_s=100 + number * every_s, frame_index=number)
        assert rows.add(parse_score(message, ["sparse"], {}))
    return rows


@given(st.lists(st.none() | st.floats(0, 1), max_size=30), st.floats(0.5, 40), st.floats(0.001, 0.2))
def test_a_stall_is_no_rise_of_the_highest_progress(progress, for_s, epsilon):
    rows = rows_of(progress)
    newest_s = len(progress) - 1
    before = [
        -math.inf if value is None else value for number, value in enumerate(progress) if number <= newest_s - for_s
    ]
    within = [
        -math.inf if value is None else value for number, value in enumerate(progress) if number > newest_s - for_s
    ]
    assert rows.stalled(for_s, epsilon) == (len(before) > 0 and max(within) < max(before) + epsilon)


def test_a_stall_is_told_from_progress():
    assert not rows_of([]).stalled(3, 0.01)
    assert not rows_of([0.5, 0.5]).stalled(3, 0.01)  # too early to say
    assert rows_of([0.1, 0.5, 0.5, 0.4, 0.505]).stalled(3, 0.01)
    assert not rows_of([0.1, 0.5, 0.5, 0.4, 0.52]).stalled(3, 0.01)


def test_each_frame_is_in_the_curve_once():
    rows = rows_of([0.1, None, 0.3])
    again = parse_score(score_message(time_s=101.0, frame_index=1), ["sparse"], {})
    assert not rows.add(again)
    assert len(rows) == 3
    theirs = [ScoredRow(101.0, 1, {"sparse": 0.2}), ScoredRow(103.0, 3, {"sparse": 0.4})]
    merged = rows.merged(theirs)
    assert [(row.time_s, row.progress["sparse"]) for row in merged] == [(100, 0.1), (101, 0.2), (102, 0.3), (103, 0.4)]
    columns = rows.newest(["sparse"], most=2)
    assert columns == {"time_s": [101.0, 102.0], "frame_index": [1, 2], "progress_sparse": [None, 0.3]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://robot"},
        {"url": "ws://"},
        {"fps": 0.0},
        {"fps": math.nan},
        {"score_hz": 0.0},
        {"state_dim": -1},
        {"session": "a/b"},
        {"session": ""},
        {"max_pending": 0},
        {"max_wait_s": 0.0},
    ],
)
def test_a_wrong_argument_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LiveScorer(**({"url": "ws://nowhere", "task": "", "fps": FPS, "state_dim": 1} | wrong))


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("ws://box:8000", "ws://box:8000/v1/sessions/a"),
        ("http://box:8000/", "ws://box:8000/v1/sessions/a"),
        ("https://box/sarm", "wss://box/sarm/v1/sessions/a"),
        ("box:8000", "ws://box:8000/v1/sessions/a"),
        ("[::1]:8000", "ws://[::1]:8000/v1/sessions/a"),
    ],
)
def test_addresses(url, wanted):
    assert LiveScorer(url, "", FPS, 1, session="a").url == wanted


def nobody_there() -> str:
    """An address on which nothing listens."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        return f"ws://127.0.0.1:{port.getsockname()[1]}"


def test_a_server_that_is_not_there_is_named():
    url = nobody_there()
    with pytest.raises(LiveScoringError, match=rf"{url}/v1/sessions/r1: .*sarm-ray serve") as raised:
        LiveScorer(url, "", FPS, 1, session="r1", connect_timeout_s=0.2).start()
    assert raised.value.code == "unreachable"
    assert not [each for each in threading.enumerate() if each.name == "LiveScorer"]
    with pytest.raises(LiveScoringError, match="sarm-ray serve"):
        score_clip(url, [JPEG], [[1.0]], "", FPS)


def test_no_proxy_is_asked(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    url = nobody_there()
    port = url.rpartition(":")[2]
    with pytest.raises(LiveScoringError, match=port):
        LiveScorer(url, "", FPS, 1, connect_timeout_s=0.2).start()
    with pytest.raises(LiveScoringError, match=port):
        score_clip(url, [JPEG], [[1.0]], "", FPS)


def test_the_async_scorer_says_the_same():
    async def connect() -> None:
        async with AsyncLiveScorer(nobody_there(), "", FPS, 1, connect_timeout_s=0.2):
            raise AssertionError("connected")

    with pytest.raises(LiveScoringError, match="sarm-ray serve"):
        asyncio.run(connect())


def test_a_scorer_that_is_not_open_says_so():
    scorer = LiveScorer("ws://nowhere", "", FPS, 1)
    for call in (lambda: scorer.add(JPEG, [1]), scorer.wait, scorer.close):
        with pytest.raises(LiveScoringError, match="with block"):
            call()
    assert scorer.latest is scorer.progress is None
    assert not scorer.stalled(1)
    assert len(scorer.scores.time_s) == 0


@pytest.mark.parametrize(
    ("frames", "states", "times_s"),
    [([], np.zeros((0, 1)), None), ([JPEG], [1.0], None), ([JPEG], [[1.0], [2.0]], None), ([JPEG], [[1.0]], [0, 1])],
)
def test_a_clip_whose_parts_do_not_fit_is_refused_before_it_is_sent(frames, states, times_s):
    with pytest.raises(ValueError, match="as many states as frames"):
        score_clip("ws://nowhere", frames, states, "", FPS, times_s)
