"""A package on its way to somewhere else: found by what a user names, verified, every file with its digest. Torch-free."""

from __future__ import annotations

import re
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermitcrab.digest import digest_file
from hermitcrab.errors import Contradiction, HermitcrabError, UsageError, did_you_mean
from hermitcrab.lineage import bundle
from hermitcrab.lineage.card import plain
from hermitcrab.lineage.verify import entries, of_a_hub, verify
from hermitcrab.models.tokenizer import read_json_file
from hermitcrab.progress import progress, say, warn
from hermitcrab.references import Resolved, fetch, resolve
from hermitcrab.store import Store

RECORD = "hermitcrab.json"
LONGEST = 255  # bytes of one part of a file's name: what common file systems take
UNSAFE = re.compile(r"[\x00-\x1f\x7f\\:*?\"<>|\u0080-\u009f\u2028-\u202e\u2066-\u2069\ufeff]")


@dataclass(frozen=True)
class File:
    """`path` is relative to the package, POSIX; `sha256` hex digits; `size` bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Packaged:
    """A package, or with `--unverified` any folder.

    Attributes:
        record: hermitcrab.json as far as it was checked (`name`, `task`, `license` are texts), empty where there is none.
        files: every file; where the package was verified, with the digests that the signature covers.
        verified: what verification found, or None where nothing vouches for it.
    """

    path: Path
    record: dict[str, Any]
    files: list[File]
    verified: str | None

    @property
    def name(self) -> str:
        return str(self.record.get("name") or self.path.resolve().name)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def find_package(what: str, store: Store, key: Path | None = None, unverified: bool = False) -> Packaged:
    """The package that `what` names: its folder, a run's name or folder, or a reference.

    Raises:
        UsageError: no such package, or what is none, without `unverified`.
        Contradiction, HermitcrabError: one that does not verify, without `unverified`; a file that cannot be sent.
    """
    path, _ = place_of(what, store)
    if not path.is_dir():
        raise UsageError(f"{what}: expected the folder of a package. Received: a file")
    if not (path / RECORD).is_file() and not unverified:
        raise no_package(what)
    told = vouched(path, key, unverified)
    record = _record(path) if (path / RECORD).is_file() else {}
    return Packaged(path, record, _files(path, told is not None), told)


def place_of(what: str, store: Store) -> tuple[Path, Resolved]:
    """Where the package or model lies that a user names: a folder, a run's name or folder, or a reference.

    Raises:
        UsageError: no such thing.
        HermitcrabError: a run without a package.
    """
    runs = store.runs()
    named = what.removeprefix("run:")
    path = Path(what).expanduser()
    if path.is_dir():
        inside = path / "package"
        path = inside if (path / "run.json").is_file() and inside.is_dir() else path
        return path, Resolved(what, what, "", path, None, "folder")
    if named in runs:
        path = Path(runs[named]["folder"]) / "package"
        if not path.is_dir():
            raise HermitcrabError(f"run {named} has no package at {path}; the same `crab run` makes it")
        return path, Resolved(what, f"run:{named}", "", path, None, "folder")
    if ":" not in what and not path.exists():
        raise UsageError(f"{what}: no such folder, file or run{did_you_mean(what, runs) if runs else ''}")
    found = resolve(what, None, store)
    return fetch(found, store), found


def no_package(what: str) -> UsageError:
    return UsageError(
        f"{what}: is no package (it has no {RECORD}), so nothing vouches for it; --unverified uses it all the same"
    )


def vouched(path: Path, key: Path | None, unverified: bool) -> str | None:
    """What verification found of a package; None where it found fault and `unverified` uses it all the same.

    Raises:
        Contradiction, HermitcrabError: it does not verify.
    """
    found = verify(path, key)
    if found.ok:
        say(f"{path}: {found.summary}")
        return found.summary
    why = f"{path}: {found.summary}: " + "; ".join(check.message for check in found.failures[:3])
    if not unverified:
        raise (Contradiction if found.contradiction else HermitcrabError)(f"{why}. --unverified uses it all the same")
    warn(f"{why}. It is used because of --unverified")
    return None


def _record(path: Path) -> dict[str, Any]:
    found = read_json_file(path / RECORD)
    for field in ("name", "task", "license"):
        if not isinstance(found, dict) or not isinstance(found.get(field), str):
            raise HermitcrabError(f"{path / RECORD}: expected `{field}`, a text; this is no record of a package")
    return dict(found)


def _files(path: Path, verified: bool) -> list[File]:
    """The files as they were signed, else as they lie there. Links and the like are refused: they lead elsewhere."""
    names, sizes = [], {}
    for name, info, _ in entries(path):
        if isinstance(info, OSError):
            raise HermitcrabError(f"{plain(path / name)}: cannot be read: {info.strerror}")
        if not stat.S_ISREG(info.st_mode) and not stat.S_ISDIR(info.st_mode):
            raise HermitcrabError(f"{plain(path / name)}: a link or no regular file; a package holds files alone")
        if stat.S_ISREG(info.st_mode) and not of_a_hub(name):
            check_name(name)
            names.append(name)
            sizes[name] = info.st_size
    _check_apart(names)
    names.sort()
    signed = bundle.read_bundle((path / bundle.NAME).read_bytes()).files() if verified else {}
    with progress("reading", sum(sizes[name] for name in names if name not in signed) / 1e6, "MB") as bar:
        return [
            File(name, signed.get(name) or _digest(path / name, bar), sizes[name])
            for name in names
            if name in signed or name == bundle.NAME or not verified
        ]


def _digest(path: Path, bar: Any) -> str:
    return digest_file(path, lambda count: bar.add(count / 1e6)).removeprefix("sha256:")


def _check_apart(names: list[str]) -> None:
    """Names that differ, and are one name where letters have no case or accents one spelling."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise HermitcrabError(
                f"{plain(other)!r} and {plain(name)!r} are one file on some systems; they cannot be sent together"
            )


def check_name(name: str) -> None:
    """Refuse a file whose name would not arrive as it is, or would be something else where it arrives.

    Raises:
        HermitcrabError: control or formatting characters, backslashes and the like, `.git`, parts that are too long.
    """
    parts = name.split("/")
    try:
        long = any(len(part.encode()) > LONGEST for part in parts)
    except UnicodeEncodeError:
        raise HermitcrabError(
            f"{plain(name)!r}: the name of this file is no valid Unicode; it cannot be sent"
        ) from None
    if UNSAFE.search(name) or long or any(part in ("", ".", "..") or part.lower() == ".git" for part in parts):
        raise HermitcrabError(
            f"{plain(name)!r}: a file with this name is not sent: it holds characters that other systems read otherwise, "
            "a part called `.git`, or is too long"
        )
