"""What every weight file looks like to its readers: named tensors, read one at a time, torch-free.

Headers come from strangers. A reader believes no length that it has not compared with the size of the file, and each
malformed file ends in a `HermitcrabError` that names the file and what in it lies. Tensors are read into fresh memory
rather than through a memory map: a mapped file that somebody shortens kills the process, and parameters at odd
addresses give sums that differ in their last bit from run to run.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError, did_you_mean

LARGEST_DIMENSION = 1 << 48
MOST_DIMENSIONS = 32


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `shape` has the slowest dimension first, `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    file: Path

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Stamp:
    """A file as it was when its header was read; a later read finds the same file or says that it changed."""

    size: int
    changed: int
    inode: int

    @classmethod
    def of(cls, seen: os.stat_result) -> Stamp:
        return cls(seen.st_size, seen.st_mtime_ns, seen.st_ino)


@dataclass(frozen=True)
class Weights:
    """The tensors of a model: one file, or the shards of one index.

    `decode` turns a tensor's bytes (uint8, fresh memory) into numbers: float32 for every floating type of the file
    but float64, the integer type itself otherwise.
    """

    path: Path
    format: str
    tensors: dict[str, TensorInfo]
    metadata: dict[str, Any]
    stamps: dict[Path, Stamp]
    decode: Callable[[TensorInfo, np.ndarray], np.ndarray] = field(repr=False)
    streams: bool = True
    """Rows of a tensor lie behind one another and decode on their own, so that a part can be read without the whole."""

    @property
    def files(self) -> list[Path]:
        return list(self.stamps)

    @property
    def parameters(self) -> int:
        return sum(info.elements for info in self.tensors.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """Tensors by dtype."""
        return dict(sorted(Counter(info.dtype for info in self.tensors.values()).items()))

    def info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise HermitcrabError(f"{self.path}: has no tensor `{name}`{did_you_mean(name, list(self.tensors)[:5000])}")
        return self.tensors[name]

    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes as the file holds them: uint8 of shape (nbytes,)."""
        info = self.info(name)
        with open_checked(info.file, self.stamps[info.file]) as handle:
            return handle.read(info.offset, info.nbytes, f"tensor `{name}`")

    def read(self, name: str) -> np.ndarray:
        """The tensor's numbers, in its shape, in fresh memory."""
        info = self.info(name)
        try:
            return self.decode(info, self.raw(name)).reshape(info.shape)
        except ValueError as error:  # an empty tensor with other sizes beyond what an array can have
            raise HermitcrabError(f"{info.file}: tensor `{name}` of shape {list(info.shape)} cannot be read") from error

    def opened(self) -> OpenWeights:
        """The files held open, for many small reads; use it in a `with`."""
        return OpenWeights(self)


class OpenWeights:
    """Reads of rows from files that stay open: bounded memory at any size of tensor. Safe to share among threads."""

    def __init__(self, weights: Weights):
        self.weights = weights
        self.handles: dict[Path, Handle] = {}
        self.bytes_read = 0

    def __enter__(self) -> OpenWeights:
        try:
            for path, stamp in self.weights.stamps.items():
                self.handles[path] = open_checked(path, stamp)
        except HermitcrabError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles.values():
            handle.__exit__()
        self.handles = {}

    def raw_rows(self, name: str, start: int, stop: int, into: np.ndarray | None = None) -> np.ndarray:
        """The bytes of rows `start` to `stop` along the first axis (uint8), read into the head of `into` where given."""
        info = self.weights.info(name)
        if not self.weights.streams or not info.shape or info.nbytes % max(info.shape[0], 1):
            raise HermitcrabError(f"{info.file}: tensor `{name}` cannot be read in parts")
        width = info.nbytes // max(info.shape[0], 1)
        self.bytes_read += (stop - start) * width
        return self.handles[info.file].read(
            info.offset + start * width, (stop - start) * width, f"tensor `{name}`", into
        )

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` along the first axis, decoded: shape (stop - start, *rest)."""
        info = self.weights.info(name)
        shape = (stop - start, *info.shape[1:])
        part = TensorInfo(info.name, info.dtype, shape, info.offset, 0, info.file)
        return self.weights.decode(part, self.raw_rows(name, start, stop)).reshape(shape)


class Handle:
    """An open regular file of known size."""

    def __init__(self, path: Path, descriptor: int):
        self.path, self.descriptor = path, descriptor
        self.stamp = Stamp.of(os.fstat(descriptor))
        self.size = self.stamp.size

    def read(self, offset: int, count: int, what: str, into: np.ndarray | None = None) -> np.ndarray:
        """`count` bytes at `offset`; short is an error, for the file lost bytes under us. `into`: memory to use again."""
        if offset + count > self.size:
            raise HermitcrabError(
                f"{self.path}: {what} would end at byte {offset + count:,}, but the file has {self.size:,}; "
                "it is cut off"
            )
        buffer = np.empty(count, np.uint8) if into is None else into[:count]
        view, done = buffer.data, 0
        while done < count:
            got = os.preadv(self.descriptor, [view[done : done + (1 << 30)]], offset + done)
            if got == 0:
                raise HermitcrabError(f"{self.path}: the file was shortened while {what} was read")
            done += got
        return buffer

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def open_checked(path: Path, stamp: Stamp | None = None) -> Handle:
    """Open a regular file, never through a symbolic link; with `stamp`, only if it is still that file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink():
            raise HermitcrabError(
                f"{path}: is a symbolic link; weights are read from plain files only (for a hub's cache give the "
                "reference, such as hf:ORG/NAME@REVISION)"
            ) from error
        raise HermitcrabError(f"{path}: cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise HermitcrabError(f"{path}: is not a regular file")
    handle = Handle(path, descriptor)
    if stamp is not None and handle.stamp != stamp:
        os.close(descriptor)
        raise HermitcrabError(f"{path}: the file changed after its header was read")
    return handle


def shown(name: object) -> str:
    """A name from a stranger's file, fit for a message: short, printable."""
    text = ascii(name)[1:-1] if isinstance(name, str) else ascii(name)
    return text if len(text) <= 80 else text[:77] + "..."


def checked_shape(path: Path, name: str, shape: Any) -> tuple[int, ...]:
    """A shape whose sizes are plain whole numbers that fit on a machine."""
    if not isinstance(shape, (list, tuple)) or len(shape) > MOST_DIMENSIONS:
        raise HermitcrabError(f"{path}: tensor `{shown(name)}`: its shape is no list of sizes")
    for size in shape:
        if type(size) is not int or not 0 <= size <= LARGEST_DIMENSION:
            raise HermitcrabError(f"{path}: tensor `{shown(name)}`: its shape holds {shown(size)}, which is no size")
    return tuple(shape)


def bfloat16_to_float32(raw: np.ndarray) -> np.ndarray:
    """bfloat16 is the upper half of a float32."""
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
