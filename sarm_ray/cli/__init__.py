"""The command line: flags to a config, one library call, errors to one line and an exit code.

One module per command, which imports nothing heavy before it is run, so that --help answers at once. Exit codes: 0 done,
1 done with failures listed, 2 bad input (nothing was run), 70 a bug of ours, 130 interrupted (run the same command again
to go on).
"""

import traceback
from typing import Any

import click

from sarm_ray import __version__
from sarm_ray.bench.commands import bench
from sarm_ray.cli.annotate import annotate
from sarm_ray.cli.demo import demo
from sarm_ray.cli.evaluate import evaluate
from sarm_ray.cli.inspect import inspect
from sarm_ray.cli.options import EPILOG
from sarm_ray.cli.report import report
from sarm_ray.cli.score import score
from sarm_ray.cli.serve import serve
from sarm_ray.cli.train import train
from sarm_ray.cli.visualize import visualize
from sarm_ray.cli.weights import weights
from sarm_ray.errors import RunInterruptedError, SarmRayError


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


for command in (demo, inspect, annotate, train, score, evaluate, weights, visualize, report, serve, bench):
    main.add_command(command)
