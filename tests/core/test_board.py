"""The board: deltas give every viewer the whole state, sessions go on over replicas, and nothing grows without bound."""

import base64
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.core import board as boards
from sarm_ray.core.board import Board
from sarm_ray.core.board_curve import Curve
from sarm_ray.core.live_marks import mark, motion

NOW = 1_000_000.0


class Viewer:
    """What the page does with the board's messages."""

    def __init__(self):
        self.version, self.sessions = 0, {}

    def watch(self, board: Board, now_s: float) -> dict:
        message = json.loads(json.dumps(board.changes(self.version, now_s), allow_nan=False))
        self.version = message["version"]
        if message["full"]:
            self.sessions = {}
        for name in message["gone"]:
            self.sessions.pop(name, None)
        for session in message["sessions"]:
            mine = self.sessions.setdefault(session["id"], {"points": [], "thumbnail": None})
            since, points, thumbnail = session.pop("since"), session.pop("points"), session.pop("thumbnail")
            assert since <= len(mine["points"])
            mine["points"][since:] = points
            mine |= session
            if thumbnail is not None:
                mine["thumbnail"] = thumbnail
        return message


def update(name="a", **facts):
    given = {"connected": True, "ended": False, "stages": ["reach", "grasp"], "started_s": NOW, "time_s": 0.0}
    return {"id": name, **given, "num_received": 0, **facts}


def points(*values, first_s=0.0, step_s=0.5):
    return [(first_s + n * step_s, value, 0) for n, value in enumerate(values)]


def seen(board: Board, now_s: float = NOW) -> dict:
    viewer = Viewer()
    viewer.watch(board, now_s)
    return viewer.sessions


progresses = st.one_of(st.none(), st.floats(0, 1))
new_points = st.lists(st.tuples(st.floats(0, 50), progresses, st.integers(0, 2)), max_size=12).map(
    lambda found: sorted({round(each[0], 2): each for each in found}.values(), key=lambda each: each[0])
)
updates = st.lists(
    st.builds(
        update,
        name=st.sampled_from("abcdef"),
        connected=st.booleans(),
        ended=st.booleans(),
        time_s=st.floats(0, 50),
        opened_s=st.floats(NOW, NOW + 9),
        points=new_points,
        thumbnail=st.one_of(st.none(), st.binary(min_size=1, max_size=3)),
    ),
    max_size=5,
)
pushes = st.tuples(st.just("push"), st.sampled_from(["r0", "r1"]), updates)
watches = st.tuples(st.just("watch"), st.integers(0, 2), st.none())
waits = st.tuples(st.just("wait"), st.sampled_from([0.1, 0.6, 4.0, 11.0, 700.0]), st.none())


@given(st.lists(st.one_of(pushes, pushes, watches, waits), max_size=40), st.integers(1, 8), st.integers(1, 6))
def test_whoever_applies_deltas_has_what_one_gets_who_comes_new(steps, max_points, max_sessions):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Curve.__init__, "__defaults__", (max_points,))
        board, viewers, now_s = Board(max_sessions), [Viewer() for _ in range(3)], NOW
        for kind, who, what in steps:
            if kind == "push":
                board.push(who, what, now_s)
            elif kind == "watch":
                viewers[who].watch(board, now_s)
                assert viewers[who].sessions == seen(board, now_s)
            else:
                now_s += who
        for viewer in viewers:
            viewer.watch(board, now_s)
            assert viewer.sessions == seen(board, now_s)
        assert len(seen(board, now_s)) <= max_sessions
        assert all(len(each["points"]) <= max_points for each in seen(board, now_s).values())


@given(new_points, st.integers(1, 20))
def test_a_pushed_curve_may_be_cut_anywhere_and_sent_twice(curve, cut):
    whole, parts = Curve(), Curve()
    whole.splice(curve, 1)
    for start in range(0, len(curve), cut):
        parts.splice(curve[max(start - 2, 0) : start + cut], 2)  # two that were sent before, as after a lost answer
    assert parts.since(0) == whole.since(0)


def test_a_full_curve_is_merged_evenly_and_forgets_no_stretch():
    curve = Curve()
    for frame in range(36_000):  # an hour at 10 Hz
        curve.splice([(frame / 10, frame / 36_000, frame // 9000)], frame)
    place, found = curve.since(-1)
    assert place == 0
    assert 300 <= len(found) <= 600
    assert found[-1][0] == 3599.9
    gaps = [after[0] - before[0] for before, after in pairwise(found)]
    assert max(gaps[:-1]) <= 1.05 * min(gaps[:-1])
    assert all(abs(progress - time / 3600) < 0.002 for time, progress, _ in found)
    assert [stage for _, _, stage in found] == sorted(stage for _, _, stage in found)


def test_a_delta_has_what_is_new_and_no_more():
    board, viewer = Board(), Viewer()
    board.push("r0", [update("a", points=points(0.1, 0.2), thumbnail=b"one"), update("b")], NOW)
    first = viewer.watch(board, NOW)
    assert first["full"]
    assert {each["id"] for each in first["sessions"]} == {"a", "b"}
    board.push("r0", [update("a", time_s=1.0, points=points(0.3, first_s=1.0)), update("b")], NOW + 0.5)
    message = board.changes(viewer.version, NOW + 0.5)
    assert not message["full"]
    assert message["gone"] == []
    (session,) = message["sessions"]
    assert (session["id"], session["since"], session["points"]) == ("a", 2, [[1.0, 0.3, 0]])
    assert session["thumbnail"] is None
    viewer.watch(board, NOW + 0.5)
    assert viewer.sessions["a"]["thumbnail"] == base64.b64encode(b"one").decode()
    assert viewer.watch(board, NOW + 0.6)["sessions"] == []


def test_a_viewer_of_another_board_gets_everything():
    old, viewer = Board(first_version=5000), Viewer()
    old.push("r0", [update("a")], NOW)
    viewer.watch(old, NOW)
    board = Board(first_version=9000)
    board.push("r0", [update("b")], NOW)
    for _ in range(3):
        board.push("r0", [update("b")], NOW)
    assert viewer.watch(board, NOW)["full"]
    assert set(viewer.sessions) == {"b"}


def test_a_session_goes_on_at_another_replica():
    board, viewer = Board(), Viewer()
    board.push("r0", [update(opened_s=NOW, time_s=1.0, points=points(0.1, 0.2, 0.3))], NOW)
    viewer.watch(board, NOW)
    resumed = update(opened_s=NOW + 9, started_s=NOW + 9, time_s=1.5, points=points(0.1, 0.2, 0.3, 0.4))
    board.push("r1", [resumed], NOW + 9)
    board.push("r0", [update(opened_s=NOW, time_s=1.0, connected=False)], NOW + 9.1)  # has not forgotten it yet
    board.push("r0", [update(opened_s=NOW, time_s=1.0, connected=False, ended=True)], NOW + 9.2)
    viewer.watch(board, NOW + 9.3)
    (session,) = viewer.sessions.values()
    assert session["replica"] == "r1"
    assert (session["connected"], session["ended"]) == (True, False)
    assert [each[1] for each in session["points"]] == [0.1, 0.2, 0.3, 0.4]
    assert session["started_s"] == NOW


def test_a_session_that_took_over_what_a_half_open_socket_holds():
    board = Board()
    board.push("r0", [update(opened_s=NOW, time_s=1.0)], NOW)
    board.push("r1", [update(opened_s=NOW + 5, time_s=1.5)], NOW + 5)
    board.push("r0", [update(opened_s=NOW, time_s=1.0)], NOW + 5.5)  # its robot is gone and it does not know
    assert seen(board)["a"]["replica"] == "r1"


def test_an_id_that_is_used_again_begins_anew():
    board, viewer = Board(), Viewer()
    board.push("r0", [update(time_s=9.0, points=points(0.5, 0.9), ended=True, connected=False)], NOW)
    viewer.watch(board, NOW)
    assert viewer.sessions["a"]["mark"] == "ended"
    board.push("r0", [update(time_s=0.0, started_s=NOW + 50)], NOW + 50)
    viewer.watch(board, NOW + 50)
    assert viewer.sessions["a"]["points"] == []
    assert viewer.sessions["a"]["mark"] == "running"
    assert viewer.sessions["a"]["started_s"] == NOW + 50


def test_who_says_nothing_is_silent_then_disconnected_then_gone():
    board, viewer = Board(), Viewer()
    board.push("r0", [update(num_received=5, points=points(0.1))], NOW)
    viewer.watch(board, NOW + 2.9)
    assert (viewer.sessions["a"]["mark"], viewer.sessions["a"]["connected"]) == ("running", True)
    viewer.watch(board, NOW + 3.1)
    assert (viewer.sessions["a"]["mark"], viewer.sessions["a"]["connected"]) == ("silent", True)
    assert viewer.sessions["a"]["mark_s"] == NOW + 3.1
    viewer.watch(board, NOW + 10.1)
    assert (viewer.sessions["a"]["mark"], viewer.sessions["a"]["connected"]) == ("silent", False)
    board.push("r0", [update(num_received=6)], NOW + 11)
    viewer.watch(board, NOW + 11)
    assert (viewer.sessions["a"]["mark"], viewer.sessions["a"]["connected"]) == ("running", True)
    assert viewer.watch(board, NOW + 11 + boards.ENDED_S + 1)["gone"] == ["a"]
    assert viewer.sessions == {}


def test_the_ended_stay_ten_minutes_and_make_room_first():
    board, viewer = Board(max_sessions=3), Viewer()
    for n, name in enumerate("abc"):
        board.push("r0", [update(name, ended=name != "a", outcome="success" if name == "b" else None)], NOW + n)
    viewer.watch(board, NOW + 3)
    assert viewer.sessions["b"]["outcome"] == "success"
    board.push("r0", [update("d"), update("a", num_received=1)], NOW + 4)
    assert viewer.watch(board, NOW + 4)["gone"] == ["b"]
    board.push("r0", [update("a", num_received=2), update("d")], NOW + 400)
    assert viewer.watch(board, NOW + 2 + boards.ENDED_S + 0.1)["gone"] == ["c"]
    assert set(viewer.sessions) == {"a", "d"}


def test_pictures_are_fewer_where_there_are_many_and_the_last_is_kept():
    board = Board()
    many = [f"s{n}" for n in range(100)]
    for step in range(4):
        board.push("r0", [update(name, thumbnail=b"%d" % step) for name in many], NOW + step / 2)
    assert seen(board)["s7"]["thumbnail"] == base64.b64encode(b"2").decode()
    board.push("r0", [update("s7", ended=True, thumbnail=b"last")], NOW + 1.6)
    assert seen(board)["s7"]["thumbnail"] == base64.b64encode(b"last").decode()
    board.push("r0", [update("s8", thumbnail=b"x" * (boards.MAX_THUMBNAIL_BYTES + 1))], NOW + 9)
    assert len(seen(board)["s8"]["thumbnail"]) < 100


def curve(*legs, hz=10):
    """Times and progress: straight legs, each (seconds, progress at its end), from 0."""
    known, time_s, value = [], 0.0, 0.0
    for length_s, end in legs:
        steps = round(length_s * hz)
        known += [(time_s + (n + 1) / hz, value + (end - value) * (n + 1) / steps) for n in range(steps)]
        time_s, value = known[-1]
    return known


@pytest.mark.parametrize(
    ("legs", "expected"),
    [
        ([], "running"),
        ([(3, 0.2)], "running"),
        ([(3, 0.2), (3, 0.2)], "running"),
        ([(3, 0.2), (6, 0.2)], "stalled"),
        ([(3, 0.2), (6, 0.26)], "running"),
        ([(4, 0.6), (0.1, 0.3), (0.3, 0.3)], "running"),  # a moment may be one odd frame
        ([(4, 0.6), (0.1, 0.3), (0.8, 0.3)], "regressing"),
        ([(4, 0.6), (2, 0.3)], "regressing"),
        ([(4, 0.6), (0.1, 0.3), (7, 0.3)], "stalled"),
        ([(4, 0.6), (0.1, 0.3), (7, 0.6)], "running"),
        ([(4, 0.97), (9, 0.97)], "done"),
    ],
)
def test_motion(legs, expected):
    assert motion(curve(*legs)) == expected


def test_one_odd_frame_marks_nothing():
    known = curve((3, 0.4), (1, 0.5))
    assert motion([*known, (4.1, 0.05)]) == "running"
    assert motion([*known, (4.1, 0.99)]) == "running"


def test_silence_comes_before_motion_and_the_end_before_silence():
    assert mark("stalled", 1.0, ended=False) == "stalled"
    assert mark("done", 3.5, ended=False) == "silent"
    assert mark("stalled", 100.0, ended=True) == "ended"


def test_marks_follow_the_pushes():
    board = Board()
    for n, (time_s, progress) in enumerate(curve((4, 0.6), (8, 0.6))):
        board.push("r0", [update(time_s=time_s, num_received=n, points=[(time_s, progress, 0)])], NOW + time_s)
    assert seen(board, NOW + 12)["a"]["mark"] == "stalled"
    assert NOW + 8 < seen(board, NOW + 12)["a"]["mark_s"] < NOW + 11
