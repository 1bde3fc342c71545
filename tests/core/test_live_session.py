"""A session's bookkeeping: what is taken, what waits, what is dropped, what the curve holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarm_ray.core.live import LiveWindow
from sarm_ray.core.live_frames import Frame, Image
from sarm_ray.core.live_protocol import Hello, LiveLimits, Refusal, Resume
from sarm_ray.core.live_session import HeadScore, Session
from sarm_ray.core.windows import Window

HELLO = Hello("push", 10.0, 2)
LIVE = LiveWindow(Window(4, 6, live=True), 10.0, 2)


def session(limits: LiveLimits | None = None, hello: Hello = HELLO, live: LiveWindow = LIVE) -> Session:
    return Session("one", hello, live, ("sparse", "dense"), limits or LiveLimits(max_frames_per_s=1e6), 0.0)


def frame(time_s: float, replayed: bool = False, num_bytes: int = 10) -> Frame:
    image = Image("jpeg", 0, 0, memoryview(bytes(num_bytes)))
    return Frame(time_s, np.zeros(2, dtype=np.float32), (image,), replayed)


def score_all(own: Session, now_s: float = 0.0) -> list[dict]:
    """Encode and score what waits; a frame's feature is its number."""
    replies = []
    for item in own.take(1000, now_s):
        gathered = own.place(item, np.array([item.number]), np.zeros(2))
        if gathered is not None:
            scores = {
                head: HeadScore(item.number / 1000, np.array([0.25, 0.75], dtype=np.float32))
                for head in ("sparse", "dense")
            }
            replies.append(own.record(item, gathered, scores, {"total": 1.2345}))
    return replies


@settings(deadline=None)
@given(
    ticks=st.lists(st.integers(-5, 40), max_size=60),
    scored=st.sets(st.integers(0, 60)),
    slow=st.floats(0, 0.3),
)
def test_every_frame_is_accounted_for_and_order_is_kept(ticks, scored, slow):
    own, time_s = session(LiveLimits(max_frames_per_s=1e6, max_wait_s=0.5)), 0.0
    replies, codes = [], []
    for count, tick in enumerate(ticks):
        time_s += tick / 20
        try:
            own.receive(frame(time_s), now_s=count * slow)
        except Refusal as refusal:
            codes.append(refusal.code)
        if count in scored:
            replies += score_all(own, count * slow)
    replies += score_all(own, len(ticks) * slow)
    counts = own.counts
    assert counts.num_received + len(codes) == len(ticks)
    assert set(codes) <= {"time_order"}
    assert counts.num_received == counts.num_scored + counts.num_dropped + counts.num_skipped
    assert own.num_waiting == own.waiting_bytes == 0
    times = [reply["time_s"] for reply in replies]
    assert times == sorted(set(times)) == own.curve.time_s
    assert len({reply["frame_index"] // LIVE.stride for reply in replies}) == len(replies)  # one per stride at most
    assert own.curve.columns()["progress_sparse"] == [
        None if reply["missing"] else pytest.approx(reply["frame_index"] / 1000) for reply in replies
    ]


def test_when_more_comes_than_can_be_scored_the_oldest_go_and_the_newest_stays():
    own = session(LiveLimits(max_frames_per_s=1e6, max_wait_s=0.5), live=LiveWindow(LIVE.window, 10.0, 1))
    for count in range(20):
        own.receive(frame(count / 10), now_s=count / 10)
    assert [item.number for item in own.waiting] == [14, 15, 16, 17, 18, 19]
    assert own.counts.num_dropped == 14
    (item,) = own.take(1, now_s=100.0)
    assert (item.number, own.counts.num_dropped) == (19, 19)


def test_frames_that_wait_take_a_bounded_room():
    own = session(live=LiveWindow(LIVE.window, 10.0, 1))
    for count in range(20):
        own.receive(frame(count / 10, num_bytes=8 * 2**20), now_s=0.0)
    assert (own.num_waiting, own.counts.num_dropped) == (4, 16)
    moved = session(hello=Hello("push", 10.0, 2, resume=Resume(0.0, 3.0)))
    asked = moved.replay_times()
    for time_s in asked[:4]:
        moved.receive(frame(time_s, replayed=True, num_bytes=32 * 2**20), now_s=0.0)
    with pytest.raises(Refusal, match="too many bytes of replayed frames"):
        moved.receive(frame(asked[4], replayed=True, num_bytes=2**20), now_s=0.0)


def test_a_pinned_first_frame_is_never_dropped():
    """Every window of a past model shows it: without it there would never be a score again."""
    own = session(
        LiveLimits(max_frames_per_s=1e6, max_wait_s=0.5), live=LiveWindow(Window(4, 6, "past", live=True), 10.0, 1)
    )
    for count in range(20):
        own.receive(frame(count / 10), now_s=count / 10)
    assert [item.number for item in own.waiting] == [0, 14, 15, 16, 17, 18, 19]
    assert score_all(own, 1.9)[-1]["missing"] == [-1.4, -0.9]  # slots on dropped frames; but the first one, at -1.9


def test_a_score_that_is_no_number_is_none():
    own = session()
    own.receive(frame(0.0), now_s=0.0)
    (item,) = own.take(1, 0.0)
    gathered = own.place(item, np.zeros(1), np.zeros(2))
    scores = {head: HeadScore(float("nan"), np.full(3, np.nan, dtype=np.float32)) for head in ("sparse", "dense")}
    assert own.record(item, gathered, scores, {})["sparse"]["progress"] is None
    assert own.curve.progress["sparse"] == [None]


def test_a_flood_is_refused_and_forgiven():
    own = session(LiveLimits(max_frames_per_s=30.0))
    for count in range(30):
        own.receive(frame(count / 1000), now_s=0.0)
    with pytest.raises(Refusal) as refused:
        own.receive(frame(1.0), now_s=0.0)
    assert (refused.value.code, refused.value.fatal) == ("too_fast", False)
    assert refused.value.message == "more than 30 frames a second; send fewer"
    own.receive(frame(1.1), now_s=0.1)


def test_a_session_ends_after_a_while():
    own = session(LiveLimits(max_session_s=60.0))
    own.receive(frame(100.0), now_s=0.0)
    with pytest.raises(Refusal) as refused:
        own.receive(frame(160.5), now_s=60.0)
    assert (refused.value.code, refused.value.fatal) == ("too_long", True)


def test_a_reply_says_what_was_seen():
    own = session()
    for count in range(5):
        own.receive(frame(7.0 + count / 10), now_s=0.0)
    *_, reply = score_all(own)
    assert reply == {
        "type": "score",
        "time_s": 7.4,
        "frame_index": 4,
        "sparse": {"progress": 0.004, "stage": 1, "confidence": 0.75, "probabilities": [0.25, 0.75]},
        "dense": {"progress": 0.004, "stage": 1, "confidence": 0.75, "probabilities": [0.25, 0.75]},
        "slots_off_s": 0.0,
        "missing": [],
        "num_received": 5,
        "num_scored": 3,
        "num_dropped": 0,
        "num_skipped": 2,
        "timings_ms": {"total": 1.23},
    }
    assert own.replies_after(7.0) == [*own.replies][1:]


def test_one_that_was_elsewhere_goes_on_with_its_curve_and_asks_for_its_window():
    scored = [3.0, 4.4, 4.6, 4.81, 5.2, 5.43, 6.0]  # what else there was, was dropped
    columns = {"time_s": scored, "frame_index": [0, 14, 16, 18, 22, 24, 30], "progress_sparse": [0.5, *[None] * 6]}
    resume = Resume(3.0, 6.0, None, columns, {"num_dropped": 5, "num_skipped": 8})
    own = session(hello=Hello("push", 10.0, 2, ("sparse",), resume=resume))
    asked = own.replay_times()
    assert asked == scored[2:]  # 1.2 s and half a gap back
    for time_s in asked:
        own.receive(frame(time_s, replayed=True), now_s=0.0)
    with pytest.raises(Refusal, match="a replayed frame that was not asked for"):
        own.receive(frame(5.9, replayed=True), now_s=0.0)
    with pytest.raises(Refusal, match="time 6 s is not after 6 s"):
        own.receive(frame(6.0), now_s=0.0)
    own.receive(frame(6.1), now_s=0.0)  # not due: 31
    own.receive(frame(6.2), now_s=0.0)
    (reply,) = score_all(own)
    assert (reply["frame_index"], reply["missing"], "dense" in reply) == (32, [], False)
    assert own.curve.columns() == {
        "index": list(range(8)),
        "episode_index": [0] * 8,
        "frame_index": [0, 14, 16, 18, 22, 24, 30, 32],
        "progress_sparse": [0.5, *[None] * 6, 0.032],
    }
    assert own.counts.as_object() == {"num_received": 22, "num_scored": 8, "num_dropped": 5, "num_skipped": 9}
    assert own.replay_times() == []


def test_one_that_brings_no_curve_is_asked_for_the_frames_that_would_have_been_scored():
    own = session(hello=Hello("push", 10.0, 2, resume=Resume(3.0, 6.0)))
    assert own.replay_times() == pytest.approx([3.0 + number / 10 for number in range(18, 31, 2)])


def test_frames_that_wait_for_replayed_ones_do_not_grow_old():
    own = session(hello=Hello("push", 10.0, 2, resume=Resume(0.0, 3.0)))
    for time_s in own.replay_times():
        own.receive(frame(time_s, replayed=True), now_s=0.0)
    for count in range(5):
        own.receive(frame(3.2 + count / 5), now_s=0.0)
    assert len(own.take(7, now_s=2.0)) == 7  # the replayed ones took their time
    assert [item.number for item in own.take(2, now_s=2.4)] == [32, 34]
    assert [item.number for item in own.take(9, now_s=2.6)] == [40]  # and now they are late
    assert own.counts.num_dropped == 2


def test_replayed_frames_come_in_order_and_before_new_ones():
    own = session(hello=Hello("push", 10.0, 2, resume=Resume(0.0, 3.0)))
    own.receive(frame(2.0, replayed=True), now_s=0.0)
    for wrong in (2.0, 1.9, 3.1):
        with pytest.raises(Refusal, match="replayed frames are out of order"):
            own.receive(frame(wrong, replayed=True), now_s=0.0)
    own.receive(frame(3.2), now_s=0.0)
    with pytest.raises(Refusal, match="not asked for"):
        own.receive(frame(2.4, replayed=True), now_s=0.0)
