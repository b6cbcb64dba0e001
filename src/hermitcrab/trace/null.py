"""The shipped table of independent models: what the aligned score of two unrelated models looks like.

`null.json` is written by `benchmarks/trace/calibrate.py` from models that nothing reported was measured on; it names them.
A p-value is conformal: (1 + scores of independent pairs at least as large) / (1 + pairs), so it has a floor.
"""

from __future__ import annotations

import bisect
import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

GUARD = {"channels": 4.0}  # times the largest score of the table, else 2: below it a high score is no verdict
# (recurrent nets score higher when independent than the convolutional ones that the table of channels was made with)


@dataclass(frozen=True)
class Table:
    """Scores of independent pairs, ascending. `models`: what they were."""

    statistic: str
    scores: tuple[float, ...]
    models: str

    def log10_p(self, score: float) -> float:
        above = len(self.scores) - bisect.bisect_left(self.scores, score)
        return math.log10((1 + above) / (1 + len(self.scores)))

    @property
    def floor(self) -> float:
        """log10 of the smallest p that the table can give."""
        return -math.log10(1 + len(self.scores))

    @property
    def largest(self) -> float:
        return self.scores[-1]

    @property
    def guard(self) -> float:
        """The score from which a relation is said; between the table's largest and this it is `cannot tell`."""
        return GUARD.get(self.statistic, 2.0) * self.largest


@cache
def tables() -> dict[str, Table]:
    told: dict[str, Any] = json.loads((Path(__file__).parent / "null.json").read_text())
    return {
        name: Table(name, tuple(sorted(s for s, count in entry["scores"] for _ in range(count))), entry["models"])
        for name, entry in told["statistics"].items()
    }
