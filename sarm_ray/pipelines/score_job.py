"""What the actors that score need to know of a run: put together once, beside the driver, and carried by Ray."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sarm_ray.core.windows import Window
from sarm_ray.data.features import StoreIndex
from sarm_ray.model.checkpoint import Checkpoint, StateNormalizer
from sarm_ray.model.encoder import encode_texts
from sarm_ray.pipelines.ingest_plan import IngestPlan
from sarm_ray.pipelines.model_files import ModelFiles
from sarm_ray.pipelines.nodes import Cluster
from sarm_ray.pipelines.runtime import prepare_actor
from sarm_ray.pipelines.score_plan import ScorePlan


@dataclass(frozen=True)
class DatasetJob:
    """What a scoring actor needs of one dataset.

    Args:
        cameras: the plans of its features, and an index of each camera's store.
        window, state_key, normalizer: see `ScorePlan`.
        texts: each episode's text feature, by its position in the table.
    """

    cameras: tuple[IngestPlan, ...]
    indices: tuple[StoreIndex, ...]
    window: Window
    state_key: str
    normalizer: StateNormalizer
    texts: dict[int, np.ndarray]

    @property
    def features(self) -> IngestPlan:
        """The first camera's; dataset, episodes and chunks are the same for all."""
        return self.cameras[0]


@dataclass(frozen=True)
class ScoreJob:
    """What every scoring actor needs, put into the object store once."""

    datasets: tuple[DatasetJob, ...]
    checkpoint: Checkpoint
    files: ModelFiles
    heads: tuple[str, ...]
    precision: str
    device: str
    stop_marker: str


def make_score_job(
    plans: Sequence[ScorePlan], files: ModelFiles, cluster: Cluster, todo: np.ndarray, stop_marker: str
) -> ScoreJob:
    """Gather it: task texts are encoded, the indices of the feature stores are read. For a process beside the driver."""
    prepare_actor("cpu")  # where texts are encoded; the number of threads shows in their last bits
    rows = [np.unique(plan.ingest.chunks.row[todo[todo[:, 0] == number, 1]]) for number, plan in enumerate(plans)]
    text_of_row = [dict(zip(plan.ingest.rows.tolist(), plan.texts, strict=True)) for plan in plans]
    distinct = sorted({texts[row] for texts, own in zip(text_of_row, rows, strict=True) for row in own.tolist()})
    by_text = dict(zip(distinct, encode_texts(plans[0].ingest.encoder, distinct), strict=True))
    datasets = [
        DatasetJob(
            cameras=plan.cameras,
            indices=tuple(camera.index() for camera in plan.cameras),
            window=plan.window,
            state_key=plan.state_key,
            normalizer=plan.normalizer,
            texts={row: by_text[texts[row]] for row in own.tolist()},
        )
        for plan, texts, own in zip(plans, text_of_row, rows, strict=True)
    ]
    first = plans[0]
    return ScoreJob(tuple(datasets), first.checkpoint, files, first.heads, first.precision, cluster.device, stop_marker)
