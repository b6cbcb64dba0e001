"""Texts in normal form, and folded: without what retyping changes.

Each is a function of one text, in Python, and the same of a batch: there the code points of all texts are looked up in a table, and only
texts with a character that the table cannot answer for alone (one that combines, or becomes several) go the long way.

B bytes, N texts, C code points.
"""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numba import njit

from hermitcrab.data.filters import Outcome, Texts
from hermitcrab.data.kernel import MEANING, SPACE, decode, spans, utf8
from hermitcrab.recipe.clean import Normalize

if TYPE_CHECKING:
    import pyarrow as pa

Form = Literal["NFC", "NFKC"]
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ASK = np.uint32(0xFFFFFFFF)  # in a table: this character is not answered for alone
KEY = 16  # bytes of a key, so that those of many rows fit in memory


def normalize_text(text: str, form: Form) -> str:
    """Line ends to \\n, no control characters but \\n and \\t, Unicode normal form, no outer whitespace. Idempotent."""
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return unicodedata.normalize(form, text).strip()


@cache
def _marks() -> dict[int, str]:
    marks = (i for i in range(0x20000) if unicodedata.category(chr(i))[0] == "P")  # above there is none
    return {mark: " " for mark in marks if chr(mark) not in MEANING}


def fold(text: str) -> str:
    """A text without what retyping changes: case (caseless matching, Unicode 3.13), punctuation, whitespace.

    A text of nothing else stays as it is, so that `?` and `!` do not become the same.
    """
    caseless = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(caseless.translate(_marks()).split()) or text.strip()


@cache
def _combine() -> frozenset[str]:
    """Characters that may join the one before them (Unicode Standard Annex 15, quick check: maybe)."""
    found = {chr(code) for first, last in ((0x1161, 0x1175), (0x11A8, 0x11C2)) for code in range(first, last + 1)}
    for code in (code for span in spans() for code in span):
        parts = unicodedata.decomposition(chr(code))
        if parts and parts[0] != "<" and len(pair := parts.split()) == 2:
            found.add(chr(int(pair[1], 16)))
        if unicodedata.combining(chr(code)):
            found.add(chr(code))
    return frozenset(found)


@cache
def _fold_table() -> np.ndarray:
    """Code point → its fold, a space where it parts words, `_ASK` where it is not answered for alone: uint32 [C]."""
    table_C, combine = np.arange(sys.maxunicode + 1, dtype=np.uint32), _combine()
    for code in (code for span in spans() for code in span):
        wide = unicodedata.normalize("NFKC", chr(code))
        folded = wide.casefold().translate(_marks())
        if chr(code) in combine or len(wide) != 1 or wide in combine or len(folded) != 1:
            table_C[code] = _ASK
        else:
            table_C[code] = SPACE if folded.isspace() else ord(folded)
    table_C[0xD800:0xE000], table_C[0x2F800:0x2FA20] = _ASK, _ASK
    return table_C


@cache
def _normal_table(form: Form) -> np.ndarray:
    """Code point → itself, a space for whitespace, `_ASK` where normalization might change it: uint32 [C]."""
    table_C, combine = np.arange(sys.maxunicode + 1, dtype=np.uint32), _combine()
    for code in (code for span in spans() for code in span):
        letter = chr(code)
        if letter in combine or not unicodedata.is_normalized(form, letter) or _CONTROL.match(letter):
            table_C[code] = _ASK
        elif letter.isspace():
            table_C[code] = SPACE
    table_C[0xD800:0xE000], table_C[0x2F800:0x2FA20] = _ASK, _ASK
    return table_C


@njit(cache=True, nogil=True)
def _settled(data_B: np.ndarray, start_N1: np.ndarray, table_C: np.ndarray, settled_N: np.ndarray) -> None:
    for n in range(len(settled_N)):
        i, end, mark, fine = start_N1[n], start_N1[n + 1], SPACE, True
        odd = False
        for k in range(i, end):  # most texts are ASCII: this loop looks at many bytes at once
            byte = data_B[k]
            odd |= (byte >= 127) | ((byte < 32) & (byte != 9) & (byte != 10))
        if not odd:
            settled_N[n] = end > i and table_C[data_B[i]] != SPACE and table_C[data_B[end - 1]] != SPACE
            continue
        first = True
        while i < end:
            code, size = decode(data_B, i, end)
            mark = table_C[code]
            if mark == _ASK or (first and mark == SPACE):
                fine = False
                break
            first = False
            i += size
        settled_N[n] = fine and mark != SPACE


@njit(cache=True, inline="always")
def _put(out_B: np.ndarray, at: int, mark: np.uint32) -> int:
    """Write a code point as UTF-8 at byte `at`; returns the next place."""
    code = np.int64(mark)
    if code < 0x80:
        out_B[at] = code
        return at + 1
    if code < 0x800:
        out_B[at], out_B[at + 1] = 0xC0 | code >> 6, 0x80 | code & 0x3F
        return at + 2
    if code < 0x10000:
        out_B[at], out_B[at + 1], out_B[at + 2] = 0xE0 | code >> 12, 0x80 | code >> 6 & 0x3F, 0x80 | code & 0x3F
        return at + 3
    out_B[at], out_B[at + 1] = 0xF0 | code >> 18, 0x80 | code >> 12 & 0x3F
    out_B[at + 2], out_B[at + 3] = 0x80 | code >> 6 & 0x3F, 0x80 | code & 0x3F
    return at + 4


@njit(cache=True, nogil=True)
def _fold(data_B: np.ndarray, start_N1: np.ndarray, table_C: np.ndarray, out_B: np.ndarray, end_N1: np.ndarray) -> None:
    """A text that is not answered for here ends where it began: it is empty."""
    at = 0
    for n in range(len(start_N1) - 1):
        i, end, began, apart = start_N1[n], start_N1[n + 1], at, False
        end_N1[n] = at
        while i < end:
            code, size = decode(data_B, i, end)
            mark = table_C[code]
            if mark == _ASK:
                at = began
                break
            if mark == SPACE:
                apart = at > began
            else:
                if apart:
                    out_B[at] = 32
                    at, apart = at + 1, False
                at = _put(out_B, at, mark)
            i += size
    end_N1[len(start_N1) - 1] = at


def fold_texts(text: pa.Array) -> pa.Array:
    """`fold` of every text of a large_string array without nulls."""
    import pyarrow as pa

    data_B, start_N1 = utf8(text)
    out_B = np.empty(len(data_B) * 3 // 2 + 4, np.uint8)  # no fold is longer: two bytes become three at most
    end_N1 = np.empty(len(start_N1), np.int64)
    _fold(data_B, start_N1, _fold_table(), out_B, end_N1)
    buffers = [None, pa.py_buffer(end_N1), pa.py_buffer(out_B)]
    folded = pa.Array.from_buffers(pa.large_string(), len(text), buffers)
    left = np.flatnonzero(np.diff(end_N1) == 0)
    return _replaced(folded, left, [fold(text[int(i)].as_py()) for i in left]) if len(left) else folded


def _replaced(text: pa.Array, at: np.ndarray, new: list[str]) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    mask_N = np.zeros(len(text), bool)
    mask_N[at] = True
    return pc.replace_with_mask(text, pa.array(mask_N), pa.array(new, pa.large_string()))


def normalize_texts(text: pa.Array, form: Form) -> pa.Array:
    """`normalize_text` of every text of a large_string array without nulls; the same array where none changes."""
    data_B, start_N1 = utf8(text)
    settled_N = np.empty(len(text), bool)
    _settled(data_B, start_N1, _normal_table(form), settled_N)
    left = np.flatnonzero(~settled_N)
    return _replaced(text, left, [normalize_text(text[int(i)].as_py(), form) for i in left]) if len(left) else text


def keys(text: pa.Array, before: bytes = b"") -> np.ndarray:
    """A digest of each text of a large_string array: S16 [N], of `before` and its UTF-8 (BLAKE2b)."""
    data_B, start_N1 = utf8(text)
    view, start = memoryview(data_B.data), start_N1.tolist()
    found = bytearray()
    for first, last in pairwise(start):
        found += hashlib.blake2b(before + view[first:last], digest_size=KEY).digest()
    return np.frombuffer(bytes(found), f"V{KEY}")


class NormalizeFilter:
    name: ClassVar[str] = "normalize"

    def __init__(self, options: Normalize):
        self.form: Form = options.form or "NFC"

    def __call__(self, texts: Texts) -> Outcome:
        import pyarrow.compute as pc

        new = normalize_texts(texts.text, self.form)
        if new is texts.text:
            return Outcome()
        changed = pc.sum(pc.not_equal(new, texts.text)).as_py() or 0
        empty = pc.equal(pc.binary_length(new), 0).to_pylist()
        reasons = ["empty after normalization" if gone else None for gone in empty] if any(empty) else []
        return Outcome(text=new, reasons=reasons, changed=Counter({"normalized": changed} if changed else {}))
