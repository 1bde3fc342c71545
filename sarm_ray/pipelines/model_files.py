"""A model's files on whatever node a worker runs: Ray carries them there; they need lie on the driver's machine alone.

A node that has the same files at the same place (a shared disk, the driver's own) uses those.
"""

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray

from sarm_ray.data.node_cache import local_cache
from sarm_ray.model.checkpoint import WEIGHTS_FILE
from sarm_ray.model.encoder import WEIGHT_FILES
from sarm_ray.pipelines.nodes import node_ids
from sarm_ray.pipelines.runtime import make_aside

CHECKPOINT_FILES = (WEIGHTS_FILE,)
ENCODER_FILES = ("config.json", *WEIGHT_FILES)


@dataclass(frozen=True)
class ModelFiles:
    """Files that workers need.

    Args:
        folder: on the driver's machine.
        sizes: name -> bytes.
        weights: sha256 by which the model is known.
        content: reference to name -> (N,) uint8; None where there is no other node.
    """

    folder: str
    sizes: dict[str, int]
    weights: str
    content: ray.ObjectRef | None


def carry_files(folder: str, names: Sequence[str], weights: str) -> ModelFiles:
    """Put files of a folder into the object store, where there are other nodes. The driver itself reads none of them."""
    there = [name for name in names if (Path(folder) / name).is_file()]
    sizes = {name: (Path(folder) / name).stat().st_size for name in there}
    several = len(node_ids(alive=True)) > 1
    return ModelFiles(folder, sizes, weights, make_aside(_read_files, folder, there) if several else None)


def folder_here(files: ModelFiles) -> str:
    """A folder with those files on this process's node: the driver's own if it is here too, else a copy in the cache."""
    if files.content is None or _has_files(Path(files.folder), files.sizes):
        return files.folder
    key = hashlib.sha256(f"{files.weights} {sorted(files.sizes.items())}".encode()).hexdigest()[:32]
    copy = local_cache() / "models" / key
    if not _has_files(copy, files.sizes):
        unfinished = copy.with_name(f".tmp-{uuid.uuid4().hex}")
        unfinished.mkdir(parents=True)
        for name, content in ray.get(files.content).items():
            content.tofile(unfinished / name)
        with contextlib.suppress(OSError):  # another process of this node was first
            unfinished.rename(copy)
        shutil.rmtree(unfinished, ignore_errors=True)
    return str(copy)


def _has_files(folder: Path, sizes: dict[str, int]) -> bool:
    paths = {folder / name: size for name, size in sizes.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _read_files(folder: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: np.fromfile(Path(folder) / name, dtype=np.uint8) for name in names}
