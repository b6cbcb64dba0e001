"""evaluate: the derived model, its base and simple baselines answer the same held-out rows; metrics and the comparison come out.

Answers are kept in the draft as each model gives them, so a killed evaluation goes on with the next model.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from hermitcrab.data.ledger import Ledger
from hermitcrab.digest import digest_json
from hermitcrab.evaluate.asking import Keeper, ask, base_start, derived_start, load
from hermitcrab.progress import progress
from hermitcrab.recipe import Evaluate, Part, Recipe, Train
from hermitcrab.stages import Job, Stage
from hermitcrab.store import Artifact, process_cpu
from hermitcrab.tasks import check_recipe, load_task, metrics_asked

if TYPE_CHECKING:
    import pyarrow as pa

CALIBRATED = {"base": "base (calibrated)", "derived": "derived (calibrated)"}


class EvaluateSlice(Part):
    task: str
    train: Train
    evaluate: Evaluate


def slice_of(recipe: Recipe) -> EvaluateSlice:
    """What `evaluate` reads of a recipe.

    Raises:
        UsageError: for what its rows could never be asked, before anything is trained.
    """
    check_recipe(recipe)
    return EvaluateSlice(task=recipe.task, train=recipe.train.unprofiled(), evaluate=recipe.evaluate)


def check_rows(recipe: Recipe, prepared: Artifact) -> None:
    """What the rows themselves rule out, told before the training that would have been in vain (HermitcrabError)."""
    load_task(recipe.task).check_rows(recipe.evaluate, read_splits(prepared))


def read_splits(prepared: Artifact) -> dict[str, pa.Table]:
    import pyarrow.parquet as pq

    return {name: pq.read_table(prepared.payload / f"{name}.parquet") for name in ("train", "validation", "test")}


def run(job: Job) -> None:
    task = load_task(job.part.task)
    labels = task.labels(job.part.evaluate, job.inputs["train"].read("training.json")["fitted"])
    splits = read_splits(job.inputs["prepare"])
    asked = Asked(task, job.part.evaluate, labels, splits, Keeper(job.draft.work / "answers", "evaluate"))
    noise = asked.models(job)
    asked.calibrate()
    asked.baselines()
    _write(job, asked, noise)


class Asked:
    """Tables of answers by model: on the test rows, and on validation rows where a choice is made on them."""

    def __init__(self, task: Any, part: Evaluate, labels: list[str], splits: dict[str, pa.Table], keeper: Keeper):
        self.task, self.part, self.labels, self.splits, self.keeper = task, part, labels, splits, keeper
        self.test: dict[str, pa.Table] = {}
        self.validation: dict[str, pa.Table] = {}
        self.fitted: dict[str, Any] = {}

    @property
    def holds_out(self) -> bool:
        """Are validation rows answered too? They choose the strongest base variant and fit label offsets."""
        return bool(self.splits["validation"].num_rows) and (self.part.calibrate or self.part.few_shot > 0)

    def models(self, job: Job) -> dict[str, Any] | None:
        """Derived and base, one in memory at a time. Returns the noise floor of the derived model."""
        noise = None
        for name in ("derived", "base") if self.part.against == "base" else ("derived",):
            loaded: list[Any] = []  # loaded at the first question that is not already answered
            self._ask(job, name, name, None, loaded)
            if name == "derived" and self.part.noise_rows and self.task.noisy:
                noise = self._noise(job, loaded)
            if name == "base" and self.part.few_shot:
                shots = self.task.shots(self.part, self.splits["train"])
                self._ask(job, name, f"base ({self.part.few_shot}-shot)", shots, loaded)
        return noise

    def _ask(self, job: Job, which: str, name: str, shots: pa.Table | None, loaded: list[Any]) -> None:
        for split, tables in (("validation", self.validation), ("test", self.test)):
            if split == "test" or self.holds_out:
                rows = self.splits[split]
                tables[name] = self.keeper.get(name, split, partial(_predict, job, which, loaded, rows, shots))

    def _noise(self, job: Job, loaded: list[Any]) -> dict[str, Any]:
        """The same rows again with another batch size: what differs is arithmetic, not the model."""
        from hermitcrab.evaluate.value_added import noise_floor

        rows = self.splits["test"].slice(0, self.part.noise_rows)
        other = self.part.batch_size // 4 or 2 * self.part.batch_size
        again = self.keeper.get(
            "derived", f"test (batches of {other})", partial(_predict, job, "derived", loaded, rows, None, other)
        )
        first = self.test["derived"].slice(0, rows.num_rows)
        column = "score" if first["score"].null_count == 0 else "nll"
        if column not in first.column_names:
            return {}
        found = noise_floor(first[column].to_pylist(), again[column].to_pylist(),
                            first["prediction"].to_pylist(), again["prediction"].to_pylist())  # fmt: skip
        return {**found, "batch_sizes": [self.part.batch_size, other]}

    def calibrate(self) -> None:
        """The same scores with the label bias taken out that validation rows show."""
        if not self.part.calibrate:
            return
        import numpy as np
        import pyarrow as pa

        from hermitcrab.evaluate.calibration import apply, fit_offsets

        for name in list(self.validation):
            held = self.validation[name]
            truth = [self.labels.index(r) for r in held["reference"].to_pylist()]
            offsets = fit_offsets(np.array(held["scores"].to_pylist()), truth)
            label = CALIBRATED.get(name, name.replace(")", ", calibrated)"))
            self.fitted[label] = {
                "offsets": dict(zip(self.labels, offsets.tolist(), strict=True)),
                "rows": held.num_rows,
            }
            for tables in (self.test, self.validation):
                moved = apply(np.array(tables[name]["scores"].to_pylist()), offsets)
                tables[label] = pa.table({
                    "row_id": tables[name]["row_id"],
                    "reference": tables[name]["reference"],
                    "prediction": [self.labels[i] for i in moved.argmax(1)],
                    "score": moved.max(1),
                    **({"document": tables[name]["document"]} if "document" in tables[name].column_names else {}),
                }).replace_schema_metadata({k: v for k, v in tables[name].schema.metadata.items() if k != b"cpu_seconds"})  # fmt: skip

    def baselines(self) -> None:
        if not self.part.baselines:
            return
        import pyarrow as pa

        from hermitcrab.evaluate.baselines import BASELINES

        known = {**BASELINES, **self.task.own_baselines}
        train, validation, test = (self.splits[name] for name in ("train", "validation", "test"))
        answers = self.task.answers(test)
        for name in self.part.baselines:
            before = process_cpu()
            with progress(f"baseline {name}"):
                found = known[name](self.task, train, validation, test)
            spent = process_cpu() - before
            self.fitted[name] = found.fitted
            columns = {"row_id": test["row_id"], "reference": answers, "prediction": found.predictions,
                       "score": pa.array(found.scores, pa.float64()), **found.columns}  # fmt: skip
            if "document" in test.column_names:
                columns.setdefault("document", test["document"])  # a task may group rows itself
            self.test[name] = pa.table(columns).replace_schema_metadata(
                {"prompt_digest": digest_json(self.task.texts(test)), "cpu_seconds": str(spent)}
            )


def _predict(
    job: Job, which: str, loaded: list[Any], rows: pa.Table, shots: pa.Table | None, size: int | None = None
) -> Any:
    if not loaded:
        loaded.extend(_load(job, which))
    task, model = loaded
    return ask(task, model, rows, job.part.evaluate, shots, size)


def _load(job: Job, which: str) -> tuple[Any, Any]:
    """Task and model, in the final precision: exactly the bytes that train sealed, or those of the base."""
    base, trained = job.inputs["collect"].read("base.json"), job.inputs["train"]
    start = derived_start(base, trained) if which == "derived" else base_start(base, job.base_path, trained)
    return load(job.part.task, start, job.part.train, job.part.train.final_dtype)


def _write(job: Job, asked: Asked, noise: dict[str, Any] | None) -> None:
    import pyarrow.parquet as pq

    from hermitcrab.evaluate.answers import read
    from hermitcrab.evaluate.classes import by_class
    from hermitcrab.evaluate.metrics import find, measure, point
    from hermitcrab.evaluate.value_added import compare, contamination

    part, draft = asked.part, job.draft
    wanted = metrics_asked(asked.task, part)
    how: dict[str, Any] = {"confidence": part.confidence, "resamples": part.resamples, "seed": part.seed}
    digests: dict[str, Any] = {
        name: (t.schema.metadata or {}).get(b"prompt_digest", b"").decode() or None for name, t in asked.test.items()
    }
    metrics: list[dict[str, Any]] = []
    (draft.payload / "predictions").mkdir()
    for name, table in asked.test.items():
        metrics += measure(table, wanted, asked.labels, model=name, prompt_digest=digests[name], **how)
        pq.write_table(
            table.replace_schema_metadata(None), draft.payload / "predictions" / f"{file_name(name)}.parquet"
        )
    first = metrics[0]["name"] if metrics else None
    # Calibrated answers have no likelihood of their own: they take part where the deciding metric is about answers.
    held = {n: point(t, first, asked.labels) for n, t in asked.validation.items()
            if n.startswith("base") and first and find(first).given(read(t, n), asked.labels)}  # fmt: skip
    seen = contamination(*without_frame(*(asked.task.texts(asked.splits[split]) for split in ("train", "test"))))
    if not asked.task.reads_text:
        seen |= {"ngram": None, "words": None, "short": None}  # of digests, only equality means something
    opponent = part.against if part.against in asked.test else "base"
    comparison = compare(asked.test, held or None, metrics=wanted, labels=asked.labels, prompts=digests, base=opponent,
                         prompted=opponent == "base" and asked.task.prompted, contamination=seen, noise=noise, **how)  # fmt: skip
    ledgers = []
    for name, table in asked.test.items():
        if b"prompts_cut" in (told := table.schema.metadata or {}):
            ledger = Ledger("rows")
            ledger.take(table.num_rows)
            ledger.keep(table.num_rows)
            ledger.change("prompt cut", int(told[b"prompts_cut"]))
            ledger.change("answer not ended", int(told.get(b"not_stopped", 0)))
            ledgers.append({"name": f"test rows asked of {name}", **ledger.as_json()})
    if asked.labels:
        draft.write("classes.json", by_class(asked.test, asked.labels, part.confidence))
    draft.write("metrics.json", metrics)
    draft.write("comparison.json", {**comparison, "fitted": asked.fitted})
    draft.write("ledger.json", ledgers)
    seconds = {
        n: t.schema.metadata[b"cpu_seconds"]
        for n, t in asked.test.items()
        if b"cpu_seconds" in (t.schema.metadata or {})
    }
    draft.facts["cpu_seconds_per_answer"] = {n: float(s) / asked.test[n].num_rows for n, s in seconds.items()}


def file_name(model: str) -> str:
    """`base (4-shot, calibrated)` → `base-4-shot-calibrated`."""
    return "-".join("".join(c if c.isalnum() else " " for c in model).split())


def without_frame(*lists: list[str]) -> list[list[str]]:
    """The texts without the words that all begin and end with: an instruction that every prompt repeats is no contamination."""
    split = [[text.split(" ") for text in texts] for texts in lists]
    everything = [words for texts in split for words in texts]
    head = _alike(everything)
    tail = _alike([words[head:][::-1] for words in everything])
    return [[" ".join(words[head : len(words) - tail]) for words in texts] for texts in split]


def _alike(lists: list[list[str]]) -> int:
    """How many words all lists begin with; of a single list, none is called common."""
    if len(lists) < 2:
        return 0
    first, last = min(lists), max(lists)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


STAGE = Stage(
    "evaluate",
    ("collect", "prepare", "train"),
    (
        "stages/evaluate.py",
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
