"""The engine's own process: it loads what it is told to, steps while there is something to do, and ends with its parent.

    python -P -m hermitcrab.serve.engines.process FD [ENGINE]

FD is one end of a socket pair. ENGINE: what it is likely to be told to load, whose libraries it imports meanwhile. One thread does
everything; another one watches for the parent's end, for a step may be long.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any

from hermitcrab.errors import HermitcrabError
from hermitcrab.serve import engines
from hermitcrab.serve.engine import Options, Piece, Spec
from hermitcrab.serve.wire import Inbox, encode

TELL = 0.25  # seconds between figures


class Loop:
    def __init__(self, engine: Any, made: socket.socket, inbox: Inbox):
        self.engine, self.socket, self.inbox = engine, made, inbox
        self.running: set[int] = set()
        self.steps = 0
        self.told = 0.0

    def run(self) -> None:
        """Until the parent says so, or has gone."""
        while not self.inbox.gone:
            for message in self.inbox.messages(wait=not self.running):
                if message[0] == "end":
                    return
                self._take(message)
            if self.running:
                self._step()

    def _take(self, message: list[Any]) -> None:
        kind, number = message[0], message[1]
        if kind == "add":
            self.running.add(number)
            try:
                self.engine.add(number, message[2], Options(**message[3]))
            except HermitcrabError as error:
                self._tell([(number, str(error))])
        elif kind == "cancel" and number in self.running:
            self.running.discard(number)
            self.engine.cancel(number)
        elif kind == "embed":
            try:
                vectors: Any = self.engine.embed(message[2]).tolist()
            except HermitcrabError as error:
                vectors = str(error)
            self.socket.sendall(encode(["vectors", number, vectors]))
        elif kind == "ping":
            self.socket.sendall(encode(["pong", number]))

    def _step(self) -> None:
        self.steps += 1
        self._tell([(number, made) for number, made in self.engine.step() if number in self.running])

    def _tell(self, found: list[tuple[int, Piece | str]]) -> None:
        rows = []
        for number, made in found:
            if isinstance(made, str):
                self.running.discard(number)
                rows.append([number, made])
                continue
            if made.finish:
                self.running.discard(number)
            probs = None if made.logprobs is None else [[p.token, p.logprob, p.top] for p in made.logprobs]
            rows.append([number, made.tokens, probs, made.finish])
        now = time.monotonic()
        stats = None
        if not self.running or now - self.told > TELL:
            self.told, stats = now, {**self.engine.stats(), "steps": self.steps}
        if rows or stats:
            self.socket.sendall(encode(["step", rows, stats]))


def main(descriptor: int, engine_named: str) -> int:
    os.dup2(2, 1)  # what libraries print is no answer of ours
    _deaf()
    made = socket.socket(fileno=descriptor)
    threading.Thread(target=_watch, args=(made,), daemon=True).start()
    inbox = Inbox(made)
    if engine_named:
        engines.prepare(engine_named)
        _deaf()  # a library may have put its own ears up
    if (message := next(iter(inbox.messages(wait=True)), None)) is None:
        return 0  # it was not needed
    try:
        engine: Any = engines.load(Spec(**message[1]))
    except HermitcrabError as error:
        made.sendall(encode(["failed", str(error)]))
        return 1
    except Exception as error:  # noqa: BLE001 - told to the parent in a sentence, to the log in full
        traceback.print_exc()
        why = " ".join(str(error).split())[:500]
        made.sendall(encode(["failed", f"the engine cannot load the model: {type(error).__name__}: {why}"]))
        return 1
    _deaf()  # a library may have put its own ears up
    facts = {"name": engine.name, "positions": engine.positions, "slots": engine.slots,
             "embeds": hasattr(engine, "embed")}  # fmt: skip
    made.sendall(encode(["ready", facts]))
    try:
        Loop(engine, made, inbox).run()
    except BrokenPipeError:
        pass  # the parent has gone
    finally:
        engine.close()
    return 0


def _deaf() -> None:
    """Signals are meant for the server, which drains first and then ends us."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _watch(made: socket.socket) -> None:
    poll = select.poll()
    poll.register(made, select.POLLRDHUP)
    poll.poll()
    time.sleep(1)  # the loop may be ending by itself
    os._exit(1)


if __name__ == "__main__":
    status = main(int(sys.argv[1]), sys.argv[2])
    sys.stderr.flush()
    os._exit(status)  # libraries' threads are not waited for
