"""What a notebook shows of a run, a comparison or a verification: a piece of HTML that needs nothing else.

No script and nothing loaded from anywhere. Names and texts are whatever somebody wrote into a file: the template engine
escapes every one, and `words.plain` takes the characters that turn the order of letters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.report import summary, words
from hermitcrab.report.gather import value_of
from hermitcrab.report.page import fill, searched
from hermitcrab.report.terminal import about_comparison, near
from hermitcrab.report.value import TONES, value
from hermitcrab.store import write_atomic

if TYPE_CHECKING:
    from hermitcrab.lineage.verify import Verification


def run_cell(facts: Mapping[str, Any]) -> str:
    """Of `gather`'s facts: the verdict, every model, the settings searched, what it is built on, and where it lies."""
    found, base = facts["value"], facts["base"]
    folder = near(Path(facts["folder"]))
    rows = [
        ("built on", summary.built_on(base, facts["added"])),
        ("digest", base["digest"]),
        ("added", summary.added(facts["added"], facts["data"])),
        ("cost", f"{summary.work(facts['cost'])}; energy {summary.energy(facts['cost'])}"),
        ("report", folder / "report.html"),
        ("package", folder / "package"),
        *([("profile", near(Path(facts["profile"]["folder"])))] if facts["profile"] else []),
    ]
    tables = [models_table(found)]
    if facts["trials"]:
        tables.append({**searched(facts["trials"]), "title": "Settings searched on validation rows"})
    return _cell(
        title=facts["name"],
        under=" · ".join(str(x) for x in (facts["task"], facts["finished"], facts["license"]) if x),
        verdict=found["verdict"], sentence=_rest(found), tables=tables, facts=rows,
    )  # fmt: skip


def comparison_cell(told: Mapping[str, Any]) -> str:
    """Of two models on the same rows."""
    return _cell(
        title=_beside(told), under=f"{told['on']['rows']:,} rows of {told['on']['uri']}",
        verdict=told["verdict"], sentence=_rest(told),
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


def models_table(found: Mapping[str, Any]) -> dict[str, Any]:
    """Every model with every metric; the deciding one first, with its interval and the difference."""
    deciding = found["metric"] or next(iter(found["metrics"]), None)
    others = [name for name in found["metrics"] if name != deciding]
    pairs = {pair["b"]: pair for pair in found["pairs"] if pair["metric"] == deciding}
    rows = []
    for model in found["models"]:
        figures, pair = model["figures"], pairs.get(model["model"])
        if deciding not in figures:
            continue
        first = figures[deciding]
        rows.append([
            model["model"], words.number(first["value"]), words.narrow_interval(first["low"], first["high"]),
            f"{words.signed(pair['difference'])} ({words.signed_interval(pair['low'], pair['high'])})" if pair else "",
            *(words.number(figures[name]["value"]) if name in figures else words.DASH for name in others),
        ])  # fmt: skip
    head = ["model", str(deciding), f"{found['confidence']:.0%} interval", "derived minus this", *others]
    return {"title": "", "head": head, "rows": rows, "figures": [1, *range(4, len(head))]}


def write_comparison(told: Mapping[str, Any], path: Path) -> None:
    """The comparison as a page of its own, laid out as that of a run; nobody ever sees half of it."""
    told = words.plain(told)
    shown = {
        "title": _beside(told), "under": f"{told['on']['rows']:,} rows of {told['on']['uri']}", "sentence": told["sentence"],
        "value": value(value_of(told, told["metrics"])), "about": about_comparison(told),
    }  # fmt: skip
    write_atomic(path, fill("comparison.html", shown).encode())


def _beside(told: Mapping[str, Any]) -> str:
    return " beside ".join(told["models"][side]["name"] for side in ("derived", "base"))


def _rest(value: Mapping[str, Any]) -> str:
    """The sentence without the verdict that stands above it."""
    rest = summary.split_verdict(value)[1]
    return rest[:1].upper() + rest[1:]


def _cell(*, verdict: str, tone: str | None = None, facts: Sequence[tuple[str, Any]], **shown: Any) -> str:
    told = words.plain({**shown, "verdict": verdict, "facts": [[name, str(text)] for name, text in facts if text]})
    return fill("cell.html", {**told, "tone": tone or TONES[verdict]})
