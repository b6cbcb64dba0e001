"""Verbs that look at data: parse, call, print; no logic."""

from __future__ import annotations

import argparse

from hermitcrab.cli.arguments import STORE, Answer, Verb, arg, columns_of, verb
from hermitcrab.errors import UsageError


def data_verb(args: argparse.Namespace) -> Answer:
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


VERBS: dict[str, Verb] = dict([
    verb("data", "look at a source (inspect), or at what is different between two (diff)", data_verb,
          "crab data inspect rows.jsonl --format text",
          arg("what", choices=("inspect", "diff"), help="inspect one source, or diff two"),
          arg("sources", nargs="+", metavar="SOURCE", 
              help="files, folders, patterns, addresses as in a recipe, or run:NAME/collect, run:NAME/prepare"),
          arg("--format", default="text", help="what a row is, as in a recipe (default: text)"),
          arg("--type", default="auto", help="what the files are, as in a recipe (default: by their endings)"),
          arg("--column", action="append", default=[], metavar="WANTED=COLUMN", help="a column of the file, or a text with {column} in it"),
          arg("--query", metavar="SQL", help="what a database is asked"),
          arg("--labels", metavar="FILE", help="the file of the labels, of images and recordings"), STORE),
])  # fmt: skip
