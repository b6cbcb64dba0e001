"""What quality rules ask of characters and lines, counted in one pass over the bytes of a batch.

N texts, B bytes, L lines, P paragraphs. A line or paragraph is compared without outer and repeated whitespace; an empty one is
none. Characters are those that are no whitespace, so indentation weighs nothing.
"""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numba import njit

from hermitcrab.data.filters import Texts
from hermitcrab.data.kernel import FNV, PRIME, decode, is_han, mixed, repetition, split, utf8

LETTER, DIGIT, SPACE, HAN, END, BULLET, NEWLINE = (np.uint8(1 << bit) for bit in range(7))
END_MARKS = ".!?…\"'”’。！？；」』”）)"
BULLETS = "•‣▪▫●○◦◆◇■□►▶⁃∙·*-–—+"
WIDE = 3  # how many letters of other scripts a Han character says as much as
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with", "的", "一", "是", "不", "了", "在", "有", "和")
CHARACTERS, LETTERS, DIGITS, HASHES, ELLIPSES, WORDS, PLAIN_WORDS, PLAIN_LETTERS, ALPHABETIC = range(9)
L_TEXT, L_CHARACTERS, L_WIDTH, L_BULLET, L_ELLIPSIS, L_ENDED = range(6)


@cache
def classes() -> np.ndarray:
    """Code point → what it is, as flags: uint8 [0x110000]."""
    class_C = np.zeros(sys.maxunicode + 1, np.uint8)
    for code in range(sys.maxunicode + 1):
        if code in range(0xD800, 0xF900) or code >= 0xE0000:
            continue
        letter = chr(code)
        if letter.isspace():
            class_C[code] = SPACE | (NEWLINE if letter == "\n" else 0)
        elif is_han(code):
            class_C[code] = LETTER | HAN
        elif (kind := unicodedata.category(letter)[0]) in "LM":
            class_C[code] = LETTER
        elif kind == "N":
            class_C[code] = DIGIT
    for marks, flag in ((END_MARKS, END), (BULLETS, BULLET)):
        for mark in marks:
            class_C[ord(mark)] |= flag
    return class_C


@njit(cache=True, nogil=True)
def _scan(
    data_B: np.ndarray, start_N1: np.ndarray, class_C: np.ndarray, count_N9: np.ndarray,
    line_L6: np.ndarray, hash_L: np.ndarray, paragraph_P2: np.ndarray, hash_P: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    lines, paragraphs = 0, 0
    for n in range(len(start_N1) - 1):
        count_9 = count_N9[n]
        line, paragraph, size_of, size_all = FNV, FNV, 0, 0
        width, bullet, ended, dots, inside, alphabetic, gap = 0, 0, 0, 0, False, False, False
        said, touches, run = False, False, 0
        i, end = start_N1[n], start_N1[n + 1]
        while i <= end:
            code, size = decode(data_B, i, end) if i < end else (10, 1)
            kind = class_C[code]
            if kind & SPACE or kind & HAN:
                # Marks that touch a Han character are its punctuation, and no word of their own.
                if inside and (said or not (touches or kind & HAN)):
                    count_9[WORDS] += 1
                    count_9[PLAIN_WORDS] += 1
                    count_9[PLAIN_LETTERS] += run
                    count_9[ALPHABETIC] += alphabetic
                inside, alphabetic, said, run, touches = False, False, False, 0, kind & HAN != 0
            if kind & SPACE:
                gap = True
                width += 1
                if kind & NEWLINE:
                    if size_of:
                        line_L6[lines, L_TEXT], line_L6[lines, L_CHARACTERS], line_L6[lines, L_WIDTH] = (
                            n,
                            size_of,
                            width - 1,
                        )
                        line_L6[lines, L_BULLET], line_L6[lines, L_ENDED] = bullet, ended
                        line_L6[lines, L_ELLIPSIS] = dots >= 3
                        hash_L[lines] = mixed(line)
                        paragraph = mixed(paragraph ^ hash_L[lines])
                        size_all += size_of
                        lines += 1
                    if size_all and (size_of == 0 or i >= end):
                        paragraph_P2[paragraphs, 0], paragraph_P2[paragraphs, 1] = n, size_all
                        hash_P[paragraphs] = paragraph
                        paragraphs += 1
                        paragraph, size_all = FNV, 0
                    line, size_of, width, bullet, ended, dots, gap = FNV, 0, 0, 0, 0, 0, False
            else:
                if gap and size_of:
                    line = (line ^ np.uint64(32)) * PRIME
                if size_of == 0:
                    bullet = 1 if kind & BULLET else 0
                gap = False
                line = (line ^ np.uint64(code)) * PRIME
                size_of += 1
                count_9[CHARACTERS] += 1
                count_9[LETTERS] += 1 if kind & LETTER else 0
                count_9[DIGITS] += 1 if kind & DIGIT else 0
                count_9[HASHES] += code == 35
                ended = 1 if kind & END else 0
                if code == 0x2026:
                    count_9[ELLIPSES] += 1
                    dots = 3
                elif code == 46:
                    dots += 1
                    count_9[ELLIPSES] += dots == 3
                else:
                    dots = 0
                if kind & HAN:
                    count_9[WORDS] += 1
                    count_9[ALPHABETIC] += 1
                    width += WIDE
                else:
                    inside = True
                    alphabetic = alphabetic or (kind & LETTER) != 0
                    said = said or (kind & (LETTER | DIGIT)) != 0
                    run += 1
                    width += 1
            i += size
    return lines, paragraphs


@cache
def stop_hashes() -> np.ndarray:
    import pyarrow as pa

    return split(pa.array(STOP_WORDS, pa.large_string())).hash_T


@dataclass
class Measures:
    """Counts of a batch, each made when it is first asked for."""

    texts: Texts

    @cached_property
    def _scanned(self) -> tuple[np.ndarray, ...]:
        data_B, start_N1 = utf8(self.texts.text)
        most = int(np.count_nonzero(data_B == 10)) + len(self.texts)
        count_N9 = np.zeros((len(self.texts), 9), np.int64)
        line_L6, hash_L = np.zeros((most, 6), np.int64), np.zeros(most, np.uint64)
        paragraph_P2, hash_P = np.zeros((most, 2), np.int64), np.zeros(most, np.uint64)
        lines, paragraphs = _scan(data_B, start_N1, classes(), count_N9, line_L6, hash_L, paragraph_P2, hash_P)
        return count_N9, line_L6[:lines], hash_L[:lines], paragraph_P2[:paragraphs], hash_P[:paragraphs]

    def count(self, what: int) -> np.ndarray:
        """Of each text, int64 [N]."""
        return self._scanned[0][:, what]

    def share(self, what: int, of: int = CHARACTERS) -> np.ndarray:
        return shares(self.count(what), self.count(of))

    @property
    def lines(self) -> np.ndarray:
        """Lines of each text, int64 [N]."""
        return np.bincount(self._scanned[1][:, L_TEXT], minlength=len(self.texts))

    def line_share(self, marked_L: np.ndarray) -> np.ndarray:
        text_L = self._scanned[1][:, L_TEXT]
        return shares(np.bincount(text_L[marked_L], minlength=len(self.texts)), self.lines)

    def line(self, what: int) -> np.ndarray:
        """Of each line, int64 [L]."""
        return self._scanned[1][:, what]

    def duplicates(self, paragraphs: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Share of lines (or paragraphs) that stood there before, and of characters in them: float64 [N] each."""
        rows, hashes = self._scanned[3:] if paragraphs else (self._scanned[1][:, :2], self._scanned[2])
        order = np.lexsort((hashes, rows[:, 0]))
        again = np.zeros(len(rows), bool)
        text, mark = rows[order, 0], hashes[order]
        again[order[1:]] = (text[1:] == text[:-1]) & (mark[1:] == mark[:-1])
        size = len(self.texts)
        count_N, lost_N = np.bincount(rows[:, 0], minlength=size), np.bincount(rows[again, 0], minlength=size)
        characters_N = np.bincount(rows[again, 0], rows[again, 1], minlength=size)
        return shares(lost_N, count_N), shares(characters_N, self.count(CHARACTERS))

    @cached_property
    def repeated(self) -> tuple[np.ndarray, np.ndarray]:
        return repetition(self.texts.words)

    @property
    def stop_words(self) -> np.ndarray:
        """How many different stop words stand in each text, int64 [N]."""
        words = self.texts.words
        total_N = np.zeros(len(self.texts), np.int64)
        for value in stop_hashes():
            at = np.flatnonzero(words.hash_T == value)
            total_N += np.diff(np.searchsorted(at, words.start_N1)) > 0
        return total_N


def shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; 0 of nothing."""
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
