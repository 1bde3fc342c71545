"""`sarm-ray bench merge|estimate|weights`, and the processes that they measure in: values and formats, nothing is timed."""

import json
import subprocess

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from sarm_ray.bench.apart import RUN_MODULE, call_apart, run_apart
from sarm_ray.bench.estimate import MEASURED_MS, Rates, estimate, read_rates
from sarm_ray.bench.merge import prepare
from sarm_ray.bench.plan import plan_of
from sarm_ray.cli import main
from sarm_ray.data.progress_io import part_schema, read_done
from sarm_ray.errors import ConfigError


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["bench", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_merge():
    bench = json.loads(
        run("merge", "--episodes", "20", "--frames-per-episode", "600", "--chunks-per-part", "7", "--json")
    )
    assert (bench["num_episodes"], bench["frames_per_episode"], bench["chunks_per_part"]) == (20, 600, 7)
    assert 20 * 500 <= bench["num_frames"] <= 20 * 700
    assert bench["num_parts"] == -(-bench["num_chunks"] // 7)
    assert list(bench["steps"]) == ["chunks left", "check store", "merge", "advice", "weights"]
    for wall_s, cpu_s, peak in bench["steps"].values():
        assert min(wall_s, cpu_s) > 0
        assert 30e6 < peak < 10e9
    assert bench["frames_per_s"] == pytest.approx(bench["num_frames"] / bench["steps"]["merge"][0])
    assert bench["output_bytes"] > bench["num_frames"]
    assert bench["precision"] is None


def test_synthetic_parts_are_those_of_a_whole_run(tmp_path):
    made = prepare(str(tmp_path), 5, 600, 4)
    plan = plan_of(tmp_path)
    episode, start, num_holes = read_done(plan.parts_folder)
    assert len(episode) == made["num_chunks"] == len(plan.ingest.chunks)
    chunks = plan.ingest.chunks
    assert set(zip(episode.tolist(), start.tolist(), strict=True)) == set(
        zip(chunks.row.tolist(), chunks.start.tolist(), strict=True)
    )
    assert not num_holes.any()
    assert not len(plan.ingest.todo)
    part = next(path for path in tmp_path.glob("progress.parquet.run/parts-*/*.parquet"))
    assert pq.read_schema(part).equals(part_schema(("sparse",)))


def test_weights():
    weights = json.loads(run("weights", "--frames", "1000", "--repeats", "1", "--json"))
    assert (weights["num_frames"], weights["num_episodes"]) == (1000, 3)
    assert 50e6 < weights["peak_rss_bytes"] < 2e9


def test_a_process_of_its_own_has_its_own_peak():
    held = b"x" * 400_000_000  # which a child's ru_maxrss would begin with
    output, timing, peak = run_apart("print(sys.argv[1:])", ["a", "b"])
    assert output == "['a', 'b']\n"
    assert timing.wall_s > 0
    assert timing.cpu_s > 0
    assert peak < 300e6 < len(held)
    assert run_apart("x = b'x' * 300_000_000", [])[2] > 300e6
    assert call_apart("statistics", "mean", data=[1, 2, 6])[0] == 3
    assert "sarm-ray" in run_apart(RUN_MODULE, ["sarm_ray", "--version"])[0]
    with pytest.raises(subprocess.CalledProcessError):
        run_apart("sys.exit(3)", [])


def test_hours_and_cost():
    rates = Rates({"decode": 1.0, "encode": 6.0, "score": 2.0}, 0.9, "a test")
    table = estimate([10, 40], 3600, rates, 5, [1, 2], core_hour_usd=0.1, gpu_hour_usd=2.0)
    small, large = table.sizes
    assert (small.num_frames, large.num_frames) == (36_000, 144_000)
    assert small.core_hours == pytest.approx(0.1)  # 36,000 frames of 10 ms
    assert small.rescore_core_hours == pytest.approx(0.1 * 2 / 9)
    assert small.hours == pytest.approx([0.02, 0.01])
    assert small.usd == pytest.approx(0.01)
    assert large.core_hours == pytest.approx(0.4)
    assert small.gpu_hours is small.gpu_usd is small.gpu_decode_core_hours is None  # nobody measured one
    with_gpu = estimate([10], 3600, rates, 5, [1], 0.1, 2.0, gpu_frames_per_s=100).sizes[0]
    assert with_gpu.gpu_hours == pytest.approx(0.1)
    assert with_gpu.gpu_decode_core_hours == pytest.approx(0.1 / 9)
    assert with_gpu.gpu_usd == pytest.approx(0.2 + 0.1 * 0.1 / 9)


def test_the_table_says_what_is_measured_and_what_assumed(tmp_path):
    lines = run("estimate").splitlines()
    assert lines[0].split()[:3] == ["episodes", "frames", "core-hours"]
    assert [line.split()[0] for line in lines[1:4]] == ["10,000", "100,000", "1,000,000"]
    assert lines[4].startswith("measured: decode 1.2 ms, encode 24.7 ms, score 18.1 ms of one core")
    assert lines[5].startswith("assumed: 0.05 USD per core-hour, 64 cores a node")
    assert lines[-1] == "GPUs: not measured; --gpu-frames-per-s takes a rate that you measured on yours"
    assert len(set(map(len, lines[:4]))) == 1
    measured = tmp_path / "score.json"
    measured.write_text(
        json.dumps({"floor_ms": MEASURED_MS, "floor_ratio": 0.5, "hardware": {"cpu": "a Z80", "cores": 1}})
    )
    own = json.loads(run("estimate", "--measured", str(measured), "--episodes", "7", "--json"))
    assert own["rates"]["source"].endswith("a Z80")
    assert own["sizes"][0]["core_hours"] == pytest.approx(7000 * 44.0 / 0.5 / 3.6e6)


def test_rates_that_cannot_be_used(tmp_path):
    path = tmp_path / "score.json"
    with pytest.raises(ConfigError, match="no such file; make it with `sarm-ray bench score --json"):
        read_rates(str(path))
    for text in ("{", "[]", '{"floor_ms": {"decode": 1}}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="not what `sarm-ray bench score --json` prints"):
            read_rates(str(path))
    path.write_text(json.dumps({"floor_ms": {**MEASURED_MS, "score": 0}, "floor_ratio": 1, "hardware": {"cpu": ""}}))
    with pytest.raises(ConfigError, match="must be positive"):
        read_rates(str(path))
