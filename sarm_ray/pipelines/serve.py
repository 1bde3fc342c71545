"""`sarm-ray serve`: live progress of robot rollouts, until it is told to stop."""

import contextlib
import io
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import ray
from ray import serve as ray_serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from sarm_ray.config.serve import ServeConfig
from sarm_ray.console import say, tell
from sarm_ray.errors import ConfigError, name_list
from sarm_ray.pipelines.runtime import Cluster, connect
from sarm_ray.pipelines.serving.application import build_application
from sarm_ray.pipelines.serving.plan import LiveModel, plan_serving

APPLICATION = "sarm_ray"
LOOK_AGAIN_S = 0.5


def serve(config: ServeConfig, quiet: bool = False) -> None:
    """Listen until SIGINT or SIGTERM, then send the running sessions away and end.

    Raises:
        SarmRayError: bad input, or the port is taken.
    """
    with (
        contextlib.ExitStack() as ending,
        connect(config.address) as cluster,
        _told_to_stop() as stop,  # Ray has a handler of its own, which just exits
    ):
        model = plan_serving(config, cluster)
        _check_room(config, cluster)
        if not quiet:
            tell(model.notices)
            say(describe(model, config))
        with serving(model, config, cluster) as drain:
            if not quiet:
                say(f"metrics   {metrics_url() or 'none: this Ray exports none'}\nready     {_url(config)}")
            stop.wait()
            stop.clear()
            say("stopping: running sessions are told to reconnect; once more to stop at once")
            drain(stop)
            # when Serve has stopped its controller, Ray prints that it will go on asking it for ever
            ending.enter_context(contextlib.redirect_stdout(io.StringIO()))


@contextlib.contextmanager
def serving(model: LiveModel, config: ServeConfig, cluster: Cluster) -> Iterator[Callable[[threading.Event], None]]:
    """A live server on the Ray that this process is connected to, for as long as the block lasts.

    Yields:
        A function that sends all sessions away and waits until they are gone, for `drain_s` at most or until an event.
    """
    _check_port(config)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray_serve.start(
        proxy_location="EveryNode" if _is_shared(config) else "HeadOnly",
        http_options=HTTPOptions(host=config.host, port=config.port),
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    try:
        handle = ray_serve.run(build_application(model, config, cluster), name=APPLICATION, route_prefix="/")

        def drain(hurry: threading.Event) -> None:
            until = time.monotonic() + config.drain_s
            while time.monotonic() < until and not hurry.is_set():
                if handle.drain_server.remote().result(timeout_s=config.drain_s) == 0:
                    return
                hurry.wait(LOOK_AGAIN_S)

        yield drain
    finally:
        ray_serve.shutdown()


def describe(model: LiveModel, config: ServeConfig) -> str:
    """What is about to be served."""
    stages = "; ".join(f"{head}: {name_list(names)}" for head, names in model.stages.items())
    least, most = config.replicas
    window = model.checkpoint.window(model.checkpoint.config.frame_gap)
    who = "whoever has the token" if config.token_file else "anybody" if config.insecure else "this machine alone"
    lines = [
        f"model     {model.checkpoint.name} ({stages}; {model.precision})",
        f"encoder   {model.encoder.name} ({model.encoder_precision}) on {model.device}",
        f"window    {window.kind}, {window.num_slots} frames {window.frame_gap} apart, cut at the newest frame",
        f"scores    at most {config.score_hz:g} frames a second of each session",
        f"replicas  {least if least == most else f'{least} to {most}'}, each for up to {config.max_sessions} sessions",
        f"open to   {who}",
    ]
    if config.record:
        lines.append(f"record    {config.record}")
    return "\n".join(lines)


def _url(config: ServeConfig) -> str:
    """Of the live page."""
    host = {"0.0.0.0": ray.util.get_node_ip_address(), "::": ray.util.get_node_ip_address()}.get(
        config.host, config.host
    )
    return f"http://[{host}]:{config.port}" if ":" in host else f"http://{host}:{config.port}"


def metrics_url() -> str | None:
    """Where Prometheus reads this node's counts; None where Ray exports none."""
    own = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == own and node.get("MetricsExportPort", 0) > 0:
            return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return None


def _is_shared(config: ServeConfig) -> bool:
    """Whether a cluster was joined, which may grow and has nodes of its own choice."""
    return bool(config.address or os.environ.get("RAY_ADDRESS"))


def _check_room(config: ServeConfig, cluster: Cluster) -> None:
    """Serve itself would wait for ever."""
    least, room = config.replicas[0], cluster.num_gpus or cluster.num_cpus
    if least > room and not _is_shared(config):
        raise ConfigError(f"{cluster.describe()}: room for {room} replicas, not for {least}; choose --num-replicas")


def _check_port(config: ServeConfig) -> None:
    """Serve itself would try for a minute."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {config.host}:{config.port} ({error.strerror}); choose --port"
            ) from error


@contextlib.contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set. Off the main thread, where Python has no signals, nobody sets it."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
