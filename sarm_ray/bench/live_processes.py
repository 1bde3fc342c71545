"""The server's processes as the system sees them: CPU time and memory of each part. Ray names them in their titles."""

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import psutil

REPLICA = re.compile(r"ray::ServeReplica:(?P<application>[^:]+):(?P<deployment>\w+)")
PARTS = {"Live": "ingress", "Encoder": "encoder", "Scorer": "scorer", "Empty": "empty"}
INGRESS, PROXY = "ingress", "proxy"


def part_of(title: str) -> str:
    """Which part of the server a process is, by its title; `ray` for all that Ray needs for itself."""
    replica = REPLICA.match(title)
    if replica:
        return PARTS.get(replica["deployment"], "ray")
    return PROXY if title.startswith("ray::ProxyActor") else "ray"


def server_processes() -> Iterator[tuple[str, psutil.Process]]:
    """Part and process of every descendant of this one."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            yield part_of(" ".join(process.cmdline())), process


def cpu_seconds() -> dict[str, float]:
    """part -> CPU seconds so far of the processes that are there."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for part, process in server_processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds[part] += times.user + times.system
    return dict(seconds)


def memory_bytes(part: str) -> dict[str, int]:
    """`rss` and, where the system has it, `pss` (shared pages counted by halves) of all processes of a part."""
    total: Counter[str] = Counter()
    for _, process in (each for each in server_processes() if each[0] == part):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            memory = process.memory_full_info()
            total["rss"] += memory.rss
            if hasattr(memory, "pss"):
                total["pss"] += memory.pss
    return dict(total)
