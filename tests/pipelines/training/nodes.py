"""A Ray cluster of several nodes on this machine: `python -m tests.pipelines.training.nodes`, a process of its own, because
the tests' process has a Ray of its own, and nodes are started by a main thread.

Its head has no cores, and runs the driver. On stdin each line asks for something, and is answered by a line of JSON:
`head` for the address; `add` for a node with one core, by its process and its id; `drain ID` tells Ray that a node is about
to be taken away.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

STORE_BYTES = 120 * 2**20


class Nodes:
    """The cluster, as the tests see it."""

    def __init__(self, process: subprocess.Popen, env: dict[str, str]):
        self.process, self.env = process, env
        self.address = self.ask("head")["address"]

    def ask(self, words: str) -> dict[str, Any]:
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith("{"):
            assert line, "the cluster has ended"
        return json.loads(line)

    def add(self) -> "Node":
        return Node(**self.ask("add"))


class Node:
    """One with a core, for as long as it lives."""

    def __init__(self, pid: int, node_id: str):
        self.raylet, self.id = psutil.Process(pid), node_id

    def training(self) -> list[psutil.Process]:
        """Its training processes, by their titles."""
        found = []
        for child in self.raylet.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name().startswith("ray::RayTrain"):
                    found.append(child)
        return found

    def kill(self) -> None:
        """As if its plug had been pulled."""
        for process in [self.raylet, *self.raylet.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def cluster() -> Iterator[Nodes]:
    """A cluster without a core, which ends with the block."""
    with tempfile.TemporaryDirectory(prefix="tn", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        (Path(scratch) / "ray").mkdir()
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= {"HOME": scratch, "RAY_TMPDIR": scratch, "RAY_USAGE_STATS_ENABLED": "0"}
        env["RAY_gcs_server_port_wait_time_s"] = "120"  # machines are shared
        process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        try:
            yield Nodes(process, env)
        finally:
            process.stdin.close()
            process.wait()


def serve() -> None:
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster

    own = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES},
    )
    for line in sys.stdin:
        word, *rest = line.split()
        answer: dict[str, Any] = {}
        if word == "head":
            answer = {"address": own.address}
        elif word == "add":
            node = own.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
            answer = {"pid": node.all_processes["raylet"][0].process.pid, "node_id": node.node_id}
        elif word == "drain":
            client = GcsClient(address=own.address)
            answer = {"taken": client.drain_node(rest[0], 2, "preempted", int(1000 * time.time()) + 300_000)[0]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    own.shutdown()


if __name__ == "__main__":
    serve()
