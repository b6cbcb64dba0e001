"""A task is what a row is, which model, which loss, how to predict. One file each; the loop knows no other word of it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hermitcrab.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from hermitcrab.data.ledger import Ledger
    from hermitcrab.recipe import Evaluate, Train

TASKS = {"text-generation": "hermitcrab.tasks.text_generation:TextGeneration"}


@dataclass
class Loss:
    """A sum and a count, so that accumulation, several processes and ragged last batches are exact."""

    sum: torch.Tensor
    count: int


@dataclass(frozen=True)
class Start:
    """Where a model comes from: the record of a base (`base.json`) and the place of its files."""

    base: dict[str, Any]
    path: Path
    seed: int | None = None  # initial weights, for `scratch`


class Examples(Protocol):
    """Everything trained on, ready to be cut into batches by row number."""

    def __len__(self) -> int: ...
    def row_ids(self, rows: Any) -> list[str]: ...


class Task(Protocol):
    """What the loop, evaluation and packaging call, and nothing else."""

    name: str

    def model(self, dtype: torch.dtype) -> torch.nn.Module:
        """The model to start from, in `dtype`."""
        ...

    def examples(self, rows: pa.Table, ledger: Ledger) -> tuple[Examples, dict[str, Any]]:
        """Rows as trained on, and what the ledger should say besides its counts."""
        ...

    def batch(self, examples: Any, rows: Any) -> Any:
        """Those rows as tensors."""
        ...

    def idle(self, batch: Any) -> Any:
        """A batch of the same shape from which nothing is learnt: what a process runs when it has none left."""
        ...

    def count(self, batch: Any) -> int:
        """What the loss of this batch will count."""
        ...

    def loss(self, model: torch.nn.Module, batch: Any) -> Loss: ...

    def probes(self) -> Any:
        """Fixed inputs, none of anybody's data, on which a merged or compressed model is compared."""
        ...

    def inputs(self, rows: pa.Table) -> dict[str, Any]:
        """What a model is given for these rows, and for a few awkward inputs of our own, each with a name: the same model in
        another format must be given the same."""
        ...

    def asked(self, rows: pa.Table, part: Evaluate) -> str:
        """The digest of what `predict` asks of these rows, without asking it."""
        ...

    def predict(self, model: torch.nn.Module, rows: pa.Table, part: Evaluate, shots: pa.Table | None = None,
                batch_size: int | None = None) -> pa.Table:  # fmt: skip
        """Answers: `row_id, reference, prediction, score` and what else is known of each row."""
        ...


def load_task(name: str) -> Any:
    """The class of a task, by its Hugging Face pipeline name."""
    if name not in TASKS:
        raise UsageError(f"no task is named `{name}`{did_you_mean(name, TASKS)}")
    module, _, attribute = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def make_task(name: str, start: Start, train: Train) -> Task:
    return load_task(name)(start, train)
