"""The machines of a cluster: what they have, which were lost, and which are meant for what.

Nodes are labelled `sarm-ray/role=decode|gpu|head` by the files in cluster/. A stage prefers the nodes of its role, and takes
any other one with a free core or GPU: a label that nobody has left never holds up a run.
"""

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ROLE = "sarm-ray/role"

# Of a cluster of several nodes: Ray Data asks an autoscaler for no more, and starts no more processes than have room.
GROWTH = 8


DRAINED_IDLE = 4  # NodeDeathInfo.AUTOSCALER_DRAIN_IDLE: it held nothing that could be lost

VERDICT_S = 120.0  # by then Ray has given up a node that fell silent: five questions of at most 13 seconds each


@dataclass(frozen=True)
class Cluster:
    """What a run has to work with.

    Args:
        num_cpus, num_gpus: of the whole cluster when the run began.
        device: where networks run, `cuda` or `cpu`.
        bf16: whether that hardware has bfloat16 instructions.
        growth: to how many times of that pools may grow, with nodes that join while it runs.
        tells_pools: whether the user is told of actors that come and go.
        joined: whether it was there before the run, so that nodes may come which know nothing of this machine's disk.
    """

    num_cpus: int
    num_gpus: int
    device: str
    bf16: bool
    growth: int = 1
    tells_pools: bool = False
    joined: bool = False

    @property
    def num_actors(self) -> int:
        """Actors of a pool: one per GPU, or one single-threaded one per core."""
        return self.num_gpus or self.num_cpus

    def now(self) -> "Cluster":
        """With what it has gained since. Nodes that went come again when they are wanted."""
        there = ray.cluster_resources()
        num_gpus = max(self.num_gpus, int(there.get("GPU", 0))) if self.device == "cuda" else 0
        return replace(self, num_cpus=max(self.num_cpus, int(there.get("CPU", 1))), num_gpus=num_gpus)

    def describe(self) -> str:
        gpus = f", {self.num_gpus} GPU{'s' if self.num_gpus > 1 else ''}" if self.num_gpus else ", no GPU"
        return f"{self.num_cpus} CPU core{'s' if self.num_cpus > 1 else ''}{gpus}{', bf16' if self.bf16 else ''}"


def node_ids(alive: bool) -> frozenset[str]:
    """Nodes that are there, or that have been and are gone."""
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"] is alive)


def lost_nodes(gone_before: Set[str]) -> list[str]:
    """Addresses of the nodes that were lost since then: `gone_before` is what `node_ids(alive=False)` was.

    Ray takes its time to find out, so all that it counts as alive are asked: a node answers, or is found dead over it.
    """
    if len(alive := node_ids(alive=True)) > 1:
        ask: Any = ray.remote(num_cpus=0, max_retries=0)(_here)
        there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in alive]
        asked = [ask.options(scheduling_strategy=strategy).remote() for strategy in there]
        ray.wait(asked, num_returns=len(asked), timeout=VERDICT_S)
    return gone_since(gone_before)


def gone_since(gone_before: Set[str]) -> list[str]:
    """The same, of nodes that Ray has found dead already."""
    gone = [node for node in ray.nodes() if not node["Alive"] and node["NodeID"] not in gone_before]
    return sorted(node["NodeManagerAddress"] for node in gone if node["DeathReason"] != DRAINED_IDLE)


def _here() -> None: ...


def roles() -> frozenset[str]:
    """The roles that living nodes have."""
    return frozenset(node["Labels"][ROLE] for node in ray.nodes() if node["Alive"] and ROLE in node.get("Labels", {}))


def prefer(role: str) -> dict[str, Any]:
    """map_batches arguments of an operator whose workers are best on nodes of a role; none where no node has it.

    Measured (Ray 2.60): tasks go to such nodes as long as one has room, else to any other that has, and never wait for a
    role that has died out.
    """
    if role not in roles():
        return {}
    return {"label_selector": {ROLE: role}, "fallback_strategy": [{"label_selector": {}}]}


def survey(quiet: bool = False) -> Cluster:
    """What there is now. Of several nodes pools may grow, which the user is told of unless `quiet`."""
    resources = ray.cluster_resources()
    num_gpus, num_cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    several = len(node_ids(alive=True)) > 1
    if not num_gpus and not several:
        return Cluster(num_cpus, 0, "cpu", _has_bf16())
    probe = ray.remote(_has_bf16).options(num_cpus=0, num_gpus=1 if num_gpus else 0, **prefer("gpu"))
    bf16 = ray.get(probe.remote())
    return Cluster(
        num_cpus,
        num_gpus,
        device="cuda" if num_gpus else "cpu",
        bf16=bf16,
        growth=GROWTH if several else 1,
        tells_pools=several and not quiet,
        joined=several,
    )


def _has_bf16() -> bool:
    import torch

    if ray.get_gpu_ids():
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
