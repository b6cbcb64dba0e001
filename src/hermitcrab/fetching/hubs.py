"""Files of a data set on a hub, by id, revision and path: `hf:datasets/ORG/NAME@REVISION/PATH`, a file or a pattern of files.

Files alone: a data set's own loading code is never fetched, let alone run.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError, UsageError, needs
from hermitcrab.references import COMMIT, Resolved, cache_folder, commit_of, files_below
from hermitcrab.store import Store, disk_errors

FORM = re.compile(r"datasets/(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)@(?P<revision>[A-Za-z0-9][\w.-]*)/(?P<path>[^\s\\:]+)")


def find_dataset(reference: str, hub: str, rest: str) -> Resolved:
    """The commit and the files that a reference means. Raises UsageError where its form is wrong."""
    found = FORM.fullmatch(rest)
    if not found or ".." in PurePosixPath(found["path"]).parts or found["path"].startswith("/"):
        raise UsageError(
            f"{reference}: expected {hub}:datasets/ORG/NAME@REVISION/PATH, the path of a file or a pattern (data/*.parquet)"
        )
    if found["path"].endswith((".py", ".pkl", ".pickle", ".pt", ".pth")):
        raise UsageError(f"{reference}: names a file that could run code; refused")
    revision = found["revision"]
    if hub == "ms" and not COMMIT.fullmatch(revision):
        raise UsageError(
            f"{reference}: ModelScope's library does not tell which commit `{revision}` is; give the commit itself"
        )
    commit = revision if COMMIT.fullmatch(revision) else commit_of(reference, found["name"], revision, "dataset")
    uri = f"{hub}:datasets/{found['name']}@{commit}/{found['path']}"
    place = _place(uri)
    return Resolved(reference, uri, uri, _of(place, found["path"]) if place.is_dir() else None, commit, "dataset")


def _place(uri: str) -> Path:
    return cache_folder("datasets", digest_json(uri).removeprefix("sha256:")[:32])


def _of(place: Path, path: str) -> Path:
    """The file, where a path names one; else the folder of all that a pattern names."""
    return place if any(mark in path for mark in "*?[") else place / path


def _download(hub: str, name: str, commit: str, path: str, folder: Path) -> Any:
    if hub == "hf":
        library = needs("huggingface_hub", "hub")
        return library.snapshot_download(
            name, repo_type="dataset", revision=commit, allow_patterns=[path], local_dir=folder
        )
    library = needs("modelscope.hub.snapshot_download", "modelscope")
    return library.dataset_snapshot_download(name, revision=commit, allow_patterns=[path], local_dir=str(folder))


def bring_dataset(resolved: Resolved) -> Path:
    """Plain files of one commit in a folder of our own, complete or not there."""
    hub, _, rest = resolved.uri.partition(":")
    found = FORM.fullmatch(rest)
    assert found is not None
    place = _place(resolved.uri)
    with Store(cache_folder()).lock(digest_json(resolved.uri), resolved.uri), disk_errors("cannot write to the cache"):
        if place.is_dir():
            return _of(place, found["path"])
        beside = place.with_name(f".{place.name}")
        shutil.rmtree(beside, ignore_errors=True)  # of a killed fetch
        try:
            _download(hub, found["name"], found["revision"], found["path"], beside)
        except (HermitcrabError, OSError):
            raise
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise HermitcrabError(f"{resolved.uri}: cannot be downloaded ({type(error).__name__}: {why})") from error
        for hidden in beside.glob(".*"):  # the library's own notes
            shutil.rmtree(hidden, ignore_errors=True)
        if not beside.is_dir() or not files_below(beside):
            raise HermitcrabError(f"{resolved.uri}: the data set has no file of this path")
        if linked := next((p for p in beside.rglob("*") if p.is_symlink()), None):
            raise HermitcrabError(f"{resolved.uri}: {linked.name} is a link, not a file; refused")
        os.replace(beside, place)
    return _of(place, found["path"])
