"""Joining or starting Ray, what hardware there is, how large pools may be, and Ray Data's settings."""

import contextlib
import logging
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy

from sarm_ray.console import divert_native_stderr
from sarm_ray.errors import ConfigError, EncoderError, SarmRayError

LOCAL_OBJECT_STORE_BYTES = 2 * 2**30
MAX_BLOCKS = 2000

# map_batches arguments of every operator: batches are Arrow tables, which hold a chunk without copying it.
ARROW: dict[str, Any] = {"batch_format": "pyarrow"}

# On a machine without GPUs the networks run on the same cores that decode. Actors leave a tenth of each core unclaimed,
# and the small tasks around them (decode, commit) are scheduled on that.
CPU_ACTOR_SHARE = 0.9
SMALL_TASK_SHARE = 0.04

# With GPUs an actor claims little of a core, so that decoding finds one on a machine with as many GPUs as cores.
GPU_ACTOR_CPUS = 0.1


@dataclass(frozen=True)
class Cluster:
    """What a run has to work with.

    Args:
        num_cpus, num_gpus: of the whole cluster when the run began.
        device: where networks run, `cuda` or `cpu`.
        bf16: whether that hardware has bfloat16 instructions.
    """

    num_cpus: int
    num_gpus: int
    device: str
    bf16: bool

    @property
    def num_actors(self) -> int:
        """Most actors of a pool: one per GPU, or one single-threaded one per core."""
        return self.num_gpus or self.num_cpus

    def describe(self) -> str:
        gpus = f", {self.num_gpus} GPU{'s' if self.num_gpus > 1 else ''}" if self.num_gpus else ", no GPU"
        return f"{self.num_cpus} CPU core{'s' if self.num_cpus > 1 else ''}{gpus}{', bf16' if self.bf16 else ''}"


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[Cluster]:
    """Use the Ray that is running (this process's, the given one, the job's own), else start one on this machine.

    What was started here is shut down at the end. A local Ray listens on this machine only, reports no usage statistics,
    and its token file is readable by the user alone (Ray itself would leave it open to the group).
    """
    if ray.is_initialized():
        yield _survey()
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with divert_native_stderr():
        if address or os.environ.get("RAY_ADDRESS"):
            try:
                ray.init(address=address, logging_level=logging.ERROR)
            except (ConnectionError, ValueError) as error:
                where = address or os.environ["RAY_ADDRESS"]
                raise ConfigError(f"no Ray cluster answers at {where} ({str(error).splitlines()[0]})") from error
        else:
            _start_local()
        try:
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            yield _survey()
        finally:
            ray.shutdown()


def actor_options(cluster: Cluster, num_jobs: int) -> dict[str, Any]:
    """map_batches arguments of a pool of networks: from one actor to one per GPU (or core), never more than jobs."""
    most = max(1, min(cluster.num_actors, num_jobs))
    options: dict[str, Any] = {"compute": ActorPoolStrategy(min_size=1, max_size=most, initial_size=most)}
    if cluster.num_gpus:
        return {**options, "num_gpus": 1, "num_cpus": GPU_ACTOR_CPUS}
    return {**options, "num_cpus": CPU_ACTOR_SHARE}


def decode_options(cluster: Cluster, num_jobs: int) -> dict[str, Any]:
    """map_batches arguments of the decode tasks, unlike the actors' so that Ray does not fuse the two into one operator.

    With GPUs a decoder has a core of its own. Without, there is one per core beside the networks; those take 3 to 20 times
    as long per frame, so the decoders mostly wait for them.
    """
    if cluster.num_gpus:
        return {"num_cpus": 1}
    return {"num_cpus": SMALL_TASK_SHARE, "compute": TaskPoolStrategy(size=min(cluster.num_cpus, num_jobs))}


def commit_options(cluster: Cluster) -> dict[str, Any]:
    """map_batches arguments of the tasks that write results: how many chunks make one file.

    A GPU finishes tens of chunks a second; a core needs seconds for one, which is then committed at once: what a crash
    costs is seconds in both cases. Few at a time, because every task that runs beside another is one more process to
    start, which costs more than all the writing.
    """
    few = TaskPoolStrategy(size=-(-cluster.num_actors // 4))
    return {"num_cpus": SMALL_TASK_SHARE, "batch_size": 32 if cluster.num_gpus else 1, "compute": few}


def jobs_dataset(jobs: pa.Table, block_bytes: int, rows_per_block: int = 1) -> Dataset:
    """A Ray dataset over job rows, whose operators emit blocks of about `block_bytes`; at most MAX_BLOCKS input blocks.

    The rows of an input block go to one task or actor, one after the other.
    """
    rows_per_block = max(rows_per_block, -(-jobs.num_rows // MAX_BLOCKS))
    context = DataContext.get_current().copy()
    context.target_max_block_size = block_bytes
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with DataContext.current(context):
        return ray.data.from_arrow(
            [jobs.slice(first, rows_per_block) for first in range(0, jobs.num_rows, rows_per_block)]
        )


def stream_rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Rows of small results as they come."""
    try:
        with DataContext.current(dataset.context):
            yield from dataset.iter_rows()
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, SarmRayError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise cause from error


def prepare_actor(device: str) -> None:
    """Make this process fit to run a network: on a CPU with one thread (many processes beat many threads); on a GPU
    without TF32, so that fp32 means fp32.

    Raises:
        EncoderError: the cluster has GPUs, but this node's torch cannot use one.
    """
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        raise EncoderError(
            f"torch {torch.__version__} on node {platform.node()} sees no GPU; install a CUDA build there"
        )
    else:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def _start_local() -> None:
    memory = psutil.virtual_memory().available
    umask = os.umask(0o077)
    try:
        ray.init(
            "local",
            include_dashboard=False,
            object_store_memory=int(min(LOCAL_OBJECT_STORE_BYTES, 0.3 * memory)),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    finally:
        os.umask(umask)


def _survey() -> Cluster:
    resources = ray.cluster_resources()
    num_gpus, num_cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    if num_gpus or len(ray.nodes()) > 1:
        probe = ray.remote(_has_bf16).options(num_cpus=0, num_gpus=1 if num_gpus else 0)
        return Cluster(num_cpus, num_gpus, "cuda" if num_gpus else "cpu", ray.get(probe.remote()))
    return Cluster(num_cpus, 0, "cpu", _has_bf16())


def _has_bf16() -> bool:
    import torch

    if ray.get_gpu_ids():
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
