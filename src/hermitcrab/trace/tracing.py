"""One suspect against its bases: open, test, align, and gather what the verdict is made from."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.trace import digests, generic
from hermitcrab.trace.aligned import Alignment, Block, align, blocks
from hermitcrab.trace.borrow import borrowed
from hermitcrab.trace.depth import by_magnitudes, layer_map
from hermitcrab.trace.digests import Copies
from hermitcrab.trace.exact import Exact, Group
from hermitcrab.trace.exact import examine as examine_exactly
from hermitcrab.trace.mapping import Mapped, deflated, map_blocks, merge_weights
from hermitcrab.trace.model import Model
from hermitcrab.trace.null import tables
from hermitcrab.trace.relation import Difference, Relation, classify, difference
from hermitcrab.trace.verdict import NO_EVIDENCE, RELATED, Decision, Evidence, Levels, Result, Verdict, judge, sentence

ALPHA = 1e-6
SAMPLE_ROWS = 96
DIGEST_BYTES = 1 << 32  # models larger than this are digested only where nothing else was found
LOOKED_AT = 24  # matrices whose difference is taken apart for the kind of relation
LEAST_GAIN = 0.30


@dataclass
class Pair:
    """All that was measured between the suspect and one base."""

    base: Model
    exact: Exact
    suspect: Model
    """With the roles that it was given for this base."""
    copies: Copies | None = None
    alignments: list[Alignment] = field(default_factory=list)
    ours: list[Block] = field(default_factory=list)
    theirs: list[Block] = field(default_factory=list)
    mapped: list[Mapped] = field(default_factory=list)
    deflated: list[Group] = field(default_factory=list)
    deflated_by: str = ""
    told: list[tuple[str, str, float, float]] = field(default_factory=list)
    chosen: bool = False
    borrowed: bool = False
    sampled: bool = False
    layers: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    bytes_read: int = 0

    @property
    def best(self) -> Alignment | None:
        return self.alignments[0] if self.alignments else None


def trace(suspect: str | Path, bases: Sequence[str | Path], *, alpha: float = ALPHA, sample: bool = False) -> Verdict:
    """Test whether `suspect` is independent of each of `bases`, from weights alone.

    Args:
        suspect: a file or folder of weights, or a sketch (`crab sketch`).
        bases: the same; several share the level `alpha` (Bonferroni), and each is also tested behind the others (deflation).
        alpha: level of the exact tests. Where only aligned scores speak, the level is the floor of the shipped table.
        sample: few rows of every matrix, Tier 1 only: seconds at any size.

    Raises:
        UsageError: no base, a path given twice, an impossible level.
        HermitcrabError: a file that cannot be read, or models that have nothing in common to test.
    """
    _check(suspect, bases, alpha)
    from hermitcrab.trace.sketch import open_any

    with open_any(suspect) as ours:
        pairs = []
        for path in bases:
            with open_any(path) as theirs:
                pairs.append(_measure(ours, theirs, sample))
        _behind_each_other(ours, pairs)
        results = []
        for pair in pairs:
            with pair.base:
                results.append(_result(ours, pair, pairs, alpha))
    return Verdict(str(suspect), results)


def _check(suspect: str | Path, bases: Sequence[str | Path], alpha: float) -> None:
    if not bases:
        raise UsageError(f"one model only ({suspect}); expected a suspect and at least one base to compare it with")
    if not 0 < alpha <= 0.1:
        raise UsageError(f"the level must lie between 0 and 0.1. Received: alpha={alpha:g}")
    seen: dict[Path, str] = {}
    for path in [suspect, *bases]:
        place = Path(path).resolve()
        if place in seen:
            raise UsageError(
                f"{path}: is given twice (it is the same as {seen[place]}); a model has no ancestry with itself"
            )
        seen[place] = str(path)


def _measure(suspect: Model, base: Model, sample: bool) -> Pair:
    began, read = time.monotonic(), suspect.reader.bytes_read + base.reader.bytes_read
    limits = [m.limit for m in (suspect, base) if m.limit is not None] + ([SAMPLE_ROWS] if sample else [])
    sample = bool(limits)
    full = suspect, base
    if helped := borrowed(suspect, base):
        suspect = helped
    elif helped := borrowed(base, suspect):
        base = helped
    layers, chosen = by_magnitudes(suspect, base)
    chosen = chosen or helped is not None
    exact = examine_exactly(suspect, base, layers, chosen=chosen, rows=min(limits, default=None))
    pair = Pair(base, exact, suspect, chosen=chosen, borrowed=helped is not None, layers=layers, sampled=sample)
    if not sample:
        groups, why_not, pair.told = generic.examine(suspect, base)
        exact.groups += groups
        exact.not_tested += why_not
        small = sum(i.nbytes for m in (suspect, base) for i in m.weights.tensors.values()) <= DIGEST_BYTES
        if small or exact.log10_p() > -6:
            pair.copies = digests.copies(digests.keys_of(full[0]), digests.keys_of(full[1]))
        pair.ours, pair.theirs = blocks(suspect), blocks(base)
        pair.alignments = align(suspect, base, pair.ours, pair.theirs, thorough=True)
        if pair.best is not None:
            floor = max(0.1, tables()["best"].guard)
            pair.best.layer_map = layer_map(pair.best.scores, floor)
            _fitted(pair.best)
            pair.mapped = map_blocks(pair.ours, pair.theirs, pair.best)
    pair.seconds = time.monotonic() - began
    pair.bytes_read = suspect.reader.bytes_read + base.reader.bytes_read - read
    return pair


def _fitted(alignment: Alignment) -> None:
    """The pair of layers that a blind map was fitted on, which has no held-out score of its own."""
    if alignment.fitted_on is not None and any(j >= 0 for j in alignment.layer_map):
        i, j = alignment.fitted_on
        alignment.layer_map[i] = j


def _behind_each_other(suspect: Model, pairs: list[Pair]) -> None:
    """Each base against what is left of the suspect once the base that explains most of it is taken out (deflation)."""
    found = [p for p in pairs if p.mapped and sum(len(m.rows) for m in p.mapped) >= 8]
    if not found or len(pairs) < 2:
        return
    main = max(found, key=lambda p: sum(sum(m.cosines) for m in p.mapped) / (3 * max(len(p.ours), 1)))
    gated, centered = suspect.structure.gated, suspect.structure.centered or main.base.structure.centered
    for pair in pairs:
        if pair is not main and pair.theirs:
            pair.deflated = deflated(main.mapped, pair.theirs, gated, centered)
            pair.deflated_by = main.base.name


def _evidence(pair: Pair, bases: int) -> Evidence:
    e = Evidence(pair.exact.groups, pair.deflated, bases=bases)
    if pair.copies is not None:
        e.copies_same = len(pair.copies.same) + len(pair.copies.permuted)
        e.copies_part, e.matrices = len(pair.copies.rows), pair.copies.compared
    if pair.best is not None:
        e.mean, e.best = max(a.mean for a in pair.alignments), max(a.best for a in pair.alignments)
    return e


def _result(suspect: Model, pair: Pair, pairs: list[Pair], alpha: float) -> Result:
    sample = pair.sampled
    began = time.monotonic()
    suspect = pair.suspect
    if not pair.exact.groups and pair.best is None and (pair.copies is None or not pair.copies.found) and not pair.told:
        raise HermitcrabError(
            f"{suspect.name} and {pair.base.name} have nothing in common to test: no matrices of the same role and shape, "
            "no neurons to align, no rows that are the same"
        )
    known = tables()
    decision = judge(_evidence(pair, len(pairs)), Levels(alpha, known["mean"], known["best"]))
    relation = Relation()
    if decision.verdict == RELATED and not sample:
        relation = _relation(suspect, pair, pairs)
    not_tested = list(dict.fromkeys(pair.exact.not_tested))
    if sample:
        not_tested.append("verbatim copies, aligned neurons, kind of relation (a sample or a sketch)")
    elif pair.best is None:
        not_tested.append("aligned neurons: no feed-forward blocks of the same kind were recognized in both")
    assumptions = list(pair.exact.assumptions)
    if pair.borrowed:
        assumptions.append("roles of tensors were matched by magnitudes, which no change of signs moves")
    elif pair.chosen:
        assumptions.append("layers were matched by magnitudes, which no change of signs moves")
    if decision.p_status == "conformal":
        assumptions.append(
            f"two independent models of this kind score as those of the shipped table do ({known['mean'].models})"
        )
    result = Result(
        base=pair.base.name, decision=decision, relation=_relation_name(decision, relation), relations=relation.names,
        direction=relation.direction, because=relation.because, details=relation.details,
        groups=[g.as_json() for g in [*pair.exact.groups, *pair.deflated]], layer_map=_layer_rows(suspect, pair, decision),
        copies=_copies(pair), assumptions=assumptions, not_tested=not_tested, seconds=0.0, bytes_read=pair.bytes_read,
        aligned=_aligned(pair),
    )  # fmt: skip
    result.seconds = pair.seconds + time.monotonic() - began
    result.sentence = sentence(suspect.name, result)
    return result


def _relation_name(decision: Decision, relation: Relation) -> str:
    if decision.verdict == RELATED:
        return relation.name
    return "no evidence of relation" if decision.verdict == NO_EVIDENCE else "cannot tell"


def _copies(pair: Pair) -> dict[str, Any]:
    c = pair.copies
    if c is None:
        return {}
    return {"matrices": c.compared, "same": c.same[:200], "permuted": c.permuted[:200], "rows": c.rows[:200]}


def _aligned(pair: Pair) -> dict[str, Any] | None:
    a = pair.best
    if a is None:
        return None
    cosines = [m.cosines for m in pair.mapped]
    return {
        "mode": a.mode, "mean": round(a.mean, 4), "best": round(a.best, 4), "blocks": len(pair.ours),
        "tried": {x.mode: round(x.mean, 4) for x in pair.alignments},
        "cosines": [round(float(np.mean(c)), 4) for c in zip(*cosines, strict=True)] if cosines else [],
        "moved": round(float(np.mean([m.moved for m in pair.mapped])), 4) if pair.mapped else None,
        "flipped": round(float(np.mean([m.flipped for m in pair.mapped])), 4) if pair.mapped else None,
    }  # fmt: skip


def _layer_rows(suspect: Model, pair: Pair, decision: Decision) -> list[dict[str, Any]]:
    """For each block of the suspect: the base's layer it lies on, how sure, and the strongest exact z."""
    if decision.verdict != RELATED:
        return []
    rows: list[dict[str, Any]] = []
    if pair.best is not None and any(j >= 0 for j in pair.best.layer_map):
        for i, j in enumerate(pair.best.layer_map):
            score = pair.best.scores[i, j] if j >= 0 else np.nanmax(pair.best.scores[i], initial=0.0)
            rows.append({"layer": pair.ours[i].layer, "expert": pair.ours[i].expert, "base_layer": pair.theirs[j].layer if j >= 0 else None,
                         "score": None if math.isnan(score) else round(float(score), 4)})  # fmt: skip
        return rows
    for layer in range(suspect.structure.layers):
        z = [
            abs(v)
            for g in pair.exact.groups
            for k, v in g.layers.items()
            if (k == layer or (k >= 4096 and k // 4096 == layer))
        ]
        there = pair.layers.get(layer)
        if z and there is not None:
            rows.append(
                {
                    "layer": layer,
                    "expert": -1,
                    "base_layer": there if max(z) > 4 else None,
                    "score": None,
                    "z": round(max(z), 2),
                }
            )
    return rows


def _relation(suspect: Model, pair: Pair, pairs: list[Pair]) -> Relation:
    base, best = pair.base, pair.best
    moved = [m.moved for m in pair.mapped]
    flipped = [m.flipped for m in pair.mapped]
    relabeled = bool(best and best.mode != "as it stands" and best.mean > 0.1)
    relabeled = relabeled or (bool(moved) and bool(np.mean(moved) > 0.3 or np.mean(flipped) > 0.2))
    if relabeled:
        differences = [
            difference(m.block.layer, "mlp", x, y) for m in pair.mapped for x, y in zip(m.ours, m.theirs, strict=True)
        ][:LOOKED_AT]
    else:
        differences = _differences(suspect, pair)
    found = best.layer_map if best else []
    per_layer = _per_layer(pair)
    experts = any(b.expert >= 0 for b in pair.ours) and not any(b.expert >= 0 for b in pair.theirs)
    s, b = suspect.structure, base.structure
    shapes = {"width": (s.width, b.width), "neurons": (_neurons(pair.ours), _neurons(pair.theirs))} if found else {}
    kinds = {m.weights.format for m in (suspect, base)}, {tuple(m.weights.dtypes) for m in (suspect, base)}
    names = {tuple(sorted(m.weights.tensors)) for m in (suspect, base)}
    same = len(pair.copies.same) if pair.copies else 0
    return classify(
        differences, same_tensors=same, tensors=pair.copies.compared if pair.copies else 0,
        repacked=any(len(k) > 1 for k in kinds) or len(names) > 1, layer_map=per_layer, base_layers=b.layers if per_layer else 0,
        shapes=shapes, experts=experts, vocabulary_moved=_vocabulary_moved(suspect, pair, differences, relabeled),
        strange=[i for i, j in enumerate(per_layer) if j < 0], relabeled=relabeled, body=_body(pair), merged=_merged(suspect, pair, pairs),
    )  # fmt: skip


def _body(pair: Pair) -> str:
    """`whole`: neurons lie on one another; `trace`: only the exact tests of the body see something; `none`: not even they."""
    a = pair.best
    if a is not None and a.best >= tables()["best"].guard:
        return "whole"
    outside = ("RES", "coordinates")
    seen = any(g.log10_p < -6 for g in [*pair.exact.groups, *pair.deflated] if g.name not in outside)
    if a is None and pair.told:
        return (
            "whole"
            if float(np.median([cosine for _, _, cosine, _ in pair.told])) > 0.3
            else "trace"
            if seen
            else "none"
        )
    if a is None:
        return "whole" if seen else "none"
    return "trace" if seen else "none"


def _neurons(found: list[Block]) -> int:
    return max((len(b.up) for b in found), default=0)


def _per_layer(pair: Pair) -> list[int]:
    """The base's layer of each layer of the suspect (by its first mapped expert), where blocks were aligned."""
    if pair.best is None or not any(j >= 0 for j in pair.best.layer_map):
        return []
    out: dict[int, int] = {}
    for block, j in zip(pair.ours, pair.best.layer_map, strict=True):
        if out.get(block.layer, -1) < 0:
            out[block.layer] = pair.theirs[j].layer if j >= 0 else -1
    return [out[k] for k in sorted(out)]


def _differences(suspect: Model, pair: Pair) -> list[Difference]:
    few = ("I8", "U8", "I4", "U4")

    def coarse(model: Model, name: str) -> bool:
        dtype = model.weights.info(name).dtype
        return (
            dtype in few
            or name in model.scales
            or (model.weights.format == "gguf" and dtype not in ("F32", "F16", "BF16", "F64"))
        )

    chosen = [(p, q) for p, q in pair.exact.pairs if p.layer >= 0 and p.role != "router"] or pair.exact.pairs
    step = max(1, -(-len(chosen) // LOOKED_AT))
    out = [
        difference(
            p.layer,
            p.role,
            suspect.matrix(p),
            pair.base.matrix(q),
            coarse(suspect, p.tensor),
            coarse(pair.base, q.tensor),
        )
        for p, q in chosen[::step]
    ]
    if not out:
        for ours, theirs, _, _ in pair.told[:LOOKED_AT]:
            a, b = suspect.tensor(ours), pair.base.tensor(theirs)
            out.append(
                difference(
                    0,
                    "tensor",
                    a.reshape(len(a), -1),
                    b.reshape(len(b), -1),
                    coarse(suspect, ours),
                    coarse(pair.base, theirs),
                )
            )
    return out


def _vocabulary_moved(suspect: Model, pair: Pair, differences: Sequence[Difference], relabeled: bool) -> bool:
    """The embedding is far from the base's (or of another size) while the body is not."""
    ours, theirs = (m.parts.get((-1, "embedding", -1)) for m in (suspect, pair.base))
    if ours is None or theirs is None or not differences or relabeled:
        return False
    if ours.shape != theirs.shape:
        return ours.shape[1] == theirs.shape[1]
    body = float(np.median([d.cosine for d in differences if d.layer >= 0] or [0.0]))
    cosine = next(
        (s.cosine for (p, _), s in zip(pair.exact.pairs, pair.exact.sums, strict=True) if p.role == "embedding"), 1.0
    )
    return cosine < 0.5 * body and body > 0.3


def _merged(suspect: Model, pair: Pair, pairs: list[Pair]) -> dict[str, object] | None:
    """Weights of all bases in the suspect, where a second one improves on the best alone."""
    if len(pairs) < 2 or any(p.sampled for p in pairs):
        return None
    fit = [p for p in pairs if p.mapped or p.exact.pairs]
    main = max((p for p in fit if p.mapped), key=lambda p: sum(sum(m.cosines) for m in p.mapped), default=None)
    if main is None or len(fit) < 2:
        return None
    in_place = (
        main.best is not None and main.best.mode == "as it stands" and np.mean([m.moved for m in main.mapped]) < 0.1
    )
    targets, parents = _plain_stack(suspect, fit) if in_place else _mapped_stack(main, fit)
    if not targets:
        return None
    weights, error, gain = merge_weights(targets, parents)
    own = weights[fit.index(pair)] if pair in fit else 0.0
    second = sorted(abs(w) for w in weights)[-2]
    if gain < LEAST_GAIN and not any(g.log10_p < -6 for p in fit for g in p.deflated):
        return None
    if second < 0.002 or abs(own) < 0.002:
        return None
    return {
        "weights": {p.base.name: round(w, 4) for p, w in zip(fit, weights, strict=True)},
        "error": round(error, 4),
        "gain": round(gain, 4),
    }


def _plain_stack(suspect: Model, fit: list[Pair]) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    common = [
        p
        for p, _ in fit[0].exact.pairs
        if p.layer >= 0 and all(any(p.key == x.key for x, _ in f.exact.pairs) for f in fit)
    ]
    step = max(1, -(-len(common) // LOOKED_AT))
    targets, parents = [], [[] for _ in fit]  # type: ignore[var-annotated]
    for part in common[::step]:
        targets.append(suspect.matrix(part)[:2048])
        for into, f in zip(parents, fit, strict=True):
            other = next(q for x, q in f.exact.pairs if x.key == part.key)
            into.append(f.base.matrix(other)[:2048])
    return targets, parents


def _mapped_stack(main: Pair, fit: list[Pair]) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """In the coordinates of the main parent: neurons of the others as they stand in their own file."""
    targets: list[np.ndarray] = []
    parents: list[list[np.ndarray]] = [[] for _ in fit]
    for m in main.mapped:
        row = []
        for f in fit:
            b = next((b for b in f.theirs if (b.layer, b.expert) == (m.base.layer, m.base.expert)), None)
            if b is None or len(b.vectors()) != len(m.ours) or b.up.shape != m.base.up.shape:
                break
            row.append([v[m.rows] for v in b.vectors()])
        if len(row) == len(fit):
            targets += m.ours
            for into, vectors in zip(parents, row, strict=True):
                into += vectors
    return targets, parents
