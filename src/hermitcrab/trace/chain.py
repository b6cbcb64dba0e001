"""Layers behind one another in models without recognized blocks, and their hidden units laid on those of another model.

Files name tensors but do not say what feeds what. A chain is found by sizes: what one tensor makes the next one takes, whole,
cut into places (a plain layer behind a convolution) or joined from them (a generator's first layer); transposed
convolutions are turned, gates of a recurrent layer are one tensor beside another. Then hidden units are assigned twice: from
the input on, by what makes them, and from the output back, by what takes them. The two ways share no weight, and input and
output keep their order in a relabeled model, so how often both assignments agree is the score.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hermitcrab.trace.model import Model
from hermitcrab.trace.neurons import unit
from hermitcrab.trace.parts import Seen
from hermitcrab.trace.structure import natural

MOST_LINKS = 300
MOST_UNITS = 4096  # of a layer that is assigned whole
MOST_NUMBERS = 4e8  # of a model that is held at once
STARTS = 12
FEWEST_UNITS = 8
FEW = 128  # units that a smaller net counts as having
SWEEPS = 3


@dataclass
class Link:
    """One layer: units out and in; `gates` stand one behind another; `cut_*`: places of each unit on that side."""

    name: str
    out: int
    inner: int
    turned: bool = False
    gates: int = 1
    cut_out: int = 1
    cut_in: int = 1
    loop: str = ""
    """The recurrent tensor beside it, (gates x out, out)."""

    def of(self, values: np.ndarray) -> np.ndarray:
        """(out, in, rest) float32 of the file's tensor."""
        x = values.swapaxes(0, 1) if self.turned else values
        x = x.reshape(self.gates, self.out, self.cut_out, self.inner, self.cut_in, -1)
        x = x.transpose(1, 3, 0, 2, 4, 5).reshape(self.out, self.inner, -1)
        return np.ascontiguousarray(x, np.float32)

    def looped(self, values: np.ndarray) -> np.ndarray:
        x = values.reshape(self.gates, self.out, self.out).transpose(1, 2, 0)
        return np.ascontiguousarray(x, np.float32)


def square(n: int) -> bool:
    return math.isqrt(n) ** 2 == n


def recurrent(tensors: Sequence[Seen]) -> dict[str, tuple[int, int]]:
    """Tensors of gates: name → (gates, hidden units)."""
    plain = [s for s in tensors if len(s.shape) == 2]
    tall = {s.shape[0] for s in plain if s.shape[0] in (3 * s.shape[1], 4 * s.shape[1])}
    out: dict[str, tuple[int, int]] = {}
    for size in tall:
        same = [s for s in plain if s.shape[0] == size]
        if len(same) >= 2:
            hidden = min(s.shape[1] for s in same if size in (3 * s.shape[1], 4 * s.shape[1]))
            out |= {s.name: (size // hidden, hidden) for s in same}
    return out


def chain(tensors: Sequence[Seen]) -> list[Link]:
    """The longest chain that the sizes allow, or nothing: under two links there is no hidden unit."""
    seen = sorted((s for s in tensors if len(s.shape) >= 2 and min(s.shape) > 0), key=lambda s: natural(s.name))
    if not 2 <= len(seen) <= MOST_LINKS:
        return []
    gates = recurrent(seen)
    made = {s.shape[0] for s in seen}
    loops = {s.name for s in seen if s.name in gates and re.search(r"hh|recurrent", s.name)}
    starts = [(i, turned) for i, s in enumerate(seen) if s.name not in loops for turned in _ways(s)]
    starts.sort(key=lambda x: (seen[x[0]].shape[0 if x[1] else 1] in made, x[1], x[0]))
    found = [_walk(seen, gates, loops, i, turned) for i, turned in starts[:STARTS]]
    flat = {
        s.name for s in seen if len(s.shape) == 2
    }  # plain layers are seldom turned, generators' convolutions always
    best = max(
        found,
        key=lambda x: (
            len(x),
            x[0].inner * closed(x),
            -sum(link.turned * (3 if link.name in flat else 1) for link in x),
        ),
        default=[],
    )
    return best if len(best) >= 2 else []


def closed(links: Sequence[Link]) -> bool:
    """Whether the chain ends in the size that it begins with (a vocabulary, an autoencoder), so that it could be cut anywhere."""
    return bool(links) and links[0].inner * links[0].cut_in == links[-1].out * links[-1].cut_out


def _ways(s: Seen) -> tuple[bool, ...]:
    return (False, True) if s.turned is None else (s.turned,)


def _walk(seen: list[Seen], gates: dict[str, tuple[int, int]], loops: set[str], at: int, turned: bool) -> list[Link]:
    links: list[Link] = []
    unused, step = set(range(len(seen))), (at, turned, 1, 1)
    while True:
        i, turned, cut_in, joined = step
        s = seen[i]
        unused.discard(i)
        out, inner = (s.shape[1], s.shape[0]) if turned else (s.shape[0], s.shape[1])
        if joined > 1:
            links[-1].out, links[-1].cut_out = links[-1].out // joined, joined
        many, hidden = gates.get(s.name, (1, out)) if not turned else (1, out)
        link = Link(s.name, hidden, inner // cut_in, turned, many, 1, cut_in)
        if many > 1:
            partner = s.name.replace("ih", "hh")
            near = [j for j in unused if seen[j].name in loops and seen[j].shape == (many * hidden, hidden)]
            near.sort(key=lambda j: (seen[j].name != partner, j))
            if near:
                link.loop = seen[near[0]].name
                unused.discard(near[0])
        links.append(link)
        options = [o for j in unused if seen[j].name not in loops for way in _ways(seen[j])
                   for o in _fits(seen[j], link, j, way, (j - i) % len(seen))]  # fmt: skip
        if not options:
            return links
        step = min(options)[1]


def _fits(
    s: Seen, last: Link, j: int, turned: bool, far: int
) -> list[tuple[tuple[int, bool, int], tuple[int, bool, int, int]]]:
    """How tensor `j` can take what `last` makes: (cost, (tensor, turned, places of its inputs, places joined before it))."""
    inner, size = s.shape[0 if turned else 1], last.out
    if inner == size:
        return [((0, turned, far), (j, turned, 1, 1))]
    if inner > size >= FEWEST_UNITS and inner % size == 0 and square(inner // size) and len(s.shape) == 2:
        return [((1, turned, far), (j, turned, inner // size, 1))]
    plain = last.gates == last.cut_out == 1
    if size > inner >= FEWEST_UNITS and size % inner == 0 and square(size // inner) and len(s.shape) > 2 and plain:
        return [((1, turned, far), (j, turned, 1, size // inner))]
    return []


@dataclass
class Channels:
    """Hidden units of two models laid on one another.

    scores: share of agreeing units of each hidden layer; `score`: of all together, the test statistic. ours, theirs: tensors
    (out, in, rest) in the base's order; `names` of both; `moved`: share of units not in their own place.
    """

    score: float
    scores: list[float]
    ours: list[np.ndarray]
    theirs: list[np.ndarray]
    names: list[tuple[str, str]]
    moved: float
    links: list[Link] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Cosine of all tensors in one with the base's."""
        dot = sum(float(np.vdot(x, y)) for x, y in zip(self.ours, self.theirs, strict=True))
        norms = [sum(float(np.vdot(x, x)) for x in side) for side in (self.ours, self.theirs)]
        return dot / max(math.sqrt(norms[0] * norms[1]), 1e-30)


def lay(suspect: Model, base: Model) -> Channels | None:
    """None where the two chains differ in kind, do not begin and end alike, or are too large to be held."""
    left, right = chain(suspect.structure.spare), chain(base.structure.spare)
    if not left or not _alike(left, right):
        return None
    names = [n for link in left for n in (link.name, link.loop) if n]
    if sum(suspect.weights.info(n).elements for n in names) > MOST_NUMBERS:
        return None
    ours, theirs = _Side(suspect, left), _Side(base, right)
    if not (ours.finite and theirs.finite):
        return None
    ahead, back = _ahead(ours, theirs), _back(ours, theirs)
    agree = [int(((a == b) & (a >= 0)).sum()) for a, b in zip(ahead[1:-1], back[1:-1], strict=True)]
    sizes = [min(a.out, b.out) for a, b in zip(left[:-1], right[:-1], strict=True)]
    score = sum(agree) / max(FEW, sum(sizes))
    maps = _together(ours, theirs, ahead)
    placed = [_place(_place(x, maps[i + 1], y.shape[0], 0), maps[i], y.shape[1], 1)
              for i, (x, y) in enumerate(zip(ours.main, theirs.main, strict=True))]  # fmt: skip
    moved = [float((m != np.arange(len(m))).mean()) for m in maps[1:-1]]
    return Channels(score, [a / s for a, s in zip(agree, sizes, strict=True)], placed, theirs.main,
                    [(a.name, b.name) for a, b in zip(left, right, strict=True)], float(np.mean(moved)), right)  # fmt: skip


def _alike(left: list[Link], right: list[Link]) -> bool:
    if len(left) != len(right) or left[0].inner != right[0].inner or left[-1].out != right[-1].out:
        return False
    if max(link.out for link in [*left[:-1], *right[:-1]]) > MOST_UNITS:
        return False
    kind = [[(x.gates, x.cut_out, x.cut_in, bool(x.loop)) for x in links] for links in (left, right)]
    return kind[0] == kind[1]


class _Side:
    def __init__(self, model: Model, links: list[Link]):
        self.main = [link.of(model.tensor(link.name)) for link in links]
        self.loops = [link.looped(model.tensor(link.loop)) if link.loop else None for link in links]
        self.finite = all(np.isfinite(x).all() for x in [*self.main, *(y for y in self.loops if y is not None)])


def _place(x: np.ndarray, to: np.ndarray, size: int, axis: int) -> np.ndarray:
    """`x` with its index `i` of an axis moved to `to[i]` of `size`; -1 is dropped."""
    y = x.swapaxes(0, axis)
    out = np.zeros((size, *y.shape[1:]), np.float32)
    out[to[to >= 0]] = y[to >= 0]
    return out.swapaxes(0, axis)


def _likeness(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return unit(x.reshape(len(x), -1)) @ unit(y.reshape(len(y), -1)).T


def _assign(likeness: np.ndarray) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-np.nan_to_num(likeness))
    out = np.full(len(likeness), -1)
    out[rows] = columns
    return out


def _made(x: np.ndarray, y: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Likeness of units by what makes them, inputs laid by `before`."""
    return _likeness(_place(x, before, y.shape[1], 1), y)


def _taken(x: np.ndarray, y: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Likeness of the units that are inputs, outputs laid by `behind`."""
    return _likeness(_place(x, behind, y.shape[0], 0).swapaxes(0, 1), y.swapaxes(0, 1))


def _looped(x: np.ndarray, y: np.ndarray, own: np.ndarray) -> np.ndarray:
    return _made(x, y, own) + _taken(x, y, own)


def _ahead(a: _Side, b: _Side) -> list[np.ndarray]:
    maps = [np.arange(a.main[0].shape[1])]
    for x, y, loop, other in zip(a.main, b.main, a.loops, b.loops, strict=True):
        likeness = _made(x, y, maps[-1])
        own = _assign(likeness)
        if loop is not None and other is not None:
            for _ in range(SWEEPS):
                own = _assign(likeness + _looped(loop, other, own))
        maps.append(own)
    return maps


def _back(a: _Side, b: _Side) -> list[np.ndarray]:
    maps = [np.arange(a.main[-1].shape[0])]
    for x, y in zip(a.main[::-1], b.main[::-1], strict=True):
        maps.insert(0, _assign(_taken(x, y, maps[0])))
    return maps


def _together(a: _Side, b: _Side, ahead: list[np.ndarray]) -> list[np.ndarray]:
    """Units by both ways at once, in turn over the layers. Nothing is tested on it."""
    maps = [*ahead[:-1], np.arange(a.main[-1].shape[0])]
    for _ in range(SWEEPS):
        for i in range(1, len(maps) - 1):
            likeness = _made(a.main[i - 1], b.main[i - 1], maps[i - 1]) + _taken(a.main[i], b.main[i], maps[i + 1])
            loop, other = a.loops[i - 1], b.loops[i - 1]
            if loop is not None and other is not None:
                likeness = likeness + _looped(loop, other, maps[i])
            maps[i] = _assign(likeness)
    return maps
