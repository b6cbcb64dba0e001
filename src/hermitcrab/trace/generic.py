"""Exact swaps for models without recognized blocks: plain networks, convolutions, recurrent nets, generators.

Hidden units of one layer can change places with their neighbors if the next layer's inputs do the same. Which axes belong
together is told from sizes alone: all axes of one size are taken as one space and swapped at once, which is exact whether or
not the model ties them (a residual net does), at the price of some signs. A size counts as hidden only if some tensor makes it
and another takes it, and if the model has a size that nothing makes (its input) and one that nothing takes (its output);
inputs and outputs have an identity, so their order says nothing about ancestry.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hermitcrab.trace.chain import Channels, Link, chain, closed, recurrent
from hermitcrab.trace.exact import FEWEST, Group, bound
from hermitcrab.trace.model import LARGEST_MATRIX, SMALLEST, Model, constant
from hermitcrab.trace.parts import Seen

SMALLEST_SPACE = 16


def links_of(tensors: Sequence[Seen]) -> tuple[dict[str, Link], list[Link]]:
    """Every matrix as a layer, and the chain among them."""
    found = chain(tensors)
    gates = recurrent(tensors)
    out = {}
    for s in tensors:
        if len(s.shape) >= 2:
            many, size = gates.get(s.name, (1, s.shape[0]))
            out[s.name] = Link(s.name, size, s.shape[1], gates=many)
    out |= {link.name: link for link in found}
    return out, found


def spaces(links: Sequence[Link], found: Sequence[Link]) -> tuple[list[int], str | None]:
    """The sizes that are hidden, and why there are none. Of a chain that could be cut anywhere only gated units are surely so."""
    made, taken = {v.out for v in links}, {v.inner for v in links if v.inner > 1 or v.out > 1}
    if closed(found) or not taken - made or not made - taken:
        gated = sorted({v.out for v in links if v.gates > 1 and v.out >= SMALLEST_SPACE})
        return (
            gated,
            None if gated else "units: neither an input nor an output of the network can be told from the shapes",
        )
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


@dataclass
class Swaps:
    """Gathers t of each pair of neighbors by size: all axes of one size are swapped at once, sizes are pooled.

    A tensor between two hidden sizes speaks for one in what does not change when the other's neighbors change places (their
    sums), so that the signs of all sizes are free of one another.
    """

    sizes: Sequence[int]
    values: dict[int, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    shared: list[tuple[float, float]] = field(default_factory=list)

    def add(self, link: Link, a: np.ndarray, b: np.ndarray) -> None:
        """Of one layer: (out, in, rest) each."""
        norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
        if min(norms) <= 0 or not math.isfinite(norms[0] * norms[1]):
            return
        self.shared.append((float(np.vdot(a, b)), norms[0] * norms[1]))
        x, y = a / norms[0], b / norms[1]
        hidden = [size in self.sizes for size in (link.out, link.inner)]
        if link.out == link.inner:
            if hidden[0]:
                self.values[link.out].append(_swaps(x, y, 0, True))
            return
        for axis, size in enumerate((link.out, link.inner)):
            if hidden[axis]:
                p, q = (_sums(v, 1 - axis) if hidden[1 - axis] else v for v in (x, y))
                self.values[size].append(_swaps(p, q, axis, False))

    def groups(self, prefix: str = "") -> list[Group]:
        """One group; each size weighs by its number of pairs."""
        flat, layers = [], {}
        for size, parts in self.values.items():
            count = max(len(p) for p in parts)
            t = np.sum([np.pad(p, (0, count - len(p))) for p in parts], axis=0)
            spread = float(np.sqrt((t * t).sum() / max((t != 0).sum(), 1)))
            if spread > 0:
                flat.append(t / spread)
                layers[size] = float(t.sum() / np.sqrt((t * t).sum()))
        t = np.concatenate(flat) if flat else np.zeros(0)
        if (t != 0).sum() < FEWEST:
            return []
        z = float(t.sum()) / math.sqrt(float(t @ t))
        dots, norms = (sum(x) for x in zip(*self.shared, strict=True))
        what = "swaps of neighboring hidden units, " + ", ".join(str(s) for s in sorted(layers)) + " wide"
        return [Group(f"{prefix}units", int((t != 0).sum()), z, bound(z), dots / norms, {}, what)]


def deflated(main: Channels, third: Channels) -> list[Group]:
    """Exact tests of a third model against what is left of the suspect in the main base's order of units."""
    sizes, _ = spaces(main.links, main.links)
    swaps = Swaps(sizes)
    for link, x, y, z in zip(main.links, main.ours, main.theirs, third.theirs, strict=True):
        if y.shape == z.shape:
            swaps.add(link, x - float(np.vdot(x, y) / max(np.vdot(y, y), 1e-30)) * y, z)
    return swaps.groups("deflated ")


def examine(suspect: Model, base: Model) -> tuple[list[Group], list[str], list[tuple[str, str, float, float]]]:
    """Groups, what could not be tested, and (suspect's tensor, base's tensor, cosine, relative distance) of each pair."""
    pairs = pair_up(suspect.structure.spare, base.structure.spare)
    links, found = links_of(suspect.structure.spare)
    sizes, why = spaces(list(links.values()), found)
    swaps, told = Swaps(sizes), []
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
        cosine = float(np.vdot(a, b)) / float(np.linalg.norm(a) * np.linalg.norm(b))
        told.append((ours.name, theirs.name, cosine, float(np.linalg.norm(a - b) / np.linalg.norm(b))))
        swaps.add(links[ours.name], links[ours.name].of(a), links[ours.name].of(b))
    return swaps.groups(), [why] if why and pairs else [], told


def _sums(x: np.ndarray, axis: int) -> np.ndarray:
    """Sums of neighbors along an axis, over the root of two; a last unit without a neighbor as it is."""
    y = x.swapaxes(0, axis)
    count = len(y) // 2 * 2
    return np.concatenate([(y[0:count:2] + y[1:count:2]) / math.sqrt(2), y[count:]]).swapaxes(0, axis)


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
