"""Roles for a model whose names and order say nothing, borrowed from the model that it is compared with.

Matrices of equal shape are assigned to one another by their absolute values, which no flip of signs moves, so that tests on
signs stay exact after it. Where nothing fits better than chance, nothing is borrowed.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import replace

import numpy as np

from hermitcrab.trace.model import SMALLEST, Model
from hermitcrab.trace.parts import Part, Structure

CORNER = 256  # rows and columns compared
LEAST = 0.05


def borrowed(model: Model, other: Model) -> Model | None:
    """`model` with the structure of `other`, or None: it has one itself, `other` has none, or nothing fits."""
    if model.structure.layers or not other.structure.layers or model.limit is not None or other.limit is not None:
        return None
    wanted: dict[tuple[int, int], list[Part]] = defaultdict(list)
    for part in other.structure.parts:
        if part.shape[0] * part.shape[1] >= SMALLEST:
            wanted[part.shape].append(part)
    free = [s for s in model.structure.spare if len(s.shape) == 2]
    parts: list[Part] = []
    fits: list[float] = []
    taken: set[str] = set()
    for shape, group in wanted.items():
        found = _assign(
            model, other, group, [s.name for s in free if s.name not in taken and s.shape in (shape, shape[::-1])]
        )
        for part, name, turned, fit in found:
            parts.append(replace(part, tensor=name, turned=turned, start=0, index=-1))
            fits.append(fit)
            taken.add(name)
    if not fits or float(np.median(fits)) < LEAST:
        return None
    s = other.structure
    made = Structure(parts, {}, [x for x in model.structure.spare if x.name not in taken], s.layers, s.width, s.gated, s.centered,
                     s.sure_gate, s.learned_positions, "borrowed from the other model")  # fmt: skip
    made.gains = _gains(model, other)
    out = copy.copy(model)
    out.structure, out.heads, out.parts = made, other.heads, {p.key: p for p in parts}
    return out


def _assign(model: Model, other: Model, group: list[Part], names: list[str]) -> list[tuple[Part, str, bool, float]]:
    from scipy.optimize import linear_sum_assignment

    if not names:
        return []
    shape = group[0].shape
    theirs = np.stack([_profile(other.matrix(p)) for p in group])
    ours, turns = [], []
    for name in names:
        x = model.tensor(name)
        options = [(x, False)] if x.shape == shape else []
        if x.shape[::-1] == shape:
            options.append((x.T, True))
        scored = [(_profile(y), turned) for y, turned in options]
        best = max(scored, key=lambda o: float((theirs @ o[0]).max()))
        ours.append(best[0])
        turns.append(best[1])
    fit = theirs @ np.stack(ours).T
    rows, columns = linear_sum_assignment(-fit)
    return [(group[i], names[j], turns[j], float(fit[i, j])) for i, j in zip(rows, columns, strict=True)]


def _profile(x: np.ndarray) -> np.ndarray:
    """Absolute values of the upper left corner, rows and columns centered, of length one."""
    y = np.abs(np.nan_to_num(x[:CORNER, :CORNER].astype(np.float64), posinf=0, neginf=0))
    y = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()
    return (y / max(float(np.linalg.norm(y)), 1e-30)).ravel()


def _gains(model: Model, other: Model) -> dict[tuple[int, int], str]:
    """Vectors of the model's width that follow those of the other most closely."""
    from scipy.optimize import linear_sum_assignment

    keys = sorted(other.structure.gains)
    names = [n for n, i in model.weights.tensors.items() if i.shape == (other.structure.width,)]
    theirs = [other.gain(*k) for k in keys]
    if not keys or not names or any(t is None for t in theirs):
        return {}

    def unit(v: np.ndarray) -> np.ndarray:
        v = np.nan_to_num(v.astype(np.float64)) - np.nan_to_num(v.astype(np.float64)).mean()
        return v / max(float(np.linalg.norm(v)), 1e-30)

    fit = np.stack([unit(t) for t in theirs if t is not None]) @ np.stack([unit(model.tensor(n)) for n in names]).T
    rows, columns = linear_sum_assignment(-fit)
    return {keys[i]: names[j] for i, j in zip(rows, columns, strict=True)}
