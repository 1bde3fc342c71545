"""10,000 messages that no client of ours sends, over sockets and HTTP: the server lives, healthy robots notice nothing."""

import io
import json
import random
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from sarm_ray.data.images import jpeg
from tests.pipelines.live import (
    LENGTHS,
    TOKEN,
    Robot,
    at_once,
    frame_message,
    hello,
    live_server,
    open_socket,
)

NUM_MESSAGES = 10_000
GROWTH_BYTES = 60 * 2**20  # of a process; its arenas settle in the warm-up
# sessions that a vandal leaves behind must not fill the server while it goes on
LIMITS = {"max_image_pixels": 2**17, "max_sessions": 5000, "idle_s": 5.0}
LIVELY = settings(
    max_examples=150, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def server(robots, tmp_path_factory):
    with live_server(robots.model, tmp_path_factory.mktemp("server"), **LIMITS) as running:
        yield running


def memory() -> dict[str, int]:
    """Resident bytes of the server's processes, by name."""
    sizes = {}
    for process in psutil.Process().children(recursive=True):
        try:
            name = process.cmdline()[0]
        except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
            continue
        if name.startswith(("ray::ServeReplica", "ray::ProxyActor")):
            sizes[f"{name.partition('.')[0]} {process.pid}"] = process.memory_info().rss  # a dot: what it is doing
    return sizes


def wrong_frames(robots) -> list[tuple[str, Callable[[float], bytes]]]:
    """Frames that each have one thing wrong, made for a time: the code of their refusal, and the message."""
    state, image = robots.states[0][0], robots.images[0][0]
    picture = jpeg(image)

    def frame(data=image, **how) -> Callable[[float], bytes]:
        own = how.pop("state", state)
        return lambda time_s: frame_message(time_s, own, data, **how)

    def spoilt(change: Callable[[bytes], bytes]) -> Callable[[float], bytes]:
        return lambda time_s: change(frame_message(time_s, state, image))

    def thin(height: int, width: int) -> np.ndarray:
        return np.zeros((height, width, 3), dtype=np.uint8)

    return [
        ("bad_message", lambda _: b""),
        ("bad_message", lambda _: b"\x00"),
        ("bad_message", spoilt(lambda good: good[:15])),
        ("bad_message", spoilt(lambda good: good[:16])),
        ("bad_message", spoilt(lambda good: good[:-1])),
        ("bad_message", spoilt(lambda good: good + b"\x00")),
        ("bad_message", spoilt(lambda good: b"\x02" + good[1:])),
        ("bad_message", spoilt(lambda good: good[:1] + b"\xff" + good[2:])),
        ("bad_message", spoilt(lambda good: good[:2] + b"\x00" + good[3:])),
        ("bad_message", spoilt(lambda good: good[:2] + b"\xff" + good[3:])),
        ("state_size", spoilt(lambda good: good[:4] + b"\xff\xff\xff\xff" + good[8:])),
        ("not_finite", lambda _: frame_message(float("nan"), state, image)),
        ("not_finite", lambda _: frame_message(float("inf"), state, image)),
        ("time_order", lambda _: frame_message(-1e308, state, image)),
        ("state_size", frame(state=state[:3])),
        ("not_finite", frame(state=np.full(6, np.inf))),
        ("not_finite", frame(state=np.full(6, 1e20))),
        ("bad_image", frame(picture, kind=2)),
        ("bad_image", frame(picture[:-300], kind=1)),
        ("bad_image", frame(picture[:20], kind=1)),
        ("bad_image", frame(b"", kind=1)),
        ("bad_image", frame(b"\x89PNG\r\n\x1a\n" + bytes(64), kind=2)),
        ("image_too_large", frame(png(60_000, 60_000), kind=2)),
        ("bad_image", frame(png(2_000_000, 1), kind=2)),
        ("bad_image", frame(png(64, 64, tail=chunk(b"iCCP", b"")), kind=2)),
        ("bad_image", frame(scan_bomb(), kind=1)),
        ("bad_image", frame(thin(1, 60_000))),
        ("bad_image", frame(thin(60_000, 1))),
        ("bad_message", frame(picture, kind=200)),
        ("image_too_large", frame(thin(400, 400))),
        ("bad_message", frame(picture, kind=1, replayed=True)),
    ]


LAST_WORDS = [
    "",
    "no json",
    "[" * 10_000,
    "\x00",
    '{"type": NaN}',
    json.dumps({"type": "frame"}),
    json.dumps({"type": "close", "outcome": "glory"}),
    json.dumps({"type": ["close"]}),
    json.dumps(hello()),
]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, tail: bytes = b"") -> bytes:
    """A few bytes that promise an image."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(height * (3 * width + 1)) if width * height < 10_000 else bytes(999)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + tail + chunk(b"IEND", b"")


def scan_bomb() -> bytes:
    """A progressive JPEG whose last scan comes a thousand times: each costs a pass over the picture."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((224, 224, 3), dtype=np.uint8)).save(stream, "jpeg", progressive=True)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 1000 + data[-2:]


class Vandal:
    """A client that means no good: it says hello again where the server hangs up."""

    def __init__(self, server, name: str):
        self.server, self.name, self.num_said, self.num_sessions = server, name, 0, 0
        self.socket, self.time_s = None, 0.0

    def say(self, message: bytes | str) -> dict:
        """Say something wrong: what the server answers."""
        if self.socket is None:
            self.num_sessions += 1
            self.socket = open_socket(self.server, f"{self.name}-{self.num_sessions}")
            self.socket.send(json.dumps(hello()))
            assert json.loads(self.socket.recv(timeout=60))["type"] == "welcome"
        self.num_said += 1
        self.socket.send(message)
        reply = json.loads(self.socket.recv(timeout=60))
        if reply.get("fatal"):
            self.leave()
        return reply

    def frame(self, make: Callable[[float], bytes]) -> dict:
        self.time_s += 0.05
        return self.say(make(self.time_s))

    def leave(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket, self.time_s = None, 0.0


def post(server, body: bytes) -> int:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{server.address}/v1/score", body, headers)
        ) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        status, said = error.code, error.read()
    assert json.loads(said)["error"]["message"]
    return status


def by_hand(server, robots, name: str, count: int) -> int:
    """Wrong frames and wrong words, each answered as it must be: how many were said."""
    vandal, wrong, good = Vandal(server, name), wrong_frames(robots), robots.images[0][0]
    while vandal.num_said < count:
        # a frame that is taken, so that the session has a time to be out of order with
        assert vandal.frame(lambda time_s: frame_message(time_s, robots.states[0][0], good))["type"] == "score"
        for code, make in wrong:
            reply = vandal.frame(make)
            assert (reply["type"], reply["code"], reply["fatal"]) == ("error", code, False), reply
        for word in LAST_WORDS:
            assert vandal.say(word)["type"] == "error"
            vandal.leave()
    return vandal.num_said


def by_dice(server, robots, name: str, count: int) -> int:
    """Frames with a few bytes changed: an error or a score."""
    rng, state, picture = random.Random(0), robots.states[0][0], jpeg(robots.images[0][0])
    vandal, num_errors = Vandal(server, name), 0

    def mutated(time_s: float) -> bytes:
        message = bytearray(frame_message(time_s, state, picture, kind=1))
        for _ in range(rng.randint(1, 4)):
            # not the time, which would end the session or go far ahead
            place = rng.randrange(16, 56) if rng.random() < 0.3 else rng.randrange(52, len(message))
            message[place] = rng.randrange(256)
        return bytes(message[: rng.randrange(1, len(message))]) if rng.random() < 0.3 else bytes(message)

    while vandal.num_said < count:
        num_errors += vandal.frame(mutated)["type"] == "error"
    vandal.leave()
    assert count / 4 < num_errors < count
    return vandal.num_said


def test_ten_thousand_malformed_messages_disturb_nobody(server, robots):
    by_hand(server, robots, "warm", 200)
    before = memory()
    assert len(before) == 4  # ingress, encoder, scorer, proxy
    rng = random.Random(0)

    def healthy(name: str, episode: int) -> list[list[dict]]:
        rounds = []
        for number in range(6):
            robot = Robot(server, f"{name}-{number}")
            rounds.append(robot.live_through(robots, episode, range(LENGTHS[episode])))
            robot.close()
        return rounds

    rounds, *said = at_once(
        lambda: healthy("healthy", 1),
        lambda: by_hand(server, robots, "hand-1", NUM_MESSAGES * 3 // 10),
        lambda: by_hand(server, robots, "hand-2", NUM_MESSAGES * 3 // 10),
        lambda: by_dice(server, robots, "dice", NUM_MESSAGES * 3 // 10),
        lambda: sum(post(server, rng.randbytes(rng.randrange(200))) >= 400 for _ in range(NUM_MESSAGES // 10)),
    )
    assert sum(said) >= NUM_MESSAGES
    for replies in rounds:
        for head in ("sparse", "dense"):
            values = [reply[head]["progress"] for reply in replies]
            np.testing.assert_allclose(values, robots.expected[head][1], rtol=0, atol=1e-5)
    after = memory()
    assert after.keys() == before.keys()  # nobody died
    for name, size in after.items():
        assert size - before[name] < GROWTH_BYTES, name


@LIVELY
@given(
    text=st.text(max_size=50) | st.recursive(st.none() | st.floats() | st.text(max_size=9), st.lists).map(json.dumps)
)
def test_any_first_word_is_answered(server, text):
    with open_socket(server, "first") as socket:
        socket.send(text)
        reply = json.loads(socket.recv(timeout=60))
        assert (reply["type"], reply["fatal"]) == ("error", True)


@LIVELY
@given(body=st.binary(max_size=300))
def test_any_clip_is_answered(server, body):
    assert post(server, body) in (400, 413)


def test_the_server_is_well_after_all_this(server, robots):
    robot = Robot(server, "after")
    replies = robot.live_through(robots, 2, range(LENGTHS[2]))
    values = [reply["sparse"]["progress"] for reply in replies]
    np.testing.assert_allclose(values, robots.expected["sparse"][2], rtol=0, atol=1e-5)
    assert robot.close()["num_scored"] == LENGTHS[2]
