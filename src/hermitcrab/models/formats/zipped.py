"""The members of a zip file from a stranger: where each lies, none overlapping, none larger unpacked than it may be.

APPNOTE.TXT 6.3.10 (PKWARE). Python's `zipfile` reads the directory; no member is ever extracted to disk, so a name that
climbs leads nowhere.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats.weights import Handle, shown

MOST_RATIO = 1100  # deflate cannot do better than 1,032 to 1
MOST_UNPACKED = 256 << 20  # bytes that compressed members may unpack to together, beyond 20 times the file
LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Member:
    name: str
    offset: int
    packed: int
    size: int
    deflated: bool


def members(handle: Handle) -> dict[str, Member]:
    """The members of an open zip file by name.

    Raises:
        HermitcrabError: no zip file, cut off, encrypted, overlapping, a name twice, or a bomb.
    """
    path = handle.path
    try:
        with open(handle.descriptor, "rb", closefd=False) as stream, zipfile.ZipFile(stream) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError, EOFError) as error:
        raise HermitcrabError(f"{path}: is no readable zip file ({shown(str(error))})") from error
    found: dict[str, Member] = {}
    for entry in listed:
        name = entry.filename
        if name in found:
            raise HermitcrabError(f"{path}: the member `{shown(name)}` stands twice in the zip file")
        if entry.flag_bits & 0x1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise HermitcrabError(f"{path}: the member `{shown(name)}` is encrypted or packed in an unknown way")
        deflated = entry.compress_type == zipfile.ZIP_DEFLATED
        if not deflated and entry.compress_size != entry.file_size:
            raise HermitcrabError(f"{path}: the member `{shown(name)}` has two sizes; the zip file is damaged")
        if deflated and entry.file_size > MOST_RATIO * entry.compress_size + 64:
            raise HermitcrabError(
                f"{path}: the member `{shown(name)}` says that it unpacks to {entry.file_size:,} bytes"
            )
        head = handle.read(entry.header_offset, LOCAL.size, f"the head of `{shown(name)}`").tobytes()
        mark, *_, name_length, extra_length = LOCAL.unpack(head)
        if mark != b"PK\x03\x04":
            raise HermitcrabError(f"{path}: the member `{shown(name)}` does not lie where the zip directory says")
        start = entry.header_offset + LOCAL.size + name_length + extra_length
        if start + entry.compress_size > handle.size:
            raise HermitcrabError(f"{path}: the member `{shown(name)}` would end beyond the file; it is cut off")
        found[name] = Member(name, start, entry.compress_size, entry.file_size, deflated)
    _sound(path, handle.size, list(found.values()))
    return found


def _sound(path: Path, size: int, found: list[Member]) -> None:
    """No overlap, and no bomb: what is deflated may unpack to twenty times the file and a little."""
    end = 0
    for member in sorted(found, key=lambda m: (m.offset, m.packed)):
        if member.packed and member.offset < end:
            raise HermitcrabError(f"{path}: the member `{shown(member.name)}` overlaps another; refused")
        end = max(end, member.offset + member.packed)
    total = sum(member.size for member in found if member.deflated)
    if total > 20 * size + MOST_UNPACKED:
        raise HermitcrabError(f"{path}: {size:,} bytes say that they unpack to {total:,}; refused as a zip bomb")


def unpack(path: Path, name: str, raw: np.ndarray, size: int) -> np.ndarray:
    """A deflated member's bytes, exactly `size` of them: uint8."""
    try:
        stream = zlib.decompressobj(-15)
        data = stream.decompress(raw.tobytes(), size + 1)
    except zlib.error as error:
        raise HermitcrabError(f"{path}: the member `{shown(name)}` is damaged ({shown(str(error))})") from error
    if len(data) != size:
        raise HermitcrabError(
            f"{path}: the member `{shown(name)}` does not unpack to the {size:,} bytes that it promised"
        )
    return np.frombuffer(bytearray(data), np.uint8)
