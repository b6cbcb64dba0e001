"""What a baseline gives: answers to the test rows, and what it was fitted on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Baseline:
    """Predictions in the order of the rows asked, their log-likelihoods (nats), and what was fitted on what.

    `columns` are others of the predictions table that the task's metrics look at (`scores`, the log-probability of each label).
    """

    predictions: list[Any]
    scores: list[float | None]
    fitted: dict[str, Any]
    columns: dict[str, list[Any]] = field(default_factory=dict)
