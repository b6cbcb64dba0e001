"""Tokens as bytes, from a GGUF file's own list, and which tokens stand before one that completed a character."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from hermitcrab.errors import HermitcrabError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """`inferred` counts the tokens of which the bytes left more than one choice."""

    def __init__(self, metadata: dict[str, Any]):
        self.kind = metadata.get("tokenizer.ggml.model")
        self.texts: list[str] = metadata.get("tokenizer.ggml.tokens") or []
        self.inferred = 0

    @cached_property
    def spelled(self) -> list[bytes]:
        """Of each token, as it stands in a text."""
        if self.kind == "gpt2":
            letters = byte_letters()
            return [b"".join(letters.get(c, c.encode()) for c in text) for text in self.texts]
        return [
            bytes([int(match[1], 16)]) if (match := _BYTE.fullmatch(text)) else text.replace("▁", " ").encode()
            for text in self.texts
        ]

    @cached_property
    def ids(self) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for token, data in enumerate(self.spelled):
            found.setdefault(data, token)
        return found

    def before(self, text: bytes, last: int, count: int) -> list[int]:
        """The `count` tokens that, with `last` behind them, make `text`; each of them left a character unfinished.

        Raises:
            HermitcrabError: there are none.
        """
        own = self.spelled[last]
        if not text.endswith(own):
            raise HermitcrabError(f"token {last} does not end {text!r}")
        start = text[: len(text) - len(own)]
        choices = self._cuts(start, count)
        first = next(choices, None)
        if first is None:
            raise HermitcrabError(f"no {count} tokens make {start!r}")
        if next(choices, None) is not None:
            self.inferred += count
        return first

    def _cuts(self, data: bytes, count: int, done: bytes = b"") -> Iterator[list[int]]:
        """Longest tokens first, as an encoder would cut."""
        if count == 0:
            if not data:
                yield []
            return
        for size in range(len(data) - count + 1, 0, -1):
            token = self.ids.get(data[:size])
            if token is not None and unfinished(done + data[:size]):
                for rest in self._cuts(data[size:], count - 1, done + data[:size]):
                    yield [token, *rest]


def unfinished(data: bytes) -> bool:
    """Does the library wait for more? It does behind a first byte of a character until as many follow as it announces, whichever."""
    return any(back < _length(data[-back]) for back in range(1, min(4, len(data)) + 1))


def _length(byte: int) -> int:
    """Bytes that a character has that begins so; 1 where none does."""
    return 4 if byte & 0xF8 == 0xF0 else 3 if byte & 0xF0 == 0xE0 else 2 if byte & 0xE0 == 0xC0 else 1


def byte_letters() -> dict[str, bytes]:
    """The letters that stand for bytes in byte-level vocabularies: printable ones for themselves, the others from U+0100 on.

    The mapping of GPT-2's encoder (https://github.com/openai/gpt-2/blob/master/src/encoder.py, `bytes_to_unicode`).
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): bytes([byte]) for byte in plain} | {chr(256 + n): bytes([byte]) for n, byte in enumerate(others)}
