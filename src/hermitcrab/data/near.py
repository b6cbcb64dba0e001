"""near-dedup: of texts whose n-grams of words are nearly the same, the first by rank stays.

MinHash signatures (Broder 1997) in bands point at pairs (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4); every
pair's Jaccard similarity is then computed. Rows are taken by rank, and one goes only if it is that similar to a row that stays: no chain
of neighbors ever drops a text that is like none that is kept. Only rows that share a band are read again.

R rows by rank, B bands, G groups of rows that share a band, S shingles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit

from hermitcrab.data import kernel
from hermitcrab.data.census import Census
from hermitcrab.data.parts import of_images, questions
from hermitcrab.data.scratch import Scratch, ids, own_columns, put_array
from hermitcrab.data.segment import Piece
from hermitcrab.recipe.clean import NearDedup

REASON = "near duplicate"


@dataclass(frozen=True)
class Gather:
    """The shingles of candidates, bucket by bucket: `shingles-N.npy`, `counts-N.npy`, `places-N.npy` (of the row in the census)."""

    scratch: Scratch
    format: str
    ngram: int

    def run(self, task: int, piece: Piece) -> None:
        folder = self.scratch.folder
        wanted = np.load(folder / "candidates.npy", mmap_mode="r")
        table = self.scratch.living(piece.number, [*own_columns(self.format), "_split"])
        places = Census.load(folder).find(ids(table.column("row_id")), table.column("_split").to_numpy())
        mask = np.asarray(wanted[places])
        found = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for chosen in np.array_split(np.flatnonzero(mask), max(1, table.nbytes >> 23)):
            start_N1, shingle_S = kernel.shingles(kernel.split(questions(self.format, table.take(chosen))), self.ngram)
            found[0].append(shingle_S)
            found[1].append(np.diff(start_N1))
        arrays = {"shingles": np.concatenate(found[0]), "counts": np.concatenate(found[1]), "places": places[mask]}
        for name, array in arrays.items():
            put_array(folder / f"{name}-{task:06d}.npy", array)


@njit(cache=True)
def _greedy(
    group_RB: np.ndarray, groups: int, start_R: np.ndarray, count_R: np.ndarray, shingle_S: np.ndarray, threshold: float, verify: bool,
    partner_R: np.ndarray, similarity_R: np.ndarray,
) -> int:  # fmt: skip
    rows, bands = group_RB.shape
    head_G, next_RB = np.full(groups, -1, np.int32), np.full((rows, bands), -1, np.int32)
    asked_R, compared = np.full(rows, -1, np.int64), 0
    size = 16
    while size < 2 * count_R.max():
        size *= 2
    table_K, stamp_K = np.empty(size, np.uint64), np.full(size, -1, np.int64)
    for r in range(rows):
        ready, mask = False, np.uint64(15)
        for b in range(bands):
            if group_RB[r, b] < 0 or partner_R[r] >= 0:
                continue
            c = head_G[group_RB[r, b]]
            while c >= 0 and partner_R[r] < 0:
                if asked_R[c] != r:
                    asked_R[c] = r
                    mine, other = count_R[r], count_R[c]
                    if not verify:
                        partner_R[r], similarity_R[r] = c, np.nan
                    elif min(mine, other) >= threshold * max(mine, other) and mine:
                        if not ready:
                            ready, room = True, 16
                            while room < 2 * mine:
                                room *= 2
                            mask = np.uint64(room - 1)
                            for s in range(start_R[r], start_R[r] + mine):
                                slot = shingle_S[s] & mask
                                while stamp_K[slot] == r:
                                    slot = (slot + np.uint64(1)) & mask
                                table_K[slot], stamp_K[slot] = shingle_S[s], r
                        compared += 1
                        both = 0
                        for s in range(start_R[c], start_R[c] + other):
                            slot = shingle_S[s] & mask
                            while stamp_K[slot] == r:
                                if table_K[slot] == shingle_S[s]:
                                    both += 1
                                    break
                                slot = (slot + np.uint64(1)) & mask
                        found = both / (mine + other - both)
                        if found >= threshold:
                            partner_R[r], similarity_R[r] = c, found
                c = next_RB[c, b]
        if partner_R[r] < 0:
            for b in range(bands):
                g = group_RB[r, b]
                if g >= 0:
                    next_RB[r, b] = head_G[g]
                    head_G[g] = r
    return compared


def _groups(band_RB: np.ndarray) -> tuple[np.ndarray, int]:
    """Rows that share a band by one number, -1 where no other row has it: int32 [R, B]; how many numbers."""
    group_RB, groups = np.full(band_RB.shape, -1, np.int32), 0
    for b in range(band_RB.shape[1]):
        _, number_R, count_G = np.unique(band_RB[:, b], return_inverse=True, return_counts=True)
        shared = count_G > 1
        named_G = np.where(shared, np.cumsum(shared) - 1 + groups, -1)
        group_RB[:, b] = named_G[number_R]
        groups += int(shared.sum())
    return group_RB, groups


def resolve(
    census: Census, scratch: Scratch, format: str, options: NearDedup, each: Callable[[Gather, list[Piece], str], None]
) -> dict[str, int]:
    """Drop near duplicates. `each` runs tasks of the engine.

    Returns:
        How many rows were candidates, and how many pairs were compared.
    """
    ranked = census.ranked()
    if of_images(format):
        return _images(census, ranked, options.distance)
    band_RB = census.keys["bands"][ranked].view(np.uint64).reshape(len(ranked), -1)
    group_RB, groups = _groups(band_RB)
    near_R = (group_RB >= 0).any(1)
    ranked, group_RB = ranked[near_R], np.ascontiguousarray(group_RB[near_R])
    start_R, count_R, shingle_S = (
        np.zeros(len(ranked), np.int64),
        np.ones(len(ranked), np.int64),
        np.zeros(0, np.uint64),
    )
    if not len(ranked):
        return {"candidates": 0, "compared": 0}
    if options.verify:
        mask_N = np.zeros(len(census), bool)
        mask_N[ranked] = True
        census.save(scratch.folder)
        np.save(scratch.folder / "candidates.npy", mask_N)
        tasks = [Piece(bucket) for bucket in range(len(scratch.places))]
        each(Gather(scratch, format, options.ngram), tasks, "reading candidates again")
        start_R, count_R, shingle_S = _gathered(scratch.folder, len(tasks), ranked, len(census))
    partner_R, similarity_R = np.full(len(ranked), -1, np.int64), np.zeros(len(ranked))
    compared = _greedy(
        group_RB, groups, start_R, count_R, shingle_S, options.threshold, options.verify, partner_R, similarity_R
    )
    later = np.flatnonzero(partner_R >= 0)
    census.drop(ranked[later], REASON)
    census.pairs.append(("near-dedup", ranked[later], ranked[partner_R[later]], similarity_R[later]))
    return {"candidates": len(ranked), "compared": compared}


def _images(census: Census, ranked: np.ndarray, distance: int) -> dict[str, int]:
    """Images by their perceptual hashes, which are compared whole: the similarity is the share of bits that are equal."""
    from hermitcrab.data.phash import duplicates

    hash_R = census.keys["bands"][ranked].view(np.uint64).reshape(-1)
    partner_R = duplicates(hash_R, distance)
    later = np.flatnonzero(partner_R >= 0)
    equal_E = 1 - np.bitwise_count(hash_R[later] ^ hash_R[partner_R[later]]) / 64
    census.drop(ranked[later], REASON)
    census.pairs.append(("near-dedup", ranked[later], ranked[partner_R[later]], equal_E))
    return {"candidates": len(ranked), "compared": len(later)}


def _gathered(folder: Path, tasks: int, ranked: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The shingles of all candidates in one file, mapped: where those of each begin, how many there are, all of them."""
    start_N, count_N, at = np.zeros(rows, np.int64), np.zeros(rows, np.int64), 0
    whole = folder / "shingles"
    with open(whole, "wb") as out:
        for task in range(tasks):
            counts, places = (np.load(folder / f"{name}-{task:06d}.npy") for name in ("counts", "places"))
            start_N[places] = at + np.cumsum(counts) - counts
            count_N[places] = counts
            piece = folder / f"shingles-{task:06d}.npy"
            shingles = np.load(piece)
            shingles.tofile(out)
            at += len(shingles)
            piece.unlink()
    shingle_S = np.memmap(whole, np.uint64, "r") if at else np.zeros(0, np.uint64)
    return start_N[ranked], count_N[ranked], np.asarray(shingle_S)
