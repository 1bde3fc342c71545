"""`sarm-ray weights`."""

from typing import Any

import click

from sarm_ray.cli.options import EPILOG


class Kappa(click.ParamType):
    """A number or `auto`."""

    name = "number|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        if value == "auto":
            return value
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)


@click.command(epilog=EPILOG)
@click.argument("dataset", metavar="DATASET_OR_PARQUET", required=False)
@click.option("--dataset-repo-id", "--repo-id", "dataset_option", metavar="DATASET", help="LeRobot's name for DATASET.")
@click.option("--chunk-size", type=int, metavar="N", help="Horizon: the policy's chunk_size; default 50.")
@click.option(
    "--kappa",
    type=Kappa(),
    metavar="K|auto",
    help="Deltas above it weigh 1; auto is their 75th percentile; default 0.01.",
)
@click.option("--head-mode", type=click.Choice(["sparse", "dense"]), help="Whose progress counts; default sparse.")
@click.option("--labels", metavar="FILE", help="CSV of outcomes, episode_index,outcome: weights times success.")
@click.option("--output", "--output-path", metavar="FILE", help="Write deltas and weights of all frames, parquet.")
@click.option("--overwrite", is_flag=True, default=None, help="Replace an output that exists.")
@click.option("--revision", metavar="REV", help="Revision of a Hub dataset.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--config", "config_file", metavar="FILE", help="YAML file; flags override it.")
def weights(
    dataset: str | None, dataset_option: str | None, config_file: str | None, as_json: bool, **flags: Any
) -> None:
    """Look over what RA-BC training makes of DATASET's progress, choose kappa, and write the weights.

    DATASET_OR_PARQUET is a progress file, or the dataset that it belongs to.
    """
    import json

    from sarm_ray.config.loading import load_config
    from sarm_ray.config.weights import WeightsConfig

    flags["dataset"] = dataset or dataset_option
    config = load_config(WeightsConfig, config_file, {key: value for key, value in flags.items() if value is not None})
    from sarm_ray.report.weights import describe_weights, report_object
    from sarm_ray.report.weights import weights as run

    report = run(config)
    click.echo(json.dumps(report_object(report)) if as_json else describe_weights(report))
