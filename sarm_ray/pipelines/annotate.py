"""`sarm-ray annotate`: subtasks for the episodes of a dataset: found by a VLM, given in a file, or one for each as a whole.

Answers go into a journal as they come; the dataset's metadata is rewritten once, at the end, from all that is in it. A run
that was cut off asks what is missing, and no finished episode twice.
"""

import time
from dataclasses import asdict

import numpy as np

from sarm_ray.config.annotate import AnnotateConfig
from sarm_ray.config.loading import dump_config
from sarm_ray.console import say, tell
from sarm_ray.data import storage
from sarm_ray.data.annotation_journal import Journal, close_journal, forget_journal, read_journal
from sarm_ray.data.hub import upload_to_hub
from sarm_ray.data.lease import hold_lease
from sarm_ray.data.lerobot import fetch_files
from sarm_ray.errors import RunInterruptedError, SarmRayError
from sarm_ray.pipelines.annotate_episodes import Asking, ask_episodes
from sarm_ray.pipelines.annotate_import import describe_import, import_segments
from sarm_ray.pipelines.annotate_output import (
    AnnotateReport,
    draw_annotations,
    journalled_subtasks,
    write_output,
)
from sarm_ray.pipelines.annotate_plan import (
    AnnotatePlan,
    choose_engine,
    describe_plan,
    plan_annotation,
    require_episodes,
)
from sarm_ray.pipelines.runtime import connect
from sarm_ray.pipelines.stopping import MARKER_PREFIX, stop_on_signal


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
    journal = {} if config.overwrite else read_journal(plan.run_folder)
    if not quiet:
        for line in describe_plan(plan, config, journal):
            say(line)
        tell(plan.notices)
    if config.dry_run:
        return None
    with hold_lease(plan.run_folder):
        return _run(plan, config, quiet)


def _run(plan: AnnotatePlan, config: AnnotateConfig, quiet: bool) -> AnnotateReport:
    began = time.monotonic()
    _prepare(plan, config)
    todo = plan.todo(read_journal(plan.run_folder))
    asking = _ask(plan, config, todo, quiet) if todo else Asking(0, [])
    journal = read_journal(plan.run_folder)  # all that is known of these questions, from this run and earlier ones
    subtasks, notes = journalled_subtasks(plan, journal)
    report = write_output(plan, config, subtasks, notes, [asdict(each) for each in asking.failures], asking, quiet)
    _push(plan, report, quiet)
    _close(plan, journal)
    if not quiet and asking.num_asked:
        say(f"took      {time.monotonic() - began:,.0f} s")
    return report


def _ask(plan: AnnotatePlan, config: AnnotateConfig, todo: dict[int, tuple[str, ...]], quiet: bool) -> Asking:
    """Ask what is not answered yet. Signals are handled once Ray runs, which has handlers of its own."""
    with connect(config.address) as cluster, stop_on_signal(plan.run_folder) as stop:
        engine = choose_engine(config, cluster)
        for camera in plan.cameras:
            fetch_files(plan.dataset, np.array(sorted(todo)), camera)
        asking = ask_episodes(plan, todo, engine, config.pool, config.concurrency, cluster, stop, quiet)
        if stop.requested:
            raise RunInterruptedError(
                f"stopped: {asking.num_answered:,} of {sum(map(len, todo.values())):,} questions answered in this run, all "
                "kept; run the same command again to go on"
            )
        return asking


def _prepare(plan: AnnotatePlan, config: AnnotateConfig) -> None:
    """Tidy up after a run that was killed, and leave word of what is run."""
    storage.remove_temporaries(plan.run_folder)
    if config.overwrite:
        forget_journal(plan.run_folder)
    for name in storage.list_files(plan.run_folder):
        if name.startswith(MARKER_PREFIX):
            storage.remove_file(storage.join(plan.run_folder, name))
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
    with hold_lease(plan.run_folder):
        _prepare(plan, config)
        report = write_output(plan, config, subtasks, {}, failures, Asking(0, []), quiet)
        _push(plan, report, quiet)
        return report


def _push(plan: AnnotatePlan, report: AnnotateReport, quiet: bool) -> None:
    """Upload the changed metadata, if that was asked for."""
    if plan.push_to is None:
        return
    repo_id, branch = plan.push_to
    files = {location.removeprefix(f"{plan.root}/"): location for location in report.written}
    try:
        url = upload_to_hub(repo_id, "dataset", files, "Subtask annotations by sarm_ray", branch)
    except SarmRayError as error:
        raise type(error)(f"{plan.root} is complete, but {error}; run the same command again to push it") from error
    if not quiet:
        say(f"pushed    {url}")


def _close(plan: AnnotatePlan, journal: Journal) -> None:
    close_journal(plan.run_folder, journal)
