"""A small real chain of artifacts, sealed in a real store: what the tests of lineage and package stand on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from hermitcrab.digest import describe_files, digest_bytes, digest_json
from hermitcrab.lineage.licenses import result_license
from hermitcrab.models.formats import gguf_writer
from hermitcrab.stages import Job
from hermitcrab.stages.package import STAGE, PackageSlice
from hermitcrab.store import Artifact, Draft, Store

ORDER = ("collect", "prepare", "tune", "train", "evaluate", "compress", "package")
INPUTS = {
    "collect": (),
    "prepare": ("collect",),
    "tune": ("collect", "prepare"),
    "train": ("collect", "prepare"),
    "evaluate": ("collect", "prepare", "train"),
    "compress": ("collect", "prepare", "train", "evaluate"),
    "package": STAGE.inputs,
}


def sealed(store: Store, stage: str, part: dict[str, Any], inputs: dict[str, Artifact], fill: Any) -> Artifact:
    """An artifact of `store`, its payload written by `fill(draft)`."""
    asked = {
        "code": digest_bytes(stage.encode()),
        "slice": part,
        "inputs": [{"stage": name, "digest": inputs[name].digest} for name in INPUTS[stage]],
    }
    key = digest_json({"stage": stage, **asked})
    if found := store.find(key):
        return found
    with store.draft(stage, key, asked) as draft:
        fill(draft)
        draft.facts["environment"] = {"python": "3.11", "packages": {"numpy": np.__version__}}
        draft.facts["energy"] = {"joules": None, "method": "not measured"}
        return store.seal(draft)


def ledger(name: str, unit: str = "rows") -> dict[str, Any]:
    dropped, changed = {"exact duplicate": 2}, {"normalized": 1}
    return {"name": name, "unit": unit, "taken": 10, "kept": 8, "dropped": dropped, "changed": changed}


def base_record(folder: Path, **other: Any) -> dict[str, Any]:
    save_file({"w": np.arange(12, dtype=np.float32).reshape(3, 4)}, folder / "base.safetensors")
    files = describe_files(folder, ["base.safetensors"])
    return {
        "uri": "pypi:tiny-models==1.0/tiny.gguf",
        "revision": None,
        "kind": "gguf",
        "name": "Tiny-Instruct",
        "files": files,
        "digest": digest_json(files),
        "license": {"found": "apache-2.0", "declared": None, "used": "Apache-2.0"},
        "model_type": "llama",
        "architecture": "LlamaForCausalLM",
        "parameters": 12,
        "tensors": 1,
        "dtypes": {"F32": 1},
        "chat_template_digest": None,
        "notes": [],
        **other,
    }


def source(split: str, license_id: str = "CC0-1.0", uri: str = "pypi:reviews==0.1/reviews.csv") -> dict[str, Any]:
    return {
        "uri": uri,
        "split": split,
        "sha256": digest_bytes(f"{uri} {split}".encode()),
        "size": 640,
        "license": license_id,
        "type": "csv",
        "format": "prompt-completion",
        "rows_read": 10,
        "rows_kept": 8,
    }


def metric(model: str, name: str, value: float, low: float | None, high: float | None) -> dict[str, Any]:
    told = {"name": name, "version": "1", "value": value, "low": low, "high": high, "n": 100, "split": "test"}
    return {**told, "model": model, "prompt_digest": digest_bytes(b"prompt")}


COMPARISON = {
    "verdict": "better",
    "sentence": "Better: accuracy of derived 0.8 against base 0.7 (+0.1, 95 % interval 0.02 to 0.18).",
    "metric": "accuracy",
    "n": 100,
    "confidence": 0.95,
    "pairs": [
        {"a": "derived", "b": "base", "metric": "accuracy", "a_value": 0.8, "b_value": 0.7, "difference": 0.1,
         "low": 0.02, "high": 0.18, "p_value": 0.01, "p_holm": 0.02, "gained": 14, "lost": 4}
    ],
    "gained": ["0123456789abcdef"],
    "lost": [],
    "smallest_effect": {"difference": 0.08, "assumes": "0.2 of the answers differ"},
    "contamination": {"exact": 0},
    "noise_floor": None,
}  # fmt: skip

PARITY = {
    "compared": ["base + adapter", "merged (bfloat16)"],
    "probes": [[1, 2, 3], [4, 5]],
    "max_abs_logit_difference": 0.0625,
    "mean_kl": 2.5e-7,
    "top1_agreement": 1.0,
    "tolerance": {"top1_agreement": 0.95, "mean_kl": 1e-3},
    "ok": True,
}

TRAINING = {
    "method": "lora",
    "steps": 40,
    "epochs": 1.0,
    "trainable_parameters": 4,
    "parameters": 12,
    "loss_first": 2.5,
    "loss_last": 0.5,
    "validation": [],
    "best_step": 40,
    "template_digest": digest_bytes(b"template"),
    "fitted": {},
    "seed": 0,
    "stopped": "planned",
}


def _train(draft: Draft, parity: dict[str, Any]) -> None:
    model, adapter = draft.payload / "model", draft.payload / "adapter"
    model.mkdir()
    adapter.mkdir()
    save_file({"w": np.arange(12, dtype=np.float32).reshape(3, 4) + 1}, model / "model.safetensors")
    save_file({"lora": np.ones((2, 2), dtype=np.float32)}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text('{"r": 2}\n')
    (model / "config.json").write_text('{"model_type": "llama"}\n')
    (model / "tokenizer.json").write_text('{"version": "1.0"}\n')
    draft.write("ledger.json", [ledger("train tokens", "tokens")])
    draft.write("training.json", TRAINING)
    draft.write("parity.json", parity)
    (draft.payload / "log.jsonl").write_text('{"step": 1}\n')
    draft.facts["plan"] = {"precision": "bfloat16", "threads": 2}
    draft.facts["init"] = {"seed": 987654321123456789, "nonce": "secret"}


COMPRESSED = {
    "format": "gguf", "type": "Q8_0", "file": "gguf/tiny-reviews-Q8_0.gguf", "size_of_model": 1000, "bits_per_weight": 8.5,
    "tensors": {"F32": 1, "Q8_0": 1}, "method": {"rounding": "nearest"},
    "parity": {
        "n": 100, "metric": "accuracy", "uncompressed": 0.8, "compressed": 0.79, "difference": -0.01, "low": -0.03,
        "high": 0.01, "confidence": 0.95, "gained": 1, "lost": 2, "flips": 3, "mean_kl": 0.0004, "top1_agreement": 0.99,
        "max_abs_logit_difference": 0.125, "mean_kl_to_base": 0.5,
        "margin": 0.04, "within_margin": True, "perplexity": None,
    },
}  # fmt: skip


def _compress(draft: Draft, base: dict[str, Any], license_id: str) -> None:
    """A small GGUF file as the stage leaves it: the license and the base in its metadata."""
    file = draft.payload / COMPRESSED["file"]
    about: dict[str, Any] = {"general.license": license_id, "hermitcrab.base.digest": base["digest"]}
    if base["kind"] != "scratch":
        about |= {"general.base_model.0.name": base["name"], "hermitcrab.base.uri": base["uri"]}
    tensors = [gguf_writer.plan_tensor("blk.0.attn_q.weight", (3, 32), "Q8_0", False),
               gguf_writer.plan_tensor("output_norm.weight", (32,), "Q8_0", False)]  # fmt: skip
    values = {t.name: np.arange(np.prod(t.shape), dtype=np.float32).reshape(t.shape) for t in tensors}
    gguf_writer.write(file, "llama", about, tensors, values.__getitem__)
    files = describe_files(draft.payload, [COMPRESSED["file"]])
    draft.write("compression.json", [{**COMPRESSED, "files": files, "size": files[0]["size"]}])
    draft.write("tensors.json", {"gguf Q8_0": [{"name": t.name, "dtype": t.dtype} for t in tensors]})
    draft.write("ledger.json", [ledger("tensors of gguf Q8_0", "tensors")])


def searched(trained: Artifact) -> list[dict[str, Any]]:
    """trials.json of a search over two learning rates, which chose what was trained."""
    told = {"name": "accuracy", "version": "1", "best": "highest", "n": 50, "split": "validation", "prompt_digest": None,
            "steps": 40, "failed": None}  # fmt: skip
    return [
        {**told, "settings": {"train.learning_rate": 0.01}, "value": 0.7, "low": 0.6, "high": 0.8, "chosen": False,
         "model": digest_bytes(b"another model")},
        {**told, "settings": {"train.learning_rate": 0.001}, "value": 0.8, "low": 0.7, "high": 0.9, "chosen": True,
         "model": trained.digest},
    ]  # fmt: skip


def _tune(draft: Draft, trials: list[dict[str, Any]]) -> None:
    draft.write("trials.json", trials)
    draft.write("ledger.json", [ledger("settings searched", "trials")] if trials else [])
    if trials:
        draft.facts["trials"] = [{"stage": "train", "key": digest_bytes(b"key"), "digest": t["model"]} for t in trials]


def chain(store: Store, scratch: Path, **other: Any) -> dict[str, Artifact]:
    """collect → … → compress. `other`: fields of base.json (`base`), `sources`, `parity`; `compressed=False`: nothing;
    `trials`: what becomes of those of the search.
    """
    base = base_record(scratch, **other.get("base", {}))
    sources = other.get("sources", [source("train"), source("test")])
    rows = pa.table({"row_id": ["a", "b"], "prompt": ["p", "q"], "completion": ["x", "y"]})
    made: dict[str, Artifact] = {}

    def collect(draft: Draft) -> None:
        draft.write("base.json", base)
        draft.write("sources.json", sources)
        draft.write("ledger.json", [ledger("train rows")])
        pq.write_table(rows, draft.payload / "train.parquet")

    def prepare(draft: Draft) -> None:
        draft.write("ledger.json", [ledger("prepared rows")])
        pq.write_table(rows, draft.payload / "train.parquet")

    def evaluate(draft: Draft) -> None:
        told = [metric("derived", "accuracy", 0.8, 0.71, 0.87), metric("base", "accuracy", 0.7, 0.6, 0.78)]
        draft.write("metrics.json", [*told, metric("derived", "perplexity", 3.25, None, None)])
        draft.write("comparison.json", COMPARISON)
        draft.write("ledger.json", [ledger("test rows")])
        draft.facts["cpu_seconds_per_answer"] = {"derived": 0.02}

    asked = {
        "base": {"path": base["uri"], "tokenizer": "https://user:secret@models.example/tiny.gguf?token=hidden"},
        "scratch": digest_json([base, sources]),
    }
    made["collect"] = sealed(store, "collect", asked, made, collect)
    made["prepare"] = sealed(store, "prepare", {"clean": ["normalize"]}, made, prepare)
    parity = other.get("parity", PARITY)
    asked = {"train": {"method": "lora", "learning_rate": 0.001}}
    trained = sealed(store, "train", asked, made, lambda draft: _train(draft, parity))
    trials = other.get("trials", lambda found: found)(searched(trained))
    part = {"tune": {"metric": "accuracy", "train.learning_rate": [0.01, 0.001]} if trials else None}
    made["tune"] = sealed(store, "tune", part, made, lambda draft: _tune(draft, trials))
    made["train"] = trained
    made["evaluate"] = sealed(store, "evaluate", {"metrics": ["accuracy"]}, made, evaluate)

    def compress(draft: Draft) -> None:
        if other.get("compressed", True):
            licenses = [entry["license"] for entry in sources]
            _compress(
                draft, base, result_license(base["license"]["used"], licenses, other.get("part", {}).get("license"))
            )
        else:
            draft.write("compression.json", [])
            draft.write("ledger.json", [])

    made["compress"] = sealed(store, "compress", {"compress": {"gguf": ["Q8_0"], "target": None}}, made, compress)
    return made


PART = {
    "name": "tiny-reviews",
    "task": "text-generation",
    "use": "commercial",
    "license": None,
    "choices": ["yes", "no"],
}


def packaged(store: Store, made: dict[str, Artifact], **part: Any) -> dict[str, Artifact]:
    """The chain with its package, made by the stage function itself."""
    asked = {**PART, **part}

    def fill(draft: Draft) -> None:
        STAGE.run(Job(part=PackageSlice(**asked), inputs=made, draft=draft, places={}, resolved={}))

    return {**made, "package": sealed(store, "package", asked, made, fill)}


def laid_out(package: Artifact, folder: Path) -> Path:
    """A copy of the package's payload, as a run lays it out."""
    shutil.copytree(package.payload, folder)
    return folder


def rewritten(artifact: Artifact, name: str, old: str | bytes, new: str | bytes) -> None:
    """Change a file of a sealed artifact and its manifest with it: a dishonest maker, not damage."""
    path = artifact.payload / name
    before, after = (value.encode() if isinstance(value, str) else value for value in (old, new))
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after))
    files = describe_files(artifact.payload, [file["path"] for file in artifact.manifest["files"]])
    artifact.manifest.update(files=files, digest=digest_json(files))
    (artifact.path / "manifest.json").write_text(json.dumps(artifact.manifest))
