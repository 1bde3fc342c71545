"""Where bytes lie: local paths, fsspec URLs and Hub repositories; atomic writes; file stamps.

A location is a string: an absolute local path or a URL that fsspec knows. Nobody ever sees a partial file: writers go
through `write_atomically`. Every call to a remote store answers for now: listings are never cached, because the driver and
the workers write behind each other's back. What a store's library raises becomes a StoreError (`store_errors`), but for a
missing file, which is a FileNotFoundError everywhere.
"""

import contextlib
import errno
import os
import platform
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import fsspec
import psutil
from fsspec.implementations.local import LocalFileSystem

from sarm_ray.data.store_errors import EXTRAS, ExplainedFile, explained
from sarm_ray.errors import DatasetError, StoreError, StoreInterruptedError

TEMPORARY_PREFIX = ".tmp-"
BLOCK_BYTES = 2**20
PIECE_BYTES = 16 * 2**20
BUFFER_BYTES = 32 * 2**20
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.ENOTDIR, errno.EEXIST}
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_HOST = platform.node().replace("-", "_") or "localhost"


def open_filesystem(location: str) -> tuple[Any, str]:
    """The fsspec filesystem of a location, and the path inside it.

    Raises:
        DatasetError: a scheme that fsspec does not know, or whose package is not installed.
        StoreError: the store refuses us already.
    """
    scheme = location.split("://", 1)[0]
    options = {"use_listings_cache": False} if "://" in location else {}
    try:
        with explained(location):
            return fsspec.core.url_to_fs(location, **options)
    except ImportError as error:
        extra = f"; pip install 'sarm-ray[{EXTRAS[scheme]}]'" if scheme in EXTRAS else ""
        raise DatasetError(f"{location}: {error}{extra}") from error
    except ValueError as error:
        raise DatasetError(f"{location}: {error}") from error


@contextlib.contextmanager
def _opened(location: str) -> Iterator[tuple[Any, str]]:
    """A filesystem and the path inside it; what a remote one raises inside comes out in our words."""
    fs, path = open_filesystem(location)
    with contextlib.nullcontext() if isinstance(fs, LocalFileSystem) else explained(location):
        yield fs, path


def is_local(location: str) -> bool:
    return isinstance(open_filesystem(location)[0], LocalFileSystem)


def absolute(location: str) -> str:
    """A local path made absolute with `~` resolved; a URL as it is, without slashes at its end."""
    if "://" not in location:
        return str(Path(location).expanduser().resolve())
    scheme, _, path = location.partition("://")
    return f"{scheme}://{path.rstrip('/') or path[:1]}"


def join(location: str, *parts: str) -> str:
    return "/".join([location.rstrip("/"), *parts])


def parent(location: str) -> str:
    return location.rstrip("/").rsplit("/", 1)[0]


def exists(location: str) -> bool:
    with _opened(location) as (fs, path):
        return bool(fs.exists(path))


def is_folder(location: str) -> bool:
    with _opened(location) as (fs, path):
        return bool(fs.isdir(path))


def read_bytes(location: str) -> bytes:
    with _opened(location) as (fs, path):
        return fs.cat_file(path)


def open_input(location: str, block_bytes: int = BLOCK_BYTES) -> IO[bytes]:
    """A file to read at any place. Of a remote one blocks are fetched as they are needed, and the last few kept."""
    fs, path = open_filesystem(location)
    if isinstance(fs, LocalFileSystem):
        return fs.open(path, "rb")
    cache = {"maxblocks": max(BUFFER_BYTES // block_bytes, 1)}
    with explained(location):
        stream = fs.open(path, "rb", block_size=block_bytes, cache_type="blockcache", cache_options=cache)
    return cast(IO[bytes], ExplainedFile(location, stream))


def read_pieces(location: str, size: int, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """A whole file of `size` bytes, in pieces.

    Raises:
        StoreInterruptedError: the file is shorter.
    """
    for start in range(0, size, piece_bytes):
        stop = min(start + piece_bytes, size)
        with _opened(location) as (fs, path):
            piece = fs.cat_file(path, start=start, end=stop)
        if len(piece) != stop - start:
            raise StoreInterruptedError(f"{location}: {start + len(piece)} of {size} bytes came")
        yield piece


def file_stamp(location: str) -> str:
    """The stamp of one file as it is now.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with _opened(location) as (fs, path):
        info = fs.info(path)
    if info.get("type") == "directory":
        raise FileNotFoundError(location)
    return stamp_of(info)


def list_files(location: str, enter: Callable[[str], bool] | None = None) -> dict[str, str]:
    """Finished files below a folder, which need not exist: path relative to it -> stamp (see `stamp_of`).

    Args:
        location: of the folder.
        enter: of a local folder, whether to look into one below it, by its path relative to it; None is all.
    """
    with _opened(location) as (fs, root):
        root = fs._strip_protocol(root).rstrip("/")
        if isinstance(fs, LocalFileSystem):
            return dict(_walk_local(root, enter))
        try:
            found = fs.find(root, detail=True).items()
        except FileNotFoundError:
            found = ()
    # Some tools leave empty objects `folder/` in a bucket; they are no files.
    listed = {path[len(root) + 1 :]: stamp_of(info) for path, info in found if not _is_temporary(path)}
    return {path: stamp for path, stamp in listed.items() if path and not path.endswith("/")}


def list_names(location: str) -> list[str]:
    """Names of the files and folders right inside a folder, which need not exist."""
    with _opened(location) as (fs, root):
        paths = fs.ls(root, detail=False) if fs.exists(root) else []
    return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths)


def _walk_local(root: str, enter: Callable[[str], bool] | None = None) -> Iterator[tuple[str, str]]:
    """Links are followed, and stamped by what they lead to: datasets are often spread over disks that way."""
    for folder, below, names in os.walk(root, followlinks=True):
        if enter is not None:
            below[:] = [name for name in below if enter(f"{folder}/{name}"[len(root) + 1 :])]
        for name in names:
            if name.startswith(TEMPORARY_PREFIX):
                continue
            path = f"{folder}/{name}"  # a Path for each of a million files takes minutes
            try:
                status = os.stat(path)  # noqa: PTH116
            except OSError:
                continue  # a link that leads nowhere
            yield path[len(root) + 1 :], stamp_of({"size": status.st_size, "mtime": status.st_mtime})


def stamp_of(info: dict) -> str:
    """What changes when a file is written anew: its size with its etag or content id, or with its mtime."""
    tags = (info.get(key) for key in ("ETag", "etag", "blob_id", "mtime", "LastModified", "Last-Modified"))
    return f"{info.get('size', 0)}-{next((tag for tag in tags if tag), '')}"


def size_of(stamp: str) -> int:
    """The size in a stamp, bytes."""
    return int(stamp.partition("-")[0])


def write_atomically(location: str, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file that appears whole or not at all.

    Local files go to a temporary name in the same folder, are synced and renamed. Object stores publish a key when its
    upload completes, which is the same promise; but their streams also publish what an exception cut short, so the file
    is written here first and uploaded whole.
    """
    fs, path = open_filesystem(location)
    if not isinstance(fs, LocalFileSystem):
        with tempfile.NamedTemporaryFile() as spool:
            write(cast(IO[bytes], spool))
            spool.flush()
            with explained(location):
                fs.put_file(spool.name, path)
        return
    target = Path(path)
    with _new_local_file(location, target) as temporary:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)


@contextlib.contextmanager
def _new_local_file(location: str, target: Path) -> Iterator[Path]:
    """A temporary name beside a target whose folder is there; nothing of that name is left afterwards.

    Raises:
        StoreError: the disk is full, or nothing may be written there.
    """
    temporary = _temporary_beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise StoreError(f"{location}: cannot be written ({error.strerror}); what is finished is kept") from error
    finally:
        with contextlib.suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def write_file(location: str, content: bytes) -> None:
    """A small file, whole or not at all."""
    write_atomically(location, lambda stream: stream.write(content))


def create_file(location: str, content: bytes) -> bool:
    """Write a small file unless there is one: True where it was made. Whoever reads it finds it whole.

    Atomic on local disks and on S3 (conditional put); other stores look first, so two creators within milliseconds of each
    other may both believe it.
    """
    fs, path = open_filesystem(location)
    if not isinstance(fs, LocalFileSystem):
        with contextlib.suppress(FileExistsError), explained(location):
            fs.pipe_file(path, content, mode="create")
            return True
        return False
    with _new_local_file(location, Path(path)) as temporary:
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _create_unlinked(Path(path), content)
    return True


def _create_unlinked(target: Path, content: bytes) -> bool:
    """For file systems without hard links: made at most once, but for an instant there without its content."""
    try:
        with target.open("xb") as stream:
            stream.write(content)
    except FileExistsError:
        return False
    return True


def remove_temporaries(location: str) -> None:
    """Remove what killed writers of this machine left in a local folder; those that still run keep theirs."""
    folder = Path(open_filesystem(location)[1])
    if not is_local(location) or not folder.is_dir():
        return
    for path in folder.glob(f"{TEMPORARY_PREFIX}{_HOST}-*"):
        pid = path.name[len(TEMPORARY_PREFIX) + len(_HOST) + 1 :].split("-", 1)[0]
        if pid.isdigit() and not _is_written(path, int(pid)):
            path.unlink(missing_ok=True)


def start_of_process(pid: int) -> float | None:
    """When a process of this machine was started, in seconds since 1970; None where there is none that still runs.

    A dead process that nobody has waited for (in a container often nobody does) is no running one.
    """
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def remove_file(location: str) -> None:
    """Remove a file; one that is not there is no error."""
    with contextlib.suppress(FileNotFoundError), _opened(location) as (fs, path):
        fs.rm_file(path)


def remove_folder(location: str) -> None:
    """Remove a folder with all that is in it; one that is not there is no error."""
    with contextlib.suppress(FileNotFoundError), _opened(location) as (fs, path):
        fs.rm(path, recursive=True)


def _temporary_beside(target: Path) -> Path:
    return target.with_name(f"{TEMPORARY_PREFIX}{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}-{target.name}")


def _is_written(temporary: Path, pid: int) -> bool:
    """Whether the process that began a temporary file still runs, and not a later one of the same number."""
    started = start_of_process(pid)
    try:
        return started is not None and started < temporary.stat().st_mtime + 1.0
    except FileNotFoundError:
        return False


def _is_temporary(path: str) -> bool:
    return path.rsplit("/", 1)[-1].startswith(TEMPORARY_PREFIX)


def is_writable_folder(location: str) -> bool:
    """Whether results may be put into a local folder. One whose mode lets nobody write is left alone, even by root."""
    path = Path(location)
    return path.is_dir() and bool(path.stat().st_mode & 0o222) and os.access(path, os.W_OK)


def user_cache() -> str:
    """Where this user's derived files go: $SARM_RAY_CACHE, else $XDG_CACHE_HOME/sarm_ray, else ~/.cache/sarm_ray."""
    return absolute(os.environ.get("SARM_RAY_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/sarm_ray")
