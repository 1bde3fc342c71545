"""What every benchmark shares: its figures, timing with a warm-up and the median of repeats, the hardware, one thread."""

import contextlib
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Hardware:
    """What was measured on.

    Args:
        cpu: model name as the system gives it.
        cores: that this process may use.
    """

    cpu: str
    cores: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What every benchmark ends in; each adds its own parameters.

    Args:
        precision: of the arithmetic: `fp32`, `bf16`, `uint8` (decode); None where there is none (plan).
        frames_per_s: frames over the wall clock.
        frames_per_cpu_s: frames over CPU seconds of everything that works for them: the figure to compare on a shared
            machine, and per core.
        floor_frames_per_cpu_s: the same of the least that could be done, measured in the same call; each command's
            help says what that is.
        floor_ratio: frames_per_cpu_s / floor_frames_per_cpu_s: 1 where everything around the floor is free.
        repeats: the figures are medians over as many, after a warm-up.
        hardware: what was measured on.
    """

    precision: str | None
    frames_per_s: float
    frames_per_cpu_s: float
    floor_frames_per_cpu_s: float
    floor_ratio: float
    repeats: int
    hardware: Hardware


@dataclass(frozen=True)
class Timing:
    """Seconds of one piece of work: medians over the repeats, each on its own.

    Args:
        wall_s: by the clock.
        cpu_s: of this process, all its threads.
    """

    wall_s: float
    cpu_s: float


def measure(repeats: int, *works: Callable[[], object]) -> list[Timing]:
    """Time pieces of work: each once unmeasured, then the median of `repeats` (at least 1).

    They take turns, so that a machine that gets busier meanwhile slows all of them, and their ratio holds.
    """
    for work in works:
        work()
    wall: list[list[float]] = [[] for _ in works]
    cpu: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for number, work in enumerate(works):
            wall_before, cpu_before = time.perf_counter(), time.process_time()
            work()
            wall[number].append(time.perf_counter() - wall_before)
            cpu[number].append(time.process_time() - cpu_before)
    return [Timing(statistics.median(own), statistics.median(spent)) for own, spent in zip(wall, cpu, strict=True)]


def compare(num_frames: int, work: Timing, floor: Timing) -> dict[str, float]:
    """Figures of `num_frames` frames, done in `work` and at least in `floor`."""
    return {
        "frames_per_s": num_frames / work.wall_s,
        "frames_per_cpu_s": num_frames / work.cpu_s,
        "floor_frames_per_cpu_s": num_frames / floor.cpu_s,
        "floor_ratio": floor.cpu_s / work.cpu_s,
    }


def describe_hardware() -> Hardware:
    """This machine. The model name is read from /proc/cpuinfo where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return Hardware(line.split(":", 1)[1].strip(), cores)
    return Hardware(platform.processor() or platform.machine(), cores)


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """torch computes with one thread inside."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


class CpuMeter:
    """CPU time of this process and all its descendants, also those that end meanwhile, to a sampling interval.

    `cpu_s` is there after the `with` block.
    """

    INTERVAL_S = 0.2

    def __enter__(self) -> "CpuMeter":
        self._times: dict[int, float] = {}
        self._before = time.process_time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.cpu_s = sum(self._times.values()) + time.process_time() - self._before

    def _sample(self) -> None:
        while not self._stop.wait(self.INTERVAL_S):
            for process in psutil.Process().children(recursive=True):
                try:
                    times = process.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                self._times[process.pid] = times.user + times.system
