"""`sarm-ray visualize`."""

from typing import TYPE_CHECKING, Any

import click

from sarm_ray.cli.options import EPILOG, common_options, one_or_several

if TYPE_CHECKING:
    from sarm_ray.config.visualize import VisualizeConfig


@click.command(epilog=EPILOG)
@click.argument("dataset", metavar="DATASET", required=False)
@click.option("--dataset-repo-id", "--repo-id", "dataset_option", metavar="DATASET", help="LeRobot's name for DATASET.")
@click.option("--progress", metavar="FILE", help="Progress file; default the dataset's sarm_progress.parquet.")
@click.option("--model", "--reward-model-path", metavar="DIR_OR_ID", help="Score the episodes with this first.")
@click.option(
    "--type",
    type=click.Choice(["annotations", "predictions", "videos"]),
    help="Default predictions, or annotations where there are no scores.",
)
@click.option(
    "--visualize-type", type=click.Choice(["sparse", "dense", "both"]), help="Default both: those that there are."
)
@click.option("--num-visualizations", type=int, metavar="N", help="How many episodes; default 5.")
@click.option("--episodes", metavar="SEL", help="Episodes, Python-like: 0:10,15; default the first ones.")
@click.option(
    "--image-key",
    "--video-key",
    metavar="K",
    multiple=True,
    help="Camera; default the scored one. Repeat it for a --model of several; the first is shown.",
)
@click.option("--output-dir", metavar="D", help="Folder of the pictures; default ./sarm_viz/<name>.")
@click.option("--revision", metavar="REV", help="Revision of a Hub dataset.")
@click.option("--state-key", metavar="K", help="With --model: state feature.")
@click.option(
    "--state-stats",
    type=click.Choice(["checkpoint", "dataset"]),
    help="With --model: statistics that normalise states.",
)
@click.option("--task", metavar="TEXT", help="With --model: task text instead of the episodes' own.")
@click.option("--encoder", metavar="ID_OR_DIR", help="With --model: image encoder.")
@click.option("--cache", metavar="DIR", help="With --model: where features are kept.")
@common_options
@click.pass_context
def visualize(
    ctx: click.Context,
    dataset: str | None,
    dataset_option: str | None,
    config_file: str | None,
    quiet: bool,
    **flags: Any,
) -> None:
    """Draw episodes of DATASET: their progress, the same as a video, or their subtasks."""
    from sarm_ray.config.loading import load_config
    from sarm_ray.config.visualize import VisualizeConfig

    flags["dataset"] = dataset or dataset_option
    flags["image_key"] = one_or_several(flags["image_key"])
    given = {key: value for key, value in flags.items() if value is not None}
    config = load_config(VisualizeConfig, config_file, given)
    from sarm_ray.report.visualize import describe_visualization
    from sarm_ray.report.visualize import visualize as run

    num_failed = 0
    if config.model is not None:
        config, num_failed = _score_first(config, quiet)
    report = run(config, quiet)
    click.echo(describe_visualization(report))
    if report.problems or num_failed:
        ctx.exit(1)


def _score_first(config: "VisualizeConfig", quiet: bool) -> "tuple[VisualizeConfig, int]":
    """Score the episodes that are to be drawn: the config that draws them, and how many chunks failed."""
    import dataclasses

    from sarm_ray.config.score import ScoreConfig
    from sarm_ray.config.visualize import SCORING
    from sarm_ray.console import tell
    from sarm_ray.pipelines.score import score
    from sarm_ray.report.visualize_plan import place_scores

    episodes, output = place_scores(config)
    assert config.model is not None
    same = {name: getattr(config, name) for name in (*SCORING, "dataset", "model", "image_key", "revision", "address")}
    scoring = ScoreConfig(
        **same,
        head_mode=config.visualize_type,
        episodes=episodes,
        output=output,
        stage_probabilities=True,
        num_visualizations=0,
        overwrite=True,
    )
    report = score(scoring, quiet)
    failures = report.failures if report else []
    if failures:
        first = failures[0]
        where = f"episode {first.episode_index}, frames {first.start} to {first.stop - 1}: {first.message}"
        number = f"{len(failures):,} chunks were" if len(failures) > 1 else "1 chunk was"
        tell([f"{number} not scored ({where}); all of them: {output}.run/failed.parquet"])
    left_out: dict[str, Any] = dict.fromkeys((*SCORING, "model"))
    drawing = dataclasses.replace(
        config, **left_out, type=config.type or "predictions", progress=output, episodes=episodes
    )
    return drawing, len(failures)
