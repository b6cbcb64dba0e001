"""Requests of the OpenAI API, as far as they are served: checked key by key, and whatever is not served is refused by name.

Fields and meanings: https://platform.openai.com/docs/api-reference/chat/create and …/completions/create. One thing differs:
without a `temperature` an answer is greedy, as the figures of a package were measured.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hermitcrab.errors import HermitcrabError, did_you_mean

# Known parameters that are not served, with the value (besides null) that asks for nothing.
NEUTRAL: dict[str, Any] = {
    "n": 1, "best_of": 1, "logprobs": False, "top_logprobs": 0, "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {},
    "tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": [], "function_call": "none", "echo": False,
    "suffix": "", "store": False, "metadata": {}, "response_format": {"type": "text"}, "modalities": ["text"], "service_tier": "auto",
}  # fmt: skip
COMPLETION_TOKENS = 16  # of /v1/completions without max_tokens, as the API says


class Refusal(HermitcrabError):
    """A request that is not served, as the API words it."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextPart(_Part):
    type: Literal["text"]
    text: str


class ChatMessage(_Part):
    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

    def as_row(self) -> dict[str, str]:
        parts = self.content
        return {"role": self.role, "content": parts if isinstance(parts, str) else "".join(part.text for part in parts)}


class StreamOptions(_Part):
    include_usage: bool = False


Word = Annotated[str, Field(min_length=1, max_length=1000)]


class Asked(_Part):
    """What both kinds of request share."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Word | Annotated[list[Word], Field(max_length=4)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Whose request it is: changes nothing."""

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop


class ChatRequest(Asked):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class CompletionRequest(Asked):
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]


Kind = TypeVar("Kind", bound=Asked)


def parse(kind: type[Kind], body: bytes) -> Kind:
    """A request of that kind.

    Raises:
        Refusal: 400, for what is no JSON object, is not of the form, or asks for what is not served.
    """
    value = _json(body)
    if not isinstance(value, dict):
        raise Refusal(400, f"the body is no JSON object. Received: {_shown(value)}")
    given = {key: part for key, part in value.items() if part is not None}
    for name in sorted(given.keys() & NEUTRAL.keys()):
        part, neutral = given.pop(name), NEUTRAL[name]
        if part != neutral or isinstance(part, bool) != isinstance(neutral, bool):
            raise Refusal(
                400,
                f"`{name}` is not supported by this server. Received: {_shown(part)}",
                name,
                "unsupported_parameter",
            )
    for name in given:
        if name not in kind.model_fields:
            near = did_you_mean(name, kind.model_fields)
            raise Refusal(400, f"unknown parameter `{name[:60]}`{near}", name[:60], "unknown_parameter")
    if isinstance(given.get("messages"), list):  # clients send back what they were given, nulls included
        given["messages"] = [
            {k: v for k, v in m.items() if v is not None} if isinstance(m, dict) else m for m in given["messages"]
        ]
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from error


def _refusal(error: ValidationError) -> Refusal:
    first = error.errors(include_url=False)[0]
    where = ".".join(
        str(step) for step in first["loc"] if not (isinstance(step, str) and ("[" in step or step == "str"))
    )
    if first["type"] == "missing":
        return Refusal(400, f"`{where}` is missing", where, "missing_required_parameter")
    return Refusal(400, f"`{where}`: {first['msg']}. Received: {_shown(first['input'])}", where, "invalid_value")


def _json(body: bytes) -> Any:
    def constant(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    try:
        value = json.loads(body.decode("utf-8"), parse_constant=constant)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair, written as \\ud800, is no text
        return value
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON: {' '.join(str(error).split())[:120]}", code="invalid_json") from error


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
