"""One suspect against its bases: open, test, align, and gather what the verdict is made from."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.trace import digests, generic
from hermitcrab.trace.aligned import Alignment, align
from hermitcrab.trace.borrow import borrowed
from hermitcrab.trace.chain import lay
from hermitcrab.trace.depth import by_magnitudes, layer_map
from hermitcrab.trace.exact import examine as examine_exactly
from hermitcrab.trace.kinship import relation_of
from hermitcrab.trace.mapping import deflated, map_blocks
from hermitcrab.trace.model import Model
from hermitcrab.trace.neurons import blocks
from hermitcrab.trace.null import tables
from hermitcrab.trace.pair import Pair
from hermitcrab.trace.relation import Relation
from hermitcrab.trace.verdict import NO_EVIDENCE, RELATED, Decision, Evidence, Levels, Result, Verdict, judge, sentence

ALPHA = 1e-6
SAMPLE_ROWS = 96
DIGEST_BYTES = 1 << 32  # models larger than this are digested only where nothing else was found


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
        if not suspect.structure.layers and not base.structure.layers:
            pair.channels = lay(suspect, base)
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
    if len(pairs) > 1 and all(p.channels is not None for p in pairs):
        _channels_behind(pairs)
        return
    found = [p for p in pairs if p.mapped and sum(len(m.rows) for m in p.mapped) >= 8]
    if not found or len(pairs) < 2:
        return
    main = max(found, key=lambda p: sum(sum(m.cosines) for m in p.mapped) / (3 * max(len(p.ours), 1)))
    gated, centered = suspect.structure.gated, suspect.structure.centered or main.base.structure.centered
    for pair in pairs:
        if pair is not main and pair.theirs:
            pair.deflated = deflated(main.mapped, pair.theirs, gated, centered)
            pair.deflated_by = main.base.name


def _channels_behind(pairs: list[Pair]) -> None:
    """The same for models without blocks."""
    shares = [p.channels.share for p in pairs if p.channels is not None]
    main = pairs[int(np.argmax(shares))]
    for pair in pairs:
        if pair is not main and main.channels is not None and pair.channels is not None:
            pair.deflated = generic.deflated(main.channels, pair.channels)
            pair.deflated_by = main.base.name


def _evidence(pair: Pair, bases: int) -> Evidence:
    e = Evidence(pair.exact.groups, pair.deflated, bases=bases)
    if pair.copies is not None:
        e.copies_same = len(pair.copies.same) + len(pair.copies.permuted)
        e.copies_part, e.matrices = len(pair.copies.rows), pair.copies.compared
    if pair.best is not None:
        e.mean, e.best = max(a.mean for a in pair.alignments), max(a.best for a in pair.alignments)
    if pair.channels is not None:
        e.channels = pair.channels.score
    return e


def _result(suspect: Model, pair: Pair, pairs: list[Pair], alpha: float) -> Result:
    sample = pair.sampled
    began = time.monotonic()
    suspect = pair.suspect
    copied = pair.copies is not None and pair.copies.found
    if not pair.exact.groups and pair.best is None and pair.channels is None and not copied and not pair.told:
        raise HermitcrabError(
            f"{suspect.name} and {pair.base.name} have nothing in common to test: no matrices of the same role and shape, "
            "no neurons to align, no rows that are the same"
        )
    known = tables()
    decision = judge(_evidence(pair, len(pairs)), Levels(alpha, known["mean"], known["best"], known["channels"]))
    relation = Relation()
    if decision.verdict == RELATED and not sample:
        relation = relation_of(suspect, pair, pairs)
    not_tested = list(dict.fromkeys(pair.exact.not_tested))
    if sample:
        not_tested.append("verbatim copies, aligned neurons, kind of relation (a sample or a sketch)")
    elif pair.best is None and pair.channels is None:
        not_tested.append("aligned neurons: no feed-forward blocks of the same kind were recognized in both")
    assumptions = list(pair.exact.assumptions)
    if pair.borrowed:
        assumptions.append("roles of tensors were matched by magnitudes, which no change of signs moves")
    elif pair.chosen:
        assumptions.append("layers were matched by magnitudes, which no change of signs moves")
    if decision.p_status == "conformal":
        assumptions.append(
            "two independent models of this kind score as those of the shipped table do "
            f"({known['mean' if pair.best is not None else 'channels'].models})"
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
    a, c = pair.best, pair.channels
    if a is None:
        return None if c is None else {
            "mode": "channels", "mean": round(c.score, 4), "best": round(max(c.scores), 4), "blocks": len(c.scores),
            "tried": {"channels": round(c.score, 4)}, "cosines": [round(c.share, 4)], "moved": round(c.moved, 4), "flipped": 0.0,
        }  # fmt: skip
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
    if pair.channels is not None and pair.channels.score >= tables()["channels"].guard:
        c = pair.channels
        return [{"layer": i, "expert": -1, "base_layer": i, "tensor": ours, "base_tensor": theirs,
                 "score": round(c.scores[min(i, len(c.scores) - 1)], 4)} for i, (ours, theirs) in enumerate(c.names)]  # fmt: skip
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
