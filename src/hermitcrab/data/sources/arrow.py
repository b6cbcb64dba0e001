"""Parquet, Arrow IPC and Feather (version 2, which is Arrow IPC) as tables: columns as they are stored, a batch at a time.

Parquet is checked by its reader; an Arrow file is memory as it was, so every batch is validated before it is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.data.files import FREE, RATIO
from hermitcrab.data.readers import Block, Record, Rows, Table, check_cell, shown
from hermitcrab.errors import HermitcrabError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1024  # rows decoded at a time
Batches = Callable[[list[str]], Iterator["pa.RecordBatch"]]


@contextmanager
def _faults(name: str, what: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except HermitcrabError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise HermitcrabError(f"{name}: cannot be read as {what}: {shown(first)}") from error


def open_parquet(path: Path, name: str) -> Table:
    """Raises HermitcrabError: no Parquet, damaged, cut short, or one that says it unpacks to far more than it is."""
    import pyarrow.parquet as pq

    with _faults(name, "Parquet"):
        metadata = pq.read_metadata(path)
        columns = list(metadata.schema.to_arrow_schema().names)
        unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if unpacked > max(FREE, RATIO * path.stat().st_size):
        raise HermitcrabError(f"{name}: says that it unpacks to over {RATIO} times its size; refused")

    def batches(only: list[str]) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH, columns=only)

    return _table(name, "Parquet", columns, batches)


def open_arrow(path: Path, name: str) -> Table:
    """The file or the stream form of Arrow IPC. Raises HermitcrabError: neither, damaged, or cut short."""
    import pyarrow as pa

    with _faults(name, "Arrow IPC"), open(path, "rb") as file:
        streamed = file.read(6) != b"ARROW1"
        file.seek(0)
        reader = pa.ipc.open_stream(file) if streamed else pa.ipc.open_file(file)
        columns = list(reader.schema.names)

    def batches(only: list[str]) -> Iterator[pa.RecordBatch]:
        with open(path, "rb") as file:
            reader = pa.ipc.open_stream(file) if streamed else pa.ipc.open_file(file)
            stored = reader if streamed else (reader.get_batch(i) for i in range(reader.num_record_batches))
            for batch in stored:
                batch.validate(full=True)
                chosen = batch.select(only)
                for start in range(0, batch.num_rows, BATCH):
                    yield chosen.slice(start, BATCH)

    return _table(name, "Arrow IPC", columns, batches)


def _table(name: str, what: str, columns: list[str], batches: Batches) -> Table:
    twice = next((c for c in columns if columns.count(c) > 1), None)
    if twice is not None:
        raise HermitcrabError(f"{name}: has the column {shown(twice)} twice; expected a name for each")

    def blocks(only: Collection[str]) -> Iterator[Block]:
        position, wanted = 0, [c for c in columns if c in only]
        with _faults(name, what):
            for batch in batches(wanted):
                yield _block(name, position, batch)
                position += batch.num_rows

    def read(only: Collection[str]) -> Rows:
        for block in blocks(only):
            yield from block.rows()

    return Table(columns, read, blocks)


def _block(name: str, position: int, batch: pa.RecordBatch) -> Block:
    import pyarrow as pa

    found = dict(zip(batch.schema.names, batch.columns, strict=True))

    def rows() -> Rows:
        cells = {column: _values(array) for column, array in found.items()}
        for i in range(batch.num_rows):
            where = f"{name}: row {position + i + 1:,}"
            row = {column: values[i] for column, values in cells.items()}
            wrong = next((bad for column, cell in row.items() if (bad := check_cell(where, column, cell))), None)
            yield wrong or Record(position + i, where, row)

    try:
        columns = {column: _text(array) for column, array in found.items()}
    except (
        pa.ArrowInvalid,
        pa.ArrowNotImplementedError,
    ):  # bytes that are no text, or what has no text: told row by row
        return Block(position, None, rows)
    plain = {column: array for column, array in columns.items() if array is not None}
    return Block(position, plain if len(plain) == len(columns) else None, rows)


def _text(array: pa.Array) -> pa.Array | None:
    """A column as text that is UTF-8; None where its cells are lists or mappings (ArrowInvalid: it is not UTF-8)."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_nested(array.type):
        return None
    if _is_text(array.type):
        return array.cast(pa.large_binary()).cast(pa.large_string())
    return array.cast(pa.string()).cast(pa.large_string())


def _values(column: Any) -> list[Any]:
    """The cells of an Arrow column: lists and mappings as they are, all else as text (bad bytes as surrogates)."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_nested(column.type):
        return column.to_pylist()
    if _is_text(column.type):
        raw = column.cast(pa.large_binary()).to_pylist()
        return [value if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
    return column.cast(pa.string()).to_pylist()


def _is_text(type: pa.DataType) -> bool:
    return str(type) in ("string", "large_string", "binary", "large_binary", "string_view", "binary_view")
