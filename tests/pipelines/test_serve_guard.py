"""Who may talk to a live server, by the headers alone."""

import hashlib
import hmac
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.core.live_protocol import Refusal
from sarm_ray.errors import ConfigError
from sarm_ray.pipelines.serving.guard import Guard, read_token

TOKEN = "correct-horse-battery-staple"
DIGEST = hashlib.sha256(TOKEN.encode()).digest()
LOCKED, OPEN, ANYBODY = Guard(DIGEST), Guard(), Guard(any_host=True)


def code(guard: Guard, **headers: str) -> str | None:
    """What a request is refused for; None where it may come in."""
    try:
        guard.check({"host": "127.0.0.1:8000", **headers})
    except Refusal as refusal:
        return refusal.code
    return None


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        (f"Bearer {TOKEN}", None),
        (f"bearer  {TOKEN} ", None),
        (TOKEN, "token"),
        (f"Basic {TOKEN}", "token"),
        ("Bearer", "token"),
        ("Bearer ", "token"),
        (f"Bearer {TOKEN[:-1]}", "token"),
        (f"Bearer {TOKEN}x", "token"),
        (f"Bearer {TOKEN.upper()}", "token"),
        (f"Bearer {TOKEN} {TOKEN}", "token"),
        ("Bearer \udc80\u20ac", "token"),
        (f"Bearer {DIGEST.hex()}", "token"),
    ],
)
def test_the_token_and_nothing_else(given, refused):
    assert code(LOCKED, authorization=given) == refused
    assert code(OPEN, authorization=given) is None


def test_no_token_at_all():
    assert code(LOCKED) == "token"
    assert [LOCKED.knows(TOKEN), LOCKED.knows(None), LOCKED.knows(""), OPEN.knows(None)] == [True, False, False, True]


@given(st.text(st.characters(codec="utf-8")))
def test_no_other_text_is_the_token(text):
    assert LOCKED.knows(text) is (text == TOKEN)


def test_tokens_are_compared_in_constant_time(monkeypatch):
    """By their digests, which also have one length, whatever is given."""
    compared, original = [], hmac.compare_digest

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((first, second))
        return original(first, second)

    monkeypatch.setattr("sarm_ray.pipelines.serving.guard.hmac.compare_digest", compare)
    for text in (TOKEN, "x", TOKEN[:5], "y" * 1000, ""):
        assert LOCKED.knows(text) is (text == TOKEN)
    assert [second for _, second in compared] == [DIGEST] * 5
    assert {len(first) for first, _ in compared} == {32}


def test_what_is_sent_to_replicas_holds_no_token():
    assert TOKEN.encode() not in pickle.dumps(LOCKED)
    assert TOKEN not in repr(LOCKED)


@pytest.mark.parametrize(
    ("origin", "host", "refused"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", None),
        ("https://127.0.0.1:8000", "127.0.0.1:8000", None),  # behind something that does TLS
        ("http://[::1]:8000", "[::1]:8000", None),
        ("http://127.0.0.1:8001", "127.0.0.1:8000", "origin"),
        ("http://localhost:8000", "127.0.0.1:8000", "origin"),
        ("http://evil.example", "127.0.0.1:8000", "origin"),
        ("http://evil.example/127.0.0.1:8000", "127.0.0.1:8000", "origin"),
        ("http://127.0.0.1:8000.evil.example", "127.0.0.1:8000", "origin"),
        ("null", "127.0.0.1:8000", "origin"),
        ("", "127.0.0.1:8000", "origin"),
    ],
)
def test_pages_of_other_origins_stay_out(origin, host, refused):
    """A token does not help: the browser of whoever has it may be on a strange page."""
    assert code(OPEN, origin=origin, host=host) == refused
    assert code(ANYBODY, origin=origin, host=host) == refused
    assert code(LOCKED, origin=origin, host=host, authorization=f"Bearer {TOKEN}") == refused


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "[::1]", "192.168.0.7:80", "localhost:1"]
)
def test_a_server_without_a_token_answers_to_localhost_and_addresses(host):
    assert code(OPEN, host=host) is None
    assert code(OPEN, host=host, origin=f"http://{host}") is None


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "2130706433", "", "["],
)
def test_a_name_that_somebody_made_mean_this_machine_is_refused(host):
    """DNS rebinding: page and server then have one origin."""
    assert code(OPEN, host=host) == "origin"
    assert code(OPEN, host=host, origin=f"http://{host}") == "origin"
    assert code(ANYBODY, host=host) is None  # --insecure: on purpose
    assert code(LOCKED, host=host, authorization=f"Bearer {TOKEN}") is None  # no page knows the token


def test_the_first_line_of_the_file_is_the_token(tmp_path):
    file = tmp_path / "token"
    file.write_text(f" {TOKEN} \nnotes\n")
    file.chmod(0o640)  # a group may read it: Kubernetes mounts secrets so
    assert read_token(str(file)) == DIGEST


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe\x00", "not text"),
        ("\ufeffcorrect-horse-battery".encode(), "letters, digits and signs of ASCII"),
        (b"correct horse battery staple", "and no spaces"),
        ("k\u00e4rlek-\u00e4r-allt-vi-har".encode(), "letters, digits and signs of ASCII"),
    ],
)
def test_a_token_that_no_header_carries(tmp_path, content, words):
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=words):
        read_token(str(file))


def test_a_folder_is_no_token(tmp_path):
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigError, match="Is a directory"):
        read_token(str(tmp_path))
