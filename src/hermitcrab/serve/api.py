"""The HTTP face: which paths there are, and what each is answered with. It knows requests and models, and nothing of tensors.

    POST /v1/chat/completions  /v1/completions  /v1/embeddings     the OpenAI API; `stream: true` sends an answer as it is made
    GET  /v1/models            /v1/models/{name}
    GET  /lineage              /lineage/{name}                     what is served, by digest, with its signed record
    GET  /v2…                  POST /v2/models/{name}/infer        the Open Inference Protocol, for every other task (`v2`)
    GET  /health/live          /health/ready  /metrics             for whoever watches (`operations`)
    POST /admin/reload                                             the models again, as they are on disk now
    GET  /                                                         a page to try it all

Whatever is refused is JSON of the form that the API's clients know, with a status of 400 and above.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from hermitcrab.serve import operations, shapes, v2
from hermitcrab.serve.door import Door, Limits, body_of, refused
from hermitcrab.serve.house import House, Tenancy
from hermitcrab.serve.keys import Keys
from hermitcrab.serve.logs import Log
from hermitcrab.serve.metrics import Metrics
from hermitcrab.serve.replies import embeddings
from hermitcrab.serve.requests import (
    Asked,
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    Refusal,
    parse,
)
from hermitcrab.serve.texts import FAILED, Reply, prompted, rows_of

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": shapes.Error, "description": "What is asked is not served"},
    401: {"model": shapes.Error, "description": "No key, or a wrong one"},
    403: {"model": shapes.Error, "description": "Not for this client"},
    404: {"model": shapes.Error, "description": "No such model"},
    408: {"model": shapes.Error, "description": "The body came too slowly"},
    413: {"model": shapes.Error, "description": "The body is too large"},
    415: {"model": shapes.Error, "description": "The body is of another type"},
    429: {"model": shapes.Error, "description": "The key's own limit; see Retry-After"},
    503: {"model": shapes.Error, "description": "The server is full, not ready or ending; see Retry-After"},
    504: {"model": shapes.Error, "description": "Not answered within the deadline"},
}

EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
"""One of a stream: `data` is an object as the API's chunks are, or `[DONE]`."""


@dataclass(frozen=True)
class Face:
    """All that the application leans on.

    Attributes:
        hosts: names that a request may be addressed to; none: any.
        origins: of pages that may ask from elsewhere (CORS); none by default.
        public: paths that need no key, besides the page and the health checks.
        drain: seconds that old models may take to finish after a reload.
        reloads: models can be reloaded here; not in one of several replicas.
    """

    house: House
    log: Log
    metrics: Metrics
    keys: Keys = field(default_factory=Keys)
    limits: Limits = field(default_factory=Limits)
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    public: Sequence[str] = ()
    drain: float = 30.0
    reloads: bool = True


def make_app(face: Face) -> ASGIApp:
    app = FastAPI(
        title="hermitcrab",
        version=version("hermitcrab"),
        docs_url=None,  # both would load scripts from another server
        redoc_url=None,
        exception_handlers={Refusal: _on_refusal, HTTPException: _on_http, Exception: _on_failure},
        redirect_slashes=False,
    )
    app.include_router(_models(face))
    app.include_router(_texts(face))
    app.include_router(operations.router(face))
    app.include_router(v2.router(face.house, face.metrics))
    app.openapi = lambda: _openapi(app, bool(face.keys))  # type: ignore[method-assign]
    door: ASGIApp = Door(app, face.keys, face.hosts, face.origins, face.public, face.limits, face.log, face.metrics)
    if face.origins:
        door = CORSMiddleware(door, allow_origins=list(face.origins), allow_methods=["GET", "POST"],
                              allow_headers=["authorization", "content-type", "x-request-id"],
                              expose_headers=["x-model-digest", "x-request-id", "retry-after"])  # fmt: skip
    return door


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    request.scope["state"].get("told", {}).setdefault("outcome", error.code)
    return refused(error, request.url.path)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = Refusal(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail}", code="not_found")
    answer = refused(refusal, request.url.path)
    answer.headers.update(error.headers or {})
    return answer


async def _on_failure(request: Request, error: Exception) -> Response:
    return refused(FAILED, request.url.path)  # the door writes down how it came about


def _models(face: Face) -> APIRouter:
    router = APIRouter(tags=["models"], responses={401: PROBLEMS[401], 403: PROBLEMS[403]})

    @router.get("/v1/models", response_model=shapes.ModelList, operation_id="list_models")
    async def models() -> Any:
        return JSONResponse({"object": "list", "data": [_model(t) for t in face.house.models.values()]})

    @router.get(
        "/v1/models/{name:path}", response_model=shapes.Model, operation_id="get_model", responses={404: PROBLEMS[404]}
    )
    async def model(name: str) -> Any:
        tenancy = face.house.find(name)
        return JSONResponse(_model(tenancy), headers={"x-model-digest": tenancy.digest})

    @router.get("/lineage", response_model=shapes.Lineages, operation_id="lineage")
    async def lineage() -> Any:
        return JSONResponse({"models": [t.lineage for t in face.house.models.values()]})

    @router.get(
        "/lineage/{name:path}", response_model=shapes.Lineage, operation_id="lineage_of", responses={404: PROBLEMS[404]}
    )
    async def lineage_of(name: str) -> Any:
        tenancy = face.house.find(name)
        return JSONResponse(tenancy.lineage, headers={"x-model-digest": tenancy.digest})

    return router


def _model(tenancy: Tenancy) -> dict[str, Any]:
    opened = tenancy.opened
    return {
        "id": opened.name,
        "object": "model",
        "created": opened.created,
        "owned_by": "hermitcrab",
        "digest": tenancy.digest,
        "engine": tenancy.engine,
        "task": opened.task,
        "makes_text": tenancy.worker is not None,
        "verified": opened.verified is not None,
    }


def _texts(face: Face) -> APIRouter:
    router = APIRouter(tags=["texts"], responses=PROBLEMS)

    async def reply(kind: type[Asked], request: Request) -> Response:
        asked = parse(kind, await body_of(request))
        with ExitStack() as stack:
            tenancy = stack.enter_context(face.house.visit(asked.model))
            told = await prompted(tenancy, asked, face.limits.tokens)
            return Reply(face.house, face.metrics, face.log, told, face.limits.deadline, stack.pop_all())

    @router.post("/v1/chat/completions", operation_id="chat", openapi_extra=takes(ChatRequest),
                 responses={200: _streamed(shapes.ChatCompletion)})  # fmt: skip
    async def chat(request: Request) -> Response:
        return await reply(ChatRequest, request)

    @router.post("/v1/completions", operation_id="completion", openapi_extra=takes(CompletionRequest),
                 responses={200: _streamed(shapes.Completion)})  # fmt: skip
    async def completion(request: Request) -> Response:
        return await reply(CompletionRequest, request)

    @router.post(
        "/v1/embeddings", operation_id="embed", openapi_extra=takes(EmbeddingsRequest), response_model=shapes.Embeddings
    )
    async def embed(request: Request) -> Response:
        asked = parse(EmbeddingsRequest, await body_of(request))
        with face.house.visit(asked.model) as tenancy:
            return await _embedded(face, tenancy, asked)

    return router


async def _embedded(face: Face, tenancy: Tenancy, asked: EmbeddingsRequest) -> Response:
    if not tenancy.embeds:
        raise Refusal(
            400, f"`{tenancy.name}` makes no vectors, its task is {tenancy.opened.task}", "model", "model_not_supported"
        )
    rows = await asyncio.to_thread(rows_of, tenancy, asked.input, "input")
    most, longest = tenancy.predictor.positions, max(map(len, rows))
    if not all(rows) or longest > most:
        raise Refusal(
            400,
            f"`input`: a text has {longest if all(rows) else 0:,} tokens; expected 1 to {most:,}",
            "input",
            "context_length_exceeded",
        )
    with face.house.room(tenancy, 1):
        vectors = await tenancy.embed(rows)
    read = sum(map(len, rows))
    face.metrics.prompt_tokens.labels(tenancy.name).inc(read)
    told = embeddings(vectors, tenancy.name, read, asked.encoding_format)
    return JSONResponse(told, headers={"x-model-digest": tenancy.digest})


def takes(kind: type[BaseModel]) -> dict[str, Any]:
    """The body of a request in the OpenAPI document; it is read by `parse`, which words its refusals as the API does."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
    return {"requestBody": {"required": True, "content": content}}


def _streamed(shape: type[BaseModel]) -> dict[str, Any]:
    return {
        "model": shape,
        "description": "The answer, or a stream of it",
        "content": {"text/event-stream": {"schema": EVENT}},
    }


def _openapi(app: FastAPI, keys: bool) -> dict[str, Any]:
    if app.openapi_schema:
        return app.openapi_schema
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    kinds = (ChatRequest, CompletionRequest, EmbeddingsRequest, v2.InferRequest)
    _, more = models_json_schema([(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}")
    made.setdefault("components", {}).setdefault("schemas", {}).update(more["$defs"])
    if keys:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"key": []}]
    app.openapi_schema = made
    return made
