"""quality: rules of well-known corpora by which a text is no prose worth learning from; the first that it breaks is its reason.

gopher, repetition, length   MassiveText, arXiv:2112.11446, appendix A.1
c4                           the Colossal Clean Crawled Corpus, arXiv:1910.10683, section 2.2
fineweb                      FineWeb, arXiv:2406.17557, section 3.5
ratios                       digits and symbols, thresholds of hermitcrab

Words are those of `data.kernel`: a Han character is one, so a Chinese text is counted by character. Where a paper's rule asks for
the length of words, Han characters are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from hermitcrab.data.filters import Outcome, Texts
from hermitcrab.data.filters import measures as m
from hermitcrab.data.filters.bytes import replaced
from hermitcrab.data.filters.measures import Measures
from hermitcrab.recipe.filters import C4, Quality

Broken = Iterator[tuple[str, np.ndarray]]  # why, and which texts: bool [N]

_BOILERPLATE = re.compile(
    "javascript|terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies|隐私政策|使用条款|cookie ?政策",
    re.IGNORECASE,
)
_CITATION = re.compile(r"\[(?:\d{1,4}|edit|citation needed|编辑|來源請求|来源请求)\]", re.IGNORECASE)
_ENDED = re.compile(r"[.!?\"”’。！？…」』]$")
_SENTENCE = re.compile(r"[.!?]+(?=[\s\"'”’)]|$)|[。！？]+")
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class QualityFilter:
    name: ClassVar[str] = "quality"

    def __init__(self, options: Quality):
        self.options = options

    def __call__(self, texts: Texts) -> Outcome:
        found, measured = Outcome(), Measures(texts)
        reason_N = np.full(len(texts), None, object)
        for rule in self.options.rules:
            if rule == "c4":
                measured = self.c4(measured, found, reason_N)
                continue
            for why, broken_N in getattr(self, rule)(measured):
                reason_N[broken_N & np.array([reason is None for reason in reason_N])] = f"{rule}: {why}"
        if reason_N.any():
            found.reasons = reason_N.tolist()
        return found

    def length(self, measured: Measures) -> Broken:
        o, words_N = self.options.length, measured.count(m.WORDS)
        yield f"fewer than {o.min_words:,} words", words_N < o.min_words
        yield f"more than {o.max_words:,} words", words_N > o.max_words

    def gopher(self, measured: Measures) -> Broken:
        o = self.options.gopher
        plain_N = measured.count(m.PLAIN_WORDS)
        mean_N = measured.share(m.PLAIN_LETTERS, of=m.PLAIN_WORDS)
        # Of a Chinese text's few other words, the length says nothing.
        asked_N = plain_N * 2 >= measured.count(m.WORDS)
        yield "words too short", asked_N & (mean_N < o.min_word_length)
        yield "words too long", asked_N & (mean_N > o.max_word_length)
        yield "too many #", measured.share(m.HASHES, of=m.WORDS) > o.max_symbols_per_word
        yield "too many ellipses", measured.share(m.ELLIPSES, of=m.WORDS) > o.max_symbols_per_word
        yield "too many bullet lines", measured.line_share(measured.line(m.L_BULLET) > 0) > o.max_bullet_lines
        yield (
            "too many lines end in an ellipsis",
            measured.line_share(measured.line(m.L_ELLIPSIS) > 0) > o.max_ellipsis_lines,
        )
        yield "too few words with a letter", measured.share(m.ALPHABETIC, of=m.WORDS) < o.min_alphabetic_words
        yield "too few stop words", measured.stop_words < o.min_stop_words

    def repetition(self, measured: Measures) -> Broken:
        o = self.options.repetition
        lines_N, line_characters_N = measured.duplicates()
        paragraphs_N, paragraph_characters_N = measured.duplicates(paragraphs=True)
        yield "duplicate lines", lines_N > o.duplicate_lines
        yield "duplicate paragraphs", paragraphs_N > o.duplicate_paragraphs
        yield "characters in duplicate lines", line_characters_N > o.duplicate_line_characters
        yield "characters in duplicate paragraphs", paragraph_characters_N > o.duplicate_paragraph_characters
        top_N3, again_N6 = measured.repeated
        for n, most in enumerate(o.top_ngram):
            yield f"most frequent {n + 2}-gram", top_N3[:, n] > most
        for n, most in enumerate(o.duplicate_ngrams):
            yield f"duplicate {n + 5}-grams", again_N6[:, n] > most

    def fineweb(self, measured: Measures) -> Broken:
        o = self.options.fineweb
        yield (
            "too few lines end in punctuation",
            measured.line_share(measured.line(m.L_ENDED) > 0) <= o.min_punctuated_lines,
        )
        yield "characters in duplicate lines", measured.duplicates()[1] >= o.max_duplicate_line_characters
        yield "too many short lines", measured.line_share(measured.line(m.L_WIDTH) < o.short_line) >= o.max_short_lines

    def ratios(self, measured: Measures) -> Broken:
        o = self.options.ratios
        other_N = measured.count(m.CHARACTERS) - measured.count(m.LETTERS) - measured.count(m.DIGITS)
        yield "too many digits", measured.share(m.DIGITS) > o.digits
        yield "too many symbols", m.shares(other_N, measured.count(m.CHARACTERS)) > o.symbols

    def c4(self, measured: Measures, found: Outcome, reason_N: np.ndarray) -> Measures:
        """Cut lines, and tell which texts go. What later rules measure is what is left."""
        texts, new = measured.texts, dict[int, str]()
        for i, text in enumerate(texts.text.to_pylist()):
            if reason_N[i] is not None:
                continue
            left = cut_lines(text, self.options.c4, found)
            reason_N[i] = c4_reason(left, self.options.c4)
            if left != text and reason_N[i] is None:
                new[i] = left
        if not new:
            return measured
        found.text = replaced(texts.text, new)
        found.changed["lines cut"] += len(new)
        return Measures(Texts(texts.row_id, found.text))


def cut_lines(text: str, options: C4, found: Outcome) -> str:
    """The lines that C4 keeps. How many go, and why, is counted."""
    kept = []
    for line in text.split("\n"):
        bare, why = line.strip(), None
        if options.boilerplate and "[" in bare:
            bare = _CITATION.sub("", bare)
        if not bare:
            kept.append("")
        elif options.boilerplate and _BOILERPLATE.search(bare):
            why = "boilerplate"
        elif options.end_marks and not _ENDED.search(bare):
            why = "no end mark"
        elif len(bare.split()) + len(_HAN.findall(bare)) < options.min_line_words:
            why = f"fewer than {options.min_line_words:,} words"
        else:
            kept.append(bare if bare != line.strip() else line)
        if why is not None:
            found.found[f"lines cut, {why}"] += 1
    return "\n".join(kept).strip("\n")


def c4_reason(text: str, options: C4) -> str | None:
    """Why what is left of a text goes."""
    if not text.strip():
        return "c4: no line is left"
    if options.placeholders and "lorem ipsum" in text.lower():
        return "c4: lorem ipsum"
    if options.braces and "{" in text:
        return "c4: curly bracket"
    if options.min_sentences and len(_SENTENCE.findall(text)) < options.min_sentences:
        return f"c4: fewer than {options.min_sentences:,} sentences"
    return None
