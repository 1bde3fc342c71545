"""What a person sees of long work: one moving line on a terminal, plain lines elsewhere. All of it goes to stderr."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator

import click

from sarm_ray.errors import SarmRayError

PLAIN_INTERVAL_S = 10.0
TTY_INTERVAL_S = 0.2


def say(text: str) -> None:
    """One line for the user."""
    click.echo(text, err=True)


def tell(notices: Iterable[str]) -> None:
    """Things the user did not ask for but should know."""
    for text in notices:
        click.echo(f"{click.style('note', fg='yellow')}: {text}", err=True)


class Progress:
    """Frames done of a phase, or other units, with rate and time left.

    Args:
        phase: its name.
        total: frames to do.
        quiet: print nothing.
        unit: what is counted.
    """

    def __init__(
        self,
        phase: str,
        total: int,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "frames",
    ):
        self.phase, self.total, self.quiet, self.clock, self.unit = phase, total, quiet, clock, unit
        self.done = 0
        self.started = self.printed = clock()
        self.first: tuple[float, int] | None = None
        self.tty = sys.stderr.isatty()

    def add(self, num_frames: int) -> None:
        self.done += num_frames
        now = self.clock()
        self.first = self.first or (now, self.done)
        if now - self.printed >= (TTY_INTERVAL_S if self.tty else PLAIN_INTERVAL_S) and self.done < self.total:
            self.printed = now
            self._print(end=not self.tty)

    def finish(self) -> float:
        """Print the last line; seconds since the start."""
        self._print(end=True)
        return self.clock() - self.started

    def line(self) -> str:
        elapsed = max(self.clock() - self.started, 1e-6)
        rate = self.done / elapsed
        share = self.done / max(self.total, 1)
        text = f"{self.phase:<7} {self.done:>11,}/{self.total:,} {self.unit} {share:4.0%} {rate:8.1f} {self.unit}/s"
        if self.done >= self.total:
            return f"{text}  in {duration(elapsed)}"
        left_s = self._left_s()
        return text if left_s is None else f"{text}  {duration(left_s)} left"

    def _left_s(self) -> float | None:
        """Time left at the rate since the first result, which start-up does not count against; None before the second."""
        if self.first is None or self.done == self.first[1]:
            return None
        first_s, first_done = self.first
        return (self.total - self.done) * (self.clock() - first_s) / (self.done - first_done)

    def _print(self, end: bool) -> None:
        if not self.quiet:
            start = "\r\x1b[2K" if self.tty else ""
            click.echo(start + self.line(), err=True, nl=end)


@contextlib.contextmanager
def divert_native_stderr() -> Iterator[None]:
    """Keep what libraries write straight to file descriptor 2 off the screen; show its end if an unexpected error comes.

    Ray's C++ core talks of its own affairs there. `sys.stderr` still reaches the user.
    """
    shown = sys.stderr
    try:
        natural = shown.fileno() == 2
    except (OSError, ValueError, AttributeError):
        natural = False
    if not natural:
        yield
        return
    with tempfile.TemporaryFile() as log, os.fdopen(os.dup(2), "w", buffering=1) as terminal:
        os.dup2(log.fileno(), 2)
        sys.stderr = terminal
        try:
            yield
        except (SarmRayError, KeyboardInterrupt):
            raise
        except BaseException:
            log.seek(-min(4000, log.seek(0, os.SEEK_END)), os.SEEK_END)
            terminal.write(log.read().decode(errors="replace"))
            raise
        finally:
            sys.stderr = shown
            os.dup2(terminal.fileno(), 2)


def first_line(error: BaseException) -> str:
    """What an error says first; its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def duration(seconds: float) -> str:
    """`42s`, `3m07s`, `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def size(num_bytes: float) -> str:
    """`512 B`, `38.5 MB`, `1.2 TB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
