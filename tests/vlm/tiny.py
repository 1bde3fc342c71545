"""A Qwen3-VL of two small random layers with the real processor classes: only its config is made up, nothing is downloaded.

Its tokenizer knows bytes, and what it says is nonsense, which is what the failure path is for.
"""

import os
import sys
from pathlib import Path

import pytest

WITHOUT_CUDA = Path(__file__).parent / "torchvision_without_cuda"
TORCHVISION = Path(sys.prefix) / "torchvision"  # where `make venv` puts it
SPECIAL = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% for part in turn.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

needs_torchvision = pytest.mark.skipif(
    not TORCHVISION.exists(), reason=f"needs torchvision in {TORCHVISION}: make venv"
)


def vlm_environment() -> dict[str, str]:
    """Of a process that can use the processors: torchvision, which this environment's own torch does not fit."""
    root = Path(__file__).parents[2]
    paths = [str(WITHOUT_CUDA), str(TORCHVISION), str(root), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}


def write_tiny_vlm(folder: Path, curt: bool = False) -> None:
    """Make one, in a process with `vlm_environment`; a curt one ends its answers at every other byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    by_byte = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    by_byte.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    by_byte.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=by_byte, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    number = {token: tokenizer.convert_tokens_to_ids(token) for token in [*SPECIAL, "<|im_end|>", "<|endoftext|>"]}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 65536,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0},
        "eos_token_id": number["<|im_end|>"], "pad_token_id": number["<|endoftext|>"],
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    tokens = {f"{name}_token_id": number[f"<|{name}_pad|>"] for name in ("image", "video")}
    tokens |= {f"vision_{side}_token_id": number[f"<|vision_{side}|>"] for side in ("start", "end")}
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **tokens))
    if curt:
        model.generation_config.eos_token_id = list(range(0, len(tokenizer), 2))
    model.save_pretrained(folder)
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, merge_size=2),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)


if __name__ == "__main__":
    write_tiny_vlm(Path(sys.argv[1]), curt="curt" in sys.argv[2:])
