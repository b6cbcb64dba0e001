"""What every request passes first and last: is it addressed to this server, has it a key, is its body of a bearable size and speed;
then one line in the log and one count.

Plain ASGI, outside of the application: nothing of a request is parsed before it has been let in.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hermitcrab.serve.keys import Keys
from hermitcrab.serve.logs import Log
from hermitcrab.serve.metrics import Metrics
from hermitcrab.serve.requests import Refusal

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN = ("/", "/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
"""Paths that need no key: the page, which is the same for everybody, and what watches the process."""
REJECTED = ("queue_full", "draining", "model_changed", "rate_limit_exceeded", "concurrency_limit")
LINGER, LINGER_SECONDS = 32 << 20, 2.0
IDENTIFIER = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Attributes:
        body: bytes of a body; `body_seconds`: in which it must be here.
        deadline: seconds from a request to the end of its answer.
        tokens: of an answer, at most.
    """

    body: int = 8 << 20
    body_seconds: float = 30.0
    deadline: float = 600.0
    tokens: int | None = None


def refused(error: Refusal, path: str = "") -> JSONResponse:
    """As the clients of that path know it: those of the Open Inference Protocol expect a text."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry)))
    body = {"error": str(error)} if path.startswith("/v2") else error.body()
    return JSONResponse(body, error.status, headers)


class Door:
    """The outermost application.

    Args:
        hosts: names that a request may be addressed to; none: any.
        origins: of other pages that may ask.
        public: paths that need no key besides `OPEN`.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        hosts: Iterable[str],
        origins: Iterable[str],
        public: Iterable[str],
        limits: Limits,
        log: Log,
        metrics: Metrics,
    ):
        self.app, self.keys, self.limits, self.log, self.metrics = app, keys, limits, log, metrics
        self.hosts, self.origins, self.public = frozenset(hosts), frozenset(origins), {*OPEN, *public}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await Passage(self, scope, receive, send).run()
        else:
            await send({"type": "websocket.close", "code": 1003})

    def check_host(self, headers: dict[bytes, bytes]) -> None:
        """A page of another site whose name was made to point here must not reach a server that asks nobody for a key."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if self.hosts and name not in self.hosts:
            message = f"this server is not `{name[:60]}`; it answers to {', '.join(sorted(self.hosts))}"
            raise Refusal(403, message, code="wrong_host")

    def check_origin(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """A page of another origin may send a request that it cannot read the answer of: not here."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin or scope["method"] != "POST" or {"*", origin} & self.origins:
            return
        host = headers.get(b"host", b"").decode("latin-1")
        if origin.partition("://")[2] != host:
            raise Refusal(403, f"pages of {origin[:60]} may not ask this server (--cors)", code="wrong_origin")

    def key(self, scope: Scope, headers: dict[bytes, bytes]) -> Any:
        """The key of a request, in use while it runs; nothing where none is needed."""
        if not self.keys or scope["path"] in self.public:
            return None
        key = self.keys.find(headers.get(b"authorization", b""))
        if key is None:
            raise Refusal(401, "wrong or missing API key (Authorization: Bearer …)", code="invalid_api_key")
        return key


class Passage:
    """One request from the first byte to the last."""

    def __init__(self, door: Door, scope: Scope, receive: Receive, send: Send):
        self.door, self.scope, self._receive, self._send = door, scope, receive, send
        self.headers = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = given if IDENTIFIER.fullmatch(given) else secrets.token_hex(8)
        self.began = time.perf_counter()
        self.status, self.size = 0, 0
        # Whether all of the body is here; without these headers there is none.
        self.whole = not {b"content-length", b"transfer-encoding"} & set(self.headers)
        self.key: Any = None
        self.told: dict[str, Any] = {}
        scope.setdefault("state", {})["told"] = self.told

    async def run(self) -> None:
        try:
            try:
                self.door.check_host(self.headers)
                self.door.check_origin(self.scope, self.headers)
                self.key = self.door.key(self.scope, self.headers)
                with self.key.use() if self.key is not None and self.scope["method"] == "POST" else nullcontext():
                    await self.door.app(self.scope, self.receive, self.send)
            except Refusal as error:
                await self._refuse(error)
            except ClientDisconnect:
                self.told["outcome"] = "client_gone"
            except Exception as error:  # noqa: BLE001 - told to the operator in full, to the client in a word
                self.door.log.failure("failed", error, request=self.id)
                await self._refuse(Refusal(500, "the server failed to answer; its log says why", code="server_failed"))
        finally:
            self._tell()

    async def _refuse(self, error: Refusal) -> None:
        if not self.status:
            self.told.setdefault("outcome", error.code)
            await refused(error, self.scope["path"])(self.scope, self.receive, self.send)

    async def receive(self) -> Message:
        """The next part of the body, as long as it is not too much and not too slow."""
        if self.whole:
            return await self._receive()
        limits = self.door.limits
        if self.headers.get(b"content-length", b"").isdigit():
            self._check_size(int(self.headers[b"content-length"]))
        left = limits.body_seconds - (time.perf_counter() - self.began)
        try:
            async with asyncio.timeout(max(left, 0.001)):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(
                408, f"the body was not here within {limits.body_seconds:g} seconds", code="body_too_slow"
            ) from None
        self.size += len(message.get("body", b""))
        self.whole = not message.get("more_body", False)
        self._check_size(self.size)
        return message

    def _check_size(self, size: int) -> None:
        if size > self.door.limits.body:
            raise Refusal(413, f"the body has more than {self.door.limits.body:,} bytes", code="body_too_large")

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [
                *message.get("headers", []),
                (b"x-request-id", self.id.encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
            if (
                not self.whole and self.scope["method"] == "POST"
            ):  # what was not read would be taken for the next request
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        elif not message.get("more_body", False) and self.status >= 400 and not self.whole:
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        """Take in a little more of a body that was refused: a connection that is closed at once takes the answer with it."""
        left = LINGER
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while left > 0 and (message := await self._receive()).get("more_body", False):
                    left -= len(message.get("body", b""))

    def _tell(self) -> None:
        route = getattr(self.scope.get("route"), "path", "none")
        status = self.status or 499  # the client left before there was a status
        self.door.metrics.http.labels(route, self.scope["method"], str(status)).inc()
        if (outcome := self.told.get("outcome")) in REJECTED:
            self.door.metrics.rejections.labels(self.told.get("model", ""), outcome).inc()
        if route in ("/health/live", "/health/ready", "/metrics") and status == 200:
            return  # asked every few seconds by those who watch
        seconds = round(time.perf_counter() - self.began, 4)
        who = {"key": self.key.name} if self.key is not None else {}
        self.door.log("request", request=self.id, method=self.scope["method"], path=self.scope["path"][:200], status=status,
                      seconds=seconds, **who, **self.told)  # fmt: skip


async def body_of(request: Request, kind: str = "application/json") -> bytes:
    """The whole body; `Passage.receive` bounds it.

    Raises:
        Refusal: 415 for what is not declared as that (a page of a browser could send it unasked).
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != kind:
        raise Refusal(415, f"expected a body of `Content-Type: {kind}`. Received: {given[:60] or 'none'}")
    return await request.body()
