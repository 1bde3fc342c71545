"""One group of training processes under Ray Train, and what to make of its end."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import ray
import torch
from ray.data import ExecutionOptions
from ray.train import DataConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from sarm_ray.pipelines.rounds import cause_of
from sarm_ray.pipelines.runtime import CPU_ACTOR_SHARE, GPU_ACTOR_CPUS
from sarm_ray.pipelines.training.loop import LoopJob, train_loop

RAY_FOLDER = ".ray"
COLLECTIVE_ERRORS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")

# What Ray raises where a process or a node is gone: ObjectLostError with all that are derived from it is for what lay there.
GONE = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.RpcError,
)

# That there is room was seen a moment ago (placing.py): a group that is not placed soon lost it again.
START_TIMEOUT_S = 30


class Death(NamedTuple):
    """How a group ended before its time.

    Args:
        how: in one line.
        of: what died, as far as the error tells. A process that lost another one cannot tell why.
    """

    how: str
    of: Literal["process", "node", "unknown"]


def fit_group(job: LoopJob, dataset: ray.data.Dataset, num_workers: int, look: Callable[[], None]) -> Death | None:
    """Run one group of training processes. None when it came to its end, else how a process died.

    Args:
        job: of the group. dataset: its batches. num_workers: for which there is room.
        look: called several times a second meanwhile.

    Raises:
        SarmRayError, Exception: what a process raised.
    """
    on_gpu = job.device == "cuda"
    timeout_s = job.config.collective_timeout_s
    # Ray Train has no other way to be told; a user's own word stands
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_S))
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(timeout_s))
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=timeout_s),  # type: ignore[arg-type]
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=on_gpu, resources_per_worker=resources_per_worker(on_gpu)
        ),
        run_config=RunConfig(  # type: ignore[arg-type]  # the class that ray.train.RunConfig is at run time
            name=f"step-{job.first_step}-{time.time_ns()}",  # under a name that was there it would go on by itself
            storage_path=str(Path(job.config.output_dir) / RAY_FOLDER),
            # by default Ray Train begins a group that was not placed, or was preempted, again for ever: at its first step
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            logging_config=LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": {} if on_gpu else {"OMP_NUM_THREADS": "1"}},
        ),
        datasets={"train": dataset},
        dataset_config=rows_in_turn(),
    )
    outcome: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001  # carried to the main thread
            outcome.append(error)

    # on the main thread Ray Train would take SIGINT for itself, and abort without a checkpoint
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)  # in between, Python runs our handler of signals
        look()
    return _judge(outcome[0]) if outcome else None


def rows_in_turn() -> DataConfig:
    """Row k goes to process k mod num_workers. Measured: Ray Train's defaults scramble rows and drop some."""
    return DataConfig(execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False)


def resources_per_worker(on_gpu: bool) -> dict[str, float]:
    """What one process claims. On CPUs a tenth of the core is left for the tasks that make its batches."""
    return {"GPU": 1, "CPU": GPU_ACTOR_CPUS} if on_gpu else {"CPU": CPU_ACTOR_SHARE}


def _judge(error: BaseException) -> Death:
    """How a process died.

    Raises:
        SarmRayError, Exception: where none died, but our code raised something.
    """
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    for failure in failures:
        raised = getattr(failure, "_base_exc", failure)
        own = cause_of(raised)
        if own is not raised or _is_ours(own):
            raise own from error
    deaths = list(map(_death, failures))
    if certain := [death for death in deaths if death and death.of != "unknown"]:
        return certain[0]  # the dead one's own, before what its peers say of it
    first, *others = deaths
    if first is None or None in others:  # something else, over which its peers lost the connection
        raise error
    return first


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__ == "sarm_ray.errors"


def _death(failure: BaseException) -> Death | None:
    """What an error tells of a dead process, or of one that lost its peers; None for anything else."""
    for cause in _causes(failure):
        if isinstance(
            cause, ray.exceptions.RayTaskError
        ):  # takes the class of what it carries, with a traceback for words
            continue
        said = " ".join(str(cause).split())[:200]
        name = type(cause).__name__
        if name == "PreemptionError":
            return Death("it is being taken away", "node")
        if name == "WorkerGroupStartupTimeoutError":
            return Death("it was not placed in time", "unknown")
        if name == "WorkerHealthCheckTimeoutError":
            return Death("it no longer answers", "process")
        if isinstance(cause, GONE):
            lost = isinstance(cause, (ray.exceptions.ActorDiedError, ray.exceptions.WorkerCrashedError))
            by_node = isinstance(cause, ray.exceptions.NodeDiedError) or "node has died" in said or "node died" in said
            return Death(said, "node" if by_node else "process" if lost else "unknown")
        if isinstance(cause, torch.distributed.DistError) or (
            isinstance(cause, RuntimeError) and any(word in str(cause) for word in COLLECTIVE_ERRORS)
        ):
            if "imed out" in str(cause) or "timeout" in str(cause):
                return Death(
                    "another one no longer answers", "process"
                )  # for so long that a node would be known to be lost
            return Death("it lost the connection to another one", "unknown")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it comes from, through Ray Train's, Ray's and Python's ways to wrap one."""
    ways = ("controller_failure", "health_check_failure", "_base_exc", "cause", "__cause__")
    cause: BaseException | None = error
    seen: list[BaseException] = []
    while isinstance(cause, BaseException) and not any(cause is each for each in seen):
        seen.append(cause)
        yield cause
        linked = (getattr(cause, way, None) for way in ways)
        cause = next((link for link in linked if isinstance(link, BaseException)), None)
