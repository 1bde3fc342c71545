"""Copies of models on this machine's disk, each under a name that changes with its content.

    $SARM_RAY_CACHE/models/<digest>/       config.json, model.safetensors, ...; whole or absent
    $SARM_RAY_CACHE/models/.tmp-*          one on its way; what a killed process left goes after a day

The copies may be deleted at any time when nothing runs.
"""

import contextlib
import fnmatch
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from sarm_ray.data import storage
from sarm_ray.data.node_cache import local_cache
from sarm_ray.errors import StoreError

ABANDONED_S = 86_400.0


def copies_folder() -> Path:
    """Where copies are."""
    return local_cache() / "models"


def copy_model(location: str, patterns: Sequence[str]) -> str:
    """The folder on this machine's disk that has the files of a remote one whose names fit.

    A folder whose files were written anew is another one here.

    Args:
        location: of the folder, an fsspec URL. patterns: of the files right inside it.

    Raises:
        FileNotFoundError: no file there fits.
        StoreError: the store does not let us in, the files are being written, or the disk is full.
    """
    stamps = _stamps(location, patterns)
    if not stamps:
        raise FileNotFoundError(location)
    key = hashlib.sha256(repr((storage.absolute(location), stamps)).encode()).hexdigest()[:32]
    copy = copies_folder() / key
    if not copy.is_dir():
        pieces = {
            name: storage.read_pieces(storage.join(location, name), storage.size_of(stamp))
            for name, stamp in stamps.items()
        }
        publish_copy(copy, pieces, lambda: _require_same(location, stamps, _stamps(location, patterns)))
    return str(copy)


def _stamps(location: str, patterns: Sequence[str]) -> dict[str, str]:
    return {
        name: stamp
        for name, stamp in sorted(storage.list_files(location).items())
        if "/" not in name and any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    }


def _require_same(location: str, before: dict[str, str], now: dict[str, str]) -> None:
    if before != now:
        raise StoreError(f"{location} is being written; start again when it is complete")


def publish_copy(copy: Path, files: Mapping[str, Iterable[bytes]], check: Callable[[], None] = lambda: None) -> None:
    """Write a folder that appears whole or not at all; where another process was first, its folder stays.

    Args:
        copy: the folder. files: name -> pieces. check: raises where what was read is not to be published.

    Raises:
        StoreError: the disk is full, or nothing may be written there.
    """
    unfinished = copy.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        _remove_abandoned(copy.parent)
        unfinished.mkdir(parents=True)
        for name, pieces in files.items():
            with (unfinished / name).open("wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        check()
        try:
            unfinished.rename(copy)
        except OSError:
            if not copy.is_dir():
                raise
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{copy}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    for left in folder.glob(".tmp-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
