"""What a model computes on calibration rows: training rows, those with the smallest ids, in the batches that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hermitcrab.data.ledger import Ledger
from hermitcrab.progress import progress

if TYPE_CHECKING:
    import pyarrow as pa

    from hermitcrab.tasks import Task


def run(task: Task, model: nn.Module, rows: pa.Table, what: str) -> int:
    """The model once over the rows, for whoever listens to its modules. Returns the number of examples."""
    examples, _ = task.examples(rows, Ledger(task.counts))
    size = task.part.batch_size  # type: ignore[attr-defined]
    model.eval()
    with torch.inference_mode(), progress(what, len(examples), "examples") as bar:
        for start in range(0, len(examples), size):
            which = np.arange(start, min(len(examples), start + size))
            task.decisions(model, task.batch(examples, which))
            bar.add(len(which))
    return len(examples)


@contextmanager
def listening(modules: list[nn.Module], hear: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """`hear(number, input)` whenever one of these modules is called: what it was given first."""

    def hook(number: int) -> Callable[..., None]:
        def called(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            hear(number, inputs[0] if inputs else next(iter(named.values())))

        return called

    handles = [m.register_forward_pre_hook(hook(i), with_kwargs=True) for i, m in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
