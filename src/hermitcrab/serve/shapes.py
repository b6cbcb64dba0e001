"""What the server answers, as models for its OpenAPI document; tests hold every answer against it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(_Shape):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(_Shape):
    error: Problem


class Wrong(_Shape):
    """Of the Open Inference Protocol."""

    error: str


class Model(_Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    digest: str
    engine: str
    task: str
    makes_text: bool
    verified: bool


class ModelList(_Shape):
    object: Literal["list"]
    data: list[Model]


class Usage(_Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Called(_Shape):
    name: str
    arguments: str


class Call(_Shape):
    id: str
    type: Literal["function"]
    function: Called


class Message(_Shape):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[Call] = []


class Likelihood(_Shape):
    token: str
    logprob: float
    bytes: list[int]


class MadeLikelihood(Likelihood):
    top_logprobs: list[Likelihood]


class ChatLikelihoods(_Shape):
    content: list[MadeLikelihood]
    refusal: None


class ChatChoice(_Shape):
    index: int
    message: Message
    logprobs: ChatLikelihoods | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class _Answer(_Shape):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class ChatCompletion(_Answer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextLikelihoods(_Shape):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(_Shape):
    index: int
    text: str
    logprobs: TextLikelihoods | None
    finish_reason: Literal["stop", "length"]


class Completion(_Answer):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class Embedding(_Shape):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(_Shape):
    prompt_tokens: int
    total_tokens: int


class Embeddings(_Shape):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Health(_Shape):
    status: Literal["ok", "draining", "not_ready", "dead"]
    why: list[str]


class Lineage(_Shape):
    """What is served, by digest. `record` is hermitcrab.json, `claims` the DSSE envelopes of the package."""

    model: str
    task: str
    digest: str
    model_digest: str
    engine: str
    template_digest: str | None
    verified: str | None
    record: dict[str, Any] | None
    claims: list[dict[str, Any]]


class Lineages(_Shape):
    models: list[Lineage]


class Reloaded(_Shape):
    models: list[str]


class Tensor(_Shape):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any]


class TensorKind(_Shape):
    name: str
    datatype: str
    shape: list[int]


class ServerMetadata(_Shape):
    name: str
    version: str
    extensions: list[str]


class ModelMetadata(_Shape):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorKind]
    outputs: list[TensorKind]


class Ready(_Shape):
    """KServe asks for the status alone."""

    ready: bool


class Live(_Shape):
    live: bool


class Inferred(_Shape):
    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any]
    outputs: list[Tensor]
