"""Tier 2: what no relabeling hides. Neurons of two models are matched twice, by what opens them and by what they carry; how
often the two matchings agree says whether they are the same neurons.

The residual streams are first brought together by one of three maps: none (as they stand), Procrustes on the embeddings of
shared tokens, or, blind to any vocabulary, from quadratic forms of whole layers (`blind.py`). A map that was refined on
neurons of one layer is judged on the other layers only. Signs, permutations, rotations and folded gains cancel; the null is
not a known law (independent models of one recipe share features), so scores are compared with a table of independent models
(`null.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hermitcrab.trace.blind import forms, refine, residual_map
from hermitcrab.trace.model import Model
from hermitcrab.trace.neurons import Block, polar, unit, views

SHARED_TOKENS = 100
MOST_TOKENS = 4096
WORK = 4e11  # multiplications spent on one screening of all pairs of layers
PROJECTED = 384  # widths beyond are projected to this many coordinates for screening
FEW = 128  # neurons of a block of the smallest models that the table was made with
FEWEST_BLOCKS = 3  # that a mean is taken over
LOCKED = 0.25  # share of neurons from which no other map is tried
REFINED = 0.8  # and from which the blind map is not refined


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
    table was made with (four a model) costs one neuron, for about so fall the tails of the counts. A mean over few blocks
    varies more: the missing ones count as blocks without agreement."""
    rows = scores[~np.isnan(scores).any(1)]
    best = rows.max(1) if rows.size else np.zeros(1)
    many, all_pairs = (float(np.log(max(n, 1.0)) / np.log(4) / FEW) for n in (scores.shape[1] / 4, scores.size / 16))
    mean, top = (
        max(0.0, float(best.sum() / max(len(best), FEWEST_BLOCKS)) - many),
        max(0.0, float(best.max()) - all_pairs),
    )
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
        found += blindly(suspect, base, ours, theirs, screen)
    return sorted(found, key=lambda f: -f.mean)


def blindly(suspect: Model, base: Model, ours: list[Block], theirs: list[Block], screen: Screen) -> list[Alignment]:
    """By forms alone, and that map refined on the pair of blocks that agree best, which is then left out of the judgment."""
    left, right = forms(suspect, ours), forms(base, theirs)
    rotation = residual_map(left, right)
    if rotation is None:
        return []
    tried = [rotation, -rotation]
    if suspect.structure.centered and base.structure.centered:
        tried += [r for r in [residual_map(left, right, places=True)] if r is not None]
    found = max((judge("blind", screen.scores(r), r) for r in tried), key=lambda f: f.mean)
    if found.mean >= REFINED or found.rotation is None:
        return [found]
    i, j = (int(x) for x in np.unravel_index(int(found.scores.argmax()), found.scores.shape))
    better = refine(ours[i], theirs[j], found.rotation)
    return [found, judge("blind", screen.scores(better, skip=i), better, (i, j))]
