"""What a tiny Qwen3-VL receives and answers, as JSON: `python -m tests.vlm.probe MODEL FRAMES.npz`."""

import json
import sys

import numpy as np

from sarm_ray.core.questions import Question, describe_episode
from sarm_ray.core.subtasks import SubtaskRules
from sarm_ray.model import annotator
from sarm_ray.model.annotator import MarkedFrames, Message, ask
from sarm_ray.model.annotator_transformers import LocalVlm, TransformersAnnotator

LABELS = ("reach", "grasp")


def main(model: str, file: str) -> None:
    given = np.load(file)
    frames = MarkedFrames(given["images"], given["frames"], float(given["fps"]), int(given["length"]))
    engine = TransformersAnnotator(LocalVlm(model, model, "cpu", bf16=False, num_gpus=0))
    inputs = engine.prepare([Message("system", "S"), Message("user", "U")], frames)
    pixels = inputs["pixel_values_videos"]
    annotator.MAX_ANSWER_TOKENS = 12
    sys.modules["sarm_ray.model.annotator_transformers"].MAX_ANSWER_TOKENS = 12
    question = Question("toy", "sparse", LABELS, model, ("top",), 1.0, 128, 150_000, False, False)
    rules = SubtaskRules(LABELS, frames.fps, frames.length, 1.0)
    described = describe_episode("toy", 3, "push it", rules.duration_s, frames.times_s)
    outcome = ask(engine, question, rules, described, frames)
    words = engine.processor.tokenizer.decode(inputs["input_ids"][0])
    sys.stdout.write(
        json.dumps(
            {
                "words": words,
                "grid": inputs["video_grid_thw"].tolist(),
                "pixels": list(pixels.shape),
                "levels": [float(each.mean()) for each in pixels.chunk(int(inputs["video_grid_thw"][0, 0]))],
                "subtasks": outcome.subtasks,
                "error": outcome.error,
                "attempts": [attempt._asdict() for attempt in outcome.attempts],
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
