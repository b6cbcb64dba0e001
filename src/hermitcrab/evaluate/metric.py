"""What a metric is: a name, a version, and one of two ways to be computed from answers and resampled.

    sums      a function of sums over rows: `rows` gives what each row adds (N x K), `values` the metric of totals (R x K -> R).
              One resample is a weighted sum, so tens of thousands cost nothing. What is defined over a group (a user's ranking,
              a corpus of documents) puts the group's sums on one of its rows and names the groups in `document`.
    weighted  what is no function of sums (areas under curves, average precision): `weighted` is given the answers once and
              returns a function of how often each row was drawn (R x N -> R). It is asked for fewer resamples (`FEWER`).

Shapes: N rows, K sums, R resamples, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hermitcrab.evaluate.answers import Answers
from hermitcrab.evaluate.statistics import Floats

FEWER = 2_000
"""Resamples of a metric that is no function of sums, at most."""

Rows = Callable[[Answers, Sequence[str]], Floats]  # answers, labels -> N x K
Values = Callable[[Floats], Floats]  # totals R x K -> R
Weighted = Callable[[Answers, Sequence[str]], Callable[[Floats], Floats]]  # answers, labels -> (weights R x N -> R)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric. Names as torchmetrics, sacrebleu, jiwer or scikit-learn have them.

    Attributes:
        version: changes whenever the definition does.
        lower_is_better: less of it is better.
        needs: columns of the predictions that it is computed from; where a model's answers have none of one, it is not given.
        labels: it needs the labels that there are.
        bounded: it lies between 0 and 1, so a margin may be stated in its own units.
        same: columns that must be equal for two models to be compared by it (of equal tokenizers, the tokens).
        share: 1 or 0 a row (float64 N), where the metric is the share of ones: its interval is Wilson's.
        right: 1 or 0 a row, where an answer is right or wrong by this metric: rows are gained and lost, and what a sample could
            show can be told beforehand.
        rows, values: of the first kind; metrics with the same `rows` share its columns. `weighted`: of the second.
    """

    name: str
    version: str = "1"
    lower_is_better: bool = False
    needs: tuple[str, ...] = ("prediction",)
    labels: bool = False
    bounded: bool = True
    same: tuple[str, ...] = ()
    share: Callable[[Answers, Sequence[str]], Floats] | None = None
    right: Callable[[Answers], Floats] | None = None
    rows: Rows | None = None
    values: Values | None = None
    weighted: Weighted | None = None

    def __post_init__(self) -> None:
        if (self.weighted is None) == (self.rows is None or self.values is None):
            raise ValueError(f"{self.name}: a metric has `rows` and `values`, or `weighted`")

    def given(self, answers: Answers, labels: Sequence[str]) -> bool:
        """Can it be computed from these answers?"""
        return (bool(labels) or not self.labels) and all(answers.has(name) for name in self.needs)

    def alike(self, a: Answers, b: Answers) -> bool:
        """Are all answers, as far as it looks at them, the same?"""
        return all(_equal(a.column(name), b.column(name)) for name in self.needs)


def _equal(a: Any, b: Any) -> bool:
    import numpy as np

    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else a == b
