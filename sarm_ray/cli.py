"""The command line: flags to a config, one library call, errors to one line and an exit code.

Imports nothing heavy, so that --help answers at once. Exit codes: 0 done, 1 done with failures listed, 2 bad input
(nothing was run), 70 a bug of ours, 130 interrupted (run the same command again to go on).
"""

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import click

from sarm_ray import __version__
from sarm_ray.bench.commands import bench
from sarm_ray.errors import RunInterruptedError, SarmRayError

EPILOG = "Every command takes --config FILE (YAML); flags override it."


class Commands(click.Group):
    """A group that shows our errors as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SarmRayError as error:
            stopped = isinstance(error, RunInterruptedError)
            click.echo(str(error) if stopped else f"{click.style('error', fg='red')}: {error}", err=True)
            ctx.exit(130 if stopped else 2)
        except KeyboardInterrupt:
            click.echo("interrupted; finished chunks are kept, run the same command again to go on", err=True)
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception:  # noqa: BLE001  # 1 means "done with failures listed": a bug must not look like that
            traceback.print_exc()
            click.echo("this is a bug in sarm_ray; finished chunks are kept", err=True)
            ctx.exit(70)


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sarm-ray")
def main() -> None:
    """SARM, the stage-aware reward model for robot video, on a Ray cluster."""


def common_options(command: Callable) -> Callable:
    """Options of every command."""
    command = click.option("--address", metavar="ADDRESS", help="Ray cluster to join; else a job's own, else local.")(
        command
    )
    command = click.option("--quiet", is_flag=True, help="Print errors and the result alone.")(command)
    return click.option("--config", "config_file", metavar="FILE", help="YAML file; flags override it.")(command)


def one_or_several(given: Sequence[str]) -> str | list[str] | None:
    """What a repeated option becomes in a config."""
    return given[0] if len(given) == 1 else list(given) or None


@main.command(epilog=EPILOG)
@click.argument("datasets", metavar="DATASET...", nargs=-1)
@click.option("--dataset-repo-id", "--repo-id", "dataset_option", metavar="DATASET", help="LeRobot's name for DATASET.")
@click.option("--model", "--reward-model-path", metavar="DIR_OR_ID", help="SARM checkpoint.")
@click.option("--output", "--output-path", metavar="FILE", help="Progress file; for several datasets a folder.")
@click.option("--head-mode", type=click.Choice(["sparse", "dense", "both"]), help="Which head; default sparse.")
@click.option("--stride", type=int, metavar="N", help="Compute every N-th frame, interpolate between; default 1.")
@click.option("--live", is_flag=True, default=None, help="Score each frame with the future cut at it.")
@click.option("--episodes", metavar="SEL", help="Episodes, Python-like: 0:10,15.")
@click.option(
    "--image-key",
    "--video-key",
    metavar="K",
    multiple=True,
    help="Camera; default the model's. Repeat it for a model of several.",
)
@click.option("--state-key", metavar="K", help="State feature; default the checkpoint's.")
@click.option("--task", metavar="TEXT", help="Task text for all episodes instead of their own.")
@click.option("--state-stats", type=click.Choice(["checkpoint", "dataset"]), help="Statistics that normalise states.")
@click.option("--encoder", metavar="ID_OR_DIR", help="Image encoder; default the checkpoint's.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Default auto: bf16 where there is.")
@click.option("--cache", metavar="DIR", help="Where features are kept; any fsspec path.")
@click.option("--revision", metavar="REV", help="Revision of a Hub dataset.")
@click.option("--stage-probabilities", is_flag=True, default=None, help="Also write stage_probabilities.parquet.")
@click.option("--num-visualizations", type=int, metavar="N", help="Draw N episodes as PNG; default 5.")
@click.option("--allow-failures", type=int, metavar="N", help="Exit with 0 while at most N chunks failed; default 0.")
@click.option("--overwrite", is_flag=True, default=None, help="Replace an output that exists.")
@click.option("--push-to-hub", is_flag=True, default=None, help="Upload the output to the dataset's Hub repository.")
@click.option("--dry-run", is_flag=True, default=None, help="Print the plan and run nothing.")
@common_options
@click.pass_context
def score(
    ctx: click.Context,
    datasets: tuple[str, ...],
    dataset_option: str | None,
    config_file: str | None,
    quiet: bool,
    **flags: Any,
) -> None:
    """Score every frame of each DATASET into its sarm_progress.parquet."""
    from sarm_ray.config import ScoreConfig, load_config

    flags["dataset"] = one_or_several([*datasets, *([dataset_option] if dataset_option else [])])
    flags["image_key"] = one_or_several(flags["image_key"])
    config = load_config(ScoreConfig, config_file, {key: value for key, value in flags.items() if value is not None})
    from sarm_ray.pipelines.score import score as run
    from sarm_ray.pipelines.score_report import describe_report

    report = run(config, quiet)
    if report is None:
        return
    click.echo(describe_report(report))
    if len(report.failures) > config.allow_failures:
        ctx.exit(1)


@main.command(epilog=EPILOG)
@click.argument("datasets", metavar="DATASET...", nargs=-1)
@click.option("--dataset-repo-id", "--repo-id", "dataset_option", metavar="DATASET", help="LeRobot's name for DATASET.")
@click.option("--output-dir", metavar="DIR", help="Folder of the run, on a disk that all nodes share.")
@click.option(
    "--annotation-mode",
    type=click.Choice(["single_stage", "dense_only", "dual"]),
    help="Which subtasks the model learns; default single_stage, which needs no annotation.",
)
@click.option(
    "--image-key",
    "--video-key",
    metavar="K",
    multiple=True,
    help="Camera, if there are several; repeat it to use more.",
)
@click.option("--state-key", metavar="K", help="State feature; default observation.state.")
@click.option("--encoder", metavar="ID_OR_DIR", help="Frozen image encoder; default openai/clip-vit-base-patch32.")
@click.option("--init-from", metavar="CHECKPOINT", help="Fine-tune this checkpoint.")
@click.option("--window", type=click.Choice(["centered", "past"]), help="Default centered, which LeRobot loads.")
@click.option("--episodes", metavar="SEL", help="Episodes, Python-like: 0:10,15.")
@click.option("--task", metavar="TEXT", help="Task text for all episodes instead of their own.")
@click.option("--steps", type=int, metavar="N", help="Optimiser steps; default 5000.")
@click.option("--batch-size", type=int, metavar="N", help="Samples of a step, over all workers; default 64.")
@click.option("--gradient-accumulation-steps", type=int, metavar="N", help="Passes of a step; default 1.")
@click.option("--num-workers", type=int, metavar="N", help="Training processes; default one per GPU.")
@click.option("--use-gpu/--no-gpu", default=None, help="Default: where there is one.")
@click.option(
    "--deepspeed-stage",
    type=click.Choice(["0", "1", "2", "3"]),
    help="ZeRO stage, 0 plain data parallel; default 1, or 0 for one.",
)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Default auto: bf16 on GPUs, else fp32.")
@click.option("--val-fraction", type=float, metavar="F", help="Share of the episodes held out; default 0.1.")
@click.option("--seed", type=int, metavar="N", help="Default 1000.")
@click.option("--save-freq", type=int, metavar="N", help="Steps between checkpoints; default 1000.")
@click.option("--eval-freq", type=int, metavar="N", help="Steps between looks at the held-out episodes; default 500.")
@click.option("--log-freq", type=int, metavar="N", help="Steps between lines of metrics; default 50.")
@click.option("--cache", metavar="DIR", help="Where features are kept; any fsspec path.")
@click.option("--revision", metavar="REV", help="Revision of a Hub dataset.")
@click.option("--allow-failures", type=int, metavar="N", help="Exit with 0 while at most N chunks failed; default 0.")
@click.option("--resume", is_flag=True, default=None, help="Go on from the last checkpoint in --output-dir.")
@click.option("--wandb-project", metavar="P", help="Log to wandb too.")
@click.option("--push-to-hub", metavar="OWNER/NAME", help="Upload the checkpoint at the end.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any option: --set model.num_layers=2.")
@common_options
@click.pass_context
def train(
    ctx: click.Context,
    datasets: tuple[str, ...],
    dataset_option: str | None,
    config_file: str | None,
    quiet: bool,
    settings: tuple[str, ...],
    **flags: Any,
) -> None:
    """Train a SARM on one or several DATASETs."""
    from sarm_ray.config import apply_settings, load_config
    from sarm_ray.train_config import TrainConfig

    flags["dataset"] = one_or_several([*datasets, *([dataset_option] if dataset_option else [])])
    flags["image_key"] = one_or_several(flags["image_key"])
    if flags["deepspeed_stage"] is not None:
        flags["deepspeed_stage"] = int(flags["deepspeed_stage"])
    chosen = {key: value for key, value in flags.items() if value is not None}
    config = load_config(TrainConfig, config_file, apply_settings(chosen, settings))
    from sarm_ray.pipelines.train import train as run
    from sarm_ray.pipelines.training.report import describe_report

    report = run(config, quiet)
    click.echo(describe_report(report))
    if len(report.failures) > config.allow_failures:
        ctx.exit(1)


@main.command("inspect")
@click.argument("dataset")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--revision", metavar="REV", help="Revision of a Hub dataset.")
@click.option(
    "--sample", type=click.IntRange(min=0), default=20, show_default=True, help="Episodes whose files are opened."
)
@click.pass_context
def inspect(ctx: click.Context, dataset: str, as_json: bool, revision: str | None, sample: int) -> None:
    """Look DATASET over before training: facts, and a verdict on every point. Exits with 1 when something is bad."""
    import json
    import shutil

    from sarm_ray.data.inspection.inspect import inspect_dataset
    from sarm_ray.report.inspection import describe_inspection, inspection_object

    result = inspect_dataset(dataset, revision, sample)
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 80), 120)
    click.echo(json.dumps(inspection_object(result)) if as_json else describe_inspection(result, width))
    if result.num_bad:
        ctx.exit(1)


main.add_command(bench)
