"""10,000 messages that no client of ours sends, over sockets and HTTP: the server lives, healthy robots notice nothing."""

import json
import random
import struct
import urllib.error
import urllib.request

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from sarm_ray.data.images import jpeg
from tests.pipelines.live import (
    LENGTHS,
    TOKEN,
    Robot,
    at_once,
    frame_message,
    hello,
    live_server,
    make_robots,
    open_socket,
)

NUM_MESSAGES = 10_000
GROWTH_BYTES = 60 * 2**20  # of a process; its arenas settle in the warm-up
LIVELY = settings(
    max_examples=150, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def robots(tmp_path_factory, encoder):
    return make_robots(tmp_path_factory.mktemp("robots"), encoder)


@pytest.fixture(scope="module")
def server(robots, tmp_path_factory):
    with live_server(robots.model, tmp_path_factory.mktemp("server"), max_image_pixels=2**17) as running:
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
            sizes[f"{name} {process.pid}"] = process.memory_info().rss
    return sizes


def hand_made(robots) -> list[bytes | str]:
    """Messages that each have one thing wrong."""
    state, image = robots.states[0][0], robots.images[0][0]
    good, picture = frame_message(1.0, state, image), jpeg(image)
    return [
        b"",
        b"\x00",
        good[:15],
        good[:16],
        good[:-1],
        good + b"\x00",
        b"\x02" + good[1:],
        good[:1] + b"\xff" + good[2:],
        good[:2] + b"\x00" + good[3:],
        good[:2] + b"\xff" + good[3:],
        good[:4] + b"\xff\xff\xff\xff" + good[8:],
        frame_message(float("nan"), state, image),
        frame_message(float("inf"), state, image),
        frame_message(-1e308, state, image),
        frame_message(1.0, state[:3], image),
        frame_message(1.0, np.full(6, np.inf), image),
        frame_message(1.0, state, picture, kind=2),
        frame_message(1.0, state, picture[:-300], kind=1),
        frame_message(1.0, state, picture[:20], kind=1),
        frame_message(1.0, state, b"", kind=1),
        frame_message(1.0, state, b"\x89PNG\r\n\x1a\n" + bytes(64), kind=2),
        frame_message(1.0, state, huge_png(60_000, 60_000), kind=2),
        frame_message(1.0, state, picture, kind=200),
        frame_message(1.0, state, np.zeros((400, 400, 3), dtype=np.uint8)),
        frame_message(1.0, state, picture, kind=1, replayed=True),
        "",
        "no json",
        "[" * 10_000,
        "\x00",
        json.dumps({"type": "frame"}),
        json.dumps({"type": "close", "outcome": "glory"}),
        json.dumps(hello()),
        json.dumps({"type": ["close"]}),
        '{"type": NaN}',
    ]


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that promise gigabytes."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def throw(server, name: str, messages: list[bytes | str]) -> int:
    """Messages at a session that has said hello, a new one where the server hangs up: how many were thrown."""
    thrown = 0
    while thrown < len(messages):
        with open_socket(server, f"{name}-{thrown}") as socket:
            socket.send(json.dumps(hello()))
            json.loads(socket.recv(timeout=60))
            try:
                while thrown < len(messages):
                    socket.send(messages[thrown])
                    thrown += 1
                    if isinstance(messages[thrown - 1], str):
                        json.loads(socket.recv(timeout=60))
            except ConnectionClosed:
                continue
    return thrown


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


def test_ten_thousand_malformed_messages_disturb_nobody(server, robots):
    wrong = hand_made(robots)
    throw(server, "warm", wrong * 8)
    before = memory()
    assert len(before) == 4  # ingress, encoder, scorer, proxy
    rng = random.Random(0)
    good = frame_message(1.0, robots.states[0][0], jpeg(robots.images[0][0]), kind=1)

    def mutated() -> bytes:
        message = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            message[rng.randrange(len(message) if rng.random() < 0.3 else 60)] = rng.randrange(256)
        return bytes(message[: rng.randrange(len(message))]) if rng.random() < 0.3 else bytes(message)

    half = NUM_MESSAGES // 2
    by_hand = [wrong[count % len(wrong)] for count in range(half)]
    by_dice = [mutated() for _ in range(half - 500)]

    def healthy(name: str, episode: int) -> list[dict]:
        replies = []
        for round_number in range(4):
            robot = Robot(server, f"{name}-{round_number}")
            replies.append(robot.live_through(robots, episode, range(LENGTHS[episode])))
            robot.close()
        return replies

    rounds, *thrown = at_once(
        lambda: healthy("healthy", 1),
        lambda: throw(server, "hand", by_hand),
        lambda: throw(server, "dice", by_dice),
        lambda: sum(post(server, rng.randbytes(rng.randrange(200))) >= 400 for _ in range(500)),
    )
    assert sum(thrown) == NUM_MESSAGES
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
