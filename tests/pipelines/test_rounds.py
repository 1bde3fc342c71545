"""Rounds and waves over a small chain on real Ray: what reports once, what is tried again, what is given up."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from sarm_ray.errors import StoreError
from sarm_ray.pipelines.nodes import lost_nodes, node_ids, prefer, roles
from sarm_ray.pipelines.rounds import MAX_ATTEMPTS, work_through
from sarm_ray.pipelines.runtime import ARROW, ONE_TASK_ATTEMPT, jobs_dataset
from sarm_ray.pipelines.stopping import Stop

TODO = np.array([[dataset, chunk] for dataset in range(2) for chunk in range(5)])
POISON = (1, 2)


def report(jobs: pa.Table, folder: str | None) -> pa.Table:
    """Every chunk reports; POISON ends its process, and leaves a file each time."""
    for row in jobs.to_pylist():
        if folder is not None and (row["dataset"], row["chunk"]) == POISON:
            (Path(folder) / str(len(list(Path(folder).iterdir())))).touch()
            os._exit(1)
    return jobs


class Chain:
    """The chain, and the sizes of what it was asked to do."""

    def __init__(self, folder: Path | None = None):
        self.folder, self.asked = folder, []

    def __call__(self, todo: np.ndarray, alone: bool) -> ray.data.Dataset:
        self.asked.append((len(todo), alone))
        jobs = pa.table({"dataset": todo[:, 0], "chunk": todo[:, 1]})
        folder = None if self.folder is None else str(self.folder)
        return jobs_dataset(jobs, 1).map_batches(
            report, batch_size=1, fn_kwargs={"folder": folder}, num_cpus=0.1, **ARROW, **ONE_TASK_ATTEMPT
        )


def run(chain: Chain, **options) -> tuple[list[tuple], np.ndarray]:
    reported = []
    lost = work_through(
        TODO, chain, lambda row, attempt: reported.append((row["dataset"], row["chunk"], attempt)), Stop("/nowhere"),
        quiet=True, **options,
    )  # fmt: skip
    return sorted(reported), lost


@pytest.mark.parametrize(("wave_chunks", "sizes"), [(100, [10]), (4, [4, 4, 2])])
def test_waves_report_each_chunk_once(wave_chunks, sizes):
    chain = Chain()
    reported, lost = run(chain, wave_chunks=wave_chunks)
    assert reported == [(dataset, chunk, 1) for dataset, chunk in TODO.tolist()]
    assert lost.shape == (0, 2)
    assert chain.asked == [(size, False) for size in sizes]


def test_a_chunk_that_kills_is_given_up_and_costs_no_other(tmp_path):
    chain = Chain(tmp_path)
    reported, lost = run(chain, wave_chunks=8)
    assert [(dataset, chunk) for dataset, chunk, _ in reported] == [
        tuple(each) for each in TODO.tolist() if tuple(each) != POISON
    ]
    assert lost.tolist() == [list(POISON)]
    assert len(list(tmp_path.iterdir())) == MAX_ATTEMPTS
    assert [alone for _, alone in chain.asked] == [False, True, True, False]


def test_one_node_alone_has_no_roles_and_loses_none():
    assert roles() == frozenset()
    assert prefer("decode") == {}
    assert lost_nodes(node_ids(alive=False)) == []


def full(jobs: pa.Table) -> pa.Table:
    raise StoreError("/there: cannot be written (No space left on device); what is finished is kept")


def test_an_error_of_ours_comes_in_our_words_alone():
    def chain(todo: np.ndarray, alone: bool) -> ray.data.Dataset:
        jobs = pa.table({"dataset": todo[:, 0], "chunk": todo[:, 1]})
        return jobs_dataset(jobs, 1).map_batches(full, batch_size=1, num_cpus=0.1, **ARROW, **ONE_TASK_ATTEMPT)

    with pytest.raises(StoreError) as raised:
        run(chain)
    assert str(raised.value) == "/there: cannot be written (No space left on device); what is finished is kept"
