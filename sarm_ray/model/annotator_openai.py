"""An OpenAI-compatible endpoint as annotator: OpenAI itself, vLLM, a Ray Serve LLM application.

Retries with back-off, Retry-After and timeouts are the client library's. The key comes from the driver's environment and is
neither logged nor written anywhere; an endpoint's own words are cleared of it.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
from PIL import Image

from sarm_ray.core.subtasks import clock
from sarm_ray.errors import AnnotatorError, NoAnswerError
from sarm_ray.model.annotator import MAX_ANSWER_TOKENS, MarkedFrames, Message, Reply

JPEG_QUALITY = 90
MAX_RETRIES = 4
CHECK_S = 15.0  # for the list of models
SHOWN_CHARS = 300
SHORTEST_SECRET = 8  # what is shorter is a placeholder such as "none", and a part of ordinary words
UNSUPPORTED = {"response_format": ("response_format", "json_schema", "schema"), "max_tokens": ("max_tokens",)}
FATAL = (
    openai.AuthenticationError,
    openai.PermissionDeniedError,
    openai.NotFoundError,
    openai.APIConnectionError,  # nobody there, after all retries: the next question would not fare better
)


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
        words = printable(str(text))
        if len(self.key) >= SHORTEST_SECRET:
            words = words.replace(self.key, "***")
        return " ".join(words.split())[:SHOWN_CHARS]


def check_endpoint(endpoint: Endpoint) -> None:
    """Find out before any work whether the endpoint answers and lets us in. One without a list of models is believed.

    Raises:
        AnnotatorError: nobody answers, the key is refused, or it does not have the model.
    """
    try:
        listed = [
            str(model.id) for model in _client(endpoint).with_options(timeout=CHECK_S, max_retries=1).models.list()
        ]
    except (openai.NotFoundError, openai.BadRequestError, openai.PermissionDeniedError):
        return
    except openai.OpenAIError as error:
        raise _as_ours(endpoint, error, AnnotatorError) from None
    except (ValueError, AttributeError, TypeError, httpx2.InvalidURL) as error:
        cause = f"{type(error).__name__}: {endpoint.clear(error)}"
        raise AnnotatorError(
            f"{endpoint.url} is no OpenAI-compatible endpoint ({cause}); does it end in /v1?"
        ) from None
    if listed and endpoint.model not in listed:
        shown = ", ".join(listed[:8])
        raise AnnotatorError(f"{endpoint.url} has no model {endpoint.model!r}; it has {endpoint.clear(shown)}")


class OpenAIAnnotator:
    """Frames go as JPEG, each behind its time in words; the answer is held to a schema where the endpoint knows that."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint, self.client = endpoint, _client(endpoint)
        self.unknown: set[str] = set()

    def reply(self, messages: Sequence[Message], frames: MarkedFrames, schema: dict) -> Reply:
        try:
            answer = self._ask(_turns(messages, frames), schema)
            return _read(self.endpoint, answer)
        except openai.APITimeoutError as error:
            raise _as_ours(self.endpoint, error, NoAnswerError) from None
        except FATAL as error:
            raise _as_ours(self.endpoint, error, AnnotatorError) from None
        except openai.OpenAIError as error:
            spent = getattr(error, "code", None) == "insufficient_quota"
            raise _as_ours(self.endpoint, error, AnnotatorError if spent else NoAnswerError) from None
        except (ValueError, AttributeError, TypeError, IndexError, KeyError) as error:
            cause = f"{type(error).__name__}: {self.endpoint.clear(error)}"
            raise NoAnswerError(f"{self.endpoint.url} gave something else than an answer ({cause})") from None

    def _ask(self, turns: list[dict], schema: dict) -> Any:
        """Ask; what the endpoint does not know (schemas, or `max_tokens` by that name) is left out from then on."""
        described = {"name": "subtasks", "strict": True, "schema": schema}
        held: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": described}}
        limit = "max_completion_tokens" if "max_tokens" in self.unknown else "max_tokens"
        # models that refuse `max_tokens` refuse a temperature as well
        steady = {} if "max_tokens" in self.unknown else {"temperature": 0.0}
        try:
            create: Any = self.client.chat.completions.create  # its types know each option alone, not a choice of them
            options = {limit: MAX_ANSWER_TOKENS, **steady, **({} if "response_format" in self.unknown else held)}
            return create(model=self.endpoint.model, messages=turns, **options)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            refused = [name for name, words in UNSUPPORTED.items() if any(word in str(error) for word in words)]
            if not set(refused) - self.unknown:
                raise
            self.unknown |= set(refused)
            return self._ask(turns, schema)


def _read(endpoint: Endpoint, answer: Any) -> Reply:
    choice, usage = answer.choices[0], answer.usage
    refusal = choice.message.refusal or ("content filter" if choice.finish_reason == "content_filter" else None)
    if refusal:
        raise NoAnswerError(f"refused: {endpoint.clear(refusal)}")
    content = choice.message.content or ""
    if not isinstance(content, str):
        raise TypeError(f"its content is a {type(content).__name__}")
    asked, answered = (getattr(usage, name, 0) or 0 for name in ("prompt_tokens", "completion_tokens"))
    return Reply(printable(content), int(asked), int(answered), choice.finish_reason == "length")


def printable(text: str) -> str:
    """Text without lone surrogates, which no file and no request can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


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
