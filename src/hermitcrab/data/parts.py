"""Rows of any format as texts, a batch at a time: every text in them, what they ask, what they answer.

N rows, M texts in them.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.data.tables import BINARY, FORMATS, answer, dump_messages, question

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


def texts_of(format: str, table: pa.Table) -> tuple[pa.Array, np.ndarray]:
    """Every text of the rows, large_string [M], and the row that each is of, int64 [M]."""
    import pyarrow as pa

    if format == "messages":
        talks = [[message["content"] for message in json.loads(talk)] for talk in table.column("messages").to_pylist()]
        flat = pa.array([text for talk in talks for text in talk], pa.large_string())
        return flat, np.repeat(np.arange(len(talks)), [len(talk) for talk in talks])
    columns = [name for name in FORMATS[format] if name not in BINARY]
    parts = [large(table.column(name)) for name in columns]
    return pa.concat_arrays(parts) if len(parts) > 1 else parts[0], np.tile(np.arange(table.num_rows), len(columns))


def with_texts(format: str, table: pa.Table, text: pa.Array) -> pa.Table:
    """The rows with other texts, in the order of `texts_of`."""
    import pyarrow as pa

    if format == "messages":
        new, talks = iter(text.to_pylist()), []
        for talk in table.column("messages").to_pylist():
            talks.append(dump_messages([{**message, "content": next(new)} for message in json.loads(talk)]))
        return table.set_column(table.column_names.index("messages"), "messages", pa.array(talks, pa.string()))
    for i, name in enumerate(name for name in FORMATS[format] if name not in BINARY):
        part = text.slice(i * table.num_rows, table.num_rows).cast(pa.string())
        table = table.set_column(table.column_names.index(name), name, part)
    return table


def questions(format: str, table: pa.Table) -> pa.Array:
    """`tables.question` of every row: large_string [N]."""
    import pyarrow as pa

    asked = FORMATS[format][0]
    if format == "messages":
        rows = ({"messages": talk} for talk in table.column("messages").to_pylist())
        return pa.array([question(format, row) for row in rows], pa.large_string())
    if asked in BINARY:
        digests = [hashlib.sha256(cell).hexdigest() for cell in table.column(asked).to_pylist()]
        return pa.array(digests, pa.large_string())
    return large(table.column(asked))


def answers(format: str, table: pa.Table) -> pa.Array | None:
    """`tables.answer` of every row: large_string [N]; None: rows of this format answer nothing."""
    import pyarrow as pa

    if format == "text":
        return None
    if format == "messages":
        rows = ({"messages": talk} for talk in table.column("messages").to_pylist())
        return pa.array([answer(format, row) for row in rows], pa.large_string())
    return large(table.column(FORMATS[format][1]))
