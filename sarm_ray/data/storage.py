"""Where bytes lie: local paths, fsspec URLs and Hub repositories; atomic writes; file stamps.

A location is a string: an absolute local path or a URL that fsspec knows. Nobody ever sees a partial file: writers go
through `write_atomically`.
"""

import contextlib
import json
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

from sarm_ray.errors import DatasetError

TEMPORARY_PREFIX = ".tmp-"
_HOST = platform.node().replace("-", "_") or "localhost"


def open_filesystem(location: str) -> tuple[Any, str]:
    """The fsspec filesystem of a location, and the path inside it.

    Raises:
        DatasetError: a scheme that fsspec does not know, or whose package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise DatasetError(f"{location}: {error}") from error


def is_local(location: str) -> bool:
    return isinstance(open_filesystem(location)[0], LocalFileSystem)


def absolute(location: str) -> str:
    """A local path made absolute with `~` resolved; a URL as it is."""
    return location if "://" in location else str(Path(location).expanduser().resolve())


def join(location: str, *parts: str) -> str:
    return "/".join([location.rstrip("/"), *parts])


def parent(location: str) -> str:
    return location.rstrip("/").rsplit("/", 1)[0]


def exists(location: str) -> bool:
    fs, path = open_filesystem(location)
    return bool(fs.exists(path))


def is_folder(location: str) -> bool:
    fs, path = open_filesystem(location)
    return bool(fs.isdir(path))


def read_bytes(location: str) -> bytes:
    fs, path = open_filesystem(location)
    return fs.cat_file(path)


def read_json(root: str, path: str, missing: dict | None = None) -> dict:
    location = join(root, path)
    try:
        value = json.loads(read_bytes(location))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise DatasetError(f"{root}: not a LeRobot dataset (there is no {path})") from None
    except ValueError as error:
        raise DatasetError(f"{location}: malformed JSON ({error})") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{location}: expected an object, found {type(value).__name__}")
    return value


def read_jsonl(root: str, path: str, missing: bool = False) -> list[dict]:
    location = join(root, path)
    try:
        lines = read_bytes(location).decode().splitlines()
    except FileNotFoundError:
        if missing:
            return []
        raise DatasetError(f"{root}: there is no {path}") from None
    entries = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                entries.append(json.loads(line))
            except ValueError as error:
                raise DatasetError(f"{location}: line {number}: malformed JSON ({error})") from error
    return entries


def open_input(location: str) -> IO[bytes]:
    fs, path = open_filesystem(location)
    return fs.open(path, "rb")


def list_files(location: str) -> dict[str, str]:
    """Finished files below a folder, which need not exist: path relative to it -> stamp (see `stamp_of`)."""
    fs, root = open_filesystem(location)
    if not fs.exists(root):
        return {}
    root = fs._strip_protocol(root).rstrip("/")
    if isinstance(fs, LocalFileSystem):
        return dict(_walk_local(root))
    found = fs.find(root, detail=True).items()
    return {path[len(root) + 1 :]: stamp_of(info) for path, info in found if not _is_temporary(path)}


def _walk_local(root: str) -> Iterator[tuple[str, str]]:
    """Links are followed, and stamped by what they lead to: datasets are often spread over disks that way."""
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118  # a Path for each of a million files takes minutes
            if not _is_temporary(path) and os.path.exists(path):  # noqa: PTH110
                status = os.stat(path)  # noqa: PTH116
                yield path[len(root) + 1 :], stamp_of({"size": status.st_size, "mtime": status.st_mtime})


def stamp_of(info: dict) -> str:
    """What changes when a file is written anew: its size with its etag, or with its mtime."""
    tag = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or ""
    return f"{info.get('size', 0)}-{tag}"


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
            fs.put_file(spool.name, path)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}-{target.name}")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(location: str) -> None:
    """Remove what killed writers of this machine left in a local folder; those that still run keep theirs."""
    folder = Path(open_filesystem(location)[1])
    if not is_local(location) or not folder.is_dir():
        return
    for path in folder.glob(f"{TEMPORARY_PREFIX}{_HOST}-*"):
        pid = path.name[len(TEMPORARY_PREFIX) + len(_HOST) + 1 :].split("-", 1)[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            path.unlink(missing_ok=True)


def remove_file(location: str) -> None:
    """Remove a file; one that is not there is no error."""
    fs, path = open_filesystem(location)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def _is_temporary(path: str) -> bool:
    return path.rsplit("/", 1)[-1].startswith(TEMPORARY_PREFIX)


def is_writable_folder(location: str) -> bool:
    """Whether results may be put into a local folder. One whose mode lets nobody write is left alone, even by root."""
    path = Path(location)
    return path.is_dir() and bool(path.stat().st_mode & 0o222) and os.access(path, os.W_OK)


def user_cache() -> str:
    """Where this user's derived files go: $SARM_RAY_CACHE, else $XDG_CACHE_HOME/sarm_ray, else ~/.cache/sarm_ray."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return absolute(os.environ.get("SARM_RAY_CACHE") or f"{base}/sarm_ray")


def is_hub_id(name: str) -> bool:
    """`owner/name` and nothing that looks like a path or URL."""
    owner, _, repository = name.partition("/")
    return bool(owner) and bool(repository) and "/" not in repository and not name.startswith((".", "~", "/"))


def lerobot_home() -> Path:
    """LeRobot's own place for datasets: $HF_LEROBOT_HOME, else $HF_HOME/lerobot."""
    hub_home = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
    return Path(os.environ.get("HF_LEROBOT_HOME") or Path(hub_home) / "lerobot").expanduser()


def download_from_hub(repo_id: str, patterns: list[str], revision: str | None, repo_type: str) -> str:
    """The given files of a Hub repository, in the Hub's own cache.

    Args:
        repo_id: `owner/name`.
        patterns: exact file names or globs; nothing else is fetched.
        revision: branch, tag or commit; None is the default branch.
        repo_type: `dataset` or `model`.

    Returns:
        The local snapshot folder.

    Raises:
        DatasetError: the repository cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return snapshot_download(repo_id, repo_type=repo_type, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise DatasetError(
            f"{repo_id}: no such local folder, and the Hub has no such {repo_type} within reach ({_first_line(error)})"
        ) from error


def list_hub_files(repo_id: str, revision: str | None) -> dict[str, str]:
    """All files of a Hub dataset: path -> stamp (size and content id), without fetching any."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        tree = list(HfApi().list_repo_tree(repo_id, repo_type="dataset", revision=revision, recursive=True))
    except Exception as error:  # a lost connection comes as an error of whatever HTTP library it uses
        raise DatasetError(f"{repo_id}: the Hub does not list its files ({_first_line(error)})") from error
    return {entry.path: f"{entry.size}-{entry.blob_id}" for entry in tree if isinstance(entry, RepoFile)}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
