"""What a server is asked to be, and the parts that it is made of: the same for one process and for each replica of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hermitcrab.errors import UsageError
from hermitcrab.progress import say
from hermitcrab.serve.door import Limits
from hermitcrab.serve.house import House
from hermitcrab.serve.keys import Keys, read_keys
from hermitcrab.serve.logs import Log
from hermitcrab.serve.opening import VECTORS, Opened, open_model
from hermitcrab.serve.spare import Spare
from hermitcrab.store import Store


@dataclass(frozen=True)
class Setup:
    """Can be pickled: nothing is opened or loaded yet.

    Attributes:
        models: as a user names them.
        signer: the public key that packages must be signed by.
        engine, kind, slots, threads, settings: what `choosing.choose` is asked for.
        queue: answers that may wait for each model.
        api_keys: `env:NAME` each; `key_file`: of hashed keys.
        origins: of pages that may ask from elsewhere.
        public: paths that need no key besides the page and the health checks.
        drain: seconds that answers may still take when the server is told to end.
        texts: the log has what was asked and answered.
    """

    models: tuple[str, ...]
    store: Path
    signer: Path | None = None
    unverified: bool = False
    engine: str | None = None
    kind: str | None = None
    slots: int = 8
    threads: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    queue: int = 64
    api_keys: tuple[str, ...] = ()
    key_file: Path | None = None
    origins: tuple[str, ...] = ()
    public: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    drain: float = 30.0
    texts: bool = False

    def keys(self) -> Keys:
        return read_keys(self.api_keys, self.key_file)

    def house(self, log: Log, spare: Spare | None = None) -> House:
        """`spare`: a process that waits for the first model's engine."""
        return House(self.models, self._open, partial(self._engines, spare=spare), self.queue, log)

    def check(self) -> None:
        """Refuse (UsageError) what could never be right."""
        for origin in self.origins:
            scheme, _, rest = origin.partition("://")
            if origin != "*" and (scheme not in ("http", "https") or not rest or "/" in rest):
                raise UsageError(
                    f"--cors: expected an origin such as https://example.org, or *. Received: {origin[:100]}"
                )

    def _open(self, what: str) -> Opened:
        return open_model(what, Store(self.store), self.signer, self.unverified)

    def _engines(self, opened: Opened, spare: Spare | None = None) -> tuple[Any, Any]:
        if opened.task == VECTORS:
            from hermitcrab.serve.predict import embedder_of

            embedder, why = embedder_of(opened, self.threads)
            say(f"{opened.name}: {why}")
            return None, embedder
        if opened.encoder is None:
            from hermitcrab.serve.predict import predictor_of

            predictor, why = predictor_of(opened, self.threads)
            say(f"{opened.name}: {why}")
            return None, predictor
        from hermitcrab.serve.choosing import choose
        from hermitcrab.serve.worker import Worker

        spec, why = choose(opened, self.engine, self.kind, self.slots, self.threads, self.settings)
        say(f"{opened.name}: {why}")
        return Worker(spec, spare), None


@contextmanager
def closing_on_error(thing: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        thing.close()
        raise
