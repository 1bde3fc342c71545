"""The folder of a training run: LeRobot's layout, every checkpoint whole or absent.

config.yaml  metrics.jsonl  summary.json
checkpoints/<step>/pretrained_model/   what score, serve and LeRobot load
checkpoints/<step>/training_state/     what --resume needs
checkpoints/last, best                 links to one of them
"""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sarm_ray.errors import CheckpointError, OutputExistsError
from sarm_ray.model.training_state import read_facts

CHECKPOINTS, PRETRAINED, STATE = "checkpoints", "pretrained_model", "training_state"
LAST, BEST = "last", "best"


def step_folder(output_dir: str, step: int) -> Path:
    return Path(output_dir) / CHECKPOINTS / f"{step:06d}"


def last_step(output_dir: str) -> int | None:
    """The step of the last whole checkpoint, or None."""
    return max(_steps(output_dir), default=None)


def linked(output_dir: str, link: str) -> Path | None:
    """The checkpoint that `last` or `best` points to, or None."""
    path = Path(output_dir) / CHECKPOINTS / link
    return path.resolve() if path.exists() else None


def read_last_facts(output_dir: str) -> dict[str, Any] | None:
    """What the last checkpoint notes of its run, or None where there is none yet. Its tensors are not the driver's affair.

    Raises:
        CheckpointError: it cannot be read.
    """
    step = last_step(output_dir)
    return None if step is None else read_facts(str(step_folder(output_dir, step) / STATE))


def write_checkpoint(output_dir: str, step: int, write: Callable[[Path], None], best: bool, keep: int) -> None:
    """Add a checkpoint: after this call it is there, before it it is not.

    Args:
        output_dir: of the run.
        step: finished optimiser steps.
        write: fills the folder that it is given.
        best: whether `best` is to point to it.
        keep: latest checkpoints that are kept; the best one is kept besides.
    """
    target = step_folder(output_dir, step)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        unfinished = target.with_name(f".tmp-{uuid.uuid4().hex[:8]}")
        write(unfinished)
        unfinished.rename(target)
    for link in (LAST, *([BEST] if best else [])):
        _point(target.parent / link, target.name)
    _prune(output_dir, keep)


def mend_links(output_dir: str) -> None:
    """Point `last` and `best` where the last checkpoint says: a run may have been killed after it and before its links."""
    facts = read_last_facts(output_dir)
    if facts is None:
        return
    for link, step in ((LAST, last_step(output_dir)), (BEST, facts.get("best_step"))):
        if step is not None and step_folder(output_dir, step).is_dir():
            _point(Path(output_dir) / CHECKPOINTS / link, step_folder(output_dir, step).name)


def refuse_used(output_dir: str) -> None:
    """Raise an OutputExistsError where a run has left something."""
    folder = Path(output_dir)
    used = [name for name in ("config.yaml", CHECKPOINTS, "metrics.jsonl", "summary.json") if (folder / name).exists()]
    if used:
        raise OutputExistsError(
            f"{output_dir} holds a training run ({used[0]}); go on with it by --resume, or choose another --output-dir"
        )


def remove_unfinished(output_dir: str) -> None:
    """Remove what a killed process left half written."""
    for path in (Path(output_dir) / CHECKPOINTS).glob(".tmp-*"):
        if path.is_symlink() or path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path)


def require_writable(output_dir: str) -> None:
    """Make the folder.

    Raises:
        CheckpointError: it cannot be made or written to.
    """
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{output_dir}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise CheckpointError(f"{output_dir}: no permission to write there")


def _steps(output_dir: str) -> list[int]:
    folder = Path(output_dir) / CHECKPOINTS
    return [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()]


def _point(link: Path, name: str) -> None:
    """Make a relative link, replacing one that is there in one step."""
    new = link.with_name(f".tmp-{uuid.uuid4().hex[:8]}")
    new.symlink_to(name)
    new.replace(link)


def _prune(output_dir: str, keep: int) -> None:
    best = linked(output_dir, BEST)
    for step in sorted(_steps(output_dir))[:-keep]:
        folder = step_folder(output_dir, step)
        if best is None or folder.resolve() != best:
            doomed = folder.with_name(f".tmp-{uuid.uuid4().hex[:8]}")
            folder.rename(doomed)  # a half-removed checkpoint is never seen
            shutil.rmtree(doomed)
