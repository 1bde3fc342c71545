"""Subtask annotations of a LeRobot dataset, as its annotation tool writes them: columns of the episode table.

`<prefix>subtask_{names,start_times,end_times,start_frames,end_frames}` with the prefixes `sparse_`, `dense_` and none (a
copy of the sparse ones that older versions read); lists, null where an episode is not annotated. v2.x datasets carry the
same names as keys of episodes.jsonl. Beside them, meta/temporal_proportions_{sparse,dense}.json: name -> mean share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sarm_ray.core.targets import Segments, annotated_segments
from sarm_ray.data.episode_table import read_episode_columns
from sarm_ray.data.json_files import read_json
from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import DatasetError

PREFIXES = {"sparse": "sparse_", "dense": "dense_", "unprefixed": ""}


@dataclass(frozen=True)
class Annotations:
    """Subtasks of one kind: S segments of E episodes, one after the other in the order in which they are stored.

    Args:
        kind: a key of PREFIXES.
        stages: the distinct names, in the order in which they first appear.
        offsets: (E + 1,) int64; episode row e has the segments offsets[e] to offsets[e + 1].
        stage: (S,) int64, position in `stages`.
        start, end: (S,) int64, frames inside the episode; an end equals the next start where there is no gap.
        broken: (E,) bool, names without as many starts and ends; such an episode has no segments here.
        proportions: stage -> share, or None where there is no such file.
    """

    kind: str
    stages: tuple[str, ...]
    offsets: np.ndarray
    stage: np.ndarray
    start: np.ndarray
    end: np.ndarray
    broken: np.ndarray
    proportions: dict[str, float] | None

    @property
    def annotated(self) -> np.ndarray:
        """(E,) bool, episodes that have segments."""
        return np.diff(self.offsets) > 0

    @property
    def row(self) -> np.ndarray:
        """(S,) int64, the episode row of each segment."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def read_annotations(dataset: Dataset) -> dict[str, Annotations]:
    """The annotations of each kind of which some episode has names; kind -> Annotations, in the order of PREFIXES.

    Frames come from the columns of frames, or from those of times (seconds) where an older tool wrote no frames.

    Raises:
        DatasetError: columns that are no lists of names and numbers, or malformed proportions.
    """
    columns: dict[str, pa.DataType] = {}
    for prefix in PREFIXES.values():
        columns[f"{prefix}subtask_names"] = pa.list_(pa.string())
        for bound in ("start_frames", "end_frames", "start_times", "end_times"):
            columns[f"{prefix}subtask_{bound}"] = pa.list_(pa.float64())
    table = read_episode_columns(dataset, columns)
    kinds = [kind for kind, prefix in PREFIXES.items() if f"{prefix}subtask_names" in table.column_names]
    return {kind: _from_columns(dataset, kind, table) for kind in kinds}


def annotation_of(annotations: dict[str, Annotations], kind: str) -> Annotations | None:
    """The sparse or dense annotation of a dataset; older tools wrote the sparse one without a prefix."""
    return annotations.get(kind) or (annotations.get("unprefixed") if kind == "sparse" else None)


def of_episodes(own: Annotations, rows: np.ndarray) -> Annotations:
    """The annotations of some episodes, the others as if they had none: what is wrong with those is nobody's concern.

    Args:
        own: annotations of one kind.
        rows: (N,) int64, positions in the table.
    """
    kept = np.isin(own.row, rows)
    counts = np.bincount(own.row[kept], minlength=len(own.broken))
    broken = own.broken & np.isin(np.arange(len(own.broken)), rows)
    return replace(
        own,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        stage=own.stage[kept],
        start=own.start[kept],
        end=own.end[kept],
        broken=broken,
    )


def segments_by_stage(own: Annotations, stages: Sequence[str], outcomes: np.ndarray | None = None) -> Segments:
    """The annotated segments by a head's stages: what targets are made of, in training, evaluation and pictures alike.

    An episode that ends before the last stage, or whose outcome is no success, did not complete its last segment.

    Args:
        own: annotations of one kind.
        stages: K names in order; a segment of another name gets stage -1.
        outcomes: (E,) float64 in 0..1, NaN where not known.

    Raises:
        ValueError: a segment that ends before it starts.
    """
    number = {name: place for place, name in enumerate(stages)}
    stage = np.array([number.get(name, -1) for name in own.stages], dtype=np.int64)[own.stage]
    success = np.zeros(len(own.broken), dtype=bool)
    order = np.lexsort((own.start, own.row))
    success[own.row[order]] = stage[order] == len(stages) - 1  # the last assignment counts: the last segment in time
    if outcomes is not None:
        success &= ~(outcomes < 1)
    return annotated_segments(own.offsets, stage, own.start, own.end, success)


def read_proportions(dataset: Dataset, kind: str) -> dict[str, float] | None:
    """meta/temporal_proportions_<kind>.json; the unprefixed columns go with the sparse file. None where there is none.

    Raises:
        DatasetError: something other than names and numbers.
    """
    path = f"meta/temporal_proportions_{'dense' if kind == 'dense' else 'sparse'}.json"
    shares = read_json(dataset.root, path, missing={})
    if not all(isinstance(share, int | float) for share in shares.values()):
        raise DatasetError(f"{dataset.location(path)}: expected a number for each subtask")
    return {name: float(share) for name, share in shares.items()} or None


def _from_columns(dataset: Dataset, kind: str, table: pa.Table) -> Annotations:
    prefix = PREFIXES[kind]
    names = _column(table, f"{prefix}subtask_names")
    frames = f"{prefix}subtask_start_frames" in table.column_names
    unit, scale = ("frames", 1.0) if frames else ("times", dataset.fps)
    bounds = [_column(table, f"{prefix}subtask_{side}_{unit}") for side in ("start", "end")]
    num_names, *num_bounds = (np.diff(offsets) for _, offsets in (names, *bounds))
    whole = (num_names == num_bounds[0]) & (num_names == num_bounds[1])
    texts = names[0].dictionary_encode()
    segments = [np.repeat(whole, np.diff(offsets)) for _, offsets in (names, *bounds)]
    stage = texts.indices.to_numpy(zero_copy_only=False).astype(np.float64)[segments[0]]
    start, end = (
        values.to_numpy(zero_copy_only=False)[mask] * scale
        for (values, _), mask in zip(bounds, segments[1:], strict=True)
    )
    row = np.repeat(np.arange(len(whole)), np.where(whole, num_names, 0))
    holes = np.unique(row[~(np.isfinite(stage) & np.isfinite(start) & np.isfinite(end))])  # a null name or bound
    whole[holes] = False
    keep = ~np.isin(row, holes)
    return Annotations(
        kind=kind,
        stages=tuple(texts.dictionary.to_pylist()),
        offsets=np.concatenate([[0], np.cumsum(np.where(whole, num_names, 0))]).astype(np.int64),
        stage=stage[keep].astype(np.int64),
        start=np.rint(start[keep]).astype(np.int64),
        end=np.rint(end[keep]).astype(np.int64),
        broken=~whole,
        proportions=read_proportions(dataset, kind),
    )


def _column(table: pa.Table, name: str) -> tuple[pa.Array, np.ndarray]:
    """Flat values of a column of lists, and (E + 1,) offsets; null and a column that is not there are empty lists."""
    if name not in table.column_names:
        return pa.nulls(0, pa.float64()), np.zeros(table.num_rows + 1, dtype=np.int64)
    lists = table[name].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    return lists.flatten(), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
