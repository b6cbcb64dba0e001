"""Exact swaps for models without recognized blocks: plain networks, convolutions, recurrent nets, generators.

Hidden units of one layer can change places with their neighbors if the next layer's inputs do the same. Which axes belong
together is told from sizes alone: all axes of one size are taken as one space and swapped at once, which is exact whether or
not the model ties them (a residual net does), at the price of few signs. A size counts as hidden only if some tensor makes it
and another takes it, and if the model has a size that nothing makes (its input) and one that nothing takes (its output);
inputs and outputs have an identity, so their order says nothing about ancestry.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hermitcrab.trace.exact import FEWEST, Group, bound
from hermitcrab.trace.model import LARGEST_MATRIX, SMALLEST, Model, constant
from hermitcrab.trace.parts import Seen

SMALLEST_SPACE = 16


@dataclass
class View:
    """A tensor as (out, in, rest); `folds` gates stand one behind another in the file (LSTM, GRU)."""

    name: str
    out: int
    inner: int
    folds: int = 1

    def of(self, values: np.ndarray) -> np.ndarray:
        if self.folds > 1:
            values = values.reshape(self.folds, self.out, -1).transpose(1, 2, 0)
        return np.ascontiguousarray(values.reshape(self.out, self.inner, -1), np.float32)


def views(tensors: Sequence[Seen]) -> list[View]:
    recurrent = {s.shape[0] for s in tensors if len(s.shape) == 2 and s.shape[0] in (3 * s.shape[1], 4 * s.shape[1])}
    pairs = {size for size in recurrent if sum(1 for s in tensors if s.shape[0] == size) >= 2}
    out = []
    for s in tensors:
        if len(s.shape) < 2:
            continue
        if len(s.shape) == 2 and s.shape[0] in pairs:
            hidden = {
                t.shape[1]
                for t in tensors
                if t.shape[0] == s.shape[0] and s.shape[0] in (3 * t.shape[1], 4 * t.shape[1])
            }
            size = min(hidden)
            out.append(View(s.name, size, s.shape[1], s.shape[0] // size))
        else:
            out.append(View(s.name, s.shape[0], s.shape[1]))
    made = {v.out for v in out}
    for v in out:  # a plain layer behind a convolution takes channels times places
        if v.inner not in made and v.folds == 1:
            channels = [
                c for c in made if c >= SMALLEST_SPACE and v.inner % c == 0 and v.inner > c and _square(v.inner // c)
            ]
            if channels and sum(1 for s in tensors if len(s.shape) == 4):
                v.inner = max(channels)
    return out


def _square(n: int) -> bool:
    return math.isqrt(n) ** 2 == n


def spaces(found: Sequence[View]) -> tuple[list[int], str | None]:
    """The sizes that are hidden, and why there are none."""
    made, taken = {v.out for v in found}, {v.inner for v in found if v.inner > 1 or v.out > 1}
    if not taken - made or not made - taken:
        return [], "units: neither an input nor an output of the network can be told from the shapes"
    inside = sorted(s for s in made & taken if s >= SMALLEST_SPACE)
    return inside, None if inside else "units: no hidden size is both made by one tensor and taken by another"


def stem(name: str) -> str:
    """A tensor's name without what quantizers hang on it."""
    return re.sub(r"[._](qweight|quantized|q)$", "", name)


def pair_up(suspect: Sequence[Seen], base: Sequence[Seen]) -> list[tuple[Seen, Seen]]:
    """Tensors of equal shape: by name, else by place where both have equally many of that shape."""
    by_name = {stem(s.name): s for s in base}
    pairs = [
        (s, by_name[stem(s.name)])
        for s in suspect
        if stem(s.name) in by_name and by_name[stem(s.name)].shape == s.shape
    ]
    left, right = ({s.name for s, _ in pairs}, {b.name for _, b in pairs})
    ours: dict[tuple[int, ...], list[Seen]] = defaultdict(list)
    theirs: dict[tuple[int, ...], list[Seen]] = defaultdict(list)
    for seen, taken, into in ((suspect, left, ours), (base, right, theirs)):
        for s in seen:
            if s.name not in taken and len(s.shape) >= 2:
                into[s.shape].append(s)
    for shape, group in ours.items():
        if len(theirs[shape]) == len(group):
            pairs += zip(group, theirs[shape], strict=True)
    return pairs


def examine(suspect: Model, base: Model) -> tuple[list[Group], list[str], list[tuple[str, str, float, float]]]:
    """Groups, what could not be tested, and (suspect's tensor, base's tensor, cosine, relative distance) of each pair."""
    pairs = pair_up(suspect.structure.spare, base.structure.spare)
    found = {v.name: v for v in views(suspect.structure.spare)}
    sizes, why = spaces(list(found.values()))
    gathered: dict[int, list[np.ndarray]] = defaultdict(list)
    told = []
    shared: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for ours, theirs in pairs:
        info = suspect.weights.info(ours.name)
        if info.elements < SMALLEST or info.elements * 4 > LARGEST_MATRIX:
            continue
        a, b = suspect.tensor(ours.name), base.tensor(theirs.name)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            (suspect if not np.isfinite(a).all() else base).broken.add(ours.name)
            continue
        if why_not := constant(a.reshape(a.shape[0], -1)):
            suspect.constants[ours.name] = why_not
            continue
        if not b.any():
            continue
        dot, norms = float(np.vdot(a, b)), float(np.linalg.norm(a) * np.linalg.norm(b))
        told.append((ours.name, theirs.name, dot / norms, float(np.linalg.norm(a - b) / np.linalg.norm(b))))
        v = found[ours.name]
        x, y = v.of(a) / np.linalg.norm(a), v.of(b) / np.linalg.norm(b)
        square = v.out == v.inner
        for size, axis in ((v.out, 0), (v.inner, 1)):
            if size in sizes and not (square and axis == 1):
                gathered[size].append(_swaps(x, y, axis, square))
                shared[size].append((dot, norms))
    groups = []
    for size, parts in gathered.items():
        count = max(len(p) for p in parts)
        t = np.sum([np.pad(p, (0, count - len(p))) for p in parts], axis=0)
        q = float(t @ t)
        if (t != 0).sum() >= FEWEST and q > 0:
            z = float(t.sum()) / math.sqrt(q)
            dots, norms = (sum(x) for x in zip(*shared[size], strict=True))
            groups.append(
                Group(
                    f"units {size}",
                    int((t != 0).sum()),
                    z,
                    bound(z),
                    dots / norms,
                    {},
                    f"swaps of neighboring hidden units, {size} wide",
                )
            )
    return groups, [why] if why and pairs else [], told


def _swaps(x: np.ndarray, y: np.ndarray, axis: int, square: bool) -> np.ndarray:
    """t of each pair of neighbors along an axis. Where both axes are of one size, the first half of the units is looked at
    on the second half of the other axis alone, which no swap among the first half moves."""
    if axis:
        x, y = x.swapaxes(0, 1), y.swapaxes(0, 1)
    half = x.shape[0] // 2
    if square:
        x, y = x[: half // 2 * 2, half + 1 :], y[: half // 2 * 2, half + 1 :]
    count = x.shape[0] // 2 * 2
    a = (x[0:count:2] - x[1:count:2]).reshape(count // 2, -1)
    b = (y[0:count:2] - y[1:count:2]).reshape(count // 2, -1)
    return np.einsum("kc,kc->k", a, b, dtype=np.float64)
