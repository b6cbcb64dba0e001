"""Contamination: where training rows share n words in a row with held-out rows, with the place, so that it can be judged.

An n-gram is of folded words (`data.kernel`): case, width and punctuation do not hide it. Reference: GPT-3 (Brown et al. 2020,
arXiv:2005.14165, appendix C), which took 13 words. Training rows are asked about every held-out row, validation rows about test rows.

N texts, T words, G n-grams of held-out rows, E places found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from hermitcrab.data import kernel
from hermitcrab.data.census import TRAIN, Census
from hermitcrab.data.parts import texts_of
from hermitcrab.data.scratch import RANKS, Scratch, id_text, ids, own_columns, put_array, write_arrow
from hermitcrab.data.segment import Piece
from hermitcrab.errors import HermitcrabError
from hermitcrab.recipe.clean import Decontaminate

if TYPE_CHECKING:
    import pyarrow as pa

TEST = RANKS.index("test")
BITS = 16  # in the filter that is asked first, for each n-gram: one in 16 is looked up in vain


def _texts(scratch: Scratch, format: str, bucket: int, wanted: Callable[[np.ndarray], np.ndarray]) -> tuple[Any, ...]:
    """The texts of those rows of a bucket whose split is wanted: the rows' places in the census, the texts, the row of each, the part."""
    import pyarrow as pa

    table = scratch.living(bucket, [*own_columns(format), "_split"])
    census = Census.load(scratch.folder)
    places = census.find(ids(table.column("row_id")), table.column("_split").to_numpy())
    mask = wanted(census.home_N[places])
    text, row_M = texts_of(format, table.filter(pa.array(mask)))
    order = np.argsort(row_M, kind="stable")
    part_M = np.empty(len(row_M), np.int32)
    part_M[order] = np.arange(len(row_M)) - np.searchsorted(row_M[order], row_M[order])
    return places[mask], text, row_M, part_M, census


@njit(cache=True, nogil=True)
def _whole(start_N1: np.ndarray, n: int, whole_T: np.ndarray) -> None:
    """Marks the words at which n words of one text begin."""
    for i in range(len(start_N1) - 1):
        for t in range(start_N1[i], start_N1[i + 1] - n + 1):
            whole_T[t] = True


def _grams(text: pa.Array, n: int) -> tuple[kernel.Words, np.ndarray, np.ndarray]:
    words = kernel.split(text, folded=True)
    whole_T = np.zeros(len(words.hash_T), bool)
    _whole(words.start_N1, n, whole_T)
    return words, kernel.ngrams(words, n), whole_T


@dataclass(frozen=True)
class HeldOut:
    """The n-grams of held-out rows, bucket by bucket: `held-N.npy`, uint64 [G], and whose they are: `owners-N.npy`."""

    scratch: Scratch
    format: str
    n: int

    def run(self, task: int, piece: Piece) -> None:
        places, text, row_M, _, _ = _texts(self.scratch, self.format, piece.number, lambda home: home < TRAIN)
        words, gram_T, whole_T = _grams(text, self.n)
        owner_T = np.repeat(places[row_M], np.diff(words.start_N1)) if len(row_M) else np.zeros(0, np.int64)
        for name, array in (("held", gram_T[whole_T]), ("owners", owner_T[whole_T])):
            put_array(self.scratch.folder / f"{name}-{task:06d}.npy", array)


@njit(cache=True, nogil=True)
def _spans(
    start_N1: np.ndarray, begin_T: np.ndarray, length_T: np.ndarray, gram_T: np.ndarray, home_N: np.ndarray, n: int,
    gram_G: np.ndarray, owner_G: np.ndarray, rank_G: np.ndarray, bits_K: np.ndarray,
    text_E: np.ndarray, from_E: np.ndarray, to_E: np.ndarray, words_E: np.ndarray, owner_E: np.ndarray,
) -> int:  # fmt: skip
    e, mask = 0, np.uint64(len(bits_K) - 1)
    for i in range(len(start_N1) - 1):
        open_until = -1
        for t in range(start_N1[i], start_N1[i + 1] - n + 1):
            gram = gram_T[t]
            if not bits_K[gram & mask]:
                continue
            g = np.searchsorted(gram_G, gram)
            if g == len(gram_G) or gram_G[g] != gram or rank_G[g] >= home_N[i]:
                continue
            end = begin_T[t + n - 1] + length_T[t + n - 1]
            if t <= open_until:  # it overlaps the n-gram before: the same place
                words_E[e - 1] += t + n - 1 - open_until
                to_E[e - 1] = end
            else:
                text_E[e], from_E[e], to_E[e], words_E[e], owner_E[e] = i, begin_T[t], end, n, owner_G[g]
                e += 1
            open_until = t + n - 1
    return e


@dataclass(frozen=True)
class Scan:
    """Where rows share n-grams with held-out rows of an earlier split: `spans-N.arrow`."""

    scratch: Scratch
    format: str
    n: int

    def run(self, task: int, piece: Piece) -> None:
        import pyarrow as pa

        folder = self.scratch.folder
        gram_G, owner_G, bits_K = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("held", "owners", "bits")
        )
        places, text, row_M, part_M, census = _texts(self.scratch, self.format, piece.number, lambda home: home > TEST)
        words, gram_T, _ = _grams(text, self.n)
        data_B, start_N1 = kernel.utf8(text)
        most = len(gram_T) // self.n + len(text) + 1
        found = [np.empty(most, kind) for kind in (np.int64, np.int64, np.int64, np.int32, np.int64)]
        home_M = census.home_N[places[row_M]] if len(row_M) else np.zeros(0, np.uint8)
        count = _spans(words.start_N1, words.begin_T, words.length_T, gram_T, home_M, self.n,
                       gram_G, owner_G, census.home_N[owner_G], bits_K, *found)  # fmt: skip
        text_E, from_E, to_E, words_E, owner_E = (column[:count] for column in found)
        letters = [[np.count_nonzero((data_B[start_N1[i] : at] & 0xC0) != 0x80) for i, at in zip(text_E, at_E, strict=True)]
                   for at_E in (from_E, to_E)]  # fmt: skip
        columns = {
            "place": places[row_M[text_E]] if count else np.zeros(0, np.int64), "part": part_M[text_E],
            "begin": np.array(letters[0], np.int64), "end": np.array(letters[1], np.int64), "words": words_E, "owner": owner_E,
        }  # fmt: skip
        write_arrow(
            folder / f"spans-{task:06d}.arrow", [pa.table({name: pa.array(column) for name, column in columns.items()})]
        )


def resolve(
    census: Census, scratch: Scratch, format: str, options: Decontaminate, each: Callable[[Any, list[Piece], str], None]
) -> pa.Table:
    """Find contaminated rows, and do with them what the policy says. `each` runs tasks of the engine.

    Returns:
        The evidence, sorted: `row_id, split, part` (which text of the row, from 0), `begin, end` (characters of it), `words` that are
        shared there, `held_out` (row id), `held_out_split`.

    Raises:
        HermitcrabError: the policy is `stop`, and there are such rows.
    """
    import pyarrow as pa

    n = options.ngram or 0
    folder, tasks = scratch.folder, [Piece(bucket) for bucket in range(len(scratch.places))]
    census.save(folder)
    each(HeldOut(scratch, format, n), tasks, "reading held-out rows")
    _index(census, folder, len(tasks))
    each(Scan(scratch, format, n), tasks, "looking for held-out words")
    found = scratch.all("spans", len(tasks))
    place_E, owner_E = (found.column(name).to_numpy() for name in ("place", "owner"))
    for rank in range(TRAIN):
        rows = np.unique(place_E[census.home_N[owner_E] == rank])
        rows = rows[census.alive_N[rows]]
        if options.policy == "stop" and len(rows):
            raise HermitcrabError(
                f"{len(rows):,} rows share {n} words in a row with {RANKS[rank]} rows, the first is row {id_text(census.id_N[rows[0]])}; "
                "with `policy: drop` they go, with `policy: mark` they stay and are listed"
            )
        if options.policy == "drop":
            census.drop(rows, f"shares {n} words with {RANKS[rank]} data")
    splits = np.array(RANKS)
    table = pa.table({
        "row_id": [id_text(number) for number in census.id_N[place_E]], "split": splits[census.home_N[place_E]].tolist(),
        "part": found.column("part"), "begin": found.column("begin"), "end": found.column("end"), "words": found.column("words"),
        "held_out": [id_text(number) for number in census.id_N[owner_E]], "held_out_split": splits[census.home_N[owner_E]].tolist(),
    })  # fmt: skip
    return table.sort_by([(name, "ascending") for name in ("split", "row_id", "part", "begin")])


def _index(census: Census, folder: Path, tasks: int) -> None:
    """All n-grams of held-out rows, each once, of the first row by rank that has it; and a filter of bits over them."""
    gram_G = np.concatenate([np.load(folder / f"held-{task:06d}.npy") for task in range(tasks)])
    owner_G = np.concatenate([np.load(folder / f"owners-{task:06d}.npy") for task in range(tasks)])
    order = np.lexsort((census.id_N[owner_G], census.home_N[owner_G], gram_G))
    gram_G, owner_G = gram_G[order], owner_G[order]
    first = np.ones(len(gram_G), bool)
    first[1:] = gram_G[1:] != gram_G[:-1]
    gram_G, owner_G = gram_G[first], owner_G[first]
    bits_K = np.zeros(1 << max(10, (BITS * len(gram_G)).bit_length()), bool)
    bits_K[gram_G & np.uint64(len(bits_K) - 1)] = True
    for name, array in (("held", gram_G), ("owners", owner_G), ("bits", bits_K)):
        np.save(folder / f"{name}.npy", array)
