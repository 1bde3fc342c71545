"""What a run says of its pools: sizes as they change, and whether GPUs were fed."""

from dataclasses import replace

import pytest

from sarm_ray.pipelines.nodes import Cluster
from sarm_ray.pipelines.pools import describe_feeding
from sarm_ray.pipelines.runtime import actor_options, decode_options

GPUS = Cluster(num_cpus=16, num_gpus=2, device="cuda", bf16=True)


@pytest.mark.parametrize(
    ("decode_s", "encode_s", "phase_s", "words"),
    [
        (900.0, 300.0, 200.0, "a GPU takes what 3.0 cores decode, and has 8.0; encoders were busy 75% of their phase"),
        (
            1600.0, 100.0, 100.0,
            "a GPU takes what 16.0 cores decode, and has 8.0: encoders starve, busy 50% of their phase; add 16 decode CPUs",
        ),
        (10.0, 0.0, 10.0, None),
    ],
)  # fmt: skip
def test_whether_gpus_were_fed(decode_s, encode_s, phase_s, words):
    assert describe_feeding(GPUS, decode_s, encode_s, phase_s) == words


def test_cores_alone_have_nothing_to_balance():
    assert describe_feeding(Cluster(8, 0, "cpu", True), 100.0, 100.0, 100.0) is None


@pytest.mark.parametrize(
    ("cluster", "actors", "decoders"),
    [
        (Cluster(2, 0, "cpu", True), (2, 2), 2),
        (Cluster(2, 0, "cpu", True, growth=8), (2, 16), 16),
        (replace(GPUS, growth=8), (2, 16), None),
    ],
)
def test_pools_may_grow_with_nodes_that_join(cluster, actors, decoders):
    """Of many jobs; without room to grow a pool is as large as the machine."""
    pool = actor_options(cluster, 1000, 10**6)["compute"]
    assert (pool.initial_size, pool.max_size) == actors
    few = decode_options(cluster, 1000, 10**6).get("compute")
    assert (few and few.size) == decoders


def test_few_jobs_make_a_small_pool():
    pool = actor_options(Cluster(2, 0, "cpu", True, growth=8), 1, 10**6)["compute"]
    assert (pool.initial_size, pool.max_size) == (1, 1)
