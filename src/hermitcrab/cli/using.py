"""Verbs that use a finished model: parse, call, print; no logic."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hermitcrab.cli.arguments import (
    MODEL,
    ON_ROWS,
    SIGNER,
    STORE,
    UNVERIFIED,
    Answer,
    Verb,
    arg,
    columns_of,
    count,
    listed,
    positive,
    seconds,
    size,
    verb,
)
from hermitcrab.errors import UsageError, did_you_mean


def predict_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.report.terminal import render_answers
    from hermitcrab.serve.opening import open_model
    from hermitcrab.serve.predict import predict
    from hermitcrab.store import Store

    opened = open_model(args.model, Store(args.store), args.key, args.unverified)
    answers = predict(opened, args.input, args.column, args.max_new_tokens)
    told = {"model": opened.name, "verified": opened.verified is not None, "answers": answers}
    return told, lambda: render_answers(answers), 0


def explain_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.explaining import explain
    from hermitcrab.report.explanation import render_explanations, write_explanations
    from hermitcrab.serve.opening import open_model
    from hermitcrab.store import Store

    opened = open_model(args.model, Store(args.store), args.key, args.unverified)
    found = explain(
        opened, args.input, args.column, method=args.method, max_new_tokens=args.max_new_tokens, sanity=args.sanity
    )
    if args.html is not None:
        write_explanations(opened.name, found, args.html)
    told = {"model": opened.name, "verified": opened.verified is not None, "explanations": found}
    return told, lambda: render_explanations(found, args.html), 0


def serve_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.serve.spare import spare_for

    # Before anything else is imported: its process imports meanwhile.
    spare = None if args.cluster is not None else spare_for(args.model, args.engine, args.threads)
    try:
        return _serve(args, spare)
    finally:
        if spare is not None:
            spare.close()  # nobody needed it


def _serve(args: argparse.Namespace, spare: Any) -> Answer:
    from hermitcrab.serve.door import Limits
    from hermitcrab.serve.setup import Setup

    setup = Setup(
        models=tuple(args.model), store=Path(args.store), signer=args.key, unverified=args.unverified, engine=args.engine,
        kind=args.type, slots=args.slots, threads=args.threads,
        settings={"vllm_python": str(args.vllm_python)} if args.vllm_python else {}, queue=args.queue, api_keys=tuple(args.api_key),
        key_file=args.api_keys, origins=tuple(args.cors), public=("/metrics",) if args.open_metrics else (),
        limits=Limits(body=args.max_body << 20, deadline=args.deadline, tokens=args.max_tokens), drain=args.drain, texts=args.log_texts,
    )  # fmt: skip
    if args.cluster is not None:
        from hermitcrab.serve.cluster import start as start_cluster

        if args.tls_cert or args.tls_key:
            raise UsageError(
                "--tls-cert, --tls-key: Ray's proxy does not speak TLS here; put a proxy that does before it"
            )
        told, serve = start_cluster(setup, args.cluster, args.replicas, host=args.host, port=args.port)
    else:
        from hermitcrab.serve.server import start

        told, serve = start(setup, host=args.host, port=args.port, cert=args.tls_cert, key=args.tls_key, spare=spare)
    names = ", ".join(model["name"] for model in told["models"])
    return told, lambda: f"{names} answer at {told['url']}/v1, to be tried at {told['url']}/ (Ctrl-C ends it)", serve


def apikey_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.serve.keys import make_key

    key = make_key(args.name, args.file, args.requests_per_minute, args.concurrent)
    told = {"name": args.name, "key": key, "file": str(args.file)}
    return told, lambda: f"{key}\n{args.name}: this key is told once; {args.file} has only its hash", 0


def compress_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.comparing import How
    from hermitcrab.compressing import Asked, Budget, compress
    from hermitcrab.report.terminal import render_compression
    from hermitcrab.store import Store

    how = How(choices=listed(args.choices), columns=columns_of(args.column), format=args.format, type=args.type, labels=args.labels,
              metrics=args.metric, rows=args.rows, max_new_tokens=args.max_new_tokens, key=args.key,
              unverified=args.unverified)  # fmt: skip
    forms = {name: listed(getattr(args, name)) for name in ("gguf", "openvino", "onnx")}
    budget = Budget(args.max_size, args.max_loss, args.min_speed)
    told = compress(
        args.model, args.out, Store(args.store), Asked(forms, args.on, budget, args.suggest, how, args.sign)
    )
    return told, lambda: render_compression(told), 0 if told["written"] else 1


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


def doctor_verb(args: argparse.Namespace) -> Answer:
    from hermitcrab.environment import doctor
    from hermitcrab.report.terminal import render_doctor

    found = doctor(Path(args.store))
    return found, lambda: render_doctor(found), 1 if found["problems"] else 0


VERBS: dict[str, Verb] = dict([
    verb("predict", "answer texts or images, as `evaluate` does", predict_verb,
          'crab predict runs/demo/package "a film to remember"', MODEL,
          arg("input", nargs="+", help="a text, - for the lines of standard input, or @FILE (CSV, TSV, JSONL, Parquet, text); of "
               "images: files, folders, - for one on standard input, or @FILE (IDX)"),
          arg("--column", default="prompt", metavar="COLUMN", help="of @FILE: a column, or a text with {column} in it (default: prompt)"),
          arg("--max-new-tokens", type=count, default=64, metavar="N", help="the longest generated answer (default: 64)"),
          SIGNER, UNVERIFIED, STORE),
    verb("explain", "which parts of an input an answer rests on (needs [explain])", explain_verb,
          'crab explain runs/demo/package "a film to remember" --html why.html', MODEL,
          arg("input", nargs="+", help="as for `crab predict`"),
          arg("--method", choices=("integrated-gradients", "occlusion"), default="integrated-gradients",
              help="along the gradient, or by leaving parts out (default: integrated-gradients)"),
          arg("--html", type=Path, metavar="FILE", help="also as a page: colored tokens, heat maps"),
          arg("--sanity", action="store_true", help="also with randomized weights: an explanation that stays the same explains nothing"),
          arg("--column", default="prompt", metavar="COLUMN", help="of @FILE: a column, or a text with {column} in it (default: prompt)"),
          arg("--max-new-tokens", type=count, default=16, metavar="N", help="the longest generated answer (default: 16)"),
          SIGNER, UNVERIFIED, STORE),
    verb("serve", "serve packages: the OpenAI API, the Open Inference Protocol, and a page to try them", serve_verb,
          "crab serve runs/demo/package --port 8000",
          arg("model", nargs="+", help="packages' folders, runs' names or folders, or references to models"),
          arg("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1, this machine only)"),
          arg("--port", type=int, default=8000, help="0 takes any that is free (default: 8000)"),
          arg("--engine", metavar="NAME", help="the engine to serve with (default: by the model and the machine, and said)"),
          arg("--type", metavar="TYPE", help="of a package with GGUF files, the one to serve, such as Q4_0"),
          arg("--slots", type=count, default=8, metavar="N", help="answers made at once (default: 8)"),
          arg("--threads", type=int, default=0, metavar="N", help="threads of an engine (default: those that this process may use)"),
          arg("--vllm-python", type=Path, metavar="PYTHON", help="of an environment that has vLLM, to serve with it"),
          arg("--queue", type=count, default=64, metavar="N", help="answers that may wait for a model, the next is refused (default: 64)"),
          arg("--api-key", action="append", default=[], metavar="env:NAME", help="ask for the key in this variable (may be given again)"),
          arg("--api-keys", type=Path, metavar="FILE", help="ask for one of the keys of this file (see `crab apikey`)"),
          arg("--open-metrics", action="store_true", help="/metrics needs no key"),
          arg("--cors", action="append", default=[], metavar="ORIGIN", help="pages of it may ask (default: none; may be given again)"),
          arg("--max-body", type=count, default=8, metavar="MiB", help="the largest body of a request (default: 8)"),
          arg("--max-tokens", type=count, metavar="N", help="the longest answer to be asked for (default: what the model has room for)"),
          arg("--deadline", type=seconds, default=600.0, metavar="SECONDS", help="from a request to the end of its answer (default: 600)"),
          arg("--drain", type=seconds, default=30.0, metavar="SECONDS", help="what answers may still take when told to end (default: 30)"),
          arg("--tls-cert", type=Path, metavar="PEM", help="serve over TLS, with this certificate"),
          arg("--tls-key", type=Path, metavar="PEM", help="the private key of that certificate"),
          arg("--cluster", metavar="ray://…", help="replicas under Ray Serve: ray://local, or ray://HOST:PORT of a cluster (needs [ray])"),
          arg("--replicas", type=count, default=2, metavar="N", help="of --cluster (default: 2)"),
          arg("--log-texts", action="store_true", help="the log has what was asked and answered (default: no text is in it)"),
          SIGNER, UNVERIFIED, STORE),
    verb("apikey", "make a key for `crab serve --api-keys`; its hash alone is kept", apikey_verb,
          "crab apikey alice --file keys.json --requests-per-minute 60",
          arg("name", help="whose key it is; the log has this name"),
          arg("--file", type=Path, required=True, metavar="FILE", help="of hashed keys; made where it is not there"),
          arg("--requests-per-minute", type=count, metavar="N", help="more are refused (default: no limit)"),
          arg("--concurrent", type=count, metavar="N", help="requests at once, more are refused (default: no limit)")),
    verb("compress", "make smaller forms of a finished package or run, measure what each lost, and suggest one by a budget",
          compress_verb, "crab compress runs/demo --gguf Q8_0,Q4_0 --openvino int4 --suggest --max-size 100MB --max-loss 0.02 --out small",
          MODEL,
          arg("--gguf", metavar="TYPES", help="such as Q8_0,Q4_0,Q4_0-calibrated"),
          arg("--openvino", metavar="TYPES", help="f16, int8, int4, int4-calibrated"),
          arg("--onnx", metavar="TYPES", help="f32, int8, int8-static"),
          arg("--on", metavar="ROWS", help="a file of rows to measure on, or run:NAME/prepare (default: the run's own test rows)"),
          arg("--out", type=Path, required=True, metavar="FOLDER", help="a new folder; each form becomes a folder in it"),
          arg("--suggest", action="store_true", help="write only the form that the budget picks"),
          arg("--max-size", type=size, metavar="SIZE", help="of its files, such as 100MB"),
          arg("--max-loss", type=positive, metavar="X", help="of the deciding metric: the whole paired interval has to lie within it"),
          arg("--min-speed", type=positive, metavar="N", help="tokens (images, …) a second on this machine"),
          *ON_ROWS,
          arg("--sign", type=Path, metavar="PEM", help="private key to sign the results with (default: the one of `crab keygen`)"),
          SIGNER, UNVERIFIED, STORE),
    verb("export", "write a package for other programs: its model in their format, with its record, or files that deploy it",
          export_verb, "crab export runs/demo/package --to gguf --type Q8_0 --out demo-gguf", MODEL,
          arg("--to", required=True, metavar="TARGET", help="safetensors, gguf, onnx or openvino (the model, loaded back and compared); "
               "modelfile (Ollama), docker or k8s (files that run `crab serve`)"),
          arg("--type", metavar="TYPE", help="of the weights (gguf Q8_0, F16, …; onnx f32, int8; openvino f16, f32, int8, int4); of "
               "modelfile, which of the package's GGUF files (default: the largest)"),
          arg("--sign", type=Path, metavar="PEM", help="private key to sign the exported model with (default: the one of `crab keygen`)"),
          arg("--out", type=Path, required=True, metavar="FOLDER", help="where to"),
          arg("--image", metavar="NAME:TAG", help="the server's image (docker, k8s; default: hermitcrab:VERSION)"),
          arg("--replicas", type=count, default=1, metavar="N", help="servers at once (k8s; default: 1)"),
          arg("--autoscale", type=count, metavar="N", help="up to so many servers by load (k8s; default: as --replicas says)"),
          arg("--secret", metavar="NAME", help="the secret that holds the API key under `api-key` (k8s)"),
          arg("--volume", metavar="NAME", help="the volume claim that holds the package (k8s; default: by its name)"),
          SIGNER, UNVERIFIED, STORE),
    verb("push", "send a package to a repository of a model hub; private, resumable, read back", push_verb,
          "crab push runs/demo/package hf:my-org/my-model --token env:HF_TOKEN", MODEL,
          arg("to", help="hf:ORG/NAME (Hugging Face), with @BRANCH for another branch than main"),
          arg("--token", metavar="env:NAME", help="environment variable that holds the token (default: env:HF_TOKEN)"),
          arg("--public", action="store_true", help="everybody may read it (default: private)"),
          arg("--remove", action="store_true", help="take files out of the branch that are not the package's"),
          arg("--dry-run", action="store_true", help="only say what would be sent"),
          SIGNER, UNVERIFIED, STORE),
    verb("keygen", "make a signing key (ECDSA P-256)", keygen_verb, "crab keygen --out team-key.pem",
          arg("--out", type=Path, metavar="PEM", help="where to (default: your configuration folder)")),
    verb("doctor", "print versions, devices, memory, disk, extras, and what is wrong", doctor_verb, "crab doctor", STORE),
])  # fmt: skip
