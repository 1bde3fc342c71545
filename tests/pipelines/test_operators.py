"""What Ray makes of the chains: decoding and encoding stay two operators, with CPUs alone and with GPUs."""

import numpy as np
import pytest
import ray
from ray.data._internal.logical.optimizers import get_execution_plan

from sarm_ray.pipelines.ingest import encode_pipeline
from sarm_ray.pipelines.runtime import Cluster
from sarm_ray.pipelines.score_chunks import score_pipeline
from sarm_ray.pipelines.score_plan import ScorePlan, plan_scores
from tests.pipelines.runs import CLIP_TINY, PARITY, SARM_TINY, needs_parity, quick_config

PLANNED = np.array([[0, 0], [0, 1], [0, 2]])
CLUSTERS = [Cluster(2, 0, "cpu", True), Cluster(64, 8, "cuda", True), Cluster(1, 0, "cpu", False)]


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> ScorePlan:
    folder = tmp_path_factory.mktemp("plan")
    config = quick_config(
        dataset=str(PARITY / "dataset_v3"),
        model=SARM_TINY,
        encoder=CLIP_TINY,
        output=str(folder / "out.parquet"),
        cache=str(folder / "features"),
    )
    return plan_scores(config, CLUSTERS[0])[0]


def operators(dataset) -> list[str]:
    physical, _ = get_execution_plan(dataset._logical_plan)
    return [operator.name for operator in physical.dag.post_order_iter()]


@needs_parity
@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("alone", [False, True])
def test_decoding_and_encoding_are_not_fused(plan, cluster, alone):
    assert operators(encode_pipeline([plan.ingest], cluster, PLANNED, "/nowhere/stop", alone)) == [
        "Input",
        "MapBatches(decode_job)",
        "MapBatches(FrameEncoder)",
        "MapBatches(commit_features)",
    ]


@needs_parity
@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("alone", [False, True])
def test_scoring_is_two_operators(plan, cluster, alone):
    assert operators(score_pipeline([plan], cluster, PLANNED, ray.put(None), alone)) == [
        "Input",
        "MapBatches(ChunkScorer)",
        "MapBatches(commit_scores)",
    ]
