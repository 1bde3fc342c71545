"""Sessions that lose their replica under load: killed, or scaled away. What comes after is as if nothing had happened."""

import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import ray
from ray import serve as ray_serve

from sarm_ray.client import Curve, LiveScorer
from sarm_ray.pipelines.runtime import survey
from sarm_ray.pipelines.serve import APPLICATION
from sarm_ray.pipelines.serving.application import build_application
from sarm_ray.pipelines.serving.plan import plan_serving
from tests.pipelines.crashes import wait_until
from tests.pipelines.live import FPS, LENGTHS, TASK, TOKEN, at_once, live_server

NUM_ROBOTS = 8
SCORED = range(0, LENGTHS[0], 3)  # at 10 Hz of 30


@pytest.fixture(scope="module")
def server(robots, tmp_path_factory):
    # on a slow machine a frame may wait for a replica to come back; it must not be given up for that
    with live_server(robots.model, tmp_path_factory.mktemp("server"), num_replicas=2, max_wait_s=30.0) as running:
        yield running


def kill(deployment: str, replica: str) -> None:
    actor = ray.get_actor(f"SERVE_REPLICA::{APPLICATION}#{deployment}#{replica}", namespace="serve")
    os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


def replicas(deployment: str) -> list[str]:
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    prefix = f"SERVE_REPLICA::{APPLICATION}#{deployment}#"
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def live_on(server, robots, at_frame_30) -> list[tuple[str, Curve]]:
    """Robots that live through an episode at the camera's pace, and what befalls them half-way: their first replicas and
    their curves.
    """

    def live(number: int) -> tuple[str, Curve]:
        own = {"task": TASK, "fps": FPS, "state_dim": 6, "token": TOKEN, "score_hz": 10, "connect_timeout_s": 60}
        with LiveScorer(f"ws://{server.address}", session=f"moves-{number}", max_wait_s=30.0, **own) as scorer:
            first, began_s = scorer.welcome["replica"], time.monotonic()
            for frame in range(LENGTHS[0]):
                if frame == 30 and number == 0:
                    at_frame_30(first)
                time.sleep(max(0.0, began_s + frame / FPS - time.monotonic()))
                scorer.add(robots.images[0][frame], robots.states[0][frame], frame / FPS)
            return first, scorer.close(timeout_s=120)

    return at_once(*(lambda number=number: live(number) for number in range(NUM_ROBOTS)))


def check_all(robots, lives) -> None:
    """Every frame that was due, each once, with the value of an undisturbed run."""
    for _, curve in lives:
        assert curve.complete
        assert curve.columns["frame_index"].tolist() == list(SCORED)
        assert curve.counts["num_dropped"] == curve.counts["num_unsent"] == 0
        assert (curve.counts["num_received"], curve.counts["num_skipped"]) == (LENGTHS[0], LENGTHS[0] - len(SCORED))
        for head in ("sparse", "dense"):
            expected = robots.expected[head][0][list(SCORED)]
            np.testing.assert_allclose(curve.columns[f"progress_{head}"], expected, rtol=0, atol=1e-5)


def moved(lives, replica: str) -> list[bool]:
    """For each robot whether it had to move, and that those of this replica had to, and no others."""
    for first, curve in lives:
        assert (curve.counts["num_reconnects"] > 0) == (first == replica)
    return [first == replica for first, _ in lives]


def test_an_ingress_replica_is_killed_under_load(server, robots):
    killed = []
    lives = live_on(server, robots, lambda replica: (killed.append(replica), kill("Live", replica)))
    check_all(robots, lives)
    assert any(moved(lives, killed[0]))
    wait_until(lambda: len(replicas("Live")) == 2 and killed[0] not in replicas("Live"))


@pytest.mark.parametrize("deployment", ["Encoder", "Scorer"])
def test_a_network_is_killed_under_load(server, robots, deployment):
    wait_until(lambda: len(replicas(deployment)) == 2)
    lives = live_on(server, robots, lambda _: kill(deployment, replicas(deployment)[0]))
    check_all(robots, lives)
    assert not any(curve.counts["num_reconnects"] for _, curve in lives)


def test_a_new_version_is_rolled_out_under_load(server, robots):
    """Serve starts replicas of a new version and stops the old ones, whose robots are told to go elsewhere."""
    wait_until(lambda: len(replicas("Live")) == 2)
    before, cluster = replicas("Live"), survey()
    config = replace(server.config, idle_s=30.0)
    newer = build_application(plan_serving(config, cluster), config, cluster)
    change = threading.Thread(target=ray_serve.run, args=(newer,), kwargs={"name": APPLICATION})
    lives = live_on(server, robots, lambda _: change.start())
    change.join()
    check_all(robots, lives)
    assert any(curve.counts["num_reconnects"] for _, curve in lives)
    wait_until(lambda: len(replicas("Live")) == 2 and not set(before) & set(replicas("Live")))
