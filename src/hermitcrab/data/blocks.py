"""JSONL and text in pieces of a few megabytes: a piece in which nothing is wrong becomes columns at once, any other is read row by row.

What a fast parser would let pass in silence (a key twice, NaN, a NUL, two objects on a line) makes a piece one to be read row by
row, so the same rows are bad either way. A row longer than a piece makes the piece longer, up to what a row may have.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from hermitcrab.data.readers import LONGEST, Block, Rows, Table, read_jsonl, read_text
from hermitcrab.errors import HermitcrabError

if TYPE_CHECKING:
    import pyarrow as pa

PIECE = 4 << 20  # bytes
PATIENCE = 3  # pieces in a row that had to be read row by row, before no others are tried
BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(r"\n(?:[^\S\n]*\n)+")  # the end of a paragraph: a line's end, then lines of nothing but space
_LEADING = re.compile(r"(?:[^\S\n]*\n)+")
_SUSPECT = (b"NaN", b"Infinity", b"\\u0000", b"\0")


def open_blocks(stream: BinaryIO, name: str, kind: str) -> Table:
    """A file of `jsonl`, `text` (a row is a paragraph) or `lines`."""
    read: Callable[[BinaryIO, int, int], Rows]
    ends: tuple[bytes, ...]
    if kind == "jsonl":
        ends, expected = (b"\n",), "one JSON object a line"

        def read(part: BinaryIO, position: int, line: int) -> Rows:
            return read_jsonl(part, name, position, line)
    else:
        ends, expected = ((b"\n\n", b"\n\r\n") if kind == "text" else (b"\n",)), "text"

        def read(part: BinaryIO, position: int, line: int) -> Rows:
            return read_text(part, name, kind == "text", position, line)

    def blocks(only: Collection[str]) -> Iterator[Block]:
        parse = _Objects(only) if kind == "jsonl" else _paragraphs if kind == "text" else _lines
        position, line, tried = 0, 0, 0
        for piece, rest in _pieces(stream, ends):
            if rest is not None:
                counted = _Counted(lambda p=position, n=line, part=rest: read(part, p, n))  # type: ignore[misc]
                yield Block(position, None, counted)
                position += counted.count
                break
            columns = parse(piece.removeprefix(BOM) if line == 0 else piece) if tried < PATIENCE else None
            tried = 0 if columns is not None else tried + 1
            counted = _Counted(lambda p=position, n=line, part=piece: read(io.BytesIO(part), p, n))  # type: ignore[misc]
            yield Block(position, columns, counted)
            position += (
                len(next(iter(columns.values()))) if columns is not None and not counted.asked else counted.count
            )
            line += piece.count(b"\n")
        if position == 0:
            raise HermitcrabError(f"{name}: is empty; expected {expected}")

    def rows(only: Collection[str]) -> Rows:
        for block in blocks(only):
            yield from block.rows()

    return Table(None if kind == "jsonl" else ["text"], rows, blocks)


class _Counted:
    """Records of a piece, counted as they are read: only then is it known how many they are."""

    def __init__(self, read: Callable[[], Rows]):
        self.read, self.count, self.asked = read, 0, False

    def __call__(self) -> Rows:
        self.asked, self.count = True, 0
        for row in self.read():
            self.count += 1
            yield row


def _pieces(stream: BinaryIO, ends: tuple[bytes, ...]) -> Iterator[tuple[bytes, BinaryIO | None]]:
    """Whole rows, some megabytes at a time; last, where no row ends within what a row may have, all the rest as a stream."""
    held = b""
    while chunk := stream.read(PIECE):
        held += chunk
        if at := max(held.rfind(end) + len(end) if end in held else 0 for end in ends):
            yield held[:at], None
            held = held[at:]
        elif len(held) > LONGEST:
            yield b"", cast(BinaryIO, io.BufferedReader(_Behind(held, stream), 1 << 17))
            return
    if held:
        yield held, None


class _Behind(io.RawIOBase):
    """Bytes that were read, then the stream that they came from."""

    def __init__(self, held: bytes, stream: BinaryIO):
        self.held, self.stream = io.BytesIO(held), stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self.held.read(len(buffer)) or self.stream.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


def _string(piece: bytes) -> str | None:
    """A piece as text with newlines alone; None where something in it is to be told."""
    if b"\r" in piece or b"\0" in piece:
        return None
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def _lines(piece: bytes) -> dict[str, pa.Array] | None:
    text = _string(piece)
    return None if text is None else _column([line for line in text.split("\n") if line.strip()])


def _paragraphs(piece: bytes) -> dict[str, pa.Array] | None:
    text = _string(piece)
    if text is None:
        return None
    text = text if text.endswith("\n") else text + "\n"
    start = found.end() if (found := _LEADING.match(text)) else 0
    parts = [part.rstrip("\n") for part in _BLANK.split(text[start:])]
    return _column([part for part in parts if part])


def _column(texts: list[str]) -> dict[str, pa.Array] | None:
    import pyarrow as pa

    return {"text": pa.array(texts, pa.large_string())} if texts else None


class _Objects:
    """Objects of a piece as columns, where all have the keys and types of the first, none of them nested."""

    def __init__(self, only: Collection[str]):
        self.only = only

    def __call__(self, piece: bytes) -> dict[str, pa.Array] | None:
        import pyarrow as pa
        import pyarrow.json as pj

        schema = self._schema(piece)
        if schema is None or any(word in piece for word in _SUSPECT) or not _an_object_a_line(piece):
            return None
        options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
        try:
            table = pj.read_json(
                pa.BufferReader(piece), pj.ReadOptions(use_threads=False, block_size=len(piece) + 1), options
            ).combine_chunks()
        except (pa.ArrowException, UnicodeDecodeError):
            return None
        wanted = [field.name for field in schema if field.name in self.only]
        if table.num_rows != piece.rstrip(b"\n").count(b"\n") + 1 or any(table[c].null_count for c in wanted):
            return None
        return {c: table[c].chunk(0).cast(pa.large_string()) for c in wanted}

    def _schema(self, piece: bytes) -> pa.Schema | None:
        import pyarrow as pa

        try:
            first = json.loads(piece[: piece.find(b"\n") if b"\n" in piece else None])
        except (ValueError, RecursionError):
            return None
        if not isinstance(first, dict) or any(not isinstance(first.get(column), str) for column in self.only):
            return None
        types = {str: pa.string(), bool: pa.bool_(), int: pa.float64(), float: pa.float64(), type(None): pa.string()}
        if any(type(value) not in types for value in first.values()) or not self.only:
            return None
        return pa.schema([(key, types[type(value)]) for key, value in first.items()])


def _an_object_a_line(piece: bytes) -> bool:
    """Whether every line begins and ends as an object does; with as many rows as lines, each line is then one."""
    import numpy as np

    piece = piece.rstrip(b"\n")
    raw = np.frombuffer(piece, np.uint8)
    ends = np.flatnonzero(raw == ord("\n"))
    whole = piece.startswith(b"{") and piece.endswith(b"}")
    return bool(whole and (raw[ends - 1] == ord("}")).all() and (raw[ends + 1] == ord("{")).all())
