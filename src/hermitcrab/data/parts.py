"""Rows of any format as texts, a batch at a time: every text in them, what they ask, what they answer.

N rows, M texts in them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.data.fold import Form, normalize_text
from hermitcrab.data.tables import ASKED, FORMATS, SAID, answer, column_kind, dump_json, dump_messages, question

if TYPE_CHECKING:
    import pyarrow as pa


def large(column: Any) -> pa.Array:
    """A column of texts as one large_string array."""
    import pyarrow as pa

    return (
        pa.concat_arrays(column.cast(pa.large_string()).chunks)
        if column.num_chunks
        else pa.array([], pa.large_string())
    )


def of_images(format: str) -> bool:
    """Is it an image that makes a row the question that it is?"""
    return FORMATS[format][0] == "image"


def text_columns(format: str) -> list[str]:
    return [name for name in FORMATS[format] if column_kind(name) == "text"]


def texts_of(format: str, table: pa.Table) -> tuple[pa.Array, np.ndarray]:
    """Every text of the rows, large_string [M], and the row that each is of, int64 [M]. Texts inside JSON are cells, and no texts."""
    import pyarrow as pa

    if format == "messages":
        talks = [[message["content"] for message in json.loads(talk)] for talk in table.column("messages").to_pylist()]
        flat = pa.array([text for talk in talks for text in talk], pa.large_string())
        return flat, np.repeat(np.arange(len(talks)), [len(talk) for talk in talks])
    columns = text_columns(format)
    parts = [large(table.column(name)) for name in columns] or [pa.array([], pa.large_string())]
    rows = np.tile(np.arange(table.num_rows), len(columns))
    return pa.concat_arrays(parts) if len(parts) > 1 else parts[0], rows


def with_texts(format: str, table: pa.Table, text: pa.Array) -> pa.Table:
    """The rows with other texts, in the order of `texts_of`."""
    import pyarrow as pa

    if format == "messages":
        new, talks = iter(text.to_pylist()), []
        for talk in table.column("messages").to_pylist():
            talks.append(dump_messages([{**message, "content": next(new)} for message in json.loads(talk)]))
        return table.set_column(table.column_names.index("messages"), "messages", pa.array(talks, pa.string()))
    for i, name in enumerate(text_columns(format)):
        part = text.slice(i * table.num_rows, table.num_rows).cast(pa.string())
        table = table.set_column(table.column_names.index(name), name, part)
    return table


def normal_cells(format: str, table: pa.Table, form: Form) -> tuple[pa.Table, np.ndarray]:
    """The rows with the texts inside their JSON cells in normal form, and which rows that changed: bool [N]."""
    import pyarrow as pa

    def normal(value: Any) -> Any:
        if isinstance(value, str):
            return normalize_text(value, form)
        if isinstance(value, dict):
            return {key: normal(inner) for key, inner in value.items()}
        return [normal(inner) for inner in value] if isinstance(value, list) else value

    changed_N = np.zeros(table.num_rows, bool)
    for name in FORMATS[format]:
        if column_kind(name) == "json":
            old = table.column(name).to_pylist()
            new = [dump_json(normal(json.loads(cell))) if '"' in cell else cell for cell in old]
            changed_N |= np.array([a != b for a, b in zip(old, new, strict=True)], bool)
            table = table.set_column(table.column_names.index(name), name, pa.array(new, pa.string()))
    return table, changed_N


def _rows(format: str, table: pa.Table) -> list[dict[str, Any]]:
    return table.select(list(FORMATS[format])).to_pylist()


def questions(format: str, table: pa.Table) -> pa.Array:
    """`tables.question` of every row: large_string [N]."""
    import pyarrow as pa

    asked = FORMATS[format][0]
    if format == "messages" or format in ASKED or column_kind(asked) != "text":
        return pa.array([question(format, row) for row in _rows(format, table)], pa.large_string())
    return large(table.column(asked))


def answers(format: str, table: pa.Table) -> pa.Array | None:
    """`tables.answer` of every row, as text: large_string [N]; None: rows of this format answer nothing."""
    import pyarrow as pa

    said = SAID.get(format, FORMATS[format][1] if len(FORMATS[format]) > 1 else None)
    if format == "messages" or (said is not None and column_kind(said) != "text"):
        return pa.array([str(answer(format, row)) for row in _rows(format, table)], pa.large_string())
    return None if said is None else large(table.column(said))
