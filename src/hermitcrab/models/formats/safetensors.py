"""safetensors, one file or sharded: a strict reader.

A file is eight bytes (length of the header, little-endian), the header (JSON: name → dtype, shape, two offsets), then
the tensors without hole or overlap. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError, nearest
from hermitcrab.models.formats.weights import (
    Handle,
    Stamp,
    TensorInfo,
    Weights,
    bfloat16_to_float32,
    checked_shape,
    open_checked,
    shown,
)

LONGEST_HEADER = 100_000_000  # the format's own limit
INDEX = "model.safetensors.index.json"
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
NUMPY = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip


EIGHT_BIT = {"F8_E4M3": (4, 3, 7), "F8_E5M2": (5, 2, 15)}  # bits of exponent and mantissa, bias


def read_file(path: Path) -> Weights:
    """The tensors of one safetensors file.

    Raises:
        HermitcrabError: truncated, lying, overlapping or absurd header; symbolic link.
    """
    with open_checked(path) as handle:
        start, header = _header(handle)
        stamp = handle.stamp
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HermitcrabError(f"{path}: `__metadata__` in the header is no mapping of texts")
    tensors = {name: _tensor(path, name, entry, start) for name, entry in header.items()}
    _tile(path, start, stamp.size, list(tensors.values()))
    return Weights(path, "safetensors", tensors, metadata, {path: stamp}, _decode)


def _header(handle: Handle) -> tuple[int, dict[str, Any]]:
    """Where the tensors start, and the header."""
    path = handle.path
    if handle.size < 8:
        raise HermitcrabError(f"{path}: {handle.size} bytes are too few for a safetensors file; it is cut off")
    length = int.from_bytes(handle.read(0, 8, "the length of the header").tobytes(), "little")
    if length > min(handle.size - 8, LONGEST_HEADER):
        raise HermitcrabError(
            f"{path}: says that its header has {length:,} bytes, but the file has {handle.size:,}; "
            "it is cut off, or no safetensors file"
        )
    text = handle.read(8, length, "the header").tobytes()
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise HermitcrabError(f"{path}: the safetensors header is not valid JSON ({shown(str(error))})") from error
    if not isinstance(header, dict):
        raise HermitcrabError(f"{path}: the safetensors header is no JSON object")
    return 8 + length, header


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _tensor(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    if not name.isprintable():
        raise HermitcrabError(f"{path}: the tensor name `{shown(name)}` is no printable text")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HermitcrabError(f"{path}: tensor `{shown(name)}` must have dtype, shape and data_offsets, and has not")
    dtype, offsets = entry["dtype"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise HermitcrabError(f"{path}: tensor `{shown(name)}`: unknown dtype {shown(dtype)}")
    shape = checked_shape(path, name, entry["shape"])
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(o) is not int or o < 0 for o in offsets):
        raise HermitcrabError(f"{path}: tensor `{shown(name)}`: data_offsets are no pair of positions")
    begin, end = offsets
    info = TensorInfo(name, dtype, shape, start + begin, end - begin, path)
    if info.elements * BITS[dtype] != 8 * (end - begin):
        raise HermitcrabError(
            f"{path}: tensor `{shown(name)}`: {dtype} of shape {list(shape)} needs "
            f"{shown(info.elements * BITS[dtype] // 8)} bytes, but its offsets span {end - begin:,}"
        )
    return info


def _tile(path: Path, start: int, size: int, tensors: list[TensorInfo]) -> None:
    """Tensors fill the file without hole or overlap."""
    at, before = start, "the header"
    for info in sorted(tensors, key=lambda i: (i.offset, i.nbytes)):
        if info.offset != at:
            kind = "overlaps" if info.offset < at else "leaves a hole after"
            raise HermitcrabError(f"{path}: tensor `{shown(info.name)}` {kind} {before}")
        at, before = info.offset + info.nbytes, f"`{shown(info.name)}`"
        if at > size:
            raise HermitcrabError(
                f"{path}: tensor {before} would end at byte {at:,}, but the file has {size:,}; it is cut off"
            )
    if at != size:
        raise HermitcrabError(f"{path}: {size - at:,} bytes after {before} belong to no tensor")


def _decode(info: TensorInfo, raw: np.ndarray) -> np.ndarray:
    if info.dtype == "BF16":
        return bfloat16_to_float32(raw)
    if info.dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    if info.dtype in EIGHT_BIT:
        return _eight_bit_table(info.dtype)[raw]
    if info.dtype not in NUMPY:
        raise HermitcrabError(
            f"{info.file}: tensor `{info.name}` is {info.dtype}, which hermitcrab cannot read yet; "
            "use a release of the model in BF16, F16 or F32"
        )
    if info.dtype == "BOOL":
        return raw != 0
    return raw.view(NUMPY[info.dtype])


@cache
def _eight_bit_table(dtype: str) -> np.ndarray:
    """The 256 values of an eight-bit float as float32. arXiv:2209.05433 (OCP FP8): E5M2 as IEEE, E4M3 without infinities."""
    exponent_bits, mantissa_bits, bias = EIGHT_BIT[dtype]
    code = np.arange(256)
    exponent, mantissa = code >> mantissa_bits & (1 << exponent_bits) - 1, code & (1 << mantissa_bits) - 1
    scale = 1 << mantissa_bits
    values = np.where(
        exponent > 0, (1 + mantissa / scale) * 2.0 ** (exponent - bias), mantissa / scale * 2.0 ** (1 - bias)
    )
    top = exponent == (1 << exponent_bits) - 1
    if dtype == "F8_E5M2":
        values = np.where(top, np.where(mantissa == 0, np.inf, np.nan), values)
    else:
        values = np.where(top & (mantissa == scale - 1), np.nan, values)
    return np.where(code & 128, -values, values).astype(np.float32)


def read_sharded(folder: Path, index: str = INDEX) -> Weights:
    """The tensors of all shards that `index` names.

    Shards are plain files beside the index: a path that climbs, is absolute or goes through a link is refused.
    """
    path = folder / index
    with open_checked(path) as handle:
        if handle.size > LONGEST_HEADER:
            raise HermitcrabError(f"{path}: {handle.size:,} bytes are too many for an index")
        text = handle.read(0, handle.size, "the index").tobytes()
        stamp = handle.stamp
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise HermitcrabError(f"{path}: the index is not valid JSON ({shown(str(error))})") from error
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise HermitcrabError(f"{path}: has no `weight_map` of tensors to shards")
    tensors: dict[str, TensorInfo] = {}
    stamps: dict[Path, Stamp] = {}
    for shard in sorted({_shard_name(path, name, shard) for name, shard in listed.items()}):
        weights = _open_shard(folder, shard, path)
        wrong = next((name for name in weights.tensors if listed.get(name) != shard), None)
        if wrong is not None:
            where = f"the index puts it in {shown(listed[wrong])}" if wrong in listed else "the index does not list it"
            raise HermitcrabError(f"{folder / shard}: holds tensor `{shown(wrong)}`, but {where}")
        tensors |= weights.tensors
        stamps |= weights.stamps
    absent = next((name for name in listed if name not in tensors), None)
    if absent is not None:
        raise HermitcrabError(f"{path}: lists tensor `{shown(absent)}` in {listed[absent]}, which does not hold it")
    return Weights(folder, "safetensors", tensors, {}, {path: stamp} | stamps, _decode)


def _shard_name(index: Path, tensor: str, shard: Any) -> str:
    if not isinstance(shard, str) or not shard.endswith(".safetensors") or not shard.isprintable():
        raise HermitcrabError(f"{index}: tensor `{shown(tensor)}`: {shown(shard)} is no safetensors shard")
    if "/" in shard or "\\" in shard or shard.startswith("."):
        raise HermitcrabError(
            f"{index}: tensor `{shown(tensor)}`: the shard {shown(shard)} does not lie beside the index; refused"
        )
    return shard


def _open_shard(folder: Path, shard: str, index: Path) -> Weights:
    if not (folder / shard).exists() and not (folder / shard).is_symlink():
        near = nearest(shard, [p.name for p in folder.glob("*.safetensors")])
        raise HermitcrabError(f"{index}: the shard {shown(shard)} is missing" + (f"; there is {near}" if near else ""))
    return read_file(folder / shard)
