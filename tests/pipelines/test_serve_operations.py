"""What those who run the live server touch: the config of `serve deploy`, and what Prometheus reads."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
import ray
import yaml

from sarm_ray.config.serve import load_serve_config
from sarm_ray.errors import ConfigError
from sarm_ray.pipelines.serve import metrics_url
from sarm_ray.pipelines.serving.application import app
from sarm_ray.pipelines.serving.meters import MILLISECONDS
from tests.pipelines.crashes import kill, wait_until
from tests.pipelines.live import FPS, TOKEN, Robot, Server, free_port, live_server

JOBS = Path(__file__).parents[2] / "jobs"
CLUSTER = """
import logging, sys, ray
ray.init("local", num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=int(sys.argv[1]),
         object_store_memory=300 * 2**20, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=sys.argv[2])
print("up", flush=True)
sys.stdin.read()
"""


def test_serve_deploy_takes_our_file_and_a_frame_is_scored(robots, tmp_path):
    """The real command, on a cluster that is a process of its own."""
    given = yaml.safe_load((JOBS / "serve.yaml").read_text())
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    given["http_options"] |= {"host": "127.0.0.1", "port": free_port()}
    own = {"model": robots.model, "token_file": str(tmp_path / "token"), "num_replicas": "1:2", "precision": "fp32"}
    given["applications"][0]["args"] |= own
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(given))
    dashboard, scratch = free_port(), os.environ["HOME"]
    # a Ray that is started from Python wants its token; the `serve` command presents it when told to
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "said").open("w") as said:
        command = [sys.executable, "-c", CLUSTER, str(dashboard), scratch]
        cluster = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=said, stderr=said, env=env, start_new_session=True
        )
    try:
        wait_until(lambda: "up" in (tmp_path / "said").read_text(), cluster)
        deploy = [sys.executable, "-m", "ray.serve.scripts", "deploy", str(file), "-a", f"http://127.0.0.1:{dashboard}"]
        subprocess.run(deploy, env=env, check=True, timeout=120, capture_output=True)
        server = Server(load_serve_config(str(file), {}))
        wait_until(lambda: is_ready(server), cluster)
        robot = Robot(server, "robot")
        (reply,) = robot.live_through(robots, 0, [0])
        assert reply["sparse"]["progress"] == pytest.approx(float(robots.expected["sparse"][0][0]), abs=1e-5)
        assert robot.close()["num_scored"] == 1
    finally:
        kill(cluster)


def is_ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"http://{server.address}/readyz", timeout=10) as reply:
            return json.load(reply) == {"status": "ready"}
    except OSError:
        return False


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"model": "m"}, "host 0.0.0.0 can be reached from other machines: give --token-file, or --insecure"),
        ({"model": "m", "host": "127.0.0.1"}, "host has no place in args; Serve listens where http_options say"),
        ({"model": "m", "port": 80, "insecure": True}, "port has no place in args"),
    ],
)
def test_a_deployed_server_is_never_open_by_mistake(args, words):
    """Whatever `http_options` say, which the application does not see."""
    with pytest.raises(ConfigError, match=re.escape(words)):
        app(args)


def metrics(replica: str) -> Counter:
    """What Prometheus reads of one replica: name, phase and bucket -> value.

    Without the sums of histograms: Ray makes them up from the middles of the buckets.
    """
    with urllib.request.urlopen(metrics_url() or "") as reply:
        text = reply.read().decode()
    values: Counter = Counter()
    for name, labels, value in re.findall(r"^ray_sarm_ray_live_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        named = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if named.get("replica") == replica and not name.endswith("_sum"):
            key = " ".join([name, *(named[label] for label in ("phase", "le") if label in named)])
            values[key] += float(value)
    return values


def test_prometheus_reads_what_happened(robots, tmp_path):
    with live_server(robots.model, tmp_path, score_hz=FPS / 2) as server:
        robot = Robot(server, "robot")
        replies = []
        for frame in range(20):
            robot.show(frame / FPS, robots.states[0][frame], robots.images[0][frame])
            if frame % 2 == 0:
                replies.append(robot.hear())
        replica = robot.welcome["replica"]
        running = wait_for(lambda: metrics(replica), lambda values: values["frames_scored_total"] == 10)
        assert running["sessions"] == 1
        robot.close()
        values = wait_for(lambda: metrics(replica), lambda values: values["sessions"] == 0)
    frames = {name: value for name, value in values.items() if name.startswith("frames")}
    assert frames == {"frames_received_total": 20, "frames_scored_total": 10, "frames_skipped_total": 10}
    assert {values[f"batch_size_bucket {most}"] for most in ("1.0", "2.0", "128.0", "+Inf")} == {10}
    for phase in ("decode", "encode", "score"):
        spent_ms = [reply["timings_ms"][phase] for reply in replies]
        for most in MILLISECONDS:
            assert values[f"latency_ms_bucket {phase} {most}"] == sum(value <= most for value in spent_ms)


def wait_for(read, good, patience_s: float = 60) -> Counter:
    """Ray exports every few seconds."""
    values = read()
    for _ in range(int(patience_s)):
        if good(values):
            return values
        time.sleep(1)
        values = read()
    raise AssertionError(values)


def test_the_metrics_are_where_the_command_says():
    assert metrics_url() == f"http://{ray.util.get_node_ip_address()}:{ray.nodes()[0]['MetricsExportPort']}/metrics"
