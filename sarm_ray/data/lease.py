"""A lease keeps two runs off one output: a small file that names its holder and beats while the holder lives.

A holder that died on this machine is recognised by its process id and start time, at once. A holder elsewhere is watched:
if its heartbeat moves it is alive; if it stands still for as long as several beats it is dead and the lease is taken over.
Clocks of different machines are never compared over less than ABANDONED_S.
"""

import contextlib
import json
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import psutil

from sarm_ray.data import storage
from sarm_ray.errors import OutputExistsError, SarmRayError

LEASE_FILE = "lease.json"
BEAT_S = 10.0
WATCH_S = 45.0
ABANDONED_S = 3600.0


@dataclass(frozen=True)
class Lease:
    """Who holds an output.

    Args:
        location: of the file.
        host, pid, started_s: the holder; `started_s` is the process's start in seconds since 1970.
        token: this lease and no other.
        beat_s: seconds since 1970 by the holder's clock.
    """

    location: str
    host: str
    pid: int
    started_s: float
    token: str
    beat_s: float

    def check(self) -> None:
        """Make sure that the lease is still ours.

        Raises:
            OutputExistsError: it is gone, or another run holds it (this process was suspended for long).
        """
        holder = _read(self.location)
        if holder is None or holder.token != self.token:
            who = "nobody" if holder is None else f"process {holder.pid} on {holder.host}"
            raise OutputExistsError(
                f"{self.location} is held by {who} now; this run stops, its finished chunks are kept"
            )


@contextlib.contextmanager
def hold_lease(folder: str, beat_s: float = BEAT_S, watch_s: float = WATCH_S) -> Iterator[Lease]:
    """Hold a run folder until the block ends.

    Args:
        folder: any location.
        beat_s: seconds between heartbeats.
        watch_s: seconds for which a foreign heartbeat must stand still before its lease is taken over.

    Raises:
        OutputExistsError: another run that lives holds it.
    """
    location = storage.join(folder, LEASE_FILE)
    process = psutil.Process()
    lease = Lease(location, platform.node(), process.pid, process.create_time(), uuid.uuid4().hex, time.time())
    _acquire(lease, watch_s)
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(lease, beat_s, stop), daemon=True)
    heart.start()
    try:
        yield lease
    finally:
        stop.set()
        heart.join()
        holder = _read(location)
        if holder is not None and holder.token == lease.token:
            storage.remove_file(location)


def holder_of(folder: str) -> Lease | None:
    """Who holds a run folder and may live, without waiting for a heartbeat; None where nobody does."""
    holder = _read(storage.join(folder, LEASE_FILE))
    if holder is None:
        return None
    if holder.host == platform.node():
        return holder if _lives(holder, 0.0) else None
    return holder if time.time() - holder.beat_s <= ABANDONED_S else None


def _acquire(lease: Lease, watch_s: float) -> None:
    while not storage.create_file(lease.location, _dump(lease)):
        holder = _read(lease.location)
        if holder is None:
            continue
        if _lives(holder, watch_s):
            raise OutputExistsError(
                f"{storage.parent(lease.location)} is being written by process {holder.pid} on {holder.host}; "
                "wait for that run, or choose another --output"
            )
        # Several may find it dead at once and, in the worst case, remove each other's new lease: whoever loses his finds
        # out by `check`, which every run asks before it writes its output.
        if _read(lease.location) == holder:
            storage.remove_file(lease.location)
    lease.check()


def _lives(holder: Lease, watch_s: float) -> bool:
    if holder.host == platform.node():
        started = storage.start_of_process(holder.pid)
        return started is not None and abs(started - holder.started_s) < 1.0
    if time.time() - holder.beat_s > ABANDONED_S:
        return False
    deadline = time.monotonic() + watch_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, watch_s / 10))
        now = _read(holder.location)
        if now is None:
            return False
        if now != holder:
            return True
    return False


def _beat(lease: Lease, beat_s: float, stop: threading.Event) -> None:
    """Write the heartbeat while the lease is ours; a store that is away for a moment costs a beat, not the run."""
    while not stop.wait(beat_s):
        with contextlib.suppress(OSError, SarmRayError):
            holder = _read(lease.location)
            if holder is None or holder.token != lease.token:
                return
            storage.write_file(lease.location, _dump(replace(lease, beat_s=time.time())))


def _dump(lease: Lease) -> bytes:
    return json.dumps({key: value for key, value in asdict(lease).items() if key != "location"}).encode()


def _read(location: str) -> Lease | None:
    """The lease that is there; one that cannot be read names nobody who lives."""
    try:
        raw = storage.read_bytes(location)
    except FileNotFoundError:
        return None
    try:
        values = json.loads(raw)
        return Lease(
            location,
            str(values["host"]),
            int(values["pid"]),
            float(values["started_s"]),
            str(values["token"]),
            float(values["beat_s"]),
        )
    except (ValueError, KeyError, TypeError):
        return Lease(location, "an unknown host", 0, 0.0, "", 0.0)
