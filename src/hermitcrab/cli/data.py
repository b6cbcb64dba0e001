"""Verbs that look at data: parse, call, print; no logic."""

from __future__ import annotations

import argparse
from pathlib import Path

from hermitcrab.cli.arguments import STORE, Answer, Verb, arg, columns_of, verb
from hermitcrab.errors import UsageError


def data_verb(args: argparse.Namespace) -> Answer:
    if args.what in ("card", "row"):
        return (_card if args.what == "card" else _row)(args)
    from hermitcrab.data.looking import differ, inspect, render_diff, render_inspection
    from hermitcrab.recipe import Source
    from hermitcrab.store import Store

    # Nothing is made of these rows that a license could bind.
    sources = [
        Source.model_validate({
            "path": path, "license": "LicenseRef-not-asked", "format": args.format, "type": args.type, "columns": columns_of(args.column),
            "query": args.query, "labels": args.labels,
        })
        for path in args.sources
    ]  # fmt: skip
    store = Store(args.store)
    if args.what == "inspect":
        if len(sources) != 1:
            raise UsageError("data inspect looks at one source (see `crab data --help`)")
        told = inspect(sources[0], store)
        return told, lambda: render_inspection(told), 0
    if len(sources) != 2:
        raise UsageError("data diff compares two sources (see `crab data --help`)")
    told = differ(sources[0], sources[1], store)
    return told, lambda: render_diff(told), 0


def _card(args: argparse.Namespace) -> Answer:
    from hermitcrab.data.card import croissant, data_facts
    from hermitcrab.pipeline import find_run
    from hermitcrab.report.data import write_data_page
    from hermitcrab.store import Store, write_json

    if len(args.sources) != 1:
        raise UsageError("data card takes the name of one run (see `crab data --help`)")
    name = args.sources[0].removeprefix("run:")
    _, made = find_run(name, Store(args.store))
    facts = data_facts(name, made["collect"], made["prepare"])
    folder = args.out or Path(f"{name}-data")
    folder.mkdir(parents=True, exist_ok=True)
    write_data_page(facts, folder / "data.html")
    write_json(folder / "croissant.json", croissant(facts))
    told = {"page": str(folder / "data.html"), "croissant": str(folder / "croissant.json"), "facts": facts}
    return told, lambda: f"page       {told['page']}\nCroissant  {told['croissant']}", 0


def _row(args: argparse.Namespace) -> Answer:
    import json

    from hermitcrab.data.following import follow
    from hermitcrab.pipeline import find_run
    from hermitcrab.store import Store

    if len(args.sources) != 2:
        raise UsageError("data row takes the name of a run and a row id (see `crab data --help`)")
    told = follow(args.sources[1], find_run(args.sources[0].removeprefix("run:"), Store(args.store))[1])
    return told, lambda: json.dumps(told, ensure_ascii=False, indent=1), 0


VERBS: dict[str, Verb] = dict([
    verb("data", "look at a source (inspect, diff), tell the data of a run (card), or the way of one row (row)", data_verb,
          "crab data inspect rows.jsonl --format text",
          arg("what", choices=("inspect", "diff", "card", "row"), help="inspect a source, diff two, card of a run, row of a run by its id"),
          arg("sources", nargs="+", metavar="SOURCE", 
              help="files, folders, addresses as in a recipe, run:NAME/collect, run:NAME/prepare; of card, row a run's name"),
          arg("--out", type=Path, metavar="FOLDER", help="of card: where the page and croissant.json go (default: RUN-data)"),
          arg("--format", default="text", help="what a row is, as in a recipe (default: text)"),
          arg("--type", default="auto", help="what the files are, as in a recipe (default: by their endings)"),
          arg("--column", action="append", default=[], metavar="WANTED=COLUMN", help="a column of the file, or a text with {column} in it"),
          arg("--query", metavar="SQL", help="what a database is asked"),
          arg("--labels", metavar="FILE", help="the file of the labels, of images and recordings"), STORE),
])  # fmt: skip
