"""`sarm-ray score`."""

from typing import Any

import click

from sarm_ray.cli.options import EPILOG, common_options, one_or_several


@click.command(epilog=EPILOG)
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
@click.option(
    "--follow", type=float, metavar="SECONDS", help="Look into folders so often; score what has appeared, once."
)
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
    from sarm_ray.config.loading import load_config
    from sarm_ray.config.score import ScoreConfig

    flags["dataset"] = one_or_several([*datasets, *([dataset_option] if dataset_option else [])])
    flags["image_key"] = one_or_several(flags["image_key"])
    config = load_config(ScoreConfig, config_file, {key: value for key, value in flags.items() if value is not None})
    if config.follow is not None:
        from sarm_ray.pipelines.follow import follow
        from sarm_ray.pipelines.follow_report import describe_follow

        followed = follow(config, quiet)
        if followed is not None:
            click.echo(describe_follow(followed))
            ctx.exit(1 if followed.num_failed > config.allow_failures else 0)
        return
    from sarm_ray.pipelines.score import score as run
    from sarm_ray.pipelines.score_report import describe_report

    report = run(config, quiet)
    if report is None:
        return
    click.echo(describe_report(report))
    if len(report.failures) > config.allow_failures:
        ctx.exit(1)
