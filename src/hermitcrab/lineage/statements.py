"""Statements: what a stage took and left, as in-toto Statement v1 with a SLSA provenance v1 predicate.

Made from the manifest and the facts of a sealed artifact, never from what a stage says of itself. The subjects carry
their sizes, so the artifact's digest (what the next stage names as its input) can be recomputed from the statement
alone: that is how the chain from raw bytes to package is walked.
https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://slsa.dev/spec/v1.0/provenance
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError
from hermitcrab.references import without_credentials
from hermitcrab.store import Artifact

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:hermitcrab:stage:{}:v1"
BUILDER = "urn:hermitcrab:builder"
EVALUATED = ("metrics.json", "comparison.json", "classes.json")  # what an evaluation leaves and a package carries on
BYPRODUCTS = ("ledger.json", "trials.json", "training.json", "parity.json", *EVALUATED, "compression.json")
URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


def statement(artifact: Artifact, inputs: Sequence[Artifact]) -> dict[str, Any]:
    """The statement of one artifact.

    Args:
        artifact: what the stage left.
        inputs: the artifacts that went in, in the order of the manifest; none for `collect`, whose base and data
        files are
            read from its base.json and sources.json.

    Raises:
        HermitcrabError: where `inputs` are not those of the manifest.
    """
    manifest, facts = artifact.manifest, artifact.facts
    if artifact.stage == "collect":
        dependencies = _base(artifact.read("base.json")) + [_source(s) for s in artifact.read("sources.json")]
    else:
        given = [{"stage": i.stage, "digest": i.digest} for i in inputs]
        if given != manifest["inputs"]:
            raise HermitcrabError(
                f"{artifact.stage}: the artifact was made from other inputs than those given; run again"
            )
        dependencies = [_artifact(i) for i in inputs] + [_trial(t) for t in facts.get("trials", [])]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [_file(file) for file in manifest["files"]],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE.format(artifact.stage),
                "externalParameters": _recordable(manifest["slice"]),
                "internalParameters": {"code": manifest["code"], "plan": facts.get("plan", {})},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"hermitcrab": version("hermitcrab")}},
                "metadata": {
                    "invocationId": manifest["key"],
                    "startedOn": _utc(facts["started"]),
                    "finishedOn": _utc(facts["finished"]),
                },
                "byproducts": _byproducts(artifact, facts),
            },
        },
    }


def _hex(digest: str) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}


def _file(file: dict[str, Any]) -> dict[str, Any]:
    return {"name": file["path"], "digest": _hex(file["sha256"]), "annotations": {"size": file["size"]}}


def _artifact(artifact: Artifact) -> dict[str, Any]:
    """The digest is that of the canonical JSON list of the artifact's files."""
    return {
        "name": artifact.stage,
        "digest": _hex(artifact.digest),
        "annotations": {"role": "artifact", "key": artifact.key},
    }


def _trial(trial: dict[str, Any]) -> dict[str, Any]:
    """A training that a search made, or the answers of one to validation rows."""
    return {
        "name": trial["stage"],
        "digest": _hex(trial["digest"]),
        "annotations": {"role": "trial", "key": trial["key"]},
    }


def _base(base: dict[str, Any]) -> list[dict[str, Any]]:
    """The base as a whole, then its files."""
    uri = _recordable(base["uri"])
    whole = {
        "role": "base",
        "kind": base["kind"],
        "revision": base["revision"],
        "license": base["license"]["used"],
        "license_found": base["license"]["found"],
        "license_declared": base["license"]["declared"],
    }
    files = [
        {**_file(file), "uri": uri, "annotations": {"role": "base file", "size": file["size"]}}
        for file in base["files"]
    ]
    return [{"name": base["name"], "uri": uri, "digest": _hex(base["digest"]), "annotations": whole}, *files]


def _source(source: dict[str, Any]) -> dict[str, Any]:
    told = {field: source[field] for field in ("split", "license", "size", "rows_read", "rows_kept")}
    uri = _recordable(source["uri"])
    return {"name": uri, "uri": uri, "digest": _hex(source["sha256"]), "annotations": {"role": "data", **told}}


def _byproducts(artifact: Artifact, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Ledger and metrics with the digests of their files; cost, energy, environment with those of what they say."""
    found = [
        {"name": file["path"], "digest": _hex(file["sha256"]), "annotations": {"value": artifact.read(file["path"])}}
        for file in artifact.manifest["files"]
        if file["path"] in BYPRODUCTS
    ]
    told = {
        "cost": {name: facts[name] for name in ("cpu_seconds", "sessions", "cpu_seconds_per_answer") if name in facts},
        "energy": facts.get("energy") or {"joules": None, "method": "not measured"},
        "environment": facts.get("environment", {}),
    }
    return found + [
        {"name": name, "digest": _hex(digest_json(value)), "annotations": {"value": value}}
        for name, value in told.items()
    ]


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _recordable(value: Any) -> Any:
    """The same value with user, password and query out of every uri: they are never recorded."""
    if isinstance(value, str):
        return without_credentials(value) if URI.fullmatch(value) else value
    if isinstance(value, dict):
        return {key: _recordable(item) for key, item in value.items()}
    return [_recordable(item) for item in value] if isinstance(value, list) else value


def stage_of(claim: dict[str, Any]) -> str:
    """The stage that a statement is about.

    Raises:
        KeyError, TypeError, ValueError: where it is no statement of a stage.
    """
    found = re.fullmatch(BUILD_TYPE.format("([a-z]+)"), claim["predicate"]["buildDefinition"]["buildType"])
    if claim["_type"] != STATEMENT_TYPE or claim["predicateType"] != PREDICATE_TYPE or not found:
        raise ValueError("not a statement of a hermitcrab stage")
    return found[1]


def files_of(claim: dict[str, Any]) -> list[dict[str, Any]]:
    """`{path, sha256, size}` of the subjects, as in the artifact's manifest."""
    return [
        {"path": s["name"], "sha256": "sha256:" + s["digest"]["sha256"], "size": s["annotations"]["size"]}
        for s in claim["subject"]
    ]


def dependencies_of(claim: dict[str, Any], role: str) -> list[dict[str, Any]]:
    """The resolved dependencies of one role: `artifact`, `base`, `base file`, `data`."""
    found = claim["predicate"]["buildDefinition"]["resolvedDependencies"]
    return [entry for entry in found if entry["annotations"]["role"] == role]
