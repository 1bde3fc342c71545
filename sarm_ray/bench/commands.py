"""The `bench` group of the command line. Imports nothing heavy: a benchmark is loaded when it is run."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import click

EPILOG = (
    "Figures: frames_per_s counts the wall clock, frames_per_cpu_s the CPU time of all that works for them (compare this "
    "one on a shared machine), floor_ratio is the share of what the floor would reach, measured in the same call. "
    "Medians of the repeats, after a warm-up."
)


class Size(click.ParamType):
    """`HxW`, such as 480x640: multiples of 8 (codecs and the drawing), 64 at least."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        height, _, width = str(value).partition("x")
        if not (height.isdecimal() and width.isdecimal()) or int(height) % 8 or int(width) % 8:
            self.fail(f"{value!r} is not a height and a width in multiples of 8, like 480x640", param, ctx)
        if min(int(height), int(width)) < 64:
            self.fail(f"{value!r} is smaller than 64x64", param, ctx)
        return int(height), int(width)


@click.group(epilog=EPILOG)
def bench() -> None:
    """Measure this machine: what it does, and what its parts allow."""


def frames_option(default: int, least: int = 1) -> Callable:
    kind = click.IntRange(min=least)
    return click.option("--frames", "num_frames", type=kind, default=default, show_default=True, help="How many.")


def repeats_option(default: int) -> Callable:
    kind = click.IntRange(min=1)
    return click.option("--repeats", type=kind, default=default, show_default=True, help="Report the median of N.")


codec_option = click.option("--codec", type=click.Choice(["av1", "h264"]), default="av1", show_default=True)
size_option = click.option("--size", type=Size(), default="480x640", show_default=True, help="Of the video.")
gop_option = click.option(
    "--gop", type=click.IntRange(min=1), default=2, show_default=True, help="Frames from keyframe to keyframe."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@bench.command("decode", epilog=EPILOG)
@codec_option
@size_option
@gop_option
@frames_option(1024)
@click.option(
    "--every", type=click.IntRange(min=1), default=1, show_default=True, help="Want one frame in N of the video."
)
@repeats_option(3)
@json_option
def bench_decode(as_json: bool, **options: Any) -> None:
    """Decode and resize drawn video to 224x224 on one thread.

    The floor is PyAV alone, one thread: all of the file decoded, the wanted frames made full-size RGB, none resized. It
    skips nothing, so the ratio passes 1 where frames that are not wanted need not be decoded.
    """
    from sarm_ray.bench import decode

    _show(decode.bench_decode(**options), decode.describe, as_json)


@bench.command("encode", epilog=EPILOG)
@click.option(
    "--encoder", type=click.Choice(["clip", "efficientnet-lite0"]), default="clip", show_default=True,
    help="clip is ViT-B/32 of full size with random weights.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16"]), help="Default bf16; efficientnet-lite0 has fp32 alone."
)
@frames_option(128)
@repeats_option(3)
@json_option
def bench_encode(as_json: bool, **options: Any) -> None:
    """Encode images of 224x224 on one thread.

    The floor is the bare network, in the same precision on one thread, on 32 images that are floats already: no
    preprocessing and no passes of a fixed size.
    """
    from sarm_ray.bench import encode

    _show(encode.bench_encode(**options), encode.describe, as_json)


@bench.command("score", epilog=EPILOG)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="bf16", show_default=True)
@frames_option(4096, least=64)
@click.option("--episode-frames", type=click.IntRange(min=64), default=512, show_default=True, help="Of each episode.")
@codec_option
@size_option
@repeats_option(1)
@json_option
def bench_score(as_json: bool, **options: Any) -> None:
    """Score drawn video with full-size CLIP and SARM (random weights), both heads, stride 1.

    The whole of `sarm-ray score`: CPU time is that of every process of the run, Ray's included. The floor is what decode,
    CLIP and SARM take for a frame on one thread.
    """
    from sarm_ray.bench import score

    _show(score.bench_score(**options), score.describe, as_json)


@bench.command("plan", epilog=EPILOG)
@click.option("--episodes", "num_episodes", type=click.IntRange(min=1), default=100_000, show_default=True)
@click.option("--version", type=click.Choice(["v3.0", "v2.1"]), default="v3.0", show_default=True, help="Of LeRobot.")
@click.option("--frames-per-episode", type=click.IntRange(min=1), default=300, show_default=True, help="The mean.")
@click.option("--stored", is_flag=True, help="All features are in the store already: its whole index is read.")
@repeats_option(3)
@json_option
def bench_plan(as_json: bool, **options: Any) -> None:
    """Plan a scoring of very many episodes: all that the driver does before anything runs.

    Planned frames are counted. Memory is that of a process of its own, which plans once. The floor is pyarrow reading the
    bare episode table. There is no arithmetic, so `precision` is null.
    """
    from sarm_ray.bench import plan

    _show(plan.bench_plan(**options), plan.describe, as_json)


@bench.command("merge", epilog=EPILOG)
@click.option("--episodes", "num_episodes", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--frames-per-episode", type=click.IntRange(min=1), default=1000, show_default=True, help="The mean.")
@click.option(
    "--chunks-per-part", type=click.IntRange(min=1), default=32, show_default=True,
    help="Scored chunks of a part: 32 is what GPUs commit at once, 1 what CPUs do.",
)  # fmt: skip
@json_option
def bench_merge(as_json: bool, **options: Any) -> None:
    """What the driver does around the scoring of very many episodes: a resume, and the end with its merge.

    Time and memory of each step, in processes of their own, each run once. The figures are those of the merge, its floor
    pyarrow writing as many rows from memory. There is no arithmetic, so `precision` is null.
    """
    from sarm_ray.bench import merge

    _show(merge.bench_merge(**options), merge.describe, as_json)


@bench.command("estimate")
@click.option(
    "--episodes", type=click.IntRange(min=1), multiple=True, default=(10_000, 100_000, 1_000_000), show_default=True,
    help="A row each.",
)  # fmt: skip
@click.option("--frames-per-episode", type=click.IntRange(min=1), default=1000, show_default=True, help="The mean.")
@click.option(
    "--measured", metavar="FILE", help="What `bench score --json` printed on your cores. Default: README's figures."
)
@click.option("--cores-per-node", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--nodes", "num_nodes", type=click.IntRange(min=1), multiple=True, default=(1, 10), show_default=True)
@click.option("--core-hour-usd", type=click.FloatRange(min=0), default=0.05, show_default=True, help="An assumption.")
@click.option("--gpu-hour-usd", type=click.FloatRange(min=0), default=3.0, show_default=True, help="An assumption.")
@click.option(
    "--gpu-frames-per-s", type=click.FloatRange(min=0, min_open=True),
    help="What one GPU of yours encodes and scores. No default: none was measured.",
)  # fmt: skip
@json_option
def bench_estimate(as_json: bool, measured: str | None, **options: Any) -> None:
    """Hours and cost of scoring datasets, from rates measured on one core. Nothing is run.

    Prices are assumptions, and so is that every core is busy all the time. The driver's own work is in `bench plan` and
    `bench merge`.
    """
    from sarm_ray.bench import estimate

    _show(estimate.estimate(rates=estimate.read_rates(measured), **options), estimate.describe, as_json)


@bench.command("train", epilog=EPILOG)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Samples of a step.")
@click.option("--steps", type=click.IntRange(min=2), default=8, show_default=True, help="The second half is measured.")
@click.option("--hidden-dim", type=click.IntRange(min=12), default=768, show_default=True, help="Width, 12 heads.")
@click.option("--num-layers", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--deepspeed-stage", type=click.IntRange(0, 3), help="Default 0 in fp32, 1 in bf16.")
@repeats_option(3)
@json_option
def bench_train(as_json: bool, **options: Any) -> None:
    """Train a single-stage SARM on random features, on one CPU process: the whole of `sarm-ray train`.

    Samples are counted. The floor is forward, backward and AdamW on one batch in memory, on one thread.
    """
    from sarm_ray.bench import train

    _show(train.bench_train(**options), train.describe, as_json)


@bench.command("weights", epilog=EPILOG)
@frames_option(10**7)
@repeats_option(3)
@json_option
def bench_weights(as_json: bool, **options: Any) -> None:
    """Weigh frames for RA-BC: the whole of `sarm-ray weights --output`, from a progress file to a file of weights.

    CPU time is that of a process of its own, its start included. The floor is pyarrow reading the columns that are needed
    and writing as many, in a process of its own too. There is next to no arithmetic, so `precision` is null.
    """
    from sarm_ray.bench import weights

    _show(weights.bench_weights(**options), weights.describe, as_json)


@bench.command("serve", epilog=EPILOG)
@click.option("--model", metavar="DIR_OR_ID", help="SARM checkpoint; default a small one with random weights.")
@click.option("--encoder", metavar="ID_OR_DIR", help="Default the checkpoint's, efficientnet-lite0 without one.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--num-replicas", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--hz", type=click.FloatRange(0.5, 100), default=10.0, show_default=True, help="Frames a second, each.")
@click.option("--sessions", type=click.IntRange(min=1), help="Count as the largest load; default: it is searched for.")
@click.option(
    "--duration-s", type=click.FloatRange(min=1), default=60.0, show_default=True, help="At 50% and at 200% of it."
)
@click.option("--trial-s", type=click.FloatRange(min=1), default=4.0, show_default=True, help="A step of the search.")
@click.option(
    "--memory-sessions", type=click.IntRange(min=0), default=300, show_default=True,
    help="Idle ones whose memory is measured; 0: none.",
)  # fmt: skip
@click.option("--hidden-dim", type=click.IntRange(min=12), default=96, show_default=True, help="Width, 12 heads.")
@click.option("--num-layers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--engine", is_flag=True, help="Without Ray Serve: engine and networks alone, 64, 256, 1024 sessions.")
@json_option
def bench_serve(as_json: bool, engine: bool, **options: Any) -> None:
    """Find the largest load that a live server carries on this machine, and run it at 50% and at 200% of that.

    Robots are a process of their own and send JPEGs of 224x224 over the real protocol. The floor is encode + score alone, in
    one process; the ping is that of an empty deployment behind the same proxy.
    """
    from sarm_ray.bench import live_report, serve

    setting = serve.Setting(**options)
    if engine:
        from sarm_ray.bench import live_engine

        _show(live_engine.bench_engine(setting), live_engine.describe, as_json)
    else:
        _show(serve.bench_serve(setting), live_report.describe, as_json)


def _show(result: Any, describe: Callable[[Any], str], as_json: bool) -> None:
    click.echo(json.dumps(dataclasses.asdict(result)) if as_json else describe(result))
