"""`sarm-ray bench train`: the whole of `train` at full size on random features, against bare computing.

The floor is forward, backward and AdamW on one batch that lies in memory, in this process on one thread; the run's own
figure counts the CPU time of its training process. What either does not see is the share of time spent waiting for data.
"""

import json
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from sarm_ray.bench import synthetic
from sarm_ray.bench.measure import Figures, describe_hardware, measure, one_torch_thread
from sarm_ray.config.train import ModelOptions, TrainConfig
from sarm_ray.core.episodes import frames_of
from sarm_ray.data.features import SCHEMA, write_part
from sarm_ray.model.training import make_optimizer, new_model, sarm_loss, trainable_parameters
from sarm_ray.pipelines.ingest_plan import IngestPlan
from sarm_ray.pipelines.runtime import connect
from sarm_ray.pipelines.train import train
from sarm_ray.pipelines.training.plan import TrainPlan, plan_training

LEROBOT_SAMPLES_PER_S = "0.1 to 0.37"
NUM_FRAMES, EPISODE_FRAMES = 2048, 512


@dataclass(frozen=True, kw_only=True)
class TrainBench(Figures):
    """What was measured; frames are samples. CPU time is that of the training process.

    Args:
        batch_size, steps, hidden_dim, num_layers, deepspeed_stage: of the run.
        data_wait: share of the training time without a batch.
        num_parameters: trained ones.
    """

    batch_size: int
    steps: int
    hidden_dim: int
    num_layers: int
    deepspeed_stage: int
    data_wait: float
    num_parameters: int


def bench_train(
    precision: str,
    batch_size: int,
    steps: int,
    hidden_dim: int,
    num_layers: int,
    deepspeed_stage: int | None,
    repeats: int,
) -> TrainBench:
    """Train a single-stage SARM on random features of CLIP's size; the first half of the steps is the warm-up.

    Args:
        precision: `fp32` or `bf16`.
        batch_size, steps, deepspeed_stage: of the run, on one CPU process.
        hidden_dim, num_layers: of the networks; the full size is 768 and 8.
        repeats: of the floor, whose median is taken.
    """
    with tempfile.TemporaryDirectory(prefix="sarm_bench_") as scratch:
        root = Path(scratch)
        synthetic.write_dataset(root / "dataset", NUM_FRAMES, EPISODE_FRAMES, (64, 64), "h264")
        synthetic.write_clip(root / "clip")
        config = TrainConfig(
            dataset=str(root / "dataset"),
            output_dir=str(root / "run"),
            encoder=str(root / "clip"),
            cache=str(root / "features"),
            steps=steps,
            batch_size=batch_size,
            num_workers=1,
            use_gpu=False,
            deepspeed_stage=deepspeed_stage,  # type: ignore[arg-type]
            precision=precision,  # type: ignore[arg-type]
            val_fraction=0.0,
            log_freq=max(steps // 2, 1),
            save_freq=steps,
            model=ModelOptions(hidden_dim=hidden_dim, num_layers=num_layers),
        )
        plan, last = _run(config)
    floor, num_parameters = _floor(plan, batch_size, precision, repeats)
    return TrainBench(
        batch_size=batch_size,
        steps=steps,
        hidden_dim=hidden_dim,
        num_layers=num_layers,
        deepspeed_stage=plan.deepspeed_stage,
        data_wait=last["data_wait"],
        num_parameters=num_parameters,
        precision=precision,
        frames_per_s=last["samples_per_s"],
        frames_per_cpu_s=last["samples_per_cpu_s"],
        floor_frames_per_cpu_s=floor,
        floor_ratio=last["samples_per_cpu_s"] / floor,
        repeats=repeats,
        hardware=describe_hardware(),
    )


def _run(config: TrainConfig) -> tuple[TrainPlan, dict[str, float]]:
    """Train on a store of random features: the plan, and the metrics of the second half of the steps."""
    with connect(None) as cluster:
        plan = plan_training(config, cluster)
        for source in plan.sources:
            fill_store(source.ingest)
        train(config, quiet=True)
    lines = (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()
    return plan, json.loads(lines[-1])


def fill_store(plan: IngestPlan) -> None:
    """Random features for every chunk: nothing is decoded."""
    rng = np.random.default_rng(0)
    rows = []
    for chunk, bitmap in enumerate(plan.needed):
        row, frames = int(plan.chunks.row[chunk]), frames_of(bitmap, 0)
        features = rng.standard_normal((len(frames), plan.store.feature_dim)).astype(plan.store.dtype)
        rows.append(
            {
                "episode_index": int(plan.dataset.episode_index[row]),
                "start": int(plan.chunks.start[chunk]),
                "frames": bitmap.tobytes(),
                "layout": int(plan.layout[row]),
                "source": int(plan.source[row]),
                "features": features.tobytes(),
            }
        )
    write_part(plan.store, pa.Table.from_pylist(rows, schema=SCHEMA), uuid.uuid4().hex)


def _floor(plan: TrainPlan, batch_size: int, precision: str, repeats: int) -> tuple[float, int]:
    """Samples per CPU-second of bare steps on one batch, and the number of trained parameters."""
    config = plan.config
    num_slots = config.n_obs_steps + 1 + config.max_rewind_steps
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, num_slots)
    batch = {
        "vision": torch.randn(*shape, config.image_dim, generator=generator),
        "text": torch.randn(batch_size, config.text_dim, generator=generator),
        "states": torch.randn(*shape, config.max_state_dim, generator=generator),
        "lengths": torch.full((batch_size,), num_slots),
        "force": torch.ones(batch_size, dtype=torch.bool),
        "stage_sparse": torch.zeros(shape, dtype=torch.int64),
        "tau_sparse": torch.rand(shape, generator=generator),
        "weight_sparse": torch.ones(batch_size),
    }
    sarm = new_model(config.shape, 0).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    trained = trainable_parameters(sarm, plan.heads)
    optimizer = make_optimizer(trained.values())
    counts = {"sparse": float(batch_size * num_slots)}

    def step() -> None:
        sarm_loss(sarm, batch, plan.heads, counts).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with one_torch_thread():
        timing = measure(repeats, step)[0]
    return batch_size / timing.cpu_s, sum(parameter.numel() for parameter in trained.values())


def describe(bench: TrainBench) -> str:
    return (
        f"{bench.precision}, batch {bench.batch_size}, width {bench.hidden_dim}, {bench.num_layers} layers "
        f"({bench.num_parameters / 1e6:.1f} M trained parameters), DeepSpeed stage {bench.deepspeed_stage}: "
        f"{bench.frames_per_cpu_s:.2f} samples per CPU-second, {bench.frames_per_s:.2f} samples/s, "
        f"{bench.data_wait:.1%} of the time waiting for data\n"
        f"  floor {bench.floor_frames_per_cpu_s:.2f} (bare steps on one resident batch): ratio {bench.floor_ratio:.2f}\n"
        f"  LeRobot {LEROBOT_SAMPLES_PER_S} samples/s at full size on two cores"
    )
