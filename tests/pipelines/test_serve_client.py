"""The client against the real server: two replicas of everything, whose processes are really killed."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import ray

from sarm_ray.client import AsyncLiveScorer, Curve, LiveScorer, LiveScoringError, Score, score_clip
from tests.pipelines.live import FPS, GAP, LENGTHS, TASK, TOKEN, Robots, Server, live_server

HEADS = ("sparse", "dense")


@pytest.fixture(scope="module")
def server(robots, tmp_path_factory):
    with live_server(robots.model, tmp_path_factory.mktemp("server"), num_replicas=2, max_wait_s=60.0) as running:
        yield running


def options(server: Server, **changes) -> dict:
    own = {"url": f"ws://{server.address}", "task": TASK, "fps": FPS, "state_dim": 6, "token": TOKEN}
    return own | {"score_hz": FPS, "connect_timeout_s": 30} | changes


def frame_of(robots: Robots, episode: int, frame: int) -> tuple[np.ndarray, np.ndarray, float]:
    return robots.images[episode][frame], robots.states[episode][frame], 100 + frame / FPS


def check_curve(robots: Robots, episode: int, curve: Curve, frames) -> None:
    """These frames and no others, each once, with the values of `score --live`."""
    frames = list(frames)
    assert curve.complete
    assert curve.columns["frame_index"].tolist() == frames
    assert curve.columns["index"].tolist() == list(range(len(frames)))
    np.testing.assert_allclose(curve.time_s, 100 + np.array(frames) / FPS, rtol=0, atol=1e-9)
    for head in HEADS:
        expected = robots.expected[head][episode][frames]
        np.testing.assert_allclose(curve.columns[f"progress_{head}"], expected, rtol=0, atol=1e-5)


def check_score(robots: Robots, episode: int, score: Score | None) -> None:
    assert score is not None
    for head in HEADS:
        expected = robots.expected[head][episode][score.frame_index]
        assert score.heads[head].progress == pytest.approx(expected, abs=1e-5)


def kill_replica(scorer: LiveScorer) -> None:
    """SIGKILL to the process that holds a scorer's session."""
    replica = ray.get_actor(f"SERVE_REPLICA::sarm_ray#Live#{scorer.welcome['replica']}", namespace="serve")
    os.kill(ray.get(replica.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


class Cable:
    """A stretch of network between a robot and a server, which can be cut. The next connection gets a new one."""

    def __init__(self, server: Server):
        self.server = server
        self.entrance = socket.create_server(("127.0.0.1", 0))
        self.ends: list[socket.socket] = []
        threading.Thread(target=self._lay, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.entrance.getsockname()[1]}"

    def cut(self) -> None:
        while self.ends:
            with contextlib.suppress(OSError):
                self.ends.pop().shutdown(socket.SHUT_RDWR)

    def _lay(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.entrance.accept()
                far = socket.create_connection(("127.0.0.1", self.server.config.port))
                self.ends += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def cable(server) -> Iterator[Cable]:
    own = Cable(server)
    yield own
    own.cut()
    own.entrance.close()


def test_a_camera_loop_has_the_values_of_score_live(server, robots):
    with LiveScorer(**options(server)) as scorer:
        for frame in range(LENGTHS[0]):
            scorer.add(*frame_of(robots, 0, frame))
            score = scorer.wait(30)
            check_score(robots, 0, score)
            assert score is scorer.latest
            assert score.frame_index == frame
            assert score.stage_name == scorer.welcome["stages"]["sparse"][score.stage]
            assert score.round_trip_s >= score.timings_ms["total"] / 1000
        assert scorer.progress == scorer.latest.heads["sparse"].progress
        curve = scorer.close("success")
    check_curve(robots, 0, curve, range(LENGTHS[0]))
    wanted = {"num_received": 70, "num_scored": 70, "num_dropped": 0, "num_skipped": 0, "num_added": 70}
    assert curve.counts == wanted | {"num_unsent": 0, "num_refused": 0, "num_reconnects": 0}
    assert scorer.close() is curve


def test_the_async_scorer_hears_every_score(server, robots):
    async def live() -> tuple[list[Score], Curve]:
        heard = []
        async with AsyncLiveScorer(**options(server)) as scorer:

            async def listen() -> None:
                async for score in scorer:
                    heard.append(score)  # noqa: PERF401

            listening = asyncio.create_task(listen())
            for frame in range(LENGTHS[1]):
                await scorer.send(*frame_of(robots, 1, frame))
                await scorer.wait(30)
            curve = await scorer.close("failure")
            await listening
        return heard, curve

    heard, curve = asyncio.run(live())
    assert [score.frame_index for score in heard] == list(range(LENGTHS[1]))
    check_curve(robots, 1, curve, range(LENGTHS[1]))


def test_a_clip_has_the_same_values(server, robots):
    clip = {"task": TASK, "fps": FPS, "token": TOKEN, "score_hz": FPS}
    times_s = [frame_of(robots, 1, frame)[2] for frame in range(LENGTHS[1])]
    curve = score_clip(f"http://{server.address}", robots.images[1], robots.states[1], times_s=times_s, **clip)
    check_curve(robots, 1, curve, range(LENGTHS[1]))
    assert [score.frame_index for score in curve.scores] == list(range(LENGTHS[1]))
    for score in curve.scores:
        check_score(robots, 1, score)
    with pytest.raises(LiveScoringError, match="state_dim is 2") as refused:
        score_clip(f"http://{server.address}", robots.images[1][:1], [[1.0, 2.0]], **clip)
    assert refused.value.code == "state_size"


def test_a_killed_replica_costs_no_frame_and_changes_no_value(server, robots):
    with LiveScorer(**options(server)) as scorer:
        for frame in range(LENGTHS[0]):
            if frame in (5, 45):  # before there is a whole window, and after
                kill_replica(scorer)
            scorer.add(*frame_of(robots, 0, frame))
            check_score(robots, 0, scorer.wait(60))
            assert (scorer.latest.missing, scorer.latest.slots_off_s) == ((), 0)
        curve = scorer.close()
    check_curve(robots, 0, curve, range(LENGTHS[0]))
    assert curve.counts["num_reconnects"] == 2
    assert curve.counts["num_refused"] == curve.counts["num_unsent"] == 0


def test_a_robot_that_does_not_wait_goes_on_after_a_kill(server, robots):
    """At the camera's pace, on a server that gives a frame time to wait for a replica."""
    with LiveScorer(**options(server, score_hz=10, max_wait_s=60.0)) as scorer:
        began_s = time.monotonic()
        for frame in range(LENGTHS[0]):
            if frame == 30:
                kill_replica(scorer)
            time.sleep(max(0.0, began_s + frame / FPS - time.monotonic()))
            scorer.add(*frame_of(robots, 0, frame))
        curve = scorer.close(timeout_s=60)
    assert curve.complete
    assert curve.counts["num_reconnects"] == 1
    check_curve(robots, 0, curve, range(0, LENGTHS[0], 3))
    assert curve.counts["num_dropped"] == 0


def test_a_cut_cable_costs_no_frame_and_scores_that_were_under_way_arrive(server, robots, cable):
    with LiveScorer(**options(server, url=cable.address)) as scorer:
        for frame in range(LENGTHS[2]):
            scorer.add(*frame_of(robots, 2, frame))
            if frame % 20 == 10:
                cable.cut()  # some of these frames are on their way, and some scores
            elif frame % 4 == 0:
                check_score(robots, 2, scorer.wait(60))
        curve = scorer.close(timeout_s=60)
        assert curve.counts["num_reconnects"] == 3
        assert len(scorer.scores.time_s) == LENGTHS[2]
    check_curve(robots, 2, curve, range(LENGTHS[2]))
    assert curve.counts["num_received"] == curve.counts["num_scored"] == LENGTHS[2]


def test_a_frame_that_is_not_taken_is_counted_and_the_loop_goes_on(server, robots):
    image, state, _ = frame_of(robots, 0, 0)
    broken = b"\xff\xd8\xff no jpeg"
    with LiveScorer(**options(server)) as scorer:
        scorer.add(broken, state, 99.0)
        assert scorer.wait(30) is None
        for frame in range(2):
            scorer.add(*frame_of(robots, 0, frame))
        scorer.add(image, state[:5], 101.0)
        scorer.add([image, image], state, 101.0)
        scorer.add(*frame_of(robots, 0, 61))
        assert scorer.wait(30).time_s == pytest.approx(100 + 61 / FPS)
        assert [error.code for error in scorer.errors] == ["bad_image", "state_size", "bad_message"]
        assert scorer.num_refused == 3
    with LiveScorer(**options(server, strict=True)) as scorer:
        with pytest.raises(LiveScoringError, match="5 numbers"):
            scorer.add(image, state[:5], 1.0)
        scorer.add(broken, state, 1.0)
        with pytest.raises(LiveScoringError, match="JPEG") as raised:
            scorer.wait(30)
        assert (raised.value.code, raised.value.time_s) == ("bad_image", 1.0)
        with pytest.raises(LiveScoringError, match="JPEG"):
            scorer.close()


def test_a_session_that_cannot_be_says_why(server):
    with pytest.raises(LiveScoringError, match="--token-file") as refused:
        LiveScorer(**options(server, token="another-token-of-the-tests")).start()
    assert refused.value.code == "token"
    with pytest.raises(LiveScoringError, match="state_dim is 7, the model was trained on 6"):
        LiveScorer(**options(server, state_dim=7)).start()
    with pytest.raises(LiveScoringError, match="heads must be a list of sparse and dense"):
        LiveScorer(**options(server, heads="thick")).start()


def test_a_session_that_is_taken_over_ends(server, robots):
    with (
        LiveScorer(**options(server, session="mine")) as first,
        LiveScorer(**options(server, session="mine")) as second,
    ):
        second.add(*frame_of(robots, 0, 0))
        check_score(robots, 0, second.wait(30))
        until = time.monotonic() + 30
        while first.connected and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(LiveScoringError, match="must be unique"):
            first.add(*frame_of(robots, 0, 0))
        with pytest.raises(LiveScoringError, match="must be unique"):
            first.close()
        assert second.close().complete


def test_heads_and_score_hz_are_what_was_asked_for(server, robots):
    with LiveScorer(**options(server, heads=["dense"], score_hz=10)) as scorer:
        assert (scorer.welcome["score_hz"], scorer.welcome["stride"]) == (10, 3)
        for frame in range(GAP + 1):
            scorer.add(*frame_of(robots, 0, frame))
        score = scorer.wait(30)
        assert score.heads.keys() == {"dense"}
        assert score.progress == pytest.approx(robots.expected["dense"][0][GAP], abs=1e-5)
        curve = scorer.close()
    assert curve.columns.keys() == {"index", "episode_index", "frame_index", "progress_dense"}
    assert curve.columns["frame_index"].tolist() == [0, 3, 6]
    assert curve.counts["num_skipped"] == 4
