"""What is asked of the words of a text, from one array of hashes: they are split once, and never become Python objects.

N texts, B bytes, T words, S shingles, P permutations. A word is a Han character or a run of anything else that is not
whitespace, so Chinese and English are compared at about the same grain. Where folded, a word is what retyping leaves of it:
case, width and punctuation are gone (`data.fold` says the same of whole texts).

Everything here is a function of the texts alone: seeds are fixed, and no library's hash is used that may change.
"""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    import pyarrow as pa

HAN = np.uint32(1 << 31)  # flag in a table of code points: a word of its own
SPACE = np.uint32(32)
MEANING = "%&*/\\@#"  # punctuation to Unicode, but not to formulas and code: 2*3 is no other spelling of 2/3
FNV, PRIME, _MIX, _MIX2 = (
    np.uint64(n) for n in (0xCBF29CE484222325, 0x100000001B3, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_STEP = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Words:
    """The words of N texts.

    Attributes:
        start_N1: int64 [N + 1]; the words of text i are `start[i]:start[i + 1]`.
        hash_T: uint64 [T].
        begin_T, length_T: int64, int32 [T]; where in the texts' bytes (all of them, one after another) a word lies.
        letters_T: int32 [T]; its characters.
    """

    start_N1: np.ndarray
    hash_T: np.ndarray
    begin_T: np.ndarray
    length_T: np.ndarray
    letters_T: np.ndarray

    def __len__(self) -> int:
        return len(self.start_N1) - 1

    def kept(self, keep_N: np.ndarray) -> Words:
        """The words of those texts that a mask (bool [N]) keeps; `begin` is of the bytes of all of them still."""
        count_N = np.diff(self.start_N1)
        keep_T = np.repeat(keep_N, count_N)
        start_N1 = np.concatenate([[0], np.cumsum(count_N[keep_N])])
        columns = (self.hash_T, self.begin_T, self.length_T, self.letters_T)
        return Words(start_N1, *(column_T[keep_T] for column_T in columns))


def utf8(text: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 of a large_string array without nulls, uint8 [B], and where each text begins and the last one ends, int64 [N + 1]."""
    _, offsets, data = text.buffers()
    start_N1 = (
        np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
        if len(text)
        else np.zeros(1, np.int64)
    )
    data_B = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return data_B[start_N1[0] : start_N1[-1]], start_N1 - start_N1[0]


def is_han(code: int) -> bool:
    return 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x3FFFF


def spans() -> list[range]:
    """Code points worth a look: all but Han, Hangul syllables, surrogates and private use, which are themselves in every normal form."""
    return [range(0x3400), range(0xA000, 0xAC00), range(0xF900, 0x20000)]


@cache
def plain_table() -> np.ndarray:
    """Code point → itself, a space for whitespace (`str.isspace`), marked where it is Han: uint32 [0x110000]."""
    table_C = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    table_C[[code for code in range(0x3001) if chr(code).isspace()]] = SPACE
    for first, last in ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)):
        table_C[first : last + 1] |= HAN
    return table_C


@cache
def folded_table() -> np.ndarray:
    """As `plain_table`, folded: caseless, of normal width, punctuation as a space; what folds to several characters stays."""
    table_C = plain_table().copy()
    for code in (code for span in spans() for code in span):
        letter = chr(code)
        folded = unicodedata.normalize("NFKC", letter).casefold()
        if len(folded) == 1:
            table_C[code] = plain_table()[ord(folded)]
            if unicodedata.category(folded)[0] == "P" and folded not in MEANING:
                table_C[code] = SPACE
    return table_C


@njit(cache=True, inline="always")
def decode(data_B: np.ndarray, i: int, end: int) -> tuple[Any, int]:
    """The code point at byte i, and its bytes; a broken sequence is its first byte."""
    first = np.int64(data_B[i])
    if first < 0x80:
        return first, 1
    if first < 0xE0 and i + 1 < end:
        return ((first & 0x1F) << 6) | (np.int64(data_B[i + 1]) & 0x3F), 2
    if first < 0xF0 and i + 2 < end:
        return ((first & 0x0F) << 12) | ((np.int64(data_B[i + 1]) & 0x3F) << 6) | (np.int64(data_B[i + 2]) & 0x3F), 3
    if i + 3 < end:
        code = ((first & 0x07) << 18) | ((np.int64(data_B[i + 1]) & 0x3F) << 12)
        code |= ((np.int64(data_B[i + 2]) & 0x3F) << 6) | (np.int64(data_B[i + 3]) & 0x3F)
        if code <= 0x10FFFF:
            return code, 4
    return first, 1


@njit(cache=True, inline="always")
def mixed(value: np.uint64) -> np.uint64:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2714064.2660195)."""
    value ^= value >> np.uint64(30)
    value *= _MIX
    value ^= value >> np.uint64(27)
    value *= _MIX2
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def _split(
    data_B: np.ndarray, start_N1: np.ndarray, table_C: np.ndarray, first_N1: np.ndarray,
    hash_T: np.ndarray, begin_T: np.ndarray, length_T: np.ndarray, letters_T: np.ndarray,
) -> int:  # fmt: skip
    t = 0
    for n in range(len(start_N1) - 1):
        first_N1[n] = t
        i, end, letters, began, value = start_N1[n], start_N1[n + 1], 0, start_N1[n], FNV
        while i < end:
            code, size = decode(data_B, i, end)
            mark = table_C[code]
            if mark == SPACE or mark & HAN:
                if letters:
                    hash_T[t], begin_T[t], length_T[t], letters_T[t] = mixed(value), began, i - began, letters
                    t += 1
                    letters, value = 0, FNV
                if mark & HAN:
                    hash_T[t], begin_T[t], length_T[t], letters_T[t] = (
                        mixed((FNV ^ np.uint64(mark)) * PRIME),
                        i,
                        size,
                        1,
                    )
                    t += 1
            else:
                if letters == 0:
                    began = i
                value = (value ^ np.uint64(mark)) * PRIME
                letters += 1
            i += size
        if letters:
            hash_T[t], begin_T[t], length_T[t], letters_T[t] = mixed(value), began, end - began, letters
            t += 1
    first_N1[len(start_N1) - 1] = t
    return t


def split(text: pa.Array, folded: bool = False) -> Words:
    """The words of a large_string array without nulls.

    Hash: FNV-1a of a word's code points (Fowler, Noll and Vo; 64 bits), then `mixed`.
    """
    data_B, start_N1 = utf8(text)
    most = len(data_B) // 2 + len(start_N1)  # a word and what ends it are two bytes at least
    hash_T, begin_T = np.empty(most, np.uint64), np.empty(most, np.int64)
    length_T, letters_T = np.empty(most, np.int32), np.empty(most, np.int32)
    first_N1 = np.empty(len(start_N1), np.int64)
    table_C = folded_table() if folded else plain_table()
    count = _split(data_B, start_N1, table_C, first_N1, hash_T, begin_T, length_T, letters_T)
    return Words(first_N1, hash_T[:count], begin_T[:count], length_T[:count], letters_T[:count])


@njit(cache=True, nogil=True)
def _extend(gram_T: np.ndarray, hash_T: np.ndarray, first: int, last: int, n: int) -> None:
    """From hashes of (n-1)-grams that begin at words `first:last` to those of n-grams, in place."""
    for i in range(first, last - n + 1):
        gram_T[i] = mixed(gram_T[i] * _STEP + hash_T[i + n - 1])


@njit(cache=True, inline="always")
def _place(table_K: np.ndarray, stamp_K: np.ndarray, stamp: int, gram: np.uint64) -> tuple[Any, bool]:
    """Where `gram` is in an open table, or would be; whether it was there. Slots of other stamps are empty."""
    mask = np.uint64(len(table_K) - 1)
    slot = gram & mask
    while stamp_K[slot] == stamp:
        if table_K[slot] == gram:
            return slot, True
        slot = (slot + np.uint64(1)) & mask
    table_K[slot], stamp_K[slot] = gram, stamp
    return slot, False


def _table_size(most: int) -> int:
    return 1 << max(4, int(2 * most).bit_length())


@njit(cache=True, nogil=True)
def _repetition(
    start_N1: np.ndarray, hash_T: np.ndarray, letters_T: np.ndarray, table_K: np.ndarray, stamp_K: np.ndarray,
    top_N3: np.ndarray, again_N6: np.ndarray,
) -> None:  # fmt: skip
    count_K, gram_T, stamp = np.empty(len(table_K), np.int32), np.empty(0, np.uint64), 0
    for i in range(len(start_N1) - 1):
        first, last = start_N1[i], start_N1[i + 1]
        words, total = last - first, 0
        for t in range(first, last):
            total += letters_T[t]
        if words < 2:
            continue
        if len(gram_T) < words:
            gram_T = np.empty(2 * words, np.uint64)
        hash_W, letters_W = hash_T[first:last], letters_T[first:last]
        gram_T[:words] = hash_W
        # The part of the table that this text needs: a small one stays in the cache.
        size = 16
        while size < 2 * words:
            size *= 2
        table, stamps = table_K[:size], stamp_K[:size]
        repeats = True
        for n in range(2, 11):
            if not repeats or words < n:
                break  # no n-gram twice: no longer one either
            _extend(gram_T, hash_W, 0, words, n)
            stamp += 1
            if n < 5:
                best, longest = 1, 0
                for t in range(words - n + 1):
                    slot, known = _place(table, stamps, stamp, gram_T[t])
                    count_K[slot] = count_K[slot] + 1 if known else 1
                    if count_K[slot] >= max(best, 2):
                        size_of = 0
                        for k in range(n):
                            size_of += letters_W[t + k]
                        longest = size_of if count_K[slot] > best else max(longest, size_of)
                        best = count_K[slot]
                repeats = best > 1
                top_N3[i, n - 2] = best * longest / total if repeats else 0.0
            else:
                again, t = 0, 0
                while t < words - n + 1:
                    _, known = _place(table, stamps, stamp, gram_T[t])
                    if known:
                        for k in range(n):
                            again += letters_W[t + k]
                        t += n
                    else:
                        t += 1
                repeats = again > 0
                again_N6[i, n - 5] = again / total


def repetition(words: Words) -> tuple[np.ndarray, np.ndarray]:
    """How much of each text is repeated, as shares of the characters of its words (arXiv:2112.11446, table A1).

    Returns:
        In the most frequent 2-, 3-, 4-gram of words, all its occurrences (0: none stands there twice; of equally frequent
        ones the longest): float64 [N, 3]. In 5- to 10-grams that stood there before, without overlap: float64 [N, 6].
    """
    count = len(words)
    top_N3, again_N6 = np.zeros((count, 3)), np.zeros((count, 6))
    size = _table_size(_longest(words))
    table_K, stamp_K = np.empty(size, np.uint64), np.zeros(size, np.int64)
    _repetition(words.start_N1, words.hash_T, words.letters_T, table_K, stamp_K, top_N3, again_N6)
    return top_N3, again_N6


def _longest(words: Words) -> int:
    return int(np.diff(words.start_N1).max(initial=0))


@njit(cache=True, nogil=True)
def _grams(start_N1: np.ndarray, hash_T: np.ndarray, n: int, gram_T: np.ndarray) -> None:
    for i in range(len(start_N1) - 1):
        first, last = start_N1[i], start_N1[i + 1]
        for size in range(2, n + 1):
            _extend(gram_T, hash_T, first, last, size)


def ngrams(words: Words, n: int) -> np.ndarray:
    """Hash of the n words that begin at each word; of no meaning at a text's last n - 1 words: uint64 [T]."""
    gram_T = words.hash_T.copy()
    _grams(words.start_N1, words.hash_T, n, gram_T)
    return gram_T


@njit(cache=True, nogil=True)
def _shingles(
    start_N1: np.ndarray, hash_T: np.ndarray, n: int, table_K: np.ndarray, stamp_K: np.ndarray,
    first_N1: np.ndarray, shingle_S: np.ndarray,
) -> int:  # fmt: skip
    s = 0
    for i in range(len(start_N1) - 1):
        first_N1[i] = s
        first, last = start_N1[i], start_N1[i + 1]
        words = last - first
        size = 16
        while size < 2 * words:
            size *= 2
        table, stamps, width = table_K[:size], stamp_K[:size], min(n, words)
        for t in range(first, last - width + 1 if width else first):
            gram = hash_T[t]
            for k in range(1, width):
                gram = mixed(gram * _STEP + hash_T[t + k])
            _, known = _place(table, stamps, i + 1, gram)
            if not known:
                shingle_S[s] = gram
                s += 1
    first_N1[len(start_N1) - 1] = s
    return s


def shingles(words: Words, n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The different n-grams of words of each text, in the order in which they first stand there; a shorter text is one of them.

    Returns:
        int64 [N + 1], the shingles of text i are `start[i]:start[i + 1]`; uint64 [S].
    """
    first_N1, shingle_S = np.empty(len(words) + 1, np.int64), np.empty(len(words.hash_T), np.uint64)
    size = _table_size(_longest(words))
    table_K, stamp_K = np.empty(size, np.uint64), np.zeros(size, np.int64)
    count = _shingles(words.start_N1, words.hash_T, n, table_K, stamp_K, first_N1, shingle_S)
    return first_N1, shingle_S[:count]


@cache
def _permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors (odd) and terms of P maps of 32 bits, from SplitMix64 at 1: uint32 [P] each."""
    with np.errstate(over="ignore"):
        drawn = [mixed.py_func(np.uint64(i) * _STEP) for i in range(1, 2 * count + 1)]
    numbers = (np.array(drawn, np.uint64) >> np.uint64(32)).astype(np.uint32)
    return numbers[:count] | np.uint32(1), numbers[count:]


@njit(cache=True, nogil=True)
def _minhash(
    start_N1: np.ndarray, shingle_S: np.ndarray, factor_P: np.ndarray, term_P: np.ndarray, least_NP: np.ndarray
) -> None:
    for i in range(len(start_N1) - 1):
        least_P = least_NP[i]
        for s in range(start_N1[i], start_N1[i + 1]):
            value = np.uint32(shingle_S[s] >> np.uint64(32))
            for p in range(len(factor_P)):
                least_P[p] = min(least_P[p], np.uint32(value * factor_P[p] + term_P[p]))


def minhash(start_N1: np.ndarray, shingle_S: np.ndarray, permutations: int = 128) -> np.ndarray:
    """MinHash signatures (Broder 1997, doi:10.1109/SEQUEN.1997.666900): uint32 [N, P].

    A permutation is x → ax + b modulo 2^32, a odd; the share of equal places of two signatures estimates the Jaccard similarity.
    """
    least_NP = np.full((len(start_N1) - 1, permutations), 0xFFFFFFFF, np.uint32)
    _minhash(start_N1, shingle_S, *_permutations(permutations), least_NP)
    return least_NP


@njit(cache=True, nogil=True)
def _bands(least_NP: np.ndarray, rows: int, band_NB: np.ndarray) -> None:
    for i in range(len(least_NP)):
        for b in range(band_NB.shape[1]):
            value = np.uint64(b)
            for k in range(b * rows, (b + 1) * rows):
                value = mixed(value * _STEP + np.uint64(least_NP[i, k]))
            band_NB[i, b] = value


def bands(least_NP: np.ndarray, rows: int) -> np.ndarray:
    """Of signatures, the hash of every `rows` places together; two texts that share one are candidates: uint64 [N, P // rows]."""
    band_NB = np.empty((len(least_NP), least_NP.shape[1] // rows), np.uint64)
    _bands(least_NP, rows, band_NB)
    return band_NB


def banding(threshold: float, permutations: int = 128, chance: float = 0.995) -> tuple[int, int]:
    """Bands and rows in each: the most rows with which a pair at the threshold is a candidate by that chance, 1 - (1 - s^r)^b."""
    fit: list[Any] = [r for r in range(1, permutations + 1) if 1 - (1 - threshold**r) ** (permutations // r) >= chance]
    rows = max(fit, default=1)
    return permutations // rows, rows
