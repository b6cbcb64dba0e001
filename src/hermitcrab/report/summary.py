"""A run in a few lines of plain text, to be pasted into a message. The page and the terminal say the same words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hermitcrab.digest import short
from hermitcrab.report import words

FIGURES = 3  # of the derived model; all of them stand below


def summary(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines of a name and a text: what it is, the verdict, what it was built on, what was added, figures, cost, how to verify."""
    value = facts["value"]
    named = [
        ("Built on", built_on(facts["base"], facts["added"]) if facts["base"] else ""),
        ("Added", added(facts["added"], facts["data"]) if facts["added"] else ""),
        ("Searched", searched(facts["trials"])),
        ("Figures", figures(value) if value else ""),
        ("Compressed", "; ".join(compressed(entry) for entry in facts["compressed"])),
        ("Cost", cost(facts["cost"]) if facts["artifacts"] else ""),
        ("Verify", verify("package") if facts["signed"] and facts["license"] else ""),
    ]
    head = ", ".join(x for x in (facts["task"], facts["license"]) if x)
    opening = [(facts["name"], f"({head})"), *([split_verdict(value)] if value else [])]
    return opening + [(f"{name}:", text) for name, text in named if text]


def split_verdict(value: Mapping[str, Any]) -> tuple[str, str]:
    """The sentence in two: the verdict that it opens with, where it does, and the rest."""
    head, colon, rest = value["sentence"].partition(": ")
    return (f"{head}:", rest) if colon and head.lower() == value["verdict"].lower() else ("", value["sentence"])


def built_on(base: Mapping[str, Any], added: Mapping[str, Any] | None) -> str:
    """The base with its license and digest; of a model from scratch, what vouches for its beginning."""
    if base["kind"] == "scratch":
        return "nothing; " + initial_weights(added)
    parameters = f"{base['parameters']:,} parameters, " if base["parameters"] else ""
    return f"{base['name']} ({parameters}{base['license']['used']}), {base['uri']}, sha256 {short(base['digest'])}"


def initial_weights(added: Mapping[str, Any] | None, whole: bool = False) -> str:
    commitment = (added or {}).get("init_commitment")
    told = "initial weights drawn from a committed seed" if not whole else "drawn from a committed seed"
    return told + (f" ({commitment if whole else f'sha256 {short(commitment)}'})" if commitment else "")


def added(found: Mapping[str, Any], data: list[Mapping[str, Any]]) -> str:
    lora = found["settings"].get("LoRA")
    how = f"LoRA rank {lora['rank']}, " if lora else ""
    licenses = ", ".join(dict.fromkeys(d["license"] for d in data if d["split"] == "train"))
    return (
        f"{how}{trained(found)} trained on {found['rows']:,} rows{f' ({licenses})' if licenses else ''}, "
        f"{found['steps']:,} steps"
    )


def searched(trials: Sequence[Mapping[str, Any]]) -> str:
    """How many settings were tried, by what and on what, and which was chosen; empty where nothing was searched."""
    if not trials:
        return ""
    first, best = trials[0], next(trial for trial in trials if trial["chosen"])
    settings = ", ".join(f"{path} {value}" for path, value in best["settings"].items())
    return f"{len(trials):,} settings by {first['name']} on {first['n']:,} validation rows; chosen {settings}"


def trained(found: Mapping[str, Any]) -> str:
    learnt, total = found["trainable_parameters"], found["parameters"]
    return f"all {total:,} parameters" if learnt == total else f"{learnt:,} of {total:,} parameters"


def figures(value: Mapping[str, Any]) -> str:
    """The first figures of the model that was made, each with its interval."""
    if not value["models"]:
        return ""
    first = value["models"][0]
    told = [
        f"{name} {words.number(f['value'])} ({words.interval(f['low'], f['high'])})"
        for name, f in list(first["figures"].items())[:FIGURES]
    ]
    rows = f"{value['n']:,} {value['split']} rows" if value["split"] else f"{value['n']:,} rows"
    return f"{', '.join(told)}; {value['confidence']:.0%} intervals, {rows}"


def compressed(entry: Mapping[str, Any]) -> str:
    parity = entry["parity"]
    limits = words.signed_interval(parity["low"], parity["high"])
    return (
        f"{entry['format']} {entry['type']} {words.size(entry['size'])}, "
        f"{parity['metric']} {words.signed(parity['difference'])} ({limits})"
    )


def cost(found: Mapping[str, Any]) -> str:
    return f"{work(found)}; energy {energy(found).partition(':')[0]}"


def work(found: Mapping[str, Any]) -> str:
    per = found["cpu_seconds_per_answer"].get("derived")
    answer = f", {words.seconds(per)} an answer" if per is not None else ""
    return f"{words.seconds(found['cpu_seconds'])} of processor time{answer}"


def energy(found: Mapping[str, Any]) -> str:
    """The energy of a run; where it was not measured, `unknown: ` and why."""
    if found["joules"] is not None:
        return f"{'about ' if found['energy_estimated'] else ''}{found['joules'] / 3600:,.2f} Wh"
    return found["energy_method"] or "unknown"


def verify(package: str, key: str = "publisher.pub.pem") -> str:
    return f"crab verify {package} --key {key}"
