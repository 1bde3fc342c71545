"""From parts to the files that a run leaves: progress, stage probabilities, failures."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from sarm_ray.data import progress_io, storage
from sarm_ray.data.failures import CHUNKS, write_failed
from sarm_ray.data.lease import Lease
from sarm_ray.data.progress_merge import merge_parts
from sarm_ray.pipelines.score_plan import ScorePlan


def write_output(plan: ScorePlan, lease: Lease, failures: list[dict]) -> tuple[int, dict[str, int]]:
    """Merge a dataset's parts into its output.

    The parts are left: as long as there are any, the run is not at its end, and a rerun takes it up where it was cut off.

    Args:
        plan: of the dataset.
        lease: of the run; nothing is written once another run holds it.
        failures: rows of failed.parquet.

    Returns:
        Rows of the output, and how many of them have no progress, per head.

    Raises:
        OutputExistsError: another run holds the lease.
    """
    lease.check()
    dataset, run = plan.ingest.dataset, plan.run_folder
    write_failed(run, failures, CHUNKS)
    num_nan = dict.fromkeys(plan.heads, 0)

    def tables(probabilities: bool) -> Iterator[pa.Table]:
        columns = (dataset.episode_index, dataset.length, dataset.from_index)
        return merge_parts(plan.parts_folder, plan.heads, plan.ingest.chunks, *columns, probabilities)

    def counted_tables() -> Iterator[pa.Table]:
        for table in tables(probabilities=False):
            for head in plan.heads:
                num_nan[head] += int(np.isnan(table[f"progress_{head}"].to_numpy()).sum())
            yield table

    probabilities = storage.join(run, "stage_probabilities.parquet")
    storage.remove_file(probabilities)  # one of an earlier run would not belong to this output
    if plan.stage_probabilities:
        progress_io.write_probabilities(probabilities, plan.heads, lambda: tables(probabilities=True))
    schema = progress_io.progress_schema(plan.heads, plan.metadata)
    num_frames = progress_io.write_progress(plan.output, counted_tables, schema)
    return num_frames, num_nan
