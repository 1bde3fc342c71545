"""`sarm-ray inspect`."""

import click


@click.command("inspect")
@click.argument("dataset")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--revision", metavar="REV", help="Revision of a Hub dataset.")
@click.option(
    "--sample", type=click.IntRange(min=0), default=20, show_default=True, help="Episodes whose files are opened."
)
@click.pass_context
def inspect(ctx: click.Context, dataset: str, as_json: bool, revision: str | None, sample: int) -> None:
    """Look DATASET over before training: facts, and a verdict on every point. Exits with 1 when something is bad."""
    import json
    import shutil

    from sarm_ray.data.inspection.inspect import inspect_dataset
    from sarm_ray.report.inspection import describe_inspection, inspection_object

    result = inspect_dataset(dataset, revision, sample)
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 80), 120)
    click.echo(json.dumps(inspection_object(result)) if as_json else describe_inspection(result, width))
    if result.num_bad:
        ctx.exit(1)
