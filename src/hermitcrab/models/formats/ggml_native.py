"""llama.cpp's own quantizer, called in the library that `xllamacpp` ships: K-quants, and rounding by importance.

`ggml_quantize_chunk` is a plain C function of ggml's public header, so no binding of its own is needed; the package itself is
not imported (it would start its runtime).
https://github.com/ggml-org/ggml/blob/master/include/ggml.h
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError


def present() -> bool:
    """Is the quantizer here?"""
    return _path() is not None


def quantize(values: np.ndarray, dtype: str, importance: np.ndarray | None = None) -> np.ndarray:
    """Rows packed in blocks of a GGUF type, uint8 [..., bytes of a row].

    Args:
        values: float32 [..., n], contiguous; n a whole number of blocks.
        importance: float32 [n], how much an error in each column matters: the mean square of what it is multiplied with.

    Raises:
        HermitcrabError: the quantizer is not installed, or it refuses.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType[dtype]
    block, width = GGML_QUANT_SIZES[kind]
    columns = values.shape[-1]
    rows = values.size // columns
    packed = np.empty((*values.shape[:-1], columns // block * width), np.uint8)
    library = _library()
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if weights is not None and weights.shape != (columns,):
        raise HermitcrabError(f"importance of {weights.shape} for rows of {columns:,}; expected one number a column")
    written = library.ggml_quantize_chunk(
        int(kind), values.ctypes.data, packed.ctypes.data, 0, rows, columns, None if weights is None else weights.ctypes.data
    )  # fmt: skip
    if written != packed.nbytes:
        raise HermitcrabError(f"llama.cpp's quantizer wrote {written:,} bytes of {dtype}, expected {packed.nbytes:,}")
    return packed


@functools.cache
def _path() -> Path | None:
    found = importlib.util.find_spec("xllamacpp")
    if found is None or not found.submodule_search_locations:
        return None
    return next(iter(sorted(Path(found.submodule_search_locations[0]).glob("xllamacpp*.so"))), None)


@functools.cache
def _library() -> Any:
    path = _path()
    if path is None:
        raise HermitcrabError(
            "K-quants and calibrated types are packed by llama.cpp's own quantizer, which comes with `xllamacpp`; "
            "run: pip install 'hermitcrab[compress]'"
        )
    library = ctypes.CDLL(str(path))
    try:
        function = library.ggml_quantize_chunk
    except AttributeError as error:
        raise HermitcrabError(
            f"{path.name}: this build of xllamacpp shows no ggml_quantize_chunk; take another version"
        ) from error
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    function.restype = ctypes.c_size_t
    return library
