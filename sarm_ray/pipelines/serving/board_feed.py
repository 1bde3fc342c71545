"""What a replica pushes to the board, twice a second: of each session what is new, thinned."""

import time
from collections.abc import Iterable

from sarm_ray.core.board import Update
from sarm_ray.pipelines.serving.plan import LiveModel
from sarm_ray.pipelines.serving.rollouts import Rollout

PUSH_EVERY_S = 0.5
SAY_EVERY_S = 4.0  # also of a session without news: the board takes a silent replica's sessions for lost


class Feed:
    """What was pushed, and what is to be.

    Args:
        model: what is served.
    """

    def __init__(self, model: LiveModel):
        self.model = model
        self.ended: list[Rollout] = []
        self.pushed_s: dict[str, float] = {}

    def updates(self, rollouts: Iterable[Rollout]) -> list[Update]:
        """News of the running sessions, and the last of those that ended."""
        now = time.monotonic()
        ended, self.ended = self.ended, []
        updates = [self._update(rollout) for rollout in ended]
        for rollout in rollouts:
            name = rollout.session.name
            if rollout.changed or now - self.pushed_s.get(name, 0.0) > SAY_EVERY_S:
                self.pushed_s[name] = now
                updates.append(self._update(rollout))
        for rollout in ended:
            self.pushed_s.pop(rollout.session.name, None)
        return updates

    def take_back(self, running: Iterable[Rollout], ended: list[Rollout]) -> None:
        """What was said of these was not heard: all of it is said again."""
        self.ended = ended + self.ended
        for rollout in [*running, *ended]:
            rollout.changed, rollout.num_pushed = True, 0

    def _update(self, rollout: Rollout) -> Update:
        session, newest = rollout.session, rollout.newest
        curve, head = session.curve, session.curve.heads[0]
        first_s = session.first_s or 0.0
        new = slice(rollout.num_pushed, None)
        points = [
            (round(time_s - first_s, 3), progress, stage)
            for time_s, progress, stage in zip(
                curve.time_s[new], curve.progress[head][new], curve.stage[head][new], strict=True
            )
        ]
        score = newest[head] if newest else {}
        thumbnail, rollout.thumbnail = rollout.thumbnail, None
        rollout.changed, rollout.num_pushed = False, len(curve.time_s)
        return {
            "id": session.name,
            "task": session.hello.task,
            "connected": rollout.connection is not None,
            "ended": rollout.ended is not None,
            "outcome": rollout.outcome,
            "heads": curve.heads,
            "stages": self.model.stages[head],
            "fps": session.hello.fps,
            "opened_s": rollout.opened_s,
            "started_s": rollout.started_s,
            "time_s": max(session.newest_s - first_s, 0.0) if session.first_s is not None else 0.0,
            "progress": score.get("progress"),
            "stage": score.get("stage"),
            "confidence": score.get("confidence"),
            "probabilities": score.get("probabilities"),
            "points": points,
            "score_hz": session.live.score_hz,
            "num_received": session.counts.num_received,
            "num_scored": session.counts.num_scored,
            "num_dropped": session.counts.num_dropped,
            "latency_ms": newest["timings_ms"]["total"] if newest else None,
            "thumbnail": thumbnail,
        }
