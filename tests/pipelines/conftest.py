"""One small local Ray for all pipeline tests of a session, started as `score` starts its own."""

import os
import tempfile
import time

import pytest
import ray

from sarm_ray.model.encoder import EFFICIENTNET, EncoderInfo, describe_encoder
from sarm_ray.pipelines.runtime import IDLE_WORKER_MS
from tests.pipelines.crashes import Undisturbed, assert_tidy, said, started


@pytest.fixture(scope="session", autouse=True)
def local_ray():
    home = os.environ.get("HOME")
    with tempfile.TemporaryDirectory(prefix="sr", dir="/tmp") as scratch:
        os.environ["HOME"] = scratch  # Ray leaves a token file in it
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=400 * 2**20,
            log_to_driver=False,
            _temp_dir=scratch,
            _system_config={"idle_worker_killing_time_threshold_ms": IDLE_WORKER_MS},
        )
        yield
        ray.shutdown()
        os.environ["HOME"] = home or scratch


@pytest.fixture(scope="session")
def encoder() -> EncoderInfo:
    """The encoder whose weights are embedded."""
    return describe_encoder(EFFICIENTNET, None)


@pytest.fixture(scope="session")
def robots(tmp_path_factory, encoder):
    """What the robots of the live server's tests live through."""
    from tests.pipelines.live import make_robots

    return make_robots(tmp_path_factory.mktemp("robots"), encoder)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Undisturbed:
    """The run that crash tests compare with: the console command, which starts its own Ray."""
    folder, began = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    with started(folder, own_ray=True) as process:
        assert process.wait() == 0, said(folder)
        seconds = time.monotonic() - began
    assert_tidy(folder)
    return Undisturbed(folder / "out.parquet", seconds)
