"""The family of several models: who is related (exact tests or aligned neurons), how far apart, and who came from whom.

Significant pairs make clusters. Inside one, edges are weighed by the aligned distance and a spanning arborescence is found
(Chu and Liu 1965; Edmonds 1967): an edge that a lossy step directs costs its distance, the way against it is barred, and an
edge without direction costs the same both ways. The root, where nothing else says, is the model with the smallest sum of
distances. A second related parent that a merge needs is an edge beside the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from hermitcrab.errors import UsageError
from hermitcrab.progress import progress
from hermitcrab.trace.tracing import trace
from hermitcrab.trace.verdict import RELATED

BARRED = 1e6


def tree(models: Sequence[str | Path], alpha: float = 1e-6) -> dict[str, Any]:
    """Families of the given models.

    Returns `{models, families: [{root, members}], edges: [{parent, child, directed, tree, relation, distance, log10_p}]}`.

    Raises:
        UsageError: fewer than two models, or one twice.
    """
    names = [str(m) for m in models]
    if len(names) < 2:
        raise UsageError(f"a family needs two models at least. Received: {', '.join(names) or 'none'}")
    if len({Path(n).resolve() for n in names}) < len(names):
        raise UsageError("a model is given twice; every model of a family must be another")
    count = len(names) * (len(names) - 1) // 2
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    with progress("comparing models", count, "pairs") as bar:
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                found = _pair(a, b, alpha / count)
                if found is not None:
                    pairs[a, b] = found
                bar.add()
    return arrange(names, pairs)


def _pair(a: str, b: str, alpha: float) -> dict[str, Any] | None:
    from hermitcrab.errors import HermitcrabError

    try:
        r = trace(a, [b], alpha=alpha).results[0]
    except UsageError:
        raise
    except HermitcrabError as error:
        if "nothing in common" in str(error):
            return None
        raise
    if r.verdict != RELATED:
        return None
    cosines = (
        [float(r.details["cosine"])]
        if "cosine" in r.details
        else [float(c) for c in (r.aligned or {}).get("cosines", [])]
    )
    cosine = sum(cosines) / len(cosines) if cosines else 0.0
    distance = float(r.details.get("relative distance", max(0.0, 2 - 2 * cosine) ** 0.5))
    child = {"suspect from base": a, "base from suspect": b}.get(r.direction)
    return {"child": child, "distance": distance, "relation": ", ".join(r.relations) or "related", "log10_p": r.log10_p}


def arrange(names: Sequence[str], pairs: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """Clusters and arborescences: a pure function of the significant pairs."""
    clusters = _clusters(names, pairs)
    edges: list[dict[str, Any]] = []
    families = []
    for members in clusters:
        inside = {k: v for k, v in pairs.items() if k[0] in members}
        best = min((r for r in (_rooted(root, members, inside) for root in members)), key=lambda r: r[0])
        _, root, parent = best
        families.append({"root": root, "members": members})
        for child, above in parent.items():
            edges.append(_edge(above, child, inside, True))
        for (a, b), found in inside.items():
            child = found["child"]
            other = b if child == a else a
            if (
                child is not None
                and parent.get(child) != other
                and parent.get(other) != child
                and "merged" in found["relation"]
            ):
                edges.append(_edge(other, child, inside, False))
    return {"models": list(names), "families": families, "edges": edges}


def _edge(above: str, child: str, pairs: dict[tuple[str, str], dict[str, Any]], inside: bool) -> dict[str, Any]:
    found = pairs.get((above, child)) or pairs[child, above]
    return {"parent": above, "child": child, "directed": found["child"] == child, "tree": inside, "relation": found["relation"],
            "distance": round(found["distance"], 6), "log10_p": found["log10_p"]}  # fmt: skip


def _clusters(names: Sequence[str], pairs: dict[tuple[str, str], dict[str, Any]]) -> list[list[str]]:
    group = {n: n for n in names}

    def top(n: str) -> str:
        while group[n] != n:
            n = group[n]
        return n

    for a, b in pairs:
        group[top(a)] = top(b)
    out: dict[str, list[str]] = {}
    for n in names:
        out.setdefault(top(n), []).append(n)
    return list(out.values())


def _rooted(
    root: str, members: list[str], pairs: dict[tuple[str, str], dict[str, Any]]
) -> tuple[float, str, dict[str, str]]:
    """The cheapest arborescence from `root`: (cost, root, parent of each)."""
    costs: dict[tuple[str, str], float] = {}
    for (a, b), found in pairs.items():
        for above, below in ((a, b), (b, a)):
            barred = found["child"] is not None and found["child"] != below
            costs[above, below] = found["distance"] + (BARRED if barred else 0.0) + 1e-9
    chosen = edmonds(root, members, costs)
    total = sum(costs[above, below] for below, above in chosen.items())
    return total + 1e-6 * sum(f["distance"] for k, f in pairs.items() if root in k), root, chosen


def edmonds(root: str, nodes: Sequence[str], costs: dict[tuple[str, str], float]) -> dict[str, str]:
    """Parent of each node but the root in the spanning arborescence of least cost. Every node must be reachable."""
    parent: dict[str, str] = {}
    for n in nodes:
        if n != root:
            into = [(c, a) for (a, b), c in costs.items() if b == n and a != n]
            if not into:
                raise ValueError(f"{n} cannot be reached from {root}")
            parent[n] = min(into)[1]
    cycle = _cycle(parent)
    if cycle is None:
        return parent
    inside, joined = set(cycle), "\0" + "\0".join(sorted(cycle))
    smaller: dict[tuple[str, str], float] = {}
    origin: dict[tuple[str, str], tuple[str, str]] = {}
    for (a, b), c in costs.items():
        if a in inside and b in inside:
            continue
        edge = (joined if a in inside else a, joined if b in inside else b)
        cost = c - costs[parent[b], b] if b in inside else c
        if edge not in smaller or cost < smaller[edge]:
            smaller[edge], origin[edge] = cost, (a, b)
    found = edmonds(root, [n for n in nodes if n not in inside] + [joined], smaller)
    out = {n: parent[n] for n in cycle}
    for below, above in found.items():
        a, b = origin[above, below]
        out[b] = a
    return out


def _cycle(parent: dict[str, str]) -> list[str] | None:
    for start in parent:
        path: list[str] = []
        n = start
        while n in parent and n not in path:
            path.append(n)
            n = parent[n]
        if n in path:
            return path[path.index(n) :]
    return None


def svg(found: dict[str, Any]) -> str:
    """The families drawn: generations from left to right, arrows where the direction is known, dashes for second parents."""
    place: dict[str, tuple[int, int]] = {}
    row = 0
    children: dict[str, list[str]] = {}
    for e in found["edges"]:
        if e["tree"]:
            children.setdefault(e["parent"], []).append(e["child"])

    def lay(name: str, depth: int) -> None:
        nonlocal row
        place[name] = (20 + depth * 230, 30 + row * 44)
        row += 1
        for child in sorted(children.get(name, [])):
            lay(child, depth + 1)

    for family in found["families"]:
        lay(family["root"], 0)
    width = max((x for x, _ in place.values()), default=0) + 230
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {row * 44 + 30}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#b4532a"/></marker></defs>',
    ]
    for e in found["edges"]:
        (x, y), (u, v) = place[e["parent"]], place[e["child"]]
        arrow = ' marker-end="url(#a)"' if e["directed"] else ""
        dash = "" if e["tree"] else ' stroke-dasharray="5 4"'
        parts.append(
            f'<path d="M{x + 12} {y + 12} V{v} H{u - 4}" fill="none" stroke="#b4532a"{dash}{arrow}>'
            f"<title>{escape(e['relation'])}</title></path>"
        )
    for name, (x, y) in place.items():
        short = name if len(name) <= 30 else "…" + name[-29:]
        parts.append(
            f'<circle cx="{x + 4}" cy="{y}" r="5" fill="#646a73"/><text x="{x + 14}" y="{y + 4}">{escape(short)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
