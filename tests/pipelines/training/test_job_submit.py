"""`ray job submit -- sarm-ray train`: a good run ends with 0, a refused one does not."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.pipelines.runs import needs_parity
from tests.pipelines.training.test_train_crash import arguments

pytestmark = needs_parity

RAY = str(Path(sys.executable).with_name("ray"))
ROOT = Path(__file__).parents[3]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """A head with a job server on ports of its own: the environment of its clients. Its processes alone are ended."""
    home = tempfile.mkdtemp(prefix="sj", dir="/tmp")
    port, dashboard, agent, client = free_ports(4)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"HOME": home, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    head = subprocess.Popen(
        [
            RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2",
            f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", f"--temp-dir={home}",
            "--object-store-memory=300000000", "--disable-usage-stats",
        ],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        own = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(60)
        for process in own:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.kill()
        head.wait()
        shutil.rmtree(home, ignore_errors=True)


def submitted(env: dict[str, str], *command: str) -> subprocess.CompletedProcess:
    return subprocess.run([RAY, "job", "submit", "--", *command], env=env, capture_output=True, text=True, check=False)


def wait_for_server(env: dict[str, str]) -> None:
    for _ in range(60):
        if subprocess.run([RAY, "job", "list"], env=env, capture_output=True, check=False).returncode == 0:
            return
    raise AssertionError("the job server never answered")


@pytest.mark.slow
def test_exit_codes_of_jobs(cluster, tmp_path):
    wait_for_server(cluster)
    train = [sys.executable, "-m", "sarm_ray", *arguments(tmp_path, tmp_path / "features", "--steps", 2)]
    good = submitted(cluster, *train)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "2 steps on " in good.stdout
    assert (tmp_path / "run/checkpoints/last/pretrained_model/config.json").exists()
    bad = submitted(cluster, *train)  # the folder is used
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert f"{tmp_path}/run holds a training run (config.yaml); go on with it by --resume" in bad.stdout + bad.stderr
