"""`sarm-ray weights`: what is said, what is written, and which file is meant. The numbers are core's and LeRobot's."""

import json
import math
import re
import shlex
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import sarm_ray.report.weights as module
from sarm_ray.cli import main
from sarm_ray.config.loading import load_config
from sarm_ray.config.weights import WeightsConfig
from sarm_ray.core.rabc import DeltaHistogram
from sarm_ray.data.progress_io import read_progress_blocks
from sarm_ray.errors import ConfigError, DatasetError, OutputExistsError
from sarm_ray.report.advice import decimals, draw_histogram, lerobot_command
from sarm_ray.report.weights import describe_weights, find_progress, weights

pytestmark = pytest.mark.usefixtures("no_network")
NAN = float("nan")
RISING, FALLING = [n / 8 for n in range(9)], [0.5, 0.25, 0.0]
EPISODES = {0: RISING, 3: FALLING, 4: [NAN]}
# of EPISODES within 2 frames: seven of 1/4, 1/8, 0; -1/2, -1/4, 0; none
DELTAS = [1 / 4] * 7 + [1 / 8, 0, -1 / 2, -1 / 4, 0, NAN]
MEAN = (7 / 4 + 1 / 8 - 3 / 4) / 12
STD = math.sqrt((7 / 16 + 1 / 64 + 5 / 16) / 12 - MEAN**2)
SOFT = {delta: (delta - (MEAN - 2 * STD)) / (4 * STD + 1e-6) for delta in (0, 1 / 8, 1 / 4)}
SOFT_TOTAL = 1 + 2 * SOFT[0] + SOFT[1 / 8] + 7 * SOFT[1 / 4]  # with kappa above all deltas; 1 is the NaN's


def write(path: Path, episodes: dict[int, list[float]], first_index: int = 0) -> str:
    """A progress file of episodes, in small row groups."""
    lengths = [len(episode) for episode in episodes.values()]
    columns = {
        "index": first_index + np.arange(sum(lengths)),
        "episode_index": np.repeat(list(episodes), lengths),
        "frame_index": np.concatenate([np.arange(length) for length in lengths]),
        "progress_sparse": np.concatenate(list(episodes.values())).astype(np.float32),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return str(path)


@pytest.fixture
def path(tmp_path) -> str:
    return write(tmp_path / "p.parquet", EPISODES)


def outcomes(folder: Path, text: str) -> str:
    (folder / "labels.csv").write_text(f"episode_index,outcome\n{text}")
    return str(folder / "labels.csv")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["weights", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_what_is_said(path):
    code, out, _ = run(path, "--chunk-size", "2")
    assert code == 0
    assert (f"{(9 + 2 * SOFT[0]) / 13:.2f}", f"{MEAN:.4f}", f"{STD:.4f}") == ("0.75", "0.0938", "0.2345")
    assert f"{SOFT_TOTAL / 13:.2f}" == "0.54"
    assert (
        out
        == f"""\
{path}: 13 frames of 3 episodes
RA-BC on progress_sparse at kappa 0.01: mean weight 0.75, 15% of frames weigh 0, 62% weigh 1 (assuming that your \
policy's chunk_size is 2)
healthy (0.3 to 0.8); kappa 0.25, the 75th percentile of the deltas, would give 0.54
1 frames (8%) have no progress now or at the horizon (NaN); LeRobot gives them weight 1, and so do we

progress made within 2 frames: mean 0.0938, std 0.2345
  -0.6 to -0.5    8.3%  ######
  -0.5 to -0.4    0.0%
  -0.4 to -0.3    0.0%
  -0.3 to -0.2    8.3%  ######
  -0.2 to -0.1    0.0%
   -0.1 to 0.0    0.0%
    0.0 to 0.1   16.7%  ########### <- kappa 0.01
    0.1 to 0.2    8.3%  ######
    0.2 to 0.3   58.3%  ########################################
Frames below 0 weigh 0, those above kappa 1. Between them LeRobot's range of mean
-+ 2 std decides: the weight rises from 0 at -0.3753 to 1 at 0.5628.

kappa       mean weight
0.01        0.75         LeRobot's default
0.09375     0.75         LeRobot's rule: mean of the deltas
0.125       0.7          for a mean weight of 0.7
0.25        0.54         75th percentile of the deltas (--kappa auto)
0.328299    0.54         LeRobot's rule: mean + std of the deltas
0.562847    0.54         LeRobot's rule: mean + 2 std of the deltas
none        0.3, 0.5     0.54 to 0.75 can be reached, though not all between

train with them:
  lerobot-train --sample_weighting.type=rabc --sample_weighting.progress_path={path} \
--sample_weighting.kappa=0.01 --sample_weighting.head_mode=sparse
"""
    )


def test_what_is_said_of_labels(path, tmp_path):
    labels = outcomes(tmp_path, "0,0.5\n3,failure\n7,success\n8,success\n")
    output = tmp_path / "w.parquet"
    lines = run(path, "--chunk-size", "2", "--labels", labels, "--output", str(output))[1].splitlines()
    total = (8 + SOFT[0]) / 2 + 1  # the rising episode by half, the falling one not, the NaN as it is
    assert lines[-9:-1] == [
        f"{labels}: weights are multiplied by the grade of their episode, success 1, failure 0",
        "  episodes: 0 success, 1 failure, 1 between, 1 without a label, whose weights stay as they are",
        "  labels of episodes that the progress file does not have: 2",
        f"  with labels: mean weight {total / 13:.4f}, 23% of frames weigh 0, 0% weigh 1; healthy (0.3 to 0.8)",
        "",
        f"{output}: index, episode_index, frame_index, delta, weight",
        "lerobot-train takes no labels: leave failures out with --dataset.episodes, or train with",
        "sarm_ray.sample_weighting. Without labels:",
    ]
    written = pq.read_table(output)
    np.testing.assert_allclose(written["weight"].to_numpy(), [0.5] * 8 + [SOFT[0] / 2] + [0] * 3 + [1], rtol=1e-6)
    assert written.schema.metadata[b"labels"] == labels.encode()
    graded = json.loads(run(path, "--chunk-size", "2", "--labels", labels, "--json")[1])["graded"]
    assert graded["mean_weight"] == pytest.approx(total / 13)
    assert (graded["share_zero"], graded["share_full"]) == (3 / 13, 0)
    code, _, err = run(path, "--labels", outcomes(tmp_path, "1,success\n"))
    assert (code, err) == (2, f"error: {labels}: none of the episodes of {path} has a label\n")


def test_nothing_is_nan_and_nothing_rises(tmp_path):
    path = write(tmp_path / "p.parquet", {0: FALLING})
    lines = describe_weights(weights(WeightsConfig(dataset=path, chunk_size=1))).splitlines()
    assert lines[3] == "every frame has a delta, none is NaN"
    assert (
        lines[5]
        == "progress made within 1 frames: mean 0.0000 (LeRobot takes 0 for a mean that is negative), std 0.1179"
    )
    nothing = write(tmp_path / "nan.parquet", {0: [NAN] * 3})
    lines = describe_weights(weights(WeightsConfig(dataset=nothing))).splitlines()
    assert lines[6] == "Frames below 0 weigh 0, those above kappa 1. Between them LeRobot's range of mean"


def test_json_is_the_whole_report(path):
    code, out, _ = run(path, "--chunk-size", "2", "--kappa", "auto", "--json")
    report = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert code == 0
    assert (report["progress"], report["head_mode"], report["chunk_size"]) == (path, "sparse", 2)
    assert (report["num_episodes"], report["output"], report["graded"], report["others"]) == (3, None, None, [])
    summary = report["summary"]
    assert (summary["kappa"], summary["auto_kappa"], summary["num_nan"]) == (0.25, 0.25, 1)
    assert summary["delta_mean"] == pytest.approx(MEAN)
    assert summary["delta_std"] == pytest.approx(STD)
    assert summary["rules"]["mean + std"] == [round(MEAN + STD, 6), pytest.approx(SOFT_TOTAL / 13, abs=1e-6)]
    assert summary["kappa_for"] == {"0.3": None, "0.5": None, "0.7": 0.125}
    assert sum(report["histogram"]["counts"]) == 12
    assert report["is_healthy"] is True
    assert shlex.split(report["command"])[3] == "--sample_weighting.kappa=0.25"


def test_what_is_written(path, tmp_path, monkeypatch):
    output = tmp_path / "out" / "w.parquet"
    monkeypatch.setattr(module, "read_progress_blocks", lambda location, head: read_progress_blocks(location, head, 4))
    report = weights(WeightsConfig(dataset=path, chunk_size=2, kappa=0.2000004, output=str(output)))
    assert (report.output, report.summary.kappa) == (str(output), 0.2)  # six decimals count
    table = pq.read_table(output)
    assert table.schema.remove_metadata() == pa.schema(
        [
            ("index", pa.int64()),
            ("episode_index", pa.int64()),
            ("frame_index", pa.int64()),
            ("delta", pa.float32()),
            ("weight", pa.float32()),
        ]
    )
    assert table.schema.metadata == {
        b"chunk_size": b"2",
        b"kappa": b"0.2",
        b"head_mode": b"sparse",
        b"progress_path": path.encode(),
    }
    for name in ("index", "episode_index", "frame_index"):
        assert table[name].to_pylist() == pq.read_table(path)[name].to_pylist()
    np.testing.assert_array_equal(table["delta"].to_numpy(), np.float32(DELTAS))
    expected = [1] * 7 + [SOFT[1 / 8], SOFT[0], 0, 0, SOFT[0], 1]
    np.testing.assert_allclose(table["weight"].to_numpy(), expected, rtol=1e-6)
    assert table["weight"].to_numpy().mean() == pytest.approx(report.summary.mean_weight, abs=1e-6)
    resolved = load_config(WeightsConfig, f"{output}.run/config.yaml", {"overwrite": True})
    assert resolved == WeightsConfig(dataset=path, chunk_size=2, kappa=0.2, output=str(output), overwrite=True)
    before = output.read_bytes()
    weights(resolved)
    assert output.read_bytes() == before


def test_blocks_are_let_go(tmp_path, monkeypatch):
    path = write(tmp_path / "p.parquet", dict.fromkeys(range(50), RISING))
    blocks: list[weakref.ref] = []

    def counted(location, head):
        for block in read_progress_blocks(location, head, 9):
            blocks.append(weakref.ref(block))
            assert sum(each() is not None for each in blocks) <= 2
            yield block

    monkeypatch.setattr(module, "read_progress_blocks", counted)
    weights(WeightsConfig(dataset=path, output=str(tmp_path / "w.parquet")))
    assert len(blocks) == 100  # twice


def test_outputs_that_are_refused(path, tmp_path):
    output = tmp_path / "w.parquet"
    config = {"dataset": path, "chunk_size": 2}
    weights(WeightsConfig(**config, output=str(output)))
    with pytest.raises(OutputExistsError) as exists:
        weights(WeightsConfig(**config, output=str(output)))
    assert str(exists.value) == f"{output} exists; replace it with --overwrite, or choose another --output"
    weights(WeightsConfig(**config, output=str(output), overwrite=True))
    own = f"{path} is what the weights are made from; choose another --output"
    with pytest.raises(ConfigError, match=f"^{re.escape(own)}$"):
        weights(WeightsConfig(**config, output=path, overwrite=True))
    labels = outcomes(tmp_path, "0,success\n")
    with pytest.raises(ConfigError, match=re.escape(f"{labels} is what the weights are made from")):
        weights(WeightsConfig(**config, output=labels, labels=labels, overwrite=True))
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{tmp_path} is a folder; give --output a file, such as')}"):
        weights(WeightsConfig(**config, output=str(tmp_path), overwrite=True))


def test_progress_that_is_replaced_meanwhile_leaves_no_output(path, tmp_path, monkeypatch):
    times = []

    def replaced(location, head):
        yield from read_progress_blocks(location, head)
        times.append(location)
        if len(times) == 1:
            write(Path(location), EPISODES | {5: RISING})

    monkeypatch.setattr(module, "read_progress_blocks", replaced)
    output = tmp_path / "w.parquet"
    with pytest.raises(DatasetError) as error:
        weights(WeightsConfig(dataset=path, output=str(output)))
    assert str(error.value) == f"{path} was replaced while it was read; run the same command again"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["p.parquet", "w.parquet.run"]


def test_progress_that_cannot_be_used(path, tmp_path):
    assert run(path, "--head-mode", "dense")[2] == (
        f"error: {path}: no column 'progress_dense'; it has index, episode_index, frame_index, progress_sparse\n"
    )
    empty = write(tmp_path / "empty.parquet", {0: []})
    assert run(empty)[2] == f"error: {empty}: no rows\n"
    infinite = write(tmp_path / "inf.parquet", {0: RISING, 1: [0.5, math.inf]})
    assert run(infinite)[2] == f"error: {infinite}: progress_sparse is infinite at index 10\n"
    twice = tmp_path / "twice.parquet"  # two datasets in one file: each block is in order, but not all of them
    pq.write_table(pa.concat_tables([pq.read_table(path), pq.read_table(path)]), twice)
    with pytest.raises(DatasetError, match="its rows are not every frame of its episodes, sorted by index"):
        list(read_progress_blocks(str(twice), "sparse", 9))


def test_a_dataset_means_the_progress_file_in_its_root(tmp_path, monkeypatch):
    here, root = tmp_path / "here", tmp_path / "data" / "toy"
    here.mkdir()
    root.mkdir(parents=True)
    monkeypatch.chdir(here)
    with pytest.raises(DatasetError) as error:
        find_progress(str(root))
    assert str(error.value) == (
        f"{root}: no sarm_progress.parquet in {root} nor in {here}/toy; make it with `sarm-ray score {root} --model "
        "CHECKPOINT`"
    )
    own = write(here / "toy" / "sarm_progress.parquet", EPISODES)  # where score puts it if root cannot be written
    assert find_progress(str(root)) == find_progress(f"{root}/") == [own]
    in_root = write(root / "sarm_progress.parquet", EPISODES)
    assert find_progress(str(root)) == [in_root, own]
    assert run(str(root))[1].splitlines()[1] == f"note: {own} is there too; to use it, give its path"
    assert find_progress("toy") == find_progress("./toy") == [own]  # its own root
    assert find_progress(in_root) == [in_root]
    assert run("nowhere")[2] == "error: nowhere: no such file or folder\n"
    assert run("nowhere.parquet")[2] == (
        "error: nowhere.parquet: no such file; give a progress file, or the dataset that it belongs to\n"
    )


def test_a_hub_dataset_means_the_copy_of_score_where_the_hub_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "lerobot"))
    asked = []

    def download(*arguments):
        asked.append(arguments)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(module.hub, "download_from_hub", download)
    with pytest.raises(DatasetError, match=r"^me/toy: no sarm_progress\.parquet in .*/snapshot nor in .*/toy; make it"):
        find_progress("me/toy")
    own = write(tmp_path / "toy" / "sarm_progress.parquet", EPISODES)
    assert find_progress("me/toy") == [own]
    pushed = write(tmp_path / "snapshot" / "sarm_progress.parquet", EPISODES)
    assert find_progress("hf://datasets/me/toy@v1") == [pushed, own]
    assert asked[-1] == ("me/toy", ["sarm_progress.parquet"], "v1", "dataset")
    local = tmp_path / "lerobot" / "me" / "toy"
    (local / "meta").mkdir(parents=True)
    (local / "meta" / "info.json").write_text("{}")
    recorded = write(local / "sarm_progress.parquet", EPISODES)
    assert find_progress("me/toy") == [recorded, own]
    assert find_progress("me/toy", "v1") == [pushed, own]


def test_a_hub_that_is_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DatasetError, match=r"^me/toy: no such local folder, and the Hub has no such dataset within reach"
    ):
        find_progress("me/toy")
    own = write(tmp_path / "toy" / "sarm_progress.parquet", EPISODES)
    assert find_progress("me/toy") == [own]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: dataset is missing; give it as an argument or in --config"),
        (("p", "--chunk-size", "0"), "error: chunk_size must be at least 1 frame, not 0"),
        (("p", "--kappa", "-0.1"), "error: kappa must be auto or in 0..1, not -0.1"),
        (("p", "--kappa", "nan"), "error: kappa must be auto or in 0..1, not nan"),
        (("p", "--kappa", "best"), "Error: Invalid value for '--kappa': 'best' is neither a number nor auto"),
        (
            ("p", "--head-mode", "both"),
            "Error: Invalid value for '--head-mode': 'both' is not one of 'sparse', 'dense'.",
        ),
    ],
)
def test_bad_input_exits_with_2_in_one_line(arguments, message):
    code, out, err = run(*arguments)
    assert (code, out, err.splitlines()[-1]) == (2, "", message)


def test_a_config_file_and_flags_over_it(path, tmp_path):
    file = tmp_path / "w.yaml"
    file.write_text(f"dataset: {path}\nchunk-size: 2\nkappa: auto\n")
    assert json.loads(run("--config", str(file), "--json")[1])["summary"]["kappa"] == 0.25
    assert json.loads(run("--config", str(file), "--kappa", "0.5", "--json")[1])["summary"]["kappa"] == 0.5
    assert json.loads(run("--repo-id", path, "--json")[1])["chunk_size"] == 50
    file.write_text("dataset: p\nkapa: 0.1\n")
    assert run("--config", str(file))[2] == f"error: {file}: unknown key 'kapa'; did you mean 'kappa'?\n"
    file.write_text("dataset: p\nkappa: best\n")
    assert run("--config", str(file))[2] == "error: kappa must be a number or auto, not 'best'\n"


def test_lerobots_command():
    assert lerobot_command("/my data/p.parquet", 0.00002, "dense") == (
        "lerobot-train --sample_weighting.type=rabc '--sample_weighting.progress_path=/my data/p.parquet' "
        "--sample_weighting.kappa=0.00002 --sample_weighting.head_mode=dense"
    )
    assert [decimals(value) for value in (0, 1, 0.01, 0.1234567, 1e-6)] == ["0", "1", "0.01", "0.123457", "0.000001"]


def test_a_remote_file_is_not_what_lerobot_opens(monkeypatch):
    location = "memory://bucket/p.parquet"
    with module.storage.open_filesystem(location)[0].open("/bucket/p.parquet", "wb") as stream:
        pq.write_table(pa.table({"index": [0, 1], "episode_index": [0, 0], "progress_sparse": [0.0, 0.5]}), stream)
    report = weights(WeightsConfig(dataset=location, output="memory://bucket/w.parquet", overwrite=True))
    assert describe_weights(report).splitlines()[-1] == (
        "  LeRobot opens local files and hf:// alone: copy the progress file, and give the copy's path"
    )
    with module.storage.open_input("memory://bucket/w.parquet") as stream:
        assert pq.read_table(stream)["delta"].to_pylist() == [0.5, 0.0]


def test_the_histogram_fits_a_terminal_and_marks_kappa():
    narrow = DeltaHistogram((-0.000005, 0.0, 0.000005), (1, 0, 10**6, 3))
    assert draw_histogram(narrow, 0.000005) == [
        "        up to -0.000005    0.0%  #",
        "  -0.000005 to 0.000000    0.0%",
        "   0.000000 to 0.000005  100.0%  ############################# <- kappa 0.000005",
        "         above 0.000005    0.0%  #",
    ]
    assert max(map(len, draw_histogram(narrow, 0.000005))) == 80
    rows = DeltaHistogram((0.0, 0.1, 0.2), (0, 1, 1, 0))
    assert [row for row in draw_histogram(rows, 0.0) if "kappa" in row] == [
        "  0.0 to 0.1   50.0%  ######################################## <- kappa 0"
    ]
    assert draw_histogram(rows, 0.1)[0].endswith(
        " <- kappa 0.1"
    )  # above it a frame weighs 1: the rows below begin there
    assert draw_histogram(rows, 0.5)[-1] == "   above 0.2    0.0%   <- kappa 0.5"
    assert len(draw_histogram(rows, 0.1)) == 2
    assert draw_histogram(DeltaHistogram((), ()), 0.1) == []


def test_benchmark():
    result = CliRunner().invoke(main, ["bench", "weights", "--frames", "1000", "--repeats", "1", "--json"])
    bench = json.loads(result.stdout)
    assert (bench["num_frames"], bench["num_episodes"], bench["precision"], bench["repeats"]) == (1000, 3, None, 1)
    assert bench["frames_per_s"] == pytest.approx(1000 / bench["seconds"])
    assert bench["frames_per_cpu_s"] == pytest.approx(1000 / bench["cpu_s"])
    assert bench["floor_ratio"] == pytest.approx(bench["frames_per_cpu_s"] / bench["floor_frames_per_cpu_s"])
    assert 2**25 < bench["peak_rss_bytes"] < 2**33
