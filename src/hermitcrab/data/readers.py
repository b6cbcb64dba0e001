"""Records of a CSV, TSV, JSONL, Parquet or text file, one at a time, with their positions; memory stays flat.

A reader yields `Record`s and, in the place of a row that cannot be one, a `BadRow` that says where and why: whoever
reads decides whether that stops the run or is dropped and counted. What makes the rest of a file unreadable (a quote
that is never closed, a damaged archive) raises.

CSV is RFC 4180, strictly: quoted cells may hold newlines; a row has as many cells as the header. TSV is the same with
tabs. A text file's rows are its paragraphs (`text`: blank lines between them) or its lines (`lines`).
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hermitcrab.data.files import FREE, RATIO, open_data
from hermitcrab.errors import HermitcrabError

LONGEST = 1 << 24  # characters in a row: beyond that something is wrong, and memory is not to pay for it
BATCH = 1024  # rows of Parquet decoded at a time
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")  # what a table writes where it knows nothing
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_UNSOUND = re.compile("[\x00\ud800-\udfff]")  # NUL, and what is left of bytes that are not UTF-8


class BadRow(HermitcrabError):
    """A row that cannot be used. `reason` is the same for all rows with the same fault, so that they can be counted."""

    def __init__(self, where: str, reason: str, told: str):
        super().__init__(f"{where}: {told}")
        self.reason = f"bad row: {reason}"


@dataclass(frozen=True, slots=True)
class Record:
    """`position` counts rows from 0, `where` names file, row (from 1) and line; `cells` are text, None, JSON values."""

    position: int
    where: str
    cells: dict[str, Any]


Rows = Iterator[Record | BadRow]


@dataclass(frozen=True)
class Table:
    """An open file. `columns` is None where every row names its own (JSONL)."""

    columns: list[str] | None
    read: Callable[[Collection[str]], Rows]
    """Records with at least these columns."""


def shown(value: Any) -> str:
    """A value for a message: on one line, in ASCII where bytes are broken, at most 60 characters of it."""
    if isinstance(value, (dict, list)):
        return f"a {'list' if isinstance(value, list) else 'mapping'} of {len(value)}"
    text = str(value)
    cut = text if len(text) <= 60 else text[:57] + "..."
    return ascii(cut) if _UNSOUND.search(cut) else repr(cut)


def flaw(text: str) -> str | None:
    """What keeps a text from being one: bytes that are not UTF-8, or a NUL."""
    found = _UNSOUND.search(text)
    if found is None:
        return None
    return "a NUL byte" if found[0] == "\x00" else "bytes that are not UTF-8"


def _check_cell(where: str, column: str, value: Any) -> BadRow | None:
    if isinstance(value, str) and (wrong := flaw(value)):
        place = _UNSOUND.search(value).start()  # type: ignore[union-attr]
        near = value[max(0, place - 20) : place + 20]
        told = f"column `{column}`: received {shown(near)} with {wrong}, expected UTF-8 text"
        return BadRow(where, f"column `{column}` holds {wrong}", told)
    return None


@contextmanager
def open_table(path: Path, name: str, kind: str) -> Iterator[Table]:
    """A data file, ready to be read. `name` is what messages call it; `kind` is one of `files.KINDS`.

    Raises:
        HermitcrabError: for a file that is not of its kind, is empty, or has no usable header.
    """
    if kind == "parquet":
        yield _parquet(path, name)
        return
    with open_data(path, name) as stream:
        if kind == "jsonl":
            yield Table(None, lambda only: _jsonl(stream, name))
        elif kind in ("text", "lines"):
            yield Table(["text"], lambda only: _text(stream, name, paragraphs=kind == "text"))
        else:
            yield _csv(stream, name, "\t" if kind == "tsv" else ",")


class _Lines:
    """Lines of a stream; no row of them may pass `LONGEST` characters. Bad bytes become lone surrogates."""

    def __init__(self, stream: BinaryIO, name: str, newline: str):
        self.text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
        self.name, self.count, self.ended, self.length = name, 0, False, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.text.readline(LONGEST + 1)
        self.length += len(line)
        if self.length > LONGEST:
            raise HermitcrabError(
                f"{self.name}: the row that ends after line {self.count + 1:,} has over {LONGEST:,} characters; "
                "is a quote left open, or is the file of another type? (`type: lines` reads a text file line by line)"
            )
        if not line:
            self.ended = True
            raise StopIteration
        self.count += 1
        return line


def _where(name: str, position: int, line: int) -> str:
    return f"{name}: row {position + 1:,} (line {line:,})"


def _csv(stream: BinaryIO, name: str, delimiter: str) -> Table:
    csv.field_size_limit(LONGEST)  # the module's own limit is 131,072 characters
    lines = _Lines(stream, name, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next((cells for cells in reader if cells), None)
    except csv.Error as error:
        raise HermitcrabError(f"{name}: line 1: the header is not CSV: {error}") from error
    if header is None:
        raise HermitcrabError(f"{name}: is empty; expected a header and rows")
    for column in header:
        if wrong := flaw(column):
            raise HermitcrabError(f"{name}: the header has {wrong}: {shown(column)}; expected UTF-8 (is it UTF-16?)")
        if column and header.count(column) > 1:
            raise HermitcrabError(f"{name}: the header names the column `{column}` twice; expected a name for each")
    return Table(header, lambda only: _csv_rows(reader, lines, header, name))


def _csv_rows(reader: Any, lines: _Lines, header: list[str], name: str) -> Rows:
    position = 0
    while True:
        lines.length, where = 0, _where(name, position, lines.count + 1)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if lines.ended:
                raise HermitcrabError(f"{where}: a quote that opens here is never closed: {error}") from error
            yield BadRow(where, "not CSV", f"not CSV: {error}; expected cells as RFC 4180 quotes them")
            position += 1
            continue
        if not cells:  # a blank line
            continue
        if len(cells) == len(header):
            wrong = next((bad for c, v in zip(header, cells, strict=True) if (bad := _check_cell(where, c, v))), None)
            yield wrong or Record(position, where, dict(zip(header, cells, strict=True)))
        else:
            told = f"received {len(cells)} cells, the last {shown(cells[-1])}; expected {len(header)}: "
            told += ", ".join(header)
            yield BadRow(where, "not as many cells as the header", told)
        position += 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {shown(twice)} is given twice")
    return found


def _constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is beyond every number")
    return value


def _jsonl(stream: BinaryIO, name: str) -> Rows:
    lines, position = _Lines(stream, name, newline="\n"), 0
    for line in lines:
        lines.length = 0
        if not line.strip():
            continue
        where, value = _where(name, position, lines.count), None
        position += 1
        try:
            value = json.loads(line, object_pairs_hook=_object, parse_constant=_constant, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            yield BadRow(where, "not JSON", f"received {shown(line.strip())}, expected one JSON object a line: {error}")
            continue
        if not isinstance(value, dict):
            yield BadRow(where, "not a JSON object", f"received {shown(value)}, expected a JSON object")
            continue
        wrong = next((bad for column, cell in value.items() if (bad := _check_cell(where, column, cell))), None)
        yield wrong or Record(position - 1, where, value)
    if position == 0:
        raise HermitcrabError(f"{name}: is empty; expected one JSON object a line")


def _text(stream: BinaryIO, name: str, paragraphs: bool) -> Rows:
    lines, position = _Lines(stream, name, newline=""), 0
    held: list[str] = []
    start = 1

    def row() -> Record | BadRow:
        where, text = _where(name, position, start), "".join(held).rstrip("\r\n")
        return _check_cell(where, "text", text) or Record(position, where, {"text": text})

    for line in lines:
        if line.strip():
            start = start if held else lines.count
            held.append(line)
        if held and (not paragraphs or not line.strip()):
            yield row()
            position += 1
            held.clear()
        if not held:
            lines.length = 0
    if held:
        yield row()
        position += 1
    if position == 0:
        raise HermitcrabError(f"{name}: is empty; expected text")


@contextmanager
def _parquet_faults(name: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except HermitcrabError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise HermitcrabError(f"{name}: cannot be read as Parquet: {shown(first)}") from error


def _parquet(path: Path, name: str) -> Table:
    import pyarrow.parquet as pq

    with _parquet_faults(name):
        metadata = pq.read_metadata(path)
        columns = list(metadata.schema.to_arrow_schema().names)
        unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if unpacked > max(FREE, RATIO * path.stat().st_size):
        raise HermitcrabError(f"{name}: says that it unpacks to over {RATIO} times its size; refused")
    twice = next((c for c in columns if columns.count(c) > 1), None)
    if twice is not None:
        raise HermitcrabError(f"{name}: has the column {shown(twice)} twice; expected a name for each")
    return Table(columns, lambda only: _parquet_rows(path, name, [c for c in columns if c in only]))


def _parquet_rows(path: Path, name: str, columns: list[str]) -> Rows:
    import pyarrow.parquet as pq

    position = 0
    with _parquet_faults(name), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH, columns=columns):
            cells = {column: _values(batch.column(column)) for column in columns}
            for i in range(batch.num_rows):
                where = f"{name}: row {position + 1:,}"
                row = {column: values[i] for column, values in cells.items()}
                wrong = next((bad for column, cell in row.items() if (bad := _check_cell(where, column, cell))), None)
                yield wrong or Record(position, where, row)
                position += 1


def _values(column: Any) -> list[Any]:
    """The cells of an Arrow column: lists and mappings as they are, all else as text (bad bytes as surrogates)."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_nested(column.type):
        return column.to_pylist()
    if str(column.type) in ("string", "large_string", "binary", "large_binary"):
        raw = column.cast(pa.large_binary()).to_pylist()
        return [value if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
    return column.cast(pa.string()).to_pylist()
