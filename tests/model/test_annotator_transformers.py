"""A real Qwen3-VL, tiny and random: what its real processor receives, and what becomes of its nonsense."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.vlm.tiny import needs_torchvision, vlm_environment

pytestmark = needs_torchvision

LEVELS = (10, 60, 110, 160, 210)


def run(*arguments: object) -> str:
    """A module of tests.vlm in a process that has torchvision."""
    command = [sys.executable, "-m", *map(str, arguments)]
    result = subprocess.run(command, env=vlm_environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def probed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("vlm")
    run("tests.vlm.tiny", folder / "model")
    images = np.stack([np.full((64, 96, 3), level, dtype=np.uint8) for level in LEVELS])
    np.savez(folder / "frames.npz", images=images, frames=np.array([0, 10, 20, 30, 38]), fps=10.0, length=39)
    return json.loads(run("tests.vlm.probe", folder / "model", folder / "frames.npz").splitlines()[-1])


def test_every_frame_arrives_as_it_is_and_in_its_place(probed):
    """Five frames of 64 x 96 are three pairs (the last is doubled) of 4 x 6 patches, none resampled, none resized."""
    assert probed["grid"] == [[3, 4, 6]]
    assert probed["pixels"] == [3 * 4 * 6, 3 * 2 * 16 * 16]
    pairs = [(10 + 60) / 2, (110 + 160) / 2, 210]
    assert probed["levels"] == pytest.approx([level / 255 * 2 - 1 for level in pairs], abs=1e-5)


def test_the_model_is_told_true_times(probed):
    """Of pairs: LeRobot's tool tells frame / 24 s, whatever the dataset's frame rate."""
    seen = "".join(f"<{time} seconds><|vision_start|>{'<|video_pad|>' * 6}<|vision_end|>" for time in (0.5, 2.5, 3.8))
    start = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    assert probed["words"] == f"{start}{seen}<|vision_end|>U<|im_end|>\n<|im_start|>assistant\n"


def test_nonsense_is_asked_about_again_and_given_up(probed):
    assert probed["subtasks"] is None
    assert probed["error"] == "the answer was cut off after 2048 tokens; give the JSON alone"
    first, second, third = probed["attempts"]
    assert [attempt["num_answer_tokens"] for attempt in (first, second, third)] == [12, 12, 12]
    assert first["answer"]
    assert second["num_prompt_tokens"] > first["num_prompt_tokens"] + 50  # its own answer, and what was wrong with it
    assert third["num_prompt_tokens"] > second["num_prompt_tokens"] + 50
