"""An engine in a process of its own, and its asyncio client here.

    Worker.generate → waiting → (a slot is free) → the engine's process → pieces → whoever iterates

Notable:
- No more requests than the engine has slots are ever with it, so what a dead process takes with it is what had begun.
- A process that dies is started again, later each time. Requests that had no token yet are given to the new one; twice at most,
  for one of them may be what kills it.
- The process is spawned, not forked: engines have threads. It ends when this one does, however that ends.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, field
from typing import Any

from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import say, warn
from hermitcrab.serve.engine import EngineLost, Logprob, Options, Piece, Spec
from hermitcrab.serve.spare import Spare, spawn
from hermitcrab.serve.wire import encode, read

SOONEST, LATEST = 0.1, 30.0  # seconds before a dead engine is started again: doubled each time
GIVE_UP = 5  # failed starts in a row after which who waits is told
TRIES = 2  # times that a request without a token is given to an engine that dies
ENDING = 3.0  # seconds that an engine may take to end


@dataclass
class Request:
    number: int
    prompt: list[int]
    options: Options
    made: asyncio.Queue[Piece | HermitcrabError] = field(default_factory=asyncio.Queue)
    begun: bool = False
    tries: int = 0


class Worker:
    """One engine. All of its methods belong to one event loop. `spare`: a process that may wait for it already."""

    def __init__(self, spec: Spec, spare: Spare | None = None):
        self.spec, self._spare = spec, spare
        self.name, self.digest = spec.engine, spec.digest
        self.positions, self.slots = spec.positions, spec.slots
        self.ready = self.closing = self.embeds = False
        self.restarts = 0
        self._numbers = itertools.count(1)
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._pings: dict[int, asyncio.Future[bool]] = {}
        self._vectors: dict[int, asyncio.Future[list[list[float]] | str]] = {}
        self._known: dict[str, float] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the engine.

        Raises:
            HermitcrabError: it cannot; the message is its own.
        """
        await self._launch()
        self._keeper = asyncio.create_task(self._keep())

    async def generate(self, prompt: list[int], options: Options) -> AsyncGenerator[Piece, None]:
        """The answer, piece by piece; the last one has `finish`. Closing the iterator cancels the request in the engine.

        Raises:
            HermitcrabError: the prompt is empty or does not fit, or the engine says that it cannot.
            EngineLost: the engine died after the first piece.
        """
        self._check(prompt, options)
        request = Request(next(self._numbers), prompt, options)
        self._waiting.append(request)
        self._idle.clear()
        self._fill()
        try:
            while True:
                made = await request.made.get()
                if isinstance(made, HermitcrabError):
                    raise made
                yield made
                if made.finish:
                    return
        finally:
            self._drop(request)

    async def embed(self, rows: list[list[int]]) -> list[list[float]]:
        """A vector of each text, given as token ids with those that begin and end it.

        Raises:
            HermitcrabError: a text does not fit, or this engine makes no vectors.
            EngineLost: the engine died meanwhile.
        """
        if not self.embeds or not self.ready or self.closing:
            why = "is being started again" if self.embeds and not self.ready else "makes no vectors"
            raise HermitcrabError(f"the engine {self.name} {'takes no new request' if self.closing else why}")
        number = next(self._numbers)
        made = self._vectors[number] = asyncio.get_running_loop().create_future()
        self._idle.clear()
        try:
            self._send(["embed", number, rows])
            found = await made
        finally:
            del self._vectors[number]
            self._rest()
        if isinstance(found, str):
            raise HermitcrabError(found)
        return found

    async def alive(self, seconds: float) -> bool:
        """Did the engine's own loop turn within so long? False while it is being started again."""
        if not self.ready:
            return False
        number = next(self._numbers)
        answered = self._pings[number] = asyncio.get_running_loop().create_future()
        self._send(["ping", number])
        try:
            return await asyncio.wait_for(answered, seconds)
        except TimeoutError:
            return False
        finally:
            del self._pings[number]

    async def close(self, seconds: float) -> None:
        """Takes nothing new, lets what there is go on for so long, then ends the engine's process."""
        self.closing = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            self._fail(EngineLost("the server is ending, and this answer was not finished in time"))
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._process is not None:
            if self.ready:
                self._send(["end"])
                self._writer.close()
            await self._end(self._process)
        self.ready = False

    def kill(self) -> None:
        """Ends an engine that does not answer; it is started again."""
        if self._process is not None:
            self._process.kill()

    def stats(self) -> dict[str, float]:
        """Figures of now: `running`, `waiting`, `restarts`, `steps`, and what else the engine knows of itself."""
        return {
            **self._known,
            "running": len(self._running),
            "waiting": len(self._waiting),
            "restarts": self.restarts,
            "slots": self.slots,
        }

    # Requests

    def _check(self, prompt: list[int], options: Options) -> None:
        if self.closing:
            raise HermitcrabError("the server is ending and takes no new request")
        if not prompt or options.max_tokens < 1:
            raise HermitcrabError("expected a prompt of at least one token, and one token at least to be made")
        if len(prompt) + options.max_tokens > self.positions:
            raise HermitcrabError(
                f"{len(prompt):,} tokens and {options.max_tokens:,} for the answer do not fit; the engine "
                f"({self.name}) has room for {self.positions:,}"
            )
        bound = self.spec.vocabulary
        wrong = next((token for token in prompt if token < 0 or (bound and token >= bound)), None)
        if wrong is not None:
            raise HermitcrabError(f"the prompt has token {wrong}; the model's are 0 to {bound - 1:,}")

    def _fill(self) -> None:
        while self.ready and self._waiting and len(self._running) < self.slots:
            request = self._waiting.popleft()
            request.tries += 1
            self._running[request.number] = request
            self._send(["add", request.number, request.prompt, asdict(request.options)])

    def _drop(self, request: Request) -> None:
        if self._running.pop(request.number, None) is not None and self.ready:
            self._send(["cancel", request.number])
        elif request in self._waiting:
            self._waiting.remove(request)
        self._fill()
        self._rest()

    def _rest(self) -> None:
        if not self._running and not self._waiting and not self._vectors:
            self._idle.set()

    def _fail(self, error: HermitcrabError) -> None:
        for request in [*self._running.values(), *self._waiting]:
            request.made.put_nowait(error)
        self._waiting.clear()

    def _send(self, message: list[Any]) -> None:
        self._writer.write(encode(message))

    # The process

    async def _launch(self) -> None:
        began = time.monotonic()
        spare, self._spare = self._spare, None
        taken = spare.take(self.spec) if spare is not None else None
        process, ours = taken if taken is not None else await asyncio.to_thread(_fresh, self.spec.cores)
        self._process = process
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        try:
            self._send(["load", asdict(self.spec)])
            message = await read(self._reader)
        except BaseException:
            process.kill()
            raise
        if message is None or message[0] != "ready":
            self._writer.close()
            await self._end(process)
            why = _ended(process) if message is None else message[1]
            raise HermitcrabError(f"{self.spec.engine}: {why}")
        facts = message[1]
        self.name, self.positions, self.slots = facts["name"], facts["positions"], facts["slots"]
        self.embeds = facts["embeds"]
        self.ready = True
        say(f"engine {self.name}: {self.slots} at once, {self.positions:,} positions, {self.spec.cores} threads, "
            f"ready after {time.monotonic() - began:.1f} s")  # fmt: skip

    async def _keep(self) -> None:
        """Listens; starts the process again where it dies."""
        failures = 0
        while True:
            steps = self._known.get("steps", 0)
            while (message := await read(self._reader)) is not None:
                self._hear(message)
            self.ready = False
            self._writer.close()
            assert self._process is not None
            await self._end(self._process)
            if self._known.get("steps", 0) != steps:
                failures = 0  # it had worked
            warn(f"engine {self.name}: {_ended(self._process)}; {self._lose()}; it is started again")
            while not self.ready:
                await asyncio.sleep(min(SOONEST * 2**failures, LATEST))
                failures += 1
                self.restarts += 1
                try:
                    await self._launch()
                except (HermitcrabError, OSError) as error:  # no memory for a process is told by the system
                    warn(str(error))
                    if failures >= GIVE_UP:
                        self._fail(EngineLost(f"the engine cannot be started: {error}"))
            self._fill()

    def _lose(self) -> str:
        """Requests of a dead process: given back, or told. Returns what became of them."""
        for answered in self._pings.values():
            if not answered.done():
                answered.set_result(False)
        for waited in self._vectors.values():
            if not waited.done():
                waited.set_exception(EngineLost("the engine died before it had made the vectors"))
        again, lost = [], 0
        for request in self._running.values():
            if request.begun or request.tries >= TRIES:
                when = "in the middle of this answer" if request.begun else f"{TRIES} times before this answer began"
                request.made.put_nowait(EngineLost(f"the engine died {when}"))
                lost += 1
            else:
                again.append(request)
        self._running.clear()
        self._waiting.extendleft(reversed(again))
        return f"{lost} answers are lost, {len(again)} are asked again"

    def _hear(self, message: list[Any]) -> None:
        if message[0] == "vectors":
            if (waited := self._vectors.get(message[1])) and not waited.done():
                waited.set_result(message[2])
            return
        if message[0] == "pong":
            if (answered := self._pings.get(message[1])) and not answered.done():
                answered.set_result(True)
            return
        for row in message[1]:
            request = self._running.get(row[0])
            if request is None:
                continue  # nobody wants it any more
            made = HermitcrabError(row[1]) if isinstance(row[1], str) else _piece(*row[1:])
            request.begun = True
            if isinstance(made, HermitcrabError) or made.finish:
                del self._running[row[0]]
            request.made.put_nowait(made)
        self._known.update(message[2] or {})
        self._fill()

    async def _end(self, process: subprocess.Popen[bytes]) -> None:
        try:
            await asyncio.to_thread(process.wait, ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)


def _piece(tokens: list[int], probs: list[Any] | None, finish: Any) -> Piece:
    if probs is None:
        return Piece(tokens, None, finish)
    return Piece(tokens, [Logprob(t, p, [(a, b) for a, b in top]) for t, p, top in probs], finish)


def _fresh(threads: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        return spawn(theirs, threads), ours


def _ended(process: subprocess.Popen[bytes]) -> str:
    status = process.returncode
    if status is not None and status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    return f"its process ended with status {status}"
