"""Tier 0: matrices and rows that are the same numbers, in whatever order, layout, type or name.

A row's key is a hash of its first 64 numbers rounded to bfloat16, so that a copy saved in another type is still found; a
matrix's digest is that of its sorted keys, so that permuted rows are found too. Columns are tried where rows do not match.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from hermitcrab.trace.model import LARGEST_MATRIX, SMALLEST, Model, constant, numeric

LENGTH = 64
FEWEST_ROWS = 8
LEAST_VALUES = 8  # distinct numbers in what is hashed of a row that counts
KEYS = np.random.default_rng(20260701).integers(1, 1 << 63, LENGTH, dtype=np.uint64) | np.uint64(1)


@dataclass
class Copies:
    """What the two models share number for number. `rows`: shared rows of matrices that are not the same as a whole."""

    same: list[tuple[str, str]] = field(default_factory=list)
    permuted: list[tuple[str, str]] = field(default_factory=list)
    rows: list[tuple[str, str, int, int]] = field(default_factory=list)
    """(suspect's tensor, base's tensor, shared rows, rows of the suspect's)."""
    compared: int = 0

    @property
    def found(self) -> bool:
        return bool(self.same or self.permuted or self.rows)


def row_keys(values: np.ndarray) -> np.ndarray:
    """uint64 keys of the rows of (rows, columns); 0 for a row with too few different numbers."""
    part = np.ascontiguousarray(values[:, :LENGTH], np.float32)
    bits = part.view(np.uint32).astype(np.uint64)
    half = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    half[half == 0x8000] = 0  # minus zero
    with np.errstate(over="ignore"):
        mixed = ((half + np.uint64(1)) * KEYS[: part.shape[1]]).sum(1, dtype=np.uint64)
        mixed ^= mixed >> np.uint64(31)
        mixed *= np.uint64(0x9E3779B97F4A7C15)
    ordered = np.sort(half, 1)
    few = (np.diff(ordered, axis=1) != 0).sum(1) + 1 < min(LEAST_VALUES, part.shape[1])
    mixed[few | (mixed == 0)] = 0
    return mixed


@dataclass
class _Keys:
    name: str
    shape: tuple[int, int]
    rows: np.ndarray
    columns: np.ndarray

    def digest(self, keys: np.ndarray) -> bytes:
        return hashlib.sha256(np.sort(keys).tobytes()).digest()


def keys_of(model: Model) -> list[_Keys]:
    """Keys of every matrix that may be evidence. Constants are left out and noted in the model."""
    out = []
    for name, info in model.weights.tensors.items():
        if (
            not numeric(model.weights, info)
            or len(info.shape) < 2
            or not SMALLEST <= info.elements <= LARGEST_MATRIX // 4
        ):
            continue
        values = model.tensor(name)
        values = values.reshape(values.shape[0], -1) if values.ndim != 3 else values.reshape(-1, values.shape[-1])
        if why := constant(values[:2048]):
            model.constants[name] = why
            continue
        rows = row_keys(values)
        columns = row_keys(values[: LENGTH * 4].T[:, :LENGTH]) if values.shape[0] >= 16 else np.zeros(0, np.uint64)
        out.append(_Keys(name, (values.shape[0], values.shape[1]), rows, columns))
    return out


def copies(suspect: list[_Keys], base: list[_Keys]) -> Copies:
    """Pure function of two models' keys."""
    found = Copies(compared=len(suspect))
    exact: dict[bytes, str] = {}
    loose: dict[bytes, str] = {}
    where: dict[int, set[str]] = defaultdict(set)
    counts: dict[str, Counter[int]] = {}
    for b in base:
        for keys in (b.rows, b.columns):
            if (keys != 0).sum() >= FEWEST_ROWS:
                exact[hashlib.sha256(keys.tobytes()).digest()] = b.name
                loose[b.digest(keys)] = b.name
        counts[b.name] = Counter(b.rows[b.rows != 0].tolist()) + Counter()
        for key in counts[b.name]:
            where[key].add(b.name)
    for s in suspect:
        live = s.rows[s.rows != 0]
        if len(live) < FEWEST_ROWS:
            continue
        if other := exact.get(hashlib.sha256(s.rows.tobytes()).digest()):
            found.same.append((s.name, other))
        elif other := loose.get(s.digest(s.rows)):
            found.permuted.append((s.name, other))
        else:
            votes: Counter[str] = Counter()
            for key in live.tolist():
                votes.update(where.get(key, ()))
            if votes:
                name, _ = votes.most_common(1)[0]
                shared = sum((Counter(live.tolist()) & counts[name]).values())
                if shared >= FEWEST_ROWS:
                    found.rows.append((s.name, name, shared, len(s.rows)))
    return found
