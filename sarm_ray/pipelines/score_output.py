"""From parts to the files that a run leaves: progress, stage probabilities, failures."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from sarm_ray.data import progress_io, storage
from sarm_ray.data.failures import CHUNKS, read_failed, write_failed
from sarm_ray.data.lease import Lease
from sarm_ray.data.progress_merge import merge_parts
from sarm_ray.data.progress_rows import kept_rows, merge_by_index
from sarm_ray.pipelines.score_plan import ScorePlan


def write_output(plan: ScorePlan, lease: Lease, failures: list[dict]) -> tuple[int, dict[str, int]]:
    """Merge a dataset's parts into its output, with the rows that are taken over from the one that is there.

    The parts are left: as long as there are any, the run is not at its end, and a rerun takes it up where it was cut off.

    Args:
        plan: of the dataset.
        lease: of the run; nothing is written once another run holds it.
        failures: rows of failed.parquet; those that it has of the episodes that are kept stay in it.

    Returns:
        Rows of the output, and how many of them have no progress, per head.

    Raises:
        OutputExistsError: another run holds the lease.
    """
    lease.check()
    dataset, run = plan.ingest.dataset, plan.run_folder
    kept = set(dataset.episode_index[plan.kept].tolist())
    held = [row for row in read_failed(run, CHUNKS) if row["episode_index"] in kept] if kept else []
    in_order = sorted([*held, *failures], key=lambda row: (row["episode_index"], row["start"], row["camera"]))
    write_failed(run, in_order, CHUNKS)
    num_nan = dict.fromkeys(plan.heads, 0)

    def new_tables(probabilities: bool) -> Iterator[pa.Table]:
        columns = (dataset.episode_index, dataset.length, dataset.from_index)
        return merge_parts(plan.parts_folder, plan.heads, plan.ingest.chunks, *columns, probabilities)

    schema = progress_io.progress_schema(plan.heads, plan.metadata)

    def counted_tables() -> Iterator[pa.Table]:
        for table in _with_kept(plan, plan.output, schema.names, new_tables(probabilities=False)):
            for head in plan.heads:
                num_nan[head] += int(np.isnan(table[f"progress_{head}"].to_numpy()).sum())
            yield table

    _write_probabilities(plan, lambda: new_tables(probabilities=True))
    num_frames = progress_io.write_progress(plan.output, counted_tables, schema)
    return num_frames, num_nan


def _write_probabilities(plan: ScorePlan, new_tables: Callable[[], Iterator[pa.Table]]) -> None:
    """stage_probabilities.parquet, or none: one of an earlier run would not belong to this output."""
    location = storage.join(plan.run_folder, "stage_probabilities.parquet")
    if not (plan.stage_probabilities and len(plan.kept) and storage.exists(location)):
        storage.remove_file(location)
    if plan.stage_probabilities:
        names = ["index", *(f"probabilities_{head}" for head in plan.heads)]
        there = location if storage.exists(location) else None
        progress_io.write_probabilities(
            location, plan.heads, lambda: _with_kept(plan, there, names, new_tables(), ["index", *plan.heads])
        )


def _without_probabilities(names: list[str], first: int, length: int) -> pa.Table:
    """Rows of an episode whose probabilities nobody wrote down."""
    nothing = pa.nulls(length, pa.list_(pa.float32()))
    return pa.table({names[0]: np.arange(first, first + length), **dict.fromkeys(names[1:], nothing)})


def _with_kept(
    plan: ScorePlan,
    location: str | None,
    names: list[str],
    new: Iterator[pa.Table],
    stored: list[str] | None = None,
) -> Iterator[pa.Table]:
    """New tables together with the rows of the episodes that are kept, by index.

    Args:
        plan: of the dataset.
        location: the file that has their rows; None for null lists of probabilities, which nobody wrote down.
        names: columns that come out, `index` first.
        new: tables with these and other columns.
        stored: what the columns are called in the file, if not so.
    """
    dataset = plan.ingest.dataset
    order = plan.kept[np.argsort(dataset.from_index[plan.kept])]
    first, lengths = dataset.from_index[order], dataset.length[order]
    if not len(order):
        return new
    wanted = (table.select(names) for table in new)
    if location is None:
        kept = (_without_probabilities(names, *episode) for episode in zip(first, lengths, strict=True))
    else:
        kept = (table.rename_columns(names) for table in kept_rows(location, stored or names, first, lengths))
    return merge_by_index(kept, wanted)
