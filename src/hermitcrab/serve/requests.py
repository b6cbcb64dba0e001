"""Requests of the OpenAI API, as far as they are served: checked key by key, and whatever is not served is refused by name.

Fields and meanings: https://platform.openai.com/docs/api-reference/chat/create, …/completions/create, …/embeddings/create.
One thing differs: without a `temperature` an answer is greedy, as the figures of a package were measured.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hermitcrab.errors import HermitcrabError, did_you_mean

COMPLETION_TOKENS = 16  # of /v1/completions without max_tokens, as the API says
MOST_CHOICES = 16  # of one request: prompts times `n`
DEEPEST = 64  # of JSON in a request; a schema or the arguments of a tool need less
# Known parameters that are not served, with the value (besides null) that asks for nothing.
NEUTRAL: dict[str, Any] = {
    "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "store": False, "metadata": {}, "service_tier": "auto",
}  # fmt: skip


class Refusal(HermitcrabError):
    """A request that is not served, as the API words it. `retry`: seconds after which it may be asked again."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry: float | None = None
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.retry = status, param, code, retry

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 403: "permission_error", 408: "timeout_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextPart(_Part):
    type: Literal["text"]
    text: str


class CalledFunction(_Part):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    arguments: str
    """JSON, as the model wrote it."""


class ToolCall(_Part):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(_Part):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    tool_call_id: str | None = None

    def as_row(self, where: str) -> dict[str, Any]:
        """The message as chat templates take it.

        Raises:
            Refusal: parts that its role does not have, or none.
        """
        if self.tool_calls and self.role != "assistant":
            raise Refusal(400, f"`{where}.tool_calls`: only the assistant calls tools", where, "invalid_value")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise Refusal(
                400, f"`{where}.tool_call_id`: a message of role `tool` has it, and no other", where, "invalid_value"
            )
        if self.content is None and not self.tool_calls:
            raise Refusal(400, f"`{where}.content` is missing", f"{where}.content", "missing_required_parameter")
        parts = self.content or ""
        row: dict[str, Any] = {
            "role": self.role,
            "content": parts if isinstance(parts, str) else "".join(part.text for part in parts),
        }
        if self.tool_call_id is not None:
            row["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            row["tool_calls"] = [
                self._called(call, f"{where}.tool_calls.{i}") for i, call in enumerate(self.tool_calls)
            ]
        return row

    @staticmethod
    def _called(call: ToolCall, where: str) -> dict[str, Any]:
        arguments = read_json(call.function.arguments.encode(), f"{where}.function.arguments")
        if not isinstance(arguments, dict):
            raise Refusal(400, f"`{where}.function.arguments`: expected a JSON object", where, "invalid_value")
        return {
            "id": call.id,
            "type": "function",
            "function": {"name": call.function.name, "arguments": arguments},
        }


class StreamOptions(_Part):
    include_usage: bool = False


class Schema(_Part):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(_Part):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None


class Function(_Part):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Part):
    type: Literal["function"]
    function: Function


class NamedFunction(_Part):
    name: str


class ToolChoice(_Part):
    type: Literal["function"]
    function: NamedFunction


Word = Annotated[str, Field(min_length=1, max_length=1000)]
Id = Annotated[int, Field(ge=0, lt=1 << 31)]
Ids = Annotated[list[Id], Field(min_length=1)]
Inputs = (
    Annotated[list[str], Field(min_length=1, max_length=256)]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, max_length=256)]
)


class Named(_Part):
    """What every kind of request has."""

    neutral: ClassVar[dict[str, Any]] = {}

    model: str
    user: str | None = None
    """Whose request it is: changes nothing."""


class Asked(Named):
    """What both kinds of request for text share."""

    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Word | Annotated[list[Word], Field(max_length=4)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many likeliest tokens are told beside each made one; None: no likelihood is told."""
        raise NotImplementedError


class ChatRequest(Asked):
    neutral = {**NEUTRAL, "functions": [], "function_call": "none", "modalities": ["text"]}

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    response_format: ResponseFormat = ResponseFormat(type="text")
    tools: Annotated[list[Tool], Field(max_length=128)] = []
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool = True

    @property
    def limit(self) -> int | None:
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise Refusal(400, "give `max_tokens` or `max_completion_tokens`, not both", "max_tokens")
        return self.max_tokens or self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise Refusal(400, "`top_logprobs` asks for `logprobs: true`", "top_logprobs", "invalid_value")
        return self.top_logprobs if self.logprobs else None

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """The schema that the answer must satisfy."""
        form = self.response_format
        if (form.type == "json_schema") != (form.json_schema is not None):
            raise Refusal(
                400, "`response_format.json_schema` goes with type `json_schema`", "response_format", "invalid_value"
            )
        if form.json_schema is not None:
            return form.json_schema.schema_
        return {"type": "object"} if form.type == "json_object" else None


class CompletionRequest(Asked):
    neutral = {**NEUTRAL, "best_of": 1, "echo": False, "suffix": ""}

    prompt: str | Inputs
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class EmbeddingsRequest(Named):
    neutral = {"dimensions": None}

    input: str | Inputs
    encoding_format: Literal["float", "base64"] = "float"


Kind = TypeVar("Kind", bound=Named)


def parse(kind: type[Kind], body: bytes) -> Kind:
    """A request of that kind.

    Raises:
        Refusal: 400, for what is no JSON object, is not of the form, or asks for what is not served.
    """
    value = read_json(body, "the body")
    if not isinstance(value, dict):
        raise Refusal(400, f"the body is no JSON object. Received: {shown(value)}", code="invalid_json")
    given = {key: part for key, part in value.items() if part is not None}
    for name in sorted(given.keys() & kind.neutral.keys()):
        part, neutral = given.pop(name), kind.neutral[name]
        if part != neutral or isinstance(part, bool) != isinstance(neutral, bool):
            raise Refusal(
                400, f"`{name}` is not supported by this server. Received: {shown(part)}", name, "unsupported_parameter"
            )
    for name in given:
        if name not in kind.model_fields:
            near = did_you_mean(name, kind.model_fields)
            raise Refusal(400, f"unknown parameter `{name[:60]}`{near}", name[:60], "unknown_parameter")
    if isinstance(given.get("messages"), list):  # clients send back what they were given: nulls, empty lists, refusals
        given["messages"] = [_sent_back(m) if isinstance(m, dict) else m for m in given["messages"]]
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise first_problem(error) from error


def _sent_back(message: dict[str, Any]) -> dict[str, Any]:
    empty: dict[str, list[Any]] = {"tool_calls": [], "annotations": []}
    return {k: v for k, v in message.items() if v is not None and not (k in empty and v == empty[k])}


def first_problem(error: ValidationError) -> Refusal:
    """What is wrong, in the words of the API."""
    first = error.errors(include_url=False)[0]
    steps = [step for step in first["loc"] if not (isinstance(step, str) and ("[" in step or step in ("str", "int")))]
    steps = [step for step in steps if step not in ("ToolChoice",)]
    where = ".".join(str(step) for step in steps)
    if first["type"] == "missing":
        return Refusal(400, f"`{where}` is missing", where, "missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return Refusal(400, f"unknown parameter `{where[:100]}`", where[:100], "unknown_parameter")
    return Refusal(400, f"`{where}`: {first['msg']}. Received: {shown(first['input'])}", where, "invalid_value")


def read_json(body: bytes, where: str) -> Any:
    """Strict JSON of a stranger: UTF-8, no NaN, no half of a surrogate pair, not too deep.

    Raises:
        Refusal: 400, `where` and why.
    """

    def constant(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    try:
        value = json.loads(body.decode("utf-8"), parse_constant=constant)
        _check_depth(value)
        if b"\\u" in body:  # half of a surrogate pair, written as \ud800, is no text
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:120]
        raise Refusal(400, f"{where}: is no JSON: {why}", code="invalid_json") from error


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")


def shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
