"""One group of training processes after another, each from the last checkpoint, until the last step is done.

A group ends when a process or a node dies, when a node is about to be taken away, when there is room for a larger group, or
at the last step. What is learnt does not depend on how many processes there were when.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from sarm_ray.config.train import TrainConfig
from sarm_ray.console import tell
from sarm_ray.core.order import plan_steps
from sarm_ray.data import storage
from sarm_ray.errors import TrainingError, name_list
from sarm_ray.pipelines.nodes import lost_nodes, node_ids
from sarm_ray.pipelines.stopping import MARKER_PREFIX, Stop
from sarm_ray.pipelines.training.checkpoints import last_step, mend_links
from sarm_ray.pipelines.training.data import TrainJob, batch_layout, batches_dataset
from sarm_ray.pipelines.training.group import fit_group, resources_per_worker
from sarm_ray.pipelines.training.job import encode_run_texts
from sarm_ray.pipelines.training.loop import METRICS_FILE, LoopJob
from sarm_ray.pipelines.training.placing import asked_for_more, known_groups, nodes_of_group, place
from sarm_ray.pipelines.training.plan import TrainPlan
from sarm_ray.pipelines.training.report import cut_metrics, wandb_id
from sarm_ray.pipelines.training.workers import Workers

# Lost nodes are nobody's fault and do not count as failures, but a training that takes its node down with it must end too.
MAX_LOSSES = 20

LOOK_S = 5.0


def train_to_the_end(
    job: TrainJob,
    reference: ray.ObjectRef,
    held_out: ray.ObjectRef | None,
    plan: TrainPlan,
    config: TrainConfig,
    facts: dict[str, Any],
    stop: Stop,
    quiet: bool,
) -> None:
    """Train until the last step is done or the run is asked to stop.

    Raises:
        TrainingError: it cannot go on.
        SarmRayError, Exception: what a process raised.
    """
    failures, losses, reached, num_workers = 0, 0, -1, plan.workers.most
    loop_job, begun = _loop_job(held_out, plan, config, facts), False
    while True:
        mend_links(config.output_dir)
        first_step = last_step(config.output_dir) or 0
        if first_step >= config.steps or stop.requested:
            return
        if first_step > reached:
            failures, losses, reached = 0, 0, first_step
        before, num_workers = num_workers, place_group(plan.workers, config.wait_s, quiet, begun, num_workers)
        if num_workers != before and not quiet:
            _tell_of_size(plan.workers.most, num_workers, first_step)
        begun = True
        cut_metrics(Path(config.output_dir) / METRICS_FILE, first_step)
        dataset = batches_dataset(
            reference, plan_steps(job.lengths, config.seed, config.batch_size, first_step, config.steps), num_workers
        )
        gone_before = node_ids(alive=False)
        with stop.draining(), Watch(plan.workers, num_workers, config) as watch:
            own = replace(
                loop_job,
                first_step=first_step,
                layout=batch_layout(job, num_workers),
                end_markers=(stop.marker, watch.marker),
            )
            death = fit_group(own, dataset, num_workers, watch.look)
        step = last_step(config.output_dir) or 0
        if death is None:
            if not stop.requested and step < (first_step + 1 if watch.ended else config.steps):
                raise TrainingError(
                    f"the training processes ended, and their checkpoints are not in {config.output_dir} for this process; "
                    "give an --output-dir on a disk that all nodes share"
                )
            continue
        lost = lost_nodes(gone_before)
        of_node = death.of == "node" or bool(lost)
        losses, failures = losses + of_node, failures + (not of_node)
        if failures > config.max_failures or losses > MAX_LOSSES:
            many = f"{losses} nodes were lost" if of_node else f"a training process died {failures} times"
            raise TrainingError(f"{many} after step {step} ({death.how}); go on with --resume when the cause is gone")
        if not quiet:
            what = f"a node was lost ({name_list(lost) if lost else death.how})" if of_node else ""
            times = "" if of_node else f", {failures} of {config.max_failures}"
            tell([f"{what or f'a training process died ({death.how})'}; going on from step {step}{times}"])


def place_group(workers: Workers, wait_s: float, quiet: bool, begun: bool = False, last: int | None = None) -> int:
    """For how many training processes there is room, see `place`.

    Args:
        workers: of the run.
        wait_s, quiet: how long to wait, and whether to say nothing of it.
        begun: whether the run has: then it may go on with fewer.
        last: processes of the group before; where those were fewer than wanted, the wait has been in vain already.
    """
    settle = workers.settle or (last is not None and last < workers.most)
    return place(workers.sizes(begun), resources_per_worker(workers.on_gpu), wait_s, settle, quiet)


class Watch:
    """What a running group is watched for: nodes of it, or the driver's, that are about to be taken away, and
    room for a larger group.

    Args:
        workers: of the run. num_workers: of the group. config: of the run.
    """

    def __init__(self, workers: Workers, num_workers: int, config: TrainConfig):
        self.marker = storage.join(config.output_dir, f"{MARKER_PREFIX}group-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        self.ended = False
        self._sizes, self._each = workers.sizes(begun=True), resources_per_worker(workers.on_gpu)
        self._num_workers, self._regroup_s = num_workers, config.regroup_s
        self._started = self._looked = time.monotonic()
        self._known_groups = known_groups()
        self._here = ray.get_runtime_context().get_node_id()
        self._room: Callable[[], int] | None = None
        self._last_room = num_workers
        self._requests = contextlib.ExitStack()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.close()
        storage.remove_file(self.marker)

    def look(self) -> None:
        """Make the marker, at which the group writes a checkpoint and ends, when it is time. To be called often."""
        now = time.monotonic()
        if self.ended or now - self._looked < LOOK_S:
            return
        self._looked = now
        before = self._last_room
        nodes = nodes_of_group(self._num_workers, self._each, self._known_groups)
        if self._num_workers < self._sizes[0]:
            if self._room is None and nodes:
                requests = asked_for_more(self._num_workers, self._sizes, self._each)
                self._room = self._requests.enter_context(requests)
            self._last_room = self._room() if self._room else self._num_workers
        grown = min(before, self._last_room) > self._num_workers and now - self._started >= self._regroup_s
        if grown or _leaving_nodes() & (nodes | {self._here}):
            storage.create_file(self.marker, b"")
            self.ended = True


def _loop_job(held_out: ray.ObjectRef | None, plan: TrainPlan, config: TrainConfig, facts: dict[str, Any]) -> LoopJob:
    """What the training processes of every group need; each group has its own first step, layout and markers."""
    return LoopJob(
        config=config,
        sarm=plan.config,
        sidecar=plan.sidecar(),
        normalizer=plan.normalizer,
        init_from=plan.init_from,
        heads=plan.heads,
        deepspeed_stage=plan.deepspeed_stage,
        precision=plan.precision,
        device="cuda" if plan.workers.on_gpu else "cpu",
        layout={},
        texts=encode_run_texts(plan, config),
        held_out=held_out,
        first_step=0,
        facts=facts,
        end_markers=(),
        wandb_id=wandb_id(Path(config.output_dir)) if config.wandb_project else "",
        wandb_environment={name: value for name, value in os.environ.items() if name.startswith("WANDB_")},
    )


def _tell_of_size(most: int, num_workers: int, first_step: int) -> None:
    room = f"{num_workers} of {most} training processes can be placed"
    tell([f"{room}; {f'going on with {num_workers} from step {first_step}' if first_step else 'beginning with these'}"])


def _leaving_nodes() -> frozenset[str]:
    """Nodes of which Ray has been told that they are about to be taken away. There is no public call for it."""
    return frozenset(ray._private.state.state.get_draining_nodes())
