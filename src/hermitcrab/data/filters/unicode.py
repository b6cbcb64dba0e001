"""unicode: one way to write what looks the same. Mended, cleared of control characters, in normal form, stripped.

Normal forms: Unicode Standard Annex 15. Mojibake: ftfy (Speer 2019, doi:10.5281/zenodo.2591652). Chinese: OpenCC, character
by character and phrase by phrase. Most texts need nothing of it, so the bytes of a batch are searched for what could: an
ASCII text without control characters is never decoded.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hermitcrab.data.filters import Outcome, Texts
from hermitcrab.data.filters.bytes import holders, replaced
from hermitcrab.data.kernel import utf8
from hermitcrab.errors import needs
from hermitcrab.recipe.filters import Unicode

if TYPE_CHECKING:
    import numpy as np

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile("[\u3041-\u30ff]")
# What UTF-8 looks like when it was read as another encoding: its lead byte as a letter, then a letter for a byte of 80 to BF.
_AFTER = "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122"
_SUSPECT = re.compile(
    # Latin-1, Windows-1252: Ã©, â€œ, ä¸­
    f"[\u00c2-\u00f4][{_AFTER}]"
    # Latin-2, Windows-1250: Ă©, Ĺ‚
    "|[\u00c2\u00c4\u0102\u0139][\u0080-\u00ff\u0102-\u017e\u02c7-\u02dd\u2013-\u203a\u20ac\u2122]"
    # Mac Roman: √©, ‚Äú
    "|[\u201a\u221a\u00ac\u2030][\u00a0-\u02ff\u03a9\u03c0\u2013-\u2265]"
    # Code page 437: ├⌐, ΓÇ£
    "|[\u0393\u03a3\u03c3\u00b5\u03c4\u03a6\u0398\u2500\u251c\u253c\u2564\u2568]"
    "[\u00a0-\u00ff\u0192\u207f\u20a7\u2219-\u2265\u2310-\u25a0]"
    # Windows-1251: Рџ, Сѓ
    "|[\u0420\u0421\u0432\u0434-\u0439][\u0080-\u00bf\u0402\u0403\u0490\u0491\u2013-\u2122]"
    "|[\u0420\u0421][\u0404-\u040f\u0452-\u045f]"
)
# What can begin any of these: one set is searched for faster than five patterns, and most texts have none of it.
_LEAD = re.compile(
    "[\u00ac\u00b5\u00c2-\u00f4\u0102\u0139\u0393\u03a3\u03c3\u03c4\u03a6\u0398\u0420\u0421\u0432\u0434-\u0439\u201a\u221a\u2030\u2500-\u2568]"
)
LARGEST_MENDED = 1 << 20  # characters: ftfy's time grows with them


def tidy(text: str, form: Literal["NFC", "NFKC", "none"]) -> str:
    """Line ends to \\n, no control characters but \\n and \\t, Unicode normal form, no outer whitespace. Idempotent."""
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return (text if form == "none" else unicodedata.normalize(form, text)).strip()


@cache
def converter(target: str) -> Any:
    """OpenCC to `simplified` or `traditional`; one a process, as its dictionaries take a moment to load."""
    return needs("opencc", "data").OpenCC("t2s" if target == "simplified" else "s2t")


class UnicodeFilter:
    name: ClassVar[str] = "unicode"

    def __init__(self, options: Unicode):
        self.options = options

    def __call__(self, texts: Texts) -> Outcome:
        found, new = Outcome(), dict[int, str]()
        reasons: list[str | None] = [None] * len(texts)
        places = suspects(texts).nonzero()[0]
        for i, old in zip(places.tolist(), texts.text.take(places).to_pylist(), strict=True):
            now = self.written(old, found)
            if now != old:
                new[i] = now
                found.changed["unicode"] += 1
            if not now:
                reasons[i] = "empty after normalization"
        if new:
            found.text = replaced(texts.text, new)
        if any(reasons):
            found.reasons = reasons
        return found

    def written(self, text: str, found: Outcome) -> str:
        """One text as it should be written; what was done is counted."""
        options = self.options
        if options.mojibake and _LEAD.search(text) and _SUSPECT.search(text):
            text = self.mended(text, found)
        text = tidy(text, options.form)
        if "\ufffd" in text:
            found.found["texts with replacement characters"] += 1
        if options.chinese != "keep" and _HAN.search(text):
            if _KANA.search(text):
                found.found["texts with kana, not converted"] += 1
                return text
            converted = converter(options.chinese).convert(text)
            found.changed[f"{options.chinese} Chinese"] += converted != text
            # A converted character may be another's compatibility form: normal form is asked of what is left.
            text = tidy(converted, options.form)
        return text

    def mended(self, text: str, found: Outcome) -> str:
        if len(text) > LARGEST_MENDED:
            found.found["texts too long to be searched for mojibake"] += 1
            return text
        mended = needs("ftfy", "data").fix_encoding(text)
        found.changed["mojibake mended"] += mended != text
        return mended


def suspects(texts: Texts) -> np.ndarray:
    """Which texts have to be looked at: not ASCII, with a control character, or with whitespace outside. Bool [N]."""
    import numpy as np
    import pyarrow.compute as pc

    data_B, start_N1 = utf8(texts.text)
    ascii_N = pc.string_is_ascii(texts.text).to_numpy(zero_copy_only=False)
    odd_B = data_B < 32
    odd_B &= (data_B != 10) & (data_B != 9)
    odd_B |= data_B == 127
    found_N = ~ascii_N | holders(odd_B.nonzero()[0], start_N1)
    first_N, last_N = start_N1[:-1], start_N1[1:]
    full_N = last_N > first_N
    outer_N = ~full_N  # an empty text has to be dropped
    if full_N.any():
        outer_N[full_N] = (data_B[first_N[full_N]] <= 32) | (data_B[last_N[full_N] - 1] <= 32)
    return np.asarray(found_N | outer_N)
