"""`crab predict`: answers to what a user names, by the task of the package, as `evaluate` would give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hermitcrab.errors import needs
from hermitcrab.progress import progress
from hermitcrab.serve.opening import Opened
from hermitcrab.tasks import Asking, load_task


class Reference:
    """The model of a package on torch, in the precision that was evaluated: what every other form of it is held against."""

    name = "torch"

    def __init__(self, opened: Opened):
        needs("torch", "train")
        needs("transformers", "train")
        from hermitcrab.evaluate.asking import load

        with progress("loading the model"):
            self.task, self.model = load(opened.task, opened.start, opened.train, opened.precision)
        self.opened = opened

    def predict(self, inputs: list[Any], max_new_tokens: int = 64) -> list[dict[str, Any]]:
        """`{input, prediction, score}` and what else the task knows of each input, in their order."""
        return self.task.answer(self.model, inputs, Asking(self.opened.choices, self.opened.plain_text, max_new_tokens))


def predictor_of(opened: Opened, threads: int = 0) -> tuple[Any, str]:
    """What answers for a model that makes no text, and why it is that: its ONNX file where the package has one whose answers were no
    worse, the reference otherwise."""
    from hermitcrab.serve.choosing import choose_predictor

    made, why = choose_predictor(opened, threads)
    return (Reference(opened) if made is None else made), why


def embedder_of(opened: Opened, threads: int = 0) -> tuple[Any, str]:
    """What makes vectors of texts, and why it is that: the ONNX file of an encoder, or torch on its safetensors."""
    from hermitcrab.serve.choosing import choose_encoder
    from hermitcrab.serve.engines.embedding import OnnxEncoder, TorchEncoder

    spec, why = choose_encoder(opened.path, threads)
    made: Any = OnnxEncoder(spec) if spec.engine == "onnx" else TorchEncoder(spec)
    made.digest = spec.digest  # of what it reads, for every answer
    return made, why


def predict(opened: Opened, words: Sequence[str], column: str, max_new_tokens: int) -> list[dict[str, Any]]:
    """Answers to what a user names.

    Args:
        words: inputs as the task reads them (texts, files, `-` for standard input, `@FILE`).
        column: of an `@FILE` with columns.

    Raises:
        UsageError: an input that is none.
        HermitcrabError: a file that cannot be read, an input that the model has no room for.
    """
    inputs = load_task(opened.task).read_inputs(words, column)  # a wrong one is told before a model is loaded
    return Reference(opened).predict(inputs, max_new_tokens)
