"""A comparison as the page shows it: verdicts, differences with their intervals, every model's figures, the small print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hermitcrab.digest import short
from hermitcrab.evaluate.metrics import lower_is_better
from hermitcrab.report import words
from hermitcrab.report.charts import forest
from hermitcrab.report.classes import classes

TONES = {"better": "good", "worse": "bad", "tied": "even", "no evidence of added value": "even", "not compared": "even"}


def value(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the section of a comparison shows; `found` is `value` of `gather`'s facts."""
    name, against = found["metric"], found["against"]
    deciding = [p for p in found["pairs"] if p["metric"] == name]
    drawn = forest(deciding, against)
    ours = deciding[0]["a"] if deciding else "derived"
    return {
        "verdict": found["verdict"],
        "tone": TONES[found["verdict"]],
        "against": f"{against} {alike(found)}" if against else "",
        "other": against or "the base",
        "second": second_verdict(found),
        "ours": ours,
        "metric": marked(name) if name else None,
        "confidence": f"{found['confidence']:.0%}",
        "forest": [
            {
                "other": p["b"],
                "difference": words.signed(p["difference"]),
                "interval": words.signed_interval(p["low"], p["high"]),
                "p": words.p_value(p["p_holm"]),
                "turned": f"+{p['gained']:,} / −{p['lost']:,}",
                "tone": TONES[p["verdict"]],
                **row,
            }
            for p, row in zip(deciding, drawn["rows"], strict=True)
        ],
        "zero": drawn["zero"],
        "ticks": drawn["ticks"],
        "caution": any(misses_zero(p) and TONES[p["verdict"]] == "even" for p in deciding),
        "unseen": unseen(found),
        "alpha": f"{1 - found['confidence']:.2g}",
        "metrics": [marked(metric) for metric in found["metrics"]],
        "lower": any(lower_is_better(metric) for metric in found["metrics"]),
        "models": [
            {"name": row["model"], "cells": [_cell(row["figures"].get(metric)) for metric in found["metrics"]]}
            for row in found["models"]
        ],
        "others": [
            [
                p["b"],
                marked(p["metric"]),
                words.signed(p["difference"]),
                words.signed_interval(p["low"], p["high"]),
                words.p_value(p["p_holm"]),
            ]
            for p in found["pairs"]
            if p["metric"] != name
        ],
        "gained": found["gained"],
        "lost": found["lost"],
        "texts": found["texts"],
        "classes": classes(found["classes"], ours),
        "small": small_print(found),
    }


def marked(metric: str) -> str:
    return f"{metric} ↓" if lower_is_better(metric) else metric


def unseen(found: Mapping[str, Any]) -> str | None:
    """Where nothing was shown: the difference that so few rows could have shown."""
    effect = found["smallest_effect"]["difference"]
    return words.number(effect) if effect is not None and TONES[found["verdict"]] == "even" else None


def misses_zero(pair: Mapping[str, Any]) -> bool:
    return None not in (pair["low"], pair["high"]) and not pair["low"] <= 0 <= pair["high"]


def alike(found: Mapping[str, Any]) -> str:
    """What both models were given alike, in the words of the sentence below."""
    same = "under the same prompt"
    return same if same in found["sentence"] else "on the same rows"


def second_verdict(found: Mapping[str, Any]) -> dict[str, str] | None:
    """The verdict against the strongest base variant, where that is not the one that the first verdict is about."""
    strongest = found.get("strongest")
    if not strongest or strongest["model"] == found["against"]:
        return None
    return {"verdict": strongest["verdict"], "tone": TONES[strongest["verdict"]], "model": strongest["model"]}


def _cell(figure: Mapping[str, Any] | None) -> tuple[str, str]:
    if figure is None:
        return words.DASH, ""
    return words.number(figure["value"]), words.narrow_interval(figure["low"], figure["high"])


def small_print(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How it was measured, and what would make it worth less."""
    rows = [("rows", f"{found['n']:,}" + (f" of the {found['split']} split" if found["split"] else ""))]
    method = found.get("method") or {}
    rows += [
        (name, method[key])
        for key, name in (("interval", "intervals"), ("p_value", "p-values"), ("adjusted", "adjusted by"))
        if key in method
    ]
    effect = found["smallest_effect"]
    shown = words.number(effect["difference"]) if effect["difference"] is not None else "not told"
    rows.append(("smallest effect", f"{shown}: {effect['assumes']}"))
    if seen := found["contamination"]:
        rows.append(
            ("contamination", f"{seen['exact']:,} of {seen['n']:,} test rows stand in the training rows"
             + ("" if seen["ngram"] is None else f", {seen['ngram']:,} share a run of {seen['words']} words"))
        )  # fmt: skip
    if noise := found["noise_floor"]:
        rows.append(
            ("noise floor", f"{noise['flips']:,} of {noise['n']:,} answers change with the batch size "
             f"(largest score difference {words.number(noise['max_score_difference'])})")
        )  # fmt: skip
    versions = {name: f["version"] for row in found["models"] for name, f in row["figures"].items()}
    rows.append(("metric versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    prompts: dict[str, list[str]] = {}
    for row in found["models"]:
        for digest in {f["prompt_digest"] for f in row["figures"].values() if f["prompt_digest"]}:
            prompts.setdefault(short(digest), []).append(row["model"])
    if prompts:
        rows.append(("prompts", "; ".join(f"{digest} ({', '.join(models)})" for digest, models in prompts.items())))
    rows += [
        ("not compared", f"{p['metric']} of {p['a']} and {p['b']}: {p['reason']}")
        for p in found.get("not_compared") or []
    ]
    return rows
