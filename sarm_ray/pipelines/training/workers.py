"""How many training processes, on what, in which precision and ZeRO stage: from what was asked for and what is there."""

from dataclasses import dataclass

from sarm_ray.config.train import TrainConfig
from sarm_ray.errors import ConfigError, name_list
from sarm_ray.pipelines.runtime import Cluster


@dataclass(frozen=True)
class Workers:
    """How many training processes a run has.

    Args:
        most: that are wanted.
        to_begin, to_go_on: the fewest to begin with, and to go on with after a loss.
        settle: whether fewer than `most` are taken at once, or only when waiting for more was in vain.
        on_gpu: whether each has a GPU.
        per_pass: samples of a pass of all processes, which their number divides.
    """

    most: int
    to_begin: int
    to_go_on: int
    settle: bool
    on_gpu: bool
    per_pass: int

    def sizes(self, begun: bool) -> list[int]:
        """Numbers of processes that would do, the largest first."""
        fewest = self.to_go_on if begun else self.to_begin
        return [size for size in range(self.most, 0, -1) if size >= fewest and self.per_pass % size == 0]


def choose_workers(config: TrainConfig, cluster: Cluster) -> Workers:
    """The number of processes, and whether each has a GPU.

    A plain number is what the user counts on when the run begins. Later a run that goes on with fewer serves them better
    than one that stands still, whatever the number: it does not change what is learnt. MIN:MAX says otherwise.

    Raises:
        ConfigError: workers and passes that do not divide the batch; the nearest numbers that do.
    """
    use_gpu = cluster.num_gpus > 0 if config.use_gpu is None else config.use_gpu
    there = max(cluster.num_gpus, 1) if use_gpu else 1
    fewest, most = config.workers or (there, there)
    passes = most * config.gradient_accumulation_steps
    if config.batch_size % passes:
        divisors = [n for n in range(1, config.batch_size + 1) if config.batch_size % n == 0]
        near = sorted(sorted(divisors, key=lambda n: abs(n - passes))[:3])
        accumulated = config.gradient_accumulation_steps > 1
        what = f"{most} workers x {config.gradient_accumulation_steps} passes" if accumulated else f"{most} workers"
        raise ConfigError(
            f"{what} do not divide the batch of {config.batch_size}; {name_list(map(str, near))} would, or choose another "
            "--batch-size"
        )
    per_pass = config.batch_size // config.gradient_accumulation_steps
    return Workers(most, fewest, fewest if config.ranged else 1, config.ranged and fewest < most, use_gpu, per_pass)


def choose_precision(wanted: str, cluster: Cluster, use_gpu: bool) -> str:
    """fp32 or bf16. CPUs train in fp32 unless told otherwise: there bfloat16 gains little and costs digits."""
    if wanted != "auto":
        return wanted
    return "bf16" if use_gpu and cluster.bf16 else "fp32"


def choose_stage(wanted: int | None, num_workers: int, precision: str) -> int:
    """The ZeRO stage. One process has nobody to share with, but bfloat16 needs stage 1, which keeps the fp32 weights.

    Raises:
        ConfigError: stage 0 in bf16.
    """
    if wanted == 0 and precision == "bf16":
        raise ConfigError(
            "--deepspeed-stage 0 trains in fp32 alone; take stage 1 or more for bf16, or --precision fp32"
        )
    if wanted is None:
        return 0 if num_workers == 1 and precision == "fp32" else 1
    return wanted
