"""`sarm-ray demo`."""

from typing import Any

import click

from sarm_ray.cli.options import EPILOG


@click.command(epilog=EPILOG)
@click.option("--output-dir", metavar="DIR", help="Folder of the demo; default sarm_demo.")
@click.option("--seed", type=int, metavar="N", help="Of the scenes, the split and the weights; default 0.")
@click.option("--steps", type=int, metavar="N", help="Of training; default 800.")
@click.option("--ablations", is_flag=True, default=None, help="Also train on images alone and on states alone.")
@click.option("--config", "config_file", metavar="FILE", help="YAML file; flags override it.")
def demo(config_file: str | None, **flags: Any) -> None:
    """Draw a small robot task, train on it, score it, and make a page of it: no GPU, no Hub, a few minutes."""
    from sarm_ray.config.demo import DemoConfig
    from sarm_ray.config.loading import load_config

    config = load_config(DemoConfig, config_file, {key: value for key, value in flags.items() if value is not None})
    from sarm_ray.demo.run import run_demo

    click.echo(run_demo(config))
