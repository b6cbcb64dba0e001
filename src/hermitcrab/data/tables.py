"""Row tables: what a row is in each format, and Parquet whose bytes depend on the rows alone.

`row_id` (16 hex digits, of source digest and position), `source` (uri), `document` (null where the source names none),
and the columns of the format. `messages` is the JSON text of a list of `{role, content}`; `image` is the bytes of a PNG;
`record` the JSON text of column → number, text or null; `objects` that of a list of `{label, box}`, the box `[x, y, width, height]` in
pixels from the upper left corner; `audio` is the bytes of a WAV of plain PCM.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError

if TYPE_CHECKING:
    import pyarrow as pa

# Format → its columns: first what makes a row the question that it is, then what is learnt to say.
FORMATS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "image-label": ("image", "label"),
    "image": ("image",),
    "image-objects": ("image", "objects"),
    "audio-label": ("audio", "label"),
    "audio-text": ("audio", "text"),
    "text-label": ("text", "label"),
    "text-pair": ("source_text", "target_text"),
    "tabular": ("record", "target"),
    "interaction": ("user", "item", "rating", "time", "features"),
    "series": ("name", "time", "past", "future"),
}
# What a column holds; all others are texts. `json` is the JSON text of a list or an object, `number` float64, null where there is none.
KINDS = {
    "image": "bytes",
    "audio": "bytes",
    "objects": "json",
    "record": "json",
    "features": "json",
    "past": "json",
    "future": "json",
    "rating": "number",
    "time": "number",
}
SAID = {"interaction": "rating", "series": "future", "text": None, "image": None}  # where it is not the second column
ASKED = {"interaction": ("user", "item", "time"), "series": ("name", "time")}  # where it is not the first column
SPLITS = ("train", "validation", "test")
GROUP = 8192  # rows in a row group, at most
GROUP_BYTES = 32 << 20  # of a row group's cells, about: whatever reads it holds it whole


def column_kind(column: str) -> str:
    """What a column holds: `text`, `number`, `json` or `bytes`."""
    return KINDS.get(column, "text")


def register_format(name: str, columns: Mapping[str, str]) -> None:
    """Another format of rows: its columns, the question first, and what each holds.

    Raises:
        HermitcrabError: there is another one of that name, or a column of that name holds something else.
    """
    if FORMATS.get(name, tuple(columns)) != tuple(columns):
        raise HermitcrabError(f"the row format `{name}` is known with other columns: {', '.join(FORMATS[name])}")
    taken = {column for known in FORMATS.values() for column in known}
    for column, kind in columns.items():
        if column in taken and column_kind(column) != kind:
            raise HermitcrabError(
                f"the row format `{name}`: a column `{column}` holds {column_kind(column)} elsewhere. Received: {kind}"
            )
    FORMATS[name] = tuple(columns)
    KINDS.update({column: kind for column, kind in columns.items() if kind != "text"})


def row_id(source_digest: str, position: int) -> str:
    """The name of a row: of the bytes that it came from, not of where they lay."""
    return hashlib.sha256(f"{source_digest}:{position}".encode()).hexdigest()[:16]


def source_digest(files: Sequence[str]) -> str:
    """What names the rows of a source: the digest of its file, or of all its files (of images and labels, both)."""
    return files[0] if len(files) == 1 else digest_json(list(files))


def schema(format: str) -> pa.Schema:
    import pyarrow as pa

    types = {"bytes": pa.binary(), "number": pa.float64()}
    required = [
        pa.field(name, types.get(column_kind(name), pa.string()), nullable=column_kind(name) == "number")
        for name in ("row_id", "source", *FORMATS[format])
    ]
    return pa.schema([*required[:2], pa.field("document", pa.string()), *required[2:]])


def dump_messages(messages: list[dict[str, str]]) -> str:
    return json.dumps([{"role": m["role"], "content": m["content"]} for m in messages], ensure_ascii=False)


def dump_json(value: Any) -> str:
    """One spelling of a list or an object (ValueError: a number that JSON does not have)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


class TableWriter:
    """Rows to Parquet as they come; the same rows give the same bytes (fixed codec, level, groups)."""

    def __init__(self, path: Path, schema: pa.Schema):
        import pyarrow.parquet as pq

        self.schema, self.rows, self.held = schema, list[dict[str, Any]](), list[Any]()
        self.count = self.bytes = 0  # of the group that is being filled
        self.written = 0
        self.writer = pq.ParquetWriter(
            path, schema, compression="zstd", compression_level=3, version="2.6", store_schema=False
        )

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self.writer.close()

    def add(self, row: dict[str, Any]) -> None:
        """A row; its cells are counted as `write` counts them."""
        self.rows.append(row)
        self.count += 1
        self.bytes += sum(map(_size, row.values()))
        if self.count == GROUP or self.bytes >= GROUP_BYTES:
            self._flush()

    def write(self, table: pa.Table) -> None:
        """Rows of the schema, many at once: the bytes are those of `add` for one after the other."""
        import numpy as np

        self._hold()
        size_N = np.zeros(table.num_rows, np.int64)
        for column in table.columns:
            size_N += _sizes(column)
        end_N, at = np.cumsum(size_N), 0
        while at < table.num_rows:
            before = end_N[at - 1] if at else 0
            full = int(np.searchsorted(end_N, before + GROUP_BYTES - self.bytes)) + 1
            last = min(table.num_rows, full, at + GROUP - self.count)
            self.held.append(table.slice(at, last - at))
            self.count += last - at
            self.bytes += int(end_N[last - 1] - before)
            at = last
            if self.count == GROUP or self.bytes >= GROUP_BYTES:
                self._flush()

    def _hold(self) -> None:
        import pyarrow as pa

        if self.rows:
            self.held.append(pa.Table.from_pylist(self.rows, self.schema))
            self.rows = []

    def _flush(self) -> None:
        import pyarrow as pa

        self._hold()
        if self.held:
            group = pa.concat_tables(self.held).cast(self.schema).combine_chunks()
            self.writer.write_table(group, GROUP)
            self.written += group.num_rows
        self.held, self.count, self.bytes = [], 0, 0


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode())
    return len(value) if isinstance(value, bytes) else 0


def _sizes(column: pa.ChunkedArray) -> Any:
    """Bytes of each cell of texts or bytes, int64 [N]; 0 for null and for numbers."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if not (
        pa.types.is_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_large_binary(kind)
    ):
        return np.zeros(len(column), np.int64)
    return pc.fill_null(pc.binary_length(column), 0).to_numpy().astype(np.int64)


def write_rows(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> None:
    with TableWriter(path, schema) as out:
        for row in rows:
            out.add(row)


def write_table(path: Path, table: pa.Table) -> None:
    with TableWriter(path, table.schema) as out:
        out.write(table)


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as dicts, a batch at a time in memory."""
    for batch in table.to_batches(GROUP):
        yield from batch.to_pylist()


def read_table(path: Path, format: str) -> pa.Table:
    """A row table of that format, sorted by row id; no rows where the file is not there."""
    import pyarrow.parquet as pq

    if not path.exists():
        return schema(format).empty_table()
    return pq.read_table(path, schema=schema(format)).sort_by("row_id")


def question(format: str, row: dict[str, Any]) -> str:
    """What makes a row the same question as another: the text, the prompt, every turn but the last; what is no text, by its digest."""
    if format == "messages":
        return "\n".join(f"{m['role']}\n{m['content']}" for m in json.loads(row["messages"])[:-1])
    if format in ASKED:
        return digest_json([row[column] for column in ASKED[format]])
    column = FORMATS[format][0]
    if column_kind(column) == "text":
        return row[column]
    asked = row[column]
    return hashlib.sha256(asked if isinstance(asked, bytes) else asked.encode()).hexdigest()


def answer(format: str, row: dict[str, Any]) -> Any:
    """What is learnt to say: nothing apart from the text, the completion, the last turn, the label, the rating."""
    if format == "messages":
        return json.loads(row["messages"])[-1]["content"]
    column = SAID.get(format, FORMATS[format][1] if len(FORMATS[format]) > 1 else None)
    return "" if column is None else row[column]
