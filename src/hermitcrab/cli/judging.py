"""Verbs that judge models: parse, call, print; no logic."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hermitcrab.cli.arguments import (
    ALPHA,
    ON_ROWS,
    SIGNER,
    STORE,
    UNVERIFIED,
    Answer,
    Verb,
    arg,
    columns_of,
    listed,
    verb,
)
from hermitcrab.errors import HermitcrabError, UsageError


def compare_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.comparing import How, compare_models
    from hermitcrab.report.terminal import render_comparison
    from hermitcrab.store import Store

    how = How(choices=listed(args.choices), columns=columns_of(args.column), format=args.format, type=args.type, labels=args.labels,
              metrics=args.metric, rows=args.rows, max_new_tokens=args.max_new_tokens, key=args.key, base_key=args.base_key,
              unverified=args.unverified)  # fmt: skip
    told = compare_models(args.base, args.derived, args.on, Store(args.store), how)
    if args.report is not None:
        from hermitcrab.report.cell import write_comparison

        write_comparison(told, args.report)
    return told, lambda: render_comparison(told), 0


def verify_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.lineage.verify import verify
    from hermitcrab.report.terminal import render_verification

    found = verify(args.folder, args.key)
    if args.recompute and found.ok:
        from hermitcrab.afresh import recompute_parity
        from hermitcrab.store import Store

        recompute_parity(args.folder, args.base, Store(args.store), found)
    if args.seed and found.ok:
        from hermitcrab.afresh import attest_seed

        attest_seed(args.folder, args.seed, found)
    status = 0 if found.ok else 3 if found.contradiction else 1
    return found.as_json(), lambda: render_verification(found), status


def trace_verb(args: argparse.Namespace) -> Answer:
    if args.claim:
        return _claim(args)
    if args.suspect is None:
        raise UsageError("trace needs a suspect and at least one base (see `crab trace --help`)")
    from hermitcrab.trace.terminal import render
    from hermitcrab.trace.tracing import trace

    verdict = trace(args.suspect, args.bases, alpha=args.alpha, sample=args.sample)
    if args.report:
        from hermitcrab.trace.page import write_page

        write_page(verdict, args.report)
    return verdict.as_json(), lambda: render(verdict), 0


def _claim(args: argparse.Namespace) -> Answer:
    from hermitcrab.trace.claims import check
    from hermitcrab.trace.terminal import render_claims

    def at_hand(claim: Any) -> Path | None:
        from hermitcrab.references import fetch, resolve
        from hermitcrab.store import Store

        store = Store(args.store)
        try:
            return fetch(resolve(claim.path, claim.sha256, store), store) if claim.path else None
        except HermitcrabError:
            return None  # a reference that cannot be followed here is said to be not at hand

    given = [*([args.suspect] if args.suspect else []), *args.bases]
    told, status = check(args.claim, given, at_hand)
    return told, lambda: render_claims(told), status


def sketch_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.trace.sketch import sketch

    told = sketch(args.model, args.out)
    return (
        told,
        lambda: (
            f"{told['sketch']}: {told['bytes'] / 1e6:,.1f} MB, {told['rows']:,} rows of {told['matrices']:,} matrices"
        ),
        0,
    )


def tree_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.trace.terminal import render_tree
    from hermitcrab.trace.tree import svg, tree

    found = tree(args.models, args.alpha)
    if args.svg:
        from hermitcrab.store import write_atomic

        write_atomic(args.svg, svg(found).encode())
    return found, lambda: render_tree(found), 0


VERBS: dict[str, Verb] = dict([
    verb("compare", "ask two models the same rows: differences with paired intervals, gained and lost rows", compare_verb,
          "crab compare hf:org/name@main runs/demo/package --on run:demo/prepare",
          arg("base", help="what is compared with: a package's folder, a run's name or folder, or a reference to a model"),
          arg("derived", help="the model in question, named in the same ways; differences are this minus the base"),
          arg("--on", required=True, metavar="ROWS", help="a file of rows (CSV, JSONL, …), or run:NAME/prepare: its test rows"),
          *ON_ROWS,
          arg("--report", type=Path, metavar="HTML", help="also write a page"),
          arg("--base-key", type=Path, metavar="PEM", help="public key of the signer of the base, where that is a package"),
          SIGNER, UNVERIFIED, STORE),
    verb("verify", "check a package: every digest, the chain, the signatures, parity and licenses", verify_verb,
          "crab verify runs/demo/package --key signing-key.pub.pem",
          arg("folder", type=Path, help="a package"),
          arg("--key", type=Path, metavar="PEM", help="public key of the signer; without it the signer is not authenticated"),
          arg("--recompute", action="store_true", help="compare the merged model with base + adapter afresh (needs [train])"),
          arg("--base", metavar="REFERENCE", help="where the base is, for --recompute (default: as the record says)"),
          arg("--seed", metavar="SEED[:NONCE]", help="draw the committed first weights afresh and test them ([train])"), STORE),
    verb("trace", "does SUSPECT descend from BASE? An answer from the weights alone, with a p-value", trace_verb,
          "crab trace my-model/ base-model/ --report trace.html",
          arg("suspect", nargs="?", help="a file or folder of weights, or a sketch"),
          arg("bases", nargs="*", metavar="base", help="what it may descend from; several are also tested behind one another"),
          ALPHA, arg("--sample", action="store_true", help="few rows of each matrix: seconds at any size, exact tests only"),
          arg("--report", type=Path, metavar="HTML", help="write a page with a picture of the layer map"),
          arg("--claim", metavar="MODEL", help="test the base that MODEL's record or card declares; 3 on contradiction"), STORE),
    verb("sketch", "write a small file by which a model can be traced without its weights", sketch_verb,
          "crab sketch my-model/ --out my-model.sketch", arg("model", help="a file or folder of weights"),
          arg("--out", type=Path, required=True, metavar="FILE", help="where to")),
    verb("tree", "draw the family of several models", tree_verb, "crab tree a/ b/ c/ --svg family.svg",
          arg("models", nargs="+", metavar="model", help="files or folders of weights"), ALPHA,
          arg("--svg", type=Path, metavar="SVG", help="write a drawing too")),
])  # fmt: skip
