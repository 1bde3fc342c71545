"""CLIP as LeRobot runs it: resize, crop, normalisation, tokens and both towers."""

from pathlib import Path

import numpy as np
import pytest

from sarm_ray.data.resizing import resize_and_crop
from sarm_ray.data.video import FrameRequest, read_frames
from sarm_ray.model.encoder import (
    CLIP_MEAN,
    CLIP_STD,
    EncoderInfo,
    describe_encoder,
    encode_texts,
    load_image_encoder,
)

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("no_network")]
CAMERA = "observation.images.base"


@pytest.fixture(scope="module")
def info(fixtures) -> EncoderInfo:
    return describe_encoder("clip_tiny", str(fixtures / "clip_tiny"))


@pytest.fixture(scope="module")
def encode(info):
    return load_image_encoder(info, "fp32", "cpu")


@pytest.fixture(scope="module")
def expected(fixtures) -> dict[str, np.ndarray]:
    return dict(np.load(fixtures / "expected" / "clip_preproc.npz"))


@pytest.fixture(scope="module")
def frame_features(fixtures) -> dict[str, np.ndarray]:
    return dict(np.load(fixtures / "expected" / "clip_features.npz"))


def test_description(info):
    assert (info.image_size, info.image_dim, info.text_dim, info.bf16) == (224, 512, 512, True)
    assert info.weights == "2516d88d642b6f05e8fdc83370d5e04e5158b4ac89787ef614966d9e1c66620e"


@pytest.mark.parametrize("prefix", ["", "odd_"])
def test_pixels_and_features(encode, expected, prefix):
    images = expected["images"] if not prefix else expected["odd_image"][None]
    small = np.stack([resize_and_crop(image, 224) for image in images])
    pixels = (small.astype(np.float32) / 255 - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(pixels.transpose(0, 3, 1, 2), expected[f"{prefix}pixel_values"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(encode(small), expected[f"{prefix}features"], rtol=0, atol=1e-4)


def test_token_ids(info, expected):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(info.folder)
    for text, ids in zip(expected["texts"].tolist(), expected["input_ids"], strict=True):
        tokens = tokenizer([text], padding=True, truncation=True, max_length=77)["input_ids"][0]
        assert tokens == ids[ids != -1].tolist(), text


def test_text_features(info, expected):
    texts = expected["texts"].tolist()
    assert max(map(len, texts)) > 300  # one is cut at 77 tokens
    features = encode_texts(info, texts)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected["text_features"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(encode_texts(info, texts[2:3])[0], features[2])


def test_long_text_without_a_tokenizer_config(info, expected, tmp_path):
    """The limit of 77 tokens is the model's, whether or not the tokenizer's files repeat it."""
    for path in Path(info.folder).iterdir():
        if path.name != "tokenizer_config.json":
            (tmp_path / path.name).symlink_to(path)
    longest = int(np.argmax([len(text) for text in expected["texts"]]))
    features = encode_texts(describe_encoder("m", str(tmp_path)), [expected["texts"][longest].item()])
    np.testing.assert_allclose(features[0], expected["text_features"][longest], rtol=0, atol=1e-4)


def test_task_features(info, frame_features):
    features = encode_texts(info, frame_features["tasks"].tolist())
    np.testing.assert_allclose(features, frame_features["text_features"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("row", "frames"), [(0, [0, 1, 150, 299]), (3, [57, 399]), (5, [0, 344])])
def test_features_of_decoded_frames(dataset, encode, frame_features, row, frames):
    files = dataset.camera_files(CAMERA)
    request = FrameRequest(row, float(files.from_timestamp[row]), np.array(frames))
    (images,) = read_frames(dataset.location(files.path(row)), [request], dataset.fps, 224)
    assert isinstance(images, np.ndarray), images
    wanted = frame_features["features"][dataset.from_index[row] + np.array(frames)]
    np.testing.assert_allclose(encode(images), wanted, rtol=0, atol=1e-4)
