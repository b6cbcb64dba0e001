"""A data file as a stream of bytes: gzip is seen by its first two bytes and unpacked on the way, within bounds.

A gzip of a few megabytes can unpack to gigabytes. Text that people write packs to between a half and a twentieth of its
size; beyond `RATIO` times the packed bytes (with `FREE` bytes allowed in any case) a file is refused.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from hermitcrab.errors import HermitcrabError, UsageError

RATIO = 200
FREE = 64 << 20
GZIP = b"\x1f\x8b"
ENDINGS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
    ".txt": "text",
}  # fmt: skip
KINDS = ("csv", "tsv", "jsonl", "parquet", "text", "lines", "idx")


def kind_of(name: str, declared: str = "auto") -> str:
    """What a file is: as declared, or by the ending of its name (`.gz` set aside)."""
    if declared != "auto":
        return declared
    ending = Path(name.lower().removesuffix(".gz")).suffix
    if ending not in ENDINGS:
        raise UsageError(
            f"{name}: its ending `{ending}` does not tell what it is; set `type` to one of: {', '.join(KINDS)}, "
            f"or rename it to one of: {', '.join(ENDINGS)}"
        )
    return ENDINGS[ending]


class _Unpacked(io.RawIOBase):
    """The bytes inside a gzip stream; whatever is wrong with it is one sentence."""

    def __init__(self, packed: BinaryIO, name: str):
        self.packed, self.name, self.count = packed, name, 0
        self.inner = gzip.GzipFile(fileobj=packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        try:
            count = self.inner.readinto(cast(bytearray, buffer))
        except EOFError as error:
            raise HermitcrabError(f"{self.name}: the gzip stream ends too early; the file is cut short") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise HermitcrabError(f"{self.name}: the gzip stream is damaged: {error}") from error
        self.count += count
        if self.count > FREE and self.count > RATIO * self.packed.tell():
            raise HermitcrabError(
                f"{self.name}: unpacks to over {RATIO} times its size, which no text does; refused after "
                f"{self.count >> 20:,} MiB. If it is what you mean, unpack it yourself and name the unpacked file"
            )
        return count


@contextmanager
def open_data(path: Path, name: str) -> Iterator[BinaryIO]:
    """The bytes of a data file, unpacked where it is gzip. `name` is what messages call it."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; only its opening is explained here
    except IsADirectoryError as error:
        raise HermitcrabError(f"{name}: is a folder; expected a data file") from error
    except OSError as error:
        raise HermitcrabError(f"{name}: cannot be read: {error.strerror}") from error
    with file:
        packed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        yield cast(BinaryIO, io.BufferedReader(_Unpacked(file, name))) if packed else file
