"""A package's model in another format, with its record: written, loaded back in the program that will run it, compared, signed.

    OUT/   the model's files in that format, and what else its programs want (configuration, tokenizer)
           hermitcrab.json          what this is: name, task, license, base, files, how near it is to the package's model
           package/                 the package's own record, claims, key and signature, byte for byte
           claims.jsonl, signer.pub.pem, model.sig     who exported it: a claim that names the package by digest, and a signature

The folder appears under its name when everything in it has been checked, or not at all.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.errors import UsageError, did_you_mean
from hermitcrab.progress import say, warn
from hermitcrab.store import Store, disk_errors

if TYPE_CHECKING:
    from hermitcrab.serve.opening import Opened

TYPES: dict[str, tuple[str, ...]] = {
    "safetensors": ("as-is",),
    "gguf": ("Q8_0", "F16", "BF16", "F32", "Q5_1", "Q5_0", "Q4_1", "Q4_0"),
    "onnx": ("f32", "int8"),
    "openvino": ("f16", "f32", "int8", "int4"),
}
"""Target → types, the first that which is written where none is asked for."""
TARGETS = tuple(TYPES)


def export(
    model: str, target: str, out: Path, store: Store, *, type: str | None = None, key: Path | None = None,
    unverified: bool = False, sign: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the model of a package in another format into the new folder `out`.

    Args:
        type: of the weights, one of `TYPES[target]`.
        key: public key that the package must be signed by.
        sign: private key to sign the export with; None: the one of `crab keygen`, where there is one.

    Returns:
        `{target, type, model, verified, signed, folder, files, parity, notes}`.

    Raises:
        UsageError: no such target, type or model; a target that the model's task cannot have; `out` is there already.
        HermitcrabError: a package that does not verify, or an export that is not the model.
    """
    from hermitcrab.exporting import record, writing
    from hermitcrab.serve.opening import open_model
    from hermitcrab.tasks import load_task

    kind = _type(target, type)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is there already; an export goes into a new folder")
    opened = open_model(model, store, key, unverified)
    able = load_task(opened.task).exports
    if target not in able:
        raise UsageError(f"--to {target}: a model of {opened.task} can be exported to: {', '.join(able)}")
    private = record.signing_key(sign)
    scratch = out.absolute().with_name(f".{out.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with disk_errors("cannot write"):
            scratch.mkdir(parents=True)
            written = writing.write(opened, target, kind, scratch)
            parity = writing.compare(opened, target, kind, scratch, written)
            record.complete(opened, target, kind, scratch, written, parity, private)
            if out.exists():
                out.rmdir()
            os.replace(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if private is None:
        warn(f"{out}: is not signed, for there is no key (crab keygen makes one, --sign names one)")
    say(f"{out}: {parity['runtime']} gives the model's answers: {_said(parity)}")
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    return {"target": target, "type": kind, "model": opened.name, "verified": opened.verified is not None,
            "signed": private is not None, "folder": str(out), "files": files, "parity": parity,
            "notes": _notes(opened, parity, private is not None)}  # fmt: skip


def _type(target: str, asked: str | None) -> str:
    if target not in TYPES:
        raise UsageError(f"--to {target}: no such format{did_you_mean(target, TARGETS)}")
    if asked is not None and asked not in TYPES[target]:
        raise UsageError(f"--type {asked}: {target} is written as {', '.join(TYPES[target])}")
    return asked or TYPES[target][0]


def _said(parity: dict[str, Any]) -> str:
    return (
        f"max |Δlogit| {parity['max_abs_logit_difference']:.2e}, mean KL {parity['mean_kl']:.2e} nats (at most "
        f"{parity['tolerance']['mean_kl']:g}), the same likeliest answer in {parity['top1_agreement']:.1%} of {parity['n']:,}"
    )


def _notes(opened: Opened, parity: dict[str, Any], signed: bool) -> list[str]:
    notes = [f"loaded back in {parity['runtime']}: {_said(parity)}"]
    if opened.verified is None:
        notes.append("nothing vouches for the model that this was made from")
    elif not signed:
        notes.append(
            "not signed: nothing says that these files were made from the package whose record lies in package/"
        )
    return notes
