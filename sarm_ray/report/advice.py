"""What RA-BC will make of a progress file, in words, before anybody trains on it."""

import itertools
import shlex

import numpy as np

from sarm_ray.core.rabc import (
    HEALTHY_MEAN_WEIGHT,
    DeltaDistribution,
    DeltaHistogram,
    RabcSummary,
    is_healthy,
    progress_deltas,
    summarize_weights,
)
from sarm_ray.data.progress_io import read_progress_blocks
from sarm_ray.errors import DatasetError

PREFERRED_TARGETS = (0.5, 0.7, 0.3)
TERMINAL_WIDTH = 80
LONGEST_BAR = 40


def summarize_progress(path: str, head: str, chunk_size: int = 50, kappa: float = 0.01) -> RabcSummary:
    """What a kappa gives on a progress file, which is read once and never held as a whole.

    Args:
        path: sarm_progress.parquet, ours or LeRobot's; a local path or a URL.
        head: `sparse` or `dense`.
        chunk_size: the horizon in frames, the policy's chunk_size.
        kappa: LeRobot's default is 0.01.

    Raises:
        DatasetError: a file that cannot be read, lacks the head, or has no rows.
        ValueError: chunk_size below 1 or kappa below 0.
    """
    distribution = DeltaDistribution()
    for block in read_progress_blocks(path, head):
        distribution.add(progress_deltas(block.progress, block.lengths, chunk_size))
    if not distribution.num_frames:
        raise DatasetError(f"{path}: no rows")
    return summarize_weights(distribution, kappa)


def describe_rabc(path: str, head: str, chunk_size: int = 50, kappa: float = 0.01) -> list[str]:
    """The two or three lines that `score` ends with; arguments and errors of `summarize_progress`."""
    return describe_summary(summarize_progress(path, head, chunk_size, kappa), head, chunk_size)


def describe_summary(summary: RabcSummary, head: str, chunk_size: int) -> list[str]:
    """A summary for a person: what the weights are, whether that is healthy, and which kappa to use."""
    lines = [
        f"RA-BC on progress_{head} at kappa {summary.kappa:g}: mean weight {summary.mean_weight:.2f}, "
        f"{percent(summary.share_zero)} of frames weigh 0, {percent(summary.share_full)} weigh 1 "
        f"(assuming that your policy's chunk_size is {chunk_size})",
        _verdict(summary, chunk_size),
    ]
    if summary.num_nan:
        lines.append(
            f"{summary.num_nan:,} frames ({percent(summary.num_nan / summary.num_frames)}) have no progress now or at "
            "the horizon (NaN); LeRobot gives them weight 1"
        )
    return lines


def percent(share: float) -> str:
    """`42%`; what rounds to 0 or 100 and is not gets `<1%` or `>99%`."""
    if 0 < share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def describe_health(mean_weight: float) -> str:
    """Whether a mean weight is in the healthy range, in words."""
    low, high = HEALTHY_MEAN_WEIGHT
    return (
        f"healthy ({low:g} to {high:g})" if is_healthy(mean_weight) else f"unhealthy (healthy is {low:g} to {high:g})"
    )


def describe_kappas(summary: RabcSummary) -> list[str]:
    """A table of the kappas that anybody might choose and the mean weight of each, the smallest first."""
    default, *rules = summary.rules.items()
    rows = [
        (summary.auto_kappa, f"{summary.auto_mean_weight:.2f}", "75th percentile of the deltas (--kappa auto)"),
        (default[1][0], f"{default[1][1]:.2f}", "LeRobot's default"),
        *((kappa, f"{weight:.2f}", f"LeRobot's rule: {name} of the deltas") for name, (kappa, weight) in rules),
        *(
            (kappa, f"{target:g}", f"for a mean weight of {target:g}")
            for target, kappa in summary.kappa_for.items()
            if kappa is not None
        ),
    ]
    lines = ["kappa       mean weight"]
    lines += [f"{decimals(kappa):<10}  {weight:<11}  {text}".rstrip() for kappa, weight, text in sorted(rows)]
    missing = [f"{target:g}" for target, kappa in summary.kappa_for.items() if kappa is None]
    if missing:
        low, high = summary.reachable
        lines.append(
            f"{'none':<10}  {', '.join(missing):<11}  {low:.2f} to {high:.2f} can be reached, though not all between"
        )
    return lines


def draw_histogram(histogram: DeltaHistogram, kappa: float) -> list[str]:
    """One row per bin, TERMINAL_WIDTH wide at most, the one that kappa is in marked; the outermost only where needed."""
    edges, counts = histogram.edges, histogram.counts
    if not counts:
        return []
    digits = max(len(decimals(edge).partition(".")[2]) for edge in edges)
    ends = [f"{edge:.{digits}f}" for edge in edges]
    inner = [f"{low} to {high}" for low, high in itertools.pairwise(ends)]
    names = [f"up to {ends[0]}" if edges[0] else f"below {ends[0]}", *inner, f"above {ends[-1]}"]
    marked = int(np.searchsorted(edges, kappa)) + (kappa == 0)  # a delta of 0 counts with those above it
    mark, width = f" <- kappa {decimals(kappa)}", max(map(len, names))
    longest = min(TERMINAL_WIDTH - len(f"  {'':{width}}  100.0%  {mark}"), LONGEST_BAR)
    rows = []
    for row, (name, count) in enumerate(zip(names, counts, strict=True)):
        if count or row == marked or 0 < row < len(counts) - 1:
            bar = "#" * max(round(longest * count / max(counts)), count > 0)
            text = f"  {name:>{width}}  {count / sum(counts):6.1%}  {bar}{mark if row == marked else ''}"
            rows.append(text.rstrip())
    return rows


def lerobot_command(path: str, kappa: float, head: str) -> str:
    """What has lerobot-train weigh its samples by a progress file, quoted for a shell."""
    options = {"type": "rabc", "progress_path": path, "kappa": decimals(kappa), "head_mode": head}
    return " ".join(["lerobot-train", *(shlex.quote(f"--sample_weighting.{key}={options[key]}") for key in options)])


def decimals(value: float) -> str:
    """To six decimals and without an exponent, which not all readers of YAML take for a number: `0.01`, `0.000012`, `0`."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _verdict(summary: RabcSummary, chunk_size: int) -> str:
    low, high = HEALTHY_MEAN_WEIGHT
    kappa, mean_weight = _best_kappa(summary)
    source = ", the 75th percentile of the deltas," if kappa == summary.auto_kappa else ""
    if summary.is_healthy:
        if kappa is None or kappa == summary.kappa:
            return describe_health(summary.mean_weight)
        return f"{describe_health(summary.mean_weight)}; kappa {kappa:.3g}{source} would give {mean_weight:.2f}"
    too_high = summary.mean_weight > high
    problem = "nearly plain imitation, hardly a frame counts less" if too_high else "few frames count"
    problem = f"unhealthy: {problem} (healthy is {low:g} to {high:g})"
    if kappa is not None:
        return f"{problem}; --sample_weighting.kappa={kappa:.3g}{source} gives {mean_weight:.2f}"
    if too_high:
        return f"{problem}, and no kappa gives less than {summary.reachable[0]:.2f}: too many frames have no progress"
    return (
        f"{problem}, and no kappa gives more than {summary.reachable[1]:.2f}: {percent(summary.share_falling)} of frames "
        f"lose progress within {chunk_size} frames; look at the curves before you train on them"
    )


def _best_kappa(summary: RabcSummary) -> tuple[float | None, float]:
    """The kappa to use and its mean weight: the 75th percentile wherever that is healthy."""
    if is_healthy(summary.auto_mean_weight):
        return summary.auto_kappa, summary.auto_mean_weight
    for target in PREFERRED_TARGETS:
        kappa = summary.kappa_for[target]
        if kappa is not None:
            return kappa, target
    return None, 0.0
