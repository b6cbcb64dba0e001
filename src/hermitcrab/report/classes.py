"""What was taken for what: the confusion matrix of one model and its figures by class, from `classes.json`.

Rows are references, columns are answers, as in scikit-learn's `confusion_matrix`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hermitcrab.report import words

LARGEST = 24  # labels of a matrix that is still read as a picture
MOST = 12  # of the largest confusions, where there is no matrix
SCORES = ("precision", "recall", "f1")


def classes(found: Mapping[str, Any] | None, model: str) -> dict[str, Any] | None:
    """Of `model`: `{labels, model, matrix, unparsed, confusions, table}`; None where nothing was counted.

    `matrix` is a list of `{label, cells: [{count, shade, hit}], unparsed}`, or None for more labels than LARGEST;
    `shade` is in 0..1, the square root of the share of the row, so that rare confusions are seen too.
    """
    counted = found["models"].get(model) if found else None
    if not found or not counted:
        return None
    labels, counts, unparsed = found["labels"], counted["confusion"], counted["unparsed"]
    rows = zip(labels, counts, unparsed, strict=True)
    return {
        "model": model,
        "split": found["split"],
        "labels": labels,
        "matrix": [_row(i, *row) for i, row in enumerate(rows)] if len(labels) <= LARGEST else None,
        "unparsed": any(unparsed),
        "confusions": confusions(labels, counts),
        "table": [
            (entry["label"], f"{entry['support']:,}", [_score(entry[name]) for name in SCORES])
            for entry in counted["per_class"]
        ],
    }


def _row(i: int, label: str, counts: Sequence[int], unparsed: int) -> dict[str, Any]:
    total = (sum(counts) + unparsed) or 1
    cells = [{"count": n, "shade": round((n / total) ** 0.5, 3), "hit": j == i} for j, n in enumerate(counts)]
    return {
        "label": label,
        "cells": cells,
        "unparsed": {"count": unparsed, "shade": round((unparsed / total) ** 0.5, 3), "hit": False},
    }


def confusions(labels: Sequence[str], counts: Sequence[Sequence[int]], most: int = MOST) -> list[tuple[str, str, int]]:
    """The largest confusions: reference, answer, how often."""
    wrong = [(labels[i], labels[j], n) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n]
    return sorted(wrong, key=lambda found: (-found[2], found[0], found[1]))[:most]


def _score(figure: Mapping[str, Any]) -> tuple[str, str]:
    limits = figure["low"], figure["high"]
    return words.number(figure["value"]), "" if None in limits else words.narrow_interval(*limits)
