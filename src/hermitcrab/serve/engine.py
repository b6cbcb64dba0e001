"""What an engine is: token ids in, token ids out. Templates, texts, stop words, queues and HTTP are not its business.

An engine runs one thing at a time; whoever calls it sees to that. Engines: `transformers_engine`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hermitcrab.errors import UsageError

if TYPE_CHECKING:
    from hermitcrab.serve.opening import Opened

GREEDY_BELOW = 0.01
"""A temperature under this is greedy: dividing by it would overflow."""


@dataclass(frozen=True)
class Options:
    """How an answer is drawn. Greedy by default, as the figures of a package were measured."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    """None: fresh entropy."""


class Engine(Protocol):
    positions: int
    """The most tokens that a prompt and its answer may have together."""

    def generate(self, prompt: list[int], options: Options) -> Generator[int, None, None]:
        """Tokens as they are made, up to and with one that ends an answer. Closing the iterator stops the work."""
        ...

    def close(self) -> None:
        """Stop what runs and free what is held."""
        ...


def load_engine(opened: Opened) -> Engine:
    """The engine of a package.

    Raises:
        UsageError: its task is none that talks.
    """
    if opened.encoder is None:
        raise UsageError(f"{opened.name}: its task is {opened.task}; `crab serve` answers texts. Use `crab predict`")
    from hermitcrab.serve.transformers_engine import TransformersEngine

    return TransformersEngine(opened)
