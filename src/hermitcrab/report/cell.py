"""What a notebook shows of a run, a comparison or a verification: a piece of HTML that needs nothing else.

No script and nothing loaded from anywhere. Names and texts are whatever somebody wrote into a file: the template engine
escapes every one, and `words.plain` takes the characters that turn the order of letters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.report import words
from hermitcrab.report.gather import value_of
from hermitcrab.report.page import TONES, searched, without_verdict
from hermitcrab.report.terminal import about_comparison, added_words, cost_words, near
from hermitcrab.store import write_atomic

if TYPE_CHECKING:
    from hermitcrab.lineage.verify import Verification

PAGE = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    '<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'\"><title>{}</title></head>\n<body>\n{}</body></html>\n"
)


def run_cell(facts: Mapping[str, Any]) -> str:
    """Of `gather`'s facts: the verdict, every model, the settings searched, what it is built on, and where it lies."""
    value, base = facts["value"], facts["base"]
    folder = near(Path(facts["folder"]))
    rows = [
        ("built on", f"{base['name']} ({words.count(base['parameters'])} parameters, {base['license']['used']})"),
        ("from", base["uri"]),
        ("digest", base["digest"]),
        ("added", added_words(facts["added"])),
        ("cost", cost_words(facts["cost"])),
        ("report", folder / "report.html"),
        ("package", folder / "package"),
        *([("profile", near(Path(facts["profile"]["folder"])))] if facts["profile"] else []),
    ]
    tables = [models_table(value)]
    if facts["trials"]:
        found = searched(facts["trials"])
        tables.append({**found, "title": "Settings searched on validation rows"})
    return _cell(
        title=facts["name"],
        under=" · ".join(str(x) for x in (facts["task"], facts["finished"], facts["license"]) if x),
        verdict=value["verdict"], sentence=without_verdict(value["sentence"], value["verdict"]), tables=tables, facts=rows,
    )  # fmt: skip


def comparison_cell(told: Mapping[str, Any]) -> str:
    """Of two models on the same rows."""
    names = [told["models"][side]["name"] for side in ("derived", "base")]
    return _cell(
        title=f"{names[0]} beside {names[1]}", under=f"{told['on']['rows']:,} rows of {told['on']['uri']}",
        verdict=told["verdict"], sentence=without_verdict(told["sentence"], told["verdict"]),
        tables=[models_table(value_of(told, told["metrics"]))], facts=about_comparison(told),
    )  # fmt: skip


def verification_cell(name: str, found: Verification) -> str:
    """Of a package: the failures where there are any, else what was checked."""
    shown = found.failures or found.checks
    rows = [["ok" if check.ok else "FAIL", check.file or "", check.message] for check in shown]
    table = {"title": "", "head": ["", "file", "what"], "rows": rows, "figures": []}
    return _cell(
        title=name, under="", verdict="verified" if found.ok else "not verified", sentence=found.summary, tables=[table],
        facts=[], tone="good" if found.ok else "bad",
    )  # fmt: skip


def models_table(value: Mapping[str, Any]) -> dict[str, Any]:
    """Every model with every metric; the deciding one first, with its interval and the difference."""
    deciding = value["metric"] or next(iter(value["metrics"]), None)
    others = [name for name in value["metrics"] if name != deciding]
    pairs = {pair["b"]: pair for pair in value["pairs"] if pair["metric"] == deciding}
    rows = []
    for model in value["models"]:
        figures, pair = model["figures"], pairs.get(model["model"])
        if deciding not in figures:
            continue
        first = figures[deciding]
        rows.append([
            model["model"], words.number(first["value"]), words.narrow_interval(first["low"], first["high"]),
            f"{words.signed(pair['difference'])} ({words.signed_interval(pair['low'], pair['high'])})" if pair else "",
            *(words.number(figures[name]["value"]) if name in figures else words.DASH for name in others),
        ])  # fmt: skip
    head = ["model", str(deciding), f"{value['confidence']:.0%} interval", "derived minus this", *others]
    return {"title": "", "head": head, "rows": rows, "figures": [1, *range(4, len(head))]}


def write_comparison(told: Mapping[str, Any], path: Path) -> None:
    """The comparison as a page of its own; nobody ever sees half of it."""
    write_atomic(path, PAGE.format("two models on the same rows", comparison_cell(told)).encode())


def _cell(*, verdict: str, tone: str | None = None, facts: Sequence[tuple[str, Any]], **shown: Any) -> str:
    import jinja2

    engine = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = engine.from_string((Path(__file__).parent / "cell.html").read_text(encoding="utf-8"))
    told = words.plain({**shown, "verdict": verdict, "facts": [[name, str(text)] for name, text in facts if text]})
    return template.render(**told, tone=tone or TONES[verdict])
