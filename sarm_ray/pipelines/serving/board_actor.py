"""The one board of a live server, as an actor that Serve keeps alive beside the ingress replicas."""

import logging
import time
from typing import Any

import ray
from ray.serve.context import _get_global_client

from sarm_ray.core.board import Board, Update

LOOK_EVERY_S = 1.0
HEARD_S = 5.0  # a replica that said nothing for so long is gone
INGRESS = "Live"
log = logging.getLogger("sarm_ray.serve")


class BoardActor:
    """Takes what replicas push, answers what viewers lack, and knows which replicas are to end.

    Serve tells a replica nothing when it is to stop: it waits until the replica's requests are over, which a robot's socket
    never is, and then cuts it. So the board asks Serve's controller once a second which replicas it is stopping, and tells
    them when they push; they send their robots elsewhere.
    """

    def __init__(self) -> None:
        self.board = Board(first_version=int(time.time() * 1000))
        self.stopping: set[str] = set()
        self.all_stop = False
        self.looked_s = 0.0
        self.connected: dict[str, tuple[int, float]] = {}

    def push(self, replica: str, updates: list[Update], num_connected: int) -> bool:
        """Take in a replica's news, and how many robots are connected: whether it is to send them elsewhere."""
        now = time.time()
        self.board.push(replica, updates, now)
        self.connected[replica] = (num_connected, now)
        if now - self.looked_s > LOOK_EVERY_S:
            self.looked_s = now
            self.stopping = stopping_replicas()
        return self.all_stop or replica in self.stopping

    def changes(self, since_version: int) -> dict[str, Any]:
        """See `Board.changes`."""
        return self.board.changes(since_version, time.time())

    def drain(self) -> int:
        """The whole server is to end: how many robots are connected still."""
        self.all_stop = True
        return sum(count for count, said_s in self.connected.values() if time.time() - said_s < HEARD_S)


def stopping_replicas() -> set[str]:
    """Names of the ingress replicas that Serve is stopping.

    Ray has no public call for it; this is the one behind `serve status` and the dashboard.
    """
    try:
        client: Any = _get_global_client()
        details: Any = ray.get(client._controller.get_serve_instance_details.remote(), timeout=2)
    except ray.exceptions.RayError as error:
        log.warning("Serve's controller does not say which replicas it stops (%s)", type(error).__name__)
        return set()
    return {
        replica["replica_id"]
        for application in details["applications"].values()
        for deployment in application["deployments"].values()
        if deployment["name"] == INGRESS
        for replica in deployment["replicas"]
        if replica["state"] == "STOPPING"
    }
