"""collect: the base is described, every source is read into rows of one format; a row that is not kept has a reason.

What is recorded of a source is the digest of the bytes that were read, whatever its name.
"""

from __future__ import annotations

from typing import Any, Literal

from hermitcrab.data.files import kind_of
from hermitcrab.data.ledger import Ledger
from hermitcrab.data.rows import check_sources, read_rows
from hermitcrab.data.tables import SPLITS, TableWriter, schema, source_digest
from hermitcrab.digest import digest_file
from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import progress
from hermitcrab.recipe import Base, Part, Recipe, Source
from hermitcrab.stages import Job, Stage, place_of


class Collect(Part):
    base: Base
    use: str
    task: str
    train: list[Source]
    validation: list[Source]
    test: list[Source]
    on_error: Literal["stop", "drop"]


def slice_of(recipe: Recipe) -> Collect:
    """What `collect` reads of a recipe.

    Raises:
        UsageError: for sources that cannot be right, before anything is fetched or opened.
    """
    data = recipe.data
    check_sources([*data.train, *data.validation, *data.test])
    return Collect(
        base=recipe.base, use=recipe.use, task=recipe.task,
        train=data.train, validation=data.validation, test=data.test, on_error=data.on_error,
    )  # fmt: skip


def run(job: Job) -> None:
    from hermitcrab.models.base import describe
    from hermitcrab.tasks import load_task

    base: Base = job.part.base
    reads_text = load_task(job.part.task).reads_text
    job.draft.write("base.json", describe(place_of(base, job.places), job.resolved[base.path], base, reads_text))
    collect_rows(job)


def collect_rows(job: Job) -> None:
    """`<split>.parquet` for every split that has sources, `sources.json` and `ledger.json`."""
    listed, ledgers = [], []
    for split in SPLITS:
        if sources := getattr(job.part, split):
            ledger = Ledger("rows")
            described = _collect_split(job, split, sources, ledger)
            listed += described
            ledgers.append({"name": f"{split} rows", **ledger.as_json()})
    job.draft.write("sources.json", listed)
    job.draft.write("ledger.json", ledgers)


def _collect_split(job: Job, split: str, sources: list[Source], ledger: Ledger) -> list[dict[str, Any]]:
    described: list[dict[str, Any]] = []
    taken = set[str]()
    with TableWriter(job.draft.payload / f"{split}.parquet", schema(sources[0].format)) as out:
        for source in sources:
            abouts, counts = _about(job, split, source), Ledger("rows")
            path, uri = job.places[source.path], abouts[0]["uri"]
            digest = source_digest([about["sha256"] for about in abouts])
            labels = job.places[source.labels] if source.labels else None
            for row in read_rows(source, path, digest, uri, counts, job.part.on_error, labels):
                if row["row_id"] in taken:
                    raise HermitcrabError(
                        f"{source.path}: row {row['row_id']} comes from two sources of data.{split}; "
                        "let `where` keep them apart, or name the file once"
                    )
                taken.add(str(row["row_id"]))
                out.add(row)
            for about, reference in zip(abouts, files_of(source), strict=True):
                if digest_file(job.places[reference]) != about["sha256"]:
                    raise HermitcrabError(f"{reference}: changed while it was being read; run again")
                described.append({**about, "rows_read": counts.taken, "rows_kept": counts.kept})
            ledger.merge(counts)
    return described


def files_of(source: Source) -> dict[str, str | None]:
    """The files of a source, and the digest that each must have."""
    labels = {source.labels: source.labels_sha256} if source.labels else {}
    return {source.path: source.sha256, **labels}


def _about(job: Job, split: str, source: Source) -> list[dict[str, Any]]:
    """What is known of each file of a source before its rows are read.

    Raises:
        HermitcrabError: for a file that is not there, or is not the one that the recipe means.
    """
    kind, abouts = kind_of(source.path, source.type), []
    for reference, wanted in files_of(source).items():
        path = job.places[reference]
        try:
            size = path.stat().st_size
            with progress(f"digesting {reference}", size, "bytes") as bar:
                digest = digest_file(path, bar.add)
        except OSError as error:
            raise HermitcrabError(f"{reference}: cannot be read: {error.strerror}") from error
        if wanted not in (None, digest):
            raise HermitcrabError(
                f"{reference}: is not the file that the recipe means. Received: {digest}, expected: {wanted}"
            )
        found = job.resolved.get(reference)
        if found and found.kind == "file" and found.identity != digest:
            raise HermitcrabError(f"{reference}: changed while it was being read; run again")
        abouts.append({
            "uri": found.uri if found else reference, "split": split, "sha256": digest, "size": size,
            "license": source.license, "type": kind if reference == source.path else f"{kind} labels", "format": source.format,
        })  # fmt: skip
    return abouts


STAGE = Stage(
    name="collect",
    inputs=(),
    code=(
        "stages/collect.py", "data/files.py", "data/readers.py", "data/rows.py", "data/windows.py",
        "data/idx.py", "data/images.py", "data/tables.py",
        "data/ledger.py", "models/base.py", "models/ggml.py", "models/tokenizer.py", "models/gguf_tokenizer.py", "models/chat.py",
        "models/formats", "models/architectures",
    ),
    slice=slice_of,
    run=run,
)  # fmt: skip
