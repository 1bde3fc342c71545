"""The Hub: a checkpoint and its model card, when asked."""

from pathlib import Path
from tempfile import TemporaryDirectory

from sarm_ray import __version__
from sarm_ray.config.train import TrainConfig
from sarm_ray.data.hub import upload_to_hub
from sarm_ray.errors import SarmRayError, name_list
from sarm_ray.pipelines.training.plan import TrainPlan
from sarm_ray.pipelines.training.report import TrainReport


def push_checkpoint(plan: TrainPlan, config: TrainConfig, report: TrainReport) -> str:
    """Upload the best checkpoint (the last one, where none was validated) with a model card; the commit's URL.

    Raises:
        SarmRayError: it was not pushed; the checkpoint is complete on disk.
    """
    assert config.push_to_hub is not None
    folder = Path(report.best or report.last).resolve()
    with TemporaryDirectory() as scratch:
        card = Path(scratch) / "README.md"
        card.write_text(model_card(plan, config, report))
        files = {path.name: str(path) for path in sorted(folder.iterdir()) if path.is_file()}
        try:
            return upload_to_hub(config.push_to_hub, "model", {**files, "README.md": str(card)}, "SARM by sarm-ray")
        except SarmRayError as error:
            again = "run the same command again with --resume to push it"
            raise type(error)(f"{folder} is complete, but {error}; {again}") from error


def model_card(plan: TrainPlan, config: TrainConfig, report: TrainReport) -> str:
    """Markdown: what the model is, what it was trained on, how well it does on held-out episodes, how to use it."""
    heads = "\n".join(f"- {head}: {', '.join(own.stages)}" for head, own in plan.labels.items())
    rows = [f"| {name.replace('_', ' ')} | {value:.5f} |" for name, value in report.best_figures.items()]
    rows += [
        f"| {head} {name.replace('_', ' ')} | {value:.5f} |"
        for head, own in report.baselines.items()
        for name, value in own.items()
    ]
    title = f"| held-out episodes, clean, step {report.best_validation.get('step', 0):,} | |"
    figures = "\n".join([title, "|---|---|", *rows]) if rows else "No episodes were held out."
    data = ", ".join(source.ingest.dataset.name for source in plan.sources)
    cameras = ", ".join(plan.sidecar().image_keys)
    model = plan.config
    strange = report.strange_to_lerobot
    alone = f"\nFor sarm_ray alone: LeRobot knows nothing of {name_list(strange)}.\n" if strange else ""
    return f"""---
tags: [robotics, reward-model, sarm{"" if strange else ", lerobot"}]
library_name: sarm_ray
---

# SARM reward model

Stage-aware progress of robot video, trained by sarm_ray {__version__} ({config.annotation_mode}) on {data}.
{alone}
{heads}

- {"cameras" if plan.num_cameras > 1 else "camera"} {cameras}, state {config.state_key}, encoder {plan.encoder.name} (frozen)
- {plan.sources[0].window.kind} window, {model.n_obs_steps + 1} frames {model.frame_gap} apart at {plan.fps:g} fps
- {report.steps:,} steps of {config.batch_size} samples, {report.num_episodes} episodes, {report.num_held_out} held out

{figures}

Score a dataset with `sarm-ray score DATASET --model {config.push_to_hub}`.
"""
