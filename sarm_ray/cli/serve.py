"""`sarm-ray serve`."""

from typing import Any

import click

from sarm_ray.cli.options import EPILOG, common_options


@click.command(epilog=EPILOG)
@click.option("--model", "--reward-model-path", metavar="DIR_OR_ID", help="SARM checkpoint.")
@click.option("--encoder", metavar="ID_OR_DIR", help="Image encoder; default the checkpoint's.")
@click.option("--dataset", metavar="DATASET", help="Whose statistics normalise states, where the checkpoint has none.")
@click.option("--host", metavar="ADDRESS", help="Where to listen; default 127.0.0.1, this machine alone.")
@click.option("--port", type=int, metavar="N", help="Default 8000.")
@click.option("--num-replicas", metavar="MIN:MAX", help="Replicas, as many as the sessions need; or N. Default 1.")
@click.option("--sessions-per-replica", type=int, metavar="N", help="Sessions meant for one replica; default 64.")
@click.option(
    "--score-hz", type=float, metavar="HZ", help="Score at most this many frames a second of a session; default 10."
)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Default auto: bf16 where there is.")
@click.option("--token-file", metavar="FILE", help="Clients must present the token in its first line.")
@click.option("--insecure", is_flag=True, default=None, help="Listen on other addresses without a token.")
@click.option("--record", metavar="DIR", help="Append finished rollouts to a parquet log, which report reads.")
@common_options
def serve(config_file: str | None, quiet: bool, **flags: Any) -> None:
    """Score robot rollouts while they run: stage, progress and confidence of every frame."""
    from sarm_ray.config.serve import load_serve_config

    config = load_serve_config(config_file, {key: value for key, value in flags.items() if value is not None})
    from sarm_ray.pipelines.serve import serve as run

    run(config, quiet)
