"""Joining or starting Ray, what hardware there is, how large pools may be, and Ray Data's settings."""

import contextlib
import ctypes
import logging
import math
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionResources, TaskPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sarm_ray.console import divert_native_stderr
from sarm_ray.core.episodes import CHUNK_FRAMES
from sarm_ray.errors import ConfigError, EncoderError
from sarm_ray.pipelines.nodes import Cluster, prefer, survey
from sarm_ray.pipelines.rounds import cause_of
from sarm_ray.pipelines.silence import EndSilence

LOCAL_OBJECT_STORE_BYTES = 2 * 2**30
MAX_BLOCKS = 2000

# Ray ends a process that has nothing to do for a second, and starts one for the next small task: on a core that finishes a
# chunk every ten seconds, each commit would pay a second of imports.
IDLE_WORKER_MS = 600_000

# map_batches arguments of every operator: batches are Arrow tables, which hold a chunk without copying it.
ARROW: dict[str, Any] = {"batch_format": "pyarrow"}

# On a machine without GPUs the networks run on the same cores that decode. Actors leave a tenth of each core unclaimed,
# and the small tasks around them (decode, commit) are scheduled on that.
CPU_ACTOR_SHARE = 0.9
SMALL_TASK_SHARE = 0.04

# map_batches arguments: one attempt. Actors that died are replaced, what they were working on is not repeated (rounds.py).
# Ray 2.60 calls such keyword arguments deprecated, to be gone in 2.64, and has no others for it.
ONE_TASK_ATTEMPT: dict[str, Any] = {"max_retries": 0}
ONE_ACTOR_ATTEMPT: dict[str, Any] = {"max_task_retries": 0, "max_restarts": -1}

REST_S = 0.01

MEMORY_ANSWER_S = 10.0

# From glibc's malloc.h.
M_ARENA_MAX = -8

# With GPUs an actor claims little of a core, so that decoding finds one on a machine with as many GPUs as cores.
GPU_ACTOR_CPUS = 0.1


@contextlib.contextmanager
def connect(address: str | None, quiet: bool = False) -> Iterator[Cluster]:
    """Use the Ray that is running (this process's, the given one, the job's own), else start one on this machine.

    What was started here is shut down at the end. A local Ray listens on this machine only, reports no usage statistics,
    and its token file is readable by the user alone (Ray itself would leave it open to the group). `quiet`: the user is not
    told of pools.
    """
    if ray.is_initialized():
        yield survey(quiet)
        return
    joins = bool(address or os.environ.get("RAY_ADDRESS"))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _share_heaps()
    with divert_native_stderr():
        if joins:
            try:
                # what two hundred workers and raylets print stays in their own logs, which the dashboard shows
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError) as error:
                where = address or os.environ["RAY_ADDRESS"]
                raise ConfigError(f"no Ray cluster answers at {where} ({str(error).splitlines()[0]})") from error
        else:
            _start_local()
        try:
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            yield replace(survey(quiet), joined=joins)
        finally:
            ray.shutdown()


def processes_for(num_frames: int) -> int:
    """The most processes that pay: one takes 3 to 7 seconds to start, in which another does about a whole chunk."""
    return -(-num_frames // CHUNK_FRAMES)


def actor_options(cluster: Cluster, num_jobs: int, num_frames: int, alone: bool = False) -> dict[str, Any]:
    """map_batches arguments of a pool of networks: one actor per GPU (or core), never more than pay, on `gpu` nodes first.

    `alone`: no job waits in an actor's queue behind another one, so that an actor that dies takes one job with it.
    """
    pay = max(1, min(num_jobs, processes_for(num_frames)))
    now = min(pay, cluster.num_actors)
    most = min(pay, cluster.num_actors * cluster.growth)
    pool = ActorPoolStrategy(
        min_size=1, max_size=most, initial_size=now, max_tasks_in_flight_per_actor=1 if alone else None
    )
    resources = {"num_gpus": 1, "num_cpus": GPU_ACTOR_CPUS} if cluster.num_gpus else {"num_cpus": CPU_ACTOR_SHARE}
    return {"compute": pool, **resources, **prefer("gpu"), **ONE_ACTOR_ATTEMPT}


def decode_options(cluster: Cluster, num_jobs: int, num_frames: int) -> dict[str, Any]:
    """map_batches arguments of the decode tasks, unlike the actors' so that Ray does not fuse the two into one operator.

    With GPUs a decoder has a core of its own. Without, there is at most one per core beside the networks; those take 3 to 20
    times as long per frame, so the decoders mostly wait for them. On `decode` nodes first, wherever there are any.
    `num_frames`: that the chunks span, needed or not.
    """
    if cluster.num_gpus:
        return {"num_cpus": 1, **prefer("decode"), **ONE_TASK_ATTEMPT}
    most = cluster.num_cpus * cluster.growth
    few = TaskPoolStrategy(size=max(1, min(most, num_jobs, processes_for(num_frames))))
    return {"num_cpus": SMALL_TASK_SHARE, "compute": few, **prefer("decode"), **ONE_TASK_ATTEMPT}


def commit_options(cluster: Cluster, chunk_frames: int) -> dict[str, Any]:
    """map_batches arguments of the tasks that write results: how many chunks, of at most `chunk_frames` each, make one file.

    A GPU finishes tens of whole chunks a second; a core needs seconds for one, which is then committed at once: what a
    crash costs is seconds in both cases. Of short chunks as many go together as make a whole one: they would come faster
    than tasks that write one each, and wait by the hundreds, which costs the driver memory. Few tasks at a time, because
    every one that runs beside another is one more process to start, which costs more than all the writing.
    """
    few = TaskPoolStrategy(size=-(-cluster.num_actors // 4))
    batch_size = (32 if cluster.num_gpus else 1) * max(CHUNK_FRAMES // max(chunk_frames, 1), 1)
    return {"num_cpus": SMALL_TASK_SHARE, "batch_size": batch_size, "compute": few, **ONE_TASK_ATTEMPT}


def jobs_dataset(
    jobs: pa.Table,
    block_bytes: int,
    rows_per_block: int = 1,
    waiting_bytes: float = math.inf,
    name: str | None = None,
    watch: type | None = None,
) -> Dataset:
    """A Ray dataset over job rows, whose operators emit blocks of about `block_bytes`; at most MAX_BLOCKS input blocks.

    The rows of an input block go to one task or actor, one after the other. At most `waiting_bytes` of results wait between
    operators at any time, or half of the object stores.

    Args:
        name: in Ray's dashboard. watch: an execution callback besides EndSilence.
    """
    rows_per_block = max(rows_per_block, -(-jobs.num_rows // MAX_BLOCKS))
    context = DataContext.get_current().copy()
    context.target_max_block_size = block_bytes
    context.max_errored_blocks = -1  # a dead process costs its own chunks, and those the next round does
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=waiting_bytes)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.custom_execution_callback_classes = [EndSilence, *([watch] if watch else [])]  # type: ignore[list-item]  # ray's base is private
    with DataContext.current(context):
        # not from_arrow, which has a task for each block find out its number of rows: seconds, and 50 kB of the driver
        dataset = ray.data.from_blocks(
            [jobs.slice(first, rows_per_block) for first in range(0, jobs.num_rows, rows_per_block)]
        )
    dataset.set_name(name)
    return dataset


class Rest:
    """A rest in every round of Ray Data's loop, as one of its execution callbacks.

    While rows are ready that nobody wants yet, which is most of a training, its wait for tasks returns at once, and the loop
    turns as fast as it can: 0.8 of a core, on a machine of two. While somebody waits for rows there is no rest: even 2 ms a
    round would be a bound for all GPUs together (measured with empty rows: 180 blocks/s, 118 with 10 ms in every round, 161
    with this).
    """

    def before_execution_starts(self, executor: object) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        if not executor._consumer_idling():  # Ray's own word for it; there is no public one
            time.sleep(REST_S)

    def after_execution_succeeds(self, executor: object) -> None: ...

    def after_execution_fails(self, executor: object, error: Exception) -> None: ...


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


def work_clock(device: str) -> Callable[[], float]:
    """Seconds that a worker is busy: its CPU time on a CPU, which it shares; wall time on a GPU, which it has to itself."""
    return time.process_time if device == "cpu" else time.perf_counter


def call_aside(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in another process of this node, which takes the memory that the call needs off the driver.

    Raises:
        SarmRayError: the function's own.
        ray.exceptions.RayError: any other error of it, or its process died.
    """
    try:
        return ray.get(_aside(function).remote(*args))
    except ray.exceptions.RayError as error:
        raise cause_of(error) from error


def make_aside(function: Callable[..., Any], *args: Any) -> ray.ObjectRef:
    """Like `call_aside`, but what the function returns is left in the object store, for workers."""

    def with_word(*args: Any) -> tuple[None, Any]:
        return None, function(*args)

    done, made = _aside(with_word, num_returns=2).remote(*args)
    try:
        ray.get(done)
    except ray.exceptions.RayError as error:
        raise cause_of(error) from error
    return made


def _aside(function: Callable[..., Any], num_returns: int = 1) -> Any:
    """As a Ray task. On the driver's own node: it reads what the driver would read, and the next run on this machine
    finds out that a process is dead and removes the temporary files that it left.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=1)(function)
    return task.options(scheduling_strategy=here, num_returns=num_returns)


def spilled_bytes() -> int | None:
    """Bytes that the cluster's object stores have written to disk for want of memory, since it was started.

    None where a node does not answer: a figure ends no run. Ray has no public call for it; this is the one that its own
    `Dataset.stats()` makes, but of this node's raylet, which asks the others: any other one may have died a moment ago.
    """
    import grpc
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    own = ray.get_runtime_context().get_node_id()
    raylet = next(node for node in ray.nodes() if node["NodeID"] == own)
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    try:
        reply = get_memory_info_reply(
            state, raylet["NodeManagerAddress"], raylet["NodeManagerPort"], timeout_seconds=MEMORY_ANSWER_S
        )
    except grpc.RpcError:
        return None
    return int(reply.store_stats.spilled_bytes_total)


def peak_rss_bytes() -> int:
    """The most memory that this process has held at once.

    Linux's own figure, where there is one: `ru_maxrss` begins with the peak of the process that started this one.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _share_heaps() -> None:
    """Let all threads of this process allocate from two heaps.

    glibc gives each of the dozens of threads that Ray starts one of its own, and what is freed in one serves no other: 6 MB
    of the driver at 2,000 chunks. Other C libraries have no such call.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def _start_local() -> None:
    memory = psutil.virtual_memory().available
    with _private_token():
        ray.init(
            "local",
            include_dashboard=False,
            object_store_memory=int(min(LOCAL_OBJECT_STORE_BYTES, 0.3 * memory)),
            _system_config={"idle_worker_killing_time_threshold_ms": IDLE_WORKER_MS},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


@contextlib.contextmanager
def _private_token() -> Iterator[None]:
    """Let nobody else read the token that Ray makes for its user's clusters.

    By the folder, not by the umask: workers would inherit that, and nobody else could read what they write.
    """
    folder = Path.home() / ".ray"
    folder.mkdir(mode=0o700, exist_ok=True)
    made = not (folder / "auth_token").exists()
    yield
    if made and (folder / "auth_token").exists():
        (folder / "auth_token").chmod(0o600)
