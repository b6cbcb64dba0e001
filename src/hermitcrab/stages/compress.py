"""compress: the derived model in smaller forms, each loaded back and compared with the model that it was made from.

The forms are `hermitcrab.compress`'s; here a run's artifacts become what they are made from and measured on.
"""

from __future__ import annotations

from typing import Any

from hermitcrab.errors import needs
from hermitcrab.recipe import Compress, Evaluate, Part, Recipe, Train
from hermitcrab.stages import Job, Stage


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


def run(job: Job) -> None:
    entries: list[dict[str, Any]] = []
    ledgers: list[dict[str, Any]] = []
    if job.part.compress.anything:
        for module in ("torch", "transformers"):
            needs(module, "train")
        from hermitcrab.compress.work import Compression

        work = Compression(source_of(job), reference_of(job), job.draft.work, job.draft.payload)
        work.run(job.draft.mark)
        entries, ledgers = work.entries, work.ledgers
        job.draft.facts["compressed"] = work.facts
    job.draft.write("compression.json", entries)
    job.draft.write("ledger.json", ledgers)


def source_of(job: Job) -> Any:
    """What the forms are made from."""
    import pyarrow.parquet as pq

    from hermitcrab.compress import Source, about
    from hermitcrab.compress.parity import smallest
    from hermitcrab.evaluate.asking import base_start, derived_start
    from hermitcrab.lineage.licenses import result_license

    part: CompressSlice = job.part
    base, rows = job.inputs["collect"].read("base.json"), job.inputs["prepare"].payload
    licenses = [source["license"] for source in job.inputs["collect"].read("sources.json")]
    return Source(
        model=job.inputs["train"].payload / "model", name=part.name, task=part.task,
        start=derived_start(base, job.inputs["train"]), base_start=base_start(base, job.base_path, job.inputs["train"]),
        train=part.train, evaluate=part.evaluate, compress=part.compress, base=base,
        about=about(part.name, result_license(base["license"]["used"], licenses, part.license), base),
        calibration=smallest(pq.read_table(rows / "train.parquet"), part.compress.calibration_rows),
        validation=pq.read_table(rows / "validation.parquet"), metric=metrics_of(job)[0]["name"],
    )  # fmt: skip


def reference_of(job: Job) -> Any:
    """What `evaluate` found of the uncompressed model."""
    import pyarrow.parquet as pq

    from hermitcrab.compress.parity import Reference

    metrics = metrics_of(job)
    return Reference(
        rows=pq.read_table(job.inputs["prepare"].payload / "test.parquet"),
        answers=pq.read_table(job.inputs["evaluate"].payload / "predictions" / "derived.parquet"),
        metrics=tuple(m["name"] for m in metrics), prompt_digest=metrics[0]["prompt_digest"],
    )  # fmt: skip


def metrics_of(job: Job) -> list[dict[str, Any]]:
    """Of the uncompressed model, the deciding one first."""
    return [m for m in job.inputs["evaluate"].read("metrics.json") if m["model"] == "derived"]


STAGE = Stage(
    "compress",
    ("collect", "prepare", "train", "evaluate"),
    ("stages/compress.py", "compress", "evaluate", "tasks", "models", "train/parity.py", "lineage/licenses.py",
     "data/images.py", "data/tables.py", "data/packing.py", "data/ledger.py", "digest.py"),
    slice_of,
    run,
)  # fmt: skip
