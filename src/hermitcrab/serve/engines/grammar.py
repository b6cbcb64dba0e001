"""JSON schemas held to while an answer is drawn, by llguidance, on the ids of a model's own tokenizer. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.serve.engines import schema


class Grammars:
    """Of one vocabulary: `size` ids, of which `ends` end an answer.

    Raises:
        HermitcrabError: the model has no tokenizer.json beside it.
    """

    def __init__(self, folder: str | None, size: int, ends: list[int]):
        path = Path(folder or "") / "tokenizer.json"
        if not path.is_file():
            raise HermitcrabError("a schema needs the model's tokenizer.json, and there is none beside it")
        guidance: Any = needs("llguidance", "serve")
        self.guidance, self.size = guidance, size
        self.tokenizer = guidance.LLTokenizer(path.read_text(encoding="utf-8"), n_vocab=size, eos_token=ends)

    def rule(self, text: str) -> Rule:
        """Of one answer."""
        schema.check(text)
        matcher = self.guidance.LLMatcher
        made = matcher(self.tokenizer, matcher.grammar_from_json_schema(text))
        if made.is_error():
            raise HermitcrabError(f"the JSON schema cannot be held to: {made.get_error()[:200]}")
        return Rule(made, self.size)


class Rule:
    """What one answer may be."""

    def __init__(self, matcher: Any, size: int):
        self.matcher, self.size = matcher, size

    def allowed(self) -> np.ndarray:
        """Which tokens may come next, bool [V]."""
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self.size].astype(bool)

    def take(self, token: int) -> None:
        self.matcher.consume_token(token)
