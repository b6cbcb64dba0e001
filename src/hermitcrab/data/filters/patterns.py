"""What values of personal data look like, a kind each: a pattern, and a test for what it finds. Kinds and tests, no values.

No pattern uses word boundaries, for Chinese has none around a number: what may not stand beside a value is an ASCII letter or digit.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from hermitcrab.data.filters.checksums import credit_code, identity_card, identity_card_15, luhn
from hermitcrab.errors import needs

_NO = "(?<![0-9A-Za-z])"
_END = "(?![0-9A-Za-z])"
_TOKENS = (
    r"(?:AKIA|ASIA)[0-9A-Z]{16}", r"gh[pousr]_[A-Za-z0-9]{36,255}", r"github_pat_[A-Za-z0-9_]{40,255}", r"glpat-[A-Za-z0-9_-]{20,64}",
    r"sk-[A-Za-z0-9_-]{20,200}", r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,99}", r"xox[abeprs]-[A-Za-z0-9-]{10,200}", r"AIza[0-9A-Za-z_-]{35}",
    r"hf_[A-Za-z0-9]{30,60}", r"npm_[A-Za-z0-9]{36}", r"pypi-[A-Za-z0-9_-]{50,300}", r"LTAI[0-9A-Za-z]{12,24}", r"AKID[0-9A-Za-z]{32}",
    r"eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,2000}",
)  # fmt: skip
_SECRET = (  # a word for it, and what says that it follows
    "(?:(?i:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key)|密码|口令|密钥|令牌)[\"']?[ \\t]*(?:[:=：]|is|是|为)[ \\t]*"
)
_PLATES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
_CREDIT = "0-9A-HJ-NP-RTUWXY"
MIN_ENTROPY = 3.0  # bits a character: words of a language have less at such a length


@dataclass(frozen=True)
class Pattern:
    """One kind.

    Attributes:
        regex: finds candidates; the group `value`, where there is one, is the value.
        hint: what has to stand in a text for a candidate to be there, for RE2: a batch is searched for all hints at once.
        test: tells a value from a candidate; None: all are.
        context: has to stand near before the value.
        unless: may not stand right before it.
    """

    regex: re.Pattern[str]
    hint: str
    test: Callable[[str], bool] | None = None
    context: re.Pattern[str] | None = None
    unless: re.Pattern[str] | None = None


def digits(text: str) -> str:
    return re.sub("[ -]", "", text)


def _card(text: str) -> bool:
    """A number that an issuer could have given, with its check digit (ISO/IEC 7812-1)."""
    number = digits(text)
    issued = {13: "4", 15: "3[47]", 16: "4|5[1-5]|2[2-7]|62|6011|65|35", 17: "62", 18: "62", 19: "62|4"}.get(
        len(number)
    )
    return issued is not None and re.match(issued, number) is not None and luhn(number)


def _public(text: str) -> bool:
    """An address that can be somebody's: not private, not of examples, not a version number."""
    import ipaddress

    if 0 < text.count(":") < 3:  # a time of day, a short form that is nobody's
        return False
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _random(text: str) -> bool:
    """Letters and digits without the order of words: Shannon's entropy of its characters."""
    if not (re.search("[0-9]", text) and re.search("[A-Za-z]", text)):
        return False
    count = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in count.values()) >= MIN_ENTROPY


def _plate(text: str) -> bool:
    return re.search("[0-9]", text) is not None


PATTERNS = {
    "private-key": Pattern(
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
            r"(?:[^-]{0,20000}-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----|[A-Za-z0-9+/=\s]{0,20000})"
        ),
        "-----BEGIN ",
    ),
    "token": Pattern(
        re.compile(f"{_NO}(?:{'|'.join(_TOKENS)})"),
        "(?:AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|sk-|k_live_|k_test_|xox[abeprs]-|AIza|hf_|npm_|pypi-|LTAI|AKID|eyJ)[0-9A-Za-z]",
    ),
    "e-mail": Pattern(
        re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"),
        "[0-9A-Za-z]@[0-9A-Za-z]",
    ),
    "identity-card-cn": Pattern(
        re.compile(f"{_NO}(?:[1-9][0-9]{{16}}[0-9Xx]|(?<=号)[1-9][0-9]{{14}}|(?<=[:： ])[1-9][0-9]{{14}}){_END}"),
        "[1-9][0-9]{14}",
        lambda text: identity_card(text) if len(text) == 18 else identity_card_15(text),
    ),
    "credit-code-cn": Pattern(
        re.compile(f"{_NO}[159AHNY][1-9][0-9]{{6}}[{_CREDIT}]{{10}}{_END}"), "[0-9]{6}[0-9A-Y]{10}", credit_code
    ),
    "bank-card": Pattern(
        re.compile(r"(?<![0-9A-Za-z.,-])[2-6][0-9](?:[ -]?[0-9]){11,17}(?![0-9A-Za-z]|[.,][0-9])"),
        "(?:[0-9][ -]?){13}",
        _card,
    ),
    "mobile-cn": Pattern(
        re.compile(
            r"(?<![0-9A-Za-z.+-])(?:(?:\+|00)?86[ -]?)?1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4}(?![0-9A-Za-z]|[.][0-9])"
        ),
        "1[3-9](?:[ -]?[0-9]){9}",
    ),
    "ip-address": Pattern(
        re.compile(r"(?<![0-9A-Za-z.:])(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9A-Za-z]|\.[0-9])|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4}(?![0-9A-Za-z:]))"),
        r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]",
        _public,
        unless=re.compile("(?i:version|release|版本|版|v)[号:： ]{0,2}$"),
    ),
    "passport-cn": Pattern(
        re.compile(f"{_NO}(?:[EGDSPK][0-9]{{8}}|E[A-HJ-NP-Z][0-9]{{7}}|1[45][0-9]{{7}}){_END}"),
        "[0-9]{7}",
        context=re.compile("(?i:护照|passport)"),
    ),
    "plate-cn": Pattern(  # GA 36-2018; six places where the engine is electric
        re.compile(
            f"[{_PLATES}][A-HJ-NP-Z][·•・ ]?"
            f"(?:[A-HJ-NP-Z0-9]{{4}}[A-HJ-NP-Z0-9挂学警港澳]|[DF][A-HJ-NP-Z0-9][0-9]{{4}}|[0-9]{{5}}[DF]){_END}"
        ),
        f"[{_PLATES}][A-Z]",
        _plate,
    ),
    "high-entropy": Pattern(
        re.compile(f"{_SECRET}[\"']?(?P<value>[!-&(-~]{{10,200}})"),
        f"{_SECRET}[\"']?[!-&(-~]{{10}}",
        _random,
    ),
}  # fmt: skip
"""Kinds of our own, the surer ones first: what one has taken, no later one takes again."""

# Kinds of Presidio, each with its recognizer's name and what it calls the kind; asked only where the hint stands.
PRESIDIO = {
    "phone": ("PhoneRecognizer", "PHONE_NUMBER", r"[0-9](?:[ ().-]{0,3}[0-9]){6}"),
    "iban": ("IbanRecognizer", "IBAN_CODE", "[A-Z]{2}[0-9]{2} ?[0-9A-Z]{4}"),
    "us-ssn": ("UsSsnRecognizer", "US_SSN", "[0-9]{3}[- .]?[0-9]{2}[- .]?[0-9]{4}"),
    "crypto-wallet": ("CryptoRecognizer", "CRYPTO", "(?:bc1|[13])[0-9A-Za-z]{25}"),
}
LEAST_SCORE = 0.4  # what Presidio gives a pattern without a checksum and without context


@cache
def recognizer(kind: str) -> tuple[Any, str]:
    """Presidio's recognizer of a kind, and its name for it."""
    name, entity, _ = PRESIDIO[kind]
    return getattr(needs("presidio_analyzer.predefined_recognizers", "data"), name)(), entity
