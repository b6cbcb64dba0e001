"""A run as its stages leave it: real artifacts in a real store, with the figures of `measure` and `compare`."""

import functools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hermitcrab.digest import digest_json
from hermitcrab.evaluate.metrics import measure
from hermitcrab.evaluate.value_added import compare, noise_floor
from hermitcrab.recipe import parse
from hermitcrab.store import Store

METRICS = ["accuracy", "precision", "recall", "f1", "exact_match", "perplexity", "bits_per_byte"]
LABELS = ["negative", "positive"]
ROWS = [f"{i:016x}" for i in range(400)]
REFERENCE = [LABELS[i % 2] for i in range(400)]
ENVIRONMENT = {
    "python": "3.11.9", "platform": "Linux-6.1-x86_64", "processor": "a processor", "cpu_count": 2,
    "packages": {"hermitcrab": "0.1.0", "torch": "2.9.0"},
}  # fmt: skip
RECIPE = """
name: demo
task: text-generation
base: {path: "pypi:some-base==1.0/model.gguf", sha256: "%s", license: Apache-2.0}
data:
  train: {path: train.csv, license: CC0-1.0}
  test: {path: test.csv, license: CC0-1.0}
evaluate: {choices: [negative, positive], few_shot: 4, calibrate: true, baselines: [majority, tfidf-logreg]}
report: {show_text: %s}
"""


def answers(share, seed, likelihood=True):
    random = np.random.default_rng(seed)
    right = random.random(400) < share
    said = [LABELS[(i + (not r)) % 2] for i, r in enumerate(right)]
    more = {"nll": random.gamma(2, 0.4, 400), "tokens": np.full(400, 2), "bytes": np.full(400, 8)} if likelihood else {}
    return pa.table({"row_id": ROWS, "reference": REFERENCE, "prediction": said, "score": -random.random(400), **more})


@functools.cache
def evaluated():
    """Tables, metrics and comparison: the same for every sample."""
    tables = {
        "derived": answers(0.82, 1), "base": answers(0.69, 2), "base (4-shot)": answers(0.72, 3),
        "base (calibrated)": answers(0.74, 4, False), "base (4-shot, calibrated)": answers(0.77, 5, False),
        "tfidf-logreg": answers(0.73, 6, False), "majority": answers(0.5, 7, False),
    }  # fmt: skip
    metrics = []
    for model, table in tables.items():
        metrics += measure(table, METRICS, LABELS, model=model, prompt_digest="sha256:" + "4" * 64, resamples=500)
    held = {"base": 0.68, "base (4-shot)": 0.7, "base (calibrated)": 0.73, "base (4-shot, calibrated)": 0.78}
    comparison = compare(
        tables, held, metrics=METRICS, labels=LABELS, resamples=500,
        contamination={"n": 400, "train_rows": 300, "exact": 0, "ngram": 4, "words": 8, "short": 9},
        noise=noise_floor([-1.0, -2.0], [-1.0, -2.0001], ["a", "b"], ["a", "b"]),
    )  # fmt: skip
    return tables, metrics, comparison


def counted(labels, tables, seed=0, unparsed=0):
    """classes.json: the confusions of every model, and figures by class whose intervals are not known for the first."""
    random, models = np.random.default_rng(seed), {}
    for model in tables:
        confusion = random.poisson(9, (len(labels), len(labels))) * (random.random((len(labels), len(labels))) < 0.6)
        confusion[np.diag_indices(len(labels))] = random.integers(700, 1000, len(labels))
        per_class = []
        for i, label in enumerate(labels):
            n, right = int(confusion[i].sum()) + unparsed, int(confusion[i, i])
            p, r = right / int(confusion[:, i].sum()), right / n
            figures = {"precision": p, "recall": r, "f1": 2 * p * r / (p + r)}
            limits = {
                k: {"value": v, "low": v - 0.02 if i else None, "high": v + 0.02 if i else None}
                for k, v in figures.items()
            }
            per_class.append({"label": label, "support": n, **limits})
        models[model] = {"confusion": confusion.tolist(), "unparsed": [unparsed] * len(labels), "per_class": per_class}
    return {"labels": labels, "split": "test", "models": models}


class Sample:
    """Seals artifacts stage by stage; `text(i)` is what row i asks."""

    def __init__(
        self, root, show_text=False, text=lambda i: f"sentence number {i}", uri="pypi:some-base==1.0/model.gguf"
    ):
        self.store, self.text, self.uri = Store(root), text, uri
        self.recipe = parse(RECIPE % ("0" * 64, str(show_text).lower()))
        self.artifacts = {}

    def seal(self, stage, files, facts=None, tables=None):
        key = digest_json({"stage": stage})
        with self.store.draft(stage, key, {"code": "", "slice": {}, "inputs": []}) as draft:
            for name, value in files.items():
                draft.write(name, value)
            for name, table in (tables or {}).items():
                (draft.payload / name).parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table, draft.payload / name)
            if stage == "train":
                lines = [json.dumps({"step": i + 1, "loss": 2 * 0.99**i + 0.3, "labels": 40}) for i in range(300)]
                (draft.payload / "log.jsonl").write_text("\n".join(lines) + "\n")
            unknown = {"joules": None, "method": "unknown: this machine has no readable energy counter"}
            draft.facts.update({"environment": ENVIRONMENT, "energy": unknown, **(facts or {})})
            self.artifacts[stage] = self.store.seal(draft)

    def ledger(self, name, taken, unit="rows", **dropped):
        kept = taken - sum(dropped.values())
        changed = {"normalized": 7} if dropped else {}
        return {"name": name, "unit": unit, "taken": taken, "kept": kept, "dropped": dropped, "changed": changed}

    def collect(self):
        source = {
            "uri": "train.csv",
            "sha256": "sha256:" + "1" * 64,
            "size": 9,
            "license": "CC0-1.0",
            "type": "csv",
            "format": "prompt-completion",
        }
        base = {
            "uri": self.uri, "revision": None, "kind": "gguf", "name": "Some Base 135M", "files": [],
            "digest": "sha256:" + "2" * 64,
            "license": {"found": None, "declared": "Apache-2.0", "used": "Apache-2.0"}, "model_type": "llama",
            "architecture": "LlamaForCausalLM", "parameters": 134515008, "tensors": 272,
            "dtypes": {"Q4_1": 210, "F32": 62},
            "chat_template_digest": "sha256:" + "3" * 64, "notes": ["Rounded by its publisher to 4 bits."],
        }  # fmt: skip
        sources = [{**source, "split": "train", "rows_read": 640, "rows_kept": 633},
                   {**source, "uri": "test.csv", "split": "test", "rows_read": 400, "rows_kept": 400}]  # fmt: skip
        self.seal(
            "collect",
            {"base.json": base, "sources.json": sources, "ledger.json": [self.ledger("train rows", 640, empty=7)]},
        )

    def prepare(self):
        table = pa.table({
            "row_id": ROWS, "source": ["test.csv"] * 400,
            "prompt": [self.text(i) for i in range(400)], "completion": REFERENCE,
        })  # fmt: skip
        ledger = [self.ledger("train rows", 633, duplicate=12, **{"stands in test": 3})]
        self.seal(
            "prepare", {"ledger.json": ledger}, tables={"test.parquet": table, "train.parquet": table.slice(0, 300)}
        )

    def train(self):
        training = {
            "method": "lora", "steps": 300, "epochs": 2.0, "trainable_parameters": 4884480, "parameters": 134515008,
            "loss_first": 2.3, "loss_last": 0.398,
            "validation": [{"step": s, "loss": 2 * 0.99**s + 0.4} for s in (100, 200, 300)],
            "best_step": 300, "fitted": {}, "template_digest": "sha256:" + "3" * 64, "seed": 0, "stopped": "planned",
        }  # fmt: skip
        parity = {
            "compared": ["base + adapter", "merged (bfloat16)"], "probes": [[1, 2], [3]], "ok": True,
            "max_abs_logit_difference": 0.0214, "mean_kl": 4.1e-06, "top1_agreement": 0.9987, "tolerance": {},
        }  # fmt: skip
        plan = {
            "precision": "bfloat16",
            "attention": "sdpa",
            "compile": False,
            "threads": 2,
            "processes": 1,
            "versions": {},
        }
        tokens = {
            **self.ledger("train tokens", 52000, "tokens"),
            "learnt": 900,
            "end_learnt_share": 1.0,
            "examples_kept": 300,
        }
        self.seal(
            "train",
            {"training.json": training, "parity.json": parity, "ledger.json": [tokens]},
            {"plan": plan},
        )

    def evaluate(self):
        tables, metrics, comparison = evaluated()
        seconds = {"derived": 0.061, "base": 0.06, "base (4-shot)": 0.08, "tfidf-logreg": 0.0004, "majority": 1e-7}
        self.seal(
            "evaluate",
            {"metrics.json": metrics, "comparison.json": comparison, "ledger.json": [self.ledger("test rows", 400)]},
            {"cpu_seconds_per_answer": seconds},
            {f"predictions/{model}.parquet": tables[model] for model in ("derived", "base")},
        )

    def compress(self):
        parity = {
            "n": 400, "metric": "accuracy", "uncompressed": 0.82, "compressed": 0.815, "difference": -0.005, "low": -0.02,
            "high": 0.01, "confidence": 0.95, "gained": 3, "lost": 5, "flips": 8, "mean_kl": 0.0123,
            "top1_agreement": 0.975, "max_abs_logit_difference": 0.5, "mean_kl_to_base": 0.4, "margin": 0.01, "within_margin": False,
            "perplexity": None,
        }  # fmt: skip
        entry = {
            "format": "gguf", "type": "Q4_0", "file": "gguf/demo-Q4_0.gguf", "method": {"rounding": "nearest"},
            "files": [{"path": "gguf/demo-Q4_0.gguf", "sha256": "sha256:" + "5" * 64, "size": 90 << 20}],
            "size": 90 << 20, "size_of_model": 256 << 20, "bits_per_weight": 5.34, "tensors": {"Q4_0": 210}, "parity": parity,
        }  # fmt: skip
        self.seal("compress", {"compression.json": [entry], "ledger.json": []})

    def tune(self):
        told = {"name": "accuracy", "version": "1", "best": "highest", "low": None, "high": None, "n": 60,
                "split": "validation", "prompt_digest": None, "steps": 80, "model": None, "chosen": False, "failed": None}  # fmt: skip
        trials = [
            {**told, "settings": {"train.learning_rate": 0.0002}, "value": 0.75, "low": 0.61, "high": 0.86},
            {
                **told,
                "settings": {"train.learning_rate": 0.001},
                "value": 0.8,
                "low": 0.66,
                "high": 0.9,
                "chosen": True,
            },
            {**told, "settings": {"train.learning_rate": 9.0}, "value": None, "failed": "step 3: loss is nan"},
        ]
        self.seal("tune", {"trials.json": trials, "ledger.json": [self.ledger("settings searched", 3, diverged=1)]})

    def package(self):
        self.seal("package", {"hermitcrab.json": {"license": "Apache-2.0"}})

    def run(self):
        for stage in ("collect", "prepare", "tune", "train", "evaluate", "compress", "package"):
            getattr(self, stage)()
        return self.record(), self.artifacts

    def record(self):
        return {
            "name": "demo", "task": "text-generation", "folder": "/nowhere/runs/demo",
            "recipe": self.recipe.model_dump(mode="json"),
            "artifacts": {stage: a.key for stage, a in self.artifacts.items()}, "reused": ["collect"],
        }  # fmt: skip


FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


class FromScratch(Sample):
    """A run that was built on nothing: classes, a verdict against a baseline, rows in the ledger, no parity, no text."""

    labels, unparsed = FASHION, 0

    def collect(self):
        license = {"found": None, "declared": "MIT", "used": "MIT"}
        base = {
            "uri": "scratch", "revision": None, "kind": "scratch", "name": "scratch mlp", "files": [], "license": license,
            "configuration": {"layers": [784, 128, 64, 10], "activation": "relu"}, "digest": "sha256:" + "6" * 64,
            "model_type": "mlp", "architecture": "Mlp", "parameters": None, "tensors": None, "dtypes": {}, "notes": [],
        }  # fmt: skip
        source = {
            "uri": "deb:dataset-fashion-mnist=1.0/train-images-idx3-ubyte.gz", "sha256": "sha256:" + "1" * 64, "size": 9,
            "license": "MIT", "type": "idx", "format": "image-label", "split": "train", "rows_read": 640, "rows_kept": 640,
        }  # fmt: skip
        self.seal(
            "collect", {"base.json": base, "sources.json": [source], "ledger.json": [self.ledger("train rows", 640)]}
        )

    def train(self):
        training = {
            "method": "full", "steps": 300, "epochs": 10.0, "trainable_parameters": 109386, "parameters": 109386,
            "loss_first": 2.3, "loss_last": 0.398, "validation": [{"step": 300, "loss": 0.5}], "best_step": 300, "seed": 0,
            "stopped": "planned", "init_commitment": "sha256:" + "7" * 64,
        }  # fmt: skip
        self.seal(
            "train", {"training.json": training, "ledger.json": [{**self.ledger("train rows", 600), "learnt": 600}]}
        )

    def evaluate(self):
        tables, metrics, _ = evaluated()
        tables = {
            "derived": tables["derived"],
            "majority": tables["majority"],
            "logistic-regression": tables["tfidf-logreg"],
        }
        names = {"derived": "derived", "majority": "majority", "tfidf-logreg": "logistic-regression"}
        metrics = [
            {**m, "model": names[m["model"]], "prompt_digest": None}
            for m in metrics
            if m["model"] in names and m["name"] in METRICS[:4]
        ]
        comparison = compare(
            tables, metrics=METRICS[:4], labels=LABELS, resamples=500, base="logistic-regression", prompted=False
        )
        files = {"metrics.json": metrics, "comparison.json": comparison, "ledger.json": []}
        files["classes.json"] = counted(self.labels, tables, unparsed=self.unparsed)
        self.seal(
            "evaluate",
            files,
            {"cpu_seconds_per_answer": {"derived": 2e-6}},
            {f"predictions/{model}.parquet": table for model, table in tables.items()},
        )

    def compress(self):
        self.seal("compress", {"compression.json": []})

    def record(self):
        return {**super().record(), "name": "fashion", "task": "image-classification"}


@pytest.fixture
def count_classes():
    """Makes what `evaluate` leaves as classes.json; ten labels if none are given."""
    return lambda labels=FASHION, models=("derived",), **options: counted(labels, models, **options)


@pytest.fixture
def from_scratch(tmp_path):
    """Makes runs that were built on nothing."""
    return lambda name="scratch", **options: FromScratch(tmp_path / name, **options)


@pytest.fixture
def sample(tmp_path):
    """Makes sample runs, each in a store of its own."""
    return lambda name="store", **options: Sample(tmp_path / name, **options)


@pytest.fixture(scope="session")
def kinds():
    """The classes of both, for tests that keep what they made."""
    return {"sample": Sample, "from scratch": FromScratch}
