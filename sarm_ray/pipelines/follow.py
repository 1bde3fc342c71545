"""`sarm-ray score --follow`: rollouts are scored as they appear below some folders, each episode once.

    look -> steady since the last look? -> examine -> all that is ready in one pool (`score.run_plans`) -> look ...

What is done is in the outputs, so a follower that is started again does nothing twice. Between rounds it holds nothing of
the cluster: no actors, no tasks, no objects.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import ray

from sarm_ray.config.score import ScoreConfig
from sarm_ray.console import first_line, say, tell
from sarm_ray.core.looks import Watched, note, take_look
from sarm_ray.data import progress_io, storage
from sarm_ray.data.dataset_folders import digest_files
from sarm_ray.data.failures import CHUNKS, read_failed
from sarm_ray.data.lease import WATCH_S, Lease, hold_lease, holder_of
from sarm_ray.errors import (
    CheckpointError,
    DatasetError,
    EncoderError,
    OutputExistsError,
    RunInterruptedError,
    SarmRayError,
    StoreError,
)
from sarm_ray.model.checkpoint import open_checkpoint
from sarm_ray.pipelines.follow_plan import (
    Folder,
    Found,
    Verdict,
    examine,
    find_datasets,
    open_folders,
    was_replaced,
)
from sarm_ray.pipelines.follow_report import (
    FollowReport,
    count,
    describe_done,
    describe_totals,
    describe_work,
    num_frames_of,
)
from sarm_ray.pipelines.inputs import model_folder
from sarm_ray.pipelines.runtime import Cluster, connect
from sarm_ray.pipelines.score import run_plans
from sarm_ray.pipelines.score_plan import ScoreModel, ScorePlan, choose_model
from sarm_ray.pipelines.score_report import DatasetReport, describe_plans
from sarm_ray.pipelines.stopping import interrupt_on_signal, stop_on_signal

MAX_NOTICES = 1000


@dataclass
class Follower:
    """What a follower knows between looks; all by root, and forgotten with what has gone.

    Args:
        config, model, cluster, folders, quiet: as they were when it began; `cluster` grows.
        memory: what it thinks of each dataset.
        names: what each is called on screen.
        sound: files that were found whole, of datasets that are not yet.
        holders: other runs that hold a dataset, and since when their heartbeat stands still.
        announced: what was said to be ready, and is not scored yet.
        told: notices that were shown.
        trouble: why the last look saw nothing.
        report: what it did so far.
    """

    config: ScoreConfig
    model: ScoreModel
    cluster: Cluster
    folders: list[Folder]
    quiet: bool
    memory: dict[str, Watched] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    sound: dict[str, dict[str, str]] = field(default_factory=dict)
    holders: dict[str, tuple[Lease, float]] = field(default_factory=dict)
    announced: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    trouble: str = ""
    report: FollowReport = field(default_factory=FollowReport)


Ready = tuple[Found, Verdict, ScorePlan]


def follow(config: ScoreConfig, quiet: bool = False) -> FollowReport | None:
    """Score what appears below folders until SIGINT or SIGTERM. None after a dry run.

    Raises:
        RunInterruptedError, KeyboardInterrupt: asked to stop in the middle of a round; finished chunks are kept.
        SarmRayError: bad options.
    """
    assert config.follow is not None
    folders = open_folders(config)
    with connect(config.address, quiet) as cluster:
        model = choose_model(config, open_checkpoint(config.model, model_folder(config.model)))
        own = Follower(config, model, replace(cluster, tells_pools=not quiet), folders, quiet)
        if config.dry_run:
            plans = [plan for _, _, plan in _look(own, patient=False)]
            if plans:
                describe_plans(plans, cluster)
            return None
        _describe(own)
        with interrupt_on_signal():
            seen_s = -np.inf
            while True:
                try:
                    ready, seen_s = _await_work(own, seen_s, config.follow)
                except KeyboardInterrupt:
                    return _finish(own)
                _announce(own, ready)
                try:
                    _score_round(own, ready)
                except (RunInterruptedError, KeyboardInterrupt):
                    _say(own, f"follow    {describe_totals(own.report)} before this round")
                    raise


def _describe(own: Follower) -> None:
    if own.quiet:
        return
    checkpoint = own.model.checkpoint
    say(f"model     {checkpoint.folder} ({checkpoint.config.annotation_mode}; {', '.join(own.model.heads)})")
    say(f"encoder   {own.model.encoder.name}")
    say(f"workers   up to {own.cluster.num_actors} on {own.cluster.describe()}")
    tell(own.model.notices)
    say(f"follow    {', '.join(folder.name for folder in own.folders)}: every {own.config.follow:g} s; Ctrl-C ends")


def _finish(own: Follower) -> FollowReport:
    own.report.num_datasets = len(own.memory)
    own.report.waiting = {own.names[root]: each.said for root, each in own.memory.items() if each.said}
    return own.report


def _await_work(own: Follower, seen_s: float, every_s: float) -> tuple[list[Ready], float]:
    """Look every so many seconds until something is ready.

    Args:
        own: the follower.
        seen_s: when the last look was, by the monotonic clock. No two are nearer: a copy that is slow must show.
        every_s: seconds.

    Returns:
        What is ready, and when it was looked for.
    """
    while True:
        time.sleep(max(seen_s + every_s - time.monotonic(), 0.0))
        seen_s = time.monotonic()
        ready = _look(own)
        if ready:
            return ready, seen_s


def _look(own: Follower, patient: bool = True) -> list[Ready]:
    """One look at all folders: what is ready to be scored. Says what has to wait, and why, where that is news."""
    try:
        found = find_datasets(own.folders, own.config)
    except (StoreError, DatasetError) as error:  # all that is remembered may be there again at the next look
        if str(error) != own.trouble:
            say(f"waiting   {error}")
        own.trouble = str(error)
        return []
    own.trouble = ""
    look = take_look(own.memory, {root: digest_files(each.files) for root, each in found.items()}, patient)
    own.memory, own.names = look.memory, {root: each.name for root, each in found.items()}
    for kept in (own.sound, own.holders):
        for root in kept.keys() - own.memory.keys():
            del kept[root]
    own.announced &= own.memory.keys()
    for root in look.changing:
        own.announced.discard(root)
        _say(own, f"waiting   {own.names[root]}: {own.memory[root].said}")
    ready, num_done = [], 0
    for root in look.steady:
        verdict = _judge(own, found[root])
        if verdict is not None and verdict.plan is not None:
            ready.append((found[root], verdict, verdict.plan))
        num_done += verdict is not None and verdict.plan is None
    if num_done:
        _say(own, f"found     {count(num_done, 'dataset')} scored already")
    return ready


def _judge(own: Follower, found: Found) -> Verdict | None:
    """What is to be done with a dataset that is as it was at the last look; None where it has to wait."""
    holder = _live_holder(own, found)
    if holder is not None:
        _note(own, found, "waiting", f"process {holder.pid} on {holder.host} is scoring it", settled=False)
        return None
    try:
        sound = own.sound.setdefault(found.root, {})
        verdict = examine(found, own.config, own.model, own.cluster, sound)
    except (StoreError, OSError) as error:  # of the store, the disk, or a dataset that is being removed
        _note(own, found, "waiting", str(error), settled=False)
        return None
    if verdict.waits_for:
        _note(own, found, "waiting", verdict.waits_for)
        return None
    del own.sound[found.root]
    if verdict.unusable:
        _note(own, found, "left", verdict.unusable)
        return None
    if verdict.plan is None:
        _note(own, found, "scored", "")
        if not own.config.dry_run:
            _tidy(found)
    return verdict


def _note(own: Follower, found: Found, word: str, reason: str, settled: bool = True) -> None:
    """Remember what came of looking into a dataset, and say it where that is news."""
    own.memory[found.root], is_news = note(own.memory[found.root], reason, settled)
    if is_news and (not own.quiet or word == "left"):
        say(f"{word:<9} {found.name}: {reason}")


def _live_holder(own: Follower, found: Found) -> Lease | None:
    """Another run that holds a dataset. One whose heartbeat stands still from look to look is none any more."""
    holder = holder_of(found.run_folder)
    if holder is None:
        own.holders.pop(found.root, None)
        return None
    known, since_s = own.holders.get(found.root, (None, 0.0))
    if known != holder:
        own.holders[found.root] = (holder, time.monotonic())
        return holder
    return holder if time.monotonic() - since_s < WATCH_S else None


def _tidy(found: Found) -> None:
    """Remove the parts of a run that was killed after it had written its output."""
    if any(name.startswith(progress_io.PARTS_PREFIX) for name in storage.list_names(found.run_folder)):
        with contextlib.suppress(OutputExistsError, StoreError), hold_lease(found.run_folder):
            progress_io.remove_files(found.run_folder, progress_io.PARTS_PREFIX)


def _announce(own: Follower, ready: Sequence[Ready]) -> None:
    """Say what is ready, but for what is only tried again."""
    news = [each for each in ready if each[0].root not in own.announced]
    own.announced |= {found.root for found, _, _ in ready}
    for found, verdict, plan in news:
        _say(own, f"found     {found.name}: {describe_work(plan)}{f' ({verdict.remark})' if verdict.remark else ''}")
        if not own.quiet:
            _tell_once(own, plan.notices)


def _say(own: Follower, text: str) -> None:
    if not own.quiet:
        say(text)


def _score_round(own: Follower, ready: Sequence[Ready]) -> None:
    """Score what is ready in one pool; where that fails, each dataset by itself, so that one cannot spoil the others.

    Raises:
        RunInterruptedError: asked to stop.
        CheckpointError, EncoderError: no dataset can be scored.
    """
    try:
        _score_together(own, ready)
    except (RunInterruptedError, CheckpointError, EncoderError):
        raise
    except (SarmRayError, ray.exceptions.RayError, OSError) as error:
        if len(ready) > 1:
            for each in ready:
                _score_round(own, [each])
            return
        passing = not isinstance(error, SarmRayError) or isinstance(error, (StoreError, OutputExistsError))
        _note(own, ready[0][0], "left", first_line(error), settled=not passing)


def _score_together(own: Follower, ready: Sequence[Ready]) -> None:
    with contextlib.ExitStack() as held:
        mine, leases = [], []
        for found, verdict, plan in ready:
            try:
                lease = held.enter_context(hold_lease(plan.run_folder))
            except OutputExistsError as error:
                _note(own, found, "waiting", str(error).partition(";")[0], settled=False)
                continue
            if was_replaced(verdict):  # another run has held the lease until now
                own.memory[found.root], _ = note(own.memory[found.root], "", settled=False)
                continue
            mine.append((found, plan))
            leases.append(lease)
        if not mine:
            return
        plans = [plan for _, plan in mine]
        stop = held.enter_context(stop_on_signal(plans[0].run_folder))
        own.cluster = own.cluster.now()
        report = run_plans(plans, leases, own.cluster, stop, own.config, own.quiet, time.monotonic())
    own.report.num_rounds += 1
    for (found, plan), done in zip(mine, report.datasets, strict=True):
        _note(own, found, "scored", "")
        _count_in(own, found, plan, done)
        own.announced.discard(found.root)
        _say(own, f"scored    {found.name}: {describe_done(plan, done, report.seconds['total'])}")


def _count_in(own: Follower, found: Found, plan: ScorePlan, done: DatasetReport) -> None:
    """Add what was done to the report."""
    own.report.num_episodes += len(plan.ingest.rows)
    own.report.num_frames += num_frames_of(plan)
    own.report.failed.pop(found.name, None)
    if done.failures or len(plan.kept):
        num_failed = len(read_failed(plan.run_folder, CHUNKS))
        if num_failed:
            own.report.failed[found.name] = num_failed


def _tell_once(own: Follower, notices: Sequence[str]) -> None:
    news = [text for text in notices if text not in own.told]
    if len(own.told) > MAX_NOTICES:
        own.told.clear()
    own.told.update(news)
    tell(news)
