"""One group of training processes under Ray Train, and what to make of its end."""

import threading
import time
from pathlib import Path

import ray
from ray.data import ExecutionOptions
from ray.train import DataConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from sarm_ray.errors import TrainingError
from sarm_ray.pipelines.rounds import cause_of
from sarm_ray.pipelines.runtime import CPU_ACTOR_SHARE, GPU_ACTOR_CPUS
from sarm_ray.pipelines.training.loop import LoopJob, train_loop

RAY_FOLDER = ".ray"
COLLECTIVE_ERRORS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


def fit_group(job: LoopJob, dataset: ray.data.Dataset, num_workers: int) -> str | None:
    """Run one group of training processes. None when it came to its end, else how a process died.

    Raises:
        SarmRayError, Exception: what a process raised.
    """
    on_gpu = job.device == "cuda"
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=on_gpu, resources_per_worker=resources_per_worker(on_gpu)
        ),
        run_config=RunConfig(  # type: ignore[arg-type]  # the class that ray.train.RunConfig is at run time
            name=f"step-{job.first_step}-{time.time_ns()}",  # under a name that was there it would go on by itself
            storage_path=str(Path(job.config.output_dir) / RAY_FOLDER),
            failure_config=FailureConfig(max_failures=0),
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
    return _judge(outcome[0]) if outcome else None


def rows_in_turn() -> DataConfig:
    """Row k goes to process k mod num_workers. Measured: Ray Train's defaults scramble rows and drop some."""
    return DataConfig(execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False)


def resources_per_worker(on_gpu: bool) -> dict[str, float]:
    """What one process claims. On CPUs a tenth of the core is left for the tasks that make its batches."""
    return {"GPU": 1, "CPU": GPU_ACTOR_CPUS} if on_gpu else {"CPU": CPU_ACTOR_SHARE}


def _judge(error: BaseException) -> str:
    """How a process died, in one line.

    Raises:
        SarmRayError, Exception: where none died, but our code raised something.
    """
    if "StartupTimeout" in type(error).__name__ + str(error):
        raise TrainingError(
            "the training processes did not start in time: something else holds the cluster's cores or GPUs"
        ) from error
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    for failure in failures:
        raised = getattr(failure, "_base_exc", failure)
        own = cause_of(raised)
        if own is not raised or _is_ours(own):
            raise own from error
    for failure in failures:
        death = _death(failure)
        if death:
            return death
    raise error


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__ == "sarm_ray.errors"


def _death(failure: BaseException) -> str | None:
    """The line that tells of a dead process, or of one that lost its peers; None for anything else."""
    gone = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError)
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, gone):
            return " ".join(str(cause).split())[:200]
        if isinstance(cause, RuntimeError) and any(word in str(cause) for word in COLLECTIVE_ERRORS):
            return "it lost the connection to another one"
        cause = getattr(cause, "health_check_failure", None) or getattr(cause, "_base_exc", None) or cause.__cause__
    return None
