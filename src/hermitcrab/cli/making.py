"""Verbs that make a model, and look after what was made: parse, call, print; no logic."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hermitcrab.cli.arguments import (
    OVERRIDES,
    RECIPE,
    RUNS,
    STORE,
    Answer,
    Verb,
    arg,
    verb,
)
from hermitcrab.errors import HermitcrabError, UsageError


def init_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.starters import write_starter

    files = write_starter(args.task, args.folder)
    recipe = next(f for f in files if f.suffix == ".yaml")
    text = "\n".join(f"wrote {file}" for file in files) + f"\nnext: cd {args.folder} && crab run {recipe.name}"
    return {"task": args.task, "files": [str(f) for f in files]}, lambda: text, 0


def run_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.pipeline import find_run
    from hermitcrab.report.gather import gather
    from hermitcrab.report.terminal import render

    run = _open_run(args)
    told = run.execute(args.key)
    return told, lambda: render(gather(*find_run(run.recipe.name, run.store))), 0


def plan_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.estimate import shortage
    from hermitcrab.pipeline import plan
    from hermitcrab.report.terminal import render_plan

    run = _open_run(args)
    rows = plan(run)
    problem = shortage({r["stage"]: r["needs"] for r in rows if r["needs"]}, _existing(args.store))
    if problem:
        raise HermitcrabError(problem)
    return {"stages": rows}, lambda: render_plan(rows), 0


def show_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.store import Store, read_json

    target = Path(args.what)
    if target.suffix in (".yaml", ".yml"):
        from hermitcrab.recipe import load, to_yaml

        recipe = load(target, args.overrides)
        return recipe.model_dump(mode="json"), lambda: to_yaml(recipe).rstrip(), 0
    if args.overrides:
        raise UsageError(f"overrides go with a recipe; {args.what} is none")
    if (target / "hermitcrab.json").is_file():
        from hermitcrab.report.terminal import render_package

        package = read_json(target / "hermitcrab.json")
        return package, lambda: render_package(target, package), 0
    from hermitcrab.pipeline import find_run
    from hermitcrab.report.gather import gather
    from hermitcrab.report.terminal import render

    name = read_json(target / "run.json")["name"] if (target / "run.json").is_file() else args.what
    facts = gather(*find_run(name, Store(args.store)))
    return facts, lambda: render(facts), 0


def schema_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.recipe import json_schema

    text = json_schema()
    return json.loads(text), lambda: text.rstrip(), 0


def gc_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.store import Store

    freed = Store(args.store).gc(dry=args.dry_run)
    total = sum(size for _, size in freed)
    told = {"dry_run": args.dry_run, "bytes": total, "removed": [{"path": p, "bytes": s} for p, s in freed]}
    word = "would free" if args.dry_run else "freed"
    return told, lambda: f"{word} {total / 2**20:,.1f} MiB in {len(freed)} folders", 0


def _open_run(args: argparse.Namespace) -> Any:
    from hermitcrab.pipeline import Run
    from hermitcrab.recipe import load
    from hermitcrab.store import Store

    return Run(load(args.recipe, args.overrides), Store(args.store), Path(args.runs))


def _existing(path: str) -> Path:
    return next(p for p in [Path(path).absolute(), *Path(path).absolute().parents] if p.exists())


VERBS: dict[str, Verb] = dict([
    verb("init", "write a starter recipe and a few rows, which run as they are", init_verb,
          "crab init text-generation my-project",
          arg("task", nargs="?", default="text-generation", help="a Hugging Face task name (default: text-generation)"),
          arg("folder", nargs="?", type=Path, default=Path("."), help="where to (default: here)")),
    verb("run", "run a recipe: every stage is reused or executed, whatever was killed continues", run_verb,
          "crab run recipes/demo.yaml train.epochs=2", RECIPE, OVERRIDES, STORE, RUNS,
          arg("--key", type=Path, metavar="PEM", help="private key to sign with (default: the one of `crab keygen`)")),
    verb("plan", "say what a run would do and need, and do nothing", plan_verb, "crab plan recipes/demo.yaml",
          RECIPE, OVERRIDES, STORE, RUNS),
    verb("show", "show a run, a package, or a whole recipe with every default", show_verb, "crab show runs/demo",
          arg("what", help="a run's name or folder, a package's folder, or a recipe"), OVERRIDES, STORE),
    verb("schema", "print the JSON Schema of recipes, for editors", schema_verb, "crab schema > recipe.schema.json"),
    verb("gc", "free what no run refers to", gc_verb, "crab gc --dry-run",
          arg("--dry-run", action="store_true", help="only say what would go"), STORE),
])  # fmt: skip
