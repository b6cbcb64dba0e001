"""The kind of relation, gathered from what was measured: changes of matrices, map of layers, shares in a mixture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hermitcrab.models.formats.packed import KINDS
from hermitcrab.trace.chain import Channels
from hermitcrab.trace.mapping import merge_weights
from hermitcrab.trace.model import Model
from hermitcrab.trace.neurons import Block
from hermitcrab.trace.null import tables
from hermitcrab.trace.pair import Pair
from hermitcrab.trace.relation import Difference, Relation, classify, difference, grid_bits

LOOKED_AT = 24  # matrices whose difference is taken apart for the kind of relation
LEAST_GAIN = 0.30
SAME_WORDS = 0.9  # share of tokens with the same number from which two tokenizers are one


def relation_of(suspect: Model, pair: Pair, pairs: list[Pair]) -> Relation:
    base, best = pair.base, pair.best
    moved = [m.moved for m in pair.mapped]
    flipped = [m.flipped for m in pair.mapped]
    relabeled = bool(best and best.mode != "as it stands" and best.mean > 0.1)
    relabeled = relabeled or (bool(moved) and bool(np.mean(moved) > 0.3 or np.mean(flipped) > 0.2))
    channels = pair.channels
    locked = channels is not None and channels.score >= tables()["channels"].guard
    if channels is not None and locked and channels.moved > 0.3:
        relabeled = True
        differences = _of_channels(suspect, base, channels)
    elif relabeled:
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
    repacked = relabeled or any(len(k) > 1 for k in kinds) or len(names) > 1
    return classify(
        differences, same_tensors=same, tensors=pair.copies.compared if pair.copies else 0,
        repacked=repacked, layer_map=per_layer, base_layers=b.layers if per_layer else 0,
        shapes=shapes, experts=experts, vocabulary_moved=_vocabulary_moved(suspect, pair, differences, relabeled),
        strange=[i for i, j in enumerate(per_layer) if j < 0], relabeled=relabeled, body=_body(pair), merged=_merged(suspect, pair, pairs),
    )  # fmt: skip


def _body(pair: Pair) -> str:
    """`whole`: neurons lie on one another; `trace`: only the exact tests of the body see something; `none`: not even they."""
    a, c = pair.best, pair.channels
    if c is not None and c.score >= tables()["channels"].guard:
        return "whole"
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


def _of_channels(suspect: Model, base: Model, channels: Channels) -> list[Difference]:
    """In the base's order of units; grids are looked for in the tensors as they lie in the file."""
    out = []
    for (ours, theirs), x, y in zip(channels.names, channels.ours, channels.theirs, strict=True):
        grids = [
            grid_bits(m.tensor(n).reshape(len(m.tensor(n)), -1).astype(np.float64))
            for m, n in ((suspect, ours), (base, theirs))
        ]
        out.append(difference(0, "tensor", x.reshape(len(x), -1), y.reshape(len(y), -1), *grids))
    return out


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

    def coarse(model: Model, name: str) -> int | None:
        dtype = model.weights.info(name).dtype
        stored = (
            dtype in few
            or dtype in KINDS
            or name in model.scales
            or (model.weights.format == "gguf" and dtype not in ("F32", "F16", "BF16", "F64"))
        )
        return KINDS.get(dtype, 8) if stored else None

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
    words, theirs_words = suspect.vocabulary(), pair.base.vocabulary()
    both = min(len(words), len(theirs_words))
    others = both > 0 and sum(x == y for x, y in zip(words, theirs_words, strict=False)) < SAME_WORDS * both
    # a table that is the head too learns much of the old one from the body that it serves
    return body > 0.3 and (cosine < 0.5 * body or (others and cosine < 0.8 * body))


def _merged(suspect: Model, pair: Pair, pairs: list[Pair]) -> dict[str, object] | None:
    """Weights of all bases in the suspect, where a second one improves on the best alone."""
    if len(pairs) < 2 or any(p.sampled for p in pairs):
        return None
    if all(p.channels is not None for p in pairs):
        laid = [p.channels for p in pairs if p.channels is not None]
        return _mixture(pairs, pair, max(laid, key=lambda c: c.share).ours, [c.theirs for c in laid])
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
    return _mixture(fit, pair, targets, parents)


def _mixture(
    fit: list[Pair], pair: Pair, targets: list[np.ndarray], parents: list[list[np.ndarray]]
) -> dict[str, object] | None:
    if any(x.shape != t.shape for p in parents for x, t in zip(p, targets, strict=True)):
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
