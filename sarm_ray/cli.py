"""The command line: flags to a config, one library call, errors to one line and an exit code.

Imports nothing heavy, so that --help answers at once. Exit codes: 0 done, 1 done with failures listed, 2 bad input
(nothing was run), 70 a bug of ours, 130 interrupted (run the same command again to go on).
"""

import traceback
from collections.abc import Callable
from typing import Any

import click

from sarm_ray import __version__
from sarm_ray.errors import SarmRayError

EPILOG = "Every command takes --config FILE (YAML); flags override it."


class Commands(click.Group):
    """A group that shows our errors as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SarmRayError as error:
            click.echo(f"{click.style('error', fg='red')}: {error}", err=True)
            ctx.exit(2)
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


@main.command(epilog=EPILOG)
@click.argument("dataset", required=False)
@click.option("--dataset-repo-id", "--repo-id", "dataset_option", metavar="DATASET", help="LeRobot's name for DATASET.")
@click.option("--model", "--reward-model-path", metavar="DIR_OR_ID", help="SARM checkpoint.")
@click.option("--output", "--output-path", metavar="FILE", help="Progress file to write.")
@click.option("--head-mode", type=click.Choice(["sparse", "dense", "both"]), help="Which head; default sparse.")
@click.option("--stride", type=int, metavar="N", help="Compute every N-th frame, interpolate between; default 1.")
@click.option("--episodes", metavar="SEL", help="Episodes, Python-like: 0:10,15.")
@click.option("--image-key", "--video-key", metavar="K", help="Camera; may be left out where there is one.")
@click.option("--state-key", metavar="K", help="State feature; default the checkpoint's.")
@click.option("--task", metavar="TEXT", help="Task text for all episodes instead of their own.")
@click.option("--state-stats", type=click.Choice(["checkpoint", "dataset"]), help="Statistics that normalise states.")
@click.option("--encoder", metavar="ID_OR_DIR", help="Image encoder; default the checkpoint's.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Default auto: bf16 where there is.")
@click.option("--cache", metavar="DIR", help="Where features are kept; any fsspec path.")
@click.option("--revision", metavar="REV", help="Revision of a Hub dataset.")
@click.option("--stage-probabilities", is_flag=True, default=None, help="Also write stage_probabilities.parquet.")
@click.option("--allow-failures", type=int, metavar="N", help="Exit with 0 while at most N chunks failed; default 0.")
@click.option("--overwrite", is_flag=True, default=None, help="Replace an output that exists.")
@click.option("--dry-run", is_flag=True, default=None, help="Print the plan and run nothing.")
@common_options
@click.pass_context
def score(
    ctx: click.Context,
    dataset: str | None,
    dataset_option: str | None,
    config_file: str | None,
    quiet: bool,
    **flags: Any,
) -> None:
    """Score every frame of DATASET into sarm_progress.parquet."""
    from sarm_ray.config import ScoreConfig, load_config

    flags["dataset"] = dataset or dataset_option
    config = load_config(ScoreConfig, config_file, {key: value for key, value in flags.items() if value is not None})
    from sarm_ray.pipelines.score import score as run
    from sarm_ray.pipelines.score_report import describe_report

    report = run(config, quiet)
    if report is None:
        return
    click.echo(describe_report(report))
    if len(report.failures) > config.allow_failures:
        ctx.exit(1)


@main.group(epilog=EPILOG)
def bench() -> None:
    """Measure this machine: what it does, and what its parts allow."""


@bench.command("score")
@click.option(
    "--frames", "num_frames", type=click.IntRange(min=64), default=4096, show_default=True, help="Frames to score."
)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="bf16", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench_score(num_frames: int, precision: str, as_json: bool) -> None:
    """Score drawn video with full-size CLIP and SARM (random weights), both heads, stride 1."""
    import dataclasses
    import json

    from sarm_ray.bench.score import bench_score as run
    from sarm_ray.bench.score import describe_bench

    result = run(precision, num_frames)
    click.echo(json.dumps(dataclasses.asdict(result)) if as_json else describe_bench(result))
