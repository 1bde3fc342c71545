"""`sarm-ray report`."""

from typing import Any

import click

from sarm_ray.cli.options import EPILOG


@click.command(epilog=EPILOG)
@click.argument("dataset", required=False)
@click.option("--dataset-repo-id", "--repo-id", "dataset_option", metavar="DATASET", help="LeRobot's name for DATASET.")
@click.option("--progress", metavar="FILE", help="Progress file; default the dataset's own, else ./<name>/'s.")
@click.option("--output", metavar="FILE", help="The page; default report.html beside the progress file.")
@click.option("--labels", metavar="FILE", help="CSV of outcomes: episode_index,outcome.")
@click.option("--evaluation", metavar="FILE", help="JSON of figures to show; default evaluation.json, if it is there.")
@click.option(
    "--head-mode", type=click.Choice(["sparse", "dense"]), help="Which head; default sparse, if there is one."
)
@click.option("--chunk-size", type=int, metavar="N", help="Horizon of RA-BC: the policy's chunk_size; default 50.")
@click.option("--image-key", "--video-key", metavar="K", help="Camera to show; default the first one.")
@click.option("--max-videos", type=int, metavar="N", help="Episodes with a video; default 60.")
@click.option("--revision", metavar="REV", help="Revision of a Hub dataset.")
@click.option("--overwrite", is_flag=True, default=None, help="Replace a page that exists.")
@click.option("--quiet", is_flag=True, help="Print errors and the result alone.")
@click.option("--config", "config_file", metavar="FILE", help="YAML file; flags override it.")
def report(dataset: str | None, dataset_option: str | None, config_file: str | None, quiet: bool, **flags: Any) -> None:
    """Write one page about DATASET's progress: curves, videos, what is odd, and what RA-BC makes of it.

    DATASET may be a folder that `serve --record` wrote: the page then shows its rollouts.
    """
    from sarm_ray.config.loading import load_config
    from sarm_ray.config.report import ReportConfig

    flags["dataset"] = dataset or dataset_option
    config = load_config(ReportConfig, config_file, {key: value for key, value in flags.items() if value is not None})
    from sarm_ray.report.page import describe_page
    from sarm_ray.report.page import report as run

    click.echo(describe_page(run(config, quiet)))
