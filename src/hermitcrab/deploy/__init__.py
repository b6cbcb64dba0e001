"""Files that put a package to work elsewhere, one module a target. Each is a pure function of the package and what was asked.

modelfile   Modelfile for Ollama, beside the package's GGUF file
docker      Dockerfile, compose.yaml, .dockerignore for `crab serve`
k8s         Kubernetes manifests for the same image
"""

from __future__ import annotations

import hashlib
import importlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hermitcrab.digest import CHUNK
from hermitcrab.errors import HermitcrabError, UsageError, did_you_mean
from hermitcrab.lineage.keys import load_public, public_pem
from hermitcrab.packaged import File, find_package
from hermitcrab.progress import progress
from hermitcrab.store import Store, disk_errors, write_atomic

TARGETS = ("modelfile", "docker", "k8s")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What may be asked of a target.

    Attributes:
        image: name and tag of the server's image; default: `hermitcrab:VERSION`.
        replicas: servers at once (`k8s`).
        autoscale: the most servers, by processor load; None: no autoscaler (`k8s`).
        secret: name of the secret that holds the API key, under the key `api-key` (`k8s`).
        volume: name of the claim that holds the package (`k8s`); default: the name of the package.
        type: of the package's GGUF files (`modelfile`); default: the largest.
        signer: public key (PEM) that the server asks of a package; set by `export` where it was given one.
    """

    image: str | None = None
    replicas: int = 1
    autoscale: int | None = None
    secret: str | None = None
    volume: str | None = None
    type: str | None = None
    signer: bytes | None = None


@dataclass(frozen=True)
class Made:
    """What a target writes: `{name: bytes}`, files of the package that go along under a new name, and what the user should know."""

    files: dict[str, bytes]
    copies: dict[str, File] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def export(
    model: str, target: str, out: Path, store: Store, *, key: Path | None = None, unverified: bool = False,
    options: Options | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the files of a target into the folder `out`.

    Args:
        model: a package's folder, a run's name or folder, or a reference.
        target: one of `TARGETS`.
        out: made where it is not there; files of the same names are replaced, others stay.

    Returns:
        `{target, model, verified, folder, files, notes}`.

    Raises:
        UsageError: no such target or package, or something asked that cannot be.
        HermitcrabError: a package that does not verify, or lacks what the target needs.
    """
    if target not in TARGETS:
        raise UsageError(f"--to {target}: no such target{did_you_mean(target, TARGETS)}")
    package = find_package(model, store, key, unverified)
    asked = options or Options()
    if key is not None and package.verified:
        asked = replace(asked, signer=public_pem(load_public(key)))
    made: Made = importlib.import_module(f"hermitcrab.deploy.{target}").make(package, asked)
    with disk_errors("cannot write"):
        out.mkdir(parents=True, exist_ok=True)
        for name, file in made.copies.items():
            _copy(package.path / file.path, out / name, file)
        for name, data in made.files.items():
            write_atomic(out / name, data)
    return {"target": target, "model": package.name, "verified": package.verified is not None, "folder": str(out),
            "files": sorted([*made.files, *made.copies]), "notes": list(made.notes)}  # fmt: skip


def _copy(source: Path, target: Path, file: File) -> None:
    """Copy a file of the package; what arrives is what was verified."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    state = hashlib.sha256()
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    with open(handle, "rb") as old, open(beside, "wb") as new, progress(target.name, file.size / 1e6, "MB") as bar:
        while chunk := old.read(CHUNK):
            state.update(chunk)
            new.write(chunk)
            bar.add(len(chunk) / 1e6)
    if state.hexdigest() != file.sha256:
        beside.unlink()
        raise HermitcrabError(f"{source}: changed since the package was read a moment ago")
    os.replace(beside, target)
