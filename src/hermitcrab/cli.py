"""Every verb: parse, call, print; no logic. Heavy libraries are imported by what is called, so `--help` answers at once.

Standard output has the answer (one JSON object with --json); progress and messages go to standard error.
Exit status: 0 done, 1 a failed run or check, 2 bad usage or recipe, 3 a claim contradicted by evidence.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hermitcrab import __version__
from hermitcrab.errors import HermitcrabError, UsageError, did_you_mean

# (object for --json, text for people, exit status or what goes on after both are printed and tells it in the end)
Answer = tuple[Any, Callable[[], str], int | Callable[[], int]]


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


def predict_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.report.terminal import render_answers
    from hermitcrab.serve.opening import open_model
    from hermitcrab.serve.predict import predict
    from hermitcrab.store import Store

    opened = open_model(args.model, Store(args.store), args.key, args.unverified)
    answers = predict(opened, args.input, args.column, args.max_new_tokens)
    told = {"model": opened.name, "verified": opened.verified is not None, "answers": answers}
    return told, lambda: render_answers(answers), 0


def compare_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.comparing import How, compare_models
    from hermitcrab.report.terminal import render_comparison
    from hermitcrab.store import Store

    how = How(choices=_listed(args.choices), columns=_columns(args.column), format=args.format, type=args.type, labels=args.labels,
              metrics=args.metric, rows=args.rows, max_new_tokens=args.max_new_tokens, key=args.key, base_key=args.base_key,
              unverified=args.unverified)  # fmt: skip
    told = compare_models(args.base, args.derived, args.on, Store(args.store), how)
    if args.report is not None:
        from hermitcrab.report.cell import write_comparison

        write_comparison(told, args.report)
    return told, lambda: render_comparison(told), 0


def _columns(given: Sequence[str]) -> dict[str, str]:
    if wrong := next((word for word in given if "=" not in word), None):
        raise UsageError(f"--column {wrong}: expected WANTED=COLUMN, such as prompt=question")
    return dict(column.partition("=")[::2] for column in given)


def _listed(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",")] if text else []


def serve_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.serve.server import start
    from hermitcrab.store import Store

    told, serve = start(args.model, Store(args.store), host=args.host, port=args.port, api_key=args.api_key, queue=args.queue,
                        key=args.key, unverified=args.unverified)  # fmt: skip
    return told, lambda: f"{told['model']} answers at {told['url']}/v1 (Ctrl-C ends it)", serve


def export_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.deploy import TARGETS, Options, export
    from hermitcrab.report.terminal import render_export
    from hermitcrab.store import Store

    if args.to not in TARGETS:
        from hermitcrab import exporting

        if args.to not in exporting.TARGETS:
            known = (*exporting.TARGETS, *TARGETS)
            raise UsageError(
                f"--to {args.to}: no such target{did_you_mean(args.to, known)}; expected {', '.join(known)}"
            )
        told = exporting.export(args.model, args.to, args.out, Store(args.store), type=args.type, key=args.key,
                                unverified=args.unverified, sign=args.sign)  # fmt: skip
        return told, lambda: render_export(told), 0
    options = Options(image=args.image, replicas=args.replicas, autoscale=args.autoscale, secret=args.secret,
                      volume=args.volume, type=args.type)  # fmt: skip
    told = export(args.model, args.to, args.out, Store(args.store), key=args.key, unverified=args.unverified,
                  options=options)  # fmt: skip
    return told, lambda: render_export(told), 0


def compress_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.comparing import How
    from hermitcrab.compressing import Asked, Budget, compress
    from hermitcrab.report.terminal import render_compression
    from hermitcrab.store import Store

    how = How(choices=_listed(args.choices), columns=_columns(args.column), format=args.format, type=args.type, labels=args.labels,
              metrics=args.metric, rows=args.rows, max_new_tokens=args.max_new_tokens, key=args.key,
              unverified=args.unverified)  # fmt: skip
    forms = {name: _listed(getattr(args, name)) for name in ("gguf", "openvino", "onnx")}
    budget = Budget(args.max_size, args.max_loss, args.min_speed)
    told = compress(
        args.model, args.out, Store(args.store), Asked(forms, args.on, budget, args.suggest, how, args.sign)
    )
    return told, lambda: render_compression(told), 0 if told["written"] else 1


def push_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.publish import push
    from hermitcrab.report.terminal import render_push
    from hermitcrab.store import Store

    told = push(args.model, args.to, Store(args.store), token=args.token, public=args.public, key=args.key,
                unverified=args.unverified, remove=args.remove, dry_run=args.dry_run)  # fmt: skip
    return told, lambda: render_push(told), 0


def keygen_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.lineage.keys import default_path, keygen

    key = keygen(args.out or default_path())
    told = {"private_key": str(key.private), "public_key": str(key.public), "fingerprint": key.fingerprint}
    text = (
        f"private key  {key.private} (keep it; nobody else may read it)\n"
        f"public key   {key.public} (give it to those who verify)\nfingerprint  {key.fingerprint}"
    )
    return told, lambda: text, 0


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


def doctor_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.environment import doctor
    from hermitcrab.report.terminal import render_doctor

    found = doctor(Path(args.store))
    return found, lambda: render_doctor(found), 1 if found["problems"] else 0


def _open_run(args: argparse.Namespace) -> Any:
    from hermitcrab.pipeline import Run
    from hermitcrab.recipe import load
    from hermitcrab.store import Store

    return Run(load(args.recipe, args.overrides), Store(args.store), Path(args.runs))


def _existing(path: str) -> Path:
    return next(p for p in [Path(path).absolute(), *Path(path).absolute().parents] if p.exists())


# verb: (what it does, call, example, arguments)
VERBS: dict[
    str, tuple[str, Callable[[argparse.Namespace], Answer], str, list[tuple[tuple[str, ...], dict[str, Any]]]]
] = {}


def _verb(name: str, help: str, call: Callable[[argparse.Namespace], Answer], example: str, *arguments: Any) -> None:
    VERBS[name] = (help, call, example, list(arguments))


def _arg(*names: str, **more: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, more


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"expected a number from 1. Received: {text[:40]}")
    return int(text)


def _level(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 0.1:
        raise argparse.ArgumentTypeError(f"expected a level between 0 and 0.1. Received: {text[:40]}")
    return value


def _bytes(text: str) -> int:
    """`100MB`, `90MiB`, `120000000`: a size."""
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text[len(digits) :].strip().upper()
    try:
        return max(1, int(float(digits) * units[unit]))
    except (ValueError, KeyError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"expected a size, such as 100MB. Received: {text[:40]}") from error


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e12:
        raise argparse.ArgumentTypeError(f"expected a number above 0. Received: {text[:40]}")
    return value


RECIPE = _arg("recipe", help="a recipe (YAML)")
OVERRIDES = _arg("overrides", nargs="*", metavar="key=value", help="set a key of the recipe, such as train.epochs=2")
STORE = _arg("--store", default=".crab/store", metavar="FOLDER", help="where artifacts live (default: .crab/store)")
RUNS = _arg("--runs", default="runs", metavar="FOLDER", help="where runs leave report and package (default: runs)")

MODEL = _arg("model", help="a package's folder, a run's name or folder, or a reference to a model")
SIGNER = _arg(
    "--key", type=Path, metavar="PEM", help="public key of the signer; without it the signer is not authenticated"
)
UNVERIFIED = _arg("--unverified", action="store_true", help="use what is no package, or one that does not verify")

ON_ROWS = [
    _arg("--type", default="auto", help="what the file is, as in a recipe (default: by its ending); idx: images, with --labels"),
    _arg("--labels", metavar="FILE", help="of images of type idx: the file of their labels"),
    _arg("--format", default="prompt-completion", help="what a row of the file is: text, prompt-completion, messages, image-label"),
    _arg("--column", action="append", default=[], metavar="WANTED=COLUMN",
         help="a column of the file, or a text with {column} in it (may be given again)"),
    _arg("--choices", metavar="A,B,…", help="answers to choose from (default: those that a package records; none: generated)"),
    _arg("--metric", action="append", default=[], metavar="NAME", help="what is measured; the first decides (may be given again)"),
    _arg("--rows", type=_count, metavar="N", help="ask only so many rows (default: all)"),
    _arg("--max-new-tokens", type=_count, default=64, metavar="N", help="the longest generated answer (default: 64)"),
]  # fmt: skip

_verb("init", "write a starter recipe and a few rows, which run as they are", init_verb,
      "crab init text-generation my-project",
      _arg("task", nargs="?", default="text-generation", help="a Hugging Face task name (default: text-generation)"),
      _arg("folder", nargs="?", type=Path, default=Path("."), help="where to (default: here)"))  # fmt: skip
_verb("run", "run a recipe: every stage is reused or executed, whatever was killed continues", run_verb,
      "crab run recipes/demo.yaml train.epochs=2", RECIPE, OVERRIDES, STORE, RUNS,
      _arg("--key", type=Path, metavar="PEM", help="private key to sign with (default: the one of `crab keygen`)"))  # fmt: skip
_verb("plan", "say what a run would do and need, and do nothing", plan_verb, "crab plan recipes/demo.yaml",
      RECIPE, OVERRIDES, STORE, RUNS)  # fmt: skip
_verb("show", "show a run, a package, or a whole recipe with every default", show_verb, "crab show runs/demo",
      _arg("what", help="a run's name or folder, a package's folder, or a recipe"), OVERRIDES, STORE)  # fmt: skip
_verb("verify", "check a package: every digest, the chain, the signatures, parity and licenses", verify_verb,
      "crab verify runs/demo/package --key signing-key.pub.pem",
      _arg("folder", type=Path, help="a package"),
      _arg("--key", type=Path, metavar="PEM", help="public key of the signer; without it the signer is not authenticated"),
      _arg("--recompute", action="store_true", help="compare the merged model with base + adapter afresh (needs [train])"),
      _arg("--base", metavar="REFERENCE", help="where the base is, for --recompute (default: as the record says)"),
      _arg("--seed", metavar="SEED[:NONCE]", help="draw the committed first weights afresh and test them ([train])"), STORE)  # fmt: skip
_verb("predict", "answer texts or images, as `evaluate` does", predict_verb,
      'crab predict runs/demo/package "a film to remember"', MODEL,
      _arg("input", nargs="+", help="a text, - for the lines of standard input, or @FILE (CSV, TSV, JSONL, Parquet, text); of "
           "images: files, folders, - for one on standard input, or @FILE (IDX)"),
      _arg("--column", default="prompt", metavar="COLUMN", help="of @FILE: a column, or a text with {column} in it (default: prompt)"),
      _arg("--max-new-tokens", type=_count, default=64, metavar="N", help="the longest generated answer (default: 64)"),
      SIGNER, UNVERIFIED, STORE)  # fmt: skip
_verb("compare", "ask two models the same rows: differences with paired intervals, gained and lost rows", compare_verb,
      "crab compare hf:org/name@main runs/demo/package --on run:demo/prepare",
      _arg("base", help="what is compared with: a package's folder, a run's name or folder, or a reference to a model"),
      _arg("derived", help="the model in question, named in the same ways; differences are this minus the base"),
      _arg("--on", required=True, metavar="ROWS", help="a file of rows (CSV, JSONL, Parquet, text, …), or run:NAME/prepare: its test rows"),
      *ON_ROWS,
      _arg("--report", type=Path, metavar="HTML", help="also write a page"),
      _arg("--base-key", type=Path, metavar="PEM", help="public key of the signer of the base, where that is a package"),
      SIGNER, UNVERIFIED, STORE)  # fmt: skip
_verb("serve", "serve a package by the OpenAI API: /v1/chat/completions, /v1/completions, /v1/models, /health", serve_verb,
      "crab serve runs/demo/package --port 8000", MODEL,
      _arg("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1, this machine only)"),
      _arg("--port", type=int, default=8000, help="0 takes any that is free (default: 8000)"),
      _arg("--api-key", metavar="env:NAME", help="ask for the key that this environment variable holds"),
      _arg("--queue", type=_count, default=16, metavar="N", help="requests that may wait, the next is refused (default: 16)"),
      SIGNER, UNVERIFIED, STORE)  # fmt: skip
_verb("export", "write a package for other programs: its model in their format, with its record, or files that deploy it",
      export_verb, "crab export runs/demo/package --to gguf --type Q8_0 --out demo-gguf", MODEL,
      _arg("--to", required=True, metavar="TARGET", help="safetensors, gguf, onnx or openvino (the model, loaded back and compared); "
           "modelfile (Ollama), docker or k8s (files that run `crab serve`)"),
      _arg("--type", metavar="TYPE", help="of the weights (gguf Q8_0, F16, …; onnx f32, int8; openvino f16, f32, int8, int4); of "
           "modelfile, which of the package's GGUF files (default: the largest)"),
      _arg("--sign", type=Path, metavar="PEM", help="private key to sign the exported model with (default: the one of `crab keygen`)"),
      _arg("--out", type=Path, required=True, metavar="FOLDER", help="where to"),
      _arg("--image", metavar="NAME:TAG", help="the server's image (docker, k8s; default: hermitcrab:VERSION)"),
      _arg("--replicas", type=_count, default=1, metavar="N", help="servers at once (k8s; default: 1)"),
      _arg("--autoscale", type=_count, metavar="N", help="up to so many servers by load (k8s; default: as --replicas says)"),
      _arg("--secret", metavar="NAME", help="the secret that holds the API key under `api-key` (k8s)"),
      _arg("--volume", metavar="NAME", help="the volume claim that holds the package (k8s; default: by its name)"),
      SIGNER, UNVERIFIED, STORE)  # fmt: skip
_verb("compress", "make smaller forms of a finished package or run, measure what each lost, and suggest one by a budget",
      compress_verb, "crab compress runs/demo --gguf Q8_0,Q4_0 --openvino int4 --suggest --max-size 100MB --max-loss 0.02 --out small",
      MODEL,
      _arg("--gguf", metavar="TYPES", help="such as Q8_0,Q4_0,Q4_0-calibrated"),
      _arg("--openvino", metavar="TYPES", help="f16, int8, int4, int4-calibrated"),
      _arg("--onnx", metavar="TYPES", help="f32, int8, int8-static"),
      _arg("--on", metavar="ROWS", help="a file of rows to measure on, or run:NAME/prepare (default: the run's own test rows)"),
      _arg("--out", type=Path, required=True, metavar="FOLDER", help="a new folder; each form becomes a folder in it"),
      _arg("--suggest", action="store_true", help="write only the form that the budget picks"),
      _arg("--max-size", type=_bytes, metavar="SIZE", help="of its files, such as 100MB"),
      _arg("--max-loss", type=_positive, metavar="X", help="of the deciding metric: the whole paired interval has to lie within it"),
      _arg("--min-speed", type=_positive, metavar="N", help="tokens (images, …) a second on this machine"),
      *ON_ROWS, _arg("--sign", type=Path, metavar="PEM", help="private key to sign the results with (default: the one of `crab keygen`)"),
      SIGNER, UNVERIFIED, STORE)  # fmt: skip
_verb("push", "send a package to a repository of a model hub; private, resumable, read back", push_verb,
      "crab push runs/demo/package hf:my-org/my-model --token env:HF_TOKEN", MODEL,
      _arg("to", help="hf:ORG/NAME (Hugging Face), with @BRANCH for another branch than main"),
      _arg("--token", metavar="env:NAME", help="environment variable that holds the token (default: env:HF_TOKEN)"),
      _arg("--public", action="store_true", help="everybody may read it (default: private)"),
      _arg("--remove", action="store_true", help="take files out of the branch that are not the package's"),
      _arg("--dry-run", action="store_true", help="only say what would be sent"),
      SIGNER, UNVERIFIED, STORE)  # fmt: skip
ALPHA = _arg("--alpha", type=_level, default=1e-6, metavar="LEVEL", help="level of the exact tests (default: 1e-6)")
_verb("trace", "does SUSPECT descend from BASE? An answer from the weights alone, with a p-value", trace_verb,
      "crab trace my-model/ base-model/ --report trace.html",
      _arg("suspect", nargs="?", help="a file or folder of weights, or a sketch"),
      _arg("bases", nargs="*", metavar="base", help="what it may descend from; several are also tested behind one another"),
      ALPHA, _arg("--sample", action="store_true", help="few rows of each matrix: seconds at any size, exact tests only"),
      _arg("--report", type=Path, metavar="HTML", help="write a page with a picture of the layer map"),
      _arg("--claim", metavar="MODEL", help="test the base that MODEL's record or card declares; 3 on contradiction"), STORE)  # fmt: skip
_verb("sketch", "write a small file by which a model can be traced without its weights", sketch_verb,
      "crab sketch my-model/ --out my-model.sketch", _arg("model", help="a file or folder of weights"),
      _arg("--out", type=Path, required=True, metavar="FILE", help="where to"))  # fmt: skip
_verb("tree", "draw the family of several models", tree_verb, "crab tree a/ b/ c/ --svg family.svg",
      _arg("models", nargs="+", metavar="model", help="files or folders of weights"), ALPHA,
      _arg("--svg", type=Path, metavar="SVG", help="write a drawing too"))  # fmt: skip
_verb("keygen", "make a signing key (ECDSA P-256)", keygen_verb, "crab keygen --out team-key.pem",
      _arg("--out", type=Path, metavar="PEM", help="where to (default: your configuration folder)"))  # fmt: skip
_verb("schema", "print the JSON Schema of recipes, for editors", schema_verb, "crab schema > recipe.schema.json")
_verb("gc", "free what no run refers to", gc_verb, "crab gc --dry-run",
      _arg("--dry-run", action="store_true", help="only say what would go"), STORE)  # fmt: skip
_verb("doctor", "print versions, devices, memory, disk, extras, and what is wrong", doctor_verb, "crab doctor", STORE)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="crab", description="From an open base model and your data to an evaluated, packaged model with a signed record.",
                  epilog="example: crab run recipes/demo.yaml")  # fmt: skip
    top.add_argument("--version", action="version", version=f"hermitcrab {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    for name, (help, _, example, arguments) in VERBS.items():
        verb = verbs.add_parser(name, help=help, description=help, epilog=f"example: {example}")
        for names, more in arguments:
            verb.add_argument(*names, **more)
        verb.add_argument("--json", action="store_true", help="one JSON object on standard output")
        verb.add_argument("--quiet", action="store_true", help="no progress")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        first = next((a for a in arguments if not a.startswith("-")), None)
        if first is not None and first not in VERBS:
            raise UsageError(f"crab has no verb `{first}`{did_you_mean(first, VERBS)}")
        args, left = parser().parse_known_args(arguments)
        for word in left:  # overrides may stand behind options
            if word.startswith("-") or "=" not in word or not hasattr(args, "overrides"):
                raise UsageError(f"unrecognized arguments: {word} (see `crab {args.verb} --help`)")
            args.overrides.append(word)
        if args.verb is None:
            parser().print_help()
            return 2
        if args.quiet:
            from hermitcrab.progress import set_quiet

            set_quiet(True)
        value, text, status = VERBS[args.verb][1](args)
        print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) if args.json else text(), flush=True)
        return status if isinstance(status, int) else status()
    except HermitcrabError as error:
        print(f"crab: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            print(f"crab: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncrab: stopped; the same command continues where it was", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
