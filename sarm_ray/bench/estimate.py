"""`sarm-ray bench estimate`: hours and cost of scoring datasets of given sizes, from rates that were measured on one core.

Arithmetic alone. What is measured is the CPU time of a frame; prices are assumptions, and so is that all cores are
kept busy.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sarm_ray.data import storage
from sarm_ray.errors import ConfigError

PARTS = ("decode", "encode", "score")
# `bench score --frames 5120`: full-size CLIP and SARM in bf16, both heads, stride 1, 640x480 AV1
MEASURED_MS = {"decode": 1.2, "encode": 24.7, "score": 18.1}
MEASURED_RATIO = 0.87
MEASURED_ON = "two AMD EPYC cores (AVX-512, bf16), 2026-11-20"


@dataclass(frozen=True)
class Rates:
    """What was measured on one core.

    Args:
        floor_ms: CPU milliseconds of a frame in each of PARTS, at least.
        floor_ratio: share of that which a whole run reached, Ray's processes counted.
        source: where the figures are from.
    """

    floor_ms: dict[str, float]
    floor_ratio: float
    source: str


@dataclass(frozen=True)
class Size:
    """What one dataset takes.

    Args:
        num_episodes, num_frames: of the dataset.
        core_hours: to decode, encode and score every frame.
        rescore_core_hours: the same with all features in the store.
        hours: wall hours of the former on each number of nodes, all cores busy.
        usd, rescore_usd: core hours times their price.
        gpu_hours: to encode and score at the rate that was given; None without one, like the next two.
        gpu_decode_core_hours: of the cores that decode beside the GPUs.
        gpu_usd: of both.
    """

    num_episodes: int
    num_frames: int
    core_hours: float
    rescore_core_hours: float
    hours: list[float]
    usd: float
    rescore_usd: float
    gpu_hours: float | None
    gpu_decode_core_hours: float | None
    gpu_usd: float | None


@dataclass(frozen=True)
class Estimate:
    """A table: its rows, and what they were worked out from (the arguments of `estimate`)."""

    sizes: list[Size]
    frames_per_episode: int
    rates: Rates
    cores_per_node: int
    num_nodes: list[int]
    core_hour_usd: float
    gpu_hour_usd: float
    gpu_frames_per_s: float | None


def read_rates(location: str | None) -> Rates:
    """Rates out of what `bench score --json` printed; without a file those that README shows.

    Raises:
        ConfigError: no such file, or something else in it.
    """
    if location is None:
        return Rates(MEASURED_MS, MEASURED_RATIO, MEASURED_ON)
    try:
        found = json.loads(storage.read_bytes(storage.absolute(location)))
        floor_ms = {part: float(found["floor_ms"][part]) for part in PARTS}
        rates = Rates(floor_ms, float(found["floor_ratio"]), f"{location}, {found['hardware']['cpu']}")
    except FileNotFoundError:
        raise ConfigError(
            f"{location}: no such file; make it with `sarm-ray bench score --json > {location}`"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{location}: not what `sarm-ray bench score --json` prints ({error!r})") from error
    if min(*floor_ms.values(), rates.floor_ratio) <= 0:
        raise ConfigError(f"{location}: floor_ms and floor_ratio must be positive")
    return rates


def estimate(
    episodes: Sequence[int],
    frames_per_episode: int,
    rates: Rates,
    cores_per_node: int,
    num_nodes: Sequence[int],
    core_hour_usd: float,
    gpu_hour_usd: float,
    gpu_frames_per_s: float | None = None,
) -> Estimate:
    """Hours and cost of datasets of one camera, stride 1.

    Args:
        episodes: a row of the table each.
        frames_per_episode: the mean.
        rates: of one core.
        cores_per_node, num_nodes: the clusters that wall hours are given for.
        core_hour_usd, gpu_hour_usd: prices.
        gpu_frames_per_s: frames that one GPU encodes and scores in a second, measured by whoever asks; None: unknown.
    """
    spent_ms = {part: own / rates.floor_ratio for part, own in rates.floor_ms.items()}
    sizes = []
    for num_episodes in episodes:
        num_frames = num_episodes * frames_per_episode
        hours_of = {part: num_frames * own / 3.6e6 for part, own in spent_ms.items()}
        core_hours = sum(hours_of.values())
        gpu_hours = num_frames / gpu_frames_per_s / 3600 if gpu_frames_per_s else None
        sizes.append(
            Size(
                num_episodes=num_episodes,
                num_frames=num_frames,
                core_hours=core_hours,
                rescore_core_hours=hours_of["score"],
                hours=[core_hours / (nodes * cores_per_node) for nodes in num_nodes],
                usd=core_hours * core_hour_usd,
                rescore_usd=hours_of["score"] * core_hour_usd,
                gpu_hours=gpu_hours,
                gpu_decode_core_hours=None if gpu_hours is None else hours_of["decode"],
                gpu_usd=None if gpu_hours is None else gpu_hours * gpu_hour_usd + hours_of["decode"] * core_hour_usd,
            )
        )
    return Estimate(
        sizes, frames_per_episode, rates, cores_per_node, list(num_nodes), core_hour_usd, gpu_hour_usd, gpu_frames_per_s
    )


def describe(table: Estimate) -> str:
    """For people."""
    rates, with_gpu = table.rates, table.gpu_frames_per_s is not None
    nodes = [f"{count} node{'s' if count > 1 else ''}" for count in table.num_nodes]
    heads = [
        "episodes",
        "frames",
        "core-hours",
        *nodes,
        "USD",
        "rescored",
        "USD",
        *(["GPU-hours", "USD"] if with_gpu else []),
    ]
    rows = [heads]
    for size in table.sizes:
        gpu = [f"{size.gpu_hours:,.1f}", f"{size.gpu_usd:,.0f}"] if with_gpu else []
        rows.append(
            [
                f"{size.num_episodes:,}",
                f"{size.num_frames:,}",
                f"{size.core_hours:,.0f}",
                *(f"{hours:,.1f} h" for hours in size.hours),
                f"{size.usd:,.0f}",
                f"{size.rescore_core_hours:,.0f}",
                f"{size.rescore_usd:,.0f}",
                *gpu,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    parts = ", ".join(f"{part} {rates.floor_ms[part]:g} ms" for part in PARTS)
    if with_gpu:
        price = f"{table.gpu_hour_usd:g} USD per hour assumed"
        gpu_line = f"GPUs: {table.gpu_frames_per_s:,g} frames/s each as given, {price}; cores decode"
    else:
        gpu_line = "GPUs: not measured; --gpu-frames-per-s takes a rate that you measured on yours"
    return "\n".join(
        [
            *("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows),
            f"measured: {parts} of one core for a frame, of which whole runs reach {rates.floor_ratio:.2f} ({rates.source})",
            f"assumed: {table.core_hour_usd:g} USD per core-hour, {table.cores_per_node} cores a node, all of them busy; "
            f"{table.frames_per_episode:,} frames an episode, one camera, stride 1",
            "rescored: another checkpoint, the features being in the store",
            gpu_line,
        ]
    )
