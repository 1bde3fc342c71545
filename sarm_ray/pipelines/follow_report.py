"""What a follower says: what it found, what it scored, and how it all went."""

from dataclasses import dataclass, field

from sarm_ray.console import duration
from sarm_ray.data import storage
from sarm_ray.data.failures import FAILED_FILE
from sarm_ray.pipelines.score_plan import ScorePlan
from sarm_ray.pipelines.score_report import DatasetReport

MAX_LINES = 20


@dataclass
class FollowReport:
    """What a follower did.

    Args:
        num_episodes, num_frames: scored, of all rounds.
        num_rounds: pools that were started.
        failed: dataset -> chunks of it that could not be read or scored, where there are any.
        num_datasets: that are there.
        waiting: dataset -> why it was not scored.
    """

    num_episodes: int = 0
    num_frames: int = 0
    num_rounds: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    num_datasets: int = 0
    waiting: dict[str, str] = field(default_factory=dict)

    @property
    def num_failed(self) -> int:
        """Chunks, of all datasets."""
        return sum(self.failed.values())


def describe_follow(report: FollowReport) -> str:
    """What a person wants to know at the end."""
    there = f"{count(report.num_datasets, 'dataset')} there"
    waiting = [f"  {name}: {reason}" for name, reason in sorted(report.waiting.items())]
    if waiting:
        there += f", {len(waiting):,} of them not scored whole"
    failed = [f"  {name}: {count(number, 'chunk')} failed" for name, number in sorted(report.failed.items())]
    return "\n".join([f"{describe_totals(report)}; {there}", *_first_of(waiting), *_first_of(failed)])


def describe_totals(report: FollowReport) -> str:
    """What was scored in all rounds."""
    return (
        f"{count(report.num_episodes, 'episode')}, {count(report.num_frames, 'frame')} scored in "
        f"{count(report.num_rounds, 'round')}, {count(report.num_failed, 'chunk')} failed"
    )


def _first_of(lines: list[str]) -> list[str]:
    more = len(lines) - MAX_LINES
    return [*lines[:MAX_LINES], f"  and {more:,} more"] if more > 0 else lines


def num_frames_of(plan: ScorePlan) -> int:
    """Frames of the episodes that a plan scores."""
    return int(plan.ingest.dataset.length[plan.ingest.rows].sum())


def describe_work(plan: ScorePlan) -> str:
    """What is to be scored of a dataset."""
    more = "more " if len(plan.kept) else ""
    return f"{count(len(plan.ingest.rows), f'{more}episode')}, {count(num_frames_of(plan), 'frame')}"


def describe_done(plan: ScorePlan, done: DatasetReport, seconds: float) -> str:
    """What was scored of a dataset, and in how many seconds."""
    failed = ""
    if done.failures:
        failed = f", {count(len(done.failures), 'chunk')} failed ({storage.join(plan.run_folder, FAILED_FILE)})"
    return f"{count(len(plan.ingest.rows), 'episode')} in {duration(seconds)}{failed} -> {plan.output}"


def count(number: int, noun: str) -> str:
    """A number and what it counts."""
    return f"{number:,} {noun}{'s' if number != 1 else ''}"
