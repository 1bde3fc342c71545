"""`sarm-ray annotate`: subtasks for the episodes of a dataset: found by a VLM, given in a file, or one for each as a whole.

Answers go into a journal as they come; the dataset's metadata is rewritten once, at the end, from all that is in it. A run
that was cut off asks what is missing, and no finished episode twice.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict

from sarm_ray.config.annotate import AnnotateConfig
from sarm_ray.config.loading import dump_config
from sarm_ray.console import duration, say, tell
from sarm_ray.data import progress_io, storage
from sarm_ray.data.annotation_journal import Journal, close_journal, read_journal
from sarm_ray.data.hub import upload_to_hub
from sarm_ray.data.lease import Lease, hold_lease
from sarm_ray.errors import RunInterruptedError, SarmRayError, StoreError
from sarm_ray.model.annotator_transformers import LocalVlm
from sarm_ray.pipelines.annotate_episodes import Asking, ask_episodes
from sarm_ray.pipelines.annotate_import import describe_import, given_by_hand, import_segments
from sarm_ray.pipelines.annotate_output import AnnotateReport, draw_annotations, journalled_subtasks, write_output
from sarm_ray.pipelines.annotate_plan import (
    RUN_FOLDER,
    AnnotatePlan,
    choose_engine,
    describe_plan,
    plan_annotation,
    require_episodes,
)
from sarm_ray.pipelines.runtime import connect
from sarm_ray.pipelines.stopping import MARKER_PREFIX, stop_on_signal

ANNOTATED = ("episodes", "temporal_proportions_")  # of a dataset's metadata


def annotate(config: AnnotateConfig, quiet: bool = False) -> AnnotateReport | None:
    """Annotate a dataset. None after a dry run, and where only pictures were asked for.

    Raises:
        RunInterruptedError: asked to stop by SIGINT or SIGTERM; answers are kept.
        SarmRayError: bad input, or a VLM that cannot be used; nothing in the dataset was changed.
    """
    plan = plan_annotation(config)
    require_episodes(plan)
    if config.visualize_only:
        draw_annotations(plan, config, quiet)
        return None
    if config.from_file is not None:
        return _import(plan, config, quiet)
    if not quiet:
        for line in describe_plan(plan, config, _known(plan, config)):
            say(line)
        tell(plan.notices)
    if config.dry_run:
        return None
    with _leases(plan) as leases:
        return _run(plan, config, leases, quiet)


def _known(plan: AnnotatePlan, config: AnnotateConfig) -> Journal:
    """The answers that count: with --overwrite none about the selected episodes."""
    journal = read_journal(plan.run_folder)
    if not config.overwrite:
        return journal
    selected = {int(plan.dataset.episode_index[row]) for row in plan.rows}
    return {key: entry for key, entry in journal.items() if key[0] not in plan.questions or key[1] not in selected}


@contextlib.contextmanager
def _leases(plan: AnnotatePlan) -> Iterator[list[Lease]]:
    """Keep other runs off the run folder and off the metadata, wherever their own run folders are."""
    folders = dict.fromkeys([plan.run_folder, storage.join(plan.root, RUN_FOLDER)])
    with contextlib.ExitStack() as held:
        yield [held.enter_context(hold_lease(folder)) for folder in folders]


def _run(plan: AnnotatePlan, config: AnnotateConfig, leases: list[Lease], quiet: bool) -> AnnotateReport:
    began = time.monotonic()
    _prepare(plan, config)
    todo = plan.todo(_known(plan, config))
    asking = _ask(plan, config, todo, quiet) if todo else Asking(0, [])
    journal = read_journal(plan.run_folder)  # all that is known of these questions, from this run and earlier ones
    _require_answers(plan, todo, journal, asking)
    subtasks, notes = journalled_subtasks(plan, journal)
    for lease in leases:
        lease.check()
    report = write_output(plan, config, subtasks, notes, [asdict(each) for each in asking.failures], asking, quiet)
    _push(plan, quiet)
    close_journal(plan.run_folder, journal)
    if not quiet and asking.num_asked:
        say(f"took      {duration(time.monotonic() - began)}")
    return report


def _ask(plan: AnnotatePlan, config: AnnotateConfig, todo: dict[int, tuple[str, ...]], quiet: bool) -> Asking:
    """Ask what is not answered yet. Signals are handled once Ray runs, which has handlers of its own."""
    with connect(config.address, quiet) as cluster, stop_on_signal(plan.run_folder) as stop:
        engine = choose_engine(config, cluster)
        if isinstance(engine, LocalVlm) and engine.device == "cpu" and not quiet:
            tell([f"there is no GPU; {engine.name} runs on CPU cores, in float32"])
        if config.overwrite:  # not before somebody is there who answers anew
            close_journal(plan.run_folder, _known(plan, config))
        asking = ask_episodes(plan, todo, engine, config.pool, config.concurrency, cluster, stop, quiet)
        if stop.requested:
            again = "the same command without --overwrite" if config.overwrite else "the same command again"
            raise RunInterruptedError(
                f"stopped: {asking.num_answered:,} of {sum(map(len, todo.values())):,} questions answered in this run, all "
                f"kept; run {again} to go on"
            )
        return asking


def _require_answers(plan: AnnotatePlan, todo: dict[int, tuple[str, ...]], journal: Journal, asking: Asking) -> None:
    """What was asked is in the journal by now, or among the failures.

    Raises:
        StoreError: it is not, because a worker elsewhere writes to another disk of the same name.
    """
    failed = {(failure.kind, failure.episode_index) for failure in asking.failures}
    for row, kinds in todo.items():
        episode = int(plan.dataset.episode_index[row])
        for kind in kinds:
            if (kind, episode) not in journal and (kind, episode) not in failed:
                raise StoreError(
                    f"{plan.run_folder}: the answer about episode {episode} was written but is not there for this process; "
                    "give an --output-dir that all nodes reach"
                )


def _prepare(plan: AnnotatePlan, config: AnnotateConfig) -> None:
    """Tidy up after a run that was killed, and leave word of what is run."""
    storage.remove_temporaries(plan.run_folder)
    progress_io.remove_files(plan.run_folder, MARKER_PREFIX)
    storage.write_file(storage.join(plan.run_folder, "config.yaml"), dump_config(config).encode())


def _import(plan: AnnotatePlan, config: AnnotateConfig, quiet: bool) -> AnnotateReport | None:
    """The same from a file: nobody is asked, and no Ray is needed."""
    plan, subtasks, failures = import_segments(plan, config)
    if not quiet:
        for line in describe_import(plan, str(config.from_file), subtasks, len(failures)):
            say(line)
        tell(plan.notices)
    if config.dry_run:
        return None
    with _leases(plan) as leases:
        _prepare(plan, config)
        for lease in leases:
            lease.check()
        report = write_output(plan, config, subtasks, {}, failures, Asking(0, []), quiet)
        _push(plan, quiet)
        close_journal(plan.run_folder, {**read_journal(plan.run_folder), **given_by_hand(plan, subtasks)})
        return report


def _push(plan: AnnotatePlan, quiet: bool) -> None:
    """Upload the annotated metadata, if that was asked for: all of it, whatever this run has changed."""
    if plan.push_to is None:
        return
    repo_id, branch = plan.push_to
    names = [name for name in storage.list_files(storage.join(plan.root, "meta")) if name.startswith(ANNOTATED)]
    files = {f"meta/{name}": storage.join(plan.root, "meta", name) for name in sorted(names)}
    try:
        url = upload_to_hub(repo_id, "dataset", files, "Subtask annotations by sarm_ray", branch)
    except SarmRayError as error:
        raise type(error)(f"{plan.root} is complete, but {error}; run the same command again to push it") from error
    if not quiet:
        say(f"pushed    {url}")
