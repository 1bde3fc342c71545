"""A Python process of its own for what is measured: its times and its peak memory, free of the benchmark's own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sarm_ray.bench.measure import Timing

# `ru_maxrss` begins with the peak of the process that started this one: Linux's own figure goes first, where there is one
_WITH_PEAK = """
import atexit, pathlib, resource, runpy, sys
def write_peak(place):
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    pathlib.Path(place).write_text(str(peak))
atexit.register(write_peak, sys.argv.pop(1))
"""
RUN_MODULE = "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
CALL = """
import importlib, json
module, function, arguments = sys.argv[1:]
print(json.dumps(getattr(importlib.import_module(module), function)(**json.loads(arguments))))
"""


def run_apart(code: str, arguments: list[str]) -> tuple[str, Timing, int]:
    """Run Python code to its end.

    Args:
        code: RUN_MODULE (arguments: a module and its own ones), CALL (see `call_apart`), or what it says.
        arguments: of the process.

    Returns:
        What it printed; its times, its start included; its peak memory in bytes.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="sarm_bench_") as folder, tempfile.TemporaryFile() as said:
        peak = Path(folder) / "peak"
        command = [sys.executable, "-c", _WITH_PEAK + code, str(peak), *arguments]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=None)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.perf_counter() - started
        said.seek(0)
        output = said.read().decode()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, output)
        return output, Timing(wall_s, usage.ru_utime + usage.ru_stime), int(peak.read_text())


def call_apart(module: str, function: str, **arguments: Any) -> tuple[Any, Timing, int]:
    """Call a function of a module in a process of its own.

    Args:
        arguments: its keyword arguments, as JSON has them.

    Returns:
        What it returned, as JSON has it; the process's times and peak memory, see `run_apart`.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    output, timing, peak = run_apart(CALL, [module, function, json.dumps(arguments)])
    return json.loads(output.splitlines()[-1]), timing, peak
