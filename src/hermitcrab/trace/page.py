"""One self-contained page of a verdict: no script, nothing loaded from anywhere; the layer map is drawn here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hermitcrab import __version__
from hermitcrab.report.words import plain
from hermitcrab.trace.terminal import layers
from hermitcrab.trace.verdict import EXPLANATIONS, NEVER, RELATED, Result, Verdict

WIDTH, LEFT = 760, 60
HEADINGS = {"related": "Not independent", "no-evidence": "No evidence of relation", "cannot-tell": "Cannot tell"}


def write_page(verdict: Verdict, path: str | Path) -> None:
    """Write the page; nobody ever sees half of it."""
    from hermitcrab.store import write_atomic

    write_atomic(Path(path), render(verdict).encode())


def render(verdict: Verdict) -> str:
    import jinja2

    engine = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = engine.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    return template.render(
        plain({"suspect": verdict.suspect, "version": __version__, "results": [view(r) for r in verdict.results]})
    )


def view(r: Result) -> dict[str, Any]:
    facts = [
        (k, "; ".join(f"{a}: {b}" for a, b in v.items()) if isinstance(v, dict) else str(v))
        for k, v in r.details.items()
    ]
    if r.aligned:
        facts.append(
            (
                "aligned neurons that agree",
                ", ".join(f"{mode} {share:.1%}" for mode, share in r.aligned["tried"].items()),
            )
        )
    if r.copies:
        facts.append(("same numbers", f"{len(r.copies['same'])} of {r.copies['matrices']} matrices"))
    facts += [("level", f"{r.decision.alpha:.1g}"), ("cost", f"{r.seconds:.1f} s, {r.bytes_read / 1e6:,.1f} MB read")]
    lists = [("Other explanations", EXPLANATIONS)] if r.verdict == RELATED else []
    lists += [("What this test cannot see", NEVER), ("Assumptions", r.assumptions), ("Not tested", r.not_tested)]
    return {
        "base": r.base, "verdict": r.verdict, "heading": HEADINGS[r.verdict], "sentence": r.sentence, "why": r.decision.why,
        "because": r.because, "facts": facts, "lists": [(h, items) for h, items in lists if items], "picture": picture(r.layer_map),
        "groups": [{"what": g["what"] or g["name"], "units": f"{g['units']:,}", "z": f"{g['z']:.1f}", "p": f"{g['log10_p']:.1f}",
                    "cosine": f"{g['cosine']:.4f}", "status": g["status"]} for g in r.groups],
    }  # fmt: skip


def picture(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Boxes of both models' layers and the lines between them; a line is as opaque as its neurons agree."""
    if not rows:
        return None
    ours = sorted({r["layer"] for r in rows})
    hits = [r for r in rows if r["base_layer"] is not None]
    theirs = list(range(max((r["base_layer"] for r in hits), default=0) + 1))

    def place(i: int, count: int) -> tuple[float, float]:
        step = (WIDTH - LEFT) / max(count, 1)
        return round(LEFT + i * step, 1), round(max(step - 3, 1), 1)

    boxes, lines = [], []
    for i, layer in enumerate(ours):
        x, w = place(i, len(ours))
        there = [r["base_layer"] for r in hits if r["layer"] == layer]
        title = f"layer {layer}" + (f" lies on {there[0]}" if there else ": no match")
        boxes.append({"x": x, "y": 4, "w": w, "hit": bool(there), "title": title})
    for j in theirs:
        x, w = place(j, len(theirs))
        boxes.append(
            {"x": x, "y": 148, "w": w, "hit": any(r["base_layer"] == j for r in hits), "title": f"base layer {j}"}
        )
    for r in hits:
        x, w = place(ours.index(r["layer"]), len(ours))
        u, v = place(r["base_layer"], len(theirs))
        share = 1.0 if r["score"] is None else max(0.15, min(1.0, float(r["score"])))
        said = "" if r["score"] is None else f", {r['score']:.0%} of the neurons agree"
        d = f"M{x + w / 2:.1f} 22 C{x + w / 2:.1f} 85 {u + v / 2:.1f} 85 {u + v / 2:.1f} 148"
        lines.append({"d": d, "opacity": round(share, 2), "title": f"{r['layer']} → {r['base_layer']}{said}"})
    return {"width": WIDTH, "boxes": boxes, "lines": lines, "told": layers(rows)}
