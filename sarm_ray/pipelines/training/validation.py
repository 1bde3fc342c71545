"""Held-out episodes, clean: windows made once before training, looked at every eval_freq steps, on every process a share.

Beside the model stand two baselines that need no training: the best constant, and a linear probe from one frame.
"""

from dataclasses import dataclass

import numpy as np
import torch

from sarm_ray.core.probe import fit_probe
from sarm_ray.core.progress import normalize_progress, stage_breakpoints
from sarm_ray.model.inference import infer_readout
from sarm_ray.model.sarm import Sarm
from sarm_ray.pipelines.training.data import Samples, TrainJob, clean_samples, gather, load_frames

WINDOWS_PER_PASS = 64
PROBE_FRAMES = 4096


@dataclass(frozen=True)
class HeldOut:
    """Windows of held-out frames, B of them.

    Args:
        views: `offline` and `live` -> arrays as `gather` names them; live windows have their future cut at the frame.
        progress: head -> (B,) float32, true progress of the frame.
        weights: head -> (B,) float32, whether it has one.
        readout: slot of the frame in its window.
        baselines: head -> progress MSE of the best constant and of the linear probe.
    """

    views: dict[str, dict[str, np.ndarray]]
    progress: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    readout: int
    baselines: dict[str, dict[str, float]]


def hold_out(job: TrainJob, chunks: np.ndarray, max_frames: int) -> HeldOut:
    """Windows around frames spread evenly over the held-out chunks.

    Args:
        job: of the run.
        chunks: (V, 2) int64, dataset and chunk, of the held-out episodes; at least one.
        max_frames: the most windows.
    """
    lengths = np.array([_chunk_length(job, *chunk) for chunk in chunks.tolist()])
    live = job.sources[0].window.kind == "centered"
    chosen, offset = _spread(lengths, max_frames)
    samples = {"offline": clean_samples(job, chunks[chosen], offset, live=False)}
    if live:
        samples["live"] = clean_samples(job, chunks[chosen], offset, live=True)
    frames = load_frames(job, np.unique(np.concatenate([each.frames.ravel() for each in samples.values()])))
    views = {name: gather(each, slice(None), frames) for name, each in samples.items()}
    readout = job.sources[0].window.readout_slot
    offline = views["offline"]
    progress = {head: true_progress(job, head, offline, readout) for head in job.labels}
    weights = {head: offline[f"weight_{head}"] for head in job.labels}
    probe = _probe_inputs(job)
    baselines = {
        head: _baselines(job, head, probe, offline, progress[head], weights[head] > 0, readout) for head in job.labels
    }
    return HeldOut(views, progress, weights, readout, baselines)


def true_progress(job: TrainJob, head: str, arrays: dict[str, np.ndarray], readout: int) -> np.ndarray:
    """Annotated progress of each window's frame: (B,) float32."""
    labels = job.labels[head]
    points = stage_breakpoints(len(labels.stages), labels.proportions.tolist())
    return normalize_progress(arrays[f"stage_{head}"][:, readout] + arrays[f"tau_{head}"][:, readout], points)


@torch.inference_mode()
def evaluate(
    sarm: Sarm, held_out: HeldOut, texts: torch.Tensor, breakpoints: dict[str, np.ndarray], rank: int, num_workers: int
) -> dict[str, float]:
    """Metrics over all held-out windows; collective, each process looks at its share.

    Args:
        sarm: in eval mode.
        held_out: the windows.
        texts: (M, E) text features on the model's device.
        breakpoints: head -> (K + 1,) float64.
        rank, num_workers: of this process.
    """
    own = slice(rank, None, num_workers)
    sums, names = [], []
    for view, arrays in held_out.views.items():
        outputs = _predict(
            sarm, {name: array[own] for name, array in arrays.items()}, texts, held_out.readout, list(breakpoints)
        )
        for head, (stage, tau) in outputs.items():
            weight = held_out.weights[head][own].astype(np.float64)
            error = normalize_progress(stage + tau, breakpoints[head]) - held_out.progress[head][own]
            true_stage = arrays[f"stage_{head}"][own, held_out.readout]
            tau_error = np.abs(tau - arrays[f"tau_{head}"][own, held_out.readout])
            values = {"progress_mse": error**2, "stage_accuracy": stage == true_stage, "tau_mae": tau_error}
            for name, value in values.items():
                sums.append([float((value * weight).sum()), float(weight.sum())])
                names.append(f"{view}_{head}_{name}")
    total = torch.tensor(sums, dtype=torch.float64, device=texts.device)
    torch.distributed.all_reduce(total)
    return {name: value / count for name, (value, count) in zip(names, total.tolist(), strict=True) if count}


def _predict(
    sarm: Sarm, arrays: dict[str, np.ndarray], texts: torch.Tensor, readout: int, heads: list[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Most probable stage (B,) and its tau (B,) of each head."""
    dtype, passes = texts.dtype, []
    for first in range(0, len(arrays["text"]), WINDOWS_PER_PASS):
        part = {name: array[first : first + WINDOWS_PER_PASS] for name, array in arrays.items()}
        vision, states = (torch.from_numpy(part[name]).to(texts.device, dtype) for name in ("vision", "states"))
        text = texts[torch.from_numpy(part["text"]).to(texts.device)]
        passes.append(infer_readout(sarm, vision, text, states, readout, heads))
    collected = {}
    for head in heads:
        parts = [torch.cat([each[head][place].float() for each in passes]) if passes else None for place in (0, 1)]
        if parts[0] is None or parts[1] is None:
            collected[head] = (np.zeros(0), np.zeros(0))
        else:
            collected[head] = (parts[0].argmax(1).cpu().numpy(), parts[1].cpu().numpy())
    return collected


def _chunk_length(job: TrainJob, number: int, chunk: int) -> int:
    chunks = job.sources[number].ingest.chunks
    return int(chunks.stop[chunk] - chunks.start[chunk])


def _spread(lengths: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` frames, evenly over all: chunk (B,) and frame inside it (B,)."""
    total = int(lengths.sum())
    places = np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(np.int64))
    ends = np.cumsum(lengths)
    chunk = np.searchsorted(ends, places, side="right")
    return chunk, places - (ends - lengths)[chunk]


def _probe_inputs(job: TrainJob) -> dict[str, np.ndarray]:
    chunk, offset = _spread(job.lengths, PROBE_FRAMES)
    samples = clean_samples(job, job.chunks[chunk], offset, live=True)
    readout = job.sources[0].window.readout_slot
    alone = Samples(
        samples.index, samples.frames[:, readout : readout + 1], samples.lengths, samples.text, samples.force,
        samples.perturbed, samples.weights,
    )  # fmt: skip
    return gather(alone, slice(None), load_frames(job, np.unique(alone.frames)))


def _baselines(
    job: TrainJob,
    head: str,
    probe: dict[str, np.ndarray],
    offline: dict[str, np.ndarray],
    truth: np.ndarray,
    counted: np.ndarray,
    readout: int,
) -> dict[str, float]:
    """Progress MSE on the held-out frames of the constant that is best there, and of ridge regression from one frame."""
    target = true_progress(job, head, probe, 0).astype(np.float64)
    usable = probe[f"weight_{head}"] > 0
    if not counted.any() or not usable.any():
        return {}
    fitted = fit_probe(probe["vision"][usable, 0], target[usable])
    predicted = fitted.predict(offline["vision"][counted, readout].astype(np.float64))
    return {
        "best_constant_mse": float(truth[counted].astype(np.float64).var()),
        "linear_probe_mse": float(((predicted - truth[counted]) ** 2).mean()),
    }
