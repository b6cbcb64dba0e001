"""Compiled sums over a pair of matrices: one pass, no copies, at the speed of memory.

`*_signs`: per row dot, squares and squared difference; per column dot. `*_swaps`: the same for differences of neighbors.
Arrays are C-contiguous of equal shape (rows, columns); sums over a row are float32 (columns ≤ 10^5), over rows float64.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit

FAST = {"nogil": True, "cache": True, "fastmath": {"reassoc", "contract", "nsz", "arcp"}, "boundscheck": False}


@njit(**FAST)
def signs_float32(a, b, dots, squares_a, squares_b, apart, columns, scratch):  # type: ignore[no-untyped-def]
    rows, width = a.shape
    for r in range(rows):
        dot = np.float32(0)
        aa = np.float32(0)
        bb = np.float32(0)
        dd = np.float32(0)
        for c in range(width):
            x, y = a[r, c], b[r, c]
            xy = x * y
            dot += xy
            aa += x * x
            bb += y * y
            dd += (x - y) * (x - y)
            columns[c] += xy
        dots[r], squares_a[r], squares_b[r], apart[r] = dot, aa, bb, dd


@njit(**FAST)
def signs_bfloat16(a, b, dots, squares_a, squares_b, apart, columns, scratch):  # type: ignore[no-untyped-def]
    """`a`, `b`: uint16, the upper halves of float32. `scratch`: uint32 (2, ≥ width)."""
    rows, width = a.shape
    left, right = scratch[0], scratch[1]
    xs, ys = left.view(np.float32), right.view(np.float32)
    for r in range(rows):
        for c in range(width):
            left[c] = np.uint32(a[r, c]) << np.uint32(16)
            right[c] = np.uint32(b[r, c]) << np.uint32(16)
        dot = np.float32(0)
        aa = np.float32(0)
        bb = np.float32(0)
        dd = np.float32(0)
        for c in range(width):
            x, y = xs[c], ys[c]
            xy = x * y
            dot += xy
            aa += x * x
            bb += y * y
            dd += (x - y) * (x - y)
            columns[c] += xy
        dots[r], squares_a[r], squares_b[r], apart[r] = dot, aa, bb, dd


@njit(**FAST)
def signs_float16(a, b, dots, squares_a, squares_b, apart, columns, table):  # type: ignore[no-untyped-def]
    """`a`, `b`: uint16. `table`: the 65,536 values of a half as float32."""
    rows, width = a.shape
    for r in range(rows):
        dot = np.float32(0)
        aa = np.float32(0)
        bb = np.float32(0)
        dd = np.float32(0)
        for c in range(width):
            x, y = table[a[r, c]], table[b[r, c]]
            xy = x * y
            dot += xy
            aa += x * x
            bb += y * y
            dd += (x - y) * (x - y)
            columns[c] += xy
        dots[r], squares_a[r], squares_b[r], apart[r] = dot, aa, bb, dd


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
