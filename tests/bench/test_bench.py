"""`sarm-ray bench decode|encode|plan` on tiny sizes: their figures must agree with each other, and none is timed.

`bench score` runs on full-size networks, in a process of its own: tests/bench/test_bench_score.py.
"""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from sarm_ray.bench import many_episodes
from sarm_ray.bench.measure import CpuMeter, Timing, compare, describe_hardware, measure
from sarm_ray.cli import main
from sarm_ray.core.episodes import CHUNK_FRAMES
from sarm_ray.data.features import FeatureStore, fingerprint_sources
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.rows import episode_texts, state_statistics

FIGURES = {"precision", "frames_per_s", "frames_per_cpu_s", "floor_frames_per_cpu_s", "floor_ratio"}
SMALL = ("--repeats", "1", "--json")


def run(*arguments: str) -> dict:
    """The JSON object that is printed, whose common figures are sound."""
    result = CliRunner().invoke(main, ["bench", *arguments, *SMALL], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    bench = json.loads(line)
    assert set(bench) >= FIGURES | {"repeats", "hardware"}
    assert all(bench[name] > 0 for name in FIGURES - {"precision"})
    assert bench["floor_ratio"] == pytest.approx(bench["frames_per_cpu_s"] / bench["floor_frames_per_cpu_s"])
    assert bench["repeats"] == 1
    assert bench["hardware"]["cores"] >= 1
    assert bench["hardware"]["cpu"]
    return bench


@pytest.mark.parametrize(("codec", "every", "frames"), [("av1", 1, 300), ("h264", 7, 300), ("h264", 400, 5)])
def test_decode(codec, every, frames):
    bench = run("decode", "--codec", codec, "--size", "64x80", "--every", str(every), "--frames", str(frames))
    assert (bench["codec"], bench["size"], bench["gop"], bench["every"]) == (codec, [64, 80], 2, every)
    assert bench["precision"] == "uint8"
    share = frames / len(range(0, frames, every))
    assert bench["source_frames_per_s"] == pytest.approx(bench["frames_per_s"] * share)
    assert bench["source_frames_per_cpu_s"] == pytest.approx(bench["frames_per_cpu_s"] * share)


def test_encode_with_the_embedded_encoder():
    bench = run("encode", "--encoder", "efficientnet-lite0", "--frames", "9")
    assert (bench["encoder"], bench["precision"], bench["num_frames"]) == ("efficientnet-lite0", "fp32", 9)


def test_encode_with_clip():
    bench = run("encode", "--frames", "2")
    assert (bench["encoder"], bench["precision"], bench["num_frames"]) == ("clip", "bf16", 2)


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
@pytest.mark.parametrize("stored", [False, True])
def test_plan(version, stored):
    arguments = ["--episodes", "50", "--version", version, "--frames-per-episode", "600"]
    bench = run("plan", *arguments, *(["--stored"] if stored else []))
    assert (bench["num_episodes"], bench["version"], bench["stored"]) == (50, version, stored)
    assert bench["precision"] is None  # there is no arithmetic
    assert bench["num_files"] == (100 if version == "v2.1" else 6)
    assert 50 * 500 <= bench["num_frames"] <= 50 * 700
    assert 100 <= bench["num_chunks"] <= 150
    assert bench["num_parts"] == int(stored)
    assert 100e6 < bench["peak_rss_bytes"] < 2e9  # of a process of its own
    assert bench["frames_per_s"] == pytest.approx(bench["num_frames"] / bench["seconds"])
    walls, cpus = zip(*bench["steps"].values(), strict=True)
    assert sum(walls) == pytest.approx(bench["seconds"])
    assert sum(cpus) == pytest.approx(bench["cpu_s"])


@pytest.mark.parametrize(
    "arguments", [["decode", "--size", "64x64", "--frames", "4"], ["plan", "--episodes", "3"]], ids=lambda a: a[0]
)
def test_people_get_lines(arguments):
    result = CliRunner().invoke(main, ["bench", *arguments, "--repeats", "1"])
    assert result.exit_code == 0
    assert "ratio" in result.output
    assert len(result.output.splitlines()) >= 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("decode", "--size", "99"), "'99' is not a height and a width in multiples of 8, like 480x640"),
        (("decode", "--size", "100x100"), "'100x100' is not a height and a width in multiples of 8, like 480x640"),
        (("decode", "--size", "8x640"), "'8x640' is smaller than 64x64"),
        (("decode", "--codec", "vp9"), "'vp9' is not one of 'av1', 'h264'"),
        (("decode", "--every", "0"), "0 is not in the range x>=1"),
        (("encode", "--encoder", "siglip"), "'siglip' is not one of 'clip', 'efficientnet-lite0'"),
        (("encode", "--encoder", "efficientnet-lite0", "--precision", "bf16"), "efficientnet-lite0 runs in fp32 alone"),
        (("score", "--frames", "1"), "1 is not in the range x>=64"),
        (("score", "--repeats", "0"), "0 is not in the range x>=1"),
        (("plan", "--version", "v1.0"), "'v1.0' is not one of 'v3.0', 'v2.1'"),
        (("plan", "--episodes", "many"), "'many' is not a valid integer range"),
    ],
)
def test_wrong_options_exit_with_2_and_name_themselves_in_one_line(arguments, words):
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.lower().startswith("error:")]
    assert len(errors) == 1
    assert words in errors[0]


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_the_metadata_is_that_of_a_sound_dataset(tmp_path, version):
    root = tmp_path / "d"
    many_episodes.write_metadata(root, 45, version, 300)
    dataset = open_dataset(str(root))
    assert (dataset.version, dataset.notices, dataset.cameras) == (version, (), (many_episodes.CAMERA,))
    files = dataset.videos[many_episodes.CAMERA]
    assert set(dataset.files) == set(files.paths) | set(dataset.data_files.paths)
    assert len(files.paths) == (45 if version == "v2.1" else 3)
    ends = files.from_timestamp + dataset.length / dataset.fps
    follows = files.file[1:] == files.file[:-1]
    np.testing.assert_allclose(files.from_timestamp[1:], np.where(follows, ends[:-1], 0), atol=1e-9)
    assert np.array_equal(dataset.from_index, np.cumsum(dataset.length) - dataset.length)
    assert set(episode_texts(dataset, np.arange(45))) == set(many_episodes.TASKS)
    assert state_statistics(dataset, many_episodes.STATE)[0].shape == (many_episodes.STATE_DIM,)
    store = FeatureStore(str(tmp_path / "store"), 512, "float16")
    assert many_episodes.fill_store(store, root) == 1
    assert (fingerprint_sources(dataset, many_episodes.CAMERA)[1] != 0).all()
    assert dataset.length.max() > CHUNK_FRAMES


def test_measuring():
    calls: list[str] = []
    timings = measure(2, lambda: calls.append("a"), lambda: calls.append("b"))
    assert calls == ["a", "b"] * 3  # a warm-up, then turn by turn
    assert all(timing.wall_s >= 0 and timing.cpu_s >= 0 for timing in timings)
    figures = compare(100, Timing(2.0, 4.0), Timing(0.5, 1.0))
    assert figures == {
        "frames_per_s": 50,
        "frames_per_cpu_s": 25,
        "floor_frames_per_cpu_s": 100,
        "floor_ratio": 0.25,
    }
    assert describe_hardware() == describe_hardware()
    with CpuMeter() as meter:
        sum(range(100_000))
    assert meter.cpu_s > 0
