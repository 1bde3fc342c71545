"""Models in a bucket are copied to this machine once."""

from pathlib import Path

import pytest

from sarm_ray.data.model_store import copy_model, publish_copy
from sarm_ray.errors import StoreError
from tests.s3 import BUCKET, s3_settings, serve_s3

URL = f"s3://{BUCKET}/sarm"
PATTERNS = ["config.json", "*.safetensors"]


@pytest.fixture(scope="module")
def s3():
    with serve_s3() as server:
        yield server


@pytest.fixture
def cache(s3, tmp_path):
    with s3_settings(s3.endpoint, SARM_RAY_CACHE=str(tmp_path / "cache")):
        yield tmp_path / "cache"


def names(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_the_files_that_fit_come_once_and_anew_when_they_change(s3, cache):
    for name in ("config.json", "model.safetensors", "optimizer.pt", "step_1/model.safetensors"):
        s3.put(f"sarm/{name}", name.encode())
    copy = copy_model(URL, PATTERNS)
    assert names(copy) == ["config.json", "model.safetensors"]
    assert (Path(copy) / "model.safetensors").read_bytes() == b"model.safetensors"
    assert copy_model(URL + "/", PATTERNS) == copy
    s3.put("sarm/model.safetensors", b"MODEL.safetensors")
    other = copy_model(URL, PATTERNS)
    assert (Path(other) / "model.safetensors").read_bytes() == b"MODEL.safetensors"
    assert names(cache / "models") == sorted([Path(copy).name, Path(other).name])


def test_nothing_there(cache):
    with pytest.raises(FileNotFoundError):
        copy_model(f"s3://{BUCKET}/empty", PATTERNS)


def test_a_copy_is_whole_or_absent(tmp_path):
    def cut_off():
        yield b"half"
        raise StoreError("the store went away")

    with pytest.raises(StoreError, match="the store went away"):
        publish_copy(tmp_path / "models/a", {"x": iter([b"1"]), "y": cut_off()})
    assert names(tmp_path / "models") == []
    publish_copy(tmp_path / "models/a", {"x": iter([b"1", b"2"])})
    publish_copy(tmp_path / "models/a", {"x": iter([b"later"])})  # another process was first
    assert (tmp_path / "models/a/x").read_bytes() == b"12"
    assert names(tmp_path / "models") == ["a"]
