"""The live server as robots meet it: real Ray Serve, two replicas of everything, the raw protocol."""

import json
import struct
import urllib.error
import urllib.request

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sarm_ray.data.images import jpeg
from tests.pipelines.live import (
    FPS,
    GAP,
    LENGTHS,
    TOKEN,
    Robot,
    at_once,
    frame_message,
    hello,
    live_server,
    open_socket,
)


@pytest.fixture(scope="module")
def server(robots, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with live_server(robots.model, folder, num_replicas=2, record=str(folder / "record"), max_wait_s=60.0) as running:
        yield running


def call(server, path, body=None, token=TOKEN, **headers):
    """Status and JSON (or bytes) of an HTTP request."""
    own = {**headers, **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(f"http://{server.address}{path}", body, own)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            status, data = reply.status, reply.read()
    except urllib.error.HTTPError as error:
        status, data = error.code, error.read()
    return status, json.loads(data) if data[:1] in (b"{", b"[") else data


def clip_body(*messages: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(message)) + message for message in messages)


def check_scores(robots, episode, replies, frames):
    for head in ("sparse", "dense"):
        expected = robots.expected[head][episode][list(frames)]
        assert [reply["frame_index"] for reply in replies] == list(frames)
        np.testing.assert_allclose([reply[head]["progress"] for reply in replies], expected, rtol=0, atol=1e-5)


def test_the_expected_values_tell_frames_apart(robots):
    """Otherwise the tests below could not fail."""
    for head in ("sparse", "dense"):
        for values in robots.expected[head]:
            assert np.median(np.abs(np.diff(values))) > 1e-4


def test_a_session_has_the_values_of_score_live_frame_by_frame(server, robots):
    robot = Robot(server, "alone")
    assert robot.welcome["stages"] == {
        "sparse": ["reach", "push", "retract"], "dense": ["stage 1", "stage 2", "stage 3", "stage 4"],
    }  # fmt: skip
    assert (robot.welcome["stride"], robot.welcome["replay_times_s"]) == (1, [])
    frames = range(LENGTHS[0])
    replies = robot.live_through(robots, 0, frames)
    check_scores(robots, 0, replies, frames)
    assert {reply["slots_off_s"] for reply in replies} == {0.0}
    assert all(reply["sparse"]["confidence"] == max(reply["sparse"]["probabilities"]) for reply in replies)
    assert replies[-1]["timings_ms"].keys() == {"queue", "decode", "encode", "score", "total"}
    curve = robot.close("success")
    np.testing.assert_allclose(curve["columns"]["progress_dense"], robots.expected["dense"][0], rtol=0, atol=1e-5)
    assert curve["columns"]["frame_index"] == curve["columns"]["index"] == list(frames)
    assert set(curve["columns"]["episode_index"]) == {0}
    assert (curve["num_received"], curve["num_scored"], curve["num_dropped"], curve["num_skipped"]) == (70, 70, 0, 0)


def test_whoever_shares_a_batch_changes_nothing(server, robots):
    """Nine sessions at once, which start at different times of three episodes."""

    def live(number):
        robot = Robot(server, f"crowd-{number}")
        episode = number % len(LENGTHS)
        for frame in range(LENGTHS[episode]):
            robot.show(frame / FPS, robots.states[episode][frame], robots.images[episode][frame])
            if frame % 4 == number % 4:  # let others get ahead
                robot.hear()
        return episode, robot.close()

    for episode, curve in at_once(*(lambda number=number: live(number) for number in range(9))):
        assert curve["columns"]["frame_index"] == list(range(LENGTHS[episode]))
        for head in ("sparse", "dense"):
            values = curve["columns"][f"progress_{head}"]
            np.testing.assert_allclose(values, robots.expected[head][episode], rtol=0, atol=1e-5)


def test_a_clip_has_the_same_values(server, robots):
    frames = [
        frame_message(frame / FPS, robots.states[1][frame], robots.images[1][frame]) for frame in range(LENGTHS[1])
    ]
    status, reply = call(server, "/v1/score", clip_body(json.dumps(hello()).encode(), *frames))
    assert status == 200
    check_scores(robots, 1, reply["scores"], range(LENGTHS[1]))
    np.testing.assert_allclose(reply["columns"]["progress_sparse"], robots.expected["sparse"][1], rtol=0, atol=1e-5)


def test_a_png_is_the_raw_image_and_a_jpeg_nearly(server, robots):
    import io

    from PIL import Image

    def png(image):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "png")
        return stream.getvalue()

    robot = Robot(server, "formats")
    for frame in range(6):
        robot.show(frame / FPS, robots.states[2][frame], png(robots.images[2][frame]), kind=2)
    check_scores(robots, 2, [robot.hear() for _ in range(6)], range(6))
    robot.show(6 / FPS, robots.states[2][6], jpeg(robots.images[2][6], quality=95), kind=1)
    assert robot.hear()["sparse"]["progress"] == pytest.approx(robots.expected["sparse"][2][6], abs=0.1)


def test_frames_that_are_not_due_are_neither_encoded_nor_missed(server, robots):
    """Ten a second at 30 fps: every third frame, which the slots of later windows fall on."""
    robot = Robot(server, "seldom", score_hz=10)
    assert (robot.welcome["stride"], robot.welcome["score_hz"]) == (3, 10.0)
    for frame in range(60):
        robot.show(frame / FPS, robots.states[0][frame], robots.images[0][frame])
    replies = [robot.hear() for _ in range(20)]
    check_scores(robots, 0, replies, range(0, 60, 3))
    curve = robot.close()
    assert (curve["num_received"], curve["num_scored"], curve["num_skipped"]) == (60, 20, 40)


def test_times_place_the_slots_when_frames_are_dropped(server, robots):
    robot = Robot(server, "holes")
    kept = [frame for frame in range(50) if frame % 7 != 3]
    replies = robot.live_through(robots, 0, kept)
    off = {reply["frame_index"]: reply["slots_off_s"] for reply in replies}
    assert off[2] == 0.0
    assert off[9] == pytest.approx(1 / FPS, abs=1e-6)  # frame 3, six before, was dropped
    assert all(reply["missing"] == [] and reply["sparse"]["progress"] is not None for reply in replies)
    exact = [reply for reply in replies if reply["slots_off_s"] == 0]
    check_scores(robots, 0, exact, [reply["frame_index"] for reply in exact])


def test_a_slot_without_a_frame_near_it_means_no_score(server, robots):
    robot = Robot(server, "gap")
    robot.live_through(robots, 0, range(10))
    (reply,) = robot.live_through(robots, 0, [30])
    assert reply["sparse"] == {"progress": None, "stage": None, "confidence": None, "probabilities": None}
    assert reply["missing"] == pytest.approx([-2 * GAP / FPS, -GAP / FPS])
    assert robot.close()["columns"]["progress_sparse"][-1] is None


def test_what_is_wrong_with_one_frame_is_said_and_concerns_nobody_else(server, robots):
    state, image = robots.states[0][0], robots.images[0][0]
    robot, other = Robot(server, "clumsy"), Robot(server, "careful")
    robot.show(0.0, state, image)
    assert robot.hear()["type"] == "score"
    wrong = [
        (frame_message(0.1, state[:5], image), "state_size", "state has 5 numbers, the session said 6"),
        (frame_message(0.2, state * np.nan, image), "not_finite", "state: number 0 is not finite"),
        (frame_message(0.0, state, image), "time_order", "time 0 s is not after 0 s"),
        (frame_message(0.3, state, b"\xff\xd8 no jpeg", kind=1), "bad_image", "not a readable JPEG image (cannot be"),
        (
            frame_message(0.4, state, jpeg(image)[:500], kind=1),
            "bad_image",
            "not a readable JPEG image (Truncated",
        ),
        (frame_message(0.5, state, image)[:-7], "bad_message", "an image of 150528 bytes, of which 150521 came"),
        (frame_message(0.6, state, b"", kind=7), "bad_message", "no image format 7"),
        (b"\x00" * 3, "bad_message", "a frame has a header of 16 bytes, this message has 3"),
        (b"\x09" + b"\x00" * 60, "bad_message", "not a frame of protocol 1 (version 9, flags 0)"),
    ]
    for message, code, text in wrong:
        robot.socket.send(message)
        reply = robot.hear()
        assert (reply["type"], reply["code"], reply["fatal"]) == ("error", code, False)
        assert reply["message"].startswith(text)
    huge = struct.pack("<BBBxId", 1, 0, 1, 6, 0.7) + state.tobytes() + struct.pack("<BxHHxxI", 0, 60000, 60000, 4)
    robot.socket.send(huge + b"1234")
    assert robot.hear()["message"] == "60000 x 60000 pixels are more than 2097152; send smaller images"
    robot.show(20 / FPS, state, image)
    assert robot.hear()["type"] == "score"
    check_scores(robots, 1, other.live_through(robots, 1, range(15)), range(15))


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        ("no json", "protocol", "the message is not JSON"),
        ("[1]", "protocol", "the message is not a JSON object"),
        (json.dumps({"type": "close"}), "hello", "the first message must be a \"hello\", not 'close'"),
        (json.dumps(hello(protocol=2)), "protocol", "this server speaks protocol 1, the client asks for 2"),
        (json.dumps(hello(state_dim=7)), "state_size", "state_dim is 7, the model was trained on 6"),
        (json.dumps(hello(fps=0)), "hello", "fps must be within 0.001 and 1000, not 0"),
        (json.dumps(hello(heads=["thick"])), "hello", "heads must be a list of sparse and dense"),
        (json.dumps(hello(task=None)), "hello", "task must be a text of at most 1000 characters"),
        (json.dumps(hello(resume={"first_time_s": 2})), "hello", "resume.last_time_s must be a number, not None"),
        (b"\x01\x00", "hello", "the first message must be a hello, as text"),
    ],
)
def test_a_hello_that_cannot_be_is_refused_and_the_socket_closed(server, message, code, text):
    with open_socket(server, "stranger") as socket:
        socket.send(message)
        reply = json.loads(socket.recv(timeout=60))
        assert (reply["type"], reply["code"], reply["message"], reply["fatal"]) == ("error", code, text, True)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=60)
        assert closed.value.rcvd.code == 1008


def test_without_the_token_there_is_nothing_to_see(server):
    for token in (None, "", "a-token-of-the-tests-7f3b", "\u00fcml\u00e4ut".encode().decode("latin-1")):
        for path, body in (("/v1/model", None), ("/v1/score", b"abc")):
            status, reply = call(server, path, body, token)
            assert (status, reply["error"]["code"]) == (401, "token")
        with pytest.raises(InvalidStatus) as refused, open_socket(server, "thief", token):
            pass
        assert refused.value.response.status_code == 403
    assert call(server, "/healthz", token=None) == (200, {"status": "ok"})
    assert call(server, "/readyz", token=None) == (200, {"status": "ready"})
    assert call(server, "/docs", token=None)[0] == 404  # would load scripts from elsewhere


def test_pages_of_other_origins_may_not_call(server):
    status, reply = call(server, "/v1/model", Origin="http://evil.example")
    assert (status, reply["error"]["code"]) == (403, "origin")
    assert call(server, "/v1/model", Origin=f"http://{server.address}")[0] == 200
    with pytest.raises(InvalidStatus), open_socket(server, "page", Origin="http://evil.example"):
        pass


def test_the_model_is_described(server, robots):
    status, model = call(server, "/v1/model")
    assert status == 200
    assert model["model"] == robots.model
    assert model["heads"]["sparse"] == ["reach", "push", "retract"]
    assert model["window"] == {"kind": "centered", "num_slots": 9, "frame_gap": GAP, "readout_slot": 4}
    assert (model["encoder"], model["fps"], model["state_dim"]) == ("efficientnet-lite0", FPS, 6)
    paths = call(server, "/openapi.json")[1]["paths"]
    assert {"/healthz", "/readyz", "/v1/model", "/v1/score", "/"} <= set(paths)


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 400, "the clip is empty"),
        (b"\x01\x00", 400, "the clip ends inside a message's length"),
        (struct.pack("<I", 2**31) + b"x", 413, "a message of the clip says it has 2147483648 bytes"),
        (clip_body(b"{}"), 400, 'the first message must be a "hello", not None'),
        (clip_body(json.dumps(hello()).encode(), b"12"), 400, "a frame has a header of 16 bytes, this message has 2"),
    ],
)
def test_a_clip_that_cannot_be_is_refused(server, body, status, text):
    answer, reply = call(server, "/v1/score", body)
    assert answer == status
    assert reply["error"]["message"].startswith(text)


def test_a_second_socket_takes_a_session_over_and_hears_what_the_first_missed(server, robots):
    first = Robot(server, "twice")
    first.live_through(robots, 0, range(10))
    resume = {"first_time_s": 0.0, "last_time_s": 5 / FPS, "curve": {}}
    second = Robot(server, "twice", resume=resume)
    assert second.welcome["last_time_s"] == pytest.approx(9 / FPS)
    assert second.welcome["replay_times_s"] == []
    check_scores(robots, 0, [second.hear() for _ in range(4)], range(6, 10))
    with pytest.raises(ConnectionClosed) as closed:
        first.hear()
    assert closed.value.rcvd.code == 4409
    check_scores(robots, 0, second.live_through(robots, 0, range(10, 20)), range(10, 20))
    assert second.close()["num_scored"] == 20


def test_a_replica_that_never_saw_the_session_asks_for_what_it_needs(server, robots):
    """A new name stands for a new replica: nobody holds it."""
    known = list(range(30))
    columns = {"time_s": [frame / FPS for frame in known], "frame_index": known, "progress_sparse": [0.1] * 29 + [None]}
    resume = {"first_time_s": 0.0, "last_time_s": 29 / FPS, "started_s": 1_790_000_000.0, "curve": columns}
    robot = Robot(server, "moved", resume=resume)
    assert robot.welcome["started_s"] == 1_790_000_000.0
    asked = [round(time_s * FPS) for time_s in robot.welcome["replay_times_s"]]
    assert asked == list(range(29 - 4 * GAP - GAP // 2, 30))
    for frame in asked:
        robot.show(frame / FPS, robots.states[0][frame], robots.images[0][frame], replayed=True)
    frames = range(30, 60)
    check_scores(robots, 0, robot.live_through(robots, 0, frames), frames)
    robot.show(1.0, robots.states[0][30], robots.images[0][30], replayed=True)
    assert robot.hear()["message"] == "a replayed frame that was not asked for"
    curve = robot.close()
    assert curve["columns"]["frame_index"] == [*known, *frames]
    assert curve["columns"]["progress_sparse"][:30] == [0.1] * 29 + [None]
