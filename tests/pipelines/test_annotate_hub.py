"""A dataset by its Hub id: the files that are needed come, the metadata goes to a folder of ours, and back when asked."""

from dataclasses import replace

from sarm_ray.data.annotation_io import read_annotations
from sarm_ray.data.lerobot import open_dataset
from tests.datasets import CAMERA, write_dataset
from tests.hub import hub_environment, serve_hub
from tests.pipelines.annotation_oracle import MODEL, oracle_of
from tests.pipelines.runs import sarm_ray
from tests.pipelines.test_annotate import FPS, LABELS, SPARSE, truth_of

LENGTHS = (40, 50, 60)


def test_annotated_and_pushed(tmp_path):
    wrist = "observation.images.wrist"
    toy = write_dataset(
        tmp_path / "hub/toy", "v3.0", LENGTHS, fps=FPS, cameras=[CAMERA, wrist], episodes_per_video=1,
        episodes_per_metadata_file=2,
    )  # fmt: skip
    with (
        serve_hub({"datasets/someone/toy": toy}, tokens={"hf_writer": True}) as hub,
        oracle_of(truth_of(LENGTHS), LABELS) as oracle,
    ):
        command = [
            "annotate", "someone/toy", "--sparse-subtasks", ",".join(SPARSE), "--video-key", CAMERA, "--episodes", "0,2",
            "--engine", "openai", "--endpoint", oracle.url, "--model", MODEL, "--push-to-hub",
        ]  # fmt: skip
        environment = hub_environment(hub.url, tmp_path / "hf")
        refused = sarm_ray(*command, env=environment, cwd=tmp_path)
        assert not oracle.asked
        environment["HF_TOKEN"] = "hf_writer"
        first = sarm_ray(*command, env=environment, cwd=tmp_path)
        again = sarm_ray(*command, env=environment, cwd=tmp_path)
        assert sorted(each.episode for each in oracle.asked) == [0, 2]
        dataset = replace(open_dataset(str(toy)), root=str(tmp_path / "someone_toy"))
    assert refused.returncode == 2
    assert "someone/toy: pushing needs a Hugging Face token; run `hf auth login` or set HF_TOKEN" in refused.stderr
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    own = read_annotations(dataset)["sparse"]
    assert own.annotated.tolist() == [True, False, True]
    written = tmp_path / "someone_toy/meta"
    names = [
        "meta/episodes/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-001.parquet",
        "meta/temporal_proportions_sparse.json",
    ]  # fmt: skip
    for repository, branch, message, files in hub.commits:  # the second one pushes all of it too
        assert (repository, branch, message) == ("datasets/someone/toy", "main", "Subtask annotations by sarm_ray")
        assert files == {name: (written.parent / name).read_bytes() for name in names}
    assert len(hub.commits) == 2
    films = {name.split(":")[1] for name in hub.fetched if name.endswith(".mp4")}
    assert films == {f"videos/{CAMERA}/chunk-000/file-00{episode}.mp4" for episode in (0, 2)}
    page = (tmp_path / "someone_toy/annotation.run/annotations.html").read_text()
    assert "sarm-ray annotate someone/toy --from" in page
