"""One small local Ray for all pipeline tests of a session, started as `score` starts its own."""

import os
import tempfile

import pytest
import ray


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
        )
        yield
        ray.shutdown()
        os.environ["HOME"] = home or scratch
