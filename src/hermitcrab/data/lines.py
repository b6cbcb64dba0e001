"""line-dedup: a line (or paragraph) that stands in an earlier row goes, as it does when it was in the same row before.

Menus, notices and license headers repeat in texts that are no duplicates as wholes. Reference: CCNet (Wenzek et al. 2020,
arXiv:1911.00359, section 3.2), by paragraphs. Of equal lines the one of the first row by rank stays, so neither files nor engine decide.

N texts, B bytes, L lines long enough to compare, D of them different and there more than once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from hermitcrab.data.kernel import FNV, PRIME, mixed, utf8
from hermitcrab.recipe.clean import LineDedup

if TYPE_CHECKING:
    import pyarrow as pa

    from hermitcrab.data.census import Census

REASON = "nothing but repeated lines"


@njit(cache=True, inline="always")
def _blank(byte: int) -> bool:
    return byte == 32 or 9 <= byte <= 13


@njit(cache=True)
def _unit(data_B: np.ndarray, at: int, end: int, paragraphs: bool) -> tuple[int, int]:
    """Where the unit that begins at `at` ends, and where the next one begins."""
    last = at
    while True:
        i, empty = last, True
        while i < end and data_B[i] != 10:
            empty &= _blank(data_B[i])
            i += 1
        if not paragraphs:
            return i, min(i + 1, end)
        if empty or i >= end:
            break
        last = i + 1
    # `last` is where an empty line begins, or the last line of the text; empty lines belong to the paragraph before.
    until = i if not empty else last
    follow = min(i + 1, end)
    while empty and follow < end:
        i = follow
        while i < end and _blank(data_B[i]) and data_B[i] != 10:
            i += 1
        if i < end and data_B[i] != 10:
            break
        follow = min(i + 1, end)
    return until, follow


@njit(cache=True)
def _hash(data_B: np.ndarray, at: int, end: int, least: int) -> tuple[bool, Any]:
    """Whether a unit is long enough, and its hash without outer blanks (FNV-1a of its bytes)."""
    while at < end and _blank(data_B[at]):
        at += 1
    while end > at and _blank(data_B[end - 1]):
        end -= 1
    value, letters = FNV, 0
    for i in range(at, end):
        value = (value ^ np.uint64(data_B[i])) * PRIME
        letters += (data_B[i] & 0xC0) != 0x80
    return letters >= least, mixed(value)


@njit(cache=True, nogil=True)
def _hashes(
    data_B: np.ndarray, start_N1: np.ndarray, paragraphs: bool, least: int, first_N1: np.ndarray, hash_L: np.ndarray
) -> int:
    count = 0
    for n in range(len(start_N1) - 1):
        first_N1[n] = count
        at, end = start_N1[n], start_N1[n + 1]
        while at < end:
            until, follow = _unit(data_B, at, end, paragraphs)
            long, value = _hash(data_B, at, until, least)
            if long:
                hash_L[count] = value
                count += 1
            at = follow
    first_N1[len(start_N1) - 1] = count
    return count


def hashes(text: pa.Array, options: LineDedup) -> tuple[np.ndarray, np.ndarray]:
    """Of every text the lines that are long enough, in order: int64 [N + 1], uint64 [L]."""
    data_B, start_N1 = utf8(text)
    first_N1, hash_L = np.empty(len(start_N1), np.int64), np.empty(len(data_B) // options.min_characters + 1, np.uint64)
    count = _hashes(data_B, start_N1, options.unit == "paragraph", options.min_characters, first_N1, hash_L)
    return first_N1, hash_L[:count]


@dataclass(frozen=True)
class Repeated:
    """Lines that stand there more than once: their hashes, sorted, and the row that keeps each (id, and the split that it came in)."""

    hash_D: np.ndarray
    id_D: np.ndarray
    split_D: np.ndarray

    def save(self, folder: Path) -> None:
        for name in ("hash_D", "id_D", "split_D"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Repeated:
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("hash_D", "id_D", "split_D")))


def resolve(census: Census) -> Repeated:
    """Which lines repeat, in the rows that are left, and who keeps them."""
    start_N1, hash_L = census.keys["lines"]
    ranked = census.ranked()
    rank_N = np.full(len(census), len(census), np.int64)
    rank_N[ranked] = np.arange(len(ranked))
    rank_L = np.repeat(rank_N, np.diff(start_N1))
    there = rank_L < len(census)
    hash_L, rank_L = hash_L[there], rank_L[there]
    order = np.lexsort((rank_L, hash_L))
    hash_L, rank_L = hash_L[order], rank_L[order]
    first = np.ones(len(hash_L), bool)
    first[1:] = hash_L[1:] != hash_L[:-1]
    again = np.zeros(len(hash_L), bool)
    again[:-1] = ~first[1:]
    keep = np.flatnonzero(first & again)
    owners = ranked[rank_L[keep]]
    return Repeated(hash_L[keep], census.id_N[owners], census.split_N[owners])


@njit(cache=True, nogil=True)
def _without(
    data_B: np.ndarray, start_N1: np.ndarray, id_N: np.ndarray, split_N: np.ndarray, paragraphs: bool, least: int,
    hash_D: np.ndarray, id_D: np.ndarray, split_D: np.ndarray, out_B: np.ndarray, end_N1: np.ndarray,
) -> int:  # fmt: skip
    seen_D, put, cut = np.zeros(len(hash_D), np.bool_), 0, 0
    for n in range(len(start_N1) - 1):
        end_N1[n] = put
        at, end, began, lost = start_N1[n], start_N1[n + 1], put, False
        while at < end:
            until, follow = _unit(data_B, at, end, paragraphs)
            long, value = _hash(data_B, at, until, least)
            place = np.searchsorted(hash_D, value) if long else len(hash_D)
            keep = True
            if place < len(hash_D) and hash_D[place] == value:
                # Only the row that keeps it ever marks a line as seen.
                keep = id_D[place] == id_N[n] and split_D[place] == split_N[n] and not seen_D[place]
                if keep:
                    seen_D[place] = True
            if keep:
                for i in range(at, follow):
                    out_B[put] = data_B[i]
                    put += 1
            else:
                lost, cut = True, cut + 1
            at = follow
        if lost and data_B[end - 1] != 10:
            while put > began and out_B[put - 1] == 10:
                put -= 1
    end_N1[len(start_N1) - 1] = put
    return cut


def without(
    text: pa.Array, id_N: np.ndarray, split_N: np.ndarray, repeated: Repeated, options: LineDedup
) -> tuple[pa.Array, int]:
    """The texts without lines that another row keeps, and how many lines that was. `id_N`, `split_N` are of the rows of the texts."""
    import pyarrow as pa

    data_B, start_N1 = utf8(text)
    out_B, end_N1 = np.empty(len(data_B), np.uint8), np.empty(len(start_N1), np.int64)
    cut = _without(
        data_B, start_N1, id_N, split_N, options.unit == "paragraph", options.min_characters,
        repeated.hash_D, repeated.id_D, repeated.split_D, out_B, end_N1,
    )  # fmt: skip
    if not cut:
        return text, 0
    return pa.Array.from_buffers(pa.large_string(), len(text), [None, pa.py_buffer(end_N1), pa.py_buffer(out_B)]), cut
