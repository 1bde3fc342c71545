"""A VLM of transformers' as annotator: any Qwen3-VL, dense or mixture of experts, on the GPUs of this process.

LeRobot's tool loads the mixture-of-experts class alone, lets the processor resample the video under a clock of 24 frames per
second, and so shows it one frame in twelve seconds. Here the processor gets exactly the frames that were chosen, with their
own numbers and the dataset's frame rate, from which it tells the model their times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sarm_ray.errors import AnnotatorError, NoAnswerError
from sarm_ray.model.annotator import MAX_ANSWER_TOKENS, MarkedFrames, Message, Reply

EXTRA = "pip install 'sarm-ray[vlm]'"


@dataclass(frozen=True)
class LocalVlm:
    """What to load.

    Args:
        name: as given. folder: its files on this machine, or None: the Hub's, fetched by each actor's machine.
        device: `cuda` or `cpu`. bf16: whether it runs in bfloat16.
        num_gpus: of an actor, over which the model is spread.
    """

    name: str
    folder: str | None
    device: str
    bf16: bool
    num_gpus: int


def check_vlm(vlm: LocalVlm) -> None:
    """Find out before any work whether a model is one that answers questions about videos, and what it needs is installed.

    Raises:
        AnnotatorError: it is not, or something is missing.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    from transformers.utils import is_torchvision_available

    try:
        config = AutoConfig.from_pretrained(vlm.folder or vlm.name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AnnotatorError(f"{vlm.name}: its config cannot be read: {_first_line(error)}") from error
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise AnnotatorError(
            f"{vlm.name} is a {config.model_type}, which answers no questions about videos; take a Qwen3-VL"
        )
    if not is_torchvision_available():
        raise AnnotatorError(f"{vlm.name} needs torchvision, which is not installed; {EXTRA}, or --engine openai")


class TransformersAnnotator:
    """A processor and a model; greedy decoding, so that the same question gets the same answer."""

    def __init__(self, vlm: LocalVlm):
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            source = vlm.folder or vlm.name
            spread = {"device_map": "auto"} if vlm.num_gpus > 1 else {}
            self.processor: Any = AutoProcessor.from_pretrained(source, trust_remote_code=False)
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                source,
                dtype=torch.bfloat16 if vlm.bf16 else torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                **spread,
            )
            self.model: Any = (loaded if spread else loaded.to(vlm.device)).eval()
        except ImportError as error:
            raise AnnotatorError(f"{vlm.name} needs more packages ({_first_line(error)}); {EXTRA}") from error
        except torch.OutOfMemoryError as error:
            raise AnnotatorError(
                f"{vlm.name} does not fit; spread it with --gpus-per-worker, or take a smaller one"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise AnnotatorError(f"{vlm.name} cannot be loaded: {_first_line(error)}") from error

    def reply(self, messages: Sequence[Message], frames: MarkedFrames, schema: dict) -> Reply:
        inputs = self.prepare(messages, frames).to(self.model.device)
        num_prompt_tokens = inputs["input_ids"].shape[1]
        # greedy whatever the checkpoint's generation_config says, whose sampling settings would be warned of
        settings = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        try:
            with torch.inference_mode():
                output = self.model.generate(**inputs, max_new_tokens=MAX_ANSWER_TOKENS, **settings)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            less = "show less with --max-frames or --max-pixels, or spread the model with --gpus-per-worker"
            raise NoAnswerError(f"{num_prompt_tokens:,} tokens do not fit into the GPU's memory; {less}") from None
        answer = output[0, num_prompt_tokens:]
        (text,) = self.processor.batch_decode(answer[None], skip_special_tokens=True)
        return Reply(text, num_prompt_tokens, len(answer), len(answer) >= MAX_ANSWER_TOKENS)

    def prepare(self, messages: Sequence[Message], frames: MarkedFrames) -> Any:
        """The processor's tensors: tokens, pixels, and the grid of each video.

        The frames are given as they are: no frame is dropped, none is resized, and times come from their true numbers.
        """
        from transformers.video_utils import VideoMetadata

        turns = [{"role": each.role, "content": [{"type": "text", "text": each.text}]} for each in messages]
        first = next(turn for turn in turns if turn["role"] == "user")
        first["content"] = [{"type": "video"}, *first["content"]]
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        height, width = frames.images.shape[1:3]
        metadata = VideoMetadata(
            total_num_frames=frames.length,
            fps=frames.fps,
            frames_indices=frames.frames.tolist(),
            height=height,
            width=width,
            duration=frames.length / frames.fps,
        )
        return self.processor(
            text=[text],
            videos=[frames.images],
            video_metadata=[metadata],
            do_sample_frames=False,
            do_resize=False,
            return_tensors="pt",
        )


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
