"""`sarm-ray train`."""

from typing import Any

import click

from sarm_ray.cli.options import EPILOG, common_options, one_or_several


@click.command(epilog=EPILOG)
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
@click.option("--inputs", type=click.Choice(["both", "vision", "state"]), help="What the model goes by; default both.")
@click.option("--episodes", metavar="SEL", help="Episodes, Python-like: 0:10,15.")
@click.option("--task", metavar="TEXT", help="Task text for all episodes instead of their own.")
@click.option("--steps", type=int, metavar="N", help="Optimiser steps; default 5000.")
@click.option("--batch-size", type=int, metavar="N", help="Samples of a step, over all workers; default 64.")
@click.option("--gradient-accumulation-steps", type=int, metavar="N", help="Passes of a step; default 1.")
@click.option("--num-workers", metavar="N|MIN:MAX", help="Training processes; default one per GPU.")
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
    from sarm_ray.config.loading import apply_settings, load_config
    from sarm_ray.config.train import TrainConfig

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
