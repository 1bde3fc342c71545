"""Files of a model on nodes that lack them."""

from dataclasses import replace
from pathlib import Path

import pytest

from sarm_ray.errors import CheckpointError
from sarm_ray.pipelines.model_files import ENCODER_FILES, ModelFiles, carry_files, folder_here
from sarm_ray.pipelines.nodes import Cluster
from sarm_ray.pipelines.runtime import make_aside
from tests.pipelines.runs import files_below

JOINED = Cluster(2, 0, "cpu", True, joined=True)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "clip"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json"):
        (folder / name).write_bytes(name.encode() * 1000)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SARM_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def elsewhere(files: ModelFiles) -> ModelFiles:
    """As a worker on another node sees it."""
    return replace(files, node="another", folder="/nowhere")


def test_a_machine_by_itself_uses_the_folder(folder, cache):
    files = carry_files(str(folder), ENCODER_FILES, Cluster(2, 0, "cpu", True))
    assert (folder_here(files), files.content) == (str(folder), None)
    assert not cache.exists()


def test_the_drivers_node_uses_the_folder(folder, cache):
    assert folder_here(carry_files(str(folder), ENCODER_FILES, JOINED)) == str(folder)
    assert not cache.exists()


def test_another_node_has_a_copy(folder, cache):
    """Of what its workers load: of two forms of the weights the first."""
    files = carry_files(str(folder), ENCODER_FILES, JOINED)
    copy = Path(folder_here(elsewhere(files)))
    assert copy.parent == cache / "models"
    assert files_below(copy) == ["config.json", "model.safetensors"]
    assert all((copy / name).read_bytes() == (folder / name).read_bytes() for name in files_below(copy))
    made = copy.stat().st_mtime_ns
    assert folder_here(elsewhere(files)) == str(copy)
    assert copy.stat().st_mtime_ns == made
    assert [path.name for path in (cache / "models").iterdir()] == [copy.name]


def test_other_weights_of_the_same_size_are_another_copy(folder, cache):
    before = folder_here(elsewhere(carry_files(str(folder), ENCODER_FILES, JOINED)))
    (folder / "model.safetensors").write_bytes(b"m0del.safetensors" * 1000)
    after = folder_here(elsewhere(carry_files(str(folder), ENCODER_FILES, JOINED)))
    assert before != after
    assert (Path(after) / "model.safetensors").read_bytes() == b"m0del.safetensors" * 1000
    assert (Path(before) / "model.safetensors").read_bytes() == b"model.safetensors" * 1000


def test_weights_that_are_being_written_are_refused(folder):
    from sarm_ray.pipelines.model_files import _read_files

    files = carry_files(str(folder), ENCODER_FILES, JOINED)
    (folder / "model.safetensors").write_bytes(b"new")
    with pytest.raises(
        CheckpointError, match=r"/clip/model\.safetensors is being written; start again when it is complete"
    ):
        make_aside(_read_files, str(folder), files.digests)
