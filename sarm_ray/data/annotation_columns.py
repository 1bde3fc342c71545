"""The keys of an episode's subtasks in a dataset's metadata: what goes under each, and how old annotations are carried on.

v3.0 has them as columns of the episode table, v2.x as keys of a line of JSON; the values are the same. A reader takes a key
for all episodes or for none: it looks for frames where there is a column of frames, and for sparse subtasks without a
prefix only where there are none with it. So what older tools left for other episodes is completed when a kind is written,
or the first new annotation would hide it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sarm_ray.core.subtasks import FrameSubtasks
from sarm_ray.data.annotation_io import PREFIXES
from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import DatasetError, name_list

PARTS = ("names", "start_times", "end_times", "start_frames", "end_frames")
PREFIXES_OF = {"sparse": (PREFIXES["sparse"], PREFIXES["unprefixed"]), "dense": (PREFIXES["dense"],)}

Values = dict[str, list | None]


def keys_of(prefix: str) -> list[str]:
    """The five keys of a prefix, in LeRobot's order."""
    return [f"{prefix}subtask_{part}" for part in PARTS]


def key_type(key: str) -> pa.DataType:
    """The type of a column, to the name of its nested field."""
    return pa.list_(pa.field("element", pa.string() if key.endswith("_names") else pa.int64()))


def updated_values(
    old: Mapping[str, Any], new: Mapping[str, FrameSubtasks | None], fps: float, where: str
) -> dict[str, list | None]:
    """What one episode has under the keys of the kinds that are being written.

    Args:
        old: key -> list or None, as it is now; keys may be missing.
        new: kind -> its new subtasks, or None: it keeps what it has.
        fps: of the dataset; times are whole seconds, and the frames carry the exact boundaries.
        where: names the episode in messages.

    Returns:
        key -> list or None, for all keys of the kinds in `new`.

    Raises:
        DatasetError: the old values are no lists of names and numbers.
    """
    values: Values = {}
    for kind, subtasks in new.items():
        if subtasks is not None:
            for prefix in PREFIXES_OF[kind]:
                values |= dict(zip(keys_of(prefix), _parts(subtasks, fps), strict=True))
            continue
        kept = [_kept(old, prefix, fps, where) for prefix in PREFIXES_OF[kind]]
        first = next((parts for parts in kept if parts[0] is not None), kept[0])
        for prefix, parts in zip(PREFIXES_OF[kind], kept, strict=True):
            values |= dict(zip(keys_of(prefix), parts if parts[0] is not None else first, strict=True))
    return values


def check_subtasks_of(dataset: Dataset, kind: str, subtasks: Mapping[int, FrameSubtasks]) -> None:
    """Refuse what cannot be an annotation of this dataset, whoever made it.

    Raises:
        DatasetError: an episode that there is not, or subtasks that do not lie inside theirs.
    """
    length = dict(zip(dataset.episode_index.tolist(), dataset.length.tolist(), strict=True))
    strangers = sorted(set(subtasks) - length.keys())
    if strangers:
        raise DatasetError(
            f"{dataset.name}: {kind} subtasks for episode {name_list(map(str, strangers))}, which the dataset does not "
            f"have; leave them out, or look whether this is the dataset that was annotated"
        )
    for episode, own in subtasks.items():
        objection = _objection(own, length[episode])
        if objection:
            raise DatasetError(f"{dataset.name}: episode {episode}: {kind} subtasks: {objection}")


def _objection(own: FrameSubtasks, length: int) -> str:
    """What is wrong with subtasks of an episode of `length` frames; an end may be the frame after the last one."""
    if not len(own.names) == len(own.start) == len(own.end):
        return f"{len(own.names)} names, {len(own.start)} starts and {len(own.end)} ends"
    if not own.names:
        return "there are none; leave the episode out to keep what it has"
    for name, start, end in zip(*own, strict=True):
        if not name.strip():
            return "one has no name"
        if name != name.encode(errors="replace").decode():
            return f"the name {name!r} is no text that a file can hold"
        if not 0 <= start <= end <= length:
            return f"{name!r} goes from frame {start} to {end}, and the episode has {length} frames"
    return ""


def _parts(own: FrameSubtasks, fps: float) -> tuple[list, ...]:
    """The values of the five keys, in their order."""
    start, end = list(map(int, own.start)), list(map(int, own.end))
    times = [[round(frame / fps) for frame in bound] for bound in (start, end)]
    return list(own.names), *times, start, end


def _kept(old: Mapping[str, Any], prefix: str, fps: float, where: str) -> tuple[list | None, ...]:
    """The old values of the five keys; frames and times are made from each other where only one is there."""
    keys = keys_of(prefix)
    names, *bounds = (old.get(key) for key in keys)
    for key, value in zip(keys, (names, *bounds), strict=True):
        element = str if key.endswith("_names") else int | float
        if value is not None and not (
            isinstance(value, list)
            and all(each is None or (isinstance(each, element) and not isinstance(each, bool)) for each in value)
        ):
            raise DatasetError(
                f"{where}: {key} is no list of {'names' if element is str else 'numbers'}; remove it, or correct it"
            )
    start_times, end_times, start_frames, end_frames = bounds
    start_frames = start_frames if start_frames is not None else _scaled(start_times, fps)
    end_frames = end_frames if end_frames is not None else _scaled(end_times, fps)
    start_times = start_times if start_times is not None else _scaled(start_frames, 1 / fps)
    end_times = end_times if end_times is not None else _scaled(end_frames, 1 / fps)
    whole = (_scaled(bound, 1) for bound in (start_times, end_times, start_frames, end_frames))
    return names, *whole


def _scaled(values: Sequence[float | None] | None, factor: float) -> list[int | None] | None:
    """Whole numbers; what is none (null, NaN) stays a hole, which makes an annotation broken for every reader."""
    if values is None:
        return None
    return [None if value is None or not math.isfinite(value) else round(value * factor) for value in values]
