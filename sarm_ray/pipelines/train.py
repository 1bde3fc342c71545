"""`sarm-ray train`: annotated datasets in, a SARM checkpoint out that score, serve and LeRobot load.

    plan -> ingest (what is missing) -> batches (Ray Data) -> training processes (Ray Train, DeepSpeed) -> checkpoints

What step s sees is planned, so a run that was killed goes on from its last checkpoint as if nothing had happened: when a
training process or a node dies, the driver plans the rest and starts a new group (training/groups.py); when the driver dies,
`--resume` does the same.
"""

import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray

from sarm_ray.config.loading import dump_config
from sarm_ray.config.train import TrainConfig
from sarm_ray.console import say, tell
from sarm_ray.data import progress_io, storage
from sarm_ray.data.hub import require_token
from sarm_ray.data.lease import Lease, hold_lease
from sarm_ray.data.lerobot import fetch_files
from sarm_ray.errors import ConfigError, RunInterruptedError, name_list
from sarm_ray.pipelines.ingest import ingest
from sarm_ray.pipelines.runtime import Cluster, connect
from sarm_ray.pipelines.stopping import MARKER_PREFIX, Stop, stop_on_signal
from sarm_ray.pipelines.training.checkpoints import (
    BEST,
    CHECKPOINTS,
    LAST,
    PRETRAINED,
    last_step,
    linked,
    read_last_facts,
    refuse_used,
    remove_unfinished,
    require_writable,
)
from sarm_ray.pipelines.training.group import RAY_FOLDER
from sarm_ray.pipelines.training.groups import place_group, train_to_the_end
from sarm_ray.pipelines.training.job import check_all_rows, make_job, put_held_out, unreadable_episodes
from sarm_ray.pipelines.training.loop import METRICS_FILE
from sarm_ray.pipelines.training.plan import TrainPlan, plan_training
from sarm_ray.pipelines.training.publish import push_checkpoint
from sarm_ray.pipelines.training.report import (
    TrainReport,
    describe_plan,
    follow_metrics,
    read_metrics,
)


def train(config: TrainConfig, quiet: bool = False) -> TrainReport:
    """Train a SARM.

    Raises:
        RunInterruptedError: asked to stop by SIGINT or SIGTERM; a checkpoint was written.
        TrainingError: it cannot go on.
        SarmRayError: bad input; nothing was run.
    """
    started = time.monotonic()
    if config.push_to_hub:
        require_token(config.push_to_hub)
    config = replace(config, output_dir=str(Path(config.output_dir).expanduser().absolute()))
    if not config.resume:
        refuse_used(config.output_dir)
    with connect(config.address, quiet) as cluster:
        plan = plan_training(config, cluster)
        facts = _facts(config, plan)
        _check_resumed(config, facts)
        if not quiet:
            describe_plan(plan, config, cluster)
        if config.resume and last_step(config.output_dir) is None and not quiet:
            tell([f"{config.output_dir} has no checkpoint yet; the run begins at the first step"])
        place_group(plan.workers, config.wait_s, quiet)
        require_writable(config.output_dir)
        with hold_lease(config.output_dir) as lease, stop_on_signal(config.output_dir) as stop:
            _prepare(plan, config)
            return _run(plan, config, facts, cluster, lease, stop, quiet, started)


def _prepare(plan: TrainPlan, config: TrainConfig) -> None:
    """Tidy up after a run that was killed, leave word of what is run, fetch what lies on the Hub."""
    if not config.resume:
        refuse_used(config.output_dir)  # again: another run may have held the lease until now
    remove_unfinished(config.output_dir)
    storage.remove_temporaries(config.output_dir)
    progress_io.remove_files(config.output_dir, MARKER_PREFIX)
    resolved = replace(
        config,
        dataset=[source.ingest.dataset.repo_id or source.ingest.dataset.root for source in plan.sources],
        image_key=config.image_key or (plan.sources[0].ingest.camera if len(plan.sources) == 1 else None),
        num_workers=config.num_workers or plan.workers.most,
        use_gpu=plan.workers.on_gpu,
        resume=True,
    )
    storage.write_file(storage.join(config.output_dir, "config.yaml"), dump_config(resolved).encode())
    for source in plan.sources:
        for camera in source.cameras:
            storage.remove_temporaries(camera.store.location)
            fetch_files(camera.dataset, camera.rows_to_read(), camera.camera)


def _run(
    plan: TrainPlan,
    config: TrainConfig,
    facts: dict[str, Any],
    cluster: Cluster,
    lease: Lease,
    stop: Stop,
    quiet: bool,
    started: float,
) -> TrainReport:
    ingested = ingest([source.cameras for source in plan.sources], cluster, stop, quiet)
    if stop.requested:
        raise RunInterruptedError("stopped before the first step; encoded frames are kept, run the same command again")
    failures, left_out = unreadable_episodes(plan, ingested, config, quiet)
    left_out = [own | before for own, before in zip(left_out, _left_out_before(config, len(left_out)), strict=True)]
    facts = {**facts, "left_out": [sorted(out) for out in left_out]}
    _check_resumed(config, facts)  # again: an episode that cannot be read any more changes the order
    job = make_job(plan, config, left_out)
    reference = ray.put(job)
    check_all_rows(reference, plan, left_out)
    held_out = put_held_out(reference, plan, left_out, config)
    lease.check()
    training_started = time.monotonic()
    with follow_metrics(Path(config.output_dir) / METRICS_FILE, config.steps, quiet):
        train_to_the_end(job, reference, held_out, plan, config, facts, stop, quiet)
    shutil.rmtree(Path(config.output_dir) / RAY_FOLDER, ignore_errors=True)
    if stop.requested:
        step = last_step(config.output_dir)
        raise RunInterruptedError(f"stopped at step {step} of {config.steps:,}; go on with --resume")
    lease.check()
    best = linked(config.output_dir, BEST)
    report = TrainReport(
        output_dir=config.output_dir,
        last=str(Path(config.output_dir) / CHECKPOINTS / LAST / PRETRAINED),
        best=None if best is None else str(Path(config.output_dir) / CHECKPOINTS / BEST / PRETRAINED),
        steps=config.steps,
        num_frames=int(job.lengths.sum()),
        num_episodes=sum(len(source.episodes(False, out)) for source, out in zip(plan.sources, left_out, strict=True)),
        num_held_out=sum(len(source.episodes(True, out)) for source, out in zip(plan.sources, left_out, strict=True)),
        strange_to_lerobot=plan.strange_to_lerobot(),
        baselines={} if held_out is None else ray.get(held_out).baselines,
        **read_metrics(Path(config.output_dir) / METRICS_FILE),
        seconds={
            "encode": ingested.seconds,
            "train": time.monotonic() - training_started,
            "total": time.monotonic() - started,
        },
        failures=failures,
        notices=plan.notices,
    )
    progress_io.write_json(storage.join(config.output_dir, "summary.json"), asdict(report))
    if config.push_to_hub:
        url = push_checkpoint(plan, config, report)
        if not quiet:
            say(f"pushed    {url}")
    return report


def _facts(config: TrainConfig, plan: TrainPlan) -> dict[str, Any]:
    """What a run that goes on must have in common with the one that it continues."""
    return {
        "data": plan.fingerprint(),
        "model": {name: value for name, value in asdict(plan.config).items() if name not in ("batch_size",)},
        "state_statistics": [plan.normalizer.mean.tolist(), plan.normalizer.std.tolist()],
        "batch_size": config.batch_size,
        "seed": config.seed,
        "window": plan.sources[0].window.kind,
        "num_cameras": plan.num_cameras,
        "inputs": config.inputs,
        "augmentation": asdict(config.augmentation),
        "optimizer": asdict(config.optimizer),
        "steps": config.steps,
    }


def _check_resumed(config: TrainConfig, facts: dict[str, Any]) -> None:
    """The last checkpoint must be of the same run; workers, passes and ZeRO stage may differ.

    Raises:
        ConfigError: naming what differs.
    """
    before = read_last_facts(config.output_dir) if config.resume else None
    if before is None:
        return
    known = json.loads(json.dumps(facts))  # as the checkpoint has them: tuples are lists there
    differing = [name for name, value in known.items() if name in before and before[name] != value]
    if differing:
        raise ConfigError(
            f"{config.output_dir}: --resume goes on with the same run, and this one differs in {name_list(differing)}; give "
            f"the options of {config.output_dir}/config.yaml (--config takes it), or choose another --output-dir"
        )


def _left_out_before(config: TrainConfig, num_datasets: int) -> list[frozenset[int]]:
    """Episodes that the run left out when it began: they stay out, readable or not, as the order depends on them."""
    before = read_last_facts(config.output_dir) if config.resume else None
    return [frozenset(own) for own in before["left_out"]] if before else [frozenset()] * num_datasets
