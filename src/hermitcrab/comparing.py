"""Any two models asked the same rows: a package, a run, a folder, a GGUF file, a hub's model beside another.

rows     a file with columns as a source has them, or the test rows of a run
models   packages are verified; each is asked in its own template, both in one precision
answers  kept in the store by what was asked of what, so that no model is asked twice
verdict  the statistics of `evaluate`: paired by row, with intervals, gained and lost rows, and a sentence
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.data.files import KINDS
from hermitcrab.data.ledger import Ledger
from hermitcrab.data.reading import check_sources, read_rows
from hermitcrab.data.tables import FORMATS, rows_of, schema, source_digest
from hermitcrab.digest import digest_json, short
from hermitcrab.errors import UsageError, did_you_mean, needs
from hermitcrab.progress import say
from hermitcrab.recipe import Evaluate, Source
from hermitcrab.references import fetch, resolve
from hermitcrab.serve.opening import Opened, open_model
from hermitcrab.stages import code_digest
from hermitcrab.store import Store, disk_errors
from hermitcrab.tasks import load_task, metrics_asked, outside_code

if TYPE_CHECKING:
    import pyarrow as pa

CODE = ("comparing.py", "evaluate/asking.py", "tasks", "models", "data/packing.py", "data/ledger.py", "digest.py")


@dataclass(frozen=True)
class How:
    """How two models are compared.

    Attributes:
        choices: what both choose from, by likelihood; empty: what a package records, else answers are generated.
        type, labels, columns, format: of the file of rows, as a recipe's source has them.
        metrics: the first that both can give decides; empty: all, in the order of a recipe's default.
        rows: ask only so many, drawn by their ids; None: all.
        key, base_key: public keys of the signers of the derived model and of the base.
    """

    choices: Sequence[str] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    format: str = "prompt-completion"
    type: str = "auto"
    labels: str | None = None
    metrics: Sequence[str] = ()
    rows: int | None = None
    max_new_tokens: int = 64
    key: Path | None = None
    base_key: Path | None = None
    unverified: bool = False


def compare_models(base: str, derived: str, on: str, store: Store, how: How | None = None) -> dict[str, Any]:
    """`comparison.json` of two models on rows; `models`, `metrics` and `on` say what was measured.

    Args:
        base, derived: as `crab predict` takes a model; differences are derived minus base.
        on: a file of rows or a reference to one, or `run:NAME/prepare` for the test rows of a run.

    Raises:
        UsageError: no such model, file, column, metric or choice.
        HermitcrabError, Contradiction: a package that does not verify, rows that cannot be asked.
    """
    from hermitcrab.evaluate.metrics import measure
    from hermitcrab.evaluate.value_added import compare

    how = how or How()
    for module in ("torch", "transformers"):
        needs(module, "train")
    rows, about = read_on(on, store, how)
    models = {
        "derived": open_model(derived, store, how.key, how.unverified, bare=True),
        "base": open_model(base, store, how.base_key, how.unverified, bare=True),
    }
    task = task_of(models, about)
    part = asking(how, about, rows, models, task)
    precision = models["derived"].precision
    labels = task.labels(part, models["derived"].start.fitted)
    tables = {name: answers(name, model, part, precision, rows, store) for name, model in models.items()}
    prompts = {name: (t.schema.metadata or {}).get(b"prompt_digest", b"").decode() for name, t in tables.items()}
    settings: dict[str, Any] = {"confidence": part.confidence, "resamples": part.resamples, "seed": part.seed}
    found = compare(tables, metrics=metrics_asked(task, part), labels=labels, prompts=prompts, own_prompts=True,
                    prompted=task.prompted, **settings)  # fmt: skip
    metrics: list[dict[str, Any]] = []
    for name, table in tables.items():
        metrics += measure(
            table,
            metrics_asked(task, part),
            labels,
            model=name,
            split=about["split"],
            prompt_digest=prompts[name],
            **settings,
        )
    asked = "likelihood" if about["format"] == "text" else "choices" if labels else "generation"
    return {
        **found,
        "on": about,
        "asked": asked,
        "choices": labels,
        "precision": precision,
        "models": {
            name: _described({"base": base, "derived": derived}[name], model, prompts[name])
            for name, model in models.items()
        },
        "metrics": metrics,
    }


def _described(reference: str, opened: Opened, prompts: str) -> dict[str, Any]:
    return {
        "name": opened.name,
        "reference": reference,
        "digest": opened.base["digest"],
        "verified": opened.verified,
        "template_digest": opened.encoder.template_digest if opened.encoder else None,
        "prompt_digest": prompts,
    }


def task_of(models: Mapping[str, Opened], about: Mapping[str, Any]) -> Any:
    """The class of the one task of both models (UsageError where they differ, or do not take such rows)."""
    names = {opened.task for opened in models.values()}
    if len(names) > 1:
        told = ", ".join(f"{opened.name} does {opened.task}" for opened in models.values())
        raise UsageError(f"two models of one task are compared. Received: {told}")
    task = load_task(names.pop())
    if about["format"] not in task.formats:
        raise UsageError(
            f"{about['uri']}: {task.name} takes rows of format {' or '.join(task.formats)}. Received: {about['format']}"
        )
    return task


def read_on(on: str, store: Store, how: How) -> tuple[pa.Table, dict[str, Any]]:
    """The rows to ask, by row id, and where they come from.

    Raises:
        UsageError: no such file, run, column or format.
        HermitcrabError: a bad row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if how.format not in FORMATS:
        raise UsageError(f"no format is named `{how.format}`{did_you_mean(how.format, FORMATS)}")
    if how.type not in (types := ("auto", *KINDS)):
        raise UsageError(f"no type of file is named `{how.type}`{did_you_mean(how.type, types)}")
    if on.startswith("run:"):
        name, _, stage = on.removeprefix("run:").partition("/")
        if stage not in ("", "prepare"):
            raise UsageError(f"{on}: the rows of a run are those of its stage prepare; expected run:{name}/prepare")
        if how.columns:
            raise UsageError(f"{on}: the rows of a run have their columns already. Received: {dict(how.columns)}")
        if how.labels is not None or how.type != "auto":
            raise UsageError(f"{on}: the rows of a run are read already; --labels and --type are for a file of rows")
        resolved = resolve(f"run:{name}/prepare", None, store)
        table = pq.read_table(fetch(resolved, store) / "test.parquet")
        fitting = [form for form, columns in FORMATS.items() if set(columns) <= set(table.column_names)]
        form = max(fitting, key=lambda form: len(FORMATS[form]))  # a text with a label is also a text
        split, digest = "test", resolved.identity
    else:
        # The reader of every source; nothing is made of these rows that a license could bind.
        source = Source.model_validate({
            "path": on, "license": "LicenseRef-not-asked", "format": how.format, "columns": dict(how.columns),
            "type": how.type, "labels": how.labels,
        })  # fmt: skip
        check_sources([source])
        files = [resolve(name, None, store) for name in (on, how.labels) if name is not None]
        path, *labels = (fetch(file, store) for file in files)
        resolved, digest = files[0], source_digest([file.identity for file in files])
        found = read_rows(source, path, digest, resolved.uri, Ledger("rows"), labels=labels[0] if labels else None)
        table, form, split = pa.Table.from_pylist(list(found), schema(how.format)), how.format, "rows"
    table = table.sort_by("row_id")
    if how.rows is not None:
        table = table.slice(0, how.rows)  # ids are digests: the first of them are a draw
    return table, {"uri": resolved.uri, "digest": digest, "split": split, "format": form, "rows": table.num_rows}


def asking(how: How, about: Mapping[str, Any], rows: pa.Table, models: Mapping[str, Opened], task: Any) -> Evaluate:
    """How both are asked.

    Raises:
        UsageError: packages that record other choices, references that are none of the answers, or what means nothing to the task.
    """
    given = {"choices": bool(how.choices), "max_new_tokens": how.max_new_tokens != How.max_new_tokens}
    for name in (name for name, said in given.items() if said and f"evaluate.{name}" in task.ignored):
        option, value = "--" + name.replace("_", "-"), getattr(how, name)
        raise UsageError(f"{option}: means nothing to {task.name}; leave it out. Received: {value}")
    recorded = {name: opened.choices for name, opened in models.items() if opened.choices}
    choices = list(how.choices) or next(iter(recorded.values()), [])
    if about["format"] == "text":
        if how.choices:
            raise UsageError("--choices: rows of format `text` ask nothing; their likelihood is what is compared")
        choices = []
    elif not how.choices and len({tuple(sorted(each)) for each in recorded.values()}) > 1:
        raise UsageError(f"the two packages choose from other answers ({recorded}); say which with --choices")
    if len(choices) == 1 or len(set(choices)) < len(choices):
        raise UsageError(f"choices are at least two, each once. Received: {choices}")
    if unknown := next((name for name in how.metrics if name not in task.metrics), None):
        raise UsageError(f"{task.name} has no metric `{unknown}`{did_you_mean(unknown, task.metrics)}")
    metrics = {"metrics": list(how.metrics)} if how.metrics else {}  # else those of a recipe that names none
    part = Evaluate.model_validate({"choices": choices, "max_new_tokens": how.max_new_tokens, **metrics})
    labels, theirs = (task.labels(part, models[name].start.fitted) for name in ("derived", "base"))
    if sorted(labels) != sorted(theirs):
        raise UsageError(f"the two models give other answers: {labels} and {theirs}; nothing is compared")
    if labels and (odd := sorted(set(task.answers(rows)) - set(labels))):
        known = "choices" if part.choices else "labels of the models"
        raise UsageError(
            f"{about['uri']}: references {odd[:3]} (of {len(odd)}) are none of the {known}. Expected: {labels[:20]}"
        )
    return part


def answers(name: str, opened: Opened, part: Evaluate, precision: str, rows: pa.Table, store: Store) -> pa.Table:
    """The model's answers: from the store where it was asked the same before, else asked now and kept there."""
    import pyarrow.parquet as pq

    from hermitcrab.evaluate.asking import ask, load

    read = ("choices", "max_new_tokens", "batch_size", "sequence_length")
    outside = outside_code(opened.task)
    asked = {
        "code": code_digest(CODE),
        **({"task_code": outside} if outside else {}),
        "slice": {
            "task": opened.task, "precision": precision, "train": opened.train.model_dump(mode="json"),
            "fitted": opened.start.fitted, "rows": digest_rows(rows), **{field: getattr(part, field) for field in read},
        },
        "inputs": [{"stage": opened.base["uri"], "digest": opened.base["digest"]}],
    }  # fmt: skip
    key = digest_json({"stage": "answers", **asked})
    with store.lock(key, "answers"):
        artifact = store.find(key)
        if artifact is None:
            say(f"compare: {name} ({opened.name}) is asked {rows.num_rows:,} rows")
            with store.draft("answers", key, asked) as draft, disk_errors("answers: cannot write"):
                task, model = load(opened.task, opened.start, opened.train, precision)
                table = ask(task, model, rows, part)
                pq.write_table(table, draft.payload / "answers.parquet")
                artifact = store.seal(draft)
        else:
            say(f"compare: {name} ({opened.name}) was asked before, {short(artifact.digest)}")
    artifact.check()
    return pq.read_table(artifact.payload / "answers.parquet")


def digest_rows(rows: pa.Table) -> str:
    """Of what is asked, whatever file it came from."""
    return digest_json([{k: v.hex() if isinstance(v, bytes) else v for k, v in row.items()} for row in rows_of(rows)])
