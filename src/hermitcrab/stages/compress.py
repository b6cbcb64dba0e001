"""compress: the derived model in smaller formats, each loaded back and compared with the model that it was made from.

Notable:
- Perplexity and size say little of what a compression broke. Each file is asked the test rows that `evaluate` asked, with the
  same prompts and in the same precision: what differs is the rounding of the weights. Distributions are compared in float32
  on the task's probes, with the base's too: a file that is nearer to the base lost what training added, and is refused.
- Files, probes and answers are kept in the draft, so a killed compression goes on with the next type.
"""

from __future__ import annotations

import math
import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.data.ledger import Ledger
from hermitcrab.digest import describe_files, digest_file, digest_json, short
from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.progress import progress
from hermitcrab.recipe import Compress, Evaluate, Part, Recipe, Train
from hermitcrab.stages import Job, Stage
from hermitcrab.store import read_json, write_atomic, write_json

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from hermitcrab.models.to_gguf import Export
    from hermitcrab.tasks import Start, Task

SETTINGS = "generation_config.json"  # GGUF has no keys for it; it lies beside the file while that is asked


class CompressSlice(Part):
    name: str
    task: str
    license: str | None
    train: Train
    evaluate: Evaluate
    compress: Compress


def slice_of(recipe: Recipe) -> CompressSlice:
    return CompressSlice(
        name=recipe.name, task=recipe.task, license=recipe.package.license,
        train=recipe.train.unprofiled(), evaluate=recipe.evaluate, compress=recipe.compress,
    )  # fmt: skip


def check_base(part: Compress, base: dict[str, Any], path: Path) -> None:
    """What the base itself rules out, told before the training that would have been in vain.

    Raises:
        HermitcrabError: an architecture or a tokenizer that the formats asked for have no words for.
    """
    if not part.gguf:
        return
    from hermitcrab.models import ggml, to_gguf
    from hermitcrab.models.base import read_config
    from hermitcrab.models.formats import open_weights
    from hermitcrab.models.load import load_text

    if base["kind"] == "scratch":
        config = base["configuration"]
    else:
        config = ggml.configuration(open_weights(path)) if base["kind"] == "gguf" else read_config(path)
    to_gguf.architecture(config)
    to_gguf.tokenizer_keys(load_text(base, path))


def run(job: Job) -> None:
    compressed: list[dict[str, Any]] = []
    ledgers: list[dict[str, Any]] = []
    if job.part.compress.gguf:
        for module in ("torch", "transformers"):
            needs(module, "train")
        work = Compression(job)
        for kind in job.part.compress.gguf:
            compressed.append(work.compress(kind))
            ledgers.append(work.ledger(kind))
            job.draft.mark()
    job.draft.write("compression.json", compressed)
    job.draft.write("ledger.json", ledgers)


class Compression:
    """What all types share: the model, the rows, the answers and the distributions of the uncompressed model."""

    def __init__(self, job: Job):
        import pyarrow.parquet as pq

        from hermitcrab.evaluate.asking import Keeper

        self.job, self.part = job, job.part
        self.keeper = Keeper(job.draft.work / "answers", "compress")
        self.base = job.inputs["collect"].read("base.json")
        self.model = job.inputs["train"].payload / "model"
        self.rows = pq.read_table(job.inputs["prepare"].payload / "test.parquet")
        self.uncompressed = pq.read_table(job.inputs["evaluate"].payload / "predictions" / "derived.parquet")
        self.metrics = [m for m in job.inputs["evaluate"].read("metrics.json") if m["model"] == "derived"]

    @cached_property
    def labels(self) -> list[str]:
        from hermitcrab.tasks import load_task

        fitted = self.job.inputs["train"].read("training.json")["fitted"]
        return load_task(self.part.task).labels(self.part.evaluate, fitted)

    @cached_property
    def asked_rows(self) -> pa.Table:
        """The rows with the smallest ids, which are digests: a draw that does not depend on the order of a file."""
        wanted = self.part.compress.rows
        ids = self.rows["row_id"].to_pylist()
        chosen = sorted(sorted(range(len(ids)), key=lambda i: ids[i])[:wanted])
        return self.rows.take(chosen)

    @cached_property
    def export(self) -> Export:
        from hermitcrab.models.to_gguf import Export

        return Export(self.model, self.about())

    def about(self) -> dict[str, Any]:
        """What the file says of itself: license and base, under GGUF's own keys, and the digests that the record goes by."""
        from hermitcrab.lineage.licenses import result_license

        licenses = [source["license"] for source in self.job.inputs["collect"].read("sources.json")]
        about: dict[str, Any] = {
            "general.type": "model",
            "general.name": self.part.name,
            "general.license": result_license(self.base["license"]["used"], licenses, self.part.license),
            "hermitcrab.base.digest": self.base["digest"],
        }
        if self.base["kind"] != "scratch":
            about |= {"general.base_model.count": 1, "general.base_model.0.name": self.base["name"],
                      "hermitcrab.base.uri": self.base["uri"]}  # fmt: skip
            if self.base["revision"]:
                about["general.base_model.0.version"] = self.base["revision"]
        return about

    def compress(self, kind: str) -> dict[str, Any]:
        """The entry of one type in compression.json; its file and its answers go into the payload."""
        import pyarrow.parquet as pq

        file = self.job.draft.work / kind / f"{self.part.name}-{kind}.gguf"
        if not file.exists():
            with progress(f"writing {kind}"):
                self.export.write(kind, file)
        settings = file.parent / SETTINGS
        if (self.model / SETTINGS).exists() and not settings.exists():
            write_atomic(settings, (self.model / SETTINGS).read_bytes())
        start = self.start_of(file)
        parity = self.parity(kind, start)
        payload, name = self.job.draft.payload, f"gguf/{file.name}"
        (payload / "gguf").mkdir(exist_ok=True)
        try:
            os.link(file, payload / name)
        except OSError:  # a file system without links
            shutil.copyfile(file, payload / name)
        table = self.answers(kind, start)
        (payload / "predictions").mkdir(exist_ok=True)
        pq.write_table(table.replace_schema_metadata(None), payload / "predictions" / f"{kind}.parquet")
        seconds = float(table.schema.metadata[b"cpu_seconds"]) / table.num_rows
        self.job.draft.facts.setdefault("cpu_seconds_per_answer", {})[kind] = seconds
        planned = self.export.plan(kind)
        counts: dict[str, int] = {}
        for tensor in planned:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + 1
        stored = 8 * sum(tensor.nbytes for tensor in planned)
        return {
            "format": "gguf", "type": kind, "file": name, "sha256": digest_file(file), "size": file.stat().st_size,
            "size_of_model": sum(f.stat().st_size for f in self.export.weights.files if f.suffix == ".safetensors"),
            "bits_per_weight": round(stored / sum(math.prod(tensor.shape) for tensor in planned), 3),
            "tensors": dict(sorted(counts.items())), "parity": parity,
        }  # fmt: skip

    def ledger(self, kind: str) -> dict[str, Any]:
        """Tensors that stayed wider than was asked, by reason."""
        ledger = Ledger("tensors")
        for tensor in self.export.plan(kind):
            ledger.take(1)
            ledger.keep()
            if tensor.reason:
                ledger.change(tensor.reason)
        return {"name": f"tensors of {kind}", **ledger.as_json()}

    def start_of(self, file: Path) -> Start:
        """The file as a model to load; that it reads text as the uncompressed model does is proved here."""
        from hermitcrab.tasks import Start, make_task

        names = [name for name in (file.name, SETTINGS) if (file.parent / name).exists()]
        start = Start(
            {**self.base, "kind": "gguf", "name": file.name, "files": describe_files(file.parent, names)}, file
        )
        task = make_task(self.part.task, start, self.part.train)
        check_inputs(task, self.task, self.rows, file.name)
        recorded, found = self.metrics[0]["prompt_digest"], task.asked(self.rows, self.part.evaluate)
        if found != recorded:
            raise HermitcrabError(
                f"{file.name}: would be asked with other prompts ({found}) than evaluate asked ({recorded})"
            )
        return start

    @cached_property
    def derived(self) -> Start:
        from hermitcrab.evaluate.asking import derived_start

        return derived_start(self.base, self.job.inputs["train"])

    @cached_property
    def task(self) -> Task:
        """The task of the uncompressed model."""
        from hermitcrab.tasks import make_task

        return make_task(self.part.task, self.derived, self.part.train)

    def logits(self, start: Start) -> torch.Tensor:
        """Of a model in float32, on the task's probes."""
        from hermitcrab.evaluate.asking import load

        task, model = load(self.part.task, start, self.part.train, "float32")
        return task.probe_logits(model, task.probes())

    @cached_property
    def references(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the uncompressed model and of its base."""
        from hermitcrab.evaluate.asking import base_start

        base = base_start(self.base, self.job.base_path, self.job.inputs["train"])
        return self.logits(self.derived), self.logits(base)

    def distance(self, kind: str, start: Start) -> dict[str, float]:
        """How far the file's distributions are from those of the uncompressed model, and from the base's."""
        from hermitcrab.train.parity import compare

        path = self.job.draft.work / kind / "probes.json"
        if not path.exists():
            with progress(f"comparing {kind}"):
                derived, base = self.references
                logits = self.logits(start)
                found = {**compare(derived, logits), "mean_kl_to_base": compare(base, logits)["mean_kl"]}
            check_distance(kind, found)
            write_json(path, found)
        return read_json(path)

    def answers(self, kind: str, start: Start) -> pa.Table:
        from hermitcrab.evaluate.asking import ask, load

        def make() -> pa.Table:
            task, model = load(self.part.task, start, self.part.train, self.part.train.final_dtype)
            return ask(task, model, self.asked_rows, self.part.evaluate)

        return self.keeper.get(f"{kind} {short(digest_json(start.base['files']))}", "test", make)

    def parity(self, kind: str, start: Start) -> dict[str, Any]:
        """The compressed model minus the uncompressed one on the same rows, with what turned, and the distance on probes."""
        import pyarrow.compute as pc

        from hermitcrab.evaluate.answers import read
        from hermitcrab.evaluate.value_added import compare

        distance, part = self.distance(kind, start), self.part.evaluate
        table = self.answers(kind, start)
        before = self.uncompressed.filter(pc.is_in(self.uncompressed["row_id"], table["row_id"]))
        name = self.metrics[0]["name"]
        found = compare(
            {kind: table, "uncompressed": before}, metrics=[name], labels=self.labels, derived=kind, base="uncompressed",
            confidence=part.confidence, resamples=part.resamples, seed=part.seed,
        )  # fmt: skip
        (pair,) = found["pairs"]
        a, b = read(table, kind), read(before, "uncompressed")
        changed = sum(x != y for x, y in zip(a.prediction, b.prediction, strict=True))
        return {
            "n": found["n"], "metric": name, "uncompressed": pair["b_value"], "compressed": pair["a_value"],
            "difference": pair["difference"], "low": pair["low"], "high": pair["high"], "confidence": part.confidence,
            "gained": pair["gained"], "lost": pair["lost"],
            "flips": None if all(p is None for p in a.prediction) else changed, **distance,
        }  # fmt: skip


def check_inputs(compressed: Task, uncompressed: Task, rows: pa.Table, name: str) -> None:
    """Both tasks make the same of every text.

    Raises:
        HermitcrabError: they do not.
    """
    found, wanted = compressed.inputs(rows), uncompressed.inputs(rows)
    differ = [what for what in wanted if found.get(what) != wanted[what]]
    if differ:
        raise HermitcrabError(
            f"{name}: its tokenizer is not that of the model: {len(differ):,} of {len(wanted):,} texts become other ids, "
            f"as {differ[0]} ({str(found.get(differ[0]))[:60]}, expected {str(wanted[differ[0]])[:60]})"
        )


def check_distance(kind: str, found: dict[str, float]) -> None:
    """The file still is the derived model.

    Raises:
        HermitcrabError: it is nearer to the base, or its logits are no numbers.
    """
    if not all(math.isfinite(value) for value in found.values()):
        raise HermitcrabError(
            f"compress.gguf: the model in {kind} gives logits that are no numbers; choose a wider type"
        )
    if found["mean_kl_to_base"] < found["mean_kl"]:
        raise HermitcrabError(
            f"compress.gguf: {kind} rounds away what training added: mean KL to the base {found['mean_kl_to_base']:.2e}, to the "
            f"trained model {found['mean_kl']:.2e} nats; choose a wider type, or train for longer"
        )


STAGE = Stage(
    "compress",
    ("collect", "prepare", "train", "evaluate"),
    ("stages/compress.py", "evaluate", "tasks", "models", "train/parity.py", "lineage/licenses.py",
     "data/images.py", "data/tables.py", "data/packing.py", "data/ledger.py", "digest.py"),
    slice_of,
    run,
)  # fmt: skip
