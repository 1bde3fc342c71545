"""The demo: the commands that a user would type, one after the other, on a dataset drawn for them.

Each runs in a process of its own and is shown as it would be typed. What is finished is not done again, so a demo that was
cut off goes on.
"""

import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from sarm_ray.config.demo import DemoConfig
from sarm_ray.console import Progress, duration, say
from sarm_ray.demo.dataset import SPLITS, DemoPaths, demo_paths, num_frames, plan_demo, write_split
from sarm_ray.errors import ConfigError, RunInterruptedError, SarmRayError

STOPPED = 130
SEED_FILE = "demo.json"
ENCODER = "efficientnet-lite0"
CHUNK_SIZE = 10  # frames, 1 s: a tenth of an episode
SETTINGS = {
    "model.hidden_dim": 96,
    "model.num_layers": 2,
    "model.num_heads": 4,
    "model.frame_gap": 10,
    "model.dropout": 0.0,  # two thirds of the time; cuts, rewinds and wrong texts are augmentation enough
    "optimizer.lr": 6e-4,
    "optimizer.warmup_steps": 5000,  # scaled down to the run's length
}
ABLATIONS = {"images alone": "vision", "state alone": "state"}
BASELINES = {"time alone": "time", "one frame, linear": "probe"}
FIGURES = {
    "offline_progress_mse": "MSE",
    "live_progress_mse": "MSE live",
    "offline_stage_accuracy": "stages",
    "auroc": "AUROC",
    "offline_drop_detection": "drops found",
    "offline_drop_f1": "F1",
    "offline_false_drawdowns": "false falls",
    "truncated_above_0.8": "cut, yet >0.8",
}


def run_demo(config: DemoConfig) -> str:
    """Run the demo; what to look at.

    Raises:
        SarmRayError: a folder that holds something else, or a command that failed.
    """
    began = time.monotonic()
    folder = Path(config.output_dir).expanduser()
    data = _draw(folder, config.seed)
    model = _train(config, folder, data, "both")
    test, progress = data.test, folder / "sarm_progress.parquet"
    cache = ["--cache", folder / "features"]
    if not progress.exists():
        heads = ["--head-mode", "both", "--stage-probabilities"]
        _run("score", test, "--model", model, *heads, "--output", progress, *cache)
    evaluation = _evaluate(folder / "evaluation.json", test, model, data, cache)
    variant = _evaluate(folder / "evaluation_variant.json", data.variant, model, data, cache)
    table = {"this model": evaluation, "other colours and camera": variant}
    for name, inputs in ABLATIONS.items() if config.ablations else ():
        other = _train(config, folder, data, inputs)
        table[name] = _evaluate(folder / f"evaluation_{inputs}.json", test, other, data, cache)
    horizon = ["--chunk-size", CHUNK_SIZE]
    _run("weights", progress, *horizon, "--kappa", "auto", "--output", folder / "weights.parquet", "--overwrite")
    page = folder / "report.html"
    found = ["--progress", progress, "--evaluation", folder / "evaluation.json"]
    _run("report", test, *found, *horizon, "--output", page, "--overwrite")
    return "\n".join([*compare(table), "", f"the demo took {duration(time.monotonic() - began)}; open", f"  {page}"])


def _draw(folder: Path, seed: int) -> DemoPaths:
    """The drawn datasets; they are complete once their folder has its name."""
    data, unfinished = folder / "data", folder / "data.unfinished"
    if data.exists():
        found = json.loads((data / SEED_FILE).read_text())["seed"] if (data / SEED_FILE).exists() else None
        if found is None:
            raise ConfigError(f"{folder} holds something else; choose another --output-dir")
        if found != seed:
            way_out = f"go on with --seed {found}, or choose another --output-dir"
            raise ConfigError(f"{folder} is a demo with seed {found}; {way_out}")
        return demo_paths(data)
    say(f"drawing a tabletop task into {data}")
    shutil.rmtree(unfinished, ignore_errors=True)
    _draw_datasets(unfinished, seed)
    (unfinished / SEED_FILE).write_text(json.dumps({"seed": seed}) + "\n")
    unfinished.rename(data)
    _run("inspect", demo_paths(data).train)
    return demo_paths(data)


def _draw_datasets(folder: Path, seed: int) -> None:
    """All datasets, in two processes."""
    progress = Progress("draw", num_frames(plan_demo(seed)))
    processes = multiprocessing.get_context("spawn")
    drawn = processes.Value("q", 0)
    with ProcessPoolExecutor(2, processes, initializer=_count_in, initargs=(drawn,)) as pool:
        left = {pool.submit(_draw_split, folder, seed, name) for name in SPLITS}
        while left:
            finished, left = wait(left, timeout=0.5)
            progress.add(drawn.value - progress.done)
            for each in finished:
                each.result()
    progress.finish()


def _count_in(drawn: Any) -> None:
    """In a process that draws: where it counts its frames."""
    _draw_split.drawn = drawn  # type: ignore[attr-defined]


def _draw_split(folder: Path, seed: int, name: str) -> None:
    drawn = _draw_split.drawn  # type: ignore[attr-defined]

    def count() -> None:
        with drawn.get_lock():
            drawn.value += 1

    write_split(folder, seed, name, count)


def _train(config: DemoConfig, folder: Path, data: DemoPaths, inputs: str) -> Path:
    """The checkpoint of a run; a run that was cut off goes on, one that is finished is left."""
    run = folder / ("train" if inputs == "both" else f"train_{inputs}")
    num_workers = min(os.cpu_count() or 1, 2)
    if not (run / "summary.json").exists():
        _run(
            "train", data.train, "--output-dir", run, "--annotation-mode", "dual", "--encoder", ENCODER,
            "--steps", config.steps, "--seed", config.seed, "--val-fraction", 0.1, "--eval-freq", config.steps,
            "--cache", folder / "features", "--inputs", inputs, "--no-gpu", "--num-workers", num_workers,
            *(["--resume"] if run.exists() else []),
            *(part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")),
        )  # fmt: skip
    return run / "checkpoints/last/pretrained_model"


def _evaluate(output: Path, dataset: Path, model: Path, data: DemoPaths, cache: list) -> dict[str, float]:
    """The figures of the sparse head."""
    if not output.exists():
        _run(
            "evaluate", dataset, "--model", model, "--train-dataset", data.train, "--chunk-size", CHUNK_SIZE,
            "--output", output, *cache,
        )  # fmt: skip
    figures = json.loads(output.read_text())["figures"]
    return {each["name"]: each["value"] for each in figures if each["head"] == "sparse"}


def _run(*arguments: object) -> None:
    """A command of ours, shown and run.

    Raises:
        SarmRayError: it did not end with 0.
    """
    words = [str(argument) for argument in arguments]
    say(f"\n$ {shlex.join(['sarm-ray', *words])}")
    command = [sys.executable, "-m", "sarm_ray", *words]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    before = signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))  # a Ctrl-C it gets by itself
    try:
        code = child.wait()
    except KeyboardInterrupt:
        child.wait()  # it finishes what it is at
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if code == STOPPED:
        raise RunInterruptedError("the demo was stopped; start it again to go on")
    if code:
        raise SarmRayError(f"the demo stopped: sarm-ray {words[0]} ended with {code}; start it again to go on")


def compare(table: dict[str, dict[str, float]]) -> list[str]:
    """The figures of several evaluations, and of the first one's frames without a model: time alone, a single frame."""
    first = next(iter(table.values()))
    rows = dict(table)
    for name, view in BASELINES.items():
        rows[name] = {
            key.replace(f"{view}_", "offline_"): value for key, value in first.items() if key.startswith(view)
        }
    width, wide = max(map(len, rows)) + 2, {key: max(len(title), 5) + 3 for key, title in FIGURES.items()}
    lines = ["", " " * width + "".join(title.rjust(wide[key]) for key, title in FIGURES.items())]
    for name, figures in rows.items():
        values = {key: figures.get(key) for key in FIGURES}
        cells = [("-" if value is None else f"{value:.3f}").rjust(wide[key]) for key, value in values.items()]
        lines.append(name.ljust(width) + "".join(cells))
    return lines
