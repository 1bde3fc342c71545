"""`cluster/local.sh`, and `jobs/submit.sh` in it, with real Ray and real jobs: exit codes, and nothing left behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from ray.job_submission import JobSubmissionClient

from sarm_ray.pipelines.submission import Log, wait
from tests.datasets import write_dataset

ROOT = Path(__file__).parents[2]
LOCAL, SUBMIT = ROOT / "cluster/local.sh", ROOT / "jobs/submit.sh"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    write_dataset(folder / "good", lengths=(40, 30))
    write_dataset(folder / "bad", lengths=(40, 30))
    for video in sorted((folder / "bad").rglob("*.mp4"))[:1]:
        video.unlink()
    return folder


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """This Python's programs first, a home of its own, and nothing of Ray that the tests' own process has set."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return {**env, "PATH": path, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "STORE_BYTES": "100000000"}


def processes_of(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if mark in " ".join(process.cmdline()) or mark in str(process.environ()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def left_of(mark: str) -> list[psutil.Process]:
    """Processes of a cluster that are still there some seconds after its end; the kernel takes a moment for them."""
    for _ in range(40):
        if not (left := processes_of(mark)):
            break
        time.sleep(0.5)
    return left


class Running:
    """A cluster of local.sh whose command waits to be stopped: the environment of its clients."""

    def __init__(self, process: subprocess.Popen, env: dict[str, str], mark: str) -> None:
        self.process, self.env, self.mark = process, env, mark
        self.said = ""


@pytest.fixture(scope="module")
def cluster(environment, folder) -> Iterator[Running]:
    home = tempfile.mkdtemp(prefix="sl", dir="/tmp")
    mark = f"sarm_ray_test_{os.getpid()}"
    # the job that holds it up: inspect of a dataset whose metadata is a pipe that nobody writes to
    blocked = folder / "blocked"
    shutil.copytree(folder / "good", blocked)
    (blocked / "meta/info.json").unlink()
    os.mkfifo(blocked / "meta/info.json")
    env = {**environment, "HOME": home, "SARM_RAY_TEST": mark}
    process = subprocess.Popen(
        [str(LOCAL), "--cpus", "1", "--gpus", "0", "inspect", str(blocked)],
        cwd=home, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    running = Running(process, env, mark)
    try:
        while line := process.stderr.readline():
            running.said += line
            running.env |= dict(re.findall(r"(RAY_\w+)=(\S+)", line))
            if line.startswith("job "):
                break
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(120)
        for left in left_of(mark):
            left.kill()
        shutil.rmtree(home, ignore_errors=True)


def submit(cluster: Running, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(SUBMIT), "--working-dir", "", *command], env=cluster.env, capture_output=True, text=True, check=False
    )


def test_the_cluster_came_up_and_says_how_to_reach_it(cluster):
    assert "cluster   1 worker(s) of 1 CPU(s) and 0 GPU(s)" in cluster.said
    assert set(cluster.env) >= {"RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"}
    assert Path(cluster.env["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o777 == 0o600


def test_a_job_ends_here_as_it_ended_there(cluster, folder):
    with ThreadPoolExecutor() as threads:  # most of each is the start of processes
        good, bad, missing = threads.map(
            lambda name: submit(cluster, "inspect", str(folder / name)), ["good", "bad", "nowhere"]
        )
    assert good.returncode == 0, good.stderr
    assert "episodes     2, 70 frames" in good.stdout
    assert re.search(r"job +inspect-good-\S+ \(command inspect, dataset \S+/good, sarm_ray ", good.stderr)
    assert bad.returncode == 1, bad.stderr
    assert "bad   observation.images.base" in bad.stdout
    assert missing.returncode == 2, missing.stderr
    assert "error: " in missing.stdout


def test_other_exit_codes_come_out(cluster, capfd):
    token = Path(cluster.env["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    client = JobSubmissionClient(cluster.env["RAY_ADDRESS"], headers={"Authorization": f"Bearer {token}"})
    wanted = {"exit 130": 130, "echo said; kill -KILL $$": 137}
    jobs = {client.submit_job(entrypoint=command): code for command, code in wanted.items()}
    assert {job: wait(Log(client, job)) for job in jobs} == jobs
    assert capfd.readouterr().out.count("said\n") == 1


def test_what_is_wrong_is_said_before_anything_is_submitted(cluster):
    stranger = Running(cluster.process, {**cluster.env, "RAY_AUTH_TOKEN": "wrong"}, cluster.mark)
    with ThreadPoolExecutor() as threads:
        mistyped = threads.submit(submit, cluster, "score", "d", "--strid", "5")
        nobody = threads.submit(submit, cluster, "--address", "http://127.0.0.1:9", "inspect", "d")
        refused = threads.submit(submit, stranger, "inspect", "d")
    for ended, words in (
        (mistyped, "No such option '--strid'"),
        (nobody, "error: no Ray job server answers at http://127.0.0.1:9"),
        (refused, "error: no Ray job server answers"),
    ):
        assert ended.result().returncode == 2, ended.result().stderr
        assert words in ended.result().stderr
        assert "Traceback" not in ended.result().stderr


def test_told_to_stop_it_stops_the_job_and_leaves_nothing_behind(cluster):
    folder = Path(cluster.env["RAY_AUTH_TOKEN_PATH"]).parent
    assert len(processes_of(cluster.mark)) > 5
    cluster.process.send_signal(signal.SIGTERM)
    said = cluster.process.communicate(timeout=120)[1]
    assert cluster.process.returncode == 130, said
    assert "stopping inspect-blocked-" in said
    assert left_of(cluster.mark) == []
    assert not folder.exists()
