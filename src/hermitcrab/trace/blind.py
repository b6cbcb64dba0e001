"""The residual map of two models without any vocabulary: from quadratic forms that no relabeling inside a layer changes.

What a layer reads, carries and writes is a sum over its neurons or heads, x' F x, whatever their order, signs and mixing: a
rotation of the stream alone moves it, F -> R' F R. So do the covariances of the embedding and of the head, whatever the order
of the tokens. R is found from all of them at once by maximizing sum_k <R' A_k R, B_k> over orthogonal R: a step is the polar
factor of sum_k A_k R B_k, the start lies on eigenvectors of one form with signs from all others. R and -R cannot be told
apart by forms; neurons do that. Norms that subtract the mean
allow permutations only, which a climb of their own looks for. Training moves these sums far less than it moves a single neuron.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hermitcrab.trace.model import Model
from hermitcrab.trace.neurons import Block, polar, unit, views

WORK = 3e12  # multiplications spent on one map
STARTS, FIRST_STEPS, STEPS = 3, 60, 150
FEWEST_FORMS = 7
SPECTRUM = 32  # points at which spectra are compared
MOST_NEURONS = 4096  # of a block that is assigned whole
ROUNDS = 6
DONE = 1e-6
PLACES = 9  # at which dropped layers are tried


@dataclass
class Forms:
    """Symmetric matrices (width, width) without trace, of norm one. `layers[i]`: by kind; `outer`: embedding and head."""

    layers: list[list[np.ndarray]]
    outer: list[np.ndarray]


def forms(model: Model, found: list[Block]) -> Forms:
    by: dict[int, list[Block]] = {}
    for block in found:
        by.setdefault(block.layer, []).append(block)
    layers = []
    for layer in sorted(by):
        kinds = [sum(v.T @ v for v in same) for same in zip(*(b.vectors() for b in by[layer]), strict=True)]
        layers.append([_plain(f) for f in [*kinds, *_attention(model, layer, kinds[0].shape[0])]])
    outer = []
    for role in ("embedding", "head"):
        part = model.parts.get((-1, role, -1)) or model.parts.get((-1, "embedding", -1))
        if part is not None and part.shape[1] == layers[0][0].shape[0]:
            x = np.asarray(model.matrix(part), np.float32)
            x = x - x.mean(0)
            outer.append(_plain(x.T @ x))
    return Forms(layers, outer)


def _plain(form: np.ndarray) -> np.ndarray:
    form = np.where(np.isfinite(form), form, 0).astype(np.float32)
    form = form - np.eye(len(form), dtype=np.float32) * (np.trace(form) / len(form))
    return form / max(float(np.linalg.norm(form)), 1e-30)


def _attention(model: Model, layer: int, width: int) -> list[np.ndarray]:
    """What heads carry (values behind outputs) and what they ask (queries against keys), summed over heads."""
    q, k, v, o = (model.parts.get((layer, role, -1)) for role in "qkvo")
    h = model.heads
    if q is None or k is None or v is None or o is None or not h.size or q.shape[1] != width:
        return []
    gain = model.gain(layer, 0)
    fold = np.ones(width, np.float32) if gain is None else gain.astype(np.float32)
    query, key, value = (np.asarray(model.matrix(p), np.float32) * fold for p in (q, k, v))
    output = np.asarray(model.matrix(o), np.float32)
    carried, asked = np.zeros((width, width), np.float32), np.zeros((width, width), np.float32)
    for head in range(h.query):
        g = head // (h.query // h.kv)
        value_h, key_h = (x[g * h.size : (g + 1) * h.size] for x in (value, key))
        query_h = query[head * h.size : (head + 1) * h.size]
        output_h = output[:, head * h.size : (head + 1) * h.size]
        carried += value_h.T @ (output_h.T @ output_h) @ value_h
        asked += query_h.T @ (key_h @ key_h.T) @ query_h
    return [carried, asked]


Map = list[int]
Pairs = list[tuple[np.ndarray, np.ndarray]]


def residual_map(ours: Forms, theirs: Forms, places: bool = False) -> np.ndarray | None:
    """R (width of the suspect, width of the base), up to its sign; None where the streams are too wide for the work allowed.

    places: only coordinates changed places (all that the norms of a centered model allow): R is a permutation.
    """
    width = max(len(ours.layers[0][0]), len(theirs.layers[0][0]))
    most = int(WORK / (4.0 * width**3 * (STARTS * FIRST_STEPS + STEPS)))
    if most < FEWEST_FORMS:
        return None
    climb = _permute if places else _climb
    n, m = len(ours.layers), len(theirs.layers)
    told = _by_spectra(ours, theirs)
    maps = [told] + [x for x in _in_order(n, m) if x != told]
    best: tuple[float, np.ndarray, Map] | None = None
    for layers in maps:
        pairs = _pairs(ours, theirs, layers, most)
        for start in _even_starts(pairs) if places else _starts(pairs):
            rotation, gain = climb(pairs, start, FIRST_STEPS)
            if best is None or gain > best[0]:
                best = gain, rotation, layers
    assert best is not None
    _, rotation, layers = best
    for _ in range(3):  # layers by what the map itself says, and on from there
        again = _by_overlap(ours, theirs, rotation)
        rotation, _ = climb(_pairs(ours, theirs, again, most), rotation, STEPS)
        if again == layers:
            break
        layers = again
    return rotation


def _in_order(n: int, m: int) -> list[Map]:
    """Layers as they stand, or with one run of the base's left out at each of some places."""
    if n > m:
        return []
    places = sorted(set(np.linspace(0, n, min(n + 1, PLACES)).round().astype(int).tolist())) if n < m else [n]
    return [[i if i < at else i + m - n for i in range(n)] for at in places]


def _pairs(ours: Forms, theirs: Forms, layers: Map, most: int) -> Pairs:
    outer = list(zip(ours.outer, theirs.outer, strict=False))
    kinds = min(len(ours.layers[0]), len(theirs.layers[0]))
    some = max(1, min(len(layers), (most - len(outer)) // kinds))
    chosen = np.linspace(0, len(layers) - 1, some).round().astype(int).tolist()
    return [p for i in chosen for p in zip(ours.layers[i], theirs.layers[layers[i]], strict=False)] + outer


def _starts(pairs: Pairs) -> list[np.ndarray]:
    return [_start(pairs, k) for k in np.linspace(0, len(pairs) - 1, STARTS).astype(int).tolist()]


def _start(pairs: Pairs, k: int) -> np.ndarray:
    """Eigenvectors of form `k` on one another in their order; signs by the leading eigenvector of what the others say."""
    a, b = (np.linalg.eigh(x.astype(np.float64))[1][:, ::-1] for x in pairs[k])
    few = min(a.shape[1], b.shape[1])
    a, b = a[:, :few].astype(np.float32), b[:, :few].astype(np.float32)
    says = sum((a.T @ x @ a) * (b.T @ y @ b) for i, (x, y) in enumerate(pairs) if i != k)
    signs = np.sign(np.linalg.eigh(np.asarray(says, np.float64))[1][:, -1])
    return ((a * np.where(signs == 0, 1, signs)) @ b.T).astype(np.float32)


def _climb(pairs: Pairs, rotation: np.ndarray, steps: int) -> tuple[np.ndarray, float]:
    """The rotation after at most `steps`, and the mean overlap of the forms under it."""
    best, last = (rotation, -1.0), -1.0
    for _ in range(steps):
        moved = [a @ rotation for a, _ in pairs]
        pull = sum(x @ b for x, (_, b) in zip(moved, pairs, strict=True))
        gain = float(np.vdot(pull, rotation)) / len(pairs)
        if gain > best[1]:
            best = rotation, gain
        if abs(gain - last) < DONE:
            break
        last = gain
        rotation = polar(np.asarray(pull))
    return best


def _even_starts(pairs: Pairs) -> list[np.ndarray]:
    """By the ranks of the diagonals, and all coordinates equally likely everywhere."""
    left, right = (np.stack([np.diag(p[side]) for p in pairs], 1).argsort(0).argsort(0) for side in (0, 1))
    ranks = [x / len(x) - 0.5 for x in (left, right)]
    flat = np.full((len(left), len(right)), 1 / max(len(left), len(right)), np.float32)
    return [_assigned(ranks[0] @ ranks[1].T), flat]


def _assigned(likeness: np.ndarray) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-likeness)
    out = np.zeros(likeness.shape, np.float32)
    out[rows, columns] = 1
    return out


def _permute(pairs: Pairs, place: np.ndarray, steps: int) -> tuple[np.ndarray, float]:
    """The same over permutations: Frank and Wolfe's steps between doubly stochastic matrices (Vogelstein et al. 2015)."""

    def pull(x: np.ndarray) -> np.ndarray:
        return np.asarray(sum(a @ x @ b for a, b in pairs))

    for _ in range(steps):
        slope = pull(place)
        move = _assigned(slope) - place
        bend, rise = float(np.vdot(pull(move), move)), 2 * float(np.vdot(slope, move))
        length = 1.0 if bend >= 0 else min(1.0, -rise / (2 * bend))
        if max(bend, 0.0) + rise <= DONE:
            break
        place = (place + length * move).astype(np.float32)
    place = _assigned(place)
    return place, float(np.vdot(pull(place), place)) / len(pairs)


def _by_spectra(ours: Forms, theirs: Forms) -> Map:
    """For each layer the one whose forms have the nearest eigenvalues, which no rotation moves."""
    left, right = ([np.concatenate([_spectrum(f) for f in layer]) for layer in x.layers] for x in (ours, theirs))
    size = min(len(left[0]), len(right[0]))
    return [int(np.argmin([np.linalg.norm(a[:size] - b[:size]) for b in right])) for a in left]


def _spectrum(form: np.ndarray) -> np.ndarray:
    values = np.linalg.eigvalsh(form.astype(np.float64))
    return np.asarray(np.interp(np.linspace(0, 1, SPECTRUM), np.linspace(0, 1, len(values)), values))


def _by_overlap(ours: Forms, theirs: Forms, rotation: np.ndarray) -> Map:
    right = np.stack([np.concatenate([f.ravel() for f in layer]) for layer in theirs.layers])
    out = []
    for layer in ours.layers:
        moved = np.concatenate([(rotation.T @ f @ rotation).ravel() for f in layer])
        size = min(len(moved), right.shape[1])
        out.append(int((right[:, :size] @ moved[:size]).argmax()))
    return out


def refine(a: Block, b: Block, rotation: np.ndarray) -> np.ndarray:
    """Assignment of neurons and Procrustes in turn, on one pair of blocks; it may be judged on the other blocks only."""
    from scipy.optimize import linear_sum_assignment

    if max(len(a.up), len(b.up)) > MOST_NEURONS:
        return rotation
    other = [unit(v) for v in b.vectors()]
    for _ in range(ROUNDS):
        mine = [unit(v @ rotation) for v in a.vectors()]
        first, second = views(mine, other)
        if (first.argmax(1) == second.argmax(1)).sum() / min(first.shape) > 0.97:
            break
        rows, columns = linear_sum_assignment(-(first + second))
        total = np.zeros(rotation.shape, np.float64)
        signs = np.ones(len(rows), np.float32)
        if a.gate is not None:
            agree = (mine[1][rows] * other[1][columns]).sum(1) + (mine[2][rows] * other[2][columns]).sum(1)
            signs = np.where(agree < 0, -1, 1).astype(np.float32)
        for n, (x, y) in enumerate(zip(a.vectors(), other, strict=True)):
            sign = signs if a.gate is not None and n else np.ones(len(rows), np.float32)
            total += (unit(x)[rows] * sign[:, None]).T @ y[columns]
        rotation = polar(total)
    return rotation
