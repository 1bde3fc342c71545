"""Datasets below a folder, and what is in them: one listing, names and stamps alone, nothing opened."""

import functools
import hashlib
from collections.abc import Callable, Mapping

from sarm_ray.data import storage

INFO = "meta/info.json"
MAX_DEPTH = 3
OURS = (".run", ".sarm_features")


def list_datasets(folder: str) -> dict[str, dict[str, str]]:
    """The datasets at or below a folder, at most MAX_DEPTH folders down: path relative to it -> files that they consist of.

    A dataset is what has a meta/info.json; none is looked for inside another one, in a hidden folder, or in what this
    package writes. Its files are those in its folders, path -> stamp, but for pictures of an episode being recorded.

    Args:
        folder: a local one, or a URL; one that is not there has none.

    Raises:
        StoreError: the store does not answer or refuses us.
    """
    return group_files(storage.list_files(folder, _gate(folder) if storage.is_local(folder) else None))


def _gate(folder: str) -> Callable[[str], bool]:
    """Of a local folder: which folders below it are worth a look, by their path relative to it."""

    @functools.cache
    def is_dataset(path: str) -> bool:
        return storage.exists(storage.join(folder, path, INFO) if path else storage.join(folder, INFO))

    def enter(path: str) -> bool:
        above, _, name = path.rpartition("/")
        if _is_foreign(name) or (name == "images" and is_dataset(above)):
            return False
        parts = path.split("/")
        return len(parts) <= MAX_DEPTH + 1 or any(is_dataset("/".join(parts[:depth])) for depth in range(MAX_DEPTH + 1))

    return enter


def group_files(files: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Files below a folder by the dataset that they belong to: what `list_datasets` returns."""
    roots = {
        path.removesuffix(INFO).rstrip("/")
        for path in files
        if (path == INFO or path.endswith(f"/{INFO}")) and not any(map(_is_foreign, path.split("/")))
    }
    roots = {
        root
        for root in roots
        if _depth(root) <= MAX_DEPTH and not (root and any(above in roots for above in _above(root)))
    }
    found: dict[str, dict[str, str]] = {root: {} for root in sorted(roots)}
    for path, stamp in files.items():
        root = next((above for above in _above(path) if above in roots), None)
        if root is None:
            continue
        own = path[len(root) + 1 :] if root else path
        folders = own.split("/")[:-1]
        if folders and folders[0] != "images" and not any(map(_is_foreign, own.split("/"))):
            found[root][own] = stamp
    return found


def digest_files(files: Mapping[str, str]) -> str:
    """One short text for names and stamps, in whatever order."""
    text = "\n".join(f"{path}\t{stamp}" for path, stamp in sorted(files.items()))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _is_foreign(name: str) -> bool:
    """Hidden, or written by this package."""
    return name.startswith(".") or name.endswith(OURS)


def _depth(root: str) -> int:
    return root.count("/") + 1 if root else 0


def _above(path: str) -> list[str]:
    """The folders above a path, the outermost first, which is "": at most MAX_DEPTH deep."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:depth]) for depth in range(min(len(parts), MAX_DEPTH) + 1)]
