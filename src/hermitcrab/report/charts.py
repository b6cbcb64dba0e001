"""Drawings as numbers: each in a box of 100 x 100 that the page stretches to whatever room there is.

Labels are no part of the stretched drawing: the page sets them beside it, at their percentage, in its own type size. So
they are as legible on a phone as on a wide screen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

POINTS = 240  # of a curve; more steps are averaged
REACH = 6
BLOCKS = "▁▂▃▄▅▆▇█"


class Scale:
    """Values from `low` to `high` on 0 to 100, with a margin at both ends; `down` puts the highest at the top."""

    def __init__(self, low: float, high: float, margin: float = 4.0, down: bool = False):
        self.low, self.high, self.margin, self.down = low, high, margin, down

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        share = 1 - share if self.down else share
        return round(self.margin + share * (100 - 2 * self.margin), 2)


def ticks(low: float, high: float, most: int = 5) -> list[tuple[float, str]]:
    """At most `most` round values in [low, high], a multiple of 1, 2 or 5 apart, with their labels."""
    if not high > low:
        return [(low, f"{low:g}")]
    power = 10.0 ** math.floor(math.log10(high - low) - 1)
    for factor in (1, 2, 5, 10, 20, 50, 100):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(i * step, f"{i * step:,.{digits}f}") for i in range(first, last + 1)]


def forest(pairs: Sequence[Mapping[str, Any]], against: str | None = None) -> dict[str, Any]:
    """Differences with their intervals on one scale that holds zero: `{rows: [{line, dot, off}], zero, ticks}`.

    The scale is made for the pair `against`: one that lies REACH times as far out is not drawn but pointed at (`off`: -1 or
    1), or a hopeless baseline would press the interval that matters into a dot.
    """
    first = [x for p in pairs if p["b"] == against for x in (p["low"], p["high"]) if x is not None]
    reach = REACH * max(map(abs, first), default=math.inf) or math.inf
    off = [0 if abs(p["difference"]) <= reach else 1 if p["difference"] > 0 else -1 for p in pairs]
    near = [p for p, away in zip(pairs, off, strict=True) if not away]
    limits = [x for p in near for x in (p["low"], p["high"], p["difference"]) if x is not None]
    low, high = min([0.0, *limits]), max([0.0, *limits])
    place = Scale(low, high)
    return {
        "rows": [
            {
                "line": None if away or p["low"] is None or p["high"] is None else (place(p["low"]), place(p["high"])),
                "dot": None if away else place(p["difference"]),
                "off": away,
            }
            for p, away in zip(pairs, off, strict=True)
        ],
        "zero": place(0.0),
        "ticks": [(place(at), f"{'+' if at > 0 else ''}{label}" if at else "0") for at, label in ticks(low, high, 4)],
    }


def curve(found: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any] | None:
    """Training and validation loss by step: points of two lines, and the ticks of both axes. None for fewer than two steps."""
    train, every = _thinned(found["train"])
    validation = found["validation"]
    points = [*train, *validation]
    if len(train) < 2:
        return None
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    across, up = Scale(min(steps), max(steps), margin=1), Scale(min(losses), max(losses), margin=5, down=True)
    return {
        "train": [(across(step), up(loss)) for step, loss in train],
        "validation": [(across(step), up(loss)) for step, loss in validation],
        "across": [(across(at), label) for at, label in ticks(min(steps), max(steps), 5) if at == int(at)],
        "up": [(up(at), label) for at, label in ticks(min(losses), max(losses), 5)],
        "every": every,
        "last": {"train": train[-1][1], "validation": validation[-1][1] if validation else None},
    }


def sizes(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Smaller forms by size (across) and loss of the deciding metric (up, with its interval); the bigger a point, the faster.

    Loss counts what got worse, so up is always worse. None where no form has a known interval.
    """
    from hermitcrab.evaluate.metrics import lower_is_better

    known = [e for e in entries if e["parity"]["low"] is not None and e["parity"]["high"] is not None]
    if not known:
        return None
    sign = 1 if lower_is_better(known[0]["parity"]["metric"]) else -1
    whole = max(e["size_of_model"] for e in known)
    losses = [sorted(sign * e["parity"][end] + 0.0 for end in ("low", "high")) for e in known]
    margin = min(e["parity"]["margin"] for e in known)
    low, high = min(0.0, *(at[0] for at in losses)), max(margin, *(at[1] for at in losses))
    across, up = Scale(0, whole / 1e6, margin=3), Scale(low, high, margin=6)
    speeds = [e["speed"]["per_cpu_second"] if e.get("speed") else None for e in known]
    fastest = max((s for s in speeds if s), default=None)
    return {
        "points": [
            {
                "name": f"{e['format']} {e['type']}", "number": number,
                "told": f"{e['format']} {e['type']} {e['size'] / 1e6:,.0f} MB loses {sign * e['parity']['difference'] + 0.0:+.4f} "
                f"({at[0]:+.4f} to {at[1]:+.4f})", "x": across(e["size"] / 1e6),
                "y": 100 - up(sign * e["parity"]["difference"]), "line": (100 - up(at[1]), 100 - up(at[0])),
                "within": e["parity"]["within_margin"], "wide": round(8 + 10 * (s / fastest), 1) if s and fastest else 8.0,
            }
            for number, (e, at, s) in enumerate(zip(known, losses, speeds, strict=True), 1)
        ],
        "zero": 100 - up(0.0), "margin": 100 - up(margin), "stated": f"{margin:g}", "metric": known[0]["parity"]["metric"],
        "whole": across(whole / 1e6), "across": [(across(at), f"{label} MB") for at, label in ticks(0, whole / 1e6, 5)],
        "up": [(100 - up(at), f"{'+' if at > 0 else ''}{label}" if at else "0") for at, label in ticks(low, high, 5)],
    }  # fmt: skip


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """A curve in one line of text; empty for fewer than two values."""
    if len(values) < 2:
        return ""
    every = -(-len(values) // width)
    means = [sum(c) / len(c) for c in (values[i : i + every] for i in range(0, len(values), every))]
    low, high = min(means), max(means)
    return "".join(BLOCKS[int((m - low) / ((high - low) or 1.0) * (len(BLOCKS) - 1) + 0.5)] for m in means)


def _thinned(points: Sequence[Sequence[float]]) -> tuple[list[tuple[float, float]], int]:
    """At most POINTS points, each the mean of `every` neighbors."""
    every = -(-len(points) // POINTS)
    chunks = [points[i : i + every] for i in range(0, len(points), every)] if every else []
    return [(c[-1][0], sum(loss for _, loss in c) / len(c)) for c in chunks], every
