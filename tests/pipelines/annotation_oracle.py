"""An OpenAI-compatible server on this machine that knows the truth about episodes, and misbehaves when told to."""

import contextlib
import json
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from sarm_ray.core.subtasks import clock

MODEL = "oracle"
LATE_S = 3.0

Truth = dict[tuple[str, int], list[tuple[str, float, float]]]


class Asked(NamedTuple):
    """One question that came: what about, its turns as they came, and whether it had the key."""

    kind: str
    episode: int
    turns: list[dict]
    authorization: str


class Oracle:
    """Answers from the truth, with its boundaries moved by up to `noise_s`, the same for the same episode.

    Args:
        truth: (kind, episode) -> (name, start, end) in seconds.
        labels: kind -> its labels, by which a question's kind is told.
        moods: (kind, episode) -> how it behaves at each asking, in turn; afterwards, and without any, well. See `_answer`.
        key: that it wants to hear, or None.
        noise_s: of the boundaries. delay_s: before each answer. host: an address of this machine.
    """

    def __init__(
        self,
        truth: Truth,
        labels: dict[str, Sequence[str]],
        moods: dict[tuple[str, int], list[str]] | None = None,
        key: str | None = None,
        noise_s: float = 0.0,
        delay_s: float = 0.0,
        host: str = "127.0.0.1",
    ):
        self.truth, self.labels, self.key, self.noise_s, self.delay_s = truth, labels, key, noise_s, delay_s
        self.moods = {case: list(moods) for case, moods in (moods or {}).items()}
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        oracle = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                oracle.answer(self, None)

            def do_POST(self):
                oracle.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer((host, 0), Handler)
        self.url = f"http://{host}:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def count(self, kind: str, episode: int) -> int:
        """How often it was asked about an episode."""
        return sum((each.kind, each.episode) == (kind, episode) for each in self.asked)

    def answer(self, request: BaseHTTPRequestHandler, body: dict | None) -> None:
        heard = request.headers.get("Authorization", "")
        if self.key is not None and heard != f"Bearer {self.key}":
            _send(request, 401, {"error": {"message": f"Incorrect API key provided: {heard}"}})
        elif body is None:
            _send(request, 200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        else:
            self._answer(request, body, heard)

    def _answer(self, request: BaseHTTPRequestHandler, body: dict, heard: str) -> None:
        turns = body["messages"]
        kind = next(
            kind for kind, labels in self.labels.items() if f"1. {labels[0]}\n2. {labels[1]}" in turns[0]["content"]
        )
        episode = int(re.search(r"^Episode (\d+) of", turns[1]["content"][-1]["text"])[1])
        with self.lock:
            self.asked.append(Asked(kind, episode, turns, heard))
            moods = self.moods.get((kind, episode))
            mood = moods.pop(0) if moods else "good"
        time.sleep(self.delay_s)
        right = json.dumps({"subtasks": self._subtasks(kind, episode)})
        if mood == "late":
            time.sleep(LATE_S)
        if mood == "busy":
            _send(request, 429, {"error": {"message": "slow down"}}, {"Retry-After": "0"})
        elif mood == "broken":
            _send(request, 500, {"error": {"message": "out of memory"}})
        elif mood == "no schema" and "response_format" in body:
            _send(request, 400, {"error": {"message": "response_format json_schema is not supported"}})
        elif mood == "refused":
            _send(request, 200, _completion(None, refusal=f"I will not, {heard}"))
        elif mood == "truncated":
            _send(request, 200, _completion(right[: len(right) // 2], finish_reason="length"))
        elif mood == "hung up":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            request.close_connection = True
        elif mood == "malformed":
            _send(request, 200, _completion("It begins with a reach, I think."))
        elif mood == "wrong":
            _send(request, 200, _completion(right.replace("00:00.0", "00:09.9", 1)))
        elif mood == "equal":
            _send(request, 200, _completion(json.dumps({"subtasks": self._equal(kind, episode)})))
        else:
            assert mood in ("good", "late", "no schema"), mood
            _send(request, 200, _completion(right))

    def _subtasks(self, kind: str, episode: int) -> list[dict]:
        truth = self.truth[(kind, episode)]
        rng = random.Random(f"{kind} {episode}")
        durations = [end - start for _, start, end in truth]
        room = [min(own, before) / 4 for own, before in zip(durations, [0.0, *durations], strict=False)]
        moves = [rng.uniform(-1, 1) * min(self.noise_s, each) if each >= 0.2 else 0.0 for each in room]
        starts = [start + move for (_, start, _), move in zip(truth, moves, strict=True)]
        starts[0] = 0.0
        ends = [*starts[1:], truth[-1][2]]
        return [{"name": name, "start": clock(start), "end": clock(end)}
                for (name, _, _), start, end in zip(truth, starts, ends, strict=True)]  # fmt: skip

    def _equal(self, kind: str, episode: int) -> list[dict]:
        truth = self.truth[(kind, episode)]
        step = truth[-1][2] / len(truth)
        return [
            {"name": name, "start": f"{n * step:.3f}", "end": f"{(n + 1) * step:.3f}"}
            for n, (name, _, _) in enumerate(truth)
        ]


@contextlib.contextmanager
def oracle_of(*arguments, **options) -> Iterator[Oracle]:
    oracle = Oracle(*arguments, **options)
    try:
        yield oracle
    finally:
        oracle.server.shutdown()
        oracle.server.server_close()


def _completion(content: str | None, refusal: str | None = None, finish_reason: str = "stop") -> dict:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }  # fmt: skip


def _send(request: BaseHTTPRequestHandler, status: int, value: dict, headers: dict[str, str] | None = None) -> None:
    content = json.dumps(value).encode()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it was killed while it waited
        request.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **(headers or {}),
        }.items():
            request.send_header(name, text)
        request.end_headers()
        request.wfile.write(content)
