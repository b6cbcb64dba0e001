"""validate: a trained model answers the validation rows, so that one of several can be chosen. Test rows are not opened here.

No stage of a run: `tune` reaches it once a trial, as it reaches `train`, so that an answer given once is given for good.
"""

from __future__ import annotations

from hermitcrab.evaluate.asking import ask, derived_start, load
from hermitcrab.recipe import Evaluate, Part, Recipe, Train
from hermitcrab.stages import Job, Stage
from hermitcrab.tasks import load_task, metrics_asked


class ValidateSlice(Part):
    task: str
    train: Train
    evaluate: Evaluate


def slice_of(recipe: Recipe) -> ValidateSlice:
    return ValidateSlice(task=recipe.task, train=recipe.train.unprofiled(), evaluate=recipe.evaluate)


def run(job: Job) -> None:
    import pyarrow.parquet as pq

    from hermitcrab.evaluate.metrics import measure

    part: Evaluate = job.part.evaluate
    trained = job.inputs["train"]
    rows = pq.read_table(job.inputs["prepare"].payload / "validation.parquet")
    start = derived_start(job.inputs["collect"].read("base.json"), trained)
    task, model = load(job.part.task, start, job.part.train, job.part.train.final_dtype)
    table = ask(task, model, rows, part)
    told = table.schema.metadata or {}
    labels = load_task(job.part.task).labels(part, trained.read("training.json")["fitted"])
    metrics = measure(
        table, metrics_asked(load_task(job.part.task), part), labels, model="derived", split="validation",
        prompt_digest=told.get(b"prompt_digest", b"").decode() or None,
        confidence=part.confidence, resamples=part.resamples, seed=part.seed,
    )  # fmt: skip
    job.draft.write("metrics.json", metrics)
    (job.draft.payload / "predictions").mkdir()
    pq.write_table(table.replace_schema_metadata(None), job.draft.payload / "predictions" / "validation.parquet")
    job.draft.facts["cpu_seconds_per_answer"] = {"derived": float(told[b"cpu_seconds"]) / rows.num_rows}


STAGE = Stage(
    "validate",
    ("collect", "prepare", "train"),
    (
        "stages/validate.py",
        "evaluate",
        "tasks",
        "models",
        "data/images.py",
        "data/tables.py",
        "data/packing.py",
        "data/ledger.py",
        "digest.py",
    ),
    slice_of,
    run,
)
