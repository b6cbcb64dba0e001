"""A data file as a stream of bytes: gzip and zstd are seen by their first bytes and unpacked on the way, within bounds.

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
from typing import Any, BinaryIO, cast

from hermitcrab.errors import HermitcrabError, UsageError

RATIO = 200
FREE = 64 << 20
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
PACKED = (".gz", ".zst")
ENDINGS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
    ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow", ".txt": "text", ".html": "html", ".htm": "html", ".pdf": "pdf",
    ".warc": "warc",
}  # fmt: skip
MEDIA = {"images": "image", "audio": "audio", "coco": "image", "voc": "image"}  # folders: what a row's file holds
KINDS = ("csv", "tsv", "jsonl", "parquet", "arrow", "text", "lines", "html", "pdf", "warc", "idx", *MEDIA)


def kind_of(name: str, declared: str = "auto") -> str:
    """What a file is: as declared, or by the ending of its name (`.gz` and `.zst` set aside)."""
    if declared != "auto":
        return declared
    plain = name.lower()
    for packed in PACKED:
        plain = plain.removesuffix(packed)
    ending = Path(plain).suffix
    if ending not in ENDINGS:
        raise UsageError(
            f"{name}: its ending `{ending}` does not tell what it is; set `type` to one of: {', '.join(KINDS)}, "
            f"or rename it to one of: {', '.join(ENDINGS)}"
        )
    return ENDINGS[ending]


class _Unpacked(io.RawIOBase):
    """The bytes inside a packed stream; whatever is wrong with it is one sentence."""

    def __init__(self, packed: BinaryIO, name: str, how: str):
        self.packed, self.name, self.how, self.count = packed, name, how, 0
        self.inner = gzip.GzipFile(fileobj=packed) if how == "gzip" else _zstd(packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        try:
            count = self.inner.readinto(cast(bytearray, buffer))
        except EOFError as error:
            raise self._cut_short() from error
        except (gzip.BadGzipFile, zlib.error, OSError) as error:
            if "runcated" in str(error):
                raise self._cut_short() from error
            raise HermitcrabError(f"{self.name}: the {self.how} stream is damaged: {error}") from error
        self.count += count
        if self.count > FREE and self.count > RATIO * self.packed.tell():
            raise HermitcrabError(
                f"{self.name}: unpacks to over {RATIO} times its size, which no text does; refused after "
                f"{self.count >> 20:,} MiB. If it is what you mean, unpack it yourself and name the unpacked file"
            )
        return count

    def _cut_short(self) -> HermitcrabError:
        return HermitcrabError(f"{self.name}: the {self.how} stream ends too early; the file is cut short")


def _zstd(packed: BinaryIO) -> Any:
    """Arrow's reader: unlike others it goes on behind the end of a frame, and tells a frame that is cut short."""
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(packed, "r"), "zstd")


@contextmanager
def open_data(path: Path, name: str) -> Iterator[BinaryIO]:
    """The bytes of a data file, unpacked where it is gzip or zstd. `name` is what messages call it."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; only its opening is explained here
    except IsADirectoryError as error:
        raise HermitcrabError(f"{name}: is a folder; expected a data file") from error
    except OSError as error:
        raise HermitcrabError(f"{name}: cannot be read: {error.strerror}") from error
    with file:
        head = file.read(len(ZSTD))
        how = "gzip" if head.startswith(GZIP) else "zstd" if head == ZSTD else None
        file.seek(0)
        yield cast(BinaryIO, io.BufferedReader(_Unpacked(file, name, how), 1 << 17)) if how else file
