"""NumPy archives (`.npz`) and single arrays (`.npy`): plain numbers only, never a pickled object.

numpy.lib.format: magic, version, length of the header, then a literal dictionary of `descr`, `fortran_order`, `shape`.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats.weights import Stamp, TensorInfo, Weights, checked_shape, open_checked, shown
from hermitcrab.models.formats.zipped import members, unpack

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 1 << 16
KINDS = {"f2": "F16", "f4": "F32", "f8": "F64", "i1": "I8", "u1": "U8", "i2": "I16", "u2": "U16", "i4": "I32", "u4": "U32",
         "i8": "I64", "u8": "U64", "b1": "BOOL"}  # fmt: skip


def read_file(path: Path) -> Weights:
    """The arrays of a `.npz` or `.npy` file.

    Raises:
        HermitcrabError: damaged, a bomb, an array of objects, of text or of complex numbers.
    """
    tensors: dict[str, TensorInfo] = {}
    layouts: dict[str, tuple[str, bool, int, int]] = {}  # dtype, columns first, bytes of the head, unpacked size or -1
    with open_checked(path) as handle:
        stamp: Stamp = handle.stamp
        if handle.read(0, min(6, handle.size), "the first bytes").tobytes() == MAGIC:
            head = handle.read(0, min(handle.size, LONGEST_HEADER), "the head").tobytes()
            entries = [("array", head, 0, handle.size, handle.size, False)]
        else:
            entries = []
            for member in members(handle).values():
                if not member.name.endswith(".npy"):
                    raise HermitcrabError(f"{path}: holds `{shown(member.name)}`, which is no array (.npy)")
                raw = handle.read(member.offset, min(member.packed, LONGEST_HEADER), "an array's head")
                if member.deflated:
                    raw = _first(path, member.name, raw)
                name = member.name.removesuffix(".npy")
                entries.append((name, raw.tobytes(), member.offset, member.packed, member.size, member.deflated))
    for name, head, offset, packed, size, deflated in entries:
        kind, columns, shape, skip = _layout(path, name, head)
        info = TensorInfo(name, KINDS[kind[1:]], checked_shape(path, name, list(shape)), offset, packed, path)
        if info.elements * np.dtype(kind).itemsize != size - skip:
            raise HermitcrabError(
                f"{path}: array `{shown(name)}` of shape {list(shape)} does not fill its {size - skip:,} bytes"
            )
        if not deflated:
            info = dataclasses.replace(info, offset=offset + skip, nbytes=packed - skip)
        tensors[name] = info
        layouts[name] = (kind, columns, skip, size if deflated else -1)
    return Weights(path, "numpy", tensors, {}, {path: stamp}, _decoder(path, layouts), streams=False)


def _first(path: Path, name: str, raw: np.ndarray) -> np.ndarray:
    import zlib

    try:
        return np.frombuffer(zlib.decompressobj(-15).decompress(raw.tobytes(), LONGEST_HEADER), np.uint8)
    except zlib.error as error:
        raise HermitcrabError(f"{path}: the array `{shown(name)}` is damaged ({shown(str(error))})") from error


def _layout(path: Path, name: str, head: bytes) -> tuple[str, bool, tuple[int, ...], int]:
    """dtype, whether columns come first, shape, and where the numbers begin."""
    if head[:6] != MAGIC or len(head) < 12 or head[6] not in (1, 2, 3):
        raise HermitcrabError(f"{path}: the array `{shown(name)}` has no NumPy header")
    wide = 2 if head[6] == 1 else 4
    start = 8 + wide
    length = int.from_bytes(head[8:start], "little")
    if start + length > len(head):
        raise HermitcrabError(
            f"{path}: the array `{shown(name)}` says that its header has {length:,} bytes; it is cut off"
        )
    try:
        told = ast.literal_eval(head[start : start + length].decode("latin-1").strip())
        kind, columns, shape = told["descr"], told["fortran_order"], told["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise HermitcrabError(f"{path}: the header of the array `{shown(name)}` is damaged") from error
    if not isinstance(kind, str) or kind[1:] not in KINDS or kind[0] not in "<|=":
        raise HermitcrabError(f"{path}: the array `{shown(name)}` holds {shown(str(kind))}, which is no plain number")
    if not isinstance(shape, tuple):
        raise HermitcrabError(f"{path}: the array `{shown(name)}` has no shape")
    return kind.replace("=", "<"), bool(columns), shape, start + length


def _decoder(
    path: Path, layouts: dict[str, tuple[str, bool, int, int]]
) -> Callable[[TensorInfo, np.ndarray], np.ndarray]:
    def decode(info: TensorInfo, raw: np.ndarray) -> np.ndarray:
        kind, columns, skip, size = layouts[info.name]
        if size >= 0:
            raw = unpack(path, info.name, raw, size)[skip:]
        values = raw.view(kind)
        if columns:
            values = np.ascontiguousarray(values.reshape(info.shape[::-1]).T).ravel()
        return values.astype(np.float32) if kind[1:] == "f2" else values

    return decode
