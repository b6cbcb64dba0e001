"""GGUF: a writer. Blocks are packed by `gguf.quants`, one tensor in memory at a time, and the same input gives the same bytes.

What a type cannot hold stays wider, and is counted by the caller: vectors in F32 (as every engine expects its norms), rows
that are no whole number of blocks in F16, and the output head of a type under eight bits in Q8_0 (llama.cpp keeps it wider
too: its errors go straight into the answer).
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import ggml_native

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")  # that `gguf.quants` packs
NATIVE = ("Q6_K", "Q5_K", "Q4_K", "IQ4_NL", "Q3_K", "Q2_K")  # that llama.cpp's own quantizer packs
CALIBRATED = "-calibrated"  # ending of a type whose rounding is weighed by an importance matrix
HEAD_TYPE = "Q8_0"
LARGEST_F16 = 65504.0
FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 12,
    "Q4_K": 15,
    "Q5_K": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "BF16": 32,
}  # llama.cpp's (`llama_ftype`, the medium mix where there are several)
BITS = {
    "F32": 32.0,
    "F16": 16.0,
    "BF16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.5625,
    "Q5_1": 6.0,
    "Q5_0": 5.5,
    "Q5_K": 5.5,
    "Q4_1": 5.0,
    "Q4_0": 4.5,
    "Q4_K": 4.5,
    "IQ4_NL": 4.5,
    "Q3_K": 3.4375,
    "Q2_K": 2.625,
}  # of a weight, scales included
QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class Planned:
    """A tensor as it will stand in the file. `reason`: why its type is not the one that was asked for."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    reason: str | None = None

    @property
    def nbytes(self) -> int:
        block, width = _sizes(self.dtype)
        return int(np.prod(self.shape)) // block * width


def _sizes(dtype: str) -> tuple[int, int]:
    """Numbers in a block, bytes of a block."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]


# What a row gets that is no whole number of a K-quant's blocks of 256: the next type with blocks of 32, as llama.cpp chooses it.
FALLBACK = {"Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "Q3_K": "IQ4_NL", "Q2_K": "IQ4_NL"}


def plan_tensor(name: str, shape: tuple[int, ...], wanted: str, head: bool) -> Planned:
    """The type that a tensor gets where `wanted` is asked for; `head`: it makes the logits."""
    if wanted == "F32" or not shape:
        return Planned(name, "F32", shape)
    if len(shape) < 2:
        return Planned(name, "F32", shape, "vector, in F32")
    if head and BITS[wanted] < 8 and not shape[-1] % _sizes(HEAD_TYPE)[0]:
        return Planned(name, HEAD_TYPE, shape, f"output head, in {HEAD_TYPE}")
    if not shape[-1] % _sizes(wanted)[0]:
        return Planned(name, wanted, shape)
    other = FALLBACK.get(wanted, "F16")
    other = "F16" if shape[-1] % _sizes(other)[0] else other
    return Planned(name, other, shape, f"row no whole number of {wanted} blocks, in {other}")


def write(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Sequence[Planned],
    read: Callable[[str], np.ndarray],
    pack: Callable[[Planned, np.ndarray], np.ndarray | None] = lambda *_: None,
) -> None:
    """One GGUF file (version 3, little-endian), whole or not at all.

    Args:
        metadata: key → str, bool, int (uint32), float (float32) or a list of one of these.
        read: name → its numbers, float32, in the shape that was planned.
        pack: the bytes of a tensor's blocks, where they are rounded otherwise than to the nearest.

    Raises:
        HermitcrabError: a value that its type cannot hold.
    """
    from gguf import GGUFValueType, GGUFWriter
    from gguf.constants import GGMLQuantizationType

    kinds = {
        str: GGUFValueType.STRING, bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32,
        list: GGUFValueType.ARRAY,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    writer = GGUFWriter(beside, architecture)
    try:
        for key, value in metadata.items():
            writer.add_key_value(key, value, kinds[type(value)])
        for tensor in tensors:
            block, width = _sizes(tensor.dtype)
            packed = tensor.dtype not in ("F32", "F16")
            shape = (*tensor.shape[:-1], tensor.shape[-1] // block * width) if packed else tensor.shape
            kind = np.dtype(np.uint8) if packed else np.dtype(np.float32 if tensor.dtype == "F32" else np.float16)
            writer.add_tensor_info(tensor.name, shape, kind, tensor.nbytes, GGMLQuantizationType[tensor.dtype])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            _append(writer, tensor, read(tensor.name), path, pack)
        writer.flush()
        assert writer.fout is not None
        os.fsync(writer.fout[0].fileno())
    finally:
        writer.close()
    os.replace(beside, path)


def _append(
    writer: Any,
    tensor: Planned,
    values: np.ndarray,
    path: Path,
    pack: Callable[[Planned, np.ndarray], np.ndarray | None],
) -> None:
    largest = float(np.abs(values).max(initial=0.0))
    if not np.isfinite(largest):
        raise HermitcrabError(f"{path.name}: tensor `{tensor.name}` holds values that are no numbers (NaN or infinite)")
    if largest > LARGEST_F16 and tensor.dtype not in ("F32", "BF16"):
        raise HermitcrabError(
            f"{path.name}: tensor `{tensor.name}` holds {largest:.4g}, beyond what {tensor.dtype} can say "
            f"(at most {LARGEST_F16:g}); choose F32 or BF16"
        )
    packed = pack(tensor, values)
    if packed is None:
        packed = _nearest(tensor.dtype, np.ascontiguousarray(values, np.float32))
    try:
        writer.write_tensor_data(packed)
    except OSError as error:
        if error.errno is None:  # numpy tells only how many bytes it could not write
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _nearest(dtype: str, values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest: by `gguf.quants` where it can, else by llama.cpp's own quantizer."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    if dtype in NATIVE:
        return ggml_native.quantize(values, dtype)
    return np.ascontiguousarray(quantize(values, GGMLQuantizationType[dtype]))
