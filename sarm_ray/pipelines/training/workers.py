"""How many training processes, on what, in which precision and ZeRO stage: from what was asked for and what is there."""

from sarm_ray.config.train import TrainConfig
from sarm_ray.errors import ConfigError, name_list
from sarm_ray.pipelines.runtime import Cluster


def choose_workers(config: TrainConfig, cluster: Cluster) -> tuple[int, bool]:
    """The number of processes, and whether each has a GPU.

    Raises:
        ConfigError: workers and passes that do not divide the batch; the nearest numbers that do.
    """
    use_gpu = cluster.num_gpus > 0 if config.use_gpu is None else config.use_gpu
    num_workers = config.num_workers or (max(cluster.num_gpus, 1) if use_gpu else 1)
    passes = num_workers * config.gradient_accumulation_steps
    if config.batch_size % passes:
        divisors = [n for n in range(1, config.batch_size + 1) if config.batch_size % n == 0]
        near = sorted(sorted(divisors, key=lambda n: abs(n - passes))[:3])
        accumulated = config.gradient_accumulation_steps > 1
        what = (
            f"{num_workers} workers x {config.gradient_accumulation_steps} passes"
            if accumulated
            else f"{num_workers} workers"
        )
        raise ConfigError(
            f"{what} do not divide the batch of {config.batch_size}; {name_list(map(str, near))} would, or choose another "
            "--batch-size"
        )
    return num_workers, use_gpu


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
