"""What became of a load's frames: pure arithmetic on what its sessions noted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

PHASES = ("queue", "decode", "encode", "score", "total")
HELD_SHARE = 0.98


@dataclass(frozen=True, slots=True)
class Answer:
    """A score that came: when (seconds on the load's own clock), how long after its frame was sent, the server's timings."""

    received_s: float
    latency_s: float
    timings_ms: dict[str, float]


@dataclass
class Tally:
    """One session. `counts` are the server's, by its last message; `closed` says whether that came."""

    num_due: int = 0
    num_unsent: int = 0
    num_sent: int = 0
    num_refused: int = 0
    num_failed: int = 0
    first_error: str | None = None
    closed: bool = False
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("received", "scored", "dropped", "skipped"), 0)
    )
    answers: list[Answer] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)

    @property
    def num_lost(self) -> int:
        """Frames that were sent and neither answered, nor refused, nor counted as dropped or skipped."""
        answered = len(self.answers) + self.num_refused
        return self.num_sent - answered - self.counts["dropped"] - self.counts["skipped"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a load.

    Args:
        sessions, hz: the load.
        num_due: frames that were to be sent.
        num_unsent: that could not be sent within a period of when they were due: the sockets took no more.
        num_sent: the others. Each is one of the following five.
        num_scored: answered with a score.
        num_dropped: dropped by the server for want of time, by its own count.
        num_skipped: not due at the server's score_hz, by its own count.
        num_refused: answered with an error (`first_error`).
        num_lost: none of these. Must be 0.
        num_failed: dropped because a network did not answer; among the dropped.
        num_broken: sessions that did not get their curve.
        dropped_per_session: least, mean, most.
        frames_per_s: scores that came in a second, and `achieved` their share of the frames due then; both without the
            first second.
        latency_ms: p50, p90, p99, max of sent to answered, without the first second; None where no score came.
        phases_ms: phase -> p50, p99 of the server's own timings, without the first second.
        mean_batch: frames that went through the networks together, by ingress replica.
        late_ms: p99 of how late frames were sent.
        load_cores: CPU that the load itself took, in cores.
    """

    sessions: int
    hz: float
    num_due: int
    num_unsent: int
    num_sent: int
    num_scored: int
    num_dropped: int
    num_skipped: int
    num_refused: int
    num_lost: int
    num_failed: int
    num_broken: int
    first_error: str | None
    dropped_per_session: dict[str, float]
    frames_per_s: float
    achieved: float
    latency_ms: dict[str, float] | None
    phases_ms: dict[str, dict[str, float]]
    mean_batch: float | None
    late_ms: float | None
    load_cores: float

    @property
    def held(self) -> bool:
        """Whether the server carries this load: no frame dropped, refused, lost or left unsent, as many scored as due."""
        missed = self.num_dropped + self.num_refused + self.num_lost + self.num_unsent + self.num_broken
        return missed == 0 and self.achieved >= HELD_SHARE


def sum_up(
    tallies: Sequence[Tally], sessions: int, hz: float, begin_s: float, end_s: float, load_cores: float
) -> Outcome:
    """Add sessions up.

    Args:
        tallies: one per session.
        sessions, hz, load_cores: see Outcome.
        begin_s, end_s: answers that came between these count for rates and latencies.
    """
    answers = [each for tally in tallies for each in tally.answers if begin_s <= each.received_s < end_s]
    latencies_ms = [1000 * each.latency_s for each in answers]
    rate = len(answers) / max(end_s - begin_s, 1e-9)
    dropped = [tally.counts["dropped"] for tally in tallies]
    late_s = [late_s for tally in tallies for late_s in tally.late_s]
    groups = {tuple(each.timings_ms[phase] for phase in PHASES[1:4]) for each in answers if each.timings_ms}
    return Outcome(
        sessions=sessions,
        hz=hz,
        num_due=sum(tally.num_due for tally in tallies),
        num_unsent=sum(tally.num_unsent for tally in tallies),
        num_sent=sum(tally.num_sent for tally in tallies),
        num_scored=sum(len(tally.answers) for tally in tallies),
        num_dropped=sum(dropped),
        num_skipped=sum(tally.counts["skipped"] for tally in tallies),
        num_refused=sum(tally.num_refused for tally in tallies),
        num_lost=sum(tally.num_lost for tally in tallies),
        num_failed=sum(tally.num_failed for tally in tallies),
        num_broken=sum(not tally.closed for tally in tallies),
        first_error=next((tally.first_error for tally in tallies if tally.first_error), None),
        dropped_per_session={
            "least": float(min(dropped)), "mean": float(np.mean(dropped)), "most": float(max(dropped)),
        },
        frames_per_s=rate,
        achieved=rate / (sessions * hz),
        latency_ms=spread(latencies_ms) if answers else None,
        phases_ms={
            phase: spread([each.timings_ms[phase] for each in answers])
            for phase in PHASES
            if answers and phase in answers[0].timings_ms
        },
        # frames of a group have their group's timings, to a hundredth of a millisecond each
        mean_batch=len(answers) / len(groups) if groups else None,
        late_ms=1000 * float(np.percentile(late_s, 99)) if late_s else None,
        load_cores=load_cores,
    )  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and the largest."""
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "max": float(max(values))}
