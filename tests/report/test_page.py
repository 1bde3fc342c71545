"""`sarm-ray report`: what it writes where, what it says, and what it refuses. The page itself is tested in a browser."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from sarm_ray.cli import main
from sarm_ray.config.report import ReportConfig
from sarm_ray.data.progress_io import progress_schema, write_progress
from sarm_ray.errors import ConfigError, DatasetError, OutputExistsError
from sarm_ray.report import page_media
from sarm_ray.report.page import describe_page, report
from tests.datasets import CAMERA, write_dataset

LENGTHS = (40, 30, 50)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("page") / "toy"
    return write_dataset(root, "v2.1", LENGTHS, fps=20, annotated=True, tasks=("push <b>it</b>", "place it"))


@pytest.fixture
def root(tmp_path, template):
    """A dataset of its own for each test, scored."""
    shutil.copytree(template, tmp_path / "toy")
    write_scores(tmp_path / "toy" / "sarm_progress.parquet")
    return tmp_path / "toy"


def write_scores(path, heads=("sparse",), ends=(0.95, 0.4, 0.9)) -> None:
    curve = np.concatenate([np.linspace(0, end, length) for end, length in zip(ends, LENGTHS, strict=True)])
    columns = {
        "index": np.arange(sum(LENGTHS)),
        "episode_index": np.repeat(np.arange(3), LENGTHS),
        "frame_index": np.concatenate([np.arange(length) for length in LENGTHS]),
        **{f"progress_{head}": curve for head in heads},
    }
    schema = progress_schema(tuple(heads), {"reward_model_path": "model", "live": "true"})
    write_progress(str(path), lambda: iter([pa.table(columns)]), schema)


def make(root, **options):
    return report(ReportConfig(dataset=str(root), **options), quiet=True)


def data_of(output: str) -> dict:
    text = Path(output).read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_lies_beside_the_progress_file(root, tmp_path):
    made = make(root)
    assert made.output == str(root / "report.html")
    assert (made.num_episodes, made.num_frames, made.num_videos, made.files) == (3, 120, 3, ())
    assert (made.num_flagged, made.flagged) == (1, {"unfinished": 1})
    assert made.num_bytes == (root / "report.html").stat().st_size
    assert describe_page(made).split("\n") == [
        "3 episodes, 120 frames, mean final progress 0.75",
        "1 episode is flagged: 1 never finishes",
        f"{root}/report.html ({made.num_bytes / 1000:.1f} kB, 3 videos)",
    ]
    data = data_of(made.output)
    assert data["dataset"] == {
        "name": "toy",
        "version": "v2.1",
        "fps": 20.0,
        "camera": CAMERA,
        "num_episodes": 3,
        "num_frames": 120,
    }
    assert data["progress"] == {"head": "sparse", "model": "model", "live": True}
    assert data["episodes"]["final"] == [0.95, 0.4, 0.9]
    assert data["episodes"]["tasks"] == ["push <b>it</b>", "place it"]
    assert data["curves"]["stages"] == ["approach", "push", "retract"]
    assert data["evaluation"] is None


def test_an_existing_page_is_replaced_only_when_asked(root):
    make(root)
    told = rf"{root}/report.html exists; replace it with --overwrite, or choose another --output"
    with pytest.raises(OutputExistsError, match=told):
        make(root)
    assert make(root, overwrite=True).output == str(root / "report.html")


def test_a_page_that_is_replaced_leaves_no_files_behind(root, monkeypatch):
    monkeypatch.setattr(page_media, "MAX_EMBEDDED_EPISODES", 0)
    made = make(root)
    assert len(made.files) == 4
    folder = root / "report.files"
    assert sorted(path.name for path in folder.iterdir()) == sorted(made.files)
    assert describe_page(made).split("\n")[-1] == (
        f"{root}/report.html ({made.num_bytes / 1000:.1f} kB, 3 videos; the page needs report.files beside it)"
    )
    fewer = make(root, overwrite=True, max_videos=1)
    assert (fewer.num_videos, len(fewer.files)) == (1, 2)
    assert sorted(path.name for path in folder.iterdir()) == sorted(fewer.files)
    monkeypatch.undo()
    make(root, overwrite=True)
    assert not folder.exists()


def test_nothing_is_written_into_a_folder_that_is_read_only(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    root.chmod(0o555)
    assert make(root).output == str(tmp_path / "cwd" / "toy" / "report.html")
    root.chmod(0o755)
    assert not (root / "report.html").exists()


def test_it_can_be_written_to_a_store(root, monkeypatch):
    import fsspec

    monkeypatch.setattr(page_media, "MAX_EMBEDDED_EPISODES", 0)
    made = make(root, output="memory://pages/report.html")
    store = fsspec.filesystem("memory")
    assert made.output == "memory://pages/report.html"
    assert store.cat_file("/pages/report.html").startswith(b"<!doctype html>")
    assert sorted(path.rsplit("/", 1)[-1] for path in store.ls("/pages/report.files", detail=False)) == sorted(
        made.files
    )
    make(root, output="memory://pages/report.html", max_videos=0, overwrite=True)
    assert len(store.ls("/pages/report.files")) == 1


def test_outcomes_come_from_labels_or_from_the_table(root, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("episode_index,outcome\n0,success\n1,failure\n")
    assert data_of(make(root, labels=str(labels)).output)["episodes"]["outcome"] == [1, 0, None]
    rows = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
    for row, outcome in zip(rows, ("failure", "partial", "0.9"), strict=True):
        row["outcome"] = outcome
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert data_of(make(root, overwrite=True).output)["episodes"]["outcome"] == [0, 0.5, 0.9]
    rows[1]["outcome"] = "so so"
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = make(root, overwrite=True)
    assert data_of(made.output)["episodes"]["outcome"] == [None, None, None]
    assert made.notices[0].startswith("outcomes are not shown (")


def test_an_evaluation_beside_it_is_shown(root, tmp_path):
    figures = [
        {
            "head": "sparse",
            "name": "auroc",
            "label": "AUROC",
            "value": 0.9,
            "low": 0.8,
            "high": None,
            "num_episodes": 3,
        },
        {"head": "dense", "name": "auroc", "label": "AUROC", "value": 0.1, "low": 0, "high": 1},
        {"head": "sparse", "name": "voc", "label": "VOC", "value": None, "low": None, "high": None},
    ]
    found = {"figures": figures, "diagnosis": {"sparse": ["nothing stands out"], "dense": ["all wrong"]}}
    (root / "evaluation.json").write_text(json.dumps(found))
    expected = {
        "figures": [{"label": "AUROC", "value": 0.9, "low": 0.8, "high": None}],
        "diagnosis": ["nothing stands out"],
    }
    assert data_of(make(root).output)["evaluation"] == expected
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps({"figures": [{"name": "x", "value": 1}], "diagnosis": ["fine"]}))
    assert data_of(make(root, evaluation=str(plain), overwrite=True).output)["evaluation"] == {
        "figures": [{"label": "x", "value": 1, "low": None, "high": None}],
        "diagnosis": ["fine"],
    }
    plain.write_text('{"figures": 3}')
    with pytest.raises(DatasetError, match=rf"{plain}: 'figures' must be a list of objects with label, value, low and"):
        make(root, evaluation=str(plain), overwrite=True)
    with pytest.raises(
        DatasetError, match=r"nowhere.json: no such file; make it with sarm-ray evaluate, or leave --eval"
    ):
        make(root, evaluation="nowhere.json", overwrite=True)


def test_heads(root):
    write_scores(root / "both.parquet", heads=("sparse", "dense"))
    write_scores(root / "dense.parquet", heads=("dense",))
    heads = {"both.parquet": "sparse", "dense.parquet": "dense"}
    for name, head in heads.items():
        made = make(root, progress=str(root / name), overwrite=True)
        assert data_of(made.output)["progress"]["head"] == head
    made = make(root, progress=str(root / "both.parquet"), head_mode="dense", overwrite=True)
    assert data_of(made.output)["curves"]["stages"][0] == "reach block"
    with pytest.raises(DatasetError, match=r"dense.parquet: no column 'progress_sparse'; it has the dense head alone$"):
        make(root, progress=str(root / "dense.parquet"), head_mode="sparse", overwrite=True)


def test_a_dataset_without_pictures_has_a_page_of_curves(root):
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"][CAMERA]
    (root / "meta/info.json").write_text(json.dumps(info))
    made = make(root)
    assert made.notices == ("toy has no camera; there are curves alone",)
    assert data_of(made.output)["episodes"]["video"] == [None, None, None]


def test_bad_input_is_refused_before_anything_is_written(root, tmp_path):
    with pytest.raises(
        ConfigError, match=r"toy has no camera 'observation.images.bass'; it has observation.images.base; "
    ):
        make(root, image_key="observation.images.bass")
    with pytest.raises(ConfigError, match=rf"{root} is a folder; give --output a file, such as {root}/report.html"):
        make(root, output=str(root))
    with pytest.raises(ConfigError, match="chunk_size must be at least 1, not 0"):
        ReportConfig(dataset="x", chunk_size=0)
    with pytest.raises(ConfigError, match="max_videos must not be negative, not -1"):
        ReportConfig(dataset="x", max_videos=-1)
    with pytest.raises(DatasetError, match=r"nowhere.parquet: no such file; `sarm-ray score` makes one"):
        make(root, progress=str(tmp_path / "nowhere.parquet"))
    (root / "sarm_progress.parquet").unlink()
    with pytest.raises(DatasetError, match=r"make it with `sarm-ray score .*toy --model "):
        make(root)
    assert not (root / "report.html").exists()


def test_the_command(root):
    result = CliRunner().invoke(main, ["report", str(root), "--max-videos", "0", "--quiet"])
    assert result.exit_code == 0, result.output
    assert result.output.split("\n")[-2].startswith(f"{root}/report.html (")
    assert result.output.endswith(" kB, 0 videos)\n")
    result = CliRunner().invoke(main, ["report", "--repo-id", str(root)])
    assert (result.exit_code, result.output) == (
        2,
        f"error: {root}/report.html exists; replace it with --overwrite, or choose another --output\n",
    )
    result = CliRunner().invoke(main, ["report"])
    assert (result.exit_code, result.output) == (
        2,
        "error: dataset is missing; give it as an argument or in --config\n",
    )
    loud = CliRunner().invoke(main, ["report", str(root), "--overwrite"])
    assert "camera  observation.images.base; 3 videos and 3 strips of pictures" in loud.output
    assert "film            120/120 frames 100%" in loud.output
