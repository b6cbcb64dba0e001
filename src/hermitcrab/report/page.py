"""One self-contained HTML page of a run: no script, nothing loaded from anywhere, light and dark, readable on a phone.

`page.html` only lays out what `view` hands it; every figure is formatted and every line of a drawing computed here.
Strings of the run's files are escaped by the template engine and never become a link.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hermitcrab.digest import short
from hermitcrab.report import words
from hermitcrab.store import write_atomic

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 200, 44, 22  # of the loss curve
POINTS = 240  # of a curve; more steps are averaged
FOREST = 200  # width of the drawing of intervals
TONES = {"better": "good", "worse": "bad", "tied": "even", "no evidence of added value": "even", "not compared": "even"}


def write_page(facts: Mapping[str, Any], path: str | Path) -> None:
    """Write the page of `gather`'s facts; nobody ever sees half of it."""
    write_atomic(Path(path), render(facts).encode())


def render(facts: Mapping[str, Any]) -> str:
    import jinja2

    engine = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = engine.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    return template.render(view(facts))


def view(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows: text, lists of rows, and drawings as numbers."""
    import yaml

    return {
        "name": facts["name"],
        "task": facts["task"],
        "finished": facts["finished"],
        "value": value(facts["value"]) if facts["value"] else None,
        "base": base_rows(facts["base"]) if facts["base"] else [],
        "notes": facts["base"]["notes"] if facts["base"] else [],
        "data": [
            [d["uri"], d["split"], f"{d['rows_kept']:,} of {d['rows_read']:,}", d["license"], short(d["sha256"])]
            for d in facts["data"]
        ],
        "license": facts["license"],
        "added": added_rows(facts["added"], facts["plan"]) if facts["added"] else [],
        "searched": searched(facts["trials"]) if facts["trials"] else None,
        "compressed": [compressed_row(entry) for entry in facts["compressed"]],
        "ledger": [
            [
                e["name"],
                e["stage"],
                f"{e['taken']:,}",
                f"{e['kept']:,}",
                words.reasons(e["dropped"]),
                words.kept_but(e),
            ]
            for e in facts["ledger"]
        ],
        "curve": curve(facts["curve"]) if facts["curve"] else None,
        "cost": cost(facts["cost"]),
        "environment": environment_rows(facts["environment"]) if facts["environment"] else [],
        "commands": commands(facts["signed"]),
        "signed": facts["signed"],
        "artifacts": list(facts["artifacts"].items()),
        "recipe": yaml.safe_dump(facts["recipe"], sort_keys=False, allow_unicode=True, width=100),
    }


def commands(signed: bool) -> list[str]:
    """What a reader types, in the folder of the page, to check the package."""
    if not signed:
        return []
    return [
        "crab verify package --key publisher.pub.pem",
        "model_signing verify key package --signature package/model.sig --public_key publisher.pub.pem",
    ]


def base_rows(base: Mapping[str, Any]) -> list[tuple[str, str]]:
    license = base["license"]
    told = f"{license['used']}" + (
        f" (the files say {license['found']})" if license["found"] not in (None, license["used"]) else ""
    )
    dtypes = ", ".join(f"{name} × {count:,}" for name, count in base["dtypes"].items())
    rows = [
        ("base", base["name"]),
        ("from", base["uri"]),
        ("revision", base["revision"]),
        ("kind", f"{base['kind']}, {base['architecture']} ({base['model_type']})"),
        *(
            [
                (
                    "parameters",
                    f"{base['parameters']:,} in {base['tensors']:,} tensors" + (f": {dtypes}" if dtypes else ""),
                )
            ]
            if base["parameters"]
            else []  # from scratch: what was trained says how many
        ),
        ("digest", base["digest"]),
        ("chat template", base["chat_template_digest"]),
        ("license", told),
    ]
    return [(name, text) for name, text in rows if text]


def added_rows(added: Mapping[str, Any], plan: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    settings = dict(added["settings"])
    lora, parity = settings.pop("LoRA", None), added["parity"]
    method = "all weights trained"
    if lora:
        method = f"LoRA, rank {lora['rank']}, alpha {lora['alpha']:g}, dropout {lora['dropout']:g}"
    told = [f"{k.replace('_', ' ')} {f'{v:g}' if isinstance(v, float) else v}" for k, v in settings.items()]
    planned = [f"{k} {plan[k]}" for k in ("precision", "attention", "processes") if k in plan] if plan else []
    planned += ["compiled"] if plan and plan.get("compile") else []
    stopped = "stopped early" if added["stopped"] == "early" else "as planned"
    rows = [
        ("method", method),
        (
            "trained",
            f"{added['trainable_parameters']:,} of {added['parameters']:,} parameters on {added['rows']:,} rows",
        ),
        ("steps", f"{added['steps']:,} ({added['epochs']:.3g} epochs), {stopped}, seed {added['seed']}"),
        (
            "loss",
            f"{words.number(added['loss_first'])} at the first step, {words.number(added['loss_last'])} at the last",
        ),
        ("settings", ", ".join(told)),
        ("arithmetic", ", ".join(planned)),
        (
            "parity",
            f"{' and '.join(parity['compared'])} on {len(parity['probes']):,} probes: same likeliest token at "
            f"{parity['top1_agreement']:.2%} of the positions, largest logit difference "
            f"{words.number(parity['max_abs_logit_difference'])}, mean KL {words.number(parity['mean_kl'])} nats",
        ),
        ("initialization", added.get("init_commitment")),
    ]
    return [(name, text) for name, text in rows if text]


def searched(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that were tried, their figures on validation rows, and what that figure is."""
    paths, first = list(trials[0]["settings"]), trials[0]
    return {
        "head": [*paths, first["name"], "interval", ""],
        "figures": list(range(len(paths) + 1)),
        "rows": [
            [
                *(str(trial["settings"][path]) for path in paths),
                words.number(trial["value"], 4),
                words.narrow_interval(trial["low"], trial["high"]) if trial["low"] is not None else "",
                words.fate(trial),
            ]
            for trial in trials
        ],
        "said": f"{len(trials):,} settings were trained and compared by {first['name']} ({first['best']} is best) on "
        f"{first['n']:,} validation rows. The test rows were opened once, for the chosen one; its figure here is the best of "
        "several and flatters it.",
    }


def compressed_row(entry: Mapping[str, Any]) -> list[str]:
    """A compressed file beside the model that it was made from."""
    parity = entry["parity"]
    limits = words.signed_interval(parity["low"], parity["high"])
    return [
        f"{entry['format']} {entry['type']}",
        f"{words.size(entry['size'])} of {words.size(entry['size_of_model'])}",
        f"{entry['bits_per_weight']:.2f}",
        f"{parity['metric']} {words.signed(parity['difference'])} ({limits})",
        words.turned(parity),
        words.number(parity["mean_kl"]),
        f"{parity['top1_agreement']:.1%}",
    ]


def value(found: Mapping[str, Any]) -> dict[str, Any]:
    """Verdict, sentence, differences with their intervals drawn, and the table of models and metrics."""
    name = found["metric"]
    deciding = [p for p in found["pairs"] if p["metric"] == name]
    base = deciding[0]["b"] if deciding else None
    limits = [x for p in deciding for x in (p["low"], p["high"], p["difference"]) if x is not None]
    low, high = min([0.0, *limits]), max([0.0, *limits])
    scale = (FOREST - 16) / ((high - low) or 1.0)

    def place(x: float) -> float:
        return round(8 + (x - low) * scale, 1)

    return {
        "verdict": found["verdict"],
        "tone": TONES[found["verdict"]],
        "against": f"{base} under the same prompt" if base else "",
        "second": second_verdict(found),
        "sentence": without_verdict(found["sentence"], found["verdict"]),
        "metric": name,
        "confidence": f"{found['confidence']:.0%}",
        "forest": [
            {
                "other": p["b"],
                "difference": words.signed(p["difference"]),
                "interval": words.signed_interval(p["low"], p["high"]),
                "p": words.p_value(p["p_holm"]),
                "turned": f"+{p['gained']:,} / −{p['lost']:,}",
                "tone": TONES[p["verdict"]],
                "line": None if p["low"] is None or p["high"] is None else (place(p["low"]), place(p["high"])),
                "dot": place(p["difference"]),
            }
            for p in deciding
        ],
        "zero": place(0.0),
        "forest_width": FOREST,
        "metrics": found["metrics"],
        "models": [
            {
                "name": row["model"],
                "cells": [_cell(row["figures"].get(metric)) for metric in found["metrics"]],
            }
            for row in found["models"]
        ],
        "others": [
            [
                p["b"],
                p["metric"],
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
        "small": small_print(found),
    }


def second_verdict(found: Mapping[str, Any]) -> dict[str, str] | None:
    """The verdict against the strongest base variant, where that is not the base as it came."""
    strongest = found.get("strongest")
    if not strongest or not found["pairs"] or strongest["model"] == found["pairs"][0]["b"]:
        return None
    return {"verdict": strongest["verdict"], "tone": TONES[strongest["verdict"]], "model": strongest["model"]}


def without_verdict(sentence: str, verdict: str) -> str:
    """The sentence without the verdict that it opens with, which stands above it."""
    head, colon, rest = sentence.partition(": ")
    return f"{rest[0].upper()}{rest[1:]}" if colon and rest and head.lower() == verdict.lower() else sentence


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
            ("contamination", f"{seen['exact']:,} of {seen['n']:,} test rows stand in the training rows, "
             f"{seen['ngram']:,} share a run of {seen['words']} words")
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
        digests = {f["prompt_digest"] for f in row["figures"].values() if f["prompt_digest"]}
        for digest in digests:
            prompts.setdefault(short(digest), []).append(row["model"])
    rows += (
        [("prompts", "; ".join(f"{digest} ({', '.join(models)})" for digest, models in prompts.items()))]
        if prompts
        else []
    )
    rows += [
        ("not compared", f"{p['metric']} of {p['a']} and {p['b']}: {p['reason']}")
        for p in found.get("not_compared") or []
    ]
    return rows


def curve(found: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any] | None:
    """Polyline points of training and validation loss in a box of WIDTH x HEIGHT, and its ticks."""
    train, every = _thinned(found["train"])
    validation = found["validation"]
    points = [*train, *validation]
    if len(train) < 2:
        return None
    last = max(step for step, _ in points)
    first = min(step for step, _ in points)
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    room = (high - low) * 0.06 or 0.5
    low, high = low - room, high + room

    def place(step: float, loss: float) -> tuple[float, float]:
        x = LEFT + (step - first) / max(last - first, 1) * (WIDTH - LEFT - 8)
        return round(x, 1), round(8 + (high - loss) / (high - low) * (HEIGHT - BOTTOM - 8), 1)

    ticks = [low + room + (high - low - 2 * room) * i / 2 for i in range(3)]
    return {
        "train": " ".join(f"{x},{y}" for x, y in (place(*p) for p in train)),
        "validation": [place(*p) for p in validation],
        "validation_line": " ".join(f"{x},{y}" for x, y in (place(*p) for p in validation)),
        "ticks": [(place(first, tick)[1], f"{tick:.2f}") for tick in ticks],
        "first": f"{first:,.0f}", "last": f"{last:,.0f}",
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - 8, "floor": HEIGHT - BOTTOM,
        "every": every,
    }  # fmt: skip


def _thinned(points: Sequence[Sequence[float]]) -> tuple[list[tuple[float, float]], int]:
    """At most POINTS points, each the mean of `every` neighbors."""
    every = -(-len(points) // POINTS)
    chunks = [points[i : i + every] for i in range(0, len(points), every)] if every else []
    return [(c[-1][0], sum(loss for _, loss in c) / len(c)) for c in chunks], every


def cost(found: Mapping[str, Any]) -> dict[str, Any]:
    energy = f"{found['joules'] / 3600:,.2f} Wh" if found["joules"] is not None else "unknown"
    return {
        "total": words.seconds(found["cpu_seconds"]),
        "energy": energy,
        "energy_method": (found["energy_method"] or "").removeprefix("unknown: "),
        "memory": words.size(found["memory"]) if found["memory"] else None,
        "stages": [
            [
                s["stage"] + (" (reused)" if s["reused"] else ""),
                words.seconds(s["cpu_seconds"]),
                words.seconds(s["seconds"]),
                words.count(s["sessions"]),
            ]
            for s in found["stages"]
        ],
        "answers": [(model, words.seconds(s)) for model, s in found["cpu_seconds_per_answer"].items()],
    }  # fmt: skip


def environment_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("machine", f"{found['processor']}, {found['cpu_count']} processors"),
        ("system", f"{found['platform']}, Python {found['python']}"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in found["packages"].items())),
    ]
