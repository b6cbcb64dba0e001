"""The wire format of protobuf, field by field, out of an open file: what ONNX files are written in.

https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats.weights import Handle

LARGEST_GRAPH = 1 << 28  # bytes of nodes, names and small fields
WINDOW = 1 << 16


class Wire:
    """Fields of a message between two positions of the file."""

    def __init__(self, handle: Handle):
        self.handle, self.at, self.data, self.taken = handle, 0, b"", 0

    def fail(self, what: str, where: int) -> HermitcrabError:
        return HermitcrabError(f"{self.handle.path}: {what} (at byte {where:,} of the ONNX file); it is damaged")

    def bytes(self, start: int, count: int) -> bytes:
        if count > WINDOW or start < self.at or start + count > self.at + len(self.data):
            if count > WINDOW:
                self.taken += count
                if self.taken > LARGEST_GRAPH:
                    raise self.fail("the graph is too large to be one", start)
                return self.handle.read(start, count, "the graph").tobytes()
            self.at = start
            self.data = self.handle.read(start, min(WINDOW, self.handle.size - start), "the graph").tobytes()
            if len(self.data) < count:
                raise self.fail("it is cut off", start)
        return self.data[start - self.at : start - self.at + count]

    def varint(self, start: int, end: int) -> tuple[int, int]:
        chunk = self.bytes(start, min(10, end - start))
        value = 0
        for i, byte in enumerate(chunk):
            value |= (byte & 127) << 7 * i
            if byte < 128:
                return value & (1 << 64) - 1, start + i + 1
        raise self.fail("a number without end", start)

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(field, wire type, value or offset, bytes) one after another."""
        at = start
        while at < end:
            tag, at = self.varint(at, end)
            number, wire = tag >> 3, tag & 7
            if wire == 0:
                value, at = self.varint(at, end)
                yield number, wire, value, 0
            elif wire in (1, 5, 2):
                length = 8 if wire == 1 else 4
                if wire == 2:
                    length, at = self.varint(at, end)
                if at + length > end:
                    raise self.fail(f"a field of {length:,} bytes reaches beyond what holds it", at)
                yield number, wire, at, length
                at += length
            else:
                raise self.fail(f"an unknown wire type {wire}", at)

    def text(self, start: int, length: int) -> str:
        if length > WINDOW:
            raise self.fail(f"a name of {length:,} bytes", start)
        try:
            return self.bytes(start, length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail("a name that is not UTF-8", start) from error
