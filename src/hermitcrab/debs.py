"""`deb:NAME=VERSION/PATH-IN-PACKAGE`: one file out of a Debian binary package, fetched by `apt-get download`.

Nothing is installed and no maintainer script run; the archive is read here, strictly, as deb(5) describes it: an `ar`
archive whose member `data.tar` holds the files. It is streamed, and neither sizes that it declares nor bytes that come
out of it pass the limits of `packages.py`. What is shared with wheels is there too.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import shutil
import subprocess
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from hermitcrab.digest import CHUNK
from hermitcrab.packages import Format, Member, Readable, last_line, most_bytes, refuse_bombs, run_download, write
from hermitcrab.progress import progress

MAGIC, HEADER = b"!<arch>\n", 60
XZ_MEMORY = 256 << 20  # bytes; `xz -9` needs 65 MiB
LONG_NAME = 1 << 16  # bytes
PLAIN = (b"\0", b"0", b"1", b"2", b"3", b"4", b"5", b"6")  # files, links, devices, folders, pipes
NAMES = 10_000  # kept to tell the nearest
UNREACHABLE = "Could not connect|Unable to connect|Could not resolve|Temporary failure|timed out|Connection failed|Could not handshake"


# apt


def _download(member: Member, folder: Path) -> Path:
    if shutil.which("apt-get") is None:
        raise member.error("needs apt-get, which this machine does not have; a path to the unpacked file works too")
    command = ["apt-get", "download", "-q", "--", member.requirement]
    failed = run_download(member, command, folder, cwd=folder, LC_ALL="C")
    # apt reads a name that it does not know as a regular expression: what came must be what was asked.
    found = [path for path in folder.glob("*.deb") if path.name.startswith(f"{member.name}_")]
    if failed is not None or len(found) != 1:
        raise member.error(_why(failed or "", member))
    return found[0]


def _why(stderr: str, member: Member) -> str:
    """apt's failure in one sentence."""
    name, asked = member.name, member.requirement
    if re.search(UNREACHABLE, stderr):
        return f"the package registry cannot be reached to fetch {asked}; check the network and apt's settings"
    if re.search(r"^E: Failed to fetch .* 404 ", stderr, re.MULTILINE):
        return f"apt's lists have {asked} and the registry no longer does; run `apt-get update` to see what it has"
    known = _known(name)
    if not known:
        return f"apt knows no package {name}; check the name, or run `apt-get update` if its lists are missing or old"
    if member.version not in known:
        return f"apt knows no {asked}; it has {', '.join(known[:8])}; `apt-get update` may be needed"
    errors = "\n".join(line[3:] for line in stderr.splitlines() if line.startswith("E: "))
    return f"apt-get could not fetch {asked} ({last_line(errors)})"


def _known(name: str) -> list[str]:
    """The versions of a binary package that apt could download."""
    if shutil.which("apt-cache") is None:
        return []
    command = ["apt-cache", "madison", "--", name]
    said = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout
    rows = [[part.strip() for part in line.split("|")] for line in said.splitlines()]
    rows = [row for row in rows if len(row) == 3 and row[0] == name and row[2].endswith("Packages")]  # not Sources
    return list(dict.fromkeys(row[1] for row in rows))


# ar


class _Part(io.RawIOBase):
    """The bytes of one member of an `ar` archive."""

    def __init__(self, file: IO[bytes], start: int, size: int):
        self.file, self.size, self.done = file, size, 0
        file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(min(len(buffer), self.size - self.done))
        buffer[: len(data)] = data
        self.done += len(data)
        return len(data)


def _data(member: Member, file: IO[bytes]) -> tuple[str, _Part]:
    """`data.tar` of a package: how it is compressed ("" or an ending), and its bytes."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(len(MAGIC)) != MAGIC:
        raise member.damaged("it is no ar archive")
    at, first, found = len(MAGIC), True, []
    while at < end:
        file.seek(at)
        header = file.read(HEADER)
        name = header[:16].decode("latin-1").rstrip(" ").removesuffix("/")
        digits = header[48:58].rstrip(b" ")
        if len(header) != HEADER or header[58:] != b"`\n" or not digits.isdigit():
            raise member.damaged(f"no ar header at byte {at:,}")
        start, size = at + HEADER, int(digits)
        if start + size > end:
            raise member.damaged(f"a member declares {size:,} bytes and {end - start:,} follow")
        if first and (name != "debian-binary" or not file.read(size).startswith(b"2.")):
            raise member.damaged("it does not begin with `debian-binary` 2.x")
        if name.partition(".")[0] == "data":
            found.append((name.removeprefix("data.tar").removeprefix("."), start, size))
        at, first = start + size + size % 2, False
    if len(found) != 1:
        raise member.damaged(f"it has {len(found)} members data.tar, expected 1")
    ending, start, size = found[0]
    return ending, _Part(file, start, size)


# Decompression


class _Xz:
    """What comes out of an xz stream, with a bound on the memory that its header may ask for (`lzma.open` has none)."""

    def __init__(self, part: _Part):
        self.part, self.state = part, lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)

    def read(self, size: int, /) -> bytes:
        while not self.state.eof:
            packed = (self.part.read(CHUNK) or b"") if self.state.needs_input else b""
            if self.state.needs_input and not packed:
                raise EOFError("the xz stream ends early")
            if data := self.state.decompress(packed, size):
                return data
        return b""


def _decompressed(member: Member, ending: str, part: _Part) -> Readable:
    if ending == "xz":
        return _Xz(part)
    if ending == "zst":
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.PythonFile(part, "r"), "zstd")
    if ending == "gz":
        return gzip.GzipFile(fileobj=part)
    if ending == "bz2":
        return bz2.BZ2File(part)
    if ending == "":
        return part
    raise member.damaged(f"data.tar is packed as {ending!r}, expected xz, zst, gz, bz2 or nothing")


class _Bounded:
    """The tar archive as tarfile reads it: never more than may come out of a package, never less than it asks for."""

    def __init__(self, member: Member, source: Readable, packed: int):
        self.member, self.source, self.packed, self.done = member, source, packed, 0

    def read(self, size: int, /) -> bytes:
        try:
            data = self.source.read(size)
        except (OSError, EOFError, ValueError, MemoryError, lzma.LZMAError, zlib.error) as error:
            raise self.member.damaged(error) from error
        self.done += len(data)
        if not data:
            raise self.member.damaged("data.tar ends early")
        if self.done > most_bytes(self.packed):
            raise self.member.error(
                f"{self.packed:,} bytes unpack to over {self.done:,}; refused (a decompression bomb)"
            )
        return data


# tar


class _Header(tarfile.TarInfo):
    """A tar header as deb(5) allows it: old, ustar, GNU long names. Pax headers and sparse files, which tarfile would read
    into memory whole, are errors there too."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        if not any(buf):  # the end of the archive
            return super().frombuf(buf, encoding, errors)
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:  # tarfile itself would take it for the end
            raise ValueError(f"in data.tar: {error}") from error
        long_name = info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if not long_name and info.type not in PLAIN:
            raise ValueError(f"data.tar has a header of type {info.type!r}")
        if info.size < 0 or (long_name and info.size > LONG_NAME):
            raise ValueError(f"data.tar has a header that declares {info.size:,} bytes")
        return info


def _find(member: Member, tar: _Bounded, part: _Part, out: Path) -> tuple[Readable, int]:
    """The member's bytes and their number."""
    names: list[str] = []
    last = PurePosixPath(member.path).name
    with progress(f"searching {member.requirement}", part.size, "bytes") as bar:
        archive = tarfile.open(fileobj=cast(IO[bytes], tar), mode="r|", tarinfo=_Header, bufsize=1 << 16)  # noqa: SIM115
        while (info := archive.next()) is not None:
            bar.add(part.done - bar.done)
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            name = info.name.removeprefix("./")
            if name == member.path:
                if not info.isreg():
                    raise member.no_file()
                refuse_bombs(member, info.size, part.size, out)
                source = archive.extractfile(info)
                assert source is not None
                return source, info.size
            if info.isreg() and (len(names) < NAMES or PurePosixPath(name).name == last):
                names.append(name)
    raise member.absent(names)


def _unpack(member: Member, package: Path, out: Path) -> str:
    """Unpack one member to `out` and return its digest. Never a link."""
    with open(package, "rb") as file:
        ending, part = _data(member, file)
        tar = _Bounded(member, _decompressed(member, ending, part), part.size)
        try:
            source, size = _find(member, tar, part, out)
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise member.damaged(error) from error
        return write(member, source, size, out)


DEB = Format(
    kind="deb",
    container="Debian package",
    equals="=",
    form="deb:NAME=VERSION/PATH-IN-PACKAGE",
    example="deb:dataset-fashion-mnist=0.0~git20200523.55506a9-1/usr/share/datasets/fashion-mnist/train-labels-idx1-ubyte.gz",
    name=re.compile(r"[a-z0-9][a-z0-9.+-]+"),
    version=re.compile(r"(?:[0-9]+:)?[A-Za-z0-9][A-Za-z0-9.+~-]*"),
    download=_download,
    unpack=_unpack,
)
