"""`sarm-ray serve` as its user meets it: a process that says what it does, answers, and ends when told to."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from websockets.exceptions import ConnectionClosed

from sarm_ray.cli import main
from sarm_ray.config.serve import ServeConfig
from sarm_ray.data.rollout_log import read_rollouts
from tests.pipelines.crashes import kill, members_of, said, wait_until
from tests.pipelines.live import Robot, Server, free_port
from tests.pipelines.runs import CLIP_TINY, SARM_TINY


@contextlib.contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    """The command as a process and session of its own, on a Ray of its own; `said` has what it says."""
    with (folder / "said").open("w") as output:
        command = [sys.executable, "-m", "sarm_ray", "serve", *arguments]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=dict(os.environ), start_new_session=True)
    try:
        yield process
    finally:
        kill(process)


def test_a_server_from_its_start_to_sigterm(robots, tmp_path):
    config = ServeConfig(model=robots.model, port=free_port(), record=str(tmp_path / "record"))
    options = ["--model", config.model, "--port", str(config.port), "--precision", "fp32", "--record", config.record]
    with started(tmp_path, *options) as process:
        wait_until(lambda: "ready" in said(tmp_path), process)
        server = Server(config)
        with urllib.request.urlopen(f"http://{server.address}/readyz") as reply:
            assert json.load(reply) == {"status": "ready"}
        robot, vanished = Robot(server, "robot"), Robot(server, "vanished")
        robot.live_through(robots, 0, range(0, 30, 3))
        vanished.live_through(robots, 1, range(0, 15, 3))
        vanished.socket.socket.shutdown(socket.SHUT_RDWR)
        process.send_signal(signal.SIGTERM)
        assert robot.hear() == {"type": "reconnect", "reason": "draining"}
        with pytest.raises(ConnectionClosed) as closed:
            robot.hear()
        assert closed.value.rcvd.code == 1012
        assert process.wait(timeout=120) == 0
        wait_until(lambda: not members_of(process.pid))
    stages = "sparse: reach, push, retract; dense: stage 1, stage 2, stage 3, stage 4"
    assert re.fullmatch(
        f"""\
model     {robots.model} \\({stages}; fp32\\)
encoder   efficientnet-lite0 \\(fp32\\) on cpu
window    centered, 9 frames 6 apart, cut at the newest frame
scores    at most 10 frames a second of each session
replicas  1, each for up to 256 sessions
open to   this machine alone
record    {config.record}
metrics   http://[0-9.]+:[0-9]+/metrics
ready     http://127.0.0.1:{config.port}
stopping: running sessions are told to reconnect; once more to stop at once
(\x1b\\[0m)?""",
        said(tmp_path),
    ), said(tmp_path)
    rollouts = read_rollouts(config.record)
    assert {each.session: (each.ended, len(each.time_s)) for each in rollouts} == {
        "robot": ("drained", 10),
        "vanished": ("drained", 5),
    }


def refused(*arguments: str) -> str:
    """What the command says when it does not start."""
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1, result.output
    return result.output.removeprefix("error: ").strip()


def test_a_port_that_is_taken(robots):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        words = f"cannot listen on 127.0.0.1:{port} (Address already in use); choose --port"
        assert refused("--model", robots.model, "--port", str(port), "--quiet") == words


def test_an_open_door_needs_a_token_or_the_will_to_have_one(robots):
    words = "host 0.0.0.0 can be reached from other machines: give --token-file, or --insecure to let everybody in"
    assert refused("--model", robots.model, "--host", "0.0.0.0") == words


def test_states_without_statistics_are_not_guessed():
    words = f"{SARM_TINY} has no state statistics; name the dataset it was trained on with --dataset"
    assert refused("--model", SARM_TINY, "--encoder", CLIP_TINY) == words


def test_more_replicas_than_there_is_room_for(robots):
    """Serve would wait for ever."""
    words = refused("--model", robots.model, "--num-replicas", "3")
    assert re.fullmatch(r"2 CPU cores, no GPU(, bf16)?: room for 2 replicas, not for 3; choose --num-replicas", words)


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (None, 0, "token file {}: No such file or directory"),
        ("a-token-of-twenty-ch\n", 0o644, "token file {}: every user of this machine can read it; chmod 600 {}"),
        ("short\na-token-of-twenty-ch\n", 0o600, "token file {}: its first line must have at least 16 characters"),
        ("", 0o600, "token file {}: its first line must have at least 16 characters"),
    ],
)
def test_a_token_file_that_keeps_nobody_out(robots, tmp_path, text, mode, words):
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    assert refused("--model", robots.model, "--token-file", str(file)) == words.replace("{}", str(file))
