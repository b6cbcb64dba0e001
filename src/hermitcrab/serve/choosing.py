"""Which engine serves a model."""

from __future__ import annotations

from hermitcrab.errors import UsageError
from hermitcrab.serve.engine import Spec
from hermitcrab.serve.opening import Opened


def choose(
    opened: Opened, engine: str | None = None, kind: str | None = None, slots: int = 8, threads: int = 0
) -> tuple[Spec, str]:
    """The engine of a package, and the sentence that says why it.

    Args:
        engine: the one that was asked for.
        kind: the type of the GGUF file that was asked for (`Q4_0`).

    Raises:
        UsageError: a task that makes no text, or an engine that cannot serve this model.
    """
    if opened.encoder is None:
        raise UsageError(f"{opened.name}: its task is {opened.task}; it makes no text")
    from hermitcrab.models.tokenizer import read_tokenizer

    spec = Spec(
        engine="transformers",
        path=str(opened.path),
        digest=opened.base["digest"],
        files=opened.base["files"],
        base=opened.base,
        tokenizer=str(opened.path),
        precision=opened.precision,
        ends=sorted(opened.encoder.ends),
        pad=opened.encoder.pad,
        vocabulary=read_tokenizer(opened.path).backend.get_vocab_size(),
        slots=slots,
        threads=threads,
    )
    return spec, "transformers, the reference engine"
