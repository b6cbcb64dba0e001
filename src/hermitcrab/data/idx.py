"""IDX: images and their labels in two files, as MNIST and its kin come (Y. LeCun, "The MNIST database": the format is at its end).

    images: 00 00 08 03, count, height, width (or 08 04 and channels), then count x height x width bytes
    labels: 00 00 08 01, count, then a byte each

Integers are big-endian. A file holds exactly what its header says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from hermitcrab.data.files import open_data
from hermitcrab.data.images import LARGEST, encode_png
from hermitcrab.data.readers import Record, Rows, Table
from hermitcrab.errors import HermitcrabError

UNSIGNED = 8  # the type code of a byte


@contextmanager
def open_idx(images: Path, labels: Path, name: str, labels_name: str) -> Iterator[Table]:
    """A pair of IDX files as a table of `image` (the bytes of a PNG) and `label` (a number, as text).

    Raises:
        HermitcrabError: a file that is not IDX, holds more or less than it says, or a pair that does not match.
    """
    with ExitStack() as stack:
        pictures = stack.enter_context(open_data(images, name))
        words = stack.enter_context(open_data(labels, labels_name))
        images_count, height, width, channels = _shape(pictures, name)
        (count,) = _header(words, labels_name, (1,))
        if images_count != count:
            raise HermitcrabError(f"{name} has {images_count:,} images, and {labels_name} has {count:,} labels")

        def rows(only: object) -> Rows:
            for position in range(count):
                pixels = _exactly(pictures, height * width * channels, name, position)
                label = _exactly(words, 1, labels_name, position)
                where = f"{name}: row {position + 1:,}"
                yield Record(
                    position, where, {"image": encode_png(pixels, height, width, channels), "label": str(label[0])}
                )
            _ended(pictures, name, count)
            _ended(words, labels_name, count)

        yield Table(["image", "label"], rows)


def read_images(path: Path, name: str) -> list[tuple[str, bytes]]:
    """The images of an IDX file, each with its name and as the bytes of a PNG; no labels are asked for.

    Raises:
        HermitcrabError: as `open_idx`.
    """
    with open_data(path, name) as stream:
        count, height, width, channels = _shape(stream, name)
        found = []
        for position in range(count):
            pixels = _exactly(stream, height * width * channels, name, position)
            found.append((f"{name}: image {position + 1:,}", encode_png(pixels, height, width, channels)))
        _ended(stream, name, count)
    return found


def _shape(stream: BinaryIO, name: str) -> tuple[int, int, int, int]:
    """Count, height, width, channels of a file of images."""
    count, height, width, channels = (*_header(stream, name, (3, 4)), 1)[:4]
    if channels not in (1, 3):
        raise HermitcrabError(f"{name}: its images have {channels} channels; expected 1 or 3")
    if not 0 < height * width <= LARGEST:
        raise HermitcrabError(f"{name}: its images have {height:,} x {width:,} pixels; expected 1 to {LARGEST:,}")
    return count, height, width, channels


def _ended(stream: BinaryIO, name: str, count: int) -> None:
    if stream.read(1):
        raise HermitcrabError(f"{name}: goes on behind the {count:,} items that its header says it has")


def _header(stream: BinaryIO, name: str, dimensions: tuple[int, ...]) -> tuple[int, ...]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != UNSIGNED or magic[3] not in dimensions:
        wanted = " or ".join(f"00 00 08 {n:02d}" for n in dimensions)
        raise HermitcrabError(
            f"{name}: is no IDX file of this kind; it begins with {magic.hex(' ')}, expected {wanted}"
        )
    raw = stream.read(4 * magic[3])
    if len(raw) < 4 * magic[3]:
        raise HermitcrabError(f"{name}: ends within its header")
    return struct.unpack(f">{magic[3]}I", raw)


def _exactly(stream: BinaryIO, size: int, name: str, position: int) -> bytes:
    found = stream.read(size)
    if len(found) < size:
        raise HermitcrabError(f"{name}: row {position + 1:,}: the file ends here, before what its header says it has")
    return found
