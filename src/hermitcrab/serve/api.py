"""The HTTP face: the OpenAI API before one engine. It knows requests, queues and clients, and nothing of tensors.

    GET  /health                 for whoever watches the process; needs no key
    GET  /v1/models              what is served
    POST /v1/chat/completions    an answer to a conversation; `stream: true` sends it as it is made
    POST /v1/completions         what follows a text

One answer is made at a time; so many requests wait, the next is refused (429). A client that leaves stops its answer.
Whatever is refused is JSON of the form that the API's clients know, with a status of 400 and above.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hermitcrab.errors import HermitcrabError
from hermitcrab.serve.answer import Answer
from hermitcrab.serve.engine import Engine, Options
from hermitcrab.serve.opening import Opened
from hermitcrab.serve.requests import (
    COMPLETION_TOKENS,
    Asked,
    ChatRequest,
    CompletionRequest,
    Refusal,
    parse,
)

LARGEST_BODY = 2 << 20  # bytes
FAILED = Refusal(500, "the server failed to answer; its log says why", code="server_failed")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Service:
    """One model, one engine, one queue."""

    def __init__(self, opened: Opened, engine: Engine, queue: int = 16):
        self.opened, self.engine, self.queue = opened, engine, queue
        self.encoder: Any = opened.encoder  # `load_engine` refused what has none
        self.lock = anyio.Lock()
        self.waiting = self.requests = self.tokens = 0
        self.fingerprint = opened.base["digest"].removeprefix("sha256:")[:16]

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One at a time, in the order of arrival.

        Raises:
            Refusal: 429, where too many wait already.
        """
        if not self.lock.locked():
            self.lock.acquire_nowait()  # `acquire` would yield first, and who has the turn would count as waiting meanwhile
        elif self.waiting >= self.queue:
            raise Refusal(429, f"{self.waiting} requests are waiting already; try again later", code="queue_full")
        else:
            self.waiting += 1
            try:
                await self.lock.acquire()
            finally:
                self.waiting -= 1
        try:
            yield
        finally:
            self.lock.release()

    def answer(self, asked: Asked) -> Answer:
        """The prompt in tokens, as in training, and how it is to be answered.

        Raises:
            Refusal: another model is meant, the template refuses the messages, or it is too long.
        """
        if asked.model != self.opened.name:
            message = f"there is no model `{asked.model[:100]}` here; this server has `{self.opened.name}`"
            raise Refusal(404, message, "model", "model_not_found")
        limit = asked.max_tokens
        if isinstance(asked, ChatRequest):
            if None not in (limit, asked.max_completion_tokens):
                raise Refusal(400, "give `max_tokens` or `max_completion_tokens`, not both", "max_tokens")
            limit, param = limit or asked.max_completion_tokens, "messages"
            try:
                prompt = self.encoder.prompt([message.as_row() for message in asked.messages])
            except HermitcrabError as error:
                raise Refusal(400, str(error), param) from error
        else:
            assert isinstance(asked, CompletionRequest)
            text, param = asked.prompt if isinstance(asked.prompt, str) else asked.prompt[0], "prompt"
            prompt = replace(self.encoder, render=None).prompt([{"role": "user", "content": text}])
        room = self.engine.positions - len(prompt)
        if not prompt or room < 1:
            why = (
                f"it has {len(prompt):,} tokens, and the model has room for {self.engine.positions:,}, answer included"
            )
            raise Refusal(400, f"`{param}`: {why if prompt else 'it has no token'}", param, "context_length_exceeded")
        if limit is None:
            limit = room if isinstance(asked, ChatRequest) else min(room, COMPLETION_TOKENS)
        if limit > room:
            why = f"{limit:,} tokens do not fit behind a prompt of {len(prompt):,}; there is room for {room:,}"
            raise Refusal(400, f"`max_tokens`: {why}", "max_tokens", "context_length_exceeded")
        options = Options(limit, asked.temperature, asked.top_p, asked.seed)
        return Answer(self.engine, self.encoder, prompt, options, asked.stops)


class Form:
    """How an answer is written down: of a conversation or of a text, whole or in pieces."""

    def __init__(self, service: Service, chat: bool):
        self.chat = chat
        self.head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": service.opened.name,
            "system_fingerprint": service.fingerprint,
        }

    def whole(self, text: str, answer: Answer) -> dict[str, Any]:
        what = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return self._object("", [{"index": 0, **what, "logprobs": None, "finish_reason": answer.finish_reason}],
                            usage=usage(answer))  # fmt: skip

    def piece(self, text: str | None, finish_reason: str | None = None, first: bool = False) -> dict[str, Any]:
        if self.chat:
            delta = {**({"role": "assistant"} if first else {}), **({} if text is None else {"content": text})}
            what: dict[str, Any] = {"delta": delta}
        else:
            what = {"text": text or ""}
        return self._object(".chunk", [{"index": 0, **what, "logprobs": None, "finish_reason": finish_reason}])

    def count(self, answer: Answer) -> dict[str, Any]:
        return self._object(".chunk", [], usage=usage(answer))

    def _object(self, chunk: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        kind = f"chat.completion{chunk}" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": choices, **more}


def usage(answer: Answer) -> dict[str, int]:
    prompt, made = len(answer.prompt), answer.tokens
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


class Reply:
    """Waits its turn, makes the answer and sends it; all of it ends when the client leaves."""

    def __init__(self, service: Service, asked: Asked, answer: Answer):
        self.service, self.asked, self.answer = service, asked, answer
        self.form = Form(service, isinstance(asked, ChatRequest))
        self.begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(_until_gone, receive, group.cancel_scope)
            try:
                async with self.service.turn():
                    self.service.requests += 1
                    await (self._stream(send) if self.asked.stream else self._whole(scope, receive, send))
            except Refusal as error:
                await refused(error)(scope, receive, send)
            except Exception as error:  # noqa: BLE001 - told to the operator in full, to the client in a word
                traceback.print_exception(error, file=sys.stderr)
                if self.begun:
                    await send(_body(_event(FAILED.body()), more=False))
                else:
                    await refused(FAILED)(scope, receive, send)
            group.cancel_scope.cancel()

    async def _pieces(self) -> AsyncIterator[str]:
        """The text as it is made, each piece in a thread; the engine has stopped when this ends, however it ends."""
        pieces = iter(self.answer)
        try:
            while (piece := await to_thread.run_sync(next, pieces, None)) is not None:
                if piece:
                    yield piece
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(pieces.close)
            self.service.tokens += self.answer.tokens

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = "".join([piece async for piece in self._pieces()])
        await JSONResponse(self.form.whole(text, self.answer))(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self.begun = True
        if self.form.chat:
            await send(_body(_event(self.form.piece("", first=True))))
        async for piece in self._pieces():
            await send(_body(_event(self.form.piece(piece))))
        await send(_body(_event(self.form.piece(None, self.answer.finish_reason))))
        if self.asked.stream_options and self.asked.stream_options.include_usage:
            await send(_body(_event(self.form.count(self.answer))))
        await send(_body(b"data: [DONE]\n\n", more=False))


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _body(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def refused(error: Refusal) -> JSONResponse:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(error.status)
    return JSONResponse(error.body(), error.status, headers)


async def _body_of(request: Request) -> bytes:
    """The body, never more of it than is allowed.

    Raises:
        Refusal: 415 for what is not declared as JSON (a page of a browser could send that unasked), 413 for too much.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "expected a body of `Content-Type: application/json`")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST_BODY:
            raise Refusal(413, f"the body has more than {LARGEST_BODY:,} bytes")
        parts.append(part)
    return b"".join(parts)


def make_app(service: Service, api_key: str | None = None, hosts: tuple[str, ...] = ()) -> ASGIApp:
    """The application. `hosts`: names that a request may be addressed to; none: any."""
    opened = service.opened
    model = {"id": opened.name, "object": "model", "created": opened.created, "owned_by": "hermitcrab"}

    async def health(request: Request) -> Response:
        counts = {"waiting": service.waiting, "requests": service.requests, "tokens": service.tokens}
        busy = service.lock.locked()
        told = {"status": "ok", "model": opened.name, "verified": opened.verified is not None, "busy": busy, **counts}
        return JSONResponse(told)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        if request.path_params["name"] != opened.name:
            raise Refusal(
                404, f"there is no such model here; this server has `{opened.name}`", "model", "model_not_found"
            )
        return JSONResponse(model)

    def endpoint(kind: type[ChatRequest] | type[CompletionRequest]) -> Any:
        async def reply(request: Request) -> Any:
            asked = parse(kind, await _body_of(request))
            return Reply(service, asked, await to_thread.run_sync(service.answer, asked))

        return reply

    async def on_refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return refused(error)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return refused(Refusal(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail}"))

    async def on_failure(request: Request, error: Exception) -> Response:
        return refused(FAILED)  # uvicorn writes down how it came about

    async def on_gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    app = Starlette(
        routes=[
            Route("/health", health, methods=["GET"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{name}", one_model, methods=["GET"]),
            Route("/v1/chat/completions", endpoint(ChatRequest), methods=["POST"]),
            Route("/v1/completions", endpoint(CompletionRequest), methods=["POST"]),
        ],
        exception_handlers={
            Refusal: on_refusal,
            HTTPException: on_http,
            ClientDisconnect: on_gone,
            Exception: on_failure,
        },
    )
    return Door(app, api_key, hosts)


class Door:
    """Lets in who is addressed rightly and has the key; `/health` needs none."""

    def __init__(self, app: ASGIApp, api_key: str | None, hosts: tuple[str, ...]):
        self.app, self.hosts = app, hosts
        self.expected = None if api_key is None else b"Bearer " + api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self.refusal(scope)):
            await refused(error)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def refusal(self, scope: Scope) -> Refusal | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if self.hosts and name not in self.hosts:  # a page of another site whose name was made to point here
            return Refusal(
                403, f"this server is not `{name[:60]}`; it answers to {', '.join(self.hosts)}", code="wrong_host"
            )
        given = headers.get(b"authorization", b"")
        if self.expected is None or scope["path"] == "/health" or hmac.compare_digest(given, self.expected):
            return None
        return Refusal(401, "wrong or missing API key (Authorization: Bearer …)", code="invalid_api_key")
