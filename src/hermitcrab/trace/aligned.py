"""Tier 2: what no relabeling hides. Neurons of two models are matched twice, by what opens them and by what they carry; how
often the two matchings agree says whether they are the same neurons.

The residual streams are first brought together by one of three maps: none (as they stand), Procrustes on the embeddings of
shared tokens, or, blind to any vocabulary, from scalars of each neuron that no rotation, permutation, sign or mixing of heads
changes. A map made from neurons of one layer is judged on the other layers only. Signs, permutations, rotations and folded
gains cancel; the null is not a known law (independent models of one recipe share features), so scores are compared with a
table of independent models (`null.py`).

    g, u, d: what opens a neuron, what it carries, what it writes: rows of (neurons, width), gains folded in
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hermitcrab.trace.model import Model

SHARED_TOKENS = 100
MOST_TOKENS = 4096
WORK = 4e11  # multiplications spent on one screening of all pairs of layers
PROJECTED = 384  # widths beyond are projected to this many coordinates for screening
ROUNDS = 6
PROMISING = 3  # pairs of layers that are followed to the end in the blind search
FEW = 128  # neurons of a block of the smallest models that the table was made with
MOST_BLIND = 4096  # neurons of a block that are assigned in the blind search
SEARCH = 150  # pairs of blocks of a thousand neurons that are tried
LOCKED = 0.25  # share of a layer's neurons on which a blind map must agree before it is believed to have converged


@dataclass
class Block:
    """One MLP (or one expert). Arrays (neurons, width) float32; `gate` None where neurons are not gated."""

    layer: int
    expert: int
    gate: np.ndarray | None
    up: np.ndarray
    down: np.ndarray

    @property
    def opens(self) -> np.ndarray:
        return self.up if self.gate is None else self.gate

    def vectors(self) -> list[np.ndarray]:
        return [self.up, self.down] if self.gate is None else [self.gate, self.up, self.down]


@dataclass
class Alignment:
    """How two models lie on one another.

    Attributes:
        mode: `as it stands`, `shared tokens` or `blind`.
        scores: share of agreeing neurons, (blocks of the suspect, blocks of the base); held-out where the map was fitted.
        mean, best: over the suspect's blocks, of each one's best match: the two test statistics.
        layer_map: for each of the suspect's blocks the base's block that it matches, or -1.
        rotation: (width of the suspect, width of the base).
    """

    mode: str
    scores: np.ndarray
    mean: float
    best: float
    rotation: np.ndarray | None
    layer_map: list[int] = field(default_factory=list)
    fitted_on: tuple[int, int] | None = None


def blocks(model: Model) -> list[Block]:
    """Every MLP with gains folded into what reads the stream; means removed where the norms remove them."""
    out = []
    s = model.structure
    keys = sorted({(p.layer, p.expert) for p in s.parts if p.role == "down"})
    for layer, expert in keys:
        up, down, gate = (model.parts.get((layer, role, expert)) for role in ("up", "down", "gate"))
        if up is None or down is None:
            continue
        gain = model.gain(layer, 1)
        vectors: list[np.ndarray | None] = []
        for part in (gate, up, down):
            if part is None:
                vectors.append(None)
                continue
            x = np.array(model.matrix(part), np.float32)
            x = x.T if part is down else x
            if part is not down and gain is not None and len(gain) == x.shape[1]:
                x = x * gain.astype(np.float32)
            if s.centered:
                x = x - x.mean(1, keepdims=True)
            vectors.append(np.ascontiguousarray(x))
        if any(v is not None and not np.isfinite(v).all() for v in vectors):
            continue
        if vectors[1] is not None and vectors[2] is not None and vectors[1].any() and vectors[2].any():
            out.append(Block(layer, expert, vectors[0], vectors[1], vectors[2]))
    return out


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def polar(m: np.ndarray) -> np.ndarray:
    """The orthogonal (or partly isometric) factor: argmax over R of <R, m> (Schönemann 1966)."""
    if not np.isfinite(m).all():
        return np.eye(*m.shape, dtype=np.float32)
    u, _, v = np.linalg.svd(m.astype(np.float64), full_matrices=False)
    return (u @ v).astype(np.float32)


def shared_tokens(suspect: Model, base: Model) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the two embeddings that stand for the same token: by text, or by place where there are no tokenizers."""
    a, b = (m.parts.get((-1, "embedding", -1)) for m in (suspect, base))
    none = np.zeros(0, np.int64)
    if a is None or b is None:
        return none, none
    left, right = suspect.vocabulary(), base.vocabulary()
    if left and right:
        place = {t: i for i, t in enumerate(right) if t and i < b.shape[0]}
        pairs = [(i, place[t]) for i, t in enumerate(left) if i < a.shape[0] and t in place]
    elif a.shape[0] == b.shape[0]:
        pairs = [(i, i) for i in range(a.shape[0])]
    else:
        return none, none
    if len(pairs) > MOST_TOKENS:
        pairs = pairs[:: len(pairs) // MOST_TOKENS + 1]
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def by_tokens(suspect: Model, base: Model) -> np.ndarray | None:
    """The residual map from shared tokens, (width, width); None where too few are shared."""
    rows, others = shared_tokens(suspect, base)
    if len(rows) < SHARED_TOKENS:
        return None
    x = suspect.matrix(suspect.parts[-1, "embedding", -1])[rows]
    y = base.matrix(base.parts[-1, "embedding", -1])[others]
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    return polar((x - x.mean(0)).T @ (y - y.mean(0)))


class Screen:
    """Agreement of all pairs of blocks under a residual map, on a sample of the suspect's neurons where there are many."""

    def __init__(self, ours: list[Block], theirs: list[Block]):
        self.ours, self.theirs = ours, theirs
        self.width = theirs[0].up.shape[1]
        self.project = None
        if self.width > PROJECTED:
            seeded = np.random.default_rng(0).standard_normal((self.width, PROJECTED)).astype(np.float32)
            self.project = seeded / np.sqrt(PROJECTED)
        size = min(self.width, PROJECTED)
        cost = 3.0 * len(ours) * len(theirs) * max(b.up.shape[0] for b in theirs) * size
        self.sample = int(max(48, WORK / cost))
        self.units = [[unit(self._small(v)) for v in b.vectors()] for b in theirs]

    def _small(self, x: np.ndarray) -> np.ndarray:
        return x if self.project is None else x @ self.project

    def mapped(self, block: Block, rotation: np.ndarray | None) -> list[np.ndarray]:
        count = block.up.shape[0]
        rows = slice(None) if count <= self.sample else np.linspace(0, count - 1, self.sample).astype(int)
        vectors = [v[rows] if rotation is None else v[rows] @ rotation for v in block.vectors()]
        return [unit(self._small(v)) for v in vectors]

    def scores(self, rotation: np.ndarray | None, skip: int | None = None) -> np.ndarray:
        """(blocks, blocks) shares; NaN in the row of `skip`, the block that the map was fitted on."""
        out = np.full((len(self.ours), len(self.theirs)), np.nan)
        for i, block in enumerate(self.ours):
            if i == skip:
                continue
            mine = self.mapped(block, rotation)
            for j, other in enumerate(self.units):
                out[i, j] = agreement(mine, other) if len(mine) == len(other) else 0.0
        return out


def views(mine: list[np.ndarray], other: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Two similarities (neurons, neurons) that share no weights; signs of gated neurons cancel in the second."""
    if len(mine) == 2:
        return mine[0] @ other[0].T, mine[1] @ other[1].T
    return mine[0] @ other[0].T, (mine[1] @ other[1].T) * (mine[2] @ other[2].T)


def agreement(mine: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Share of neurons whose nearest neighbor is the same one in both views.

    Of unrelated blocks one or two neurons agree whatever their number, so a block of few counts as one of `FEW`.
    """
    first, second = views(mine, other)
    return float((first.argmax(1) == second.argmax(1)).sum() / max(FEW, min(len(first), first.shape[1])))


def judge(
    mode: str, scores: np.ndarray, rotation: np.ndarray | None, fitted_on: tuple[int, int] | None = None
) -> Alignment:
    """Statistics of a matrix of scores. The best of many blocks is larger by chance: each fourfold of the blocks that the
    table was made with (four a model) costs one neuron, for about so fall the tails of the counts."""
    rows = scores[~np.isnan(scores).any(1)]
    best = rows.max(1) if rows.size else np.zeros(1)
    many, all_pairs = (float(np.log(max(n, 1.0)) / np.log(4) / FEW) for n in (scores.shape[1] / 4, scores.size / 16))
    mean, top = max(0.0, float(best.mean()) - many), max(0.0, float(best.max()) - all_pairs)
    return Alignment(mode, scores, mean, top, rotation, fitted_on=fitted_on)


def align(
    suspect: Model, base: Model, ours: list[Block], theirs: list[Block], thorough: bool = True
) -> list[Alignment]:
    """The alignments that could be tried, best first. `thorough`: the blind search too, where nothing else has locked."""
    if not ours or not theirs or len(ours[0].vectors()) != len(theirs[0].vectors()):
        return []
    screen = Screen(ours, theirs)
    found = []
    if ours[0].up.shape[1] == theirs[0].up.shape[1]:
        found.append(judge("as it stands", screen.scores(None), None))
    if not found or found[0].mean < LOCKED:
        rotation = by_tokens(suspect, base)
        if rotation is not None and rotation.shape == (ours[0].up.shape[1], theirs[0].up.shape[1]):
            found.append(judge("shared tokens", screen.scores(rotation), rotation))
    if thorough and len(ours) > 1 and all(f.mean < LOCKED for f in found):
        blind = search(suspect, base, ours, theirs, screen)
        found += [] if blind is None else [blind]
    return sorted(found, key=lambda f: -f.mean)


def search(suspect: Model, base: Model, ours: list[Block], theirs: list[Block], screen: Screen) -> Alignment | None:
    """The blind map: neuron descriptors, assignment, Procrustes, and round again; judged where it was not fitted."""
    from scipy.optimize import linear_sum_assignment

    left = [descriptors(b, forms(suspect, b)) for b in ours]
    right = [descriptors(b, forms(base, b)) for b in theirs]
    tries = []
    size = max(max(len(x) for x in left), max(len(x) for x in right))
    most = max(2, int(SEARCH / ((size / 1000) ** 2.5 * len(right))))
    chosen = set(np.linspace(0, len(left) - 1, min(most, len(left))).round().astype(int).tolist())
    for i, a in enumerate(left):
        if i not in chosen:
            continue
        for j, b in enumerate(right):
            if max(len(a), len(b)) > MOST_BLIND or a.shape[1] != b.shape[1]:
                continue
            cost = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
            rows, columns = linear_sum_assignment(cost)
            rotation = polar(ours[i].opens[rows].T @ theirs[j].opens[columns])
            rotation, share = refine(ours[i], theirs[j], rotation, 1)
            tries.append((share, float(cost[rows, columns].mean()), i, j, rotation))
    if not tries:
        return None
    # As many neurons as coordinates can be laid on any others, so that shares tie: the nearer descriptors then decide.
    tries.sort(key=lambda t: (-round(t[0], 1), t[1]))
    best = None
    for _, _, i, j, rotation in tries[:PROMISING]:
        rotation, share = refine(ours[i], theirs[j], rotation, ROUNDS)
        if best is None or share > best[0]:
            best = (share, i, j, rotation)
        if share > 0.9:
            break
    assert best is not None
    _, i, j, rotation = best
    return judge("blind", screen.scores(rotation, skip=i), rotation, (i, j))


def refine(a: Block, b: Block, rotation: np.ndarray, rounds: int) -> tuple[np.ndarray, float]:
    """Assignment and Procrustes in turn, on one pair of blocks. The share of agreement is in-sample."""
    from scipy.optimize import linear_sum_assignment

    other = [unit(v) for v in b.vectors()]
    share = 0.0
    for turn in range(rounds + 1):
        mine = [unit(v @ rotation) for v in a.vectors()]
        first, second = views(mine, other)
        share = float((first.argmax(1) == second.argmax(1)).sum() / min(first.shape))
        if turn == rounds or share > 0.97:
            break
        rows, columns = linear_sum_assignment(-(first + second))
        total = np.zeros(rotation.shape, np.float64)
        signs = np.ones(len(rows), np.float32)
        if a.gate is not None:
            agree = (mine[1][rows] * other[1][columns]).sum(1) + (mine[2][rows] * other[2][columns]).sum(1)
            signs = np.where(agree < 0, -1, 1).astype(np.float32)
        for n, (x, y) in enumerate(zip(a.vectors(), b.vectors(), strict=True)):
            sign = signs if a.gate is not None and n else np.ones(len(rows), np.float32)
            total += (unit(x)[rows] * sign[:, None]).T @ unit(y)[columns]
        rotation = polar(total)
    return rotation, share


def forms(model: Model, block: Block) -> list[np.ndarray]:
    """Quadratic forms of a block's layer on the stream, (width, width), that no relabeling inside the layer changes."""
    out = [v.T @ v for v in block.vectors()]
    layer = block.layer
    q, k, v, o = (model.parts.get((layer, role, -1)) for role in "qkvo")
    h = model.heads
    if q is None or k is None or v is None or o is None or not h.size or q.shape[1] != block.up.shape[1]:
        return out
    gain = model.gain(layer, 0)
    fold = np.ones(q.shape[1], np.float32) if gain is None else gain.astype(np.float32)
    query, key, value = (np.asarray(model.matrix(p), np.float32) * fold for p in (q, k, v))
    output = np.asarray(model.matrix(o), np.float32)
    width = q.shape[1]
    carried, asked = np.zeros((width, width), np.float32), np.zeros((width, width), np.float32)
    for head in range(h.query):
        g = head // (h.query // h.kv)
        value_h, key_h = (x[g * h.size : (g + 1) * h.size] for x in (value, key))
        query_h = query[head * h.size : (head + 1) * h.size]
        output_h = output[:, head * h.size : (head + 1) * h.size]
        carried += value_h.T @ (output_h.T @ output_h) @ value_h
        asked += query_h.T @ (key_h @ key_h.T) @ query_h
    return [*out, carried, asked]


def descriptors(block: Block, quadratic: list[np.ndarray]) -> np.ndarray:
    """Scalars of each neuron, (neurons, features), standardized within the block."""
    vectors = block.vectors()
    norms = [np.maximum(np.linalg.norm(v, axis=1), 1e-12) for v in vectors]
    columns = [np.log(n) for n in norms]
    for form in quadratic:
        for v, n in zip(vectors, norms, strict=True):
            columns.append(np.log(np.maximum(np.einsum("nd,nd->n", v @ form, v) / n**2, 1e-20)))
    cosines = {}
    for i in range(len(vectors)):
        for j in range(i):
            cosines[j, i] = (vectors[i] * vectors[j]).sum(1) / norms[i] / norms[j]
    if block.gate is None:
        columns.append(cosines[0, 1])
    else:  # u and d flip together; g does not
        columns += [cosines[1, 2], np.abs(cosines[0, 1]), np.abs(cosines[0, 2]), cosines[0, 1] * cosines[0, 2]]
    x = np.stack(columns, 1)
    x = np.where(np.isfinite(x), x, 0)
    x = (x - np.median(x, 0)) / np.maximum(x.std(0), 1e-9)
    return np.clip(x, -4, 4).astype(np.float32)
