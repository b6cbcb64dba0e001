"""Compiled sums over a pair of matrices: one pass, no copies, at the speed of memory.

`signs_*`: dots and squares of rows, dots of columns. `swaps_float32`: the same for differences of neighbors. Arrays are
C-contiguous of equal shape (rows, columns). Four rows go together, so that the sums of columns are loaded and stored once for
four; sums over a row are float32, sums over chunks are added up in float64 by the caller.

`signs_float32` and `signs_float16` are one loop written twice: numba keeps no compiled closure on disk, and one body for both would
be compiled again in every run (.7 s).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

FAST: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "boundscheck": False,
    "error_model": "numpy",
}


@intrinsic
def _as_float(typingctx, bits):  # type: ignore[no-untyped-def]
    """A uint32 read as the float32 of the same bits."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@njit(inline="always")
def _wide(x):  # type: ignore[no-untyped-def]
    """bfloat16 is the upper half of a float32."""
    return _as_float(np.uint32(np.uint32(x) << np.uint32(16)))  # type: ignore[call-arg]


@njit(**FAST)
def signs_bfloat16(a, b, dots, squares_a, squares_b, columns, table):  # type: ignore[no-untyped-def]
    """`a`, `b`: uint16."""
    rows, width = a.shape
    whole = rows // 4 * 4
    for r in range(0, whole, 4):
        d0 = d1 = d2 = d3 = np.float32(0)
        p0 = p1 = p2 = p3 = np.float32(0)
        q0 = q1 = q2 = q3 = np.float32(0)
        a0, a1, a2, a3 = a[r], a[r + 1], a[r + 2], a[r + 3]
        b0, b1, b2, b3 = b[r], b[r + 1], b[r + 2], b[r + 3]
        for c in range(width):
            x0, x1, x2, x3 = _wide(a0[c]), _wide(a1[c]), _wide(a2[c]), _wide(a3[c])
            y0, y1, y2, y3 = _wide(b0[c]), _wide(b1[c]), _wide(b2[c]), _wide(b3[c])
            d0 += x0 * y0
            d1 += x1 * y1
            d2 += x2 * y2
            d3 += x3 * y3
            p0 += x0 * x0
            p1 += x1 * x1
            p2 += x2 * x2
            p3 += x3 * x3
            q0 += y0 * y0
            q1 += y1 * y1
            q2 += y2 * y2
            q3 += y3 * y3
            columns[c] += x0 * y0 + x1 * y1 + x2 * y2 + x3 * y3
        dots[r], dots[r + 1], dots[r + 2], dots[r + 3] = d0, d1, d2, d3
        squares_a[r], squares_a[r + 1], squares_a[r + 2], squares_a[r + 3] = p0, p1, p2, p3
        squares_b[r], squares_b[r + 1], squares_b[r + 2], squares_b[r + 3] = q0, q1, q2, q3
    for r in range(whole, rows):
        d = p = q = np.float32(0)
        for c in range(width):
            x, y = _wide(a[r, c]), _wide(b[r, c])
            d += x * y
            p += x * x
            q += y * y
            columns[c] += x * y
        dots[r], squares_a[r], squares_b[r] = d, p, q


@njit(**FAST)
def signs_float32(a, b, dots, squares_a, squares_b, columns, table):  # type: ignore[no-untyped-def]
    rows, width = a.shape
    for r in range(rows):
        d = p = q = np.float32(0)
        for c in range(width):
            x, y = a[r, c], b[r, c]
            d += x * y
            p += x * x
            q += y * y
            columns[c] += x * y
        dots[r], squares_a[r], squares_b[r] = d, p, q


@njit(**FAST)
def signs_float16(a, b, dots, squares_a, squares_b, columns, table):  # type: ignore[no-untyped-def]
    """`a`, `b`: uint16. `table`: the 65,536 values of a half as float32."""
    rows, width = a.shape
    for r in range(rows):
        d = p = q = np.float32(0)
        for c in range(width):
            x, y = table[a[r, c]], table[b[r, c]]
            d += x * y
            p += x * x
            q += y * y
            columns[c] += x * y
        dots[r], squares_a[r], squares_b[r] = d, p, q


@njit(**FAST)
def swaps_float32(a, b, pairs, columns):  # type: ignore[no-untyped-def]
    """pairs[k] = <a_2k - a_2k+1, b_2k - b_2k+1> over rows; columns[k] gathers the same over columns."""
    rows, width = a.shape
    for k in range(rows // 2):
        total = np.float32(0)
        for c in range(width):
            total += (a[2 * k, c] - a[2 * k + 1, c]) * (b[2 * k, c] - b[2 * k + 1, c])
        pairs[k] = total
    for r in range(rows):
        for k in range(width // 2):
            columns[k] += (a[r, 2 * k] - a[r, 2 * k + 1]) * (b[r, 2 * k] - b[r, 2 * k + 1])


@cache
def half_table() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
