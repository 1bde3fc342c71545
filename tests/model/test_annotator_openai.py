"""An endpoint's stranger answers: each is a failure of its question, in words, and none shows the key."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from sarm_ray.config.annotate import AnnotateConfig
from sarm_ray.errors import AnnotatorError, ConfigError, NoAnswerError
from sarm_ray.model.annotator import MarkedFrames, Message, Reply
from sarm_ray.model.annotator_openai import Endpoint, OpenAIAnnotator, check_endpoint

KEY = "sk-very-secret-0123456789"
FRAMES = MarkedFrames(np.zeros((2, 32, 32, 3), dtype=np.uint8), np.array([0, 12]), 10.0, 13)
QUESTION = [Message("system", "be brief"), Message("user", "when?")]


@contextlib.contextmanager
def answering(*answers: tuple[int, str | bytes]) -> Iterator[tuple[str, list[dict]]]:
    """An endpoint that gives these answers in turn, the last one for ever; its URL, and what it was asked."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer()

        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer()

        def answer(self):
            status, content = answers[min(max(len(asked) - 1, 0), len(answers) - 1)]
            content = content.encode() if isinstance(content, str) else content
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def completion(**changes) -> str:
    choice = {"index": 0, "message": {"role": "assistant", "content": "soon"}, "finish_reason": "stop", **changes}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})


def ask(url: str) -> Reply:
    return OpenAIAnnotator(Endpoint(url, "m", 5.0, KEY)).reply(QUESTION, FRAMES, {"type": "object"})


def test_frames_go_behind_their_times():
    with answering((200, completion())) as (url, asked):
        assert ask(url) == Reply("soon", 0, 0, False)
    system, user = asked[0]["messages"]
    assert system == {"role": "system", "content": "be brief"}
    assert [part["type"] for part in user["content"]] == ["text", "image_url", "text", "image_url", "text"]
    assert [part["text"] for part in user["content"] if part["type"] == "text"] == ["00:00.0", "00:01.2", "when?"]
    assert user["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    assert asked[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (asked[0]["temperature"], asked[0]["max_tokens"]) == (0.0, 2048)


@pytest.mark.parametrize(
    "body",
    [
        '{"id": "1", "choi',
        "[]",
        "null",
        '"hello"',
        '{"choices": []}',
        '{"choices": null}',
        '{"choices": [null]}',
        completion(message=None),
        completion(message={"role": "assistant", "content": [{"type": "text", "text": "soon"}]}),
        completion(message={"role": "assistant", "content": 7}),
        "<html>welcome</html>",
        b"\xff\xfe",
    ],
)
def test_what_is_no_answer_fails_its_question_alone(body):
    with (
        answering((200, body)) as (url, _),
        pytest.raises(NoAnswerError, match="something else than an answer") as caught,
    ):
        ask(url)
    assert KEY not in str(caught.value)
    assert str(caught.value).isprintable()


def test_lone_surrogates_can_be_written_and_sent():
    with answering((200, completion(message={"role": "assistant", "content": "so\ud800on"}))) as (url, _):
        assert ask(url).text.encode() == b"so?on"


def test_a_refusal_that_quotes_the_key():
    message = {"role": "assistant", "content": None, "refusal": f"not for {KEY}"}
    with answering((200, completion(message=message))) as (url, _), pytest.raises(NoAnswerError) as caught:
        ask(url)
    assert str(caught.value) == "refused: not for ***"


def test_a_model_that_counts_its_tokens_otherwise():
    refusal = json.dumps({"error": {"message": "Unsupported parameter: 'max_tokens'; use 'max_completion_tokens'"}})
    with answering((400, refusal), (200, completion())) as (url, asked):
        assert ask(url).text == "soon"
    assert "max_tokens" not in asked[1]
    assert asked[1]["max_completion_tokens"] == 2048
    assert "temperature" not in asked[1]


def test_money_that_is_spent_ends_the_run():
    body = json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
    with answering((400, body)) as (url, _), pytest.raises(AnnotatorError, match="You exceeded your quota") as caught:
        ask(url)
    assert not isinstance(caught.value, NoAnswerError)


def test_a_web_page_is_no_endpoint():
    with answering((200, "<html>welcome</html>")) as (url, _), pytest.raises(AnnotatorError) as caught:
        check_endpoint(Endpoint(url, "m", 5.0, KEY))
    assert str(caught.value).startswith(f"{url} is no OpenAI-compatible endpoint (")
    assert str(caught.value).endswith("); does it end in /v1?")


@pytest.mark.parametrize("url", ["http://user:pass@host/v1", "http://host/v1?api-key=1"])
def test_secrets_do_not_belong_into_a_url(url):
    with pytest.raises(ConfigError, match="endpoint must hold no password or key"):
        AnnotateConfig(dataset="d", sparse_subtasks="a,b", engine="openai", endpoint=url)
