"""Figures and foreign text as people read them. The terminal and the page say the same words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
PHONE = re.compile(r"(?<![\w.])(?:\+|\(|00)?\d(?:[\s().\-/]{0,2}\d){6,14}(?!\w)")
DASH = "–"
TURNS = (
    "LRE",
    "RLE",
    "LRO",
    "RLO",
    "PDF",
    "LRI",
    "RLI",
    "FSI",
    "PDI",
)  # Unicode classes that turn the reading direction


def number(value: float | None, digits: int = 3) -> str:
    """`0.812`, `1,204.5`, `4.1e-06`, or a dash for what is not known."""
    if value is None:
        return DASH
    if value and abs(value) < 10**-digits:
        return f"{value:.1e}"
    return f"{value:,.{digits}f}" if abs(value) < 1000 else f"{value:,.1f}"


def signed(value: float | None) -> str:
    return DASH if value is None else f"{value:+.3f}"


def interval(low: float | None, high: float | None) -> str:
    return "unknown" if low is None or high is None else f"{number(low)} to {number(high)}"


def narrow_interval(low: float | None, high: float | None) -> str:
    """For the cells of a wide table."""
    return "unknown" if low is None or high is None else f"{number(low)}–{number(high)}"


def signed_interval(low: float | None, high: float | None) -> str:
    return "unknown" if low is None or high is None else f"{signed(low)} to {signed(high)}"


def p_value(value: float | None) -> str:
    if value is None:
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def percent(value: float | None) -> str:
    return DASH if value is None else f"{value:.1%}"


def count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def seconds(value: float | None) -> str:
    """`0.4 ms`, `0.042 s`, `8.1 s`, `6 min 12 s`, `3 h 07 min`."""
    if value is None:
        return DASH
    if 0 < value < 0.001:
        return f"{value * 1e3:.1f} ms" if value >= 0.0001 else "under 0.1 ms"
    if value < 60:
        return f"{value:.3f} s" if value < 1 else f"{value:.1f} s"
    minutes = int(value // 60)
    return f"{minutes} min {int(value % 60):02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(value: float | None) -> str:
    if value is None:
        return DASH
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def turned(parity: Mapping[str, Any]) -> str:
    """How many answers another model changed, and how many of these became right and wrong."""
    if parity.get("flips") is None:
        return DASH
    return f"{parity['flips']:,} of {parity['n']:,} (+{parity['gained']:,} / −{parity['lost']:,})"


def margin(parity: Mapping[str, Any]) -> str:
    """Is the loss shown to be within what was stated?"""
    return f"{'within' if parity['within_margin'] else 'not shown within'} {parity['margin']:g}"


def pace(speed: Mapping[str, Any] | None) -> str:
    """`41 tokens/s`, of a CPU-second."""
    return DASH if not speed else f"{speed['per_cpu_second']:,.3g} {speed['unit']}/s"


def fate(trial: Mapping[str, Any]) -> str:
    """What became of a trial of a search."""
    return "chosen" if trial["chosen"] else "diverged" if trial["failed"] else ""


def reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{amount:,} {reason}" for reason, amount in counts.items()) or DASH


def untouched(entry: Mapping[str, Any]) -> bool:
    """Was everything kept, and as it came?"""
    return not entry["dropped"] and kept_but(entry) == DASH


def kept_but(entry: Mapping[str, Any]) -> str:
    """What was kept, but not as it came; of tokens, also how many are learnt."""
    told = [reasons(entry["changed"])] if entry["changed"] else []
    if entry.get("learnt", entry["kept"]) != entry["kept"]:
        told.append(f"{entry['learnt']:,} learnt")
    if "end_learnt_share" in entry:
        told.append(f"{entry['end_learnt_share']:.0%} of {entry['examples_kept']:,} examples learn their end")
    return "; ".join(told) or DASH


def cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def mask(text: str) -> str:
    """E-mail addresses and telephone numbers taken out; rather a date too many than a number too few."""
    return PHONE.sub("[phone]", EMAIL.sub("[email]", text))


def excerpt(text: str, longest: int = 280) -> str:
    """A masked beginning of a row's text. It is masked before it is cut, so that no half of an address stays."""
    return cut(mask(text), longest)


def plain(value: Any) -> Any:
    """Foreign strings, at any depth, with what could move a cursor or turn the order of the letters shown as its code.

    Names and texts come from files that anybody may have written: an escape sequence rewrites a terminal, and a
    bidirectional override makes a name read as another (CVE-2021-42574).
    """
    if isinstance(value, str):
        return "".join(c if c in "\n\t" or not _moves(c) else f"\\u{ord(c):04x}" for c in value)
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def _moves(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in TURNS
