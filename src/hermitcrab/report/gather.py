"""Everything that a report says about a run, read from its artifacts: one dictionary for terminal, page and --json.

What a stage has not left yet (a run in the making) is None here. Texts of rows are read only where the recipe asks for
them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hermitcrab.errors import HermitcrabError
from hermitcrab.evaluate.value_added import judge
from hermitcrab.report.words import excerpt, plain
from hermitcrab.store import Artifact

SETTINGS = (
    "optimizer",
    "loss",
    "learning_rate",
    "schedule",
    "sequence_length",
    "batch_size",
    "accumulate",
    "final_dtype",
)
OF_TOKENS = ("sequence_length",)  # says nothing of a training that counts no tokens
STAGES = (
    "collect",
    "prepare",
    "tune",
    "train",
    "evaluate",
    "compress",
    "package",
)  # the order in which a reader follows them
TEXTS = 10  # rows whose text is shown, of the gained and of the lost


def gather(run: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The facts of a run, ready for JSON.

    Args:
        run: `{name, task, folder, recipe, artifacts: {stage: key}}`, and `reused` where stages were.
        artifacts: the sealed artifacts that there are, by stage.
    """
    place = {stage: i for i, stage in enumerate(STAGES)}
    artifacts = {stage: artifacts[stage] for stage in sorted(artifacts, key=lambda s: place.get(s, len(place)))}
    facts = {stage: artifact.facts for stage, artifact in artifacts.items()}
    collected, trained = artifacts.get("collect"), artifacts.get("train")
    return plain(
        {
            "name": run["name"],
            "task": run["task"],
            "folder": run["folder"],
            "finished": _clock(max((f["finished"] for f in facts.values()), default=None)),
            "base": collected.read("base.json") if collected else None,
            "data": collected.read("sources.json") if collected else [],
            "license": artifacts["package"].read("hermitcrab.json")["license"] if "package" in artifacts else None,
            "trials": artifacts["tune"].read("trials.json") if "tune" in artifacts else [],
            "added": _added(run["recipe"], artifacts["prepare"], trained) if trained else None,
            "plan": facts["train"].get("plan") if trained else None,
            "value": _value(run["recipe"], artifacts) if "evaluate" in artifacts else None,
            "compressed": _compressed(artifacts["compress"]) if "compress" in artifacts else [],
            "ledger": _ledger(artifacts),
            "curve": _curve(trained) if trained else None,
            "profile": profile(trained) if trained else None,
            "cost": _cost(facts, run.get("reused", [])),
            "environment": next((f["environment"] for f in reversed(facts.values()) if "environment" in f), None),
            "artifacts": {stage: artifact.digest for stage, artifact in artifacts.items()},
            "signed": run["recipe"]["package"]["sign"],
            "recipe": run["recipe"],
        }
    )


def _clock(seconds: float | None) -> str | None:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds)) if seconds is not None else None


def _added(recipe: Mapping[str, Any], prepared: Artifact, trained: Artifact) -> dict[str, Any]:
    import pyarrow.parquet as pq

    training, settings, parts = trained.read("training.json"), recipe["train"], _optional(trained, "ledger.json") or []
    tokens = any("tokens" in entry["unit"] for entry in parts)
    return {
        **training,
        "rows": pq.read_metadata(prepared.payload / "train.parquet").num_rows,
        "settings": {
            **({"LoRA": settings["lora"]} if training["method"] == "lora" else {}),
            **{key: settings[key] for key in SETTINGS if key in settings and (tokens or key not in OF_TOKENS)},
        },
        "parity": _optional(trained, "parity.json"),
    }


def _compressed(artifact: Artifact) -> list[dict[str, Any]]:
    """Every smaller form with its speed, which is a fact."""
    facts = artifact.facts.get("compressed", {})
    return [
        {**entry, "speed": facts.get(f"{entry['format']} {entry['type']}")}
        for entry in artifact.read("compression.json")
    ]


def _optional(artifact: Artifact, name: str) -> Any:
    """A document that not every task leaves; None where it is not there."""
    return artifact.read(name) if any(f["path"] == name for f in artifact.manifest["files"]) else None


def _value(recipe: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    evaluated, show = artifacts["evaluate"], recipe["report"]["show_text"]
    comparison = evaluated.read("comparison.json")
    found = value_of(comparison, evaluated.read("metrics.json"), classes=_optional(evaluated, "classes.json"))
    if show and (against := found["against"]):
        found["texts"] = {which: _texts(comparison[which], against, artifacts) for which in ("gained", "lost")}
    return found


def value_of(
    comparison: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    texts: Mapping[str, Any] | None = None,
    classes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """comparison.json, each pair with a verdict of its own, and the metrics as a table of models."""
    pairs = [{**p, "verdict": judge(p, False, comparison["confidence"])} for p in comparison["pairs"]]
    models: dict[str, dict[str, Any]] = {}
    for entry in metrics:
        row = models.setdefault(entry["model"], {"model": entry["model"], "n": entry["n"], "figures": {}})
        row["figures"][entry["name"]] = {k: entry[k] for k in ("value", "low", "high", "version", "prompt_digest")}
    return {
        **comparison,
        "against": _against(comparison),
        "pairs": pairs,
        "metrics": list(dict.fromkeys(entry["name"] for entry in metrics)),
        "models": list(models.values()),
        "split": metrics[0]["split"] if metrics else None,
        "classes": classes,
        "texts": texts,
    }


def profile(trained: Artifact) -> dict[str, Any] | None:
    """Where the traces of a profiled training lie, beside its TensorBoard logs."""
    told = trained.facts.get("profile")
    return {"folder": str(trained.path / "facts" / told["folder"]), "files": told["files"]} if told else None


def _against(comparison: Mapping[str, Any]) -> str | None:
    """The model that the verdict is about: the base, or, where nothing was built on, a named baseline."""
    deciding = {p["b"]: p for p in comparison["pairs"] if p["metric"] == comparison["metric"]}
    if "base" in deciding or not deciding:
        return "base" if deciding else None
    gained, lost = len(comparison["gained"]), len(comparison["lost"])
    return next((b for b, p in deciding.items() if (p["gained"], p["lost"]) == (gained, lost)), next(iter(deciding)))


def _texts(row_ids: list[str], against: str, artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Question, reference and both answers of the first rows, e-mail addresses and telephone numbers masked."""
    import pyarrow.parquet as pq

    wanted = set(row_ids[:TEXTS])
    if not wanted:
        return []
    rows = pq.read_table(artifacts["prepare"].payload / "test.parquet", filters=[("row_id", "in", wanted)])
    found = {row["row_id"]: row for row in rows.to_pylist()}
    answers: dict[str, dict[str, Any]] = {}
    for model in ("derived", against):
        file = "-".join("".join(c if c.isalnum() else " " for c in model).split())  # as `evaluate` names it
        table = pq.read_table(artifacts["evaluate"].payload / "predictions" / f"{file}.parquet")
        answers[model] = {r["row_id"]: r for r in table.to_pylist() if r["row_id"] in wanted}
    if missing := sorted(wanted - found.keys()):
        raise HermitcrabError(f"report: row {missing[0]} was evaluated and is not in the prepared test rows; run again")
    return [
        {
            "row_id": row,
            "question": excerpt(_question(found[row])),
            "reference": excerpt(str(answers["derived"][row]["reference"])),
            "answers": {model: excerpt(_said(told[row]["prediction"])) for model, told in answers.items()},
        }
        for row in row_ids[:TEXTS]
    ]


def _said(prediction: Any) -> str:
    return "" if prediction is None else str(prediction)


def _question(row: Mapping[str, Any]) -> str:
    if "messages" in row:
        return "\n".join(m["content"] for m in json.loads(row["messages"])[:-1])
    return row.get("prompt") or row.get("text") or ""  # a picture has no words


def _ledger(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    return [
        {"stage": stage, **entry}
        for stage, artifact in artifacts.items()
        for entry in _optional(artifact, "ledger.json") or []
    ]


def _curve(trained: Artifact) -> dict[str, list[list[float]]]:
    """Training loss by step from log.jsonl, validation loss by step from training.json."""
    train = []
    for i, line in enumerate((trained.payload / "log.jsonl").read_text(encoding="utf-8").splitlines(), 1):
        try:
            told = json.loads(line)
            step, loss = int(told["step"]), float(told["loss"])
        except (ValueError, KeyError, TypeError) as error:
            raise HermitcrabError(
                f"{trained.payload / 'log.jsonl'}: line {i} is no log entry with `step` and `loss`"
            ) from error
        if math.isfinite(loss):
            train.append([step, loss])
    return {"train": train, "validation": [[v["step"], v["loss"]] for v in trained.read("training.json")["validation"]]}


def _least_known(energy: Mapping[str, Any]) -> int:
    """What is unknown before what is estimated before what is measured: the method that a sum can claim."""
    return 0 if energy["joules"] is None else 1 if energy.get("estimated") else 2


def _cost(facts: Mapping[str, Mapping[str, Any]], reused: list[str]) -> dict[str, Any]:
    """What each stage took when it ran, and the sums. Energy is summed only where every stage knows its own."""
    stages = [
        {
            "stage": stage,
            "cpu_seconds": f["cpu_seconds"],
            "seconds": f["finished"] - f["started"],
            "sessions": f["sessions"],
            "memory": f.get("peak_memory"),
            "energy": f.get("energy") or {"joules": None, "method": "unknown: it was not measured"},
            "reused": stage in reused,
        }
        for stage, f in facts.items()
    ]
    joules = [s["energy"]["joules"] for s in stages]
    return {
        "stages": stages,
        "cpu_seconds": sum(s["cpu_seconds"] for s in stages),
        "memory": max((s["memory"] for s in stages if s["memory"]), default=None),
        "joules": sum(joules) if joules and None not in joules else None,
        "energy_method": min((s["energy"] for s in stages), key=_least_known, default={"method": None})["method"],
        "energy_estimated": any(s["energy"].get("estimated") for s in stages),
        "cpu_seconds_per_answer": facts.get("evaluate", {}).get("cpu_seconds_per_answer", {}),
    }
