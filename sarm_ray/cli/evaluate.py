"""`sarm-ray evaluate`."""

from typing import Any

import click

from sarm_ray.cli.options import EPILOG, common_options, one_or_several


@click.command(epilog=EPILOG)
@click.argument("dataset", required=False)
@click.option("--dataset-repo-id", "--repo-id", "dataset_option", metavar="DATASET", help="LeRobot's name for DATASET.")
@click.option("--model", "--reward-model-path", metavar="DIR_OR_ID", help="SARM checkpoint.")
@click.option("--labels", metavar="FILE", help="CSV: episode_index,outcome (success, partial, failure or 0..1).")
@click.option("--train-dataset", metavar="DATASET", help="Fit the linear probe of one frame there, to compare with.")
@click.option("--output", "--output-path", metavar="FILE", help="JSON; default evaluation.json in the dataset.")
@click.option("--head-mode", type=click.Choice(["sparse", "dense", "both"]), help="Which heads; default both.")
@click.option("--chunk-size", type=int, metavar="N", help="Horizon of a delta in frames; default 50.")
@click.option("--episodes", metavar="SEL", help="Episodes, Python-like: 0:10,15.")
@click.option(
    "--image-key", "--video-key", metavar="K", multiple=True, help="Camera; default the model's. Repeat it for several."
)
@click.option("--state-key", metavar="K", help="State feature; default the checkpoint's.")
@click.option("--task", metavar="TEXT", help="Task text for all episodes instead of their own.")
@click.option("--state-stats", type=click.Choice(["checkpoint", "dataset"]), help="Statistics that normalise states.")
@click.option("--encoder", metavar="ID_OR_DIR", help="Image encoder; default the checkpoint's.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Default auto: bf16 where there is.")
@click.option("--cache", metavar="DIR", help="Where features are kept; any fsspec path.")
@click.option("--revision", metavar="REV", help="Revision of a Hub dataset.")
@click.option("--allow-failures", type=int, metavar="N", help="Exit with 0 while at most N chunks failed; default 0.")
@click.option("--overwrite", is_flag=True, default=None, help="Replace an output that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@common_options
@click.pass_context
def evaluate(
    ctx: click.Context,
    dataset: str | None,
    dataset_option: str | None,
    config_file: str | None,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Say how good a model is on DATASET, by its annotations and the outcomes of its episodes."""
    import json

    from sarm_ray.config.evaluate import EvaluateConfig
    from sarm_ray.config.loading import load_config

    flags["dataset"] = dataset or dataset_option
    flags["image_key"] = one_or_several(flags["image_key"])
    config = load_config(EvaluateConfig, config_file, {key: value for key, value in flags.items() if value is not None})
    from sarm_ray.pipelines.evaluate import evaluate as run
    from sarm_ray.report.evaluation import describe_evaluation, evaluation_object

    report = run(config, quiet)
    click.echo(json.dumps(evaluation_object(report)) if as_json else describe_evaluation(report))
    if len(report.failures) > config.allow_failures:
        ctx.exit(1)
