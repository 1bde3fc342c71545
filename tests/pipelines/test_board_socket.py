"""The live page's socket: who may listen, what it survives, and that the board's messages reach a viewer whole."""

import asyncio
import json

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.live_page import page_server, rollout

WATCH = {"type": "watch", "token": None}


@pytest.fixture(scope="module")
def server():
    with page_server() as server:
        server.push(rollout("arm-1", 0.1, 0.2, None, 0.4))
        yield server


def url(server) -> str:
    return f"ws://127.0.0.1:{server.port}/v1/board"


async def first_answer(server, *messages: str | bytes) -> tuple[dict, int | None]:
    """What comes first, and the close code where the server closed right after."""
    async with connect(url(server)) as viewer:
        for message in messages:
            await viewer.send(message)
        answer = json.loads(await viewer.recv())
        try:
            await asyncio.wait_for(viewer.recv(), 5)
        except ConnectionClosed as closed:
            return answer, closed.rcvd.code
        return answer, None


def test_a_viewer_gets_everything_and_then_what_is_new(server):
    async def view() -> None:
        async with connect(url(server)) as viewer:
            await viewer.send(json.dumps(WATCH))
            first = json.loads(await viewer.recv())
            assert (first["type"], first["full"]) == ("board", True)
            (session,) = first["sessions"]
            assert session["points"] == [[0.0, 0.1, 0], [0.5, 0.2, 0], [1.0, None, 0], [1.5, 0.4, 1]]
            assert session["mark"] == "running"
            assert session["probabilities"][1] == 0.93
            await viewer.send("it is not listened to")
            server.push(rollout("arm-1", 0.5, first=4))
            async for text in viewer:
                message = json.loads(text)
                assert not message["full"]
                if message["sessions"]:
                    assert message["sessions"][0]["since"] == 4
                    assert message["sessions"][0]["points"] == [[2.0, 0.5, 1]]
                    break

    asyncio.run(view())


@pytest.mark.parametrize(
    "message",
    [
        "",
        "watch",
        "[]",
        "null",
        "{}",
        '{"type":"watch","token":7}',
        '{"type":"watch","token":["sesame"]}',
        '{"type":"hello","token":null}',
        "[" * 8000,
        json.dumps({**WATCH, "more": "x" * 10_000}),
        b"\x01\x00binary",
    ],
)
def test_a_wrong_first_message_gets_nothing(server, message):
    answer, code = asyncio.run(first_answer(server, message))
    assert (answer["type"], answer["code"], answer["fatal"]) == ("error", "hello", True)
    assert code == 1008


def test_without_the_token_nothing_is_told():
    with page_server(token="sesame") as server:
        server.push(rollout("arm-1", 0.1))
        for token in (None, "", "guess", "sesame "):
            answer, code = asyncio.run(first_answer(server, json.dumps({"type": "watch", "token": token})))
            assert (answer["code"], code) == ("token", 1008)
            assert "arm-1" not in json.dumps(answer)
        answer, code = asyncio.run(first_answer(server, json.dumps({"type": "watch", "token": "sesame"})))
        assert [session["id"] for session in answer["sessions"]] == ["arm-1"]
        assert code is None


def test_viewers_that_leave_leave_nothing_behind(server):
    async def come_and_go() -> None:
        for n in range(30):
            viewer = await connect(url(server))
            if n % 3:
                await viewer.send(json.dumps(WATCH))
            if n % 3 == 2:
                await viewer.recv()
            viewer.transport.abort()

    asyncio.run(come_and_go())
    answer, _ = asyncio.run(first_answer(server, json.dumps(WATCH)))
    assert answer["full"]
    for _ in range(300):
        if not server.server.server_state.connections:
            break
        asyncio.run(asyncio.sleep(0.1))
    assert not server.server.server_state.connections
    assert len(server.server.server_state.tasks) == 0
