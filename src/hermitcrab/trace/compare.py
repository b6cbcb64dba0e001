"""Sums over pairs of parts, streamed: what every exact test is made of.

Both files are read once, in chunks of rows into memory that is used again, so that the peak stays far below the size of a
model. Files are read rather than mapped: a mapped file that somebody shortens kills the process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from hermitcrab.progress import progress
from hermitcrab.trace.model import Model
from hermitcrab.trace.parts import Part

CHUNK = 1 << 21  # bytes of each file at a time
PLAIN: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2"), "F16": np.dtype("<u2")}


@dataclass
class Sums:
    """Of one part of the suspect and its like in the base, float64.

    dots, squares_a, squares_b: (rows,); columns: (columns,) dots along columns. pairs (rows // 2,) and column_pairs
    (columns // 2,): the same for differences of neighbors, empty where they were not asked for. `rows`: how many were read.
    """

    dots: np.ndarray
    squares_a: np.ndarray
    squares_b: np.ndarray
    columns: np.ndarray
    pairs: np.ndarray
    column_pairs: np.ndarray
    rows: int

    @property
    def scale(self) -> float:
        """The product of the two Frobenius norms."""
        return float(np.sqrt(self.squares_a.sum() * self.squares_b.sum()))

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.squares_a).all() and np.isfinite(self.squares_b).all())

    @property
    def cosine(self) -> float:
        return float(self.dots.sum() / self.scale) if self.scale > 0 else 0.0

    def row_cosines(self) -> np.ndarray:
        return _ratio(self.dots, np.sqrt(self.squares_a * self.squares_b))

    def column_cosines(self) -> np.ndarray:
        """Dots of columns over the mean product of their norms."""
        return _ratio(self.columns * len(self.columns), np.full(len(self.columns), self.scale))

    def row_swaps(self) -> np.ndarray:
        return _ratio(self.pairs * 2 * len(self.pairs), np.full(len(self.pairs), self.scale))

    def column_swaps(self) -> np.ndarray:
        return _ratio(self.column_pairs * 2 * len(self.column_pairs), np.full(len(self.column_pairs), self.scale))


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    out = np.zeros(len(over))
    np.divide(over, under, out=out, where=(under > 0) & np.isfinite(under) & np.isfinite(over))
    return out


def threads() -> int:
    """As many as the process may use, at most eight."""
    return max(1, min(8, len(os.sched_getaffinity(0))))


def compare(
    suspect: Model, base: Model, pairs: Sequence[tuple[Part, Part]], swaps: bool, rows: int | None = None
) -> list[Sums]:
    """The sums of each pair of parts of equal shape. `rows`: only so many first rows of each (a fixed subset is exact too)."""
    fast = [i for i, (p, q) in enumerate(pairs) if not swaps and streams(suspect, p) and streams(base, q)
            and _kind(suspect, p) == _kind(base, q)]  # fmt: skip
    slow = [i for i in range(len(pairs)) if i not in set(fast)]
    out: list[Sums | None] = [None] * len(pairs)
    total = sum(p.shape[0] * p.shape[1] for p, _ in pairs)
    with progress("comparing weights", total, "numbers") as bar:
        if fast:
            with ThreadPoolExecutor(threads()) as pool:
                for i, sums in zip(
                    fast, pool.map(lambda i: _stream(suspect, base, *pairs[i], rows), fast), strict=True
                ):
                    out[i] = sums
                    bar.add(pairs[i][0].shape[0] * pairs[i][0].shape[1])
        for i in sorted(slow, key=lambda i: (pairs[i][0].tensor, pairs[i][0].start)):
            out[i] = _whole(suspect.matrix(pairs[i][0]), base.matrix(pairs[i][1]), swaps, rows)
            bar.add(pairs[i][0].shape[0] * pairs[i][0].shape[1])
    return [s for s in out if s is not None]


def _kind(model: Model, part: Part) -> str:
    return model.info(part).dtype


def streams(model: Model, part: Part) -> bool:
    """Rows lie behind one another in a plain type, in the order that is meant."""
    info = model.info(part)
    reordered = model.reordered and part.role in ("q", "k")
    plain = info.dtype in PLAIN and not part.turned and part.index < 0 and len(info.shape) == 2 and not reordered
    return plain and model.weights.streams


def head_rows(model: Model, part: Part, count: int) -> np.ndarray:
    """The first rows of a part, read alone where the file allows it."""
    if streams(model, part):
        count = min(count, part.shape[0])
        return model.reader.rows(part.tensor, part.start, part.start + count).astype(np.float32)
    return model.matrix(part)[:count]


_held = threading.local()


def _buffers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two of this thread's own, used again for every tensor: fresh memory costs a page fault every 4 KiB."""
    if getattr(_held, "size", 0) < size:
        _held.size, _held.pair = size, (np.empty(size, np.uint8), np.empty(size, np.uint8))
    return _held.pair


def _stream(suspect: Model, base: Model, p: Part, q: Part, rows: int | None) -> Sums:
    from hermitcrab.trace import kernels

    count = p.shape[0] if rows is None else min(rows, p.shape[0])
    width, kind = p.shape[1], _kind(suspect, p)
    item = PLAIN[kind]
    step = max(1, CHUNK // (width * item.itemsize))
    left, right = _buffers(min(step, count) * width * item.itemsize)
    dots, aa, bb = (np.zeros(count) for _ in range(3))
    columns, part = np.zeros(width), np.zeros(width, np.float32)
    table = kernels.half_table()
    kernel = {"F32": kernels.signs_float32, "BF16": kernels.signs_bfloat16, "F16": kernels.signs_float16}[kind]
    for at in range(0, count, step):
        end = min(at + step, count)
        a = suspect.reader.raw_rows(p.tensor, p.start + at, p.start + end, left).view(item).reshape(-1, width)
        b = base.reader.raw_rows(q.tensor, q.start + at, q.start + end, right).view(item).reshape(-1, width)
        kernel(a, b, dots[at:end], aa[at:end], bb[at:end], part, table)
        if at % (8 * step) == 0 or end == count:  # float32 holds a few thousand rows well
            columns += part
            part[:] = 0
    none = np.zeros(0)
    return Sums(dots, aa, bb, columns, none, none, count)


def _whole(a: np.ndarray, b: np.ndarray, swaps: bool, rows: int | None) -> Sums:
    """Of two matrices in memory, (rows, columns) float32."""
    from hermitcrab.trace import kernels

    if rows is not None:
        a, b = a[:rows], b[:rows]
    a, b = (np.ascontiguousarray(x, np.float32) for x in (a, b))
    count, width = a.shape
    dots, aa, bb = (np.zeros(count) for _ in range(3))
    columns = np.zeros(width)
    pairs, column_pairs = (np.zeros(count // 2), np.zeros(width // 2)) if swaps else (np.zeros(0), np.zeros(0))
    table = kernels.half_table()
    with np.errstate(all="ignore"):
        for at in range(0, count, 256):
            end = min(at + 256, count)
            part = np.zeros(width, np.float32)
            kernels.signs_float32(a[at:end], b[at:end], dots[at:end], aa[at:end], bb[at:end], part, table)
            columns += part
            if swaps:
                part = np.zeros(width // 2, np.float32)
                kernels.swaps_float32(a[at:end], b[at:end], pairs[at // 2 : at // 2 + (end - at) // 2], part)
                column_pairs += part
    return Sums(dots, aa, bb, columns, pairs, column_pairs, count)
