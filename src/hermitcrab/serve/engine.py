"""What an engine is: token ids in, token ids out. Templates, texts, stop words, queues and HTTP are not its business.

An engine lives in a process of its own (`engines/process.py`), spoken to through `worker.py`. Which one serves a model is decided
in `choosing.py`. Engines: `engines/` has one file each.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from hermitcrab.errors import HermitcrabError

if TYPE_CHECKING:
    import numpy as np

GREEDY_BELOW = 0.01
"""A temperature under this is greedy: dividing by it would overflow."""

PATIENCE = 0.005
"""Seconds that a step may wait where no engine has anything to tell: a new request waits so long at the most."""


class EngineLost(HermitcrabError):
    """The engine's process died under a request that had already begun, so its answer cannot be continued."""


@dataclass(frozen=True)
class Options:
    """How an answer is drawn. Greedy by default, as the figures of a package were measured."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    """None: fresh entropy."""
    logprobs: int | None = None
    """None: none; k: of each made token, and of its k likeliest alternatives."""
    schema: str | None = None
    """A JSON schema (JSON text) that the answer satisfies when it ends by itself."""

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True)
class Logprob:
    """Of one made token: natural logarithms of the model's own probabilities, before temperature and top_p."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Piece:
    """What was made since the last piece; the last one includes the token that ends an answer."""

    tokens: list[int]
    logprobs: list[Logprob] | None = None
    finish: Literal["stop", "length"] | None = None


@dataclass(frozen=True)
class Spec:
    """All that a process of its own needs to load an engine; JSON can say it.

    Attributes:
        engine: its name, as in `engines.ENGINES`.
        path: weights: a GGUF file, a folder of safetensors, a folder with OpenVINO's files, an ONNX file.
        files: what is read of it, `{path, size, sha256}` each (relative to the folder): digested again right before loading.
        digest: of these files together, or of the one; what an answer's `system_fingerprint` tells.
        base: the record of a model as `models.base.describe` gives it, where the engine needs it (transformers).
        tokenizer: a folder with tokenizer.json, for grammars; None: schemas are refused by engines that need it.
        ends: tokens that end an answer. pad: any token that may fill a batch. vocabulary: ids are below it; 0: not known.
        positions: the most tokens of a prompt and its answer that the model was made for; 0: as its files say.
        slots: answers made at once.
        threads: 0: as many as this process may use.
        settings: what only this engine knows (`--vllm-python` and the like).
    """

    engine: str
    path: str
    digest: str
    files: list[dict[str, Any]] = field(default_factory=list)
    base: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    precision: str = "bfloat16"
    ends: list[int] = field(default_factory=list)
    pad: int = 0
    vocabulary: int = 0
    positions: int = 0
    slots: int = 8
    threads: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def cores(self) -> int:
        return cores(self.threads)


def cores(threads: int) -> int:
    """Threads to compute with (0: as many as there may be): never more than the processors that this process may use."""
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(threads or free, free))


class Engine(Protocol):
    """Lives in the worker's process; one thread calls it."""

    name: str
    positions: int
    """The most tokens that a prompt and its answer may have together."""
    slots: int
    """Answers made at once; no more are ever added."""

    def add(self, number: int, prompt: list[int], options: Options) -> None:
        """A request to be answered.

        Raises:
            HermitcrabError: it asks for what this engine cannot do.
        """
        ...

    def cancel(self, number: int) -> None:
        """Nobody wants this answer any more; nothing of it is told after this."""
        ...

    def step(self) -> list[tuple[int, Piece | str]]:
        """At most one step of all that run; a text is the error of that request, which is over then.

        Where nothing is ready it waits, but for no more than `PATIENCE`.
        """
        ...

    def stats(self) -> dict[str, float]:
        """What it knows of itself: `kv_cache_usage` (0 to 1), `prefix_hits` and the like; may be empty."""
        ...

    def close(self) -> None:
        """Stop what runs and free what is held."""
        ...


class Embedder(Protocol):
    """Texts into vectors."""

    name: str
    positions: int
    dimensions: int

    def embed(self, rows: list[list[int]]) -> np.ndarray:
        """Token ids of N texts → float32 [N, D].

        Raises:
            HermitcrabError: a row that is empty or longer than `positions`.
        """
        ...


class Predictor(Protocol):
    """Any other task: what a user names into answers."""

    name: str

    def predict(self, inputs: list[Any]) -> list[dict[str, Any]]:
        """`{input, prediction, score, …}` of each, as `Task.answer` gives them."""
        ...


def check_files(spec: Spec) -> None:
    """What will be loaded is what the record says.

    Raises:
        HermitcrabError: a file that is gone or is another.
    """
    from hermitcrab.models.load import verified

    with verified({"files": spec.files}, Path(spec.path)):
        pass
