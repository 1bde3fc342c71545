"""The demo as a whole: what it refuses, and (slowly) what it reaches on five seeds."""

import json
import signal
import subprocess
import sys

import pytest

from sarm_ray.config.demo import DemoConfig
from sarm_ray.demo.run import compare, run_demo
from sarm_ray.errors import ConfigError, SarmRayError


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=f"{tmp_path} holds something else; choose another --output-dir"):
        run_demo(DemoConfig(output_dir=str(tmp_path)))
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "mine.txt"]


def test_another_seed_does_not_go_on_with_a_demo(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/demo.json").write_text(json.dumps({"seed": 3}))
    with pytest.raises(ConfigError, match="is a demo with seed 3; go on with --seed 3, or choose another --output-dir"):
        run_demo(DemoConfig(output_dir=str(tmp_path)))


def test_a_command_that_fails_ends_the_demo(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/demo.json").write_text(json.dumps({"seed": 0}))  # but there are no datasets
    with pytest.raises(SarmRayError, match="the demo stopped: sarm-ray train ended with 2; start it again to go on"):
        run_demo(DemoConfig(output_dir=str(tmp_path)))


def test_asked_to_stop(tmp_path):
    """SIGTERM, which a terminal does not send to children, reaches the command that runs; the demo says how to go on."""
    script = "import time; print('begun', flush=True); import signal, sys\n" \
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); print('ready', flush=True); time.sleep(60)"  # fmt: skip
    command = f"""
import sys
import sarm_ray.demo.run as run
sys.executable = {str(tmp_path / "child")!r}
try:
    run._run("inspect", "x")
except run.RunInterruptedError as error:
    print(error)
"""
    (tmp_path / "child").write_text(f"#!{sys.executable}\n{script}\n")
    (tmp_path / "child").chmod(0o755)
    with subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["begun\n", "ready\n"]
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate()
    assert said == "the demo was stopped; start it again to go on\n"


def test_the_comparison_sets_models_beside_what_has_none():
    first = {"offline_progress_mse": 0.004, "time_progress_mse": 0.02, "probe_progress_mse": 0.0169, "auroc": 1.0}
    lines = compare({"this model": first, "other": {"offline_progress_mse": 0.01}})
    assert [line.split()[:1] for line in lines[1:]] == [["MSE"], ["this"], ["other"], ["time"], ["one"]]
    assert "0.004" in lines[2]
    assert "1.000" in lines[2]
    assert "0.020" in lines[4]
    assert "0.017" in lines[5]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_what_the_demo_reaches(tmp_path, seed):
    run_demo(DemoConfig(output_dir=str(tmp_path), seed=seed))
    figures = json.loads((tmp_path / "evaluation.json").read_text())["figures"]
    value = {each["name"]: each["value"] for each in figures if each["head"] == "sparse"}
    assert value["offline_progress_mse"] <= 0.01
    assert value["offline_stage_accuracy"] >= 0.9
    assert value["auroc"] >= 0.95
    assert value["offline_drop_detection"] >= 0.8
    assert value["offline_false_drawdowns"] <= 0.15
    assert value["truncated_above_0.8"] <= 0.05
    for baseline in ("time", "probe"):
        assert value[f"{baseline}_progress_mse"] > value["offline_progress_mse"]
        assert value[f"{baseline}_drop_f1"] < value["offline_drop_f1"]
    assert (tmp_path / "report.html").stat().st_size > 100_000
