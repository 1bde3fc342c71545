"""Finished rollouts on their way to the log that `report` reads."""

import numpy as np

from sarm_ray.core.live_session import Session
from sarm_ray.data.rollout_log import append_rollouts
from sarm_ray.data.rollouts import ENDINGS, NO_STAGE, HeadCurve
from sarm_ray.data.rollouts import Rollout as Record
from sarm_ray.pipelines.serving.plan import LiveModel
from sarm_ray.pipelines.serving.rollouts import Rollout


def record(model: LiveModel, rollout: Rollout) -> None:
    """Append one rollout that is over.

    Raises:
        StoreError: the log cannot be written to.
    """
    assert model.record is not None
    append_rollouts(model.record, [as_record(model, rollout)])


def as_record(model: LiveModel, rollout: Rollout) -> Record:
    """As the log has it: times count from the session's first frame, and of frames with one number the first is kept."""
    session = rollout.session
    curve, first_s = session.curve, session.first_s or 0.0
    numbers, rows = np.unique(np.array(curve.frame_index, dtype=np.int64), return_index=True)
    return Record(
        session=session.name,
        started_s=rollout.started_s,
        task=session.hello.task,
        fps=session.hello.fps,
        model=model.checkpoint.name,
        encoder=model.encoder.name,
        heads={head: _head_curve(session, head, model.stages[head], rows) for head in curve.heads},
        time_s=np.array(curve.time_s, dtype=np.float64)[rows] - first_s,
        frame_index=numbers,
        ended=rollout.ended if rollout.ended in ENDINGS else "lost",
        outcome=rollout.outcome,
        thumbnails=tuple(rollout.thumbnails),
        num_received=session.counts.num_received,
        num_scored=session.counts.num_scored,
        num_dropped=session.counts.num_dropped,
        num_skipped=session.counts.num_skipped,
    )


def _head_curve(session: Session, head: str, stages: list[str], rows: np.ndarray) -> HeadCurve:
    curve = session.curve
    stage = [NO_STAGE if each is None else each for each in curve.stage[head]]
    return HeadCurve(
        tuple(stages),
        np.array(curve.progress[head], dtype=np.float32)[rows],  # None becomes NaN
        np.array(stage, dtype=np.int32)[rows],
        np.array(curve.confidence[head], dtype=np.float32)[rows],
    )
