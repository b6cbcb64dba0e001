"""Which settings of the demo recipe do best on its validation rows? The test rows are never opened here.

    python benchmarks/demo_search.py --json trials.json "train.learning_rate=2e-4|5e-4|1e-3" "train.epochs=1|2"

Each trial trains by the recipe with those values and answers the validation rows with the merged weights. The base, zero-shot and
few-shot, stands beside them. Rows are written as they come, so a stopped search keeps what it has.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from hermitcrab.pipeline import Run, stage_named
from hermitcrab.recipe import Recipe, load
from hermitcrab.store import Store, process_cpu, write_json
from hermitcrab.train import adapters
from hermitcrab.train.session import Session


def prepared(recipe: Recipe, store: Store) -> Run:
    """The run with its rows collected and prepared; nothing is trained."""
    run = Run(recipe, store, Path("runs"))
    run.resolve()
    for name in ("collect", "prepare"):
        run.artifacts[name] = run.ensure(stage_named(name))
    return run


def trial(run: Run, train: bool) -> dict[str, Any]:
    recipe, base = run.recipe, run.artifacts["collect"].read("base.json")
    rows = pq.read_table(run.artifacts["prepare"].payload / "validation.parquet")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_json(folder / "job.json", {
            "task": recipe.task, "part": recipe.train.model_dump(mode="json"), "base": base,
            "path": str(run.places()[recipe.base.path]), "rows": str(run.artifacts["prepare"].payload), "seed": None,
        })  # fmt: skip
        session = Session.open(folder)
        if not train:
            model, told = session.task.model(torch.bfloat16), {}
        else:
            plan, model = session.plan(1)
            model = session.ready(model, plan)
            began, cpu = time.perf_counter(), process_cpu()
            state = session.fit(model, plan)
            told = {"steps": state.step, "loss_last": state.loss_last, "attention": plan.attention,
                    "wall_seconds": time.perf_counter() - began, "cpu_seconds": process_cpu() - cpu,
                    "fill": session.ledger[0]["fill"]}  # fmt: skip
            model = adapters.merge(model, recipe.train, torch.bfloat16)
            model.set_attn_implementation("sdpa")  # type: ignore[operator]
        answers = session.task.predict(model, rows, recipe.evaluate)
    right = [a == b for a, b in zip(answers["reference"].to_pylist(), answers["prediction"].to_pylist(), strict=True)]
    nll = answers["nll"].to_pylist()
    return {
        **told,
        "validation_accuracy": sum(right) / len(right),
        "validation_nll": sum(nll) / len(nll),
        "rows": len(right),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", nargs="*", metavar="key=a|b|c")
    parser.add_argument("--recipe", default="recipes/demo.yaml")
    parser.add_argument("--store", default=".crab/store")
    parser.add_argument("--quick", action="store_true", help="32 rows, one trial: about a minute")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    grid = [
        [f"{key}={value}" for value in values.split("|")] for key, _, values in (g.partition("=") for g in args.grid)
    ]
    fixed = ["data.take=32", "train.epochs=1", "data.split.validation=64"] if args.quick else []
    found: list[dict[str, Any]] = []
    for settings in [None, *itertools.product(*grid)]:
        run = prepared(load(args.recipe, [*fixed, *(settings or ())]), Store(args.store))
        found.append(
            {
                "settings": list(settings) if settings is not None else "base, zero-shot",
                **trial(run, settings is not None),
            }
        )
        print(json.dumps(found[-1]), flush=True)
        if args.json:
            write_json(args.json, found)


if __name__ == "__main__":
    main()
