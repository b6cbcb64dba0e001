"""Token files as Megatron reads them: `NAME.bin` holds the ids one after another, `NAME.idx` where each document begins.

The layout is that of `IndexedDataset` in megatron/core/datasets/indexed_dataset.py (its readme: megatron/core/datasets/readme.md), all
little-endian:

    9 bytes  MMIDIDX\\0\\0          uint64  version, 1            uint8   kind of number (8: uint16, 4: int32)
    uint64   sequences, S          uint64  entries of the last list, D + 1
    int32 [S]  tokens of each sequence     int64 [S]  its first byte in .bin     int64 [D + 1]  first sequence of each document, and S

A document is one sequence here; a sequence without tokens stays one, so document i is row i of the table that was encoded.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError

MAGIC, VERSION = b"MMIDIDX\0\0", 1
HEADER = struct.Struct("<9sQBQQ")
KINDS: dict[int, type[np.generic]] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float32, 8: np.uint16,
}  # fmt: skip
CODES = {np.dtype(kind): code for code, kind in KINDS.items()}
LONGEST = 2**31 - 1  # tokens of a document: its length is an int32


def kind_for(vocabulary: int) -> type[np.generic]:
    """uint16 where every id of so many fits, else int32."""
    return np.uint16 if vocabulary <= 1 << 16 else np.int32


class TokenWriter:
    """Writes both files beside their names and renames them when all is there. Memory: 4 bytes a document."""

    def __init__(self, prefix: Path, vocabulary: int):
        self.bin, self.idx = prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")
        self.kind, self.vocabulary = np.dtype(kind_for(vocabulary)).newbyteorder("<"), vocabulary
        self.lengths: list[np.ndarray] = []
        self.tokens = self.documents = 0
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._beside = prefix.with_name(f".{prefix.name}.bin")
        self._out = open(self._beside, "wb")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._out.flush()
                os.fsync(self._out.fileno())
            self._out.close()
            if kind is None:
                self._finish()
        finally:
            self._beside.unlink(missing_ok=True)

    def write(self, ids_T: np.ndarray, lengths_N: np.ndarray) -> None:
        """Ids of N documents, one after another, and how many are of each.

        Raises:
            HermitcrabError: an id outside the vocabulary, a document of more than 2^31 - 1 tokens, lengths that are not of these ids.
        """
        if int(lengths_N.sum()) != len(ids_T):
            raise HermitcrabError(f"{self.bin}: {len(ids_T):,} tokens for lengths of {int(lengths_N.sum()):,}")
        if len(ids_T) and not 0 <= int(ids_T.min()) <= int(ids_T.max()) < self.vocabulary:
            raise HermitcrabError(
                f"{self.bin}: token {int(ids_T.max())} is outside the vocabulary. Received: {self.vocabulary:,} tokens"
            )
        if len(lengths_N) and int(lengths_N.max()) > LONGEST:
            raise HermitcrabError(
                f"{self.bin}: document {self.documents + int(lengths_N.argmax()):,} has {int(lengths_N.max()):,} tokens; "
                f"the format has room for {LONGEST:,}"
            )
        self._out.write(ids_T.astype(self.kind).data)
        self.lengths.append(lengths_N.astype("<i4"))
        self.tokens += len(ids_T)
        self.documents += len(lengths_N)

    def _finish(self) -> None:
        lengths_N = np.concatenate([np.zeros(0, "<i4"), *self.lengths])
        starts_N = np.zeros(len(lengths_N), "<i8")
        np.cumsum(lengths_N[:-1], out=starts_N[1:])
        starts_N *= self.kind.itemsize
        beside = self.idx.with_name(f".{self.idx.name}")
        with open(beside, "wb") as out:
            out.write(
                HEADER.pack(MAGIC, VERSION, CODES[self.kind.newbyteorder("=")], len(lengths_N), len(lengths_N) + 1)
            )
            for array in (lengths_N, starts_N, np.arange(len(lengths_N) + 1, dtype="<i8")):
                out.write(array.data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(self._beside, self.bin)
        os.replace(beside, self.idx)


class TokenFile:
    """A pair of files, memory-mapped: what is read of a document is its own pages.

    Attributes:
        length_S: int32 [S], tokens of each sequence; start_S: int64 [S], its first token (not byte) in `ids_T`.
        first_D1: int64 [D + 1], the first sequence of each document, and S.
        ids_T: all tokens, of the file's own kind of number.

    Raises:
        HermitcrabError: a file is no such file, is cut short, or points outside the other.
    """

    def __init__(self, prefix: Path):
        bin, idx = prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")
        for path in (bin, idx):
            if not path.is_file():
                raise HermitcrabError(f"{path}: there is no such token file")
        size = idx.stat().st_size
        with open(idx, "rb") as file:
            head = file.read(HEADER.size)
        if len(head) < HEADER.size or not head.startswith(MAGIC):
            raise HermitcrabError(f"{idx}: is no index of tokens (MMIDIDX). Received: {head[:9]!r}")
        _, version, code, sequences, entries = HEADER.unpack(head)
        if version != VERSION or code not in KINDS or KINDS[code] in (np.float32, np.float64):
            raise HermitcrabError(
                f"{idx}: expected version 1 and whole numbers. Received: version {version}, kind {code}"
            )
        needed = HEADER.size + 12 * sequences + 8 * entries
        if size < needed:
            raise HermitcrabError(
                f"{idx}: cut short; {sequences:,} sequences need {needed:,} bytes. Received: {size:,}"
            )
        index = np.memmap(idx, np.uint8, "r")
        self.length_S = _array(index, HEADER.size, "<i4", sequences)
        pointer_S = _array(index, HEADER.size + 4 * sequences, "<i8", sequences)
        self.first_D1 = _array(index, HEADER.size + 12 * sequences, "<i8", entries)
        kind = np.dtype(KINDS[code]).newbyteorder("<")
        stored = bin.stat().st_size
        ends_S = pointer_S + self.length_S.astype(np.int64) * kind.itemsize
        if (
            stored % kind.itemsize
            or (self.length_S < 0).any()
            or (pointer_S < 0).any()
            or (pointer_S % kind.itemsize).any()
            or int(ends_S.max(initial=0)) > stored
        ):
            raise HermitcrabError(f"{idx}: names tokens that {bin.name} ({stored:,} bytes) does not have")
        if not entries or self.first_D1[0] != 0 or self.first_D1[-1] != sequences or (np.diff(self.first_D1) < 0).any():
            raise HermitcrabError(f"{idx}: its documents are not made of its {sequences:,} sequences")
        self.start_S = pointer_S // kind.itemsize
        # An empty file cannot be mapped.
        self.ids_T: Any = np.memmap(bin, kind, "r") if stored else np.zeros(0, kind)

    def __len__(self) -> int:
        return len(self.first_D1) - 1

    def document(self, number: int) -> np.ndarray:
        """Ids of a document, a view of the file where it is one sequence."""
        sequences = range(int(self.first_D1[number]), int(self.first_D1[number + 1]))
        parts = [self.ids_T[self.start_S[s] : self.start_S[s] + self.length_S[s]] for s in sequences]
        return parts[0] if len(parts) == 1 else np.concatenate([self.ids_T[:0], *parts])


def _array(index: Any, at: int, kind: str, count: int) -> Any:
    return index[at : at + count * np.dtype(kind).itemsize].view(kind)
