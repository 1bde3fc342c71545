"""`sarm-ray annotate`."""

from typing import Any

import click

from sarm_ray.cli.options import EPILOG, common_options, one_or_several


@click.command(epilog=EPILOG)
@click.argument("dataset", required=False)
@click.option("--repo-id", "--dataset-repo-id", "dataset_option", metavar="DATASET", help="LeRobot's name for DATASET.")
@click.option(
    "--sparse-subtasks",
    metavar="NAMES",
    multiple=True,
    help='"a,b" in order; or repeat it, a name each, which may then hold commas.',
)
@click.option("--dense-subtasks", metavar="NAMES", multiple=True, help="As --sparse-subtasks.")
@click.option(
    "--dense-only", is_flag=True, default=None, help='Ask for dense ones; the sparse one is "task", all of it.'
)
@click.option(
    "--from",
    "from_file",
    metavar="FILE",
    help="Import segments: CSV, JSON, parquet; or language_persistent, subtask_index, reward: columns of the dataset.",
)
@click.option(
    "--video-key",
    "--image-key",
    "image_key",
    metavar="K",
    multiple=True,
    help="Camera; repeat it to show several side by side.",
)
@click.option("--episodes", metavar="SEL", help="Episodes, Python-like: 0:10,15.")
@click.option("--model", metavar="ID_OR_DIR", help="The VLM; default Qwen/Qwen3-VL-30B-A3B-Instruct.")
@click.option("--engine", type=click.Choice(["transformers", "openai"]), help="Default transformers.")
@click.option("--endpoint", metavar="URL", help="Of engine openai, up to /v1; the key is OPENAI_API_KEY.")
@click.option("--num-workers", metavar="N|MIN:MAX", help="Actors; default as many as the GPUs carry.")
@click.option("--gpus-per-worker", type=int, metavar="G", help="GPUs that an actor spreads its model over; default 1.")
@click.option("--concurrency", type=int, metavar="N", help="Questions under way per actor, to an endpoint; default 8.")
@click.option("--timeout-s", type=float, metavar="S", help="For an answer of an endpoint; default 300.")
@click.option("--frames-per-s", type=float, metavar="F", help="Frames shown per second; default 1.")
@click.option("--max-frames", type=int, metavar="N", help="Frames shown of an episode at most; default 128.")
@click.option(
    "--max-pixels", type=int, metavar="N", help="Pixels of a frame at most, all cameras together; default 150000."
)
@click.option(
    "--skip-existing", is_flag=True, default=None, help="Leave alone what has subtasks of the kind being asked."
)
@click.option("--allow-repeats", is_flag=True, default=None, help="A subtask may come again, as after a drop.")
@click.option("--allow-missing", is_flag=True, default=None, help="Subtasks may be missing, as in a failed episode.")
@click.option("--output-dir", metavar="DIR", help="Everything but the metadata; default annotation.run in the dataset.")
@click.option("--num-visualizations", type=int, metavar="N", help="Draw N episodes as PNG; default 5.")
@click.option("--visualize-type", type=click.Choice(["sparse", "dense", "both"]), help="Which subtasks to draw.")
@click.option("--visualize-only", is_flag=True, default=None, help="Draw what is annotated; ask nothing.")
@click.option(
    "--allow-failures", type=int, metavar="N", help="Exit with 0 while at most N questions failed; default 0."
)
@click.option("--overwrite", is_flag=True, default=None, help="Forget the answers of earlier runs.")
@click.option("--push-to-hub", is_flag=True, default=None, help="Upload the metadata to the dataset's Hub repository.")
@click.option("--revision", metavar="REV", help="Revision of a Hub dataset.")
@click.option("--dry-run", is_flag=True, default=None, help="Print the plan and what it would cost; ask nothing.")
@common_options
@click.pass_context
def annotate(
    ctx: click.Context,
    dataset: str | None,
    dataset_option: str | None,
    config_file: str | None,
    quiet: bool,
    **flags: Any,
) -> None:
    """Find the subtasks of each episode of DATASET with a VLM, or import them, and write them into its metadata."""
    from sarm_ray.config.annotate import AnnotateConfig
    from sarm_ray.config.loading import load_config

    flags["dataset"] = dataset or dataset_option
    for name in ("sparse_subtasks", "dense_subtasks", "image_key"):
        flags[name] = one_or_several(flags[name])
    config = load_config(AnnotateConfig, config_file, {key: value for key, value in flags.items() if value is not None})
    from sarm_ray.pipelines.annotate import annotate as run
    from sarm_ray.pipelines.annotate_output import describe_report

    report = run(config, quiet)
    if report is None:
        return
    click.echo(describe_report(report))
    if len(report.failures) > config.allow_failures:
        ctx.exit(1)
