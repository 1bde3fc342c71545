"""Models in a bucket: the files of a checkpoint or encoder, copied to this machine once."""

import contextlib
import fnmatch
import hashlib
import shutil
import uuid
from collections.abc import Sequence

from sarm_ray.data import storage
from sarm_ray.data.node_cache import local_cache


def copy_model(location: str, patterns: Sequence[str]) -> str:
    """The folder on this machine's disk that has the files of a remote one whose names fit.

    A folder whose files were written anew is another one here.

    Args:
        location: of the folder, an fsspec URL. patterns: of the files right inside it.

    Raises:
        FileNotFoundError: no file there fits.
        StoreError: the store does not let us in.
    """
    stamps = {
        name: stamp
        for name, stamp in sorted(storage.list_files(location).items())
        if "/" not in name and any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    }
    if not stamps:
        raise FileNotFoundError(location)
    key = hashlib.sha256(repr((storage.absolute(location), stamps)).encode()).hexdigest()[:32]
    copy = local_cache() / "models" / key
    if not copy.is_dir():
        unfinished = copy.with_name(f".tmp-{uuid.uuid4().hex}")
        unfinished.mkdir(parents=True)
        for name, stamp in stamps.items():
            with (unfinished / name).open("wb") as file:
                for piece in storage.read_pieces(storage.join(location, name), storage.size_of(stamp)):
                    file.write(piece)
        with contextlib.suppress(OSError):  # another process of this machine was first
            unfinished.rename(copy)
        shutil.rmtree(unfinished, ignore_errors=True)
    return str(copy)
