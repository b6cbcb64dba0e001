"""What travels with an export: what it is, the package's own record, and the claim of whoever exported it."""

from __future__ import annotations

import json
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.digest import describe_files, digest_json, tree_files
from hermitcrab.lineage import dsse
from hermitcrab.lineage.exported import CARRIED, FOLDER, RECORD, statement
from hermitcrab.lineage.keys import default_path, fingerprint, parse_public
from hermitcrab.lineage.sign import CLAIMS, SIGNER, sign_export
from hermitcrab.lineage.statements import files_of
from hermitcrab.models.tokenizer import read_json_file
from hermitcrab.store import write_json

if TYPE_CHECKING:
    from hermitcrab.exporting.writing import Written
    from hermitcrab.serve.opening import Opened

KEPT = ("name", "task", "use", "architecture", "template_digest", "preprocessing_digest", "fitted", "choices", "format", "base",
        "license")  # fmt: skip


def signing_key(asked: Path | None) -> Path | None:
    """The private key to sign with, or None where there is none.

    Raises:
        HermitcrabError: what was asked for is none.
    """
    from hermitcrab.lineage.keys import load_private

    path = asked or (default_path() if default_path().exists() else None)
    if path is not None:
        load_private(path)
    return path


def package_digest(opened: Opened) -> str | None:
    """That of the artifact that the package's last claim is about; None where it has no claims that were verified."""
    path = opened.path / CLAIMS
    if opened.verified is None or not path.is_file():
        return None
    last = dsse.open_envelope(path.read_bytes().splitlines()[-1])
    return digest_json(files_of(last.statement))


def about(opened: Opened) -> dict[str, str]:
    """What the file says of itself (`compress.Source.about`), and the digest of the package."""
    from hermitcrab.compress import about as words

    kept = _kept(opened)
    found = words(opened.name, kept["license"], kept["base"])
    digest = package_digest(opened)
    return found | ({"package_digest": digest} if digest else {})


def _kept(opened: Opened) -> dict[str, Any]:
    """Of the package's record, what holds for its export; of a model without one, what was found of it."""
    if (opened.path / RECORD).is_file():
        found = read_json_file(opened.path / RECORD)
        return {name: found[name] for name in KEPT if name in found}
    base = {k: opened.base[k] for k in ("uri", "revision", "kind", "name", "digest", "files", "model_type")}
    license = opened.base["license"]["found"] or "LicenseRef-unknown"
    return {"name": opened.name, "task": opened.task, "license": license, "format": "text", "choices": opened.choices,
            "fitted": opened.start.fitted, "base": {**base, "license": license}}  # fmt: skip


def complete(
    opened: Opened, target: str, kind: str, folder: Path, written: Written, parity: dict[str, Any], key: Path | None
) -> None:
    """`hermitcrab.json`, the package's own record, and the claim and the signature where there is a key."""
    started = time.time()
    files = describe_files(folder, sorted(tree_files(folder)))
    package = None
    if (digest := package_digest(opened)) is not None:
        (folder / FOLDER).mkdir()
        for name in CARRIED:
            shutil.copyfile(opened.path / name, folder / FOLDER / name)
        signer = fingerprint(parse_public((opened.path / SIGNER).read_bytes(), SIGNER))
        package = {"digest": digest, "signer": signer}
    record = {
        "schema": 1,
        **_kept(opened),
        "exported": {
            "format": target, "type": kind, "file": written.files[0], "files": files, "tensors": written.tensors,
            "method": written.told, "parity": parity, "package": package,
        },
        "made_by": {"hermitcrab": version("hermitcrab")},
    }  # fmt: skip
    write_json(folder / RECORD, json.loads(json.dumps(record)))
    if key is not None:
        subjects = describe_files(folder, sorted(tree_files(folder)))
        sign_export(folder, statement(subjects, record["exported"], record["name"], started), key)
