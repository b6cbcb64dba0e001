"""language: which one a text is in. Chinese, Japanese and Korean by their scripts, all others by CLD2.

CLD2 (Sites 2013, Apache-2.0) is a naive Bayesian classifier of letter groups with its tables in its wheel; it knows some 80
languages well. A long text is judged by three pieces of it. The certainty of an answer is the share of the text that is in that
language, or nothing where CLD2 itself calls its answer unreliable.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from hermitcrab.data.filters import Outcome, Texts
from hermitcrab.data.filters.bytes import counts
from hermitcrab.data.kernel import utf8
from hermitcrab.errors import UsageError, needs
from hermitcrab.recipe.filters import Language

if TYPE_CHECKING:
    import numpy as np

PIECE = 2048  # bytes of each of three pieces
SHORTEST = 40  # characters of a text that is asked in parts
FEWEST = 2  # characters of Han, kana or Hangul that decide by script
LETTERS = 4  # Latin letters that weigh as much as one Han character


class LanguageFilter:
    name: ClassVar[str] = "language"

    def __init__(self, options: Language):
        self.options = options
        self.cld2: Any = needs("pycld2", "data")
        known = {code.split("-")[0] for _, code in self.cld2.LANGUAGES}
        if unknown := sorted(set(options.keep) - known):
            raise UsageError(
                f"data.clean: language: keep has {unknown[0]}, which is no language that can be told; "
                "expected ISO 639 codes such as en, zh, de"
            )

    def __call__(self, texts: Texts) -> Outcome:
        data_B, start_N1 = utf8(texts.text)
        by_script, found = scripts(data_B, start_N1), Outcome()
        reasons = list[str | None]()
        for i, (language, certainty) in enumerate(by_script):
            if language is None:
                language, certainty = self.told(piece(data_B[start_N1[i] : start_N1[i + 1]]))
            sure = language is not None and certainty >= self.options.confidence
            found.found[language if sure and language else "unsure"] += 1
            reasons.append(self.reason(language if sure else None))
        if any(reasons):
            found.reasons = reasons
        return found

    def told(self, text: str) -> tuple[str | None, float]:
        """The language of a text by CLD2, and how certain that is. None: no answer.

        CLD2 passes over words that look repetitive to it, in inflected languages sometimes all of a sentence; its parts it
        can tell.
        """
        language, certainty = self.asked(text)
        if language is None and len(text) >= SHORTEST:
            parts = [self.asked(part) for part in _quarters(text)]
            found = Counter(part for part, sure in parts if part is not None and sure)
            if found and (best := found.most_common(1)[0])[1] * 2 > found.total():
                return best[0], best[1] / found.total()
        return language, certainty

    def asked(self, text: str) -> tuple[str | None, float]:
        """What CLD2 says, the first answer that is a language."""
        try:
            reliable, _, answers = self.cld2.detect(text, isPlainText=True, bestEffort=True)
        except self.cld2.error:  # it takes no control characters and no code points that are none
            text = "".join(c if c.isprintable() else " " for c in text)
            try:
                reliable, _, answers = self.cld2.detect(text, isPlainText=True, bestEffort=True)
            except self.cld2.error:
                return None, 0.0
        _, code, percent, _ = answers[0]
        return (None, 0.0) if code == "un" else (code.split("-")[0], percent / 100 if reliable else 0.0)

    def reason(self, language: str | None) -> str | None:
        if not self.options.keep or language in self.options.keep:
            return None
        if language is None:
            return "language is not certain" if self.options.unsure == "drop" else None
        return f"language is {language}"


def _quarters(text: str) -> list[str]:
    words = text.split()
    size = max(len(words) // 4, 4)
    return [" ".join(words[i : i + size]) for i in range(0, len(words), size)]


def scripts(data_B: np.ndarray, start_N1: np.ndarray) -> list[tuple[str | None, float]]:
    """Texts that their script decides, by lead bytes of UTF-8: `(language, share)`, or `(None, 0.0)` for one that CLD2 should see.

    Kana or Hangul among the characters make a text Japanese or Korean; Han characters without them make it Chinese.
    """
    import numpy as np

    none: tuple[str | None, float] = (None, 0.0)
    told = [none] * (len(start_N1) - 1)
    wide_B = data_B >= 0xE3
    if not wide_B.any():
        return told
    next_B = np.append(data_B[1:], np.uint8(0))
    han_N = counts((data_B >= 0xE4) & (data_B <= 0xE9), start_N1)
    kana_N = counts((data_B == 0xE3) & (next_B >= 0x81) & (next_B <= 0x83), start_N1)
    hangul_N = counts((data_B >= 0xEA) & (data_B <= 0xED), start_N1)
    latin_N = counts(((data_B | 32) >= 97) & ((data_B | 32) <= 122), start_N1)
    other_N = counts((data_B >= 0xC3) & (data_B <= 0xE1), start_N1)  # letters of other alphabets
    for i in np.flatnonzero(han_N + kana_N + hangul_N >= FEWEST).tolist():
        han, kana, hangul = int(han_N[i]), int(kana_N[i]), int(hangul_N[i])
        share = (han + kana + hangul) / (han + kana + hangul + (int(latin_N[i]) + int(other_N[i])) / LETTERS)
        if share < 0.5:
            continue
        told[i] = ("ja" if kana * 20 > han else "zh", share)
        if hangul > han + kana:
            told[i] = ("ko", share)
    return told


def piece(data_B: np.ndarray) -> str:
    """The text, or of a long one its beginning, middle and end."""
    if len(data_B) <= 4 * PIECE:
        return data_B.tobytes().decode()
    middle = len(data_B) // 2
    cut = data_B[:PIECE], data_B[middle : middle + PIECE], data_B[-PIECE:]
    return "\n".join(part.tobytes().decode(errors="ignore") for part in cut)
