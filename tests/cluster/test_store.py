"""A bucket is all that the hosts share: dataset, model, encoder, features and output lie in it; a host is killed as well."""

from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from tests.cluster.faults import DATASET, start, strike
from tests.cluster.hosts import STORE, USER, address, cluster, needs_hosts
from tests.pipelines.runs import CLIP_TINY, SARM_TINY, assert_same_values, needs_parity, sarm_ray
from tests.s3 import BUCKET, S3, s3_environment

pytestmark = [pytest.mark.cluster, needs_hosts, needs_parity]

PORT = 5000
ENDPOINT = f"http://{address(STORE)}:{PORT}"
URL = f"s3://{BUCKET}"


def test_a_bucket_is_all_they_share(tmp_path, measured):
    outputs = ["--output", f"{tmp_path}/out.parquet", "--cache", f"{tmp_path}/features", "--num-visualizations", "0"]
    one_node = sarm_ray("score", DATASET, "--model", SARM_TINY, "--encoder", CLIP_TINY, "--head-mode", "both", *outputs)
    assert one_node.returncode == 0, one_node.stderr

    known = s3_environment(ENDPOINT)
    with cluster(**{name: value for name, value in known.items() if name.startswith("AWS_")}) as hosts:
        hosts.add(STORE)
        server = ThreadedMotoServer(ip_address=address(STORE), port=PORT, verbose=False)
        hosts.call(STORE, server.start)
        s3 = hosts.call(USER, lambda: S3(ENDPOINT))
        for folder, name in ((DATASET, "data"), (Path(SARM_TINY), "sarm"), (Path(CLIP_TINY), "clip")):
            hosts.call(USER, lambda folder=folder, name=name: s3.upload(folder, name))
        run = start(
            hosts, "bucket", "score", f"{URL}/data", "--model", f"{URL}/sarm", "--encoder", f"{URL}/clip",
            "--head-mode", "both", "--output", f"{URL}/out/out.parquet", "--cache", f"{URL}/features",
            "--num-visualizations", "0",
        )  # fmt: skip
        victim = strike(hosts, run, "encoding")
        code, said, seconds = run.end()
        assert code == 0, said
        assert f"note: lost node {address(victim)}, and " in said
        hosts.call(USER, lambda: s3.download("out/", tmp_path / "bucket"))
        left = hosts.call(USER, lambda: s3.keys("out/"))
        measured("score, a bucket is all they share, a host killed, cluster new", seconds, None)
    assert_same_values(tmp_path / "bucket/out.parquet", tmp_path / "out.parquet")
    assert left == ["out/out.parquet", "out/out.parquet.run/config.yaml", "out/out.parquet.run/summary.json"]
