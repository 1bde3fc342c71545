"""How many training processes there is room for: asked of Ray, with placement groups, which an autoscaler goes by as well.

Only a placement group tells the truth: totals name nodes that died seconds ago, and what others hold. A group that can be
placed is taken back at once, and Ray Train places its own.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from sarm_ray.console import tell
from sarm_ray.errors import TrainingError

# A group for which there is room is placed in hundredths of a second; what the last group held takes a few to come free.
PLACE_S = 5.0
POLL_S = 0.1


def place(sizes: Sequence[int], each: dict[str, float], wait_s: float, settle: bool, quiet: bool) -> int:
    """How many training processes can be placed now. All are asked for meanwhile, so that an autoscaler adds nodes.

    Args:
        sizes: numbers that would do, the largest first.
        each: what a process claims.
        wait_s: seconds to wait for the largest, or, where `settle`, for the smallest.
        settle: take fewer than the largest at once.
        quiet: say nothing of the wait.

    Returns:
        The largest of `sizes` for which there is room.

    Raises:
        TrainingError: there is none, after `wait_s`.
    """
    deadline, told = time.monotonic() + wait_s, quiet
    patience_s = PLACE_S if _exists(each, sizes[0]) else 0.0
    with _asked(each, sizes[0]) as whole:
        while True:
            if _placed(whole, patience_s):
                return sizes[0]
            over = time.monotonic() >= deadline
            for fewer in sizes[1:] if settle or over else ():
                if _exists(each, fewer):
                    with _asked(each, fewer) as group:
                        if _placed(group, PLACE_S):
                            return fewer
            lack = _lack(each, sizes[-1] if settle else sizes[0])
            if over:
                raise TrainingError(f"{lack}, and after {wait_s:g} s no more came; add nodes or give --num-workers")
            if not told:
                tell([f"{lack}; waiting up to {wait_s:g} s for more"])
                told = True
            patience_s = min(PLACE_S, max(deadline - time.monotonic(), 0.0))


def known_groups() -> frozenset[str]:
    """All placement groups that Ray knows of, by their ids."""
    return frozenset(placement_group_table())


def nodes_of_group(num_workers: int, each: dict[str, float], before: frozenset[str]) -> frozenset[str]:
    """Nodes of the group that Ray Train has placed, none before it has: of those of that shape that were not known before.

    Ray Train gives its placement group no name.
    """
    return frozenset(
        node
        for name, group in placement_group_table().items()
        if name not in before
        and group["state"] == "CREATED"
        and list(group["bundles"].values()) == [each] * num_workers
        for node in group["bundles_to_node_id"].values()
    )


@contextlib.contextmanager
def asked_for_more(num_workers: int, sizes: Sequence[int], each: dict[str, float]) -> Iterator[Callable[[], int]]:
    """Ask for the processes that a running group lacks, for as long as the block lasts. What comes is held for it.

    Args:
        num_workers: of the group, one of `sizes`; it must have been placed, or the requests may take its place.
        sizes: numbers that would do, the largest first.
        each: what a process claims.

    Yields:
        A function that says how large the group could be now.
    """
    larger = sorted(size for size in sizes if size > num_workers)
    # one request for each step to the next larger number: what is held idle is never less than a group can use
    steps = np.diff([num_workers, *larger]).tolist()
    with contextlib.ExitStack() as stack:
        requests = [(step, stack.enter_context(_asked(each, step))) for step in steps]

        def room() -> int:
            there = num_workers + sum(step for step, group in requests if _is_placed(group))
            return max(size for size in sizes if size <= there)

        yield room


@contextlib.contextmanager
def _asked(each: dict[str, float], num_workers: int) -> Iterator[PlacementGroup]:
    group = placement_group([each] * num_workers)
    try:
        yield group
    finally:
        remove_placement_group(group)


def _placed(group: PlacementGroup, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while not _is_placed(group):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def _is_placed(group: PlacementGroup) -> bool:
    return placement_group_table(group)["state"] == "CREATED"


def _exists(each: dict[str, float], num_workers: int) -> bool:
    """Whether the cluster has as much, in use or not."""
    there = ray.cluster_resources()
    return all(there.get(kind, 0) >= amount * num_workers for kind, amount in each.items())


def _lack(each: dict[str, float], num_workers: int) -> str:
    kind, unit = ("GPU", "GPUs") if "GPU" in each else ("CPU", "CPU cores")
    there, free = (each_of.get(kind, 0) for each_of in (ray.cluster_resources(), ray.available_resources()))
    in_use = f", of which {free:g} are free" if _exists(each, num_workers) else ""
    who = f"{num_workers} training processes need as many" if num_workers > 1 else "a training process needs one of the"
    return f"{who} {unit}, the cluster has {there:g}{in_use}"
