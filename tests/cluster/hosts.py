"""Hosts on one machine: a network namespace each, with an address and a name of its own, and a wire that can be cut.

    user (10.77.0.100)   head (10.77.0.1)   worker 2 (10.77.0.2)   worker 3 (10.77.0.3)   store (10.77.0.200)
            |                   |                    |                      |                    |
            +-------------------+-- a bridge, in a namespace of its own ----+--------------------+

Nothing of it reaches any other address. Root and iproute2 are needed; processes are ended by their namespace.
"""

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

ROOT = Path(__file__).parents[2]
HEAD, USER, STORE = 1, 100, 200
DASHBOARD = f"http://10.77.0.{HEAD}:8265"
CLONE_NEWNET = 0x40000000  # from Linux' sched.h

NUMBERS = itertools.count()  # of clusters of this process
T = TypeVar("T")


def _can_make_hosts() -> bool:
    name = f"sr{os.getpid()}-probe"
    made = [["ip", "netns", "add", name], ["ip", "netns", "exec", name, "true"], ["ip", "netns", "del", name]]
    return shutil.which("ip") is not None and all(
        subprocess.run(each, capture_output=True).returncode == 0 for each in made
    )


needs_hosts = pytest.mark.skipif(
    not _can_make_hosts(), reason="network namespaces need root and iproute2 (apt-get install iproute2)"
)


def ip(*words: object) -> str:
    return subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True).stdout


def sweep() -> None:
    """Clear away the hosts of test processes that were killed."""
    for space in ip("netns", "list").split("\n"):
        found = re.match(r"sr(\d+)-", space)
        if found and not psutil.pid_exists(int(found[1])):
            name = space.split()[0]
            for pid in ip("netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", name)


class Hosts:
    """Hosts by number, which is the last part of their address.

    Args:
        folder: what all of them share. Each has a home besides that no other sees.
        environment: of every process.
    """

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment
        self.prefix = f"sr{os.getpid()}-{next(NUMBERS)}-"
        self.numbers: set[int] = set()
        self.bridge = f"{self.prefix}bridge"
        names = [f"{address(number)} host{number}\n" for number in range(1, 255)]
        (folder / "hosts").write_text("".join(["127.0.0.1 localhost\n", *names]))

    def lay_wires(self) -> None:
        ip("netns", "add", self.bridge)
        ip("-n", self.bridge, "link", "add", "br0", "type", "bridge")
        ip("-n", self.bridge, "link", "set", "br0", "up")

    def add(self, number: int) -> None:
        """A host on the wire."""
        space, port = self.space(number), f"p{number}"
        ip("netns", "add", space)
        self.numbers.add(number)
        ip("link", "add", port, "netns", self.bridge, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("-n", self.bridge, "link", "set", port, "master", "br0")
        ip("-n", self.bridge, "link", "set", port, "up")
        ip("-n", space, "addr", "add", f"{address(number)}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        ip("-n", space, "link", "set", "lo", "up")

    def space(self, number: int) -> str:
        return f"{self.prefix}{number}"

    def home(self, number: int) -> Path:
        home = self.folder / f"host{number}"
        home.mkdir(exist_ok=True)
        return home

    def start(self, number: int, command: Sequence[object], log: Path, **environment: str) -> subprocess.Popen:
        """A process on a host, in a session of its own."""
        named = ["ip", "netns", "exec", self.space(number), "unshare", "--uts", "sh", "-c"]
        script = " && ".join(
            [
                f"hostname host{number}",
                f"mount --bind {self.folder}/hosts /etc/hosts",
                'mount -t tmpfs none "$HOME"',  # a disk of its own
                'cd "$HOME"',
                'exec "$@"',
            ]
        )
        own = {
            "HOME": str(self.home(number)), "SARM_RAY_CACHE": str(self.home(number) / "cache"), "TMPDIR": "/tmp",
        }  # fmt: skip
        with log.open("w") as said:
            return subprocess.Popen(
                [*named, script, "sh", *map(str, command)],
                stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True,
                cwd=self.home(number), env={**self.environment, **own, **environment},
            )  # fmt: skip

    def call(self, number: int, function: Callable[[], T]) -> T:
        """Call a function in this process as if it were on a host: sockets that it makes are that host's for good."""

        def there() -> T:
            with (Path("/run/netns") / self.space(number)).open() as space:
                if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {self.space(number)}")
            return function()

        with ThreadPoolExecutor(1) as thread:  # the namespace is the thread's own, and goes with it
            return thread.submit(there).result()

    def processes(self, number: int) -> list[psutil.Process]:
        found = []
        for pid in ip("netns", "pids", self.space(number)).split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def titles(self, number: int) -> list[str]:
        """What Ray's processes on a host say that they are doing."""
        titles = []
        for process in self.processes(number):
            with contextlib.suppress(psutil.NoSuchProcess):
                titles.append(process.name())
        return [title.removeprefix("ray::").strip() for title in titles if title.startswith("ray::")]

    def kill(self, number: int) -> None:
        """The host loses its power: SIGKILL to all that runs on it, until nothing does."""
        for _ in range(200):
            left = self.processes(number)
            if not left:
                return
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=0.5)
        raise AssertionError(f"processes of host {number} would not die: {self.titles(number)}")

    def cut(self, number: int) -> None:
        """Pull the host's cable: nobody is told."""
        ip("-n", self.bridge, "link", "set", f"p{number}", "down")

    def plug(self, number: int) -> None:
        ip("-n", self.bridge, "link", "set", f"p{number}", "up")

    def tear_down(self) -> None:
        for number in sorted(self.numbers, reverse=True):
            self.kill(number)
        for space in [*map(self.space, self.numbers), self.bridge]:
            if (Path("/run/netns") / space).exists():
                ip("netns", "del", space)
        if self.small.is_mount():
            subprocess.run(["umount", self.small], check=True)

    @property
    def small(self) -> Path:
        """A shared folder with little room, see `mount_small`."""
        return self.folder / "small"

    def mount_small(self, size: str) -> None:
        """Make it that large; hosts see it if it was mounted before they began, and its size as it is."""
        self.small.mkdir(exist_ok=True)
        again = "remount," if self.small.is_mount() else ""
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"{again}size={size}", "none", self.small], check=True)


def address(number: int) -> str:
    return f"10.77.0.{number}"


class TestCluster(Hosts):
    """Ray on hosts: a head without work, workers that come and go, and a user who sits elsewhere."""

    __test__ = False

    def ray(self, number: int, *words: object, **environment: str) -> subprocess.Popen:
        """Ray on a host; its temporary folder is new each time, and short, for the sockets in it.

        Started again when it ends by itself, as any supervisor does: on a busy machine Ray takes its own start for failed.
        """
        scratch = tempfile.mkdtemp(prefix=f"r{number}", dir=self.folder)
        command = [
            Path(sys.executable).parent / "ray", "start", "--block", "--disable-usage-stats", "--temp-dir", scratch,
            f"--node-ip-address={address(number)}", "--object-store-memory", 150 * 2**20, *words,
        ]  # fmt: skip
        again = ["sh", "-c", 'until "$@"; do sleep 1; done', "sh"]
        return self.start(number, [*again, *command], self.folder / f"ray{number}.log", **environment)

    def start_head(self) -> None:
        self.ray(
            HEAD, "--head", "--port", 6379, "--num-cpus", 0, "--dashboard-host", address(HEAD),
            "--labels", "sarm-ray/role=head",
        )  # fmt: skip
        wait_for(self.answers, what="a head that answers")

    def answers(self) -> bool:
        """Whether the head's job server is up, seen from the user's host."""

        def look() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{DASHBOARD}/api/gcs_healthz", timeout=2):
                return True
            return False

        return self.call(USER, look)

    def start_worker(self, number: int, *words: object, num_cpus: int = 1) -> None:
        if number not in self.numbers:
            self.add(number)
        self.ray(number, "--address", f"{address(HEAD)}:6379", "--num-cpus", num_cpus, *words)

    def has_lost(self, number: int) -> bool:
        """Whether Ray, asked from the user's host, counts no living node there."""
        query = f"{DASHBOARD}/api/v0/nodes?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        asked = urllib.request.Request(query, headers={"Authorization": f"Bearer {self.token}"})

        def ask() -> bool:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                return address(number) not in answer.read().decode()

        return self.call(USER, ask)

    @property
    def token(self) -> str:
        return (self.folder / "token").read_text()

    def submit(self, log: Path, *command: object, num_nodes: int = 3, **environment: str) -> subprocess.Popen:
        """jobs/submit.sh on the user's host."""
        words = [
            ROOT / "jobs/submit.sh", "--address", DASHBOARD, "--working-dir", "", "--nodes", num_nodes, "--stop",
            *command,
        ]  # fmt: skip
        return self.start(USER, words, log, **environment)


@contextlib.contextmanager
def cluster(workers: Sequence[int] = (2, 3), **settings: str) -> Iterator[TestCluster]:
    """A head and workers of one core each, with a token, up when the block begins.

    Args:
        workers: numbers of hosts.
        settings: variables of all processes.
    """
    folder = Path(tempfile.mkdtemp(prefix="sn", dir="/tmp"))
    (folder / "token").write_text("0" * 64)
    (folder / "token").chmod(0o600)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
        "RAY_idle_worker_killing_time_threshold_ms": "60000",  # as in cluster/: a process takes seconds to start
        **settings,
    }
    hosts = TestCluster(folder, environment)
    try:
        sweep()
        hosts.mount_small("100M")
        hosts.lay_wires()
        for number in (HEAD, USER):
            hosts.add(number)
        hosts.start_head()
        for number in workers:
            hosts.start_worker(number)
        yield hosts
    finally:
        hosts.tear_down()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(
    ready: Callable[[], T], ended: Callable[[], object] | None = None, patience_s: float = 300, what: str = "it"
) -> T:
    """Poll until something is truthy, and return that.

    Patience is counted in naps, not by the clock: a virtual machine may stand still for minutes, and all in it.

    Args:
        ended: what says why it will not come true any more, or nothing as long as it may.
    """
    for _ in range(int(patience_s / 0.05)):
        if found := ready():
            return found
        assert not (why := ended and ended()), f"the run ended before {what} came true:\n{why}"
        time.sleep(0.05)
    raise AssertionError(f"{what} never came true")
