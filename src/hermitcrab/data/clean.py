"""Filters over the three splits, in the recipe's order: each row that goes has a reason.

normalize       Unicode normal form (UAX #15), line ends, control characters, outer whitespace
exact-dedup     one row a question: of rows with the same text or prompt, one stays
decontaminate   what stands in test data leaves training and validation data; what stands in validation data, training
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import unicodedata
from functools import cache
from typing import Any, Literal

from hermitcrab.data.tables import FORMATS, Splits, answer, column_kind, dump_json, dump_messages, question, rows_of
from hermitcrab.progress import progress

Form = Literal["NFC", "NFKC"]
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_OTHER_ANSWER = {
    "image-label": "same image, other label",
    "text-label": "same text, other label",
    "tabular": "same record, other target",
}
_MEANING = "%&*/\\@#"  # punctuation to Unicode, but not to formulas and code: 2*3 is no other spelling of 2/3


def normalize_text(text: str, form: Form) -> str:
    """Line ends to \\n, no control characters but \\n and \\t, Unicode normal form, no outer whitespace. Idempotent."""
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return unicodedata.normalize(form, text).strip()


@cache
def _marks() -> dict[int, str]:
    marks = (i for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i))[0] == "P")
    return {mark: " " for mark in marks if chr(mark) not in _MEANING}


def fold(text: str) -> str:
    """A text without what retyping changes: case (caseless matching, Unicode 3.13), punctuation, whitespace.

    A text of nothing else stays as it is, so that `?` and `!` do not become the same.
    """
    caseless = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(caseless.translate(_marks()).split()) or text.strip()


def _key(text: str) -> bytes:
    """16 bytes for a text of any length, so that the keys of many rows fit in memory."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def normalize(splits: Splits, form: Form) -> None:
    """Bring every text to normal form. Rows that this changes are counted; rows that it empties are dropped."""
    import pyarrow as pa

    for split, table in splits.tables.items():
        rows, reasons = [], list[str | None]()
        with progress(f"normalizing {split} rows", table.num_rows, "rows") as bar:
            for row in rows_of(table):
                clean = _normal_row(splits.format, row, form)
                empty = any(not text for text in _texts(splits.format, clean))
                reasons.append("empty after normalization" if empty else None)
                splits.changed |= {row["row_id"]} if clean != row else set()
                rows.append(clean)
                bar.add()
        splits.tables[split] = pa.Table.from_pylist(rows, table.schema)
        splits.drop(split, reasons)


def _texts(format: str, row: dict[str, Any]) -> list[str]:
    if format == "messages":
        return [message["content"] for message in json.loads(row["messages"])]
    return [row[column] for column in FORMATS[format] if column_kind(column) == "text"]


def _normal_row(format: str, row: dict[str, Any], form: Form) -> dict[str, Any]:
    if format == "messages":
        messages = [{**m, "content": normalize_text(m["content"], form)} for m in json.loads(row["messages"])]
        return {**row, "messages": dump_messages(messages)}
    texts = {c: normalize_text(row[c], form) for c in FORMATS[format] if column_kind(c) == "text"}
    inside = {c: _normal_json(row[c], form) for c in FORMATS[format] if column_kind(c) == "json"}
    return {**row, **texts, **inside}


def _normal_json(text: str, form: Form) -> str:
    """JSON whose texts are in normal form; what holds none stays as it was."""

    def normal(value: Any) -> Any:
        if isinstance(value, str):
            return normalize_text(value, form)
        if isinstance(value, dict):
            return {key: normal(inner) for key, inner in value.items()}
        return [normal(inner) for inner in value] if isinstance(value, list) else value

    return dump_json(normal(json.loads(text))) if '"' in text else text


def exact_dedup(splits: Splits, form: Form) -> None:
    """Of rows whose text, prompt or turns before the answer are equal in normal form, one stays.

    Test data come first, then validation data, so that no training row displaces what is measured; within a split the
    smallest row id stays. A question that is answered in two ways keeps one answer, and the others are counted as such.
    """
    answers: dict[bytes, bytes] = {}
    other = _OTHER_ANSWER.get(splits.format, "same prompt, other completion")
    for split in ("test", "validation", "train"):
        reasons = list[str | None]()
        with progress(f"comparing {split} rows", splits.tables[split].num_rows, "rows") as bar:
            for row in rows_of(splits.tables[split]):  # sorted by row id
                key = _key(normalize_text(question(splits.format, row), form))
                said = _key(normalize_text(str(answer(splits.format, row)), form))
                if key not in answers:
                    answers[key] = said
                    reasons.append(None)
                else:
                    reasons.append("exact duplicate" if answers[key] == said else other)
                bar.add()
        splits.drop(split, reasons)


def fold_keys(splits: Splits, split: str) -> list[bytes]:
    return [_key(fold(text)) for text in splits.questions(split)]


def exact_keys(splits: Splits, split: str) -> list[bytes]:
    return [_key(text) for text in splits.questions(split)]


def decontaminate(splits: Splits) -> None:
    """Drop training rows whose folded text stands in held-out data, and validation rows whose stands in test data."""
    held: dict[bytes, str] = {}
    for split in ("test", "validation", "train"):
        with progress(f"looking for {split} rows in held-out data", unit="rows"):
            keys = fold_keys(splits, split)
        splits.drop(split, [f"stands in {held[key]} data" if key in held else None for key in keys])
        for key in keys:
            held.setdefault(key, split)
