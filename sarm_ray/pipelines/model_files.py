"""A model's files on whatever node a worker runs: Ray carries them there; they need lie on the driver's machine alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray

from sarm_ray.data.model_store import copies_folder, publish_copy
from sarm_ray.errors import CheckpointError
from sarm_ray.model.checkpoint import WEIGHTS_FILE
from sarm_ray.model.encoder import WEIGHT_FILES
from sarm_ray.pipelines.nodes import Cluster
from sarm_ray.pipelines.runtime import call_aside, make_aside

CHECKPOINT_FILES = (WEIGHTS_FILE,)
ENCODER_FILES = ("config.json", WEIGHT_FILES)  # the first of the weight files that is there


@dataclass(frozen=True)
class ModelFiles:
    """Files that workers need.

    Args:
        folder: on the driver's machine.
        node: the driver's, by Ray's id.
        digests: name -> sha256.
        content: reference to name -> (N,) uint8; None where there is no other node.
    """

    folder: str
    node: str
    digests: dict[str, str]
    content: ray.ObjectRef | None


def carry_files(folder: str, wanted: Sequence[str | Sequence[str]], cluster: Cluster) -> ModelFiles:
    """Put files of a folder into the object store, where other nodes may want them. The driver itself reads none.

    Args:
        folder: on this machine.
        wanted: names; of several together the first one that is there.
        cluster: of the run.

    Raises:
        CheckpointError: a file was written anew meanwhile.
    """
    choices = [(names,) if isinstance(names, str) else names for names in wanted]
    there = [next((name for name in names if (Path(folder) / name).is_file()), names[0]) for names in choices]
    node = ray.get_runtime_context().get_node_id()
    if not cluster.joined:
        return ModelFiles(folder, node, {}, None)
    digests = call_aside(_digest_files, folder, there)
    return ModelFiles(folder, node, digests, make_aside(_read_files, folder, digests))


def folder_here(files: ModelFiles) -> str:
    """A folder with those files on this process's node: the driver's own where it runs there, else a copy in the cache."""
    if files.content is None or files.node == ray.get_runtime_context().get_node_id():
        return files.folder
    key = hashlib.sha256(repr(sorted(files.digests.items())).encode()).hexdigest()[:32]
    copy = copies_folder() / key
    if not copy.is_dir():
        content = ray.get(files.content)
        publish_copy(copy, {name: iter([array.data]) for name, array in content.items()})
    return str(copy)


def _digest_files(folder: str, names: Sequence[str]) -> dict[str, str]:
    return {name: hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest() for name in names}


def _read_files(folder: str, digests: dict[str, str]) -> dict[str, np.ndarray]:
    content = {name: np.fromfile(Path(folder) / name, dtype=np.uint8) for name in digests}
    changed = [name for name, array in content.items() if hashlib.sha256(array.data).hexdigest() != digests[name]]
    if changed:
        raise CheckpointError(f"{folder}/{changed[0]} is being written; start again when it is complete")
    return content
