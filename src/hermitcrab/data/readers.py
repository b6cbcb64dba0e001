"""Records of a CSV, TSV, JSONL, Parquet or text file with their positions; memory stays flat.

A reader yields `Record`s and, in the place of a row that cannot be one, a `BadRow` that says where and why: whoever
reads decides whether that stops the run or is dropped and counted. What makes the rest of a file unreadable (a quote
that is never closed, a damaged archive) raises. Where a piece of a file can be had as whole columns (`blocks.py`), it is:
row by row is how the rest is read, and how a piece in which anything is wrong is told row by row.

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
from typing import TYPE_CHECKING, Any, BinaryIO

from hermitcrab.data.files import MEDIA, open_data
from hermitcrab.errors import HermitcrabError

if TYPE_CHECKING:
    import pyarrow as pa

LONGEST = 1 << 24  # characters in a row: beyond that something is wrong, and memory is not to pay for it
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
    """`position` counts rows from 0, `where` names file, row (from 1) and line; `cells` are text, None, JSON values, bytes.

    `cut` is what was left out of it, by reason. `digest` is that of the file which the record is, where it is not a part of one.
    """

    position: int
    where: str
    cells: dict[str, Any]
    cut: tuple[str, ...] = ()
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that is none of those that were asked for, such as a picture among web pages."""

    position: int
    reason: str


Rows = Iterator[Record | BadRow | Skipped]


@dataclass(frozen=True)
class Block:
    """A piece of a file: as columns of text (None: it has to be read row by row), and as its records."""

    position: int
    columns: dict[str, pa.Array] | None
    rows: Callable[[], Rows]


@dataclass(frozen=True)
class Table:
    """An open file. `columns` is None where every row names its own (JSONL)."""

    columns: list[str] | None
    read: Callable[[Collection[str]], Rows]
    """Records with at least these columns."""
    blocks: Callable[[Collection[str]], Iterator[Block]] | None = None
    """The same, a piece at a time."""


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


def check_cell(where: str, column: str, value: Any) -> BadRow | None:
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
    if kind in ("parquet", "arrow"):
        from hermitcrab.data.sources.arrow import open_arrow, open_parquet

        yield open_parquet(path, name) if kind == "parquet" else open_arrow(path, name)
        return
    if kind == "pdf":
        from hermitcrab.data.sources.pdf import open_pdf

        yield open_pdf(path, name)
        return
    with open_data(path, name) as stream:
        if kind in ("jsonl", "text", "lines"):
            from hermitcrab.data.blocks import open_blocks

            yield open_blocks(stream, name, kind)
        elif kind in ("html", "warc"):
            from hermitcrab.data.sources import html, warc

            yield html.open_html(stream, name) if kind == "html" else warc.open_warc(stream, name)
        elif kind in MEDIA or kind == "idx":
            raise HermitcrabError(f"{name}: type `{kind}` is read with its folder or labels, not as a table of its own")
        else:
            yield _csv(stream, name, "\t" if kind == "tsv" else ",")


class Lines:
    """Lines of a stream; no row of them may pass `LONGEST` characters. Bad bytes become lone surrogates."""

    def __init__(self, stream: BinaryIO, name: str, newline: str, count: int = 0):
        """`count`: lines of the file that were read before."""
        encoding = "utf-8" if count else "utf-8-sig"
        self.text = io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline=newline)
        self.name, self.count, self.ended, self.length = name, count, False, 0

    def __iter__(self) -> Lines:
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


def where_of(name: str, position: int, line: int) -> str:
    return f"{name}: row {position + 1:,} (line {line:,})"


def _csv(stream: BinaryIO, name: str, delimiter: str) -> Table:
    csv.field_size_limit(LONGEST)  # the module's own limit is 131,072 characters
    lines = Lines(stream, name, newline="")
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


def _csv_rows(reader: Any, lines: Lines, header: list[str], name: str) -> Rows:
    position = 0
    while True:
        lines.length, where = 0, where_of(name, position, lines.count + 1)
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
            wrong = next((bad for c, v in zip(header, cells, strict=True) if (bad := check_cell(where, c, v))), None)
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


def read_jsonl(stream: BinaryIO, name: str, position: int = 0, line: int = 0) -> Rows:
    """Records of a file, or of a part of it that begins with that record and behind so many lines."""
    lines = Lines(stream, name, newline="\n", count=line)
    for text in lines:
        lines.length = 0
        if not text.strip():
            continue
        where, value = where_of(name, position, lines.count), None
        position += 1
        try:
            value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            yield BadRow(where, "not JSON", f"received {shown(text.strip())}, expected one JSON object a line: {error}")
            continue
        if not isinstance(value, dict):
            yield BadRow(where, "not a JSON object", f"received {shown(value)}, expected a JSON object")
            continue
        wrong = next((bad for column, cell in value.items() if (bad := check_cell(where, column, cell))), None)
        yield wrong or Record(position - 1, where, value)


def read_text(stream: BinaryIO, name: str, paragraphs: bool, position: int = 0, line: int = 0) -> Rows:
    """Paragraphs or lines of a file, or of a part of it as `read_jsonl`."""
    lines = Lines(stream, name, newline="", count=line)
    held: list[str] = []
    start = line + 1

    def row() -> Record | BadRow:
        where, text = where_of(name, position, start), "".join(held).rstrip("\r\n")
        return check_cell(where, "text", text) or Record(position, where, {"text": text})

    for text in lines:
        if text.strip():
            start = start if held else lines.count
            held.append(text)
        if held and (not paragraphs or not text.strip()):
            yield row()
            position += 1
            held.clear()
        if not held:
            lines.length = 0
    if held:
        yield row()
