"""A verdict in plain lines: what a layman reads first, then the evidence, then what it does not say."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from hermitcrab.report.words import plain
from hermitcrab.trace.verdict import EXPLANATIONS, NEVER, RELATED, Result, Verdict

WIDE = 110


def render(verdict: Verdict) -> str:
    return "\n\n".join(_one(verdict.suspect, r) for r in verdict.results)


def _one(suspect: str, r: Result) -> str:
    parts = [
        f"{plain(suspect)}  against  {plain(r.base)}",
        _wrapped(plain(r.sentence)),
        f"  because: {plain(r.decision.why)}",
    ]
    if r.because:
        parts.append(f"  direction: {plain(r.because)}")
    if r.groups:
        parts.append(
            table(
                ["evidence", "signs", "z", "log10 p", "cosine", "status"],
                [
                    [
                        g["what"] or g["name"],
                        f"{g['units']:,}",
                        f"{g['z']:.1f}",
                        f"{g['log10_p']:.1f}",
                        f"{g['cosine']:.4f}",
                        g["status"],
                    ]
                    for g in r.groups
                ],
            )
        )
    if r.aligned:
        a = r.aligned
        tried = ", ".join(f"{mode} {score:.1%}" for mode, score in a["tried"].items())
        parts.append(f"  aligned neurons that agree: {tried} (status: conformal, from a table of independent models)")
    if r.copies and any(r.copies[k] for k in ("same", "permuted", "rows")):
        c = r.copies
        parts.append(f"  same numbers: {len(c['same'])} matrices, {len(c['permuted'])} with rows in another order, "
                     f"rows of {len(c['rows'])} more (of {c['matrices']})")  # fmt: skip
    if r.details:
        parts.append("  measured: " + "; ".join(f"{k} {plain(str(v))}" for k, v in r.details.items()))
    if r.layer_map:
        parts.append(_wrapped("layers: " + layers(r.layer_map), "  "))
    if r.verdict == RELATED:
        parts.append(_wrapped("other explanations: " + "; ".join(EXPLANATIONS) + ".", "  "))
    parts.append(_wrapped("this test cannot see: " + "; ".join(NEVER) + ".", "  "))
    if r.assumptions:
        parts.append(_wrapped("assumes: " + "; ".join(plain(x) for x in r.assumptions) + ".", "  "))
    if r.not_tested:
        parts.append(_wrapped("not tested: " + "; ".join(plain(x) for x in r.not_tested) + ".", "  "))
    parts.append(f"  level {r.decision.alpha:.1g}; {r.seconds:.1f} s, {r.bytes_read / 1e6:,.1f} MB read")
    return "\n".join(parts)


def layers(rows: Sequence[dict[str, Any]]) -> str:
    """`0-11 → 0-11, 12-23 → 8-19`: runs of layers that follow one another in both."""
    runs: list[list[int]] = []  # first and last layer of the suspect, first and last of the base; -1 for no match
    for row in rows:
        here, there = int(row["layer"]), -1 if row["base_layer"] is None else int(row["base_layer"])
        if runs and here == runs[-1][1]:
            continue  # another expert of the same layer
        last = runs[-1] if runs else [here, here, -2, -2]
        follows = there == -1 == last[3] or (there > 0 and there == last[3] + 1)
        if runs and here == last[1] + 1 and follows:
            last[1], last[3] = here, there
        else:
            runs.append([here, here, there, there])

    def span(a: int, b: int) -> str:
        return "nothing" if a < 0 else str(a) if a == b else f"{a}-{b}"

    return ", ".join(f"{span(a, b)} → {span(c, d)}" for a, b, c, d in runs)


def table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    lines = [
        "  " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in [head, *rows]
    ]
    return "\n".join(lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDE, initial_indent=indent, subsequent_indent=indent + "  ")


def render_tree(tree: dict[str, Any]) -> str:
    """Families as indented lines; undirected edges with `-`, directed ones with `→`, further parents with `+`."""
    lines: list[str] = []
    edges = tree["edges"]

    def below(name: str, depth: int, seen: set[str]) -> None:
        for e in edges:
            if e["tree"] and e["parent"] == name and e["child"] not in seen:
                seen.add(e["child"])
                mark = "→" if e["directed"] else "-"
                also = [
                    x["parent"] for x in edges if x["child"] == e["child"] and x["parent"] != name and not x["tree"]
                ]
                plus = f"  + {', '.join(plain(x) for x in also)}" if also else ""
                lines.append(
                    "  " * depth + f"{mark} {plain(e['child'])}  ({e['relation']}, distance {e['distance']:.3f}){plus}"
                )
                below(e["child"], depth + 1, seen)

    for family in tree["families"]:
        lines.append(plain(family["root"]))
        below(family["root"], 1, {family["root"]})
    return "\n".join(lines)


def render_claims(told: dict[str, Any]) -> str:
    lines = [
        f"{'contradicted' if r['contradicted'] else 'not contradicted'}: {plain(r['text'])}" for r in told["claims"]
    ]
    lines += [f"not at hand, not tested: {plain(name)}" for name in told["not_at_hand"]]
    return "\n".join(lines + [f"  {plain(r['sentence'])}" for r in told["results"]])
