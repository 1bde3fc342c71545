"""`sarm-ray score`: datasets and a checkpoint in, a sarm_progress.parquet for each out.

    plan -> ingest (features that are missing) -> score_missing -> parts -> merge

The output is a pure function of dataset, checkpoint and options: passes through the networks are cut by the plan, and
which worker did what, in what order, after how many crashes, leaves no trace in it.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict

from sarm_ray.config.score import ScoreConfig
from sarm_ray.console import say, tell
from sarm_ray.core.episodes import count_frames
from sarm_ray.data import progress_io, storage
from sarm_ray.data.hub import upload_to_hub
from sarm_ray.data.lease import Lease, hold_lease
from sarm_ray.data.lerobot import fetch_files
from sarm_ray.errors import RunInterruptedError, SarmRayError
from sarm_ray.pipelines.ingest import IngestReport, ingest
from sarm_ray.pipelines.ingest_plan import one_per_chunk
from sarm_ray.pipelines.runtime import Cluster, call_aside, connect, peak_rss_bytes, spilled_bytes
from sarm_ray.pipelines.score_chunks import Scoring, score_missing
from sarm_ray.pipelines.score_output import write_output
from sarm_ray.pipelines.score_pictures import PICTURES_FOLDER, draw_pictures
from sarm_ray.pipelines.score_plan import ScorePlan, plan_scores, refuse_finished
from sarm_ray.pipelines.score_report import DatasetReport, ScoreReport, describe_plans, measure_run
from sarm_ray.pipelines.stopping import MARKER_PREFIX, Stop, stop_on_signal
from sarm_ray.report.advice import describe_rabc


def score(config: ScoreConfig, quiet: bool = False) -> ScoreReport | None:
    """Score one or several datasets. None after a dry run.

    Raises:
        RunInterruptedError: asked to stop by SIGINT or SIGTERM; finished chunks are kept.
        SarmRayError: bad input; nothing was run.
    """
    started = time.monotonic()
    with connect(config.address, quiet) as cluster:
        plans = plan_scores(config, cluster)
        if not quiet:
            describe_plans(plans, cluster)
        if config.dry_run:
            return None
        with contextlib.ExitStack() as held:
            leases = [held.enter_context(hold_lease(plan.run_folder)) for plan in plans]
            stop = held.enter_context(stop_on_signal(plans[0].run_folder))
            for plan in plans:
                refuse_finished(plan, config)  # again: another run may have held the lease until now
            return run_plans(plans, leases, cluster, stop, config, quiet, started)


def _prepare(plans: Sequence[ScorePlan], config: ScoreConfig) -> None:
    """Tidy up after a run that was killed, leave word of what is run, fetch what lies on the Hub."""
    for plan in plans:
        _remove_temporaries(plan)
        progress_io.remove_files(plan.run_folder, MARKER_PREFIX)
        plan.write_config(config)
        for camera in plan.cameras:
            fetch_files(camera.dataset, camera.rows_to_read(), camera.camera)


def _remove_temporaries(plan: ScorePlan) -> None:
    """Wherever a run like this one writes, remove what killed processes left."""
    pictures = storage.join(plan.run_folder, PICTURES_FOLDER)
    for folder in (
        storage.parent(plan.output),
        plan.run_folder,
        plan.parts_folder,
        pictures,
        *(camera.store.location for camera in plan.cameras),
    ):
        storage.remove_temporaries(folder)


def run_plans(
    plans: Sequence[ScorePlan],
    leases: Sequence[Lease],
    cluster: Cluster,
    stop: Stop,
    config: ScoreConfig,
    quiet: bool,
    started: float,
) -> ScoreReport:
    """Do what was planned, all datasets in one pool.

    Args:
        plans, leases: of each dataset, which are held.
        cluster, stop, config, quiet: where, until when, what of, how loud.
        started: when the run began, by the monotonic clock.

    Raises:
        RunInterruptedError: asked to stop; finished chunks are kept.
        SarmRayError: the run cannot go on; finished chunks are kept.
    """
    _prepare(plans, config)
    spilled_before = spilled_bytes()
    ingested = ingest([plan.cameras for plan in plans], cluster, stop, quiet)
    scoring = score_missing(plans, cluster, stop, quiet)
    if stop.requested:
        raise RunInterruptedError(_describe_stop(plans, ingested, scoring))
    merge_started = time.monotonic()
    reports = []
    for number, (plan, lease) in enumerate(zip(plans, leases, strict=True)):
        if not quiet:
            tell(scoring.datasets[number].notices())
        reports.append(_finish(plan, lease, ingested, scoring, number, config))
    seconds = {"encode": ingested.seconds, "score": scoring.seconds, "merge": time.monotonic() - merge_started}
    seconds["total"] = time.monotonic() - started
    report = measure_run(
        tuple(reports),
        cluster,
        seconds=seconds,
        busy_s={**ingested.busy_s, "score": scoring.busy_s},
        spilled_bytes=_grown(spilled_before, spilled_bytes()),
        peak_rss_bytes=peak_rss_bytes(),
    )
    for plan, own in zip(plans, reports, strict=True):
        run = {key: value for key, value in asdict(report).items() if key != "datasets"}
        progress_io.write_json(storage.join(plan.run_folder, "summary.json"), {**asdict(own), **run})
    for plan in plans:
        _push(plan, quiet)
    for plan in plans:  # last of all: as long as there are parts, a rerun goes on instead of refusing to overwrite
        progress_io.remove_files(plan.run_folder, progress_io.PARTS_PREFIX)
        _remove_temporaries(plan)  # again: workers of a killed run may have outlived its driver until now
    return report


def _grown(before: int | None, after: int | None) -> int | None:
    """What a counter of the cluster has grown by; None where it is unknown, or a node that was lost took its count along."""
    return None if before is None or after is None or after < before else after - before


def _push(plan: ScorePlan, quiet: bool) -> None:
    """Upload the output under LeRobot's name for it, if that was asked for."""
    if plan.push_to is None:
        return
    repo_id, branch = plan.push_to
    message = f"SARM progress by {plan.checkpoint.name}"
    try:
        url = upload_to_hub(repo_id, "dataset", {progress_io.PROGRESS_FILE: plan.output}, message, branch)
    except SarmRayError as error:
        raise type(error)(f"{plan.output} is complete, but {error}; run the same command again to push it") from error
    if not quiet:
        say(f"pushed    {url}")


def _finish(
    plan: ScorePlan, lease: Lease, ingested: IngestReport, scoring: Scoring, number: int, config: ScoreConfig
) -> DatasetReport:
    scored = scoring.datasets[number]
    failures = one_per_chunk([*ingested.failures[number], *scored.failures])
    num_frames, num_nan = call_aside(write_output, plan, lease, [asdict(failure) for failure in failures])
    return DatasetReport(
        dataset=plan.ingest.dataset.name,
        cameras=[each.camera for each in plan.cameras],
        output=plan.output,
        num_frames=num_frames,
        num_scored=scored.num_scored,
        num_decoded=ingested.num_encoded[number],
        num_cached=sum(int(count_frames(each.needed & ~each.missing).sum()) for each in plan.cameras),
        num_nan=num_nan,
        failures=failures,
        notices=(*plan.notices, *scored.notices()),
        visualizations=draw_pictures(plan, max(config.num_visualizations - len(plan.kept), 0)),
        advice=_advise(plan),
    )


def _advise(plan: ScorePlan) -> list[str]:
    """What RA-BC will make of the output."""
    return [line for head in plan.heads for line in call_aside(describe_rabc, plan.output, head)]


def _describe_stop(plans: Sequence[ScorePlan], ingested: IngestReport, scoring: Scoring) -> str:
    num_encoded, num_scored = sum(ingested.num_encoded), sum(each.num_scored for each in scoring.datasets)
    num_missing = sum(int(count_frames(each.missing).sum()) for plan in plans for each in plan.cameras)
    return (
        f"stopped: {num_encoded:,} of {num_missing:,} frames encoded, {num_scored:,} scored in this run, all kept; "
        "run the same command again to go on"
    )
