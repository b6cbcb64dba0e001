"""A request for text into its reply: prompts in tokens as in training, answers made side by side, sent whole or as they come."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from hermitcrab.errors import HermitcrabError
from hermitcrab.serve import replies
from hermitcrab.serve.answer import Answer
from hermitcrab.serve.engine import EngineLost, Logprob, Options
from hermitcrab.serve.house import House, Tenancy
from hermitcrab.serve.logs import Log
from hermitcrab.serve.metrics import Metrics
from hermitcrab.serve.replies import DONE, Choice, Writer
from hermitcrab.serve.requests import (
    COMPLETION_TOKENS,
    MOST_CHOICES,
    Asked,
    ChatRequest,
    CompletionRequest,
    Refusal,
)
from hermitcrab.serve.tools import Calls, Plan, plan

SHORT = 4096  # characters: so much is tokenized at once, more in a thread
FAILED = Refusal(500, "the server failed to answer; its log says why", code="server_failed")


@dataclass(frozen=True)
class Prompted:
    """A request in tokens."""

    asked: Asked
    tenancy: Tenancy
    prompts: list[list[int]]
    options: Options
    tools: Plan | None

    @property
    def answers(self) -> int:
        return len(self.prompts) * self.asked.n

    @property
    def tokens(self) -> int:
        return sum(map(len, self.prompts))


async def prompted(tenancy: Tenancy, asked: Asked, most: int | None = None) -> Prompted:
    """The prompts in tokens, and how they are to be answered; with `most` tokens each, where the server has such a limit.

    Raises:
        Refusal: the template refuses the messages, a prompt is too long, something is asked that this model cannot do.
    """
    if tenancy.worker is None:
        place = "/v1/embeddings" if tenancy.embeds else f"/v2/models/{tenancy.name}/infer"
        message = f"`{tenancy.name}` makes no text, its task is {tenancy.opened.task}; ask {place}"
        raise Refusal(400, message, "model", "model_not_supported")
    parts = (
        asked.messages
        if isinstance(asked, ChatRequest)
        else [asked.prompt]
        if isinstance(asked, CompletionRequest)
        else []
    )
    if sum(len(str(getattr(part, "content", part))) for part in parts) > SHORT:
        return await asyncio.to_thread(_prompted, tenancy, asked, most)
    return _prompted(tenancy, asked, most)


def _prompted(tenancy: Tenancy, asked: Asked, most: int | None) -> Prompted:
    limit, tools, schema = asked.limit, None, None
    if isinstance(asked, ChatRequest):
        param = "messages"
        tools = plan(asked, tenancy.tools)
        schema = tools.schema if tools else asked.schema_wanted
        prompts = [_conversation(tenancy, asked, tools)]
    else:
        assert isinstance(asked, CompletionRequest)
        param = "prompt"
        prompts = rows_of(tenancy, asked.prompt, "prompt")
    if len(prompts) * asked.n > MOST_CHOICES:
        raise Refusal(400, f"{len(prompts)} prompts of {asked.n} answers each; at most {MOST_CHOICES} answers a request", "n",
                      "invalid_value")  # fmt: skip
    positions, longest = tenancy.worker.positions, max(map(len, prompts))
    room = positions - longest
    if not all(prompts) or room < 1:
        why = f"it has {longest:,} tokens, and the model has room for {positions:,}, answer included"
        raise Refusal(400, f"`{param}`: {why if all(prompts) else 'it has no token'}", param, "context_length_exceeded")
    if most is not None and (limit or 0) > most:
        raise Refusal(
            400, f"`max_tokens`: this server makes at most {most:,}. Received: {limit:,}", "max_tokens", "invalid_value"
        )
    if limit is None:
        room = min(room, most or room)
        limit = room if isinstance(asked, ChatRequest) else min(room, COMPLETION_TOKENS)
    if limit > room:
        why = f"{limit:,} tokens do not fit behind a prompt of {longest:,}; there is room for {room:,}"
        raise Refusal(400, f"`max_tokens`: {why}", "max_tokens", "context_length_exceeded")
    written = None if schema is None else _schema(schema, "tool_choice" if tools else "response_format")
    options = Options(limit, asked.temperature, asked.top_p, asked.seed, asked.alternatives, written)
    return Prompted(asked, tenancy, prompts, options, tools)


def _conversation(tenancy: Tenancy, asked: ChatRequest, tools: Plan | None) -> list[int]:
    encoder: Any = tenancy.opened.encoder
    rows = [message.as_row(f"messages.{i}") for i, message in enumerate(asked.messages)]
    needs_tools = any("tool_calls" in row or row["role"] == "tool" for row in rows)
    if needs_tools and tenancy.tools is None:
        raise Refusal(400, "`messages`: tool calls are not supported by this model: its chat template has none", "messages",
                      "unsupported_parameter")  # fmt: skip
    try:
        if tools is None and not needs_tools:
            return encoder.prompt(rows)
        text: Any = tenancy.opened.text
        rendered = text.render(rows, True, tools=tools.tools if tools else None)
        return encoder.encode(rendered + (tools.opening if tools else ""))
    except HermitcrabError as error:
        raise Refusal(400, str(error), "messages", "invalid_value") from error


def rows_of(tenancy: Tenancy, given: Any, param: str) -> list[list[int]]:
    """Texts or token ids, one or several, as rows of ids: of an encoder with the tokens that it was taught texts with.

    Raises:
        Refusal: an id that is none.
    """
    text: Any = tenancy.opened.text
    several = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    vocabulary = text.backend.get_vocab_size()
    rows = []
    for part in several:
        if isinstance(part, str):
            encoder = tenancy.opened.encoder
            ids = (
                text.encode(part, special=True)
                if encoder is None
                else replace(encoder, render=None).prompt([{"content": part}])
            )
            rows.append(ids)
            continue
        if wrong := next((token for token in part if token >= vocabulary), None):
            why = f"there is no token {wrong}; the vocabulary has {vocabulary:,}"
            raise Refusal(400, f"`{param}`: {why}", param, "invalid_value")
        rows.append(part)
    return rows


def _schema(schema: dict[str, Any], param: str) -> str:
    """A schema as engines take it.

    Raises:
        Refusal: it is none, or asks for what not every engine holds an answer to.
    """
    from hermitcrab.serve.engines.schema import check

    written = json.dumps(schema, ensure_ascii=False)
    try:
        check(written)
    except HermitcrabError as error:
        raise Refusal(400, f"`{param}`: {error}", param, "invalid_schema") from error
    return written


class Reply(Response):
    """Makes the answers and sends them; all of it ends when the client leaves or the deadline is over.

    `visit` ends with it: a model that was exchanged meanwhile waits for that.
    """

    def __init__(self, house: House, metrics: Metrics, log: Log, prompted: Prompted, deadline: float, visit: ExitStack):
        self.house, self.metrics, self.log, self.request, self.deadline = house, metrics, log, prompted, deadline
        self.visit = visit
        tenancy, asked = prompted.tenancy, prompted.asked
        self.chat = isinstance(asked, ChatRequest)
        text: Any = tenancy.opened.text
        self.writer = Writer(
            self.chat, tenancy.name, tenancy.digest, text.bytes_of, prompted.options.logprobs is not None
        )
        self.between = metrics.between.labels(tenancy.name)
        self.choices = [Choice(i) for i in range(prompted.answers)]
        self.began = time.perf_counter()
        self.first: float | None = None
        self.background = None
        self.begun = self.ended = False
        self.told: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.told = scope["state"].setdefault("told", {})
        main = asyncio.current_task()
        assert main is not None
        gone = asyncio.create_task(self._until_gone(receive, main))
        try:
            async with asyncio.timeout(self.deadline):
                await self._send(scope, receive, send)
        except asyncio.CancelledError:
            if not gone.done() or gone.cancelled() or main.uncancel() > 0:  # the server itself is ending
                if self.begun:
                    ending = Refusal(503, "the server ended before this answer did", None, "draining")
                    await send(_body(replies.event(ending.body()), more=False))
                raise
            self.told["outcome"] = "client_gone"
        except Exception as error:
            refusal = self._refusal(error)
            self.told["outcome"] = refusal.code
            if not self.begun:
                raise refusal from error
            self.ended = True
            await send(_body(replies.event(refusal.body()), more=False))
        finally:
            gone.cancel()
            self.visit.close()
            self._count()

    async def _until_gone(self, receive: Receive, main: asyncio.Task[Any]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self.ended:  # the end of a reply is told in the same way
            main.cancel()

    def _refusal(self, error: Exception) -> Refusal:
        if isinstance(error, Refusal):
            return error
        if isinstance(error, TimeoutError):
            return Refusal(504, f"not answered within {self.deadline:g} seconds", None, "deadline_exceeded")
        if isinstance(error, EngineLost):
            return Refusal(503, str(error), None, "engine_lost", 1)
        if isinstance(error, HermitcrabError):
            self.log("engine_error", "error", error=str(error), model=self.request.tenancy.name)
            options = self.request.options
            special = options.schema is not None or options.logprobs is not None  # what not every engine can do
            refused = special and self.first is None
            return Refusal(
                400 if refused else 500, str(error), None, "unsupported_parameter" if refused else "engine_error"
            )
        self.log.failure("failed", error, model=self.request.tenancy.name)
        return FAILED

    def _count(self) -> None:
        request, now = self.request, time.perf_counter()
        made = sum(choice.tokens for choice in self.choices)
        reasons = [choice.finish_reason for choice in self.choices if choice.finish_reason]
        whole = now - self.began
        self.told |= {"model": request.tenancy.name, "prompt_tokens": request.tokens, "completion_tokens": made}
        self.told |= {"first_token_seconds": self.first and round(self.first, 4), "finish_reasons": reasons}
        if self.log.texts:
            self.told |= {
                "asked": request.asked.model_dump(mode="json"),
                "answered": [choice.text for choice in self.choices],
            }
        told = {"prompt": request.tokens, "made": made, "first": self.first, "whole": whole, "reasons": reasons}
        self.metrics.answered(
            request.tenancy.name, request.tenancy.engine, "chat" if self.chat else "text_completion", told
        )

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.house.room(self.request.tenancy, self.request.answers):
            if not self.request.asked.stream:
                async for _ in self._events():
                    pass
                whole = self.writer.whole(self.choices, self.request.tokens)
                self.ended = True
                await JSONResponse(whole, headers={"x-model-digest": self.request.tenancy.digest})(scope, receive, send)
                return
            events = self._events()
            async with aclosing(events):
                async for part in events:
                    if not self.begun:
                        await self._start(send)
                    await send(_body(part))
            if not self.begun:
                await self._start(send)
            options = self.request.asked.stream_options
            if options is not None and options.include_usage:
                await send(_body(self.writer.count(self.request.tokens, sum(c.tokens for c in self.choices))))
            self.ended = True
            await send(_body(DONE, more=False))

    async def _start(self, send: Send) -> None:
        """Only now, so that what fails before the first token is a status and no stream."""
        digest = self.request.tenancy.digest.encode()
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
                   (b"x-model-digest", digest), (b"x-accel-buffering", b"no")]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self.begun = True

    async def _events(self) -> AsyncGenerator[bytes, None]:
        """What is sent of a stream, of all choices as it comes."""
        if len(self.choices) == 1:
            async with aclosing(self._choice(self.choices[0])) as events:
                async for part in events:
                    yield part
            return
        made: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def run(choice: Choice) -> None:
            async with aclosing(self._choice(choice)) as events:
                async for part in events:
                    made.put_nowait(part)

        async def run_all() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for choice in self.choices:
                        group.create_task(run(choice))
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from None
            finally:
                made.put_nowait(None)

        running = asyncio.create_task(run_all())
        try:
            while (event := await made.get()) is not None:
                yield event
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _choice(self, choice: Choice) -> AsyncGenerator[bytes, None]:
        """One answer, as the events of its stream; `choice` is what a whole reply is made of."""
        request, writer = self.request, self.writer
        options, tools = request.options, request.tools
        if options.seed is not None and choice.index:
            options = replace(options, seed=options.seed + choice.index)
        prompt = request.prompts[choice.index // request.asked.n]
        answer = Answer(request.tenancy.worker, _decoder(request), _ends(request), prompt, options, request.asked.stops)
        calls = Calls(tools) if tools else None
        held: list[Logprob] = []
        last = self.began
        pieces = answer.told()
        async with aclosing(pieces):
            async for told in pieces:
                now = time.perf_counter()
                if answer.tokens > choice.tokens > 0:
                    self.between.observe((now - last) / (answer.tokens - choice.tokens))
                last, choice.tokens = now, answer.tokens
                if self.first is None:
                    self.first = now - self.began
                    if self.chat:
                        for index in range(len(self.choices)):
                            yield writer.first(index)
                text, found = (told.text, []) if calls is None else calls.push(told.text)
                held += told.logprobs
                choice.logprobs += told.logprobs
                for part in self._told(choice, text, found, held):
                    yield part
        choice.tokens = answer.tokens
        if calls is not None:
            text, found = calls.push("", last=True)
            for part in self._told(choice, text, found, held):
                yield part
        named = tools is not None and tools.named
        choice.finish_reason = "tool_calls" if choice.calls and not named else answer.finish_reason
        yield writer.last(choice, held)

    def _told(self, choice: Choice, text: str, found: Sequence[dict[str, Any]], held: list[Logprob]) -> list[bytes]:
        parts = []
        if text:
            choice.text += text
            parts.append(self.writer.piece(choice, text, held))
            held.clear()
        if found:
            choice.calls += found
            parts.append(self.writer.calls(choice, found))
        return parts


def _decoder(request: Prompted) -> Callable[[list[int]], str]:
    """Ids to text; where the model may call tools, special tokens too: a template may write calls with them. Not where a schema
    forces a call: its opening is known, and an engine may end it by a special token of its own."""
    encoder: Any = request.tenancy.opened.encoder
    if request.tools is None or request.tools.schema is not None:
        return encoder.decode
    text: Any = request.tenancy.opened.text
    return lambda ids: text.decode(ids, special=True)


def _ends(request: Prompted) -> frozenset[int]:
    encoder: Any = request.tenancy.opened.encoder
    return encoder.ends


def _body(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
