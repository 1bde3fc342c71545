"""Dataset, checkpoint and encoder by their Hub ids: the files that are needed come, the others do not."""

import pyarrow.parquet as pq

from tests.datasets import CAMERA, write_dataset
from tests.hub import hub_environment, serve_hub
from tests.pipelines.runs import PARITY, needs_parity, read_summary, sarm_ray


@needs_parity
def test_all_three_from_the_hub(tmp_path):
    toy = write_dataset(tmp_path / "hub/toy", "v2.1", lengths=[5, 4, 6], cameras=[CAMERA, "observation.images.wrist"])
    repositories = {
        "datasets/someone/toy": toy,
        "someone/sarm": PARITY / "sarm_dual_tiny",
        "someone/clip": PARITY / "clip_tiny",
    }
    command = ["score", "--model", "someone/sarm", "--encoder", "someone/clip", "--episodes", "1:", "someone/toy"]
    with serve_hub(repositories, tokens={"hf_writer": True}) as hub:
        cache = str(tmp_path / "cache")
        environment = hub_environment(hub.url, tmp_path / "hf", XDG_CACHE_HOME=cache)
        planned = sarm_ray(*command, "--dry-run", env=environment, cwd=tmp_path)
        assert planned.returncode == 0, planned.stderr
        assert not [name for name in hub.fetched if name.endswith(".mp4")]
        refused = sarm_ray(*command, "--push-to-hub", env=environment, cwd=tmp_path)
        result = sarm_ray(*command, "--push-to-hub", env={**environment, "HF_TOKEN": "hf_writer"}, cwd=tmp_path)
    assert refused.returncode == 2
    assert "someone/toy: pushing needs a Hugging Face token; run `hf auth login` or set HF_TOKEN" in refused.stderr
    assert result.returncode == 0, result.stderr
    assert "hf_writer" not in result.stdout + result.stderr
    output = tmp_path / "toy/sarm_progress.parquet"  # never inside the Hub's cache
    assert pq.read_table(output)["index"].to_pylist() == list(range(5, 15))
    assert pq.read_schema(output).metadata[b"reward_model_path"] == b"someone/sarm"
    assert read_summary(output)["num_decoded"] == 10
    ((repository, branch, message, files),) = hub.commits
    assert (repository, branch, message) == ("datasets/someone/toy", "main", "SARM progress by someone/sarm")
    assert files == {"sarm_progress.parquet": output.read_bytes()}
    assert len(list((tmp_path / "cache/sarm_ray/features").iterdir())) == 1
    data = [name for name in hub.fetched if not name.startswith("datasets/someone/toy:meta/")]
    assert sorted(set(data)) == sorted(data)  # nothing twice
    assert sorted(name.split(":")[1] for name in data if name.startswith("datasets/")) == sorted(
        f"{kind}/chunk-000/{middle}episode_00000{episode}.{ending}"
        for episode in (1, 2)
        for kind, middle, ending in (("data", "", "parquet"), ("videos", f"{CAMERA}/", "mp4"))
    )
    assert sorted(name for name in data if name.startswith("someone/sarm")) == [
        "someone/sarm:config.json",
        "someone/sarm:model.safetensors",
    ]
    assert "someone/clip:model.safetensors" in data
    assert "someone/clip:README.md" not in data
