"""What tests of engines give them: tiny real models as the engines' own process is told of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermitcrab.digest import describe_files, digest_file
from hermitcrab.errors import HermitcrabError
from hermitcrab.models.base import describe
from hermitcrab.recipe import Base
from hermitcrab.references import Resolved
from hermitcrab.serve.engine import Logprob, Options, Spec
from hermitcrab.serve.worker import Worker
from hermitcrab.tasks.encoding import load_encoder


def spec_of(folder: Path, **more: Any) -> Spec:
    """The reference engine on a folder of safetensors."""
    base = describe(folder, Resolved(str(folder), str(folder), "", folder, None, "folder"), Base(path=str(folder)))
    encoder = load_encoder(base, folder, "none")
    known: dict[str, Any] = {
        "engine": "transformers", "path": str(folder), "digest": base["digest"], "files": base["files"], "base": base,
        "tokenizer": str(folder), "precision": "float32", "ends": sorted(encoder.ends), "pad": encoder.pad,
        "vocabulary": base["shape"]["vocab_size"],
        "slots": 4, "threads": 1,
    }  # fmt: skip
    return Spec(**{**known, **more})


def gguf_spec(file: Path, engine: str, **more: Any) -> Spec:
    """An engine on a GGUF file of the tiny model."""
    known: dict[str, Any] = {
        "engine": engine, "path": str(file), "digest": digest_file(file), "files": describe_files(file.parent, [file.name]),
        "vocabulary": 280, "slots": 4, "threads": 1, "settings": {"exact": True},
    }  # fmt: skip
    return Spec(**{**known, **more})


@dataclass
class Made:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    finish: str | None = None
    error: Exception | None = None


class Running:
    """A worker with a loop of its own in a thread, so that a test may ask it as it asks anything else."""

    def __init__(self, spec: Spec):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.worker = self.do(self._start(spec))

    async def _start(self, spec: Spec) -> Worker:
        worker = Worker(spec)
        await worker.start()
        return worker

    def do(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(300)

    def ask(self, *asked: tuple[list[int], Options]) -> list[Made]:
        """All of them at once."""

        async def all_of_them() -> list[Made]:
            return await asyncio.gather(*(self._one(prompt, options) for prompt, options in asked))

        return self.do(all_of_them())

    async def _one(self, prompt: list[int], options: Options) -> Made:
        made = Made()
        try:
            async for piece in self.worker.generate(prompt, options):
                assert made.finish is None
                made.tokens += piece.tokens
                made.logprobs += piece.logprobs or []
                made.finish = piece.finish
        except HermitcrabError as error:
            made.error = error
        return made

    def close(self) -> None:
        self.do(self.worker.close(0))
        self.loop.call_soon_threadsafe(self.loop.stop)


@contextmanager
def running(spec: Spec) -> Iterator[Running]:
    made = Running(spec)
    try:
        yield made
    finally:
        made.close()
