"""Verify an export: the files are those that were compared and signed, and the package that they were made from is named by digest.

An export carries the package's own record, claims, key and signature in `package/`, byte for byte. So what it says of base, data
and license is checked as in the package itself, and the claim of the exporter, which names the package's digest, is held against it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.digest import digest_json, short
from hermitcrab.errors import HermitcrabError
from hermitcrab.lineage import bundle, card, chain, dsse
from hermitcrab.lineage.keys import fingerprint, parse_public
from hermitcrab.lineage.sign import CLAIMS, SIGNER
from hermitcrab.lineage.statements import (
    BUILD_TYPE,
    BUILDER,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    dependencies_of,
    files_of,
    stage_of,
)

if TYPE_CHECKING:
    from hermitcrab.lineage.verify import Folder, Verification

RECORD, FOLDER, STAGE = "hermitcrab.json", "package", "export"
CARRIED = (RECORD, CLAIMS, SIGNER, bundle.NAME)
"""Files of the package that lie in `package/`."""
SAME = (
    "name",
    "task",
    "use",
    "license",
    "base",
    "fitted",
    "choices",
    "template_digest",
    "preprocessing_digest",
    "format",
)
"""Fields that a package's export has as the package has them."""


def statement(files: Sequence[dict[str, Any]], exported: dict[str, Any], name: str, started: float) -> dict[str, Any]:
    """What an export was made from and is, as in-toto Statement v1 with a SLSA provenance v1 predicate."""

    def moment(seconds: float) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(seconds)))

    package = exported["package"]
    made_from = (
        [{"name": "package", "digest": {"sha256": package["digest"].removeprefix("sha256:")},
          "annotations": {"role": "artifact", "signer": package["signer"]}}] if package else []
    )  # fmt: skip
    subjects = [
        {"name": f["path"], "digest": {"sha256": f["sha256"].removeprefix("sha256:")}, "annotations": {"size": f["size"]}}
        for f in files
    ]  # fmt: skip
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE.format(STAGE),
                "externalParameters": {"name": name, "format": exported["format"], "type": exported["type"]},
                "internalParameters": {},
                "resolvedDependencies": made_from,
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"hermitcrab": version("hermitcrab")}},
                "metadata": {"startedOn": moment(started), "finishedOn": moment(time.time())},
                "byproducts": [
                    {"name": "parity", "digest": {"sha256": digest_json(exported["parity"]).removeprefix("sha256:")},
                     "annotations": {"value": exported["parity"]}}
                ],
            },
        },
    }  # fmt: skip


def is_export(here: Folder) -> bool:
    """Whether the record of a folder says that it is an export. What it says is not believed here."""
    try:
        return "exported" in here.json(RECORD)
    except (HermitcrabError, ValueError, TypeError, OSError, RecursionError):
        return False


def check_export(result: Verification, here: Folder, statements: list[dict[str, Any]] | None) -> None:
    """Everything beyond the signature over all files."""
    record: dict[str, Any] = {}
    with result.checking("record", RECORD, "what the export says it is"):
        found = here.json(RECORD)
        if not _well_formed(found):
            raise HermitcrabError("not the record of an export (schema 1)")
        record = found
    if not record:
        return
    exported = record["exported"]
    with result.checking("files", RECORD, "the files are those that were compared with the model"):
        _files(result, here, exported)
    with result.checking("parity", RECORD, "read back, it gave the model's answers within the recorded tolerance"):
        _parity(exported["parity"])
    if exported["package"] is None:
        result.fail("package", RECORD, f"{RECORD}: it was made from a model that nothing vouches for")
    else:
        _package(result, here, record)
    if statements is not None:
        with result.checking("chain", CLAIMS, "the exporter's claim is about these files and that package"):
            _claim(here, statements, exported)
    file = exported["file"]
    if file not in here.files:
        return  # which was said above; nothing outside of the folder is opened
    with result.checking("agreement", file, f"{file} names the same base, license and package"):
        _said(result, here, record)


def _well_formed(record: Any) -> bool:
    """Whether what is read below is there, each part of its type."""
    match record:
        case {
            "schema": 1, "name": str(), "license": str(), "base": {"digest": str(), "kind": str()},
            "exported": {"file": str(), "format": str(), "files": list(files), "parity": dict(), "package": package},
        } if isinstance(record["base"].get("name", ""), str):  # fmt: skip
            known = all(
                isinstance(f, dict) and isinstance(f.get("path"), str) and isinstance(f.get("sha256"), str)
                for f in files
            )
            named = package is None or (
                isinstance(package, dict)
                and isinstance(package.get("digest"), str)
                and isinstance(package.get("signer"), str)
            )
            return known and named
    return False


def _files(result: Verification, here: Folder, exported: dict[str, Any]) -> None:
    recorded = {file["path"]: file["sha256"].removeprefix("sha256:") for file in exported["files"]}
    if exported["file"] not in recorded:
        raise HermitcrabError("the file to open is not among those that are recorded")
    own = {RECORD, CLAIMS, SIGNER, bundle.NAME, *(f"{FOLDER}/{name}" for name in CARRIED)}
    blamed = {failure.file for failure in result.failures}
    for name in sorted(recorded.keys() | (here.files.keys() - own)):
        if here.files.get(name) != recorded.get(name):
            what = (
                "not here" if name not in here.files else "not recorded" if name not in recorded else "other bytes here"
            )
            here.changed.add(name)
            if card.plain(name) not in blamed:
                result.fail("files", name, f"{name}: the record and the folder differ: {what}")


def _parity(parity: dict[str, Any]) -> None:
    limits = parity["tolerance"]
    if (
        not limits and "within_margin" not in parity
    ):  # a compression may state no loss; then it is told, and held against nothing
        raise HermitcrabError("the recorded comparison has no tolerance")
    for name, limit in limits.items():
        if not parity[name] <= limit:
            raise HermitcrabError(f"the recorded {name} is {parity[name]}, expected at most {limit}")


def _package(result: Verification, here: Folder, record: dict[str, Any]) -> None:
    """The package's record inside holds by itself, has the digest that is named, and says what the export's record says."""
    told = record["exported"]["package"]
    place = f"{FOLDER}/{bundle.NAME}"
    with result.checking(
        "package",
        place,
        f"made from the package {short(str(told['digest']))}, whose record was signed by {told['signer']}",
    ):
        claims = _inner_claims(here, str(told["signer"]))
        found = digest_json(files_of(claims["package"]))
        if found != told["digest"]:
            raise HermitcrabError(
                f"the package's record is that of {short(found)}, the export names {short(told['digest'])}"
            )
        _same_bytes(here, record["exported"], claims)
        made_of = chain._made_of(claims)
        package = here.json(f"{FOLDER}/{RECORD}")
        for name in SAME:
            if record.get(name) != package.get(name):
                contradicts = here.sound(RECORD) and here.sound(f"{FOLDER}/{RECORD}")
                result.fail("agreement", RECORD, f"{RECORD}: names another {name} than the package", contradicts)
        for name in ("name", "task", "use", "license"):
            if package[name] != made_of[name]:
                raise HermitcrabError(f"the package's record names another {name} than its signed claims")


def _same_bytes(here: Folder, exported: dict[str, Any], claims: chain.Claims) -> None:
    """An export as safetensors has the package's own weights."""
    if exported["format"] != "safetensors":
        return
    shipped = {file["path"]: file["sha256"].removeprefix("sha256:") for file in files_of(claims["package"])}
    for name in here.files:
        if name.endswith(".safetensors") and here.files[name] != shipped.get(name):
            raise HermitcrabError(f"{name} is not the file that the package has")
    if not exported["file"].endswith(".safetensors"):
        raise HermitcrabError(f"{card.plain(exported['file'], 120)} is no file of safetensors")


def _inner_claims(here: Folder, signer: str) -> chain.Claims:
    """The claims of the package, its signature and theirs checked.

    Raises:
        HermitcrabError: one of them does not hold, or a file is not the one that was signed.
    """
    data = here.read(f"{FOLDER}/{SIGNER}")
    try:
        key = parse_public(data, "the package's key")
    except ValueError as error:
        raise HermitcrabError(f"{FOLDER}/{SIGNER}: no public key") from error
    if fingerprint(key) != signer:
        raise HermitcrabError(f"signed by {fingerprint(key)}, the export names {card.plain(signer, 80)}")
    raw = here.read(f"{FOLDER}/{bundle.NAME}")
    signed = bundle.read_bundle(raw)
    if not bundle.is_canonical(raw, signed) or not dsse.signature_holds(key, signed.signature, signed.payload):
        raise HermitcrabError("the package's signature does not hold")
    listed = signed.files()
    for name in CARRIED[:3]:
        if here.files.get(f"{FOLDER}/{name}") != listed.get(name):
            here.changed.add(f"{FOLDER}/{name}")
            raise HermitcrabError(f"{FOLDER}/{name} is not the file that the package's signature covers")
    *lines, end = here.read(f"{FOLDER}/{CLAIMS}").split(b"\n")
    if end or not lines:
        raise HermitcrabError(f"{FOLDER}/{CLAIMS}: cut short")
    statements = []
    for number, line in enumerate(lines, 1):
        envelope = dsse.open_envelope(line)
        if envelope.keyid != signer or not dsse.signature_holds(key, envelope.signature, envelope.payload):
            raise HermitcrabError(f"{FOLDER}/{CLAIMS} line {number}: not signed by the package's signer")
        statements.append(envelope.statement)
    return chain._links(statements)


def _claim(here: Folder, statements: list[dict[str, Any]], exported: dict[str, Any]) -> None:
    if len(statements) != 1 or stage_of(statements[0]) != STAGE:
        raise HermitcrabError("expected one claim, about an export")
    claim = statements[0]
    own = {CLAIMS, SIGNER, bundle.NAME}
    claimed = {file["path"]: file["sha256"].removeprefix("sha256:") for file in files_of(claim)}
    if claimed != {name: digest for name, digest in here.files.items() if name not in own}:
        raise HermitcrabError("the claim is about other files than those that are here")
    named = ["sha256:" + entry["digest"]["sha256"] for entry in dependencies_of(claim, "artifact")]
    package = exported["package"]
    if named != ([package["digest"]] if package else []):
        raise HermitcrabError("the claim names another package than the record")
    told = [entry["annotations"]["value"] for entry in claim["predicate"]["runDetails"]["byproducts"]]
    if told != [exported["parity"]]:
        raise HermitcrabError("the claim tells another comparison than the record")


def _said(result: Verification, here: Folder, record: dict[str, Any]) -> None:
    """What the file says of itself, in the words of its format."""
    file, said = (
        record["exported"]["file"],
        said_by(record["exported"]["format"], here.path / record["exported"]["file"]),
    )
    if said is None:
        return
    base, package = record["base"], record["exported"]["package"]
    true = {"license": record["license"], "base_digest": base["digest"]}
    if base["kind"] != "scratch":
        true |= {"base_name": base["name"], "base_uri": base["uri"]}
    if package:
        true["package_digest"] = package["digest"]
    for name, value in true.items():
        if said.get(name) != value:
            shown = card.plain(said.get(name), 120)
            message = f"{file}: names the {name.replace('_', ' ')} {shown}, but {RECORD} says {card.plain(value, 200)}"
            result.fail("agreement", file, message, contradiction=here.sound(file))


def said_by(format: str, path: Path) -> dict[str, str | None] | None:
    """The words of `compress.Source.about` that a file holds; None for safetensors, which are the package's own bytes."""
    if format == "safetensors":
        return None
    if format == "openvino":
        from hermitcrab.compress.onnx import WORDS
        from hermitcrab.models.formats.openvino import said

        found = said(path)
        if "hermitcrab/license" in found:
            return {word: found.get(f"hermitcrab/{key}") for word, key in WORDS.items()}
    from hermitcrab.compress import load_form

    words: dict[str, str | None] = load_form(format).said(path)
    return words
