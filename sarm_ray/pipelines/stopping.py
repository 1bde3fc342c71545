"""Ctrl-C and SIGTERM: chunks in flight are finished, no new ones are begun.

The driver leaves a marker file where all workers look before they begin a chunk. A second signal interrupts at once, which
loses the chunks in flight and nothing else.
"""

import contextlib
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from types import FrameType

from sarm_ray.console import say
from sarm_ray.data import storage
from sarm_ray.errors import SarmRayError

MARKER_PREFIX = "stop-"


class Stop:
    """Whether the user, or the cluster, has asked the run to stop.

    Args:
        marker: location of a file that workers look for; there is none until the run is asked to stop.
    """

    def __init__(self, marker: str):
        self.marker = marker
        self.requested = False
        self.working = False
        self._signal = signal.SIGINT
        self._ended = threading.Event()

    @contextlib.contextmanager
    def draining(self) -> Iterator[None]:
        """While workers are busy a signal lets them finish; at other times it interrupts at once."""
        self.working = True
        try:
            yield
        finally:
            self.working = False

    def handle(self, number: int, _: FrameType | None) -> None:
        if self.requested or not self.working:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number)
        self.requested = True
        self._ended.set()

    def leave_word(self) -> None:
        """Wait until a stop is requested, then tell the user and the workers.

        In a thread of its own: a signal may come in the middle of another write to the screen or to the same store.
        """
        self._ended.wait()
        if self.requested:
            say(f"{self._signal.name}: chunks in flight are being finished; once more to stop at once")
            try:
                storage.create_file(self.marker, b"")
            except (SarmRayError, OSError) as error:
                say(f"the workers could not be told ({error}); interrupt again to stop at once")

    def end(self) -> None:
        """No stop is to be told of any more."""
        self._ended.set()


@contextlib.contextmanager
def stop_on_signal(folder: str) -> Iterator[Stop]:
    """Handle SIGINT and SIGTERM until the block ends. Off the main thread, where Python has no signals, nothing is handled.

    Args:
        folder: of the run; the marker lies in it and is gone afterwards.
    """
    stop = Stop(storage.join(folder, f"{MARKER_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"))
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    herald = threading.Thread(target=stop.leave_word, daemon=True)
    herald.start()
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.end()
        herald.join()
        if stop.requested:
            storage.remove_file(stop.marker)


@contextlib.contextmanager
def interrupt_on_signal() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise a KeyboardInterrupt until the block ends: where nothing is in flight, nothing is lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_stopping(marker: str) -> bool:
    """Asked by workers before each chunk."""
    return storage.exists(marker)
