"""The models that a server has: each with its engine, its files watched, exchanged for a new one without losing a request.

A tenancy is one loading of one model. A reload makes new tenancies beside the old ones, then switches; a request finishes on the
one where it began, and an old one is closed when its last request is done.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hermitcrab.errors import HermitcrabError, UsageError, did_you_mean
from hermitcrab.lineage.sign import CLAIMS
from hermitcrab.models.formats.weights import Stamp
from hermitcrab.serve.logs import Log
from hermitcrab.serve.opening import RECORD, Opened, stamps_of
from hermitcrab.serve.requests import Refusal
from hermitcrab.serve.tools import Form, form_of

LOOK = 5.0  # seconds between two looks at the files of the models
Engines = Callable[[Opened], tuple[Any, Any]]
"""A model to (worker, predictor), one of them None; nothing is loaded yet."""


@dataclass
class Tenancy:
    """One loading of one model.

    Attributes:
        worker: its engine, of a model that makes text; `predictor`: of any other, with `predict` or `embed`.
        digest: of what the engine reads.
        lineage: what `GET /lineage` tells of it.
        tools: how its template writes tool calls.
        active: answers that are being made or wait.
        visitors: requests that found it and are not done: an old one is closed when the last has left.
    """

    opened: Opened
    worker: Any
    predictor: Any
    lineage: dict[str, Any]
    stamps: dict[Any, Stamp]
    tools: Form | None = None
    active: int = 0
    visitors: int = 0
    changed: str | None = None
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "predict"))

    @property
    def name(self) -> str:
        return self.opened.name

    @property
    def engine(self) -> str:
        return (self.worker or self.predictor).name

    @property
    def digest(self) -> str:
        return getattr(self.worker or self.predictor, "digest", None) or self.opened.digest

    def look(self) -> str | None:
        """The file that is no longer what was loaded; None where all are."""
        for path, stamp in self.stamps.items() if self.changed is None else ():
            try:
                same = Stamp.of(path.stat()) == stamp
            except OSError:
                same = False
            if not same:
                self.changed = f"{path.name} of {self.name} was changed on disk after it was loaded"
                break
        return self.changed

    @property
    def predicts(self) -> bool:
        return hasattr(self.predictor, "predict")

    @property
    def embeds(self) -> bool:
        return hasattr(self.predictor, "embed")

    async def predict(self, inputs: list[Any]) -> list[dict[str, Any]]:
        return await asyncio.get_running_loop().run_in_executor(self.pool, self.predictor.predict, inputs)

    async def embed(self, rows: list[list[int]]) -> list[list[float]]:
        found = await asyncio.get_running_loop().run_in_executor(self.pool, self.predictor.embed, rows)
        return found.tolist()

    async def alive(self, seconds: float) -> bool:
        """Whether the engine itself answers within so long."""
        if self.worker is not None:
            return await self.worker.alive(seconds)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self.pool, int), seconds)
        except TimeoutError:
            return False
        return True

    async def close(self, seconds: float) -> None:
        if self.worker is not None:
            await self.worker.close(seconds)
        else:
            await asyncio.to_thread(self.pool.shutdown, True)
            if close := getattr(self.predictor, "close", None):
                close()


class House:
    """All models by name.

    Args:
        what: the models as a user named them; `opens` finds and verifies one, `engines` gives it its engine.
        queue: answers that may wait for each model, beyond those that its engine makes at once.
    """

    def __init__(self, what: Sequence[str], opens: Callable[[str], Opened], engines: Engines, queue: int, log: Log):
        self.what, self.opens, self.engines, self.queue, self.log = what, opens, engines, queue, log
        self.models: dict[str, Tenancy] = {}
        self.draining = False
        self.reloading = asyncio.Lock()
        self.leaving: set[asyncio.Task[None]] = set()

    def open(self) -> list[Opened]:
        """Every model, verified; nothing is loaded yet.

        Raises:
            UsageError: two of the same name.
            HermitcrabError: one that cannot be used.
        """
        found = [self.opens(what) for what in self.what]
        for opened in found:
            if sum(other.name == opened.name for other in found) > 1:
                raise UsageError(f"two models are named `{opened.name}`; a request could not tell them apart")
        return found

    async def load(self, found: Sequence[Opened]) -> dict[str, Tenancy]:
        """Engines for all of them, or for none.

        Raises:
            HermitcrabError: an engine cannot load its model.
        """
        made: dict[str, Tenancy] = {}
        try:
            for opened in found:
                made[opened.name] = await self._load(opened)
        except BaseException:
            for tenancy in made.values():
                await tenancy.close(0)
            raise
        return made

    async def _load(self, opened: Opened) -> Tenancy:
        worker, predictor = await asyncio.to_thread(self.engines, opened)
        if worker is not None:
            await worker.start()
        stamps = dict(opened.stamps)
        if spec := getattr(worker, "spec", None):  # what it reads besides the package: a form made for this engine
            root = _folder(spec.path)
            stamps = {**stamps_of(root, [file["path"] for file in spec.files]), **stamps}
        tenancy = Tenancy(opened, worker, predictor, {}, stamps, form_of(opened.text) if worker is not None else None)
        tenancy.lineage = lineage_of(tenancy)
        return tenancy

    async def reload(self, patience: float) -> list[str]:
        """All models again, as they are on disk now; no request is dropped. Old engines have `patience` seconds to finish.

        Raises:
            HermitcrabError: one cannot be used; everything stays as it was.
        """
        async with self.reloading:
            found = await asyncio.to_thread(self.open)
            new = await self.load(found)
            old, self.models = self.models, new
        for tenancy in old.values():
            task = asyncio.create_task(_leave(tenancy, patience))
            self.leaving.add(task)
            task.add_done_callback(self.leaving.discard)
        self.log("reloaded", models={name: tenancy.digest for name, tenancy in new.items()})
        return list(new)

    async def close(self, patience: float) -> None:
        await asyncio.gather(*(tenancy.close(patience) for tenancy in self.models.values()), *self.leaving)

    def find(self, name: str) -> Tenancy:
        """The model of that name.

        Raises:
            Refusal: 404 there is none; 503 its files were changed.
        """
        tenancy = self.models.get(name)
        if tenancy is None:
            here = ", ".join(f"`{known}`" for known in sorted(self.models))
            near = did_you_mean(name[:100], self.models) if len(self.models) > 3 else f"; this server has {here}"
            raise Refusal(404, f"there is no model `{name[:100]}` here{near}", "model", "model_not_found")
        return tenancy

    @contextmanager
    def visit(self, name: str) -> Iterator[Tenancy]:
        """The model of that name, which stays as it is until the request is done.

        Raises:
            Refusal: 404 there is none.
        """
        tenancy = self.find(name)
        tenancy.visitors += 1
        try:
            yield tenancy
        finally:
            tenancy.visitors -= 1

    @contextmanager
    def room(self, tenancy: Tenancy, answers: int) -> Iterator[None]:
        """Room for so many answers.

        Raises:
            Refusal: 503 where the server ends, is full, or the model's files were changed; 400 where they would never fit.
        """
        slots = tenancy.worker.slots if tenancy.worker is not None else 1
        if self.draining:
            raise Refusal(503, "the server is about to end and takes no new request", None, "draining", 5)
        if tenancy.changed:
            raise Refusal(503, f"{tenancy.changed}; it is served again after a reload", "model", "model_changed", 30)
        if answers > slots + self.queue:
            message = f"{answers} answers at once; this server has room for {slots + self.queue} in all"
            raise Refusal(400, message, "n", "too_many_choices")
        if tenancy.active + answers > slots + self.queue:
            message = f"the server is full: {tenancy.active} answers are being made or wait; try again later"
            raise Refusal(503, message, None, "queue_full", 1)
        tenancy.active += answers
        try:
            yield
        finally:
            tenancy.active -= answers

    def told(self) -> list[dict[str, Any]]:
        """Name, digest and engine of each model, and whether it was verified."""
        return [
            {"name": t.name, "digest": t.digest, "engine": t.engine, "verified": t.opened.verified is not None}
            for t in self.models.values()
        ]

    @property
    def active(self) -> int:
        return sum(tenancy.active for tenancy in self.models.values())

    def look(self) -> list[str]:
        """Files that were changed; each is told once in the log."""
        found = []
        for tenancy in self.models.values():
            known = tenancy.changed
            if changed := tenancy.look():
                found.append(changed)
                if known is None:
                    self.log("model_changed", "error", model=tenancy.name, why=changed)
        return found

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            await asyncio.to_thread(self.look)

    def gauges(self) -> dict[str, dict[str, float]]:
        """The state of each model, under vLLM's names."""
        found = {}
        for name, tenancy in self.models.items():
            known = tenancy.worker.stats() if tenancy.worker is not None else {}
            found[name] = {
                "vllm:num_requests_running": known.get("running", tenancy.active),
                "vllm:num_requests_waiting": known.get("waiting", 0),
                "vllm:kv_cache_usage_perc": known.get("kv_cache_usage", 0),
                "crab:engine_restarts": known.get("restarts", 0),
                "crab:engine_steps": known.get("steps", 0),
            }
        return found


def _folder(path: str) -> Any:
    from pathlib import Path

    found = Path(path)
    return found if found.is_dir() else found.parent


def lineage_of(tenancy: Tenancy) -> dict[str, Any]:
    """What is served, by digest, with its signed record: the claims can be checked against the signer's key by whoever asks."""
    opened = tenancy.opened
    folder = opened.path if opened.path.is_dir() else opened.path.parent
    record, claims = folder / RECORD, folder / CLAIMS
    try:
        told = json.loads(record.read_bytes()) if record.is_file() else None
        lines = [json.loads(line) for line in claims.read_bytes().splitlines()] if claims.is_file() else []
    except (OSError, ValueError) as error:
        if opened.verified is not None:
            raise HermitcrabError(f"{folder}: changed since it was verified a moment ago: {error}") from error
        told, lines = None, []
    return {
        "model": opened.name,
        "task": opened.task,
        "digest": tenancy.digest,
        "model_digest": opened.digest,
        "engine": tenancy.engine,
        "template_digest": opened.encoder.template_digest if opened.encoder else None,
        "verified": opened.verified,
        "record": told,
        "claims": lines,
    }


async def _leave(tenancy: Tenancy, patience: float) -> None:
    """Closes an old tenancy when whoever found it is done: a request that was being read when it was exchanged is answered by it."""
    loop = asyncio.get_running_loop()
    until = loop.time() + patience
    while tenancy.visitors and loop.time() < until:
        await asyncio.sleep(0.02)
    await tenancy.close(max(0.0, until - loop.time()))
