"""Copies of remote files on this machine: a file that is opened to decode or to read rows comes over the network once.

    $SARM_RAY_CACHE/remote/<digest>-<bytes>         a copy; its mtime is its last use
    $SARM_RAY_CACHE/remote/<digest>-<bytes>.part    one on its way; whoever downloads it holds its lock
    $SARM_RAY_CACHE/remote/total                    bytes of all of them; its lock guards counting and evicting

The digest is of location and stamp, so a file that was written anew is another file here. The folder is bounded: the least
recently used copies make room. A copy that somebody has open stays readable after that, because its name goes and its
bytes stay. What does not fit, or lies in a store that does not say when a file changes, is read in place.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sarm_ray.data import storage
from sarm_ray.errors import ConfigError, StoreInterruptedError

BOUND_VARIABLE = "SARM_RAY_REMOTE_CACHE_GB"
MAX_BYTES = 50 * 10**9
SHARE_OF_DISK = 0.5
SHARE_KEPT = 0.9  # evict a little more than needed, so that the folder is not walked for every file of a long run
STREAM_BLOCK_BYTES = 8 * 2**20
NUM_TRIES = 3
PAUSE_S = 1.0
_COPY = re.compile(r"[0-9a-f]{32}-(\d+)(\.part)?")


def open_input(location: str) -> IO[bytes]:
    """A file to decode or to read rows from: a local one itself, a remote one as this machine's copy.

    Raises:
        FileNotFoundError: there is no such file.
        StoreInterruptedError: it came incompletely, several times.
        StoreError: the store does not let us in.
    """
    if storage.is_local(location):
        return storage.open_input(location)
    copy = open_copy(location, storage.file_stamp(location))
    return copy or storage.open_input(location, STREAM_BLOCK_BYTES)


def open_copy(location: str, stamp: str) -> IO[bytes] | None:
    """This machine's copy of a remote file, downloaded first where need be; None where it has to be read in place.

    Args:
        location: of the file.
        stamp: of its content (`storage.stamp_of`).

    Raises:
        StoreInterruptedError: fewer bytes came than the stamp says, several times, or it was written anew meanwhile.
    """
    num_bytes, _, tag = stamp.partition("-")
    if not tag or not num_bytes.isdigit() or int(num_bytes) == 0 or _wanted_bound() == 0:
        return None
    folder = _folder()
    digest = hashlib.sha256(f"{location}\n{stamp}".encode()).hexdigest()[:32]
    path = folder / f"{digest}-{num_bytes}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _open_finished(path) or _fetch(location, stamp, path)
    except StoreInterruptedError:
        raise
    except OSError:
        return None  # a disk that is full or read-only is no reason to fail; a missing file shows when it is opened


def local_cache() -> Path:
    """The user's cache on this machine's disk, also where `SARM_RAY_CACHE` is a remote store."""
    cache = storage.user_cache()
    if not storage.is_local(cache):
        cache = storage.absolute(f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/sarm_ray")
    return Path(storage.open_filesystem(cache)[1])


def _folder() -> Path:
    return local_cache() / "remote"


def _open_finished(path: Path) -> IO[bytes] | None:
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return None
    if os.fstat(stream.fileno()).st_size != _size(path.name):
        stream.close()  # cut short by a power failure
        return None
    _touch(stream)
    return stream


def _touch(stream: IO[bytes]) -> None:
    """Note that a copy is used now; file systems by themselves note it to a few milliseconds only."""
    with contextlib.suppress(PermissionError):
        os.utime(stream.fileno(), ns=(time.time_ns(), time.time_ns()))


def _fetch(location: str, stamp: str, path: Path) -> IO[bytes] | None:
    """Download a file, or wait for the process that does; None where there is no room for it."""
    part = path.with_name(f"{path.name}.part")
    with _locked(part) as descriptor:
        stream = _open_finished(path)
        if stream is not None or not _reserve(path.parent, _size(path.name)):
            return stream
        try:
            with open(descriptor, "r+b", closefd=False) as target:
                _download(location, stamp, target)
            stream = part.open("rb")  # before its name is one that can be evicted
            _touch(stream)
            part.replace(path)
        except BaseException:
            _release(path.parent, _size(path.name))
            raise
        return stream


def _download(location: str, stamp: str, target: IO[bytes]) -> None:
    for attempt in range(1, NUM_TRIES + 1):
        try:
            target.seek(0)
            target.truncate()
            for piece in storage.read_pieces(location, storage.size_of(stamp)):
                target.write(piece)
            target.flush()
            break
        except StoreInterruptedError:
            if attempt == NUM_TRIES:
                raise
            time.sleep(PAUSE_S * attempt)
    if storage.file_stamp(location) != stamp:
        raise StoreInterruptedError(f"{location}: was written anew while it was read; run again")


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[int]:
    """Hold the lock of a file under this name, made here if need be; remove it at the end unless it was renamed.

    Only who holds its lock removes or renames a file, so after waiting for one it may be there no longer, or another one.
    """
    while True:
        descriptor = os.open(part, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_file_of(part, descriptor):
                try:
                    yield descriptor
                finally:
                    if _is_file_of(part, descriptor):
                        part.unlink()
                return
        finally:
            os.close(descriptor)


def _is_file_of(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _reserve(folder: Path, num_bytes: int) -> bool:
    """Make room for a file whose .part is in the folder already; False where there is none."""
    with _total(folder) as counter:
        known = _read_total(counter)
        total = _count(folder) if known is None else known + num_bytes
        bound = _bound(folder, total - num_bytes)
        if total > bound >= num_bytes:
            total = _evict(folder, bound)
        fits = total <= bound
        _write_total(counter, total if fits else total - num_bytes)
        return fits


def _release(folder: Path, num_bytes: int) -> None:
    with _total(folder) as counter:
        _write_total(counter, max((_read_total(counter) or 0) - num_bytes, 0))


def _count(folder: Path) -> int:
    """Bytes of all copies, those on their way as if they were here."""
    return sum(_size(path.name) for path in folder.iterdir() if _COPY.fullmatch(path.name))


def _evict(folder: Path, bound: int) -> int:
    """Remove the least recently used copies, and what killed downloads left; returns the bytes of what stays."""
    copies, on_their_way = [], 0
    for path in folder.iterdir():
        match = _COPY.fullmatch(path.name)
        if match is None:
            continue
        if not match[2]:
            status = path.stat()
            copies.append((status.st_mtime_ns, status.st_size, path))
        elif not _remove_orphan(path):
            on_their_way += int(match[1])
    total = on_their_way + sum(size for _, size, _ in copies)
    if on_their_way > bound:
        return total  # removing all copies would not help
    for _, size, path in sorted(copies):
        if total <= max(bound * SHARE_KEPT, on_their_way):
            break
        path.unlink(missing_ok=True)
        total -= size
    return total


def _remove_orphan(part: Path) -> bool:
    """Remove a .part that nobody downloads."""
    try:
        descriptor = os.open(part, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        if _is_file_of(part, descriptor):
            part.unlink()
        return True
    finally:
        os.close(descriptor)


def _bound(folder: Path, held: int) -> int:
    """Bytes that the folder may hold: what the user says, else half of what is free without it, at most MAX_BYTES."""
    wanted = _wanted_bound()
    return min(MAX_BYTES, int(SHARE_OF_DISK * (shutil.disk_usage(folder).free + held))) if wanted is None else wanted


def _wanted_bound() -> int | None:
    text = os.environ.get(BOUND_VARIABLE, "").strip()
    try:
        bound = float(text) * 1e9 if text else None
        if bound is not None and not 0 <= bound < float("inf"):
            raise ValueError(text)
    except ValueError:
        raise ConfigError(f"{BOUND_VARIABLE}={text}: give a number of gigabytes; 0 is no cache") from None
    return None if bound is None else int(bound)


@contextlib.contextmanager
def _total(folder: Path) -> Iterator[IO[bytes]]:
    with (folder / "total").open("a+b") as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)
        yield counter


def _read_total(counter: IO[bytes]) -> int | None:
    counter.seek(0)
    text = counter.read()
    return int(text) if text.isdigit() else None


def _write_total(counter: IO[bytes], total: int) -> None:
    counter.truncate(0)
    counter.write(str(total).encode())
    counter.flush()


def _size(name: str) -> int:
    return int(name.split("-")[1].removesuffix(".part"))
