"""Tier 1: exact tests on sign flips and swaps that leave a model's function, its first draw and its training unchanged.

If a model was trained independently of another, flipping the sign of a gated neuron (its row of `up` and its column of
`down`), of a value channel, of a query-key dimension (a rotary pair as one) or of a residual coordinate of an RMSNorm model
gives a model that was exactly as likely. Any statistic odd in these signs then has S = sum t_i with independent fair signs
given |t_i|, and P(|S| >= z sqrt(sum t_i^2)) <= 2 exp(-z^2 / 2) at any sample size (Hoeffding 1963, theorem 2). Where no sign
can be flipped (GELU neurons, LayerNorm coordinates, channels), exchanging two neighbors is a sign.
After Zhu, Ahmed, Kuditipudi and Liang, arXiv:2502.12292, with another group.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from hermitcrab.trace.compare import Sums, compare, head_rows
from hermitcrab.trace.model import SMALLEST, Model, constant
from hermitcrab.trace.parts import Part

LOG10E = math.log10(math.e)
FEWEST = 8  # independent signs below which a group is left out


@dataclass
class Group:
    """One family of signs. `cosine`: how much is shared; `layers`: z of each layer of the suspect (-1: outside)."""

    name: str
    units: int
    z: float
    log10_p: float
    cosine: float
    layers: dict[int, float] = field(default_factory=dict)
    what: str = ""

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name, "what": self.what, "status": "exact", "units": self.units, "z": round(self.z, 3),
            "log10_p": round(self.log10_p, 3), "cosine": round(self.cosine, 6),
            "layers": {str(k): round(v, 2) for k, v in sorted(self.layers.items())},
        }  # fmt: skip


@dataclass
class Exact:
    """What the exact tests gave. `sums`: of every pair that was compared, for the relation."""

    groups: list[Group] = field(default_factory=list)
    pairs: list[tuple[Part, Part]] = field(default_factory=list)
    sums: list[Sums] = field(default_factory=list)
    not_tested: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)

    def log10_p(self, times: int = 1) -> float:
        """The smallest p times the number of groups and of `times` (Bonferroni), at most 1."""
        if not self.groups:
            return 0.0
        return min(0.0, min(g.log10_p for g in self.groups) + math.log10(len(self.groups) * times))


def bound(z: float) -> float:
    """log10 of 2 exp(-z^2/2), at most 0."""
    return min(0.0, math.log10(2) - z * z / 2 * LOG10E)


WHAT = {
    "UD": "signs of gated neurons (rows of up, columns of down)",
    "VO": "signs of value channels (rows of value, columns of output)",
    "QK": "signs of query and key dimensions",
    "RES": "signs of residual coordinates",
    "neurons": "swaps of neighboring neurons",
    "coordinates": "swaps of neighboring residual coordinates",
}


class _Signs:
    """Gathers t_i by group and layer; a layer's values are summed unit by unit before they are squared."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
        self.cosines: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.loose: dict[str, float] = {}

    def add(self, group: str, layer: int, values: np.ndarray, sums: Sums, loose: float = 1.0) -> None:
        """`loose`: how many units may share one sign, where that is not known; the sum of squares grows by it."""
        have = self.values[group].get(layer)
        self.values[group][layer] = values if have is None else have + values
        self.cosines[group].append((float(sums.dots.sum()), sums.scale))
        self.loose[group] = max(loose, self.loose.get(group, 1.0))

    def groups(self) -> list[Group]:
        out = []
        for name, layers in self.values.items():
            units = sum(int((v != 0).sum()) for v in layers.values())
            q = sum(float(v @ v) for v in layers.values()) * self.loose[name]
            if units < FEWEST or q <= 0:
                continue
            z = sum(float(v.sum()) for v in layers.values()) / math.sqrt(q)
            each = {
                k: float(v.sum()) / math.sqrt(float(v @ v) * self.loose[name]) for k, v in layers.items() if v.any()
            }
            dots, scales = (sum(x) for x in zip(*self.cosines[name], strict=True))
            out.append(Group(name, units, z, bound(z), dots / scales if scales else 0.0, each, WHAT.get(name, name)))
        return sorted(out, key=lambda g: g.log10_p)


def matched(suspect: Model, base: Model, layers: dict[int, int]) -> list[tuple[Part, Part]]:
    """Parts of the suspect and what they are compared with: same role and shape, layers by `layers`, experts with experts,
    every expert with the MLP of a dense base."""
    out = []
    for (layer, role, expert), part in suspect.parts.items():
        there = layers.get(layer, -2) if layer >= 0 else -1
        other = base.parts.get((there, role, expert)) or (base.parts.get((there, role, -1)) if expert >= 0 else None)
        if other is not None and other.shape == part.shape and part.shape[0] * part.shape[1] >= SMALLEST:
            out.append((part, other))
    return out


def examine(
    suspect: Model, base: Model, layers: dict[int, int], *, chosen: bool = False, rows: int | None = None
) -> Exact:
    """All exact tests of a pair.

    Args:
        layers: layer of the suspect → layer of the base.
        chosen: `layers` was chosen by looking at both models (at magnitudes only, which no sign changes); swaps, which do
            move magnitudes, are then left out.
        rows: use only so many first rows of each matrix; statistics along columns are then left out.
    """
    found = Exact(pairs=matched(suspect, base, layers))
    s, b = suspect.structure, base.structure
    signs_only = s.gated and b.gated and not s.centered and not b.centered
    if rows is not None:  # columns of what writes the stream would need the whole
        found.pairs = [(p, q) for p, q in found.pairs if p.role not in ("down", "o", "embedding", "head", "position")]
    found.sums = compare(suspect, base, found.pairs, swaps=not signs_only, rows=rows)
    signs = _Signs()
    kept = _evidence(suspect, base, found)
    for part, other, sums in kept:
        _one(signs, suspect, base, part, other, sums, chosen, rows is not None)
    _attention(signs, suspect, base, kept, rows is not None)
    found.groups = signs.groups()
    _remarks(found, suspect, base, chosen, rows)
    return found


def _evidence(suspect: Model, base: Model, found: Exact) -> list[tuple[Part, Part, Sums]]:
    """Pairs that may count: finite, not constant, not all zero."""
    kept = []
    for (part, other), sums in zip(found.pairs, found.sums, strict=True):
        if not sums.finite:
            for model, p, squares in ((suspect, part, sums.squares_a), (base, other, sums.squares_b)):
                if not np.isfinite(squares).all():
                    model.broken.add(p.tensor)
            continue
        if sums.scale == 0:
            for model, p, squares in ((suspect, part, sums.squares_a), (base, other, sums.squares_b)):
                if not squares.any():
                    model.constants[p.tensor] = "zeros"
            continue
        if part.role == "position" or (sums.cosine > 0.98 and part.layer < 0):
            why = constant(head_rows(suspect, part, 256))
            if why:
                suspect.constants[part.tensor] = why
                continue
        kept.append((part, other, sums))
    return kept


def _one(
    signs: _Signs, suspect: Model, base: Model, part: Part, other: Part, sums: Sums, chosen: bool, sampled: bool
) -> None:
    """Neurons and residual coordinates."""
    s, b = suspect.structure, base.structure
    gated, centered = s.gated and b.gated, s.centered or b.centered
    rms = not centered and bool(s.gains) and bool(b.gains)
    reads = part.role in ("q", "k", "v", "gate", "up", "router", "embedding", "head", "position")
    key = part.layer * 4096 + part.expert + 1 if other.expert >= 0 else part.layer * 4096
    if part.role in ("up", "down") and gated:
        if part.role == "up" and s.sure_gate and b.sure_gate:
            signs.add("UD", key, sums.row_cosines(), sums)
        elif part.role == "down" and not sampled:
            signs.add("UD", key, sums.column_cosines(), sums)
    elif part.role in ("up", "down") and not gated and not chosen:
        if part.role == "up":
            signs.add("neurons", key, sums.row_swaps(), sums)
        elif not sampled:
            signs.add("neurons", key, sums.column_swaps(), sums)
    if sampled and not reads:
        return
    if rms:
        signs.add("RES", -1, sums.column_cosines() if reads else sums.row_cosines(), sums)
    elif centered and not chosen:
        signs.add("coordinates", -1, sums.column_swaps() if reads else sums.row_swaps(), sums)


def _attention(signs: _Signs, suspect: Model, base: Model, kept: list[tuple[Part, Part, Sums]], sampled: bool) -> None:
    """VO and QK: rows of one matrix belong to columns or rows of another."""
    by = {(part.layer, part.role): sums for part, _, sums in kept if part.role in ("q", "k", "v", "o")}
    a, b = suspect.heads, base.heads
    known = a.size > 0 and (a.query, a.kv, a.size) == (b.query, b.kv, b.size)
    for layer in sorted({layer for layer, _ in by}):
        if v := by.get((layer, "v")):
            values = v.row_cosines()
            o = by.get((layer, "o"))
            if o is not None and not sampled:
                columns = o.column_cosines()
                if known and len(values) == a.kv * a.size and len(columns) == a.query * a.size:
                    values = values + columns.reshape(a.kv, a.query // a.kv, a.size).mean(1).ravel()
                elif len(columns) == len(values):
                    values = values + columns
            signs.add("VO", layer, values, v)
        if k := by.get((layer, "k")):
            keys = k.row_cosines()
            q = by.get((layer, "q"))
            if sampled:  # the first rows of a query and a key are not the same heads
                signs.add("QK", layer, keys, k, 2.0)
                continue
            if known and q is not None and a.pairing == b.pairing and a.pairing in ("half", "none"):
                both = keys.reshape(a.kv, a.size) + q.row_cosines().reshape(a.kv, a.query // a.kv, a.size).sum(1)
                if a.pairing == "half":
                    both = both[:, : a.size // 2] + both[:, a.size // 2 :]
                signs.add("QK", layer, both.ravel(), k)
            else:
                if q is not None and len(q.dots) == len(keys):
                    keys = keys + q.row_cosines()
                signs.add("QK", layer, keys, k, 2.0)


def _remarks(found: Exact, suspect: Model, base: Model, chosen: bool, rows: int | None) -> None:
    names = {g.name for g in found.groups}
    if names:
        found.assumptions += [
            "each model's first draw has a symmetric law, coordinate by coordinate, and its optimizer treats signs and "
            "places alike (AdamW, SGD, Adafactor, Lion, Muon)",
            "no shared initial seed, no initial values copied from one another, no shared frozen parts",
        ]
    if chosen and not (suspect.structure.gated and base.structure.gated):
        found.not_tested.append("swaps of neurons and coordinates: the layers were matched by looking at both models")
    if rows is not None:
        found.not_tested.append(f"all but the first {rows} rows of each matrix (a sample or a sketch)")
    if not found.pairs:
        found.not_tested.append("exact tests: no two matrices of the same role and shape")
    for model in (suspect, base):
        for name in sorted(model.broken):
            found.not_tested.append(f"{model.name}: `{name}` holds NaN or infinite numbers")
