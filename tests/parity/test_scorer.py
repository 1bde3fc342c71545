"""Progress, stage probabilities and tau as LeRobot's scoring script and SARM compute them."""

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sarm_ray.core.progress import interpolate_progress
from sarm_ray.core.windows import Window, computed_frames, needed_frames
from sarm_ray.data.video import FrameRequest, read_frames
from sarm_ray.model.checkpoint import load_model, open_checkpoint
from sarm_ray.model.encoder import describe_encoder, encode_texts, load_image_encoder
from sarm_ray.model.scorer import Scorer

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("no_network")]
HEADS = ("sparse", "dense")
CAMERA = "observation.images.base"


@pytest.fixture(scope="module")
def expected_progress(fixtures) -> dict[str, np.ndarray]:
    table = pq.read_table(fixtures / "expected" / "progress_both.parquet")
    return {name: table[name].to_numpy() for name in table.column_names}


def lerobot_margins(checkpoint, episode, head: str) -> np.ndarray:
    """The smallest lead of the most probable stage over slots 0..4 of each window, from the full forward: (B,)."""
    vision, state = (torch.from_numpy(episode[name])[episode["slots_BT"]] for name in ("features_FD", "states_FS"))
    text = torch.from_numpy(episode["text_E"])[None].expand(len(vision), -1)
    with torch.inference_mode():
        best = load_model(checkpoint).stage_model(vision, text, state, [head])[head][:, :5].softmax(-1).topk(2).values
    return (best[..., 0] - best[..., 1]).amin(1).numpy()


def test_progress_of_every_frame(tiny_checkpoint, dataset, episode_inputs, expected_progress):
    scorer = Scorer(tiny_checkpoint, HEADS, 4, "fp32", "cpu")
    for row, length in enumerate(dataset.length):
        scores = scorer.score(**episode_inputs(row, np.arange(length)))
        for head in HEADS:
            expected = expected_progress[f"progress_{head}"][expected_progress["episode_index"] == row]
            assert len(expected) == length
            np.testing.assert_allclose(scores[head].progress, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("row", [0, 4])
@pytest.mark.parametrize("heads", [("sparse",), ("dense",), HEADS], ids=",".join)
def test_stage_probabilities_and_tau(fixtures, tiny_checkpoint, dataset, episode_inputs, row, heads):
    expected = np.load(fixtures / "expected" / "stage_probs.npz")
    frames = np.arange(dataset.length[row])
    np.testing.assert_array_equal(expected[f"ep{row}_index"], dataset.from_index[row] + frames)
    scores = Scorer(tiny_checkpoint, heads, 4, "fp32", "cpu").score(**episode_inputs(row, frames))
    for head in heads:
        for name, ours in (("stage_probs", "probabilities"), ("tau", "tau"), ("progress", "progress")):
            np.testing.assert_allclose(
                getattr(scores[head], ours), expected[f"ep{row}_{name}_{head}"], rtol=0, atol=1e-5
            )


def test_near_ties_are_the_ones_on_record(fixtures, tiny_checkpoint, dataset, episode_inputs):
    with (fixtures / "expected" / "near_ties.csv").open() as stream:
        recorded = {(line["head"], int(line["index"])) for line in csv.DictReader(stream)}
    found = set()
    scorer = Scorer(tiny_checkpoint, HEADS, 4, "fp32", "cpu")
    for row, length in enumerate(dataset.length):
        for head, scores in scorer.score(**episode_inputs(row, np.arange(length))).items():
            best = np.sort(scores.probabilities, axis=1)[:, -2:]
            ties = np.flatnonzero(best[:, 1] - best[:, 0] < 1e-3)
            found |= {(head, int(dataset.from_index[row] + frame)) for frame in ties}
    assert found == recorded


@pytest.mark.parametrize("row", [0, 1])
def test_stride_7_interpolates_between_computed_frames(fixtures, tiny_checkpoint, dataset, episode_inputs, row):
    table = pq.read_table(fixtures / "expected" / "interp_stride7.parquet", filters=[("episode_index", "=", row)])
    length = int(dataset.length[row])
    frames = computed_frames(length, 7)
    scores = Scorer(tiny_checkpoint, HEADS, 4, "fp32", "cpu").score(**episode_inputs(row, frames))
    for head in HEADS:
        progress = interpolate_progress(frames, scores[head].progress, length)
        np.testing.assert_allclose(progress, table[f"progress_{head}"], rtol=0, atol=1e-6)


def test_checkpoint_of_lerobot_train_with_its_own_statistics(fixtures, dataset, episode_inputs):
    checkpoint = open_checkpoint("m", str(fixtures / "lerobot_train_checkpoint"))
    table = pq.read_table(fixtures / "expected" / "progress_train_checkpoint_stride10_ep0.parquet")
    length = int(dataset.length[0])
    frames = computed_frames(length, 10)
    episode = episode_inputs(0, frames, checkpoint.normalizer)
    scores = Scorer(checkpoint, HEADS, 4, "fp32", "cpu").score(**episode)
    for head in HEADS:
        progress = interpolate_progress(frames, scores[head].progress, length)
        np.testing.assert_allclose(progress, table[f"progress_{head}"], rtol=0, atol=1e-5)


def test_bf16_where_stages_are_clear(tiny_checkpoint, dataset, episode_inputs, expected_progress):
    """ours.md A: the same stage, and progress within 5e-3, wherever every slot 0..4 leads by more than 0.02."""
    exact, rough = (Scorer(tiny_checkpoint, HEADS, 4, precision, "cpu") for precision in ("fp32", "bf16"))
    num_clear = dict.fromkeys(HEADS, 0)
    for row, length in enumerate(dataset.length):
        episode = episode_inputs(row, np.arange(length))
        expected, scores = exact.score(**episode), rough.score(**episode)
        for head in HEADS:
            clear = lerobot_margins(tiny_checkpoint, episode, head) > 0.02
            num_clear[head] += int(clear.sum())
            stages = [each[head].probabilities.argmax(1)[clear] for each in (expected, scores)]
            np.testing.assert_array_equal(stages[1], stages[0])
            recorded = expected_progress[f"progress_{head}"][expected_progress["episode_index"] == row]
            np.testing.assert_allclose(scores[head].progress[clear], recorded[clear], rtol=0, atol=5e-3)
    assert min(num_clear.values()) > 1000


def test_end_to_end_from_the_video(fixtures, tiny_checkpoint, dataset, episode_inputs, expected_progress):
    """Our decoder, resize, CLIP, texts and scorer, for every 30th frame of an episode inside the shared mp4."""
    row, length = 4, int(dataset.length[4])
    frames = computed_frames(length, 30)
    needed = np.flatnonzero(needed_frames(length, 30, Window(8, 30)))
    files = dataset.camera_files(CAMERA)
    request = FrameRequest(row, float(files.from_timestamp[row]), needed)
    (images,) = read_frames(dataset.location(files.path(row)), [request], dataset.fps, 224)
    assert isinstance(images, np.ndarray)
    info = describe_encoder("clip_tiny", str(fixtures / "clip_tiny"))
    episode = episode_inputs(row, frames)
    features = np.full_like(episode["features_FD"], np.nan)
    features[needed] = load_image_encoder(info, "fp32", "cpu")(images)
    text = encode_texts(info, [dataset.tasks[row][0]])[0]
    scores = Scorer(tiny_checkpoint, HEADS, 4, "fp32", "cpu").score(
        **{**episode, "features_FD": features, "text_E": text}
    )
    for head in HEADS:
        clear = lerobot_margins(tiny_checkpoint, episode, head) > 1e-3
        expected = expected_progress[f"progress_{head}"][dataset.from_index[row] + frames]
        assert clear.sum() >= 10
        np.testing.assert_allclose(scores[head].progress[clear], expected[clear], rtol=0, atol=1e-3)
