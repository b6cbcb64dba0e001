"""What kind of relation: read from the differences of matrices that lie on one another.

Several may hold at once (pruned, then quantized). None of it decides whether there is a relation; that is the tests' part.
Direction is said only where a step that loses something shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

FINE = 0.25  # relative distance up to which a change is called fine-tuning rather than continued training
SAME = 1e-6
REPACKED = 2.5e-3  # what storing in bfloat16 or half precision moves; rounding to eight bits moves more
LOW_RANK_SHARE = 0.25  # of the smaller side: a difference of a rank up to this is an adapter's
GAP = 4.0  # times that the singular values of an adapter's difference fall behind the last
GAP_SHARE, GAP_TAIL = (
    0.75,
    0.02,
)  # such a rank is at most this share of the smaller side, and what is behind it this of the energy
ZEROS = 0.1


@dataclass
class Difference:
    """Of one matrix: cosine, relative distance, zeros gained and lost, bits of a grid (0: none), rank of the change."""

    layer: int
    role: str
    cosine: float
    distance: float
    zeros: float
    zeros_base: float
    rounded: float
    """Share of the base's numbers so small that the suspect's grid has only zero for them."""
    kept: float
    """Relative distance on what is not zero in the suspect."""
    bits: int
    bits_base: int
    rank: int
    smaller: int
    low: bool
    """Whether that rank is an adapter's."""


@dataclass
class Relation:
    """`names`: what holds, the telling one first. `direction`: `suspect from base`, `base from suspect` or `unknown`."""

    names: list[str] = field(default_factory=list)
    direction: str = "unknown"
    because: str = ""
    details: dict[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.names[0] if self.names else "related"


def difference(
    layer: int, role: str, a: np.ndarray, b: np.ndarray, bits_a: int | None = None, bits_b: int | None = None
) -> Difference:
    """Suspect `a` and base `b`, float32 (rows, columns). `bits_*`: of its grid, where that is known."""
    a, b = a[:2048].astype(np.float64), b[:2048].astype(np.float64)
    norm = max(float(np.linalg.norm(b)), 1e-30)
    cosine = float(np.vdot(a, b) / max(float(np.linalg.norm(a)) * norm, 1e-30))
    distance = float(np.linalg.norm(a - b)) / norm
    live = a != 0
    kept = float(np.linalg.norm((a - b)[live]) / max(float(np.linalg.norm(b[live])), 1e-30))
    rank, smaller, low = 0, min(a.shape), False
    if distance > REPACKED and smaller >= 16:
        rows = a - b if smaller <= 1024 else (a - b)[:1024, :1024]
        sigma = np.linalg.svd(rows, compute_uv=False)
        rank, low = numerical_rank(sigma)
    bits_a = grid_bits(a) if bits_a is None else bits_a
    bits_b = grid_bits(b) if bits_b is None else bits_b
    step = np.abs(a).max(1, keepdims=True) / max(2 ** (bits_a - 1) - 1, 1) if bits_a else np.zeros((len(a), 1))
    rounded = float((np.abs(b) < step / 2).mean())
    return Difference(
        layer,
        role,
        cosine,
        distance,
        float((a == 0).mean()),
        float((b == 0).mean()),
        rounded,
        kept,
        bits_a,
        bits_b,
        rank,
        smaller,
        low,
    )


def numerical_rank(sigma: np.ndarray) -> tuple[int, bool]:
    """(rank, whether it is low) of a difference with singular values `sigma`, descending.

    An adapter leaves a cliff: behind its rank there is only rounding. Else the rank that holds 99 % of the energy counts.
    """
    energy = np.cumsum(sigma**2) / max(float((sigma**2).sum()), 1e-30)
    rank = int((energy < 0.99).sum()) + 1
    most = int(GAP_SHARE * len(sigma))
    falls = sigma[:most] / np.maximum(sigma[1 : most + 1], 1e-30 + 1e-9 * sigma[0])
    falls = np.where(energy[:most] >= 1 - GAP_TAIL, falls, 0.0)
    cliff = int(falls.argmax())
    if falls[cliff] >= GAP:
        return cliff + 1, True
    return rank, rank <= max(2, LOW_RANK_SHARE * len(sigma))


def grid_bits(x: np.ndarray) -> int:
    """The fewest bits (2, 3, 4 or 8) whose symmetric or shifted grid holds all numbers of a row or of groups along it; 0: none."""
    flat = x[: min(len(x), 64)]
    for width in (flat.shape[1], 128, 64, 32):
        if flat.shape[1] % width or width > flat.shape[1]:
            continue
        groups = flat.reshape(-1, width)
        groups = groups[np.abs(groups).max(1) > 0]
        for bits in (2, 3, 4, 8):
            if len(groups) >= 4 and 2**bits <= width * 8 and _on_grid(groups, bits):
                return bits
    whole = x.reshape(-1)
    for width in (128, 64, 32):  # groups that run over the ends of rows
        groups = whole[: min(len(whole) // width, 64) * width].reshape(-1, width)
        groups = groups[np.abs(groups).max(1, initial=0) > 0]
        for bits in (2, 3, 4, 8):
            if flat.shape[1] % width and len(groups) >= 4 and _on_grid(groups, bits):
                return bits
    return 0


def _on_grid(groups: np.ndarray, bits: int) -> bool:
    top = 2 ** (bits - 1) - 1
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    candidates = [
        (np.zeros_like(low), np.maximum(-low, high) / top),
        (np.zeros_like(low), np.maximum(-low / (top + 1), high / top)),
        (low, (high - low) / (2**bits - 1)),
    ]
    for offset, step in candidates:
        steps = (groups - offset) / np.maximum(step, 1e-30)
        off = np.abs(steps - np.round(steps))
        if (off < 2e-3 * 2 ** max(bits - 4, 0)).mean() > 0.99:
            return True
    return False


def classify(
    differences: Sequence[Difference], *, same_tensors: int, tensors: int, repacked: bool, layer_map: Sequence[int], base_layers: int,
    shapes: dict[str, tuple[int, int]], experts: bool, vocabulary_moved: bool, strange: Sequence[int], relabeled: bool, body: str,
    merged: dict[str, object] | None,
) -> Relation:  # fmt: skip
    """A pure function of what was measured.

    Args:
        same_tensors: matrices that are equal number for number, of `tensors`.
        repacked: type, format, layout or names of the tensors differ.
        layer_map: the base's layer for each of the suspect's, -1 for none.
        shapes: (suspect, base) sizes of `width`, `neurons`.
        experts: experts of the suspect lie on one dense MLP of the base.
        strange: layers of the suspect that lie on nothing in the base.
        relabeled: neurons, coordinates or signs were moved without changing what is computed.
        body: `whole`, `trace` or `none`: how much of the suspect's blocks lies on the base's.
        merged: weights of the parents, where more than one was found.
    """
    r = Relation()
    inner = [d for d in differences if d.layer >= 0] or list(differences)
    if body == "none" and not merged:
        r.names.append("body shared in part")
        r.details["shared"] = f"{same_tensors} of {tensors} matrices number for number; none of the blocks' neurons"
        return r
    if body == "trace" and not merged:
        r.names.append("merged")
        r.details["share"] = round(float(np.median([d.cosine for d in inner])), 4) if inner else 0.0
        r.details["or"] = "continued training that left little of the base"
        return r
    _structure(r, layer_map, base_layers, shapes, experts, vocabulary_moved)
    if merged:
        r.names.append("merged")
        r.details["merge"] = merged
        r.direction, r.because = "suspect from base", "a mixture of several models comes after each of them"
    if inner:
        _numbers(r, inner, same_tensors == tensors and tensors > 0, repacked, bool(merged), bool(r.names))
    if strange and len(strange) >= max(1, round(0.25 * len(layer_map))) and "experts from a dense model" not in r.names:
        r.names.insert(0, "body shared in part")
        r.details["layers without a match"] = list(strange)
    if relabeled:
        r.details["relabeled"] = (
            "neurons, coordinates, heads or signs stand elsewhere, which changes nothing that is computed"
        )
    if not r.names and same_tensors:
        r.names.append("body shared in part")
    return r


def _structure(
    r: Relation,
    layer_map: Sequence[int],
    base_layers: int,
    shapes: dict[str, tuple[int, int]],
    experts: bool,
    vocabulary: bool,
) -> None:
    used = [j for j in layer_map if j >= 0]
    if used and len(set(used)) < len(used) and not experts:
        r.names.append("layers duplicated")
        r.direction, r.because = "suspect from base", "layers of the base stand in the suspect more than once"
    if (
        used
        and set(range(base_layers)) - set(used)
        and len(used) >= 0.75 * len(layer_map)
        and "layers duplicated" not in r.names
    ):
        r.names.append("layers dropped")
        r.direction, r.because = "suspect from base", "every layer of the suspect is one of the base's, which has more"
    if [j for j in used if used.count(j) == 1] != sorted(j for j in used if used.count(j) == 1):
        r.names.append("layers reordered")
    if experts:
        r.names.append("experts from a dense model")
        r.direction, r.because = "suspect from base", "several experts lie on one dense MLP"
    for what, (ours, theirs) in shapes.items():
        if ours != theirs and ours and theirs:
            r.names.append("narrowed" if ours < theirs else "widened")
            r.details[what] = f"{ours} of {theirs}"
            if ours < theirs:
                r.direction, r.because = "suspect from base", f"the suspect keeps {ours} of {theirs} {what}"
    if vocabulary:
        r.names.append("vocabulary replaced")


def _numbers(
    r: Relation, body: Sequence[Difference], all_same: bool, repacked: bool, merged: bool, shaped: bool
) -> None:
    distance = float(np.median([d.distance for d in body]))
    r.details["relative distance"] = round(float(distance), 6)
    r.details["cosine"] = round(float(np.median([d.cosine for d in body])), 6)
    if all_same or max(d.distance for d in body) <= SAME:
        if not shaped:
            r.names.append("re-packaged" if repacked else "identical")
        return
    if max(d.distance for d in body) <= REPACKED:
        if not shaped:
            r.names.append("re-packaged")
        return
    zeros, theirs, rounded = (
        float(np.median([getattr(d, k) for d in body])) for k in ("zeros", "zeros_base", "rounded")
    )
    bits = [d.bits for d in body]
    base_bits = [d.bits_base for d in body]
    on_grid, base_grid = (sum(b > 0 for b in x) > len(x) / 2 for x in (bits, base_bits))
    explained = False
    if zeros - theirs - rounded > ZEROS:
        r.names.append("pruned")
        r.details["zeros"] = round(zeros, 4)
        r.direction, r.because = "suspect from base", "numbers of the base are zero in the suspect"
        explained = float(np.median([d.kept for d in body])) < 0.05
    elif theirs - zeros > ZEROS and not (base_grid and not on_grid):
        r.direction, r.because = "base from suspect", "numbers of the suspect are zero in the base"
        r.names.append("pruned")
    if on_grid and not base_grid:
        least = int(np.median([b for b in bits if b > 0]))
        r.names.append("quantized")
        r.details["bits"] = least
        r.direction, r.because = "suspect from base", "the suspect's numbers lie on a coarse grid, the base's do not"
        explained = explained or distance < {2: 1.2, 3: 0.45, 4: 0.22, 8: 0.05}.get(least, 0.05)
    elif base_grid and not on_grid and sum(d.distance <= REPACKED for d in body) >= 0.25 * len(body):
        r.direction, r.because = "suspect from base", "the suspect holds the base's numbers as they were rounded"
    elif base_grid and not on_grid:
        r.direction, r.because = "base from suspect", "the base's numbers lie on a coarse grid, the suspect's do not"
        r.names.append("quantized")
        explained = distance < 0.25
    if explained or merged:
        return
    changed = [d for d in body if d.distance > REPACKED]
    low = [d for d in changed if d.low]
    if changed and len(low) >= 0.9 * len(changed) and not on_grid:
        r.names.append("LoRA-like")
        r.details["rank"] = int(max(d.rank for d in low))
    else:
        r.names.append("fine-tuned" if distance <= FINE else "continued training")
