"""`crab predict`: answers to what a user names, by the task of the package, as `evaluate` would give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hermitcrab.errors import needs
from hermitcrab.progress import progress
from hermitcrab.serve.opening import Opened, encoder_file
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
    from hermitcrab.serve.choosing import forms

    found = [form for form in forms(opened) if form.format == "onnx" and form.tied]
    if not found:
        return Reference(
            opened
        ), "torch, the reference, for the package has no ONNX file (`compress: {onnx: [f32]}` in its recipe makes one)"
    from hermitcrab.serve.engines.onnx import OnnxPredictor

    best = max(found, key=lambda form: form.size)
    file = best.path / best.files[0]["path"] if best.path.is_dir() else best.path
    made = OnnxPredictor(opened.task, opened.start.fitted, file, threads)
    made.digest = best.digest  # type: ignore[attr-defined]  # of what it reads, for every answer
    return made, f"{made.name} on {file.name}"


def embedder_of(opened: Opened, threads: int = 0) -> Any:
    """What makes vectors of texts: the ONNX file of an encoder, or torch on its safetensors."""
    from hermitcrab.serve.engine import Spec
    from hermitcrab.serve.engines.embedding import OnnxEncoder, TorchEncoder

    text: Any = opened.text
    file = encoder_file(opened.path)
    assert file is not None
    onnx = file.suffix == ".onnx"
    spec = Spec(
        engine="onnx" if onnx else "transformers",
        path=str(file if onnx else opened.path),
        digest=opened.digest,
        tokenizer=str(opened.path),
        precision=opened.precision,
        pad=text.id("pad_token") or 0,
        threads=threads,
    )
    return OnnxEncoder(spec) if onnx else TorchEncoder(spec)


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
