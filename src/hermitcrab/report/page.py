"""One self-contained HTML page of a run: no script, nothing loaded from anywhere, light and dark, readable on a phone.

`page.html` only lays out what `view` hands it, in `layout.html`, with the pieces of `parts.html`; every figure is formatted and
every line of a drawing computed here and in `value`, `charts`, `classes`. Strings of the run's files are escaped by the
template engine and never become a link.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hermitcrab.digest import short
from hermitcrab.report import words
from hermitcrab.report.charts import curve, sizes
from hermitcrab.report.summary import energy, initial_weights, summary, trained, verify
from hermitcrab.report.value import value
from hermitcrab.store import write_atomic


def write_page(facts: Mapping[str, Any], path: str | Path) -> None:
    """Write the page of `gather`'s facts; nobody ever sees half of it."""
    write_atomic(Path(path), render(facts).encode())


def render(facts: Mapping[str, Any]) -> str:
    return fill("page.html", view(facts))


def fill(template: str, shown: Mapping[str, Any]) -> str:
    """A template of this folder with what it shows; a name that it does not get is an error."""
    import jinja2

    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return engine.get_template(template).render(shown)


def view(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows: text, lists of rows, and drawings as numbers."""
    import yaml

    base, added = facts["base"], facts["added"]
    return {
        "title": f"{facts['name']}: what was added",
        "name": facts["name"],
        "under": [x for x in (facts["task"], facts["finished"], facts["license"]) if x],
        "summary": summary(facts) if facts["artifacts"] else [],
        "value": value(facts["value"]) if facts["value"] else None,
        "base": base_rows(base, added) if base else [],
        "notes": base["notes"] if base else [],
        "data": [
            [d["uri"], d["split"], f"{d['rows_kept']:,} of {d['rows_read']:,}", d["license"], short(d["sha256"])]
            for d in facts["data"]
        ],
        "searched": searched(facts["trials"]) if facts["trials"] else None,
        "added": added_rows(added, facts["plan"]) if added else [],
        "compressed": [loss_row(entry) for entry in facts["compressed"]],
        "forms": [form_row(entry) for entry in facts["compressed"]],
        "sizes": sizes(facts["compressed"]),
        "ledger": [
            [e["name"], e["stage"], f"{e['taken']:,}", f"{e['kept']:,}", words.reasons(e["dropped"]), words.kept_but(e)]
            for e in facts["ledger"]
            if not words.untouched(e)
        ],
        "untouched": [f"{e['name']} ({e['kept']:,})" for e in facts["ledger"] if words.untouched(e)],
        "curve": curve(facts["curve"]) if facts["curve"] else None,
        "cost": cost(facts["cost"]) if facts["artifacts"] else None,
        "environment": environment_rows(facts["environment"]) if facts["environment"] else [],
        "commands": commands(facts["signed"]),
        "packaged": facts["license"] is not None,
        "artifacts": list(facts["artifacts"].items()),
        "recipe": yaml.safe_dump(facts["recipe"], sort_keys=False, allow_unicode=True, width=100),
    }


def commands(signed: bool) -> list[str]:
    """What a reader types, in the folder of the page, to check the package."""
    if not signed:
        return []
    return [
        verify("package"),
        "model_signing verify key package --signature package/model.sig --public_key publisher.pub.pem",
    ]


def base_rows(base: Mapping[str, Any], added: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    license = base["license"]
    told = license["used"]
    if license["found"] not in (None, license["used"]):
        told += f" (the files say {license['found']})"
    if base["kind"] == "scratch":
        rows: list[tuple[str, str | None]] = [
            ("base", "nothing: trained from scratch"),
            ("initial weights", initial_weights(added, whole=True)),
            ("architecture", " ".join(x for x in (base["architecture"], f"({base['model_type']})") if x)),
            ("configuration", _listed(base.get("configuration") or {})),
        ]
    else:
        dtypes = ", ".join(f"{name} × {count:,}" for name, count in base["dtypes"].items())
        size = f"{base['parameters']:,} in {base['tensors']:,} tensors" if base["parameters"] else ""
        rows = [
            ("base", base["name"]),
            ("from", base["uri"]),
            ("revision", base["revision"]),
            ("kind", f"{base['kind']}, {base['architecture']} ({base['model_type']})"),
            ("parameters", ": ".join(x for x in (size, dtypes) if x)),
        ]
    rows += [("digest", base["digest"]), ("chat template", base.get("chat_template_digest")), ("license", told)]
    return [(name, text) for name, text in rows if text]


def _listed(settings: Mapping[str, Any]) -> str:
    """Flat settings as words: `learning rate 0.001, schedule cosine`."""
    told = [(k.replace("_", " "), f"{v:g}" if isinstance(v, float) else v) for k, v in settings.items()]
    return ", ".join(f"{k} {v}" for k, v in told if not isinstance(v, dict) and v is not None)


def added_rows(added: Mapping[str, Any], plan: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    settings = dict(added["settings"])
    lora = settings.pop("LoRA", None)
    method = "all weights trained"
    if lora:
        method = f"LoRA, rank {lora['rank']}, alpha {lora['alpha']:g}, dropout {lora['dropout']:g}"
    planned = [f"{k} {plan[k]}" for k in ("precision", "attention", "processes") if plan.get(k)] if plan else []
    planned += ["compiled"] if plan and plan.get("compile") else []
    epochs = f"{added['epochs']:.3g}"
    stopped = "stopped early" if added["stopped"] == "early" else "as planned"
    rows = [
        ("method", method),
        ("trained", f"{trained(added)} on {added['rows']:,} rows"),
        (
            "steps",
            f"{added['steps']:,} ({epochs} epoch{'s' if epochs != '1' else ''}), {stopped}, seed {added['seed']}",
        ),
        (
            "loss",
            f"{words.number(added['loss_first'])} at the first step, {words.number(added['loss_last'])} at the last",
        ),
        ("settings", _listed(settings)),
        ("arithmetic", ", ".join(planned)),
        ("parity", parity_told(added["parity"]) if added["parity"] else ""),
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


def parity_told(parity: Mapping[str, Any]) -> str:
    """How near two forms of one model are, in what was measured of it."""
    told = [
        (parity.get("top1_agreement"), "same likeliest answer at {:.2%} of the positions"),
        (parity.get("max_abs_logit_difference"), "largest logit difference {}"),
        (parity.get("mean_kl"), "mean KL {} nats"),
    ]
    measured = [text.format(known if "%" in text else words.number(known)) for known, text in told if known is not None]
    probes = f" on {len(parity['probes']):,} probes" if parity.get("probes") else ""
    return f"{' and '.join(parity['compared'])}{probes}: {', '.join(measured)}"


def loss_row(entry: Mapping[str, Any]) -> list[str]:
    """What a smaller form lost, beside the model that it was made from."""
    parity = entry["parity"]
    limits = words.signed_interval(parity["low"], parity["high"])
    return [
        f"{entry['format']}\N{NO-BREAK SPACE}{entry['type']}",
        f"{parity['metric']} {words.signed(parity['difference'])} ({limits})",
        words.margin(parity),
        words.turned(parity).replace(" / ", "\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}"),
        words.number(parity.get("mean_kl")),
        words.percent(parity.get("top1_agreement")),
        words.number(parity.get("max_abs_logit_difference")),
    ]


def form_row(entry: Mapping[str, Any]) -> list[str]:
    """How large and how fast a smaller form is."""
    speed = entry.get("speed")
    return [
        f"{entry['format']}\N{NO-BREAK SPACE}{entry['type']}",
        f"{words.size(entry['size'])} of {words.size(entry['size_of_model'])}",
        f"{entry['bits_per_weight']:.2f}",
        words.pace(speed),
        words.size(speed["memory"]) if speed else words.DASH,
    ]


def cost(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "total": words.seconds(found["cpu_seconds"]),
        "energy": energy(found),
        "energy_method": found["energy_method"] if found["joules"] is not None else None,
        "memory": words.size(found["memory"]) if found["memory"] else None,
        "stages": [
            [
                s["stage"] + (" (reused)" if s["reused"] else ""),
                words.seconds(s["cpu_seconds"]),
                words.seconds(s["seconds"]),
                words.size(s["memory"]),
                words.count(s["sessions"]),
            ]
            for s in found["stages"]
        ],
        "answers": [(model, words.seconds(s)) for model, s in found["cpu_seconds_per_answer"].items()],
    }


def environment_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("machine", f"{found['processor']}, {found['cpu_count']} processors"),
        ("system", f"{found['platform']}, Python {found['python']}"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in found["packages"].items())),
    ]
