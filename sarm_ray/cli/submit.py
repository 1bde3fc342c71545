"""`jobs/submit.sh`: a sarm-ray command as a job of a Ray cluster, which ends here as it ended there."""

import os
import re
import secrets
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from sarm_ray import __version__
from sarm_ray.cli import main as sarm_ray_command
from sarm_ray.errors import ConfigError, SarmRayError


def describe(command: Sequence[str]) -> dict[str, str]:
    """What the dashboard shows beside a job: command, datasets, model, version.

    The command line is parsed by the very command that will run, so that a mistyped flag costs no cluster.

    Raises:
        click.UsageError: it would be refused there.
    """
    name, *arguments = command
    chosen = sarm_ray_command.get_command(click.Context(sarm_ray_command), name)
    if chosen is None:
        raise click.UsageError(f"there is no command sarm-ray {name}")
    context = chosen.make_context(f"sarm-ray {name}", arguments)
    flags = {key: value for key, value in context.params.items() if value}
    known = {**_config(flags.get("config_file")), **flags}
    datasets = known.get("datasets") or known.get("dataset_option") or known.get("dataset") or ()
    found = {
        "command": name,
        "dataset": datasets if isinstance(datasets, str) else ", ".join(datasets),
        "model": str(known.get("model") if isinstance(known.get("model"), str) else known.get("output_dir") or ""),
        "sarm_ray": __version__,
    }
    return {key: value for key, value in found.items() if value}


def _config(file: str | None) -> dict[str, Any]:
    """The mapping in a config file; one that only the cluster can read tells nothing here."""
    try:
        values = yaml.safe_load(Path(file).read_text()) if file else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def commit(folder: str) -> str | None:
    """The commit that a folder is at, `-dirty` where files differ from it; None where git knows nothing of it."""
    words = ["git", "-C", folder, "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def runtime_env(file: str | None, working_dir: str | None, environment: Mapping[str, str]) -> dict[str, Any]:
    """A runtime environment from a YAML file, in which `${NAME}` is this machine's variable; what is not set is left out.

    Raises:
        ConfigError: the file is none.
    """
    try:
        values = yaml.safe_load(Path(file).read_text()) if file else {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected a mapping of keys to values, found {type(values).__name__}")
    variables: dict[str, str] = {}
    for name, value in (values.pop("env_vars", None) or {}).items():
        reference = re.fullmatch(r"\$\{(\w+)\}", str(value))
        if reference is None:
            variables[name] = str(value)
        elif reference[1] in environment:
            variables[name] = environment[reference[1]]
    excludes = values.pop("excludes", None)
    if working_dir:
        values["working_dir"] = working_dir
        values["excludes"] = excludes or []
    return {**values, "env_vars": variables}


def job_name(metadata: Mapping[str, str]) -> str:
    """A submission id that reads like what is run: `score-fold_towel-1122-0330-5f3a`."""
    subject = metadata.get("dataset", "").split(",")[0].rstrip("/").rpartition("/")[2]
    words = [
        metadata["command"],
        re.sub(r"[^A-Za-z0-9_]+", "_", subject)[:40],
        time.strftime("%m%d-%H%M", time.gmtime()),
    ]
    return "-".join([*filter(None, words), secrets.token_hex(2)])


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--address", metavar="URL", help="Job server, http://HEAD:8265; else RAY_ADDRESS.")
@click.option("--runtime-env", "env_file", metavar="FILE", help="YAML; ${NAME} in env_vars is this machine's variable.")
@click.option(
    "--working-dir", default=".", metavar="DIR", help="Sent along: configs and code; '' for nothing. Default ."
)
@click.option("--nodes", type=int, metavar="N", help="Wait until the cluster has N nodes.")
@click.option("--stop", is_flag=True, help="Ctrl-C and SIGTERM stop the job; without it they leave it running.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def main(
    address: str | None, env_file: str | None, working_dir: str, nodes: int | None, stop: bool, command: tuple[str, ...]
) -> None:
    """Run `sarm-ray COMMAND...` as a job of a Ray cluster and exit as it does."""
    try:
        metadata = describe(command)
        if (now := commit(working_dir or ".")) is not None:
            metadata["commit"] = now
        environment = runtime_env(env_file, working_dir, os.environ)
        from sarm_ray.pipelines.submission import run_job

        code = run_job(
            shlex.join(["sarm-ray", *command]),
            address=address,
            name=job_name(metadata),
            metadata=metadata,
            runtime_env=environment,
            num_nodes=nodes,
            stop=stop,
        )
    except SarmRayError as error:
        click.echo(f"{click.style('error', fg='red')}: {error}", err=True)
        code = 2
    except click.ClickException:
        raise
    except Exception:  # noqa: BLE001  # 1 means "done with failures listed": a bug must not look like that
        traceback.print_exc()
        code = 70
    sys.exit(code)


if __name__ == "__main__":
    main()
