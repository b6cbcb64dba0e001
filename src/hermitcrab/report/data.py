"""The page of a prepared data set: counts, lengths, languages, licenses, what was dropped and why. Row ids, no text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hermitcrab.digest import short
from hermitcrab.report import words
from hermitcrab.report.page import fill
from hermitcrab.store import write_atomic

SHOWN = 200  # row ids of one reason


def write_data_page(facts: Mapping[str, Any], path: str | Path) -> None:
    """Write the page of `data.card.data_facts`; nobody ever sees half of it."""
    write_atomic(Path(path), render_data(facts).encode())


def render_data(facts: Mapping[str, Any]) -> str:
    rows = sum(split["rows"] for split in facts["splits"].values())
    languages = Counter[str]()
    for split in facts["splits"].values():
        languages.update(split["languages"])
    total = languages.total()
    return fill(
        "data.html",
        {
            "title": f"{facts['name']}: data",
            "name": facts["name"],
            "under": [facts["format"], f"{rows:,} rows", " and ".join(facts["licenses"])],
            "splits": [
                [split, f"{found['rows']:,}", f"{found['characters']:,}", *(f"{x:,}" for x in found["lengths"] or [])]
                if found["lengths"]
                else [split, f"{found['rows']:,}", *["–"] * 6]
                for split, found in facts["splits"].items()
            ],
            "languages": [[name, f"{count:,}", f"{count / total:.1%}"] for name, count in languages.most_common(20)],
            "sources": [
                [s["uri"], s["split"], f"{s['rows_kept']:,} of {s['rows_read']:,}", s["license"], short(s["sha256"])]
                for s in facts["sources"]
            ],
            "obligations": [(name, ", ".join(ids)) for name, ids in facts["obligations"].items()],
            "ledger": [
                [e["name"], f"{e['taken']:,}", f"{e['kept']:,}", words.reasons(e["dropped"]) or "–", words.reasons(e["changed"]) or "–"]
                for e in facts["ledger"]
            ],
            "filters": [
                [entry["name"], what, f"{count:,}"]
                for entry in facts["filters"]
                for what, count in {**entry["changed"], **entry["found"]}.items()
            ],
            "dropped": [
                (split, f"{len(ids):,} rows, {reason}", ids[:SHOWN], f"{len(ids) - SHOWN:,}" if len(ids) > SHOWN else None)
                for split, reasons in facts["dropped"].items()
                for reason, ids in reasons.items()
            ],
        },
    )  # fmt: skip
