"""Writing subtask annotations into a dataset's metadata, as LeRobot's annotation tool lays them out.

The episode table is rewritten once, file by file, each at once or not at all, and nothing in it changes but the subtasks:
LeRobot's tool rewrites a file for every episode, loses the schema's metadata, and cannot write into a table of several
files. A run that dies between two files has annotated some episodes; writing again completes the others.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.core.subtasks import FrameSubtasks
from sarm_ray.core.targets import annotated_segments, temporal_proportions
from sarm_ray.data import storage
from sarm_ray.data.annotation_columns import PREFIXES_OF, Values, check_subtasks_of, key_type, keys_of, updated_values
from sarm_ray.data.annotation_io import Annotations, annotation_of, read_annotations
from sarm_ray.data.json_text import with_keys
from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import DatasetError, name_list

TABLE_V3, TABLE_V2 = "meta/episodes", "meta/episodes.jsonl"

Subtasks = Mapping[str, Mapping[int, FrameSubtasks]]


def write_annotations(dataset: Dataset, subtasks: Subtasks, root: str | None = None) -> list[str]:
    """Put subtasks into the episode table. Episodes that are not named keep what they have.

    A file in which nothing changes is left alone. Another folder than the dataset's own gets the whole table, so that it
    can be read for itself or laid over the dataset; what was written there before is kept as the dataset's own would be.

    Args:
        dataset: the dataset.
        subtasks: kind (`sparse`, `dense`) -> episode_index -> its subtasks; a last end may be the last frame or, as LeRobot
            has it, the frame after it.
        root: location of the folder that gets the files, under the paths that they have in the dataset; the dataset's own
            unless told.

    Returns:
        Locations of the files that were written.

    Raises:
        DatasetError: subtasks that cannot be the dataset's, a table that cannot be read or is not the dataset's, or a
            folder that must not be written into: a Hub snapshot, or one that is read-only.
        StoreError: the disk is full, or a store refuses us.
    """
    unknown = sorted(set(subtasks) - PREFIXES_OF.keys())
    if unknown:
        raise DatasetError(f"{dataset.name}: {unknown[0]!r} subtasks; there are {name_list(PREFIXES_OF)} ones")
    subtasks = {kind: subtasks[kind] for kind in PREFIXES_OF if subtasks.get(kind)}
    for kind, own in subtasks.items():
        check_subtasks_of(dataset, kind, own)
    if not subtasks:
        return []
    root = _target(dataset, root)
    if dataset.version == "v3.0":
        return _write_v3(dataset, subtasks, root)
    return _write_v2(dataset, subtasks, root)


def write_proportions(dataset: Dataset, kind: str, stages: Sequence[str], root: str | None = None) -> list[str]:
    """Write meta/temporal_proportions_<kind>.json: each stage's mean share over all annotations there are, old and new.

    Episodes whose annotation is not made of these stages, or is torn, do not count: one of them would spoil the shares of
    all. Training refuses such episodes and stages that never appear, so they are said at once.

    Args:
        dataset: the dataset.
        kind: `sparse` or `dense`.
        stages: names in the order of the task; the file has all of them, in this order.
        root: where the annotations were written and the file goes; the dataset's own folder unless told.

    Returns:
        What the user has to know, a sentence each.

    Raises:
        DatasetError: no episode has usable subtasks of this kind, or the folder must not be written into.
        StoreError: the disk is full, or a store refuses us.
    """
    root = _target(dataset, root)
    if kind not in PREFIXES_OF or not stages or len(set(stages)) < len(stages):
        raise DatasetError(
            f"{dataset.name}: proportions need a kind, {name_list(PREFIXES_OF)}, and stages that differ; "
            f"they are {kind!r} and {name_list(stages)}"
        )
    own = annotation_of(read_annotations(replace(dataset, root=root, repo_id=None)), kind)
    if own is None:
        raise DatasetError(f"{root}: no episode has {kind} subtasks; write them first")
    usable, notices = _usable(dataset, own, stages)
    shares = _mean_shares(own, usable, stages)
    if shares is None:
        raise DatasetError(
            f"{root}: no episode has usable {kind} subtasks of {name_list(stages)}; " + "; ".join(notices)
        )
    absent = [name for name, share in shares.items() if share is None]
    if absent:
        notices.append(
            f"no episode has the {kind} subtask {name_list(map(repr, absent))}: its share is 0; annotate an episode that "
            f"has it before training"
        )
    content = json.dumps({name: share or 0.0 for name, share in shares.items()}, indent=2)
    storage.write_file(storage.join(root, f"meta/temporal_proportions_{kind}.json"), content.encode())
    return notices


def _usable(dataset: Dataset, own: Annotations, stages: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """(E,) bool, episodes whose segments are of these stages and end after they start; and what is said of the others."""
    known = np.isin(own.stages, stages) if own.stages else np.zeros(0, dtype=bool)
    usable, notices = own.annotated.copy(), []
    foreign, backward = np.unique(own.row[~known[own.stage]]), np.unique(own.row[own.end < own.start])
    names = [name for name, is_known in zip(own.stages, known, strict=True) if not is_known]
    for rows, what in (
        (foreign, f"{own.kind} subtasks that are none of {name_list(stages)} ({name_list(names)})"),
        (backward, f"{own.kind} subtasks that end before they start"),
        (np.flatnonzero(own.broken), f"{own.kind} subtasks with other numbers of names, starts and ends"),
    ):
        rows = rows[usable[rows] | own.broken[rows]]  # each is named once
        usable[rows] = False
        if len(rows):
            episodes = name_list(map(str, dataset.episode_index[rows].tolist()))
            notices.append(
                f"{'episodes' if len(rows) > 1 else 'episode'} {episodes}: {what}; left out of the proportions, annotate "
                f"again or leave out of training"
            )
    return usable, notices


def _mean_shares(own: Annotations, usable: np.ndarray, stages: Sequence[str]) -> dict[str, float | None] | None:
    """Stage -> mean share, None for one that no usable episode has; None where no segment has a duration."""
    keep, counts = usable[own.row], np.diff(own.offsets)[usable]
    present = [name for name in stages if name in {own.stages[number] for number in np.unique(own.stage[keep])}]
    if not present:
        return None
    number = np.array([present.index(name) if name in present else -1 for name in own.stages])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    try:
        segments = annotated_segments(offsets, number[own.stage[keep]], own.start[keep], own.end[keep])
        shares = dict(zip(present, temporal_proportions(segments, present).tolist(), strict=True))
    except ValueError:
        return None
    return {name: shares.get(name) for name in stages}


def _target(dataset: Dataset, root: str | None) -> str:
    """Where files go, checked before anything is computed."""
    target = dataset.root if root is None else storage.absolute(root)
    if target == dataset.root and dataset.repo_id is not None:
        raise DatasetError(
            f"{dataset.name}: annotations are not written into the cache of the Hub; give a folder for the changed files"
        )
    if not storage.is_local(target):
        return target
    path = Path(storage.open_filesystem(target)[1])
    folders = [path / "meta/episodes", path / "meta", path]
    there = next((folder for folder in folders if folder.is_dir()), None)
    if there is not None and not storage.is_writable_folder(str(there)):
        raise DatasetError(f"{there}: nothing may be written there; give another folder for the changed files")
    return target


# ------------------------------------------------------------------------------------------------------------- v3.0


def _write_v3(dataset: Dataset, subtasks: Subtasks, root: str) -> list[str]:
    """All files get the columns, also those without an episode to change: LeRobot takes them for one table."""
    folder = dataset.location(TABLE_V3)
    paths = sorted(path for path in storage.list_files(folder) if path.endswith(".parquet"))
    elsewhere, changes, numbers = root != dataset.root, [], []
    if elsewhere and (strangers := sorted(storage.list_files(storage.join(root, TABLE_V3)).keys() - set(paths))):
        raise DatasetError(f"{root}/{TABLE_V3}: {strangers[0]} is no file of {dataset.name}; give an empty folder")
    for path in paths:
        target = storage.join(root, TABLE_V3, path)
        source = target if elsewhere and storage.exists(target) else storage.join(folder, path)
        episodes, columns, changed = _new_columns(dataset, source, subtasks)
        numbers.append(episodes)
        if changed or (elsewhere and source != target):
            changes.append((source, target, columns))
    found = np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *numbers]))
    if not np.array_equal(found, dataset.episode_index):
        place = storage.join(root, TABLE_V3) if elsewhere else folder
        raise DatasetError(
            f"{place}: its episodes are not those of {dataset.name} any more; "
            + ("give an empty folder" if elsewhere else "something writes the dataset, start again when it is done")
        )
    for folder in {storage.parent(target) for _, target, _ in changes}:
        storage.remove_temporaries(folder)  # what a killed writer left ends in .parquet, and LeRobot would read it
    for source, target, columns in changes:
        _rewrite(source, target, columns)
    return [target for _, target, _ in changes]


def _new_columns(dataset: Dataset, source: str, subtasks: Subtasks) -> tuple[np.ndarray, dict[str, pa.Array], bool]:
    """episode_index of a file's rows, its new columns, and whether any of them differs from what is there."""
    keys = [key for kind in subtasks for prefix in PREFIXES_OF[kind] for key in keys_of(prefix)]
    try:
        with storage.open_input(source) as stream, pq.ParquetFile(stream) as file:
            old = file.read(columns=["episode_index", *(key for key in keys if key in file.schema_arrow.names)])
        episodes = old["episode_index"].to_numpy().astype(np.int64)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DatasetError(f"{source}: not a readable episode table ({str(error).splitlines()[0]})") from error
    values = [
        updated_values(row, _new_of(subtasks, episode), dataset.fps, f"{source}: episode {episode}")
        for row, episode in zip(old.to_pylist(), episodes.tolist(), strict=True)
    ]
    columns = {key: pa.array([each[key] for each in values], key_type(key)) for key in keys}
    changed = any(
        key not in old.column_names or old[key].type != column.type or not old[key].combine_chunks().equals(column)
        for key, column in columns.items()
    )
    return episodes, columns, changed


def _new_of(subtasks: Subtasks, episode: int) -> dict[str, FrameSubtasks | None]:
    return {kind: own.get(episode) for kind, own in subtasks.items()}


def _rewrite(source: str, target: str, columns: Mapping[str, pa.Array]) -> None:
    """A copy of a parquet file with columns replaced in their place or added at the end, row group by row group."""

    def write(out: IO[bytes]) -> None:
        with storage.open_input(source) as stream, pq.ParquetFile(stream) as file:
            schema = _with_fields(file.schema_arrow, columns)
            meta, start = file.metadata, 0
            if any(len(column) != meta.num_rows for column in columns.values()):
                raise DatasetError(f"{source}: something else writes the dataset; start again when it is done")
            codec = meta.row_group(0).column(0).compression if meta.num_row_groups else "SNAPPY"
            codec = "NONE" if codec == "UNCOMPRESSED" else codec
            with pq.ParquetWriter(out, schema, compression=codec) as writer:
                for group in range(meta.num_row_groups):
                    rows = file.read_row_group(group)
                    stop = start + rows.num_rows
                    arrays = [
                        columns[name].slice(start, stop - start) if name in columns else rows[name]
                        for name in schema.names
                    ]
                    writer.write_table(pa.table(arrays, schema=schema), row_group_size=max(rows.num_rows, 1))
                    start = stop

    try:
        storage.write_atomically(target, write)
    except pa.ArrowException as error:
        raise DatasetError(f"{source}: cannot be copied ({str(error).splitlines()[0]})") from error


def _with_fields(schema: pa.Schema, columns: Mapping[str, pa.Array]) -> pa.Schema:
    """A schema with its metadata and the fields of the columns in it."""
    for name, column in columns.items():
        place = schema.get_field_index(name)
        field = pa.field(name, column.type)
        schema = schema.append(field) if place < 0 else schema.set(place, field)
    return schema


# ------------------------------------------------------------------------------------------------------------- v2.x


def _write_v2(dataset: Dataset, subtasks: Subtasks, root: str) -> list[str]:
    """Lines in which nothing changes stay as they are, byte for byte."""
    target = storage.join(root, TABLE_V2)
    elsewhere = root != dataset.root
    source = target if elsewhere and storage.exists(target) else dataset.location(TABLE_V2)
    try:
        lines = storage.read_bytes(source).split(b"\n")
    except OSError as error:
        raise DatasetError(f"{source}: cannot be read ({error})") from error
    found: list[int] = []
    written: list[bytes] = []
    for number, line in enumerate(lines, 1):
        written.append(_new_line(dataset, line, subtasks, found, f"{source}: line {number}") if line.strip() else line)
    if not np.array_equal(np.sort(np.array(found, dtype=np.int64)), dataset.episode_index):
        raise DatasetError(f"{source}: its episodes are not those of {dataset.name} any more; start again")
    if written == lines and not (elsewhere and source != target):
        return []
    storage.write_file(target, b"\n".join(written))
    return [target]


def _new_line(dataset: Dataset, line: bytes, subtasks: Subtasks, found: list[int], where: str) -> bytes:
    """A line of the table with its episode's subtasks; the episode's number is added to `found`."""
    try:
        text = line.decode()
        entry: dict[str, Any] = json.loads(text)
        episode = int(entry["episode_index"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DatasetError(f"{where}: no JSON object with an episode_index ({error!r})") from error
    found.append(episode)
    values: Values = updated_values(entry, _new_of(subtasks, episode), dataset.fps, where)
    changed = {key: value for key, value in values.items() if value != entry.get(key)}
    return with_keys(text, changed).encode() if changed else line
