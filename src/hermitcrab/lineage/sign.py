"""Sign a package folder: claims first, then one OpenSSF Model Signing signature over every file, made last."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hermitcrab.digest import describe_files, tree_files
from hermitcrab.errors import HermitcrabError
from hermitcrab.lineage import bundle
from hermitcrab.lineage.dsse import low_s, sign_statement
from hermitcrab.lineage.keys import load_private, public_pem
from hermitcrab.lineage.statements import files_of, stage_of
from hermitcrab.store import write_atomic

CLAIMS, SIGNER = "claims.jsonl", "signer.pub.pem"


def sign_package(folder: Path, statements: list[dict[str, Any]], key: Path) -> None:
    """Add `claims.jsonl`, `signer.pub.pem` and, last, `model.sig` to a package folder.

    Args:
        folder: the package as its stage left it; files of an earlier signature are replaced.
        statements: one a stage, in the order of the stages, that of `package` last.
        key: the private key (ECDSA P-256, PEM, no password).

    Raises:
        HermitcrabError: where the folder is not what the package statement says, or the key cannot sign.
    """
    private = load_private(key)
    (folder / bundle.NAME).unlink(missing_ok=True)
    _check_subjects(folder, statements)
    lines = [sign_statement(statement, private) for statement in statements]
    write_atomic(folder / CLAIMS, b"".join(line + b"\n" for line in lines))
    write_atomic(folder / SIGNER, public_pem(private.public_key()))
    write_atomic(folder / bundle.NAME, _sign_folder(folder, key))


def sign_export(folder: Path, statement: dict[str, Any], key: Path) -> None:
    """The one claim of an export, then the signature over everything in its folder.

    Raises:
        HermitcrabError: the key cannot sign.
    """
    private = load_private(key)
    write_atomic(folder / CLAIMS, sign_statement(statement, private) + b"\n")
    write_atomic(folder / SIGNER, public_pem(private.public_key()))
    write_atomic(folder / bundle.NAME, _sign_folder(folder, key))


def _check_subjects(folder: Path, statements: list[dict[str, Any]]) -> None:
    """Nothing is signed but what the package stage left."""
    if not statements or stage_of(statements[-1]) != "package":
        raise HermitcrabError("the last statement of a package is that of the stage `package`")
    if link := next((path for path in folder.rglob("*") if path.is_symlink()), None):
        raise HermitcrabError(f"{link}: a symbolic link cannot be signed; put the file itself there")
    found = describe_files(folder, [name for name in tree_files(folder) if name not in (CLAIMS, SIGNER)])
    claimed = {file["path"]: file for file in files_of(statements[-1])}
    here = {file["path"]: file for file in found}
    for name in sorted(claimed.keys() | here.keys()):
        if claimed.get(name) != here.get(name):
            raise HermitcrabError(f"{folder / name}: not as the package stage left it, so it is not signed; run again")


def _sign_folder(folder: Path, key: Path) -> bytes:
    """The signature of `model_signing` (key method, sha256 of files, nothing ignored but itself), in our one spelling.

    By default the library leaves out `.git*`; here it does not.
    """
    from model_signing import hashing, signing

    config = hashing.Config().use_file_serialization(hashing_algorithm="sha256")
    config.set_ignored_paths(paths=[bundle.NAME], ignore_git_paths=False)
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / bundle.NAME
        try:
            signer = signing.Config().use_elliptic_key_signer(private_key=os.fspath(key))
            signer.set_hashing_config(config).sign(folder, raw)
        except ValueError as error:
            raise HermitcrabError(f"{folder}: cannot be signed: {error}") from error
        signed = bundle.read_bundle(raw.read_bytes())
    signed.files()  # a list that verification would not accept is not written
    return replace(signed, signature=low_s(signed.signature)).as_bytes()
