"""An OpenAI-compatible endpoint as annotator: OpenAI itself, vLLM, a Ray Serve LLM application.

Retries with back-off, Retry-After and timeouts are the client library's. The key comes from the driver's environment and is
neither logged nor written anywhere; an endpoint's own words are cleared of it.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import openai
from PIL import Image

from sarm_ray.core.subtasks import clock
from sarm_ray.errors import AnnotatorError, NoAnswerError
from sarm_ray.model.annotator import MAX_ANSWER_TOKENS, MarkedFrames, Message, Reply

JPEG_QUALITY = 90
MAX_RETRIES = 4
SHOWN_CHARS = 300


@dataclass(frozen=True)
class Endpoint:
    """Where to ask.

    Args:
        url: ends before `/chat/completions`. model: its name there.
        timeout_s: of one answer.
        key: of the endpoint, never shown; "" where it wants none.
    """

    url: str
    model: str
    timeout_s: float
    key: str = field(repr=False)

    def clear(self, text: object) -> str:
        """An endpoint's words in one line, without the key."""
        words = str(text).replace(self.key, "***") if self.key else str(text)
        return " ".join(words.split())[:SHOWN_CHARS]


def check_endpoint(endpoint: Endpoint) -> None:
    """Find out before any work whether the endpoint answers and lets us in. One without a list of models is believed.

    Raises:
        AnnotatorError: nobody answers, the key is refused, or it does not have the model.
    """
    try:
        listed = [model.id for model in _client(endpoint).models.list()]
    except (openai.NotFoundError, openai.BadRequestError):
        return
    except openai.OpenAIError as error:
        raise _as_ours(endpoint, error, AnnotatorError) from None
    if listed and endpoint.model not in listed:
        shown = ", ".join(listed[:8])
        raise AnnotatorError(f"{endpoint.url} has no model {endpoint.model!r}; it has {endpoint.clear(shown)}")


class OpenAIAnnotator:
    """Frames go as JPEG, each behind its time in words; the answer is held to a schema where the endpoint knows that."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint, self.client = endpoint, _client(endpoint)
        self.knows_schemas = True

    def reply(self, messages: Sequence[Message], frames: MarkedFrames, schema: dict) -> Reply:
        try:
            answer = self._ask(_turns(messages, frames), schema)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise _as_ours(self.endpoint, error, AnnotatorError) from None
        except openai.OpenAIError as error:
            raise _as_ours(self.endpoint, error, NoAnswerError) from None
        if not getattr(answer, "choices", None):
            raise NoAnswerError(f"{self.endpoint.url} gave no answer, but {self.endpoint.clear(answer)}")
        choice, usage = answer.choices[0], answer.usage
        if choice.message.refusal or choice.finish_reason == "content_filter":
            raise NoAnswerError(f"refused: {self.endpoint.clear(choice.message.refusal or 'content filter')}")
        asked, answered = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Reply(choice.message.content or "", asked, answered, choice.finish_reason == "length")

    def _ask(self, turns: list[dict], schema: dict) -> Any:
        held: dict[str, Any] = {}
        if self.knows_schemas:
            described = {"name": "subtasks", "strict": True, "schema": schema}
            held = {"response_format": {"type": "json_schema", "json_schema": described}}
        try:
            return self.client.chat.completions.create(
                model=self.endpoint.model,
                messages=turns,  # type: ignore[arg-type]
                temperature=0.0,
                max_tokens=MAX_ANSWER_TOKENS,
                **held,
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if not held or not any(word in str(error) for word in ("response_format", "json_schema", "schema")):
                raise
            self.knows_schemas = False
            return self._ask(turns, schema)


def _client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=endpoint.url, api_key=endpoint.key or "none", timeout=endpoint.timeout_s, max_retries=MAX_RETRIES
    )


def _turns(messages: Sequence[Message], frames: MarkedFrames) -> list[dict]:
    turns: list[dict] = [{"role": message.role, "content": message.text} for message in messages]
    first = next(turn for turn in turns if turn["role"] == "user")
    shown: list[dict] = []
    for image, seconds in zip(frames.images, frames.times_s, strict=True):
        shown.append({"type": "text", "text": clock(seconds)})
        shown.append({"type": "image_url", "image_url": {"url": _jpeg_url(image)}})
    first["content"] = [*shown, {"type": "text", "text": first["content"]}]
    return turns


def _jpeg_url(image: Any) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "jpeg", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _as_ours(endpoint: Endpoint, error: Exception, kind: type[AnnotatorError]) -> AnnotatorError:
    if isinstance(error, openai.APITimeoutError):
        return kind(f"{endpoint.url} did not answer within {endpoint.timeout_s:g} s, {MAX_RETRIES + 1} times")
    if isinstance(error, openai.APIConnectionError):
        return kind(f"{endpoint.url} does not answer ({endpoint.clear(error.__cause__ or error)})")
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return kind(f"{endpoint.url} does not let us in; set OPENAI_API_KEY to its key ({endpoint.clear(error)})")
    return kind(f"{endpoint.url}: {endpoint.clear(error)}")
