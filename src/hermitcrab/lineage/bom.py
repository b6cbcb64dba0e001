"""ml-bom.cdx.json: the bill of materials, CycloneDX 1.6 with a model card. https://cyclonedx.org/docs/1.6/json/

Deterministic: no timestamp, and the serial number is a UUIDv5 of the digest of the rest.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from hermitcrab.digest import digest_json
from hermitcrab.lineage.card import hub_dataset

URI, DIGEST = "hermitcrab:uri", "hermitcrab:digest"


def bill_of_materials(
    record: dict[str, Any], metrics: Sequence[dict[str, Any]], files: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The bill of a package: the model with its card and pedigree, and its data.

    Args:
        record: hermitcrab.json.
        metrics: metrics.json.
        files: `{path, sha256, size}` of the weights and what is needed to load them.
    """
    data = [_data(number, source) for number, source in enumerate(record["data"])]
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": record["name"],
        "licenses": [{"expression": record["license"]}],
        "components": [
            *(_file(file) for file in files),
            *(c for entry in record["compressed"] for c in _compressed(entry)),
        ],
        "pedigree": _pedigree(record["base"]),
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised" if record["format"] != "text" else "self-supervised"},
                "task": record["task"],
                "architectureFamily": record["base"]["model_type"],
                "modelArchitecture": record["architecture"],
                "datasets": [{"ref": component["bom-ref"]} for component in data],
            },
            "quantitativeAnalysis": {
                "performanceMetrics": [
                    _metric(m) for m in metrics if m["model"] == "derived" and m["value"] is not None
                ]
            },
        },
        "properties": [{"name": DIGEST, "value": record["weights"]["digest"]}],
    }
    tool = {"type": "application", "name": "hermitcrab", "version": record["made_by"]["hermitcrab"]}
    bill: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"tools": {"components": [tool]}, "component": model},
        "components": data,
        "dependencies": [{"ref": "model", "dependsOn": [component["bom-ref"] for component in data]}],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, f"urn:hermitcrab:bom:{digest_json(bill)}")
    return bill | {"serialNumber": f"urn:uuid:{serial}"}


def _file(file: dict[str, Any]) -> dict[str, Any]:
    return {"type": "file", "name": file["path"], "hashes": [_hash(file["sha256"])]}


def _compressed(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The files of the model in another form; the one to open says its size and how near it is to the model."""
    parity = entry["parity"]
    told = {
        "type": entry["type"],
        "size": entry["size"],
        "bits_per_weight": entry["bits_per_weight"],
        f"{parity['metric']}_difference": parity["difference"],
        "within_margin": parity["within_margin"],
        "mean_kl": parity["mean_kl"],
        "top1_agreement": parity["top1_agreement"],
    }
    properties = [{"name": f"hermitcrab:{name}", "value": str(value)} for name, value in told.items()]
    first, *others = entry["files"]
    return [{**_file(first), "properties": properties}, *map(_file, others)]


def _hash(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest.removeprefix("sha256:")}


def _metric(metric: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {"type": metric["name"], "value": repr(metric["value"]), "slice": metric["split"]}
    if metric["low"] is not None and metric["high"] is not None:
        result["confidenceInterval"] = {"lowerBound": repr(metric["low"]), "upperBound": repr(metric["high"])}
    return result


def _pedigree(base: dict[str, Any]) -> dict[str, Any]:
    if base["kind"] == "scratch":
        return {"notes": f"Initialized from scratch; configuration and tokenizer {base['digest']}."}
    ancestor = {
        "type": "machine-learning-model",
        "bom-ref": "base",
        "name": base["name"],
        "components": [_file(file) for file in base["files"]],
        "properties": [{"name": URI, "value": base["uri"]}, {"name": DIGEST, "value": base["digest"]}],
    }
    ancestor |= {"version": base["revision"]} if base["revision"] else {}
    ancestor |= {"licenses": [{"expression": base["license"]}]} if base["license"] else {}
    return {"ancestors": [ancestor]}


def _data(number: int, source: dict[str, Any]) -> dict[str, Any]:
    name = hub_dataset(source["uri"])
    return {
        "type": "data",
        "bom-ref": f"data-{number}",
        "name": name,
        "hashes": [_hash(source["sha256"])],
        "licenses": [{"expression": source["license"]}],
        "data": [{"type": "dataset", "name": name, "description": f"{source['split']} rows"}],
        "properties": [{"name": URI, "value": source["uri"]}],
    }


def identity(record: dict[str, Any]) -> dict[str, Any]:
    """What the bill of a package with this record says it is made of: verification compares it with the claims."""
    base = record["base"]
    return {
        "base": [] if base["kind"] == "scratch" else [(base["name"], base["digest"])],
        "data": sorted((source["sha256"].removeprefix("sha256:"), source["license"]) for source in record["data"]),
        "license": record["license"],
    }


def identity_of(bill: dict[str, Any]) -> dict[str, Any]:
    """The same, read from a bill.

    Raises:
        KeyError, TypeError, ValueError, IndexError, AttributeError: where the bill has another shape.
    """
    model = bill["metadata"]["component"]
    ancestors = model["pedigree"].get("ancestors", [])
    return {
        "base": [(a["name"], {p["name"]: p["value"] for p in a["properties"]}[DIGEST]) for a in ancestors],
        "data": sorted((c["hashes"][0]["content"], c["licenses"][0]["expression"]) for c in bill["components"]),
        "license": model["licenses"][0]["expression"],
    }
