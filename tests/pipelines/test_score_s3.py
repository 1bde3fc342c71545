"""`sarm-ray score` from a bucket into a bucket: the same values as on a disk, the same resume, and nothing left behind."""

import io
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from click.testing import CliRunner

from sarm_ray.cli import main
from sarm_ray.config.loading import load_config
from sarm_ray.config.score import ScoreConfig
from sarm_ray.core.episodes import frames_of
from sarm_ray.errors import DatasetError, StoreError, StoreInterruptedError
from sarm_ray.model.encoder import EFFICIENTNET, describe_encoder
from sarm_ray.pipelines.rounds import stream_rows
from sarm_ray.pipelines.runtime import ARROW
from sarm_ray.pipelines.score import score
from tests.datasets import CAMERA, write_dataset
from tests.pipelines.crashes import kill, wait_until
from tests.pipelines.runs import assert_same_values, files_below, read_progress, sarm_ray
from tests.pipelines.test_score_generated import write_model
from tests.s3 import BUCKET, s3_environment, s3_settings, serve_s3

LENGTHS = [40, 300, 7]
OUTPUT = f"s3://{BUCKET}/out/sarm_progress.parquet"
RUN = "out/sarm_progress.parquet.run"
OPTIONS = ("--head-mode", "both", "--precision", "fp32")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return write_model(tmp_path_factory.mktemp("model"), describe_encoder(EFFICIENTNET, None))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    return str(write_dataset(tmp_path_factory.mktemp("toy") / "toy", "v2.1", LENGTHS, size=(96, 128)))


@pytest.fixture(scope="module")
def local(model, dataset, tmp_path_factory) -> str:
    """The same on a disk."""
    output = str(tmp_path_factory.mktemp("local") / "sarm_progress.parquet")
    config = ScoreConfig(
        dataset=dataset, model=model, head_mode="both", precision="fp32", output=output, stage_probabilities=True,
        cache=str(tmp_path_factory.mktemp("features")),
    )  # fmt: skip
    score(config, quiet=True)
    return output


@pytest.fixture(scope="module")
def s3(dataset, tmp_path_factory):
    with serve_s3() as server:
        server.upload(tmp_path_factory.getbasetemp() / dataset, "data/toy")
        yield server


def stored_parts(s3) -> list[pa.Table]:
    """Chunks in the feature store, without the features."""
    parts = [io.BytesIO(s3.get(key)) for key in s3.keys("features/") if key.endswith(".parquet")]
    return [pq.read_table(part, columns=["frames"]) for part in parts]


def summary(s3) -> dict:
    return json.loads(s3.get(f"{RUN}/summary.json"))


def test_score_from_a_bucket_into_a_bucket(s3, model, local, tmp_path):
    """First a run that is killed, then all, then all again when the videos are gone: no frame is ever decoded twice."""
    environment = s3_environment(s3.endpoint, SARM_RAY_CACHE=str(tmp_path / "node"))
    command = [
        "score", f"s3://{BUCKET}/data/toy/", "--model", model, *OPTIONS, "--stage-probabilities",
        "--cache", f"s3://{BUCKET}/features/", "--output", OUTPUT,
    ]  # fmt: skip

    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(
        [sys.executable, "-m", "sarm_ray", *command], env=environment, start_new_session=True, **silent
    )
    wait_until(lambda: bool(stored_parts(s3)), first)
    kill(first)
    cut_off = (
        s3.num_uploads()
    )  # a bucket keeps the beginning of an upload that was cut off until its own rule removes it
    kept = sum(len(frames_of(bitmap, 0)) for part in stored_parts(s3) for bitmap in part["frames"].to_pylist())
    assert 0 < kept <= 347
    assert "out/sarm_progress.parquet" not in set(s3.keys())

    second = sarm_ray(*command, env=environment)
    assert second.returncode == 0, second.stderr
    assert f"{OUTPUT}\n  347 frames: {347 - kept} decoded, {kept} from the store, " in second.stdout
    s3.download("out/", tmp_path / "out")
    assert_same_values(tmp_path / "out/sarm_progress.parquet", local)
    ours, theirs = pq.read_schema(tmp_path / "out/sarm_progress.parquet"), pq.read_schema(local)
    assert ours.equals(theirs)
    assert ours.metadata.keys() == theirs.metadata.keys()
    probabilities = (
        f"{base}.run/stage_probabilities.parquet" for base in (tmp_path / "out/sarm_progress.parquet", local)
    )
    assert pq.read_table(next(probabilities)).equals(pq.read_table(next(probabilities)))
    wanted = ["config.yaml", "stage_probabilities.parquet", "summary.json"]
    assert s3.keys("out/") == ["out/sarm_progress.parquet", *(f"{RUN}/{name}" for name in wanted)]
    assert all(key.endswith((".parquet", "/key.json")) for key in s3.keys("features/"))
    assert s3.num_uploads() == cut_off
    copies = files_below(
        tmp_path / "node/remote"
    )  # three videos and three data files came once, and nothing is half there
    assert len(copies) == 7
    assert not [name for name in copies if name.endswith(".part")]
    config = load_config(ScoreConfig, str(tmp_path / f"{RUN}/config.yaml"), {})
    assert (config.dataset, config.output) == (f"s3://{BUCKET}/data/toy", OUTPUT)

    videos = {key: s3.get(key) for key in s3.keys("data/toy/videos")}
    s3.delete(*videos)
    try:
        third = sarm_ray(*command, "--overwrite", env=environment)
    finally:
        for key, content in videos.items():
            s3.put(key, content)
    assert third.returncode == 0, third.stderr
    assert (summary(s3)["num_decoded"], summary(s3)["num_cached"], summary(s3)["num_scored"]) == (0, 347, 347)
    assert_same_values(s3.download("out/", tmp_path / "again") / "sarm_progress.parquet", local)


def test_an_object_that_is_missing_is_listed_and_nothing_else_suffers(s3, model, local, tmp_path):
    """A video that is not there and one that is damaged; read in place this time, without a node's cache."""
    videos = s3.keys("data/toy/videos")
    kept = {key: s3.get(key) for key in videos}
    s3.delete(videos[2])
    s3.put(videos[0], kept[videos[0]][:1000])
    environment = s3_environment(s3.endpoint, SARM_RAY_CACHE=str(tmp_path / "node"), SARM_RAY_REMOTE_CACHE_GB="0")
    try:
        result = sarm_ray(
            "score", f"s3://{BUCKET}/data/toy", "--model", model, *OPTIONS,
            "--cache", tmp_path / "features", "--output", f"s3://{BUCKET}/bad/o.parquet", env=environment,
        )  # fmt: skip
    finally:
        for key, content in kept.items():
            s3.put(key, content)
    assert result.returncode == 1, result.stderr
    s3.download("bad/", tmp_path / "bad")
    failed = pq.read_table(tmp_path / "bad/o.parquet.run/failed.parquet").to_pylist()
    assert [(row["episode_index"], row["camera"], row["start"], row["stop"], row["error"]) for row in failed] == [
        (0, CAMERA, 0, 40, "VideoError"),
        (2, CAMERA, 0, 7, "VideoError"),
    ]
    assert failed[0]["message"].startswith(f"s3://{BUCKET}/{videos[0]}: not a readable video (")
    assert failed[1]["message"] == f"s3://{BUCKET}/{videos[2]}: no such file"
    wanted = [f"bad/o.parquet.run/{name}" for name in ("config.yaml", "failed.parquet", "summary.json")]
    assert s3.keys("bad/") == ["bad/o.parquet", *wanted]
    assert not (tmp_path / "node/remote").exists()
    ours, theirs = read_progress(tmp_path / "bad/o.parquet"), read_progress(local)
    for head in ("progress_sparse", "progress_dense"):
        np.testing.assert_array_equal(ours[head][40:340], theirs[head][40:340])
        assert np.isnan(ours[head][:40]).all()
        assert np.isnan(ours[head][340:]).all()


def test_bad_input_stops_with_one_line_before_any_work(s3, model, tmp_path):
    """On the Ray of this process, because nothing gets as far as a worker."""
    url = f"s3://{BUCKET}/data/toy"
    s3.put("there.parquet", b"x")

    def said(*arguments: str, **settings: str) -> str:
        with s3_settings(s3.endpoint, SARM_RAY_CACHE=str(tmp_path), **settings):
            result = CliRunner().invoke(main, ["score", "--model", model, "--quiet", *arguments])
        assert result.exit_code == 2, result.output
        assert result.output.startswith("error: ")
        return result.output.removeprefix("error: ").removesuffix("\n")

    def output(name: str) -> list[str]:
        return ["--output", f"s3://{name}"]

    before = s3.keys()
    assert (
        said("s3://nosuch/toy", *output("bucket/o.parquet"))
        == "s3://nosuch/toy/meta/info.json: there is no bucket 'nosuch'"
    )
    assert said("s3://bucket/nosuch", *output("bucket/o.parquet")).startswith(
        "s3://bucket/nosuch: not a LeRobot dataset"
    )
    assert said(url, *output("nosuch/o.parquet")) == "s3://nosuch/o.parquet.run/lease.json: there is no bucket 'nosuch'"
    assert said(url, *output("bucket/there.parquet")).startswith(
        "s3://bucket/there.parquet exists; replace it with --over"
    )
    assert said(url, *output("bucket/data")).startswith("s3://bucket/data is a folder; give --output a file")
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": str(tmp_path)}
    expected = f"{url}/meta/info.json: Unable to locate credentials; credentials come from AWS_ACCESS_KEY_ID and "
    assert said(url, *output("bucket/o.parquet"), **nobody).startswith(expected)
    gone = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    assert "Could not connect to the endpoint URL" in said(url, *output("bucket/o.parquet"), **gone)
    assert s3.keys() == before


@pytest.mark.parametrize("error", [StoreError, StoreInterruptedError, DatasetError])
def test_what_a_worker_says_of_a_store_arrives_as_it_was_said(error):
    """Ray Data wraps it, and loses the exception itself on the way between processes."""

    def fail(_):
        raise error("s3://bucket/x: no permission")

    with pytest.raises(error, match=r"^s3://bucket/x: no permission$") as caught:
        list(stream_rows(ray.data.range(1).map_batches(fail, **ARROW)))
    assert type(caught.value) is error
