"""What commands have in common."""

from collections.abc import Callable, Sequence

import click

EPILOG = "Every command takes --config FILE (YAML); flags override it."


def common_options(command: Callable) -> Callable:
    """Options of every command."""
    command = click.option("--address", metavar="ADDRESS", help="Ray cluster to join; else a job's own, else local.")(
        command
    )
    command = click.option("--quiet", is_flag=True, help="Print errors and the result alone.")(command)
    return click.option("--config", "config_file", metavar="FILE", help="YAML file; flags override it.")(command)


def one_or_several(given: Sequence[str]) -> str | list[str] | None:
    """What a repeated option becomes in a config."""
    return given[0] if len(given) == 1 else list(given) or None
