"""README.md: the model card. Front matter that the Hugging Face hub reads, and a short body for people.

A function of what the package records (`hermitcrab.json`, metrics, comparison, ledgers): no times, no host, so the
same run gives the same bytes. Fields as in the documentation of the Hugging Face hub, "Model Cards".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from hermitcrab.digest import short
from hermitcrab.errors import HermitcrabError
from hermitcrab.lineage.licenses import hub_license

LARGEST_FRONT = 1 << 16  # characters of a front matter


def hub_model(base: dict[str, Any]) -> str | None:
    """What `base_model` says: the hub id of a hub base, else its declared name; None where nothing was built on."""
    if base["kind"] == "scratch":
        return None
    return _hub_id(base["uri"]) or base["name"]


def hub_dataset(uri: str) -> str:
    """What `datasets` says of a source: the hub id of a hub data set, else the name of the distribution or file."""
    if found := _hub_id(uri):
        return found
    if distribution := re.match(r"(?:pypi|deb):([^=/]+)", uri):
        return distribution[1]
    return PurePosixPath(re.sub(r"[?#].*", "", uri)).name.split(".")[0] or "data"


def _hub_id(uri: str) -> str | None:
    found = re.match(r"hf:(?:datasets/)?([^/@]+/[^/@]+)", uri)
    return found[1] if found else None


def identity(record: dict[str, Any]) -> dict[str, Any]:
    """The part of the front matter that says what the model is made of: verification compares it with the claims."""
    license_id, name, link = hub_license(record["license"])
    front: dict[str, Any] = {"license": license_id}
    front |= {"license_name": name} if name else {}
    front |= {"license_link": link} if link else {}
    if base_model := hub_model(record["base"]):
        front |= {"base_model": base_model, "base_model_relation": "finetune"}
    return front | {"datasets": sorted({hub_dataset(source["uri"]) for source in record["data"]})}


def model_card(
    record: dict[str, Any],
    metrics: Sequence[dict[str, Any]],
    comparison: dict[str, Any],
    ledgers: Sequence[dict[str, Any]],
    training: dict[str, Any],
) -> str:
    """The whole README.md."""
    front = identity(record) | {
        "pipeline_tag": record["task"],
        "library_name": "transformers",
        "tags": ["hermitcrab", *sorted({entry["format"] for entry in record["compressed"]})],
        "metrics": list(dict.fromkeys(m["name"] for m in metrics)),
    }
    if results := _model_index(record, metrics):
        front["model-index"] = [{"name": record["name"], "results": results}]
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=110)
    parts = [
        f"# {plain(record['name'])}",
        _opening(record, training),
        "## Built on\n\n" + _built_on(record),
        "## Added\n\n" + _added(record, training),
        *(["## Settings searched\n\n" + _searched(record["trials"])] if record["trials"] else []),
        "## Did it add anything?\n\n" + _value_added(metrics, comparison),
        *(["## Compressed\n\n" + _compressed(record["compressed"])] if record["compressed"] else []),
        "## Ledger\n\n" + _ledger(ledgers),
        "## License\n\n" + _license(record),
        "## Verify\n\n" + VERIFY,
    ]
    return f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n"


VERIFY = """\
`claims.jsonl` holds one signed statement a stage, from the raw bytes to this folder; `model.sig` covers every file
here.

```
crab verify . --key publisher.pub.pem
model_signing verify key . --signature model.sig --public_key publisher.pub.pem
```

Take the publisher's public key from somewhere else than this folder: a key that comes with a model says that nothing
changed since it was signed, not who signed it."""


def _model_index(record: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    test = [source for source in record["data"] if source["split"] == "test"]
    sources = test or [source for source in record["data"] if source["split"] == "train"]
    names = list(dict.fromkeys(hub_dataset(source["uri"]) for source in sources))
    results = []
    for split in dict.fromkeys(m["split"] for m in metrics):
        shown = [m for m in metrics if m["model"] == "derived" and m["split"] == split and m["value"] is not None]
        if shown:
            results.append(
                {
                    "task": {"type": record["task"]},
                    "dataset": {"type": names[0], "name": ", ".join(names), "split": split},
                    "metrics": [{"type": m["name"], "value": m["value"]} for m in shown],
                }
            )
    return results


def _opening(record: dict[str, Any], training: dict[str, Any]) -> str:
    base = record["base"]
    if base["kind"] == "scratch":
        return f"A {plain(record['architecture'])} for {record['task']}, trained from scratch with hermitcrab."
    how = "LoRA, merged" if training["method"] == "lora" else "all weights"
    return f"{plain(base['name'])} fine-tuned ({how}) for {record['task']} with hermitcrab."


def _built_on(record: dict[str, Any]) -> str:
    base = record["base"]
    rows = [
        ("base", base["name"]),
        ("from", f"`{base['uri']}`"),
        ("revision", base["revision"]),
        ("kind", base["kind"]),
    ]
    rows += [("digest", f"`{base['digest']}`"), ("license", base["license"])]
    text = _table(("", ""), [(name, value) for name, value in rows if value])
    if base["kind"] != "scratch" and not _hub_id(base["uri"]):
        text += (
            f"\n\nThe base did not come from the Hugging Face hub: `base_model` above gives the name that it declares, "
            f"and what was really used is the digest here, from `{plain(base['uri'])}`."
        )
    data = [
        (f"`{source['uri']}`", source["split"], source["license"], f"`{short(source['sha256'])}`")
        for source in record["data"]
    ]
    return text + "\n\n" + _table(("data", "split", "license", "sha256"), data)


def _added(record: dict[str, Any], training: dict[str, Any]) -> str:
    trained, total = training["trainable_parameters"], training["parameters"]
    parity = record["parity"]
    return (
        f"{training['steps']:,} steps ({training['epochs']:.3g} epochs) with {trained:,} of {total:,} parameters "
        f"trained, seed {training['seed']}; training loss {_number(training['loss_first'])} → "
        f"{_number(training['loss_last'])}.\n\n"
        f"{' and '.join(plain(name) for name in parity['compared'])} on {len(parity['probes'])} probes: "
        f"{_agreement(parity)}. What was evaluated is, byte for byte, what is here."
    )


def _agreement(parity: dict[str, Any]) -> str:
    if "top1_agreement" not in parity:  # of outputs that are no logits
        return (
            f"largest difference {_number(parity['max_abs_difference'])}, root mean square {_number(parity['rms_difference'])} "
            f"(what training moved: {_number(parity['rms_difference_to_base'])})"
        )
    return (
        f"largest logit difference {_number(parity['max_abs_logit_difference'])}, "
        f"same likeliest token in {parity['top1_agreement']:.1%}"
    )


def _searched(trials: Sequence[dict[str, Any]]) -> str:
    """Every trial of the search with its figure on validation rows; the one that was chosen is marked."""
    first, paths = trials[0], list(trials[0]["settings"])
    rows = [
        (
            *(trial["settings"][path] for path in paths),
            _number(trial["value"]) + (f" [{_interval(trial['low'], trial['high'])}]" if trial["low"] is not None else ""),
            "chosen" if trial["chosen"] else "diverged" if trial["failed"] else "",
        )
        for trial in trials
    ]  # fmt: skip
    return (
        f"{len(trials):,} settings were trained and compared by {first['name']} ({first['best']} is best) on {first['n']:,} "
        "validation rows; the test rows were opened once, for the chosen one. Its figure here is the best of several and "
        "flatters it; the figures below do not.\n\n" + _table((*paths, first["name"], ""), rows)
    )


def _value_added(metrics: Sequence[dict[str, Any]], comparison: dict[str, Any]) -> str:
    """A row a model, a column a metric with its version; each figure with its interval, each row with what was asked."""
    names = list(dict.fromkeys((m["name"], m["version"]) for m in metrics))
    rows = []
    for model in dict.fromkeys(m["model"] for m in metrics):
        here = {m["name"]: m for m in metrics if m["model"] == model}
        any_of = next(iter(here.values()))
        asked = f"`{short(any_of['prompt_digest'])}`" if any_of.get("prompt_digest") else ""
        figures = [
            f"{_number(m['value'])} [{_interval(m['low'], m['high'])}]" if (m := here.get(name)) else ""
            for name, _ in names
        ]
        rows.append((model, *figures, f"{any_of['n']:,} {any_of['split']}", asked))
    text = plain(comparison["sentence"], 1000) + "\n\n"
    text += _table(("model", *(f"{name} ({version})" for name, version in names), "rows", "prompts"), rows)
    if pairs := comparison.get("pairs"):
        shown = [
            (f"{p['a']} − {p['b']}", p["metric"], _number(p["difference"]), _interval(p["low"], p["high"]),
             _number(p["p_holm"]), f"+{_count(p['gained'])} / −{_count(p['lost'])}")
            for p in pairs
        ]  # fmt: skip
        confidence = comparison.get("confidence")
        label = f"{confidence:.0%} interval" if confidence else "interval"
        text += "\n\n" + _table(("difference", "metric", "value", label, "p (Holm)", "items"), shown)
    return text


def _compressed(entries: Sequence[dict[str, Any]]) -> str:
    rows = []
    for entry in entries:
        parity = entry["parity"]
        rows.append((
            f"`{entry['file']}`", f"{entry['size'] / 1e6:,.1f} MB", f"{entry['bits_per_weight']:.2f}",
            f"{_number(parity['compressed'])} − {_number(parity['uncompressed'])} = {_number(parity['difference'])} "
            f"({_interval(parity['low'], parity['high'])})",
            f"{'within' if parity['within_margin'] else 'not shown to be within'} {parity['margin']:g}",
            "–" if parity["flips"] is None else f"{parity['flips']:,} (+{parity['gained']:,} / −{parity['lost']:,})",
            _number(parity["mean_kl"]), f"{parity['top1_agreement']:.1%}", _number(parity["max_abs_logit_difference"]),
        ))  # fmt: skip
    first = entries[0]
    head = ("file", "size", "bits a weight", first["parity"]["metric"], "margin", "answers changed", "mean KL (nats)",
            "same likeliest answer", "largest logit difference")  # fmt: skip
    return (
        f"The model is {first['size_of_model'] / 1e6:,.1f} MB. Each form was loaded back and asked {first['parity']['n']:,} of the "
        f"same rows with the same prompts: compressed − uncompressed, with the {first['parity']['confidence']:.0%} interval of the "
        "difference; the margin is how much may be lost, and the whole interval has to lie within it. KL, likeliest answer and "
        "logits are on fixed probes, in float32. Types and bits of every tensor are in `tensors.json`.\n\n"
        + _table(head, rows)
    )


def _ledger(ledgers: Sequence[dict[str, Any]]) -> str:
    rows = []
    for entry in ledgers:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in entry["dropped"].items())
        changed = ", ".join(f"{count:,} {reason}" for reason, count in entry["changed"].items())
        rows.append((entry["name"], f"{entry['taken']:,}", f"{entry['kept']:,}", dropped, changed))
    return _table(("what", "taken", "kept", "dropped", "kept but changed"), rows)


def _license(record: dict[str, Any]) -> str:
    data = ", ".join(sorted({source["license"] for source in record["data"]}))
    base = f"base {record['base']['license']}, " if record["base"]["license"] else ""
    return (
        f"{plain(record['license'])} (from {plain(base)}data {plain(data)}; declared use: {record['use']}). "
        "hermitcrab filters what licenses plainly forbid; it gives no legal advice."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(plain(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.4g} to {high:.4g}"


def _count(items: Any) -> int:
    """Gained and lost stand as a count or as a list of row ids."""
    return items if isinstance(items, int) else len(items or [])


def plain(value: Any, longest: int = 300) -> str:
    """Text of unknown origin on one line: no control characters, nothing endless."""
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else " " for c in text)[:longest]


def front_matter(text: str) -> dict[str, Any]:
    """The front matter of any card.

    Raises:
        HermitcrabError: where there is none, or it is no YAML mapping.
    """
    found = re.match(r"---\r?\n(.*?)\r?\n---\s*(?:\n|$)", text[:LARGEST_FRONT], re.DOTALL)
    if not found:
        raise HermitcrabError("the card has no front matter between two lines of `---`")
    try:
        front = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise HermitcrabError(
            f"the front matter is not YAML: {plain(getattr(error, 'problem', None) or error)}"
        ) from error
    if not isinstance(front, dict):
        raise HermitcrabError("the front matter is no mapping of keys to values")
    return front
