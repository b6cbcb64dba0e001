"""A run of translation told apart by distance: BLEU and chrF where the nearest training segment is far, and where it is near.

    python benchmarks/_translation.py RUN --store .crab/store

Rows are cut by how like their source is to the nearest training source (cosine of TF-IDF of 1- to 4-grams of characters), as the run's
own baseline measured it. Predictions are those of the run's evaluation; nothing is translated again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hermitcrab.evaluate.metrics import measure
from hermitcrab.pipeline import find_run
from hermitcrab.store import Store

EDGES = (0.0, 0.5, 0.7, 0.9, 1.01)
NAMES = ("bleu", "chrf")


def table(run: str, store: Path, resamples: int) -> list[dict[str, Any]]:
    """One row a model, metric and range of similarity: `{from, to, model, name, value, low, high, n}`."""
    folder = find_run(run, Store(store))[1]["evaluate"].payload / "predictions"
    answers = {model: pq.read_table(folder / f"{model}.parquet") for model in ("derived", "nearest-segment")}
    near = answers["nearest-segment"]
    like = dict(zip(near["row_id"].to_pylist(), near["similarity"].to_pylist(), strict=True))
    found = []
    for low, high in itertools.pairwise(EDGES):
        for model, rows in answers.items():
            inside = rows.filter(np.array([low <= like[row] < high for row in rows["row_id"].to_pylist()]))
            if inside.num_rows:
                made = measure(inside, NAMES, model=model, resamples=resamples)
                found += [{"from": low, "to": min(high, 1.0), **entry} for entry in made]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="name of a run of a translation recipe with the baseline nearest-segment")
    parser.add_argument("--store", type=Path, default=Path(".crab/store"))
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    args = parser.parse_args()
    rows = table(args.run, args.store, args.resamples)
    if args.json:
        print(json.dumps(rows))
        return 0
    print("| similarity | rows | model | metric | figure |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        ends = f" [{row['low']:.1f}, {row['high']:.1f}]" if row["low"] is not None else ""
        print(
            f"| {row['from']:.1f} to {row['to']:.1f} | {row['n']:,} | {row['model']} | {row['name']} | {row['value']:.1f}{ends} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
