"""A suspect's neurons in the coordinates of a base, and what is left of the suspect once the base is taken out.

The map is made from the suspect and one base alone. A second model that had no part in making it can then be tested exactly
against what is left (deflation): under independence its own signs are still free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hermitcrab.trace.aligned import Alignment
from hermitcrab.trace.exact import FEWEST, Group, bound
from hermitcrab.trace.neurons import Block, unit, views

MOST_NEURONS = 6144  # of a block that is assigned whole


@dataclass
class Mapped:
    """A block of the suspect in the base's coordinates: `ours[k]` and `theirs[k]` are (neurons, width), row by row alike.

    cosines: (gate or up, up, down) means over neurons; `rows`: the base's neurons; `moved`: share not in their own place;
    `flipped`: share with the other sign.
    """

    block: Block
    base: Block
    ours: list[np.ndarray]
    theirs: list[np.ndarray]
    rows: np.ndarray
    moved: float
    flipped: float
    cosines: list[float]


def map_blocks(ours: list[Block], theirs: list[Block], alignment: Alignment) -> list[Mapped]:
    """Every block of the suspect that the alignment's layer map gives a base block."""
    from scipy.optimize import linear_sum_assignment

    out = []
    for i, j in enumerate(alignment.layer_map):
        if j < 0 or max(len(ours[i].up), len(theirs[j].up)) > MOST_NEURONS:
            continue
        a, b = ours[i], theirs[j]
        vectors = [v if alignment.rotation is None else v @ alignment.rotation for v in a.vectors()]
        first, second = views([unit(v) for v in vectors], [unit(v) for v in b.vectors()])
        rows, columns = linear_sum_assignment(-(first + second))
        mine = [v[rows] for v in vectors]
        yours = [v[columns] for v in b.vectors()]
        flipped = 0.0
        if a.gate is not None:
            mine, flipped = _same_scale(mine, yours)
        cosines = [float((unit(x) * unit(y)).sum(1).mean()) for x, y in zip(mine, yours, strict=True)]
        out.append(Mapped(a, b, mine, yours, columns, float((rows != columns).mean()), flipped, cosines))
    return out


def _same_scale(mine: list[np.ndarray], yours: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Undo the sign and the factor that can move between what a gated neuron carries and what it writes."""
    gate, up, down = mine
    agree = (unit(up) * unit(yours[1])).sum(1) + (unit(down) * unit(yours[2])).sum(1)
    sign = np.where(agree < 0, -1.0, 1.0)
    norms = [np.maximum(np.linalg.norm(v, axis=1), 1e-12) for v in (up, down, yours[1], yours[2])]
    factor = np.sqrt(norms[2] / norms[0] * norms[1] / norms[3]) * sign
    factor = factor.astype(np.float32)[:, None]
    return [gate, up * factor, down / factor], float((sign < 0).mean())


def deflated(mapped: list[Mapped], third: list[Block], gated: bool, centered: bool) -> list[Group]:
    """Exact tests of a third model against what is left of the suspect in the base's coordinates.

    Signs of gated neurons, or swaps of neighbors where neurons have none; residual coordinates likewise.
    """
    by = {(b.layer, b.expert): b for b in third}
    neurons: list[np.ndarray] = []
    coordinates: np.ndarray | None = None
    dots = norms = 0.0
    for m in mapped:
        other = by.get((m.base.layer, m.base.expert))
        if other is None or [v.shape for v in other.vectors()] != [v.shape for v in m.base.vectors()]:
            continue
        t = np.zeros(len(other.up))
        for n, (x, y, z) in enumerate(zip(m.ours, m.theirs, other.vectors(), strict=True)):
            rest = x - float(np.vdot(x, y) / max(np.vdot(y, y), 1e-30)) * y
            full = np.zeros_like(z)
            full[m.rows] = rest
            scale = float(np.linalg.norm(full) * np.linalg.norm(z))
            if scale <= 0 or not math.isfinite(scale):
                continue
            dots, norms = dots + float(np.vdot(full, z)), norms + scale
            product = full.astype(np.float64) * z
            if gated and n:
                size = np.linalg.norm(full, axis=1) * np.linalg.norm(z, axis=1)
                t += np.divide(product.sum(1), size, out=np.zeros(len(size)), where=size > 0)
            elif not gated:
                t[: len(z) // 2] += _neighbors(full, z, 0) / scale * len(z)
            column = product.sum(0) / scale if not centered else _neighbors(full, z, 1) / scale
            coordinates = column if coordinates is None else coordinates + column
        neurons.append(t)
    groups = []
    for name, values in (
        ("UD" if gated else "neurons", neurons),
        ("RES" if not centered else "coordinates", [coordinates]),
    ):
        flat = (
            np.concatenate([v for v in values if v is not None]) if any(v is not None for v in values) else np.zeros(0)
        )
        q = float(flat @ flat)
        if (flat != 0).sum() >= FEWEST and q > 0:
            score = float(flat.sum()) / math.sqrt(q)
            groups.append(
                Group(f"deflated {name}", int((flat != 0).sum()), score, bound(score), dots / norms if norms else 0.0)
            )
    return sorted(groups, key=lambda g: g.log10_p)


def _neighbors(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    if axis:
        x, y = x.T, y.T
    count = len(x) // 2 * 2
    return np.einsum("kc,kc->k", x[0:count:2] - x[1:count:2], y[0:count:2] - y[1:count:2], dtype=np.float64)


def merge_weights(targets: list[np.ndarray], parents: list[list[np.ndarray]]) -> tuple[list[float], float, float]:
    """Weights of the parents in the suspect by least squares, their standard error, and the gain over the best parent alone.

    targets: matrices of the suspect; parents[k]: the like matrices of parent k. Error: spread of the weights over the
    matrices (standard error of the mean). Gain: 1 - RSS(all) / RSS(best single, its weight free).
    """
    count = len(parents)
    gram, right, total = np.zeros((count, count)), np.zeros(count), 0.0
    single, each = np.zeros(count), []
    for i, x in enumerate(targets):
        rows = np.stack([p[i].ravel() for p in parents]).astype(np.float64)
        y = x.ravel().astype(np.float64)
        g, r = rows @ rows.T, rows @ y
        gram, right, total = gram + g, right + r, total + float(y @ y)
        each.append(np.linalg.lstsq(g, r, rcond=None)[0])
        single += r**2 / np.maximum(np.diag(g), 1e-30)
    weights = np.linalg.lstsq(gram, right, rcond=None)[0]
    left = max(total - float(weights @ right), 0.0)
    best = max(total - float(single.max()), 1e-30)
    spread = float(np.std(np.stack(each), 0).max() / math.sqrt(max(len(each), 1)))
    return [float(w) for w in weights], spread, 1 - left / best
