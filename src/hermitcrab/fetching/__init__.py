"""What lies on other machines: one file of a web server or an object store, files of a hub's data set, what a database answers.

A download goes on where it broke off, as long as the file is still the same by its ETag; it enters the cache of the user whole or
not at all. `find` asks for the headers alone: they tell a changed file from the one that is cached.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from hermitcrab.digest import digest_file, digest_json
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.progress import progress, warn
from hermitcrab.references import Resolved, cache_folder, check_digest
from hermitcrab.store import Store, disk_errors, read_json, sync_folder, write_json

ATTEMPTS = 5  # connections without a byte more, before it is said that it does not work
LARGEST = 1 << 38  # bytes of a file
PINNED = "pinned"  # the revision of what is known by the sha256 of its bytes
SPARE = 1 << 28  # bytes of the disk that a download leaves free


@dataclass(frozen=True)
class Mark:
    """What a server says that tells a file from a later one."""

    tag: str | None
    modified: str | None
    size: int | None


class Broken(Exception):
    """A connection that ended or hung; it can be tried again."""


class Origin(Protocol):
    uri: str
    """As it is recorded and told: without credentials."""
    key: str
    """The digest of the whole address, which tells it from every other."""

    def look(self) -> Mark: ...

    def open(self, start: int, mark: Mark) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
        """Where the bytes begin (`start`, or 0 where the server does not do parts), and the bytes.

        Raises:
            Broken: the connection failed.
            HermitcrabError: the file is another one now, is not there, or is not given to us.
        """
        ...


def find(reference: str, scheme: str, sha256: str | None, store: Store) -> Resolved:
    """What a remote reference means; of a database, what it answers now."""
    from hermitcrab.references import DATABASES

    if scheme in DATABASES:
        from hermitcrab.fetching.sql import answer

        return answer(reference, scheme, sha256)
    origin, kind = _origin(reference), "s3" if scheme == "s3" else "https"
    folder = _folder(origin)
    note = _note(folder)
    if sha256 is not None:
        same = note.get("sha256") == sha256 and (folder / "data").is_file()
        return Resolved(reference, origin.uri, sha256, folder / "data" if same else None, PINNED, kind)
    mark = _looked(origin)
    if not (mark.tag or mark.modified):
        raise UsageError(
            f"{origin.uri}: the server tells neither an ETag nor a time by which a changed file could be noticed; give its sha256"
        )
    identity = digest_json({"uri": origin.uri, **asdict(mark)})
    cached = note.get("mark") == asdict(mark) and (folder / "data").is_file()
    return Resolved(reference, origin.uri, identity, folder / "data" if cached else None, mark.tag, kind)


def bring(resolved: Resolved, reference: str) -> Path:
    """The file in the user's cache, with the sha256 of the recipe where that names one."""
    if resolved.kind == "dataset":
        from hermitcrab.fetching.hubs import bring_dataset

        return bring_dataset(resolved)
    origin = _origin(reference)
    folder = _folder(origin)
    pinned = resolved.revision == PINNED
    with Store(cache_folder()).lock(origin.key, origin.uri), disk_errors("cannot write to the cache"):
        folder.mkdir(parents=True, exist_ok=True)
        mark, before = _looked(origin), _note(folder)
        if not pinned and digest_json({"uri": origin.uri, **asdict(mark)}) != resolved.identity:
            raise HermitcrabError(f"{origin.uri}: changed while this ran; run again")
        digest = _download(origin, mark, folder)
        if pinned:
            try:
                check_digest(origin.uri, digest, resolved.identity)
            except HermitcrabError:
                (folder / "partial").unlink()
                raise
        if before.get("sha256", digest) != digest:
            warn(f"{origin.uri}: is not what it was when it was last fetched. Was: {before['sha256']}, is: {digest}")
        os.replace(folder / "partial", folder / "data")
        write_json(folder / "note.json", {"uri": origin.uri, "mark": asdict(mark), "sha256": digest})
        sync_folder(folder)
    return folder / "data"


def _origin(reference: str) -> Origin:
    if reference.startswith("s3:"):
        from hermitcrab.fetching.s3 import Bucket

        return Bucket(reference)
    from hermitcrab.fetching.http import Web

    return Web(reference)


def _folder(origin: Origin) -> Path:
    return cache_folder("remote", origin.key.removeprefix("sha256:")[:32])


def _note(folder: Path) -> dict[str, object]:
    try:
        found = read_json(folder / "note.json")
    except (OSError, HermitcrabError):
        return {}
    return found if isinstance(found, dict) else {}


def _download(origin: Origin, mark: Mark, folder: Path) -> str:
    """All bytes into `partial`, going on with what an earlier one left of the same file; their digest."""
    partial, sign = folder / "partial", folder / "partial.json"
    try:
        same = mark.tag is not None and read_json(sign) == asdict(mark)
    except (OSError, HermitcrabError):
        same = False
    if not same:
        partial.unlink(missing_ok=True)
    write_json(sign, asdict(mark))
    most = min(LARGEST, max(0, shutil.disk_usage(folder).free - SPARE))
    if mark.size is not None and mark.size > most:
        raise HermitcrabError(f"{origin.uri}: has {mark.size:,} bytes; at most {most:,} can be taken in here")
    failed, why = 0, ""
    with progress(f"downloading {origin.uri}", mark.size, "bytes") as bar:
        while True:
            start = partial.stat().st_size if partial.exists() else 0
            if mark.size is not None and start == mark.size:
                break
            try:
                with origin.open(start, mark) as (begins, chunks), open(partial, "ab") as out:
                    out.truncate(begins)
                    bar.add(begins - bar.done)
                    for chunk in chunks:
                        out.write(chunk)
                        bar.add(len(chunk))
                        if out.tell() > (most if mark.size is None else mark.size):
                            out.truncate(0)
                            said = (
                                f"the {mark.size:,} that it says"
                                if mark.size is not None
                                else f"{most:,}, the most that is taken in here"
                            )
                            raise HermitcrabError(f"{origin.uri}: sends more bytes than {said}; refused")
                if mark.size is None or partial.stat().st_size == mark.size:
                    break
                raise Broken(f"it ended after {partial.stat().st_size:,} bytes of {mark.size:,}")
            except Broken as error:
                why = str(error)
                now = partial.stat().st_size if partial.exists() else 0
                failed = 0 if now > start else failed + 1
                if failed >= ATTEMPTS:
                    raise HermitcrabError(
                        f"{origin.uri}: the download broke off {failed} times at byte {now:,}: {why}; run again to go on from there"
                    ) from error
    sign.unlink()
    return digest_file(partial)


def _looked(origin: Origin) -> Mark:
    for attempt in range(2):
        try:
            return origin.look()
        except Broken as error:
            if attempt:
                raise HermitcrabError(f"{origin.uri}: {error}") from error
    raise AssertionError
