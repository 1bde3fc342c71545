"""Live rollouts for tests: curves that are made up, and thumbnails that tell their number."""

import io

import numpy as np
from PIL import Image

from sarm_ray.data.rollouts import HeadCurve, Rollout
from tests.datasets import draw_frame

STAGES = {"sparse": ("reach", "grasp", "lift"), "dense": ("near", "over", "down", "close", "up")}


def make_curve(progress: np.ndarray, stages: tuple[str, ...]) -> HeadCurve:
    """Stages go with progress."""
    known = np.isfinite(progress)
    stage = np.minimum(np.where(known, progress, 0) * len(stages), len(stages) - 1).astype(np.int32)
    confidence = np.where(known, 0.9, np.nan).astype(np.float32)
    return HeadCurve(stages, progress.astype(np.float32), np.where(known, stage, -1).astype(np.int32), confidence)


def make_rollout(session: str, started_s: float, *, num_frames: int = 10, stride: int = 3, heads=("sparse",), **fields):
    """A rollout whose progress rises to 0.9.

    Args:
        num_frames: that are scored. stride: frames from one to the next.
        heads: that it has.
        fields: of the Rollout; `progress` (num_frames,) is that of all heads.
    """
    fps = fields.setdefault("fps", 30.0)
    progress = fields.pop("progress", np.linspace(0.0, 0.9, num_frames))
    frames = fields.pop("frame_index", np.arange(len(progress), dtype=np.int64) * stride)
    made = {
        "task": "pick up the bottle",
        "model": "models/bottle",
        "encoder": "efficientnet-lite0",
        "heads": {head: make_curve(progress, STAGES[head]) for head in heads},
        "time_s": frames / fps,
        "frame_index": frames,
        "ended": "closed",
        "num_received": len(frames) * stride,
        "num_scored": len(frames),
        "num_skipped": len(frames) * (stride - 1),
    }
    return Rollout(session=session, started_s=started_s, **(made | fields))


def draw_jpeg(number: int, size: tuple[int, int] = (96, 128)) -> bytes:
    """A JPEG that shows a number of 16 bits (`tests.datasets.read_number`)."""
    buffer = io.BytesIO()
    Image.fromarray(draw_frame(number, *size)).save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()


def make_thumbnails(number: int, times: np.ndarray) -> tuple[tuple[float, bytes], ...]:
    """Pictures of the numbers `number`, `number` + 1, ... at these times."""
    return tuple((float(moment), draw_jpeg(number + place)) for place, moment in enumerate(times))
