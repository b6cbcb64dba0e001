"""Does a teacher help a small net? Fashion-MNIST, 784-32-16-10, a quarter of the teacher's size: the same first weights, rows and order,
with the teacher's distributions and without; and the teacher itself cut to that size.

    python benchmarks/distill.py RUN --store STORE --work FOLDER --json distill.json [--seeds 5]

`RUN` is a finished run of `recipes/mnist-mlp.yaml`. Every pair is compared on the published 10,000 test images, row by row.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

STUDENT = [32, 16]
CASES: dict[str, dict[str, Any]] = {
    "alone": {"temperature": None},
    "T 1, alpha 0": {"temperature": 1.0, "alpha": 0.0},
    "T 1, alpha .5": {"temperature": 1.0, "alpha": 0.5},
    "T 2, alpha .5": {"temperature": 2.0, "alpha": 0.5},
    "T 4, alpha .1": {"temperature": 4.0, "alpha": 0.1},
}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("run")
    asked.add_argument("--store", type=Path, required=True)
    asked.add_argument("--work", type=Path, required=True)
    asked.add_argument("--json", type=Path)
    asked.add_argument("--seeds", type=int, default=5)
    asked.add_argument("--epochs", type=float, default=10.0)
    asked.add_argument("--take", type=int, help="only so many training rows, to see what scarcity does")
    asked.add_argument("--quick", action="store_true", help="one seed, one epoch, 2,000 rows")
    given = asked.parse_args()
    if given.quick:
        given.seeds, given.epochs, given.take = 1, 1.0, 2000
    source, reference = opened(given)
    found: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        tables = {name: student(given, source, reference, name, seed) for name in CASES}
        tables["cut, healed alone"] = cut(given, source, reference, seed, None)
        tables["cut, healed with T 1"] = cut(given, source, reference, seed, 1.0)
        for name, table in tables.items():
            pair = paired(source, name, table, tables["alone"]) if name != "alone" else {}
            found.append({"seed": seed, "name": name, **pair, "agrees": agreement(table, reference.answers)})
            print(json.dumps(found[-1]), flush=True)
    summary(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def opened(given: argparse.Namespace) -> tuple[Any, Any]:
    import pyarrow.parquet as pq

    from hermitcrab.pipeline import find_run
    from hermitcrab.recipe import Compress, Recipe
    from hermitcrab.stages import Job
    from hermitcrab.stages.compress import reference_of, slice_of, source_of
    from hermitcrab.store import Store

    record, inputs = find_run(given.run, Store(given.store))
    recipe = Recipe.model_validate(record["recipe"])
    part = slice_of(recipe).model_copy(update={"compress": Compress(calibration_rows=1000)})
    job: Any = Job(part=part, inputs=inputs, draft=None, places={}, base=recipe.base)  # type: ignore[arg-type]
    source = source_of(job)
    if given.take:
        from hermitcrab.compress.parity import smallest

        rows = given.work / f"rows-{given.take}"
        rows.mkdir(parents=True, exist_ok=True)
        pq.write_table(smallest(pq.read_table(source.rows / "train.parquet"), given.take), rows / "train.parquet")
        pq.write_table(source.validation, rows / "validation.parquet")
        source = dataclasses.replace(source, rows=rows)
    return source, reference_of(job)


def seeded(source: Any, seed: int) -> Any:
    return dataclasses.replace(source, train=source.train.model_copy(update={"seed": seed}), init_seed=seed)


def lessons(given: argparse.Namespace, **more: Any) -> Any:
    from hermitcrab.compress.lessons import Lessons

    return Lessons(None, 1e-3, 64, given.epochs, **more)


def student(given: argparse.Namespace, source: Any, reference: Any, name: str, seed: int) -> Any:
    """Answers of a student with new weights, to the test rows."""
    from hermitcrab.compress import learning
    from hermitcrab.compress.distill import smaller
    from hermitcrab.models.base import read_config
    from hermitcrab.tasks import Start

    source = seeded(source, seed)
    config = smaller(read_config(source.model), {"hidden_sizes": STUDENT})
    start = learning.start_of(source, source.model, kind="scratch", configuration=config)
    files = [file for file in start.base["files"] if not file["path"].endswith(".safetensors")]
    start = Start({**start.base, "files": files}, source.model, seed, start.fitted)
    return learnt(given, source, reference, start, lessons(given, **CASES[name]), f"{name}-{seed}")


def cut(given: argparse.Namespace, source: Any, reference: Any, seed: int, temperature: float | None) -> Any:
    """Answers of the teacher with a quarter of its neurons, trained as long as the students were."""
    from hermitcrab.compress import learning, width
    from hermitcrab.evaluate.asking import load

    source = seeded(source, seed)
    place = given.work / "cut"
    if not place.exists():
        task, model = load(source.task, source.start, source.train, "float32")
        found = width.find(model, ["neurons"])
        scores = width.importance(task, model, found["neurons"], source.calibration)
        width.cut(model, found, {"neurons": width.best(scores, 0.25)})
        given.work.mkdir(parents=True, exist_ok=True)
        learning.saved(task, model, place)
    how = lessons(given, temperature=temperature, alpha=0.1)
    return learnt(given, source, reference, learning.start_of(source, place), how, f"cut-{temperature}-{seed}")


def learnt(given: argparse.Namespace, source: Any, reference: Any, start: Any, how: Any, name: str) -> Any:
    from hermitcrab.compress import learning
    from hermitcrab.evaluate.asking import ask, load

    name = name.replace(" ", "_")
    target = given.work / name
    learning.learn(source, start, how, given.work / f"{name}-work", target, "benchmark")
    task, model = load(source.task, learning.start_of(source, target), source.train, "float32")
    return ask(task, model, reference.rows, source.evaluate)


def paired(source: Any, name: str, table: Any, alone: Any) -> dict[str, Any]:
    from hermitcrab.evaluate.value_added import compare

    (pair,) = compare(
        {name: table, "alone": alone}, metrics=["accuracy"], labels=source.start.fitted["labels"], derived=name, base="alone",
    )["pairs"]  # fmt: skip
    return {key: pair[key] for key in ("a_value", "b_value", "difference", "low", "high", "gained", "lost")}


def agreement(table: Any, teacher: Any) -> float:
    """Share of test rows on which a student says what its teacher says."""
    said = dict(zip(teacher["row_id"].to_pylist(), teacher["prediction"].to_pylist(), strict=True))
    pairs = zip(table["row_id"].to_pylist(), table["prediction"].to_pylist(), strict=True)
    return sum(said[row] == answer for row, answer in pairs) / table.num_rows


def summary(found: list[dict[str, Any]]) -> None:
    """Means over seeds, with the interval of the mean of paired differences (t, seeds alone)."""
    import numpy as np
    from scipy import stats

    for name in dict.fromkeys(entry["name"] for entry in found):
        rows = [entry for entry in found if entry["name"] == name]
        agrees = np.mean([entry["agrees"] for entry in rows])
        if name == "alone":
            print(f"| alone | | | agrees with the teacher on {agrees:.4f} |")
            continue
        d = np.array([entry["difference"] for entry in rows])
        half = float(stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5) if len(d) > 1 else float("nan")
        better = sum(entry["low"] > 0 for entry in rows)
        worse = sum(entry["high"] < 0 for entry in rows)
        print(
            f"| {name} | {np.mean([e['a_value'] for e in rows]):.4f} | {np.mean([e['b_value'] for e in rows]):.4f} | "
            f"{d.mean():+.4f} ({d.mean() - half:+.4f} to {d.mean() + half:+.4f}) | {better} / {worse} of {len(rows)} | {agrees:.4f} |"
        )


if __name__ == "__main__":
    main()
