"""GGUF: a strict reader with a header parser of its own (the `gguf` package's reader trusts the lengths that it finds).

A file is `GGUF`, a version, two counts, typed metadata, the tensor table, padding, then the tensors in the order of the
table, each padded to the alignment. Quantized blocks are unpacked by `gguf.quants`.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats.weights import (
    Handle,
    TensorInfo,
    Weights,
    bfloat16_to_float32,
    checked_shape,
    open_checked,
    shown,
)

MAGIC = b"GGUF"
LONGEST_TEXT = 1 << 26
LONGEST_KEY = 65_535
MOST_DIMENSIONS = 4
DEEPEST_ARRAY = 2
DEFAULT_ALIGNMENT = 32
FIRST_READ = 1 << 22
WIDE = 256  # blocks in a row given to `gguf.quants`, which works on sixteen rows at a time

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
TEXT, ARRAY, BOOL = 8, 9, 7
PLAIN = {"F32": "<f4", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


class _Cursor:
    """Reads the header front to back; every length is compared with what the file has left."""

    def __init__(self, handle: Handle):
        self.handle, self.at = handle, 0
        self.data = handle.read(0, min(handle.size, FIRST_READ), "the header").tobytes()

    def fail(self, what: str) -> HermitcrabError:
        return HermitcrabError(f"{self.handle.path}: {what} (at byte {self.at:,} of the GGUF header)")

    def need(self, count: int, what: str) -> int:
        """Move over `count` bytes and return where they start in `data`."""
        start, end = self.at, self.at + count
        if end > self.handle.size:
            raise self.fail(f"{what} would need {count:,} bytes, but the file ends {self.handle.size - start:,} on")
        if end > len(self.data):
            total = min(self.handle.size, max(end, 2 * len(self.data)))
            self.data += self.handle.read(len(self.data), total - len(self.data), "the header").tobytes()
        self.at = end
        return start

    def number(self, form: struct.Struct, what: str) -> int:
        start = self.need(form.size, what)  # first: it may put longer data in the place of `data`
        return form.unpack_from(self.data, start)[0]

    def text(self, what: str, longest: int = LONGEST_TEXT) -> str:
        length = self.number(U64, f"the length of {what}")
        if length > longest:
            raise self.fail(f"{what} would have {length:,} bytes")
        start = self.need(length, what)
        try:
            return self.data[start : self.at].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8") from error

    def texts(self, count: int, what: str) -> list[str]:
        """As `text` so many times: a vocabulary has hundreds of thousands, so those in what was read already are taken in one loop."""
        found: list[str] = []
        data, at, unpack, size = self.data, self.at, U64.unpack_from, U64.size
        last = len(data) - size
        try:
            while len(found) < count and at <= last:
                start = at + size
                end = start + unpack(data, at)[0]
                if end > len(data) or end - start > LONGEST_TEXT:
                    break  # to be read, or refused, as one of them
                found.append(data[start:end].decode("utf-8"))
                at = end
        except UnicodeDecodeError as error:
            self.at = at
            raise self.fail(f"{what} is not UTF-8") from error
        self.at = at
        if len(found) == count:
            return found
        found.append(self.text(what))
        return found + self.texts(count - len(found), what)

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind == TEXT:
            return self.text(what)
        if kind == ARRAY:
            return self.array(what, depth + 1)
        if kind not in NUMBERS:
            raise self.fail(f"{what} has the unknown type {kind}")
        return self.numbers(kind, 1, what)[0]

    def numbers(self, kind: int, count: int, what: str) -> list[Any]:
        form = np.dtype(NUMBERS[kind])
        start = self.need(count * form.itemsize, what)
        found = np.frombuffer(self.data, form, count, start)
        if kind == BOOL:
            if found.size and found.max() > 1:
                raise self.fail(f"{what} holds a truth value that is neither 0 nor 1")
            found = found.astype(bool)
        return found.tolist()

    def array(self, what: str, depth: int) -> list[Any]:
        if depth > DEEPEST_ARRAY:
            raise self.fail(f"{what} is an array nested more than {DEEPEST_ARRAY} deep")
        kind, count = self.number(U32, what), self.number(U64, what)
        smallest = 8 if kind == TEXT else 12 if kind == ARRAY else np.dtype(NUMBERS.get(kind, "u1")).itemsize
        if count * smallest > self.handle.size - self.at:
            raise self.fail(f"{what} would have {count:,} entries, more than the file can hold")
        if kind in NUMBERS:
            return self.numbers(kind, count, what)
        if kind == TEXT:
            return self.texts(count, what)
        return [self.value(kind, what, depth) for _ in range(count)]


def read_file(path: Path) -> Weights:
    """The tensors and the metadata of one GGUF file (version 2 or 3, little-endian).

    Raises:
        HermitcrabError: truncated, lying, overlapping or absurd header; symbolic link.
    """
    with open_checked(path) as handle:
        cursor = _Cursor(handle)
        tensor_count, metadata_count = _counts(cursor)
        metadata = _metadata(cursor, metadata_count)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise HermitcrabError(f"{path}: general.alignment is {shown(alignment)}, which is no power of two from 8")
        tensors = _table(cursor, tensor_count, alignment)
        return Weights(path, "gguf", tensors, metadata, {path: handle.stamp}, _decode)


def _counts(cursor: _Cursor) -> tuple[int, int]:
    if cursor.data[:4] != MAGIC:
        raise HermitcrabError(f"{cursor.handle.path}: does not begin with `GGUF`; it is no GGUF file")
    cursor.at = 4
    version = cursor.number(U32, "the version")
    if version not in (2, 3):
        why = "it is big-endian" if version in (2 << 24, 3 << 24) else "expected 2 or 3"
        raise HermitcrabError(f"{cursor.handle.path}: GGUF version {version} cannot be read; {why}")
    tensor_count, metadata_count = cursor.number(U64, "the number of tensors"), cursor.number(U64, "the metadata count")
    for count, smallest, what in ((tensor_count, 24, "tensors"), (metadata_count, 13, "metadata entries")):
        if count * smallest > cursor.handle.size:
            raise cursor.fail(f"{count:,} {what} are more than the file can hold")
    return tensor_count, metadata_count


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text("a metadata key", LONGEST_KEY)
        if key in metadata:
            raise cursor.fail(f"the metadata key `{shown(key)}` stands twice")
        metadata[key] = cursor.value(cursor.number(U32, f"the type of `{shown(key)}`"), f"`{shown(key)}`")
    return metadata


def _table(cursor: _Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    """The tensors, each checked to follow the one before without hole or overlap and to end within the file."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    path, entries, names = cursor.handle.path, [], set()
    for _ in range(count):
        name = cursor.text("a tensor name", LONGEST_KEY)
        if name in names or not name.isprintable():
            raise cursor.fail(f"the tensor name `{shown(name)}` stands twice or is not printable")
        names.add(name)
        dimensions = cursor.number(U32, "a tensor's number of dimensions")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise cursor.fail(f"tensor `{shown(name)}` has {dimensions:,} dimensions; expected 1 to {MOST_DIMENSIONS}")
        shape = checked_shape(path, name, [cursor.number(U64, "a tensor's shape") for _ in range(dimensions)])
        kind, offset = cursor.number(U32, "a tensor's type"), cursor.number(U64, "a tensor's offset")
        try:
            dtype = GGMLQuantizationType(kind)
        except ValueError as error:
            raise cursor.fail(f"tensor `{shown(name)}` has the unknown type {kind}") from error
        block, width = GGML_QUANT_SIZES[dtype]
        if shape[0] % block:
            raise cursor.fail(f"tensor `{shown(name)}`: rows of {shape[0]} are no whole number of {dtype.name} blocks")
        info = TensorInfo(name, dtype.name, shape[::-1], offset, 0, path)
        entries.append((info, info.elements // block * width))
    start = -(-cursor.at // alignment) * alignment
    tensors, expected = {}, 0
    for info, nbytes in entries:
        if info.offset != expected:
            raise HermitcrabError(
                f"{path}: tensor `{shown(info.name)}` is said to lie at {info.offset:,} of the data, "
                f"but the tensors before it end at {expected:,}"
            )
        if start + info.offset + nbytes > cursor.handle.size:
            raise HermitcrabError(
                f"{path}: tensor `{shown(info.name)}` would end at byte {start + info.offset + nbytes:,}, "
                f"but the file has {cursor.handle.size:,}; it is cut off"
            )
        tensors[info.name] = TensorInfo(info.name, info.dtype, info.shape, start + info.offset, nbytes, path)
        expected = -(-(expected + nbytes) // alignment) * alignment
    return tensors


def _decode(info: TensorInfo, raw: np.ndarray) -> np.ndarray:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    if info.dtype in PLAIN:
        return raw.view(PLAIN[info.dtype])
    if info.dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    if info.dtype == "BF16":
        return bfloat16_to_float32(raw)
    dtype = GGMLQuantizationType[info.dtype]
    blocks = raw.reshape(-1, GGML_QUANT_SIZES[dtype][1])
    whole = len(blocks) // WIDE * WIDE
    try:
        with np.errstate(all="ignore"):  # scales from a stranger may overflow; that is a value, not a fault
            parts = [dequantize(part, dtype).ravel() for part in (blocks[:whole].reshape(-1, WIDE * blocks.shape[1]),
                     blocks[whole:]) if len(part)]  # fmt: skip
    except NotImplementedError as error:
        raise HermitcrabError(f"{info.file}: tensor `{info.name}` is {info.dtype}, which cannot be unpacked") from error
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.float32), *parts])
