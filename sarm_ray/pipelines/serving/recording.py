"""Finished rollouts on their way to the log that `report` reads."""

import logging
import threading

import numpy as np

from sarm_ray.core.live_session import Session
from sarm_ray.data.rollout_log import append_rollouts, merge_rollouts
from sarm_ray.data.rollouts import ENDINGS, NO_STAGE, HeadCurve
from sarm_ray.data.rollouts import Rollout as Record
from sarm_ray.pipelines.serving.plan import LiveModel
from sarm_ray.pipelines.serving.rollouts import Rollout

MERGE_EVERY = 64  # appends of small files after which they are put together
log = logging.getLogger("sarm_ray.serve")


class RolloutLog:
    """One replica's hand in the log. Its methods block; they are called from threads.

    Args:
        folder: of the log, which other replicas append to as well.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.num_appended = 0
        self.writing = threading.Lock()

    def append(self, record: Record) -> None:
        """Append a rollout that is over. One that cannot be written is told of in Serve's log, and the server goes on."""
        with self.writing:
            try:
                append_rollouts(self.folder, [record])
                self.num_appended += 1
                if self.num_appended % MERGE_EVERY == 1:
                    merge_rollouts(self.folder)
            except Exception:
                log.exception("rollout %s could not be recorded", record.session)


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
