"""`crab predict`: answers to what a user names, by the task of the package, as `evaluate` would give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hermitcrab.errors import needs
from hermitcrab.progress import progress
from hermitcrab.serve.opening import Opened
from hermitcrab.tasks import Asking, load_task


def predict(opened: Opened, words: Sequence[str], column: str, max_new_tokens: int) -> list[dict[str, Any]]:
    """`{input, prediction, score}` and what else the task knows of each input, in their order.

    Args:
        words: inputs as the task reads them (texts, files, `-` for standard input, `@FILE`).
        column: of an `@FILE` with columns.

    Raises:
        UsageError: an input that is none.
        HermitcrabError: a file that cannot be read, an input that the model has no room for.
    """
    from hermitcrab.evaluate.asking import load

    needs("torch", "train")
    needs("transformers", "train")
    inputs = load_task(opened.task).read_inputs(words, column)  # a wrong one is told before a model is loaded
    with progress("loading the model"):
        task, model = load(opened.task, opened.start, opened.train, opened.precision)
    return task.answer(model, inputs, Asking(opened.choices, opened.plain_text, max_new_tokens))
