"""The deployments of a live server, put together: for `sarm-ray serve`, `serve deploy` and KubeRay alike."""

from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, DeploymentActorConfig, RequestRouterConfig
from ray.serve.deployment import Application
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from sarm_ray.config.loading import load_config
from sarm_ray.config.serve import ServeConfig, applied_args
from sarm_ray.pipelines.runtime import GPU_ACTOR_CPUS, Cluster, survey
from sarm_ray.pipelines.serving.board_actor import INGRESS, BoardActor
from sarm_ray.pipelines.serving.networks import EncoderReplica, ScorerReplica
from sarm_ray.pipelines.serving.plan import LiveModel, plan_serving
from sarm_ray.pipelines.serving.replica import BOARD, Live

# of a core: on a CPU one of each makes a whole one, so that `--num-replicas N` needs N cores
CPU_SHARES = {"ingress": 0.1, "encoder": 0.5, "scorer": 0.4}
GPU_SHARE = 0.5  # encoder and scorer of a pair share a GPU
CALLS_AT_ONCE = 256
SPARE_REQUESTS = 64  # beside the sessions: viewers of the page, clips, probes


def app(args: dict[str, Any]) -> Application:
    """The application of a `serve deploy` file: `import_path: sarm_ray.pipelines.serving.application:app`.

    Where Serve listens does not stand in `args`, so it counts as everywhere: there must be a token, or `insecure: true`.

    Raises:
        SarmRayError: bad input.
    """
    config = load_config(ServeConfig, None, {**applied_args(args), "host": "0.0.0.0"})
    cluster = survey()
    return build_application(plan_serving(config, cluster), config, cluster)


def build_application(model: LiveModel, config: ServeConfig, cluster: Cluster) -> Application:
    """ingress (sessions) -> encoder -> scorer, and the board beside the ingress."""
    least, most = config.replicas
    encoder = _network(EncoderReplica, "Encoder", "encoder", cluster, least, most).bind(model)
    scorer = _network(ScorerReplica, "Scorer", "scorer", cluster, least, most).bind(model)
    ingress: Any = serve.deployment(
        Live,
        name=INGRESS,
        max_ongoing_requests=config.max_sessions + SPARE_REQUESTS,
        graceful_shutdown_timeout_s=max(config.drain_s, 1.0) + 5.0,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5.0,
        ray_actor_options={"num_cpus": 1.0 if cluster.num_gpus else CPU_SHARES["ingress"]},
        # a session keeps to its replica; where that is full it goes to the next on the ring, and replays
        request_router_config=RequestRouterConfig(
            request_router_class=ConsistentHashRouter,  # type: ignore[arg-type]  # the type is of what it makes of it
            request_router_kwargs={"num_virtual_nodes": 100, "num_fallback_replicas": 1},
        ),
        deployment_actors=[
            DeploymentActorConfig(name=BOARD, actor_class=ray.remote(BoardActor), actor_options={"num_cpus": 0})
        ],
        **_replicas(least, most, config.sessions_per_replica),
    )
    return ingress.bind(model, encoder, scorer)


def _network(kind: type, name: str, share: str, cluster: Cluster, least: int, most: int) -> Any:
    resources = {"num_cpus": CPU_SHARES[share]}
    if cluster.num_gpus:
        resources = {"num_cpus": GPU_ACTOR_CPUS, "num_gpus": GPU_SHARE}
    return serve.deployment(
        kind,
        name=name,
        max_ongoing_requests=CALLS_AT_ONCE,
        ray_actor_options=resources,
        # calls: an ingress replica has two groups under way, so that one which is never idle has up to two here
        **_replicas(least, most, target=1.5),
    )


def _replicas(least: int, most: int, target: float) -> dict[str, Any]:
    """As many replicas as keep the requests (of the ingress: sessions) of each at `target`."""
    if least == most:
        return {"num_replicas": least}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            target_ongoing_requests=target,
            upscale_delay_s=5.0,
            downscale_delay_s=120.0,
            look_back_period_s=10.0,
        )
    }
