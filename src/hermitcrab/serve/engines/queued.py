"""What engines share that answer each request in a thread of its own: the library blocks, and answers come through one queue."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from hermitcrab.serve.engine import PATIENCE, Options, Piece


@dataclass
class Asked:
    """One request. `over`: nobody waits for it any more."""

    engine: Any
    number: int
    prompt: list[int]
    options: Options
    over: threading.Event = field(default_factory=threading.Event)
    made: list[int] = field(default_factory=list)

    def tell(self, made: Piece | str) -> None:
        self.engine.told.put((self.number, made))

    def run(self) -> None:
        """Answer it, telling each piece, or what went wrong."""
        try:
            self.answer()
        except Exception as error:  # noqa: BLE001 - whoever waits for the answer is told
            if not self.over.is_set():
                self.tell(f"{self.engine.name} failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def answer(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        self.over.set()


class Runs(Protocol):
    def run(self) -> None: ...
    def stop(self) -> None: ...


class Queued:
    """Steps are what has come in since the last one."""

    def __init__(self, slots: int):
        self.slots = slots
        self.told: SimpleQueue[tuple[int, Piece | str]] = SimpleQueue()
        self.pool = ThreadPoolExecutor(slots, thread_name_prefix="answer")
        self.running: dict[int, Runs] = {}

    def begin(self, number: int, answer: Runs) -> None:
        self.running[number] = answer
        self.pool.submit(answer.run)

    def cancel(self, number: int) -> None:
        if number in self.running:
            self.running.pop(number).stop()

    def step(self) -> list[tuple[int, Piece | str]]:
        found: list[tuple[int, Piece | str]] = []
        try:
            found.append(self.told.get(timeout=PATIENCE))
            while True:
                found.append(self.told.get_nowait())
        except Empty:
            pass
        found = [(number, made) for number, made in found if number in self.running]
        for number, made in found:
            if isinstance(made, str) or made.finish:
                self.running.pop(number, None)
        return found

    def close(self) -> None:
        for number in list(self.running):
            self.cancel(number)
