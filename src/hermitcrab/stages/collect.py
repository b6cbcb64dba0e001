"""collect: the base is described, every source is read into rows of one format; a row that is not kept has a reason.

What is recorded of a source is the digest of the bytes that were read, whatever its name.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hermitcrab.data.files import MEDIA, kind_of
from hermitcrab.data.ledger import Ledger
from hermitcrab.data.reading import FOLDER, Reading, check_sources, kind_of_source, refuse_passwords
from hermitcrab.data.tables import SPLITS, TableWriter, schema, source_digest
from hermitcrab.digest import digest_file, digest_json
from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import progress
from hermitcrab.recipe import Base, Part, Recipe, Source
from hermitcrab.references import Resolved, files_below, is_pattern, recorded_path, split_pattern
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
    import pyarrow as pa

    described: list[dict[str, Any]] = []
    files = {id(source): _files(job, source) for source in sources}
    digests = Counter(file.digest for each in files.values() for file in each)
    taken: dict[str, set[str]] = {digest: set() for digest, count in digests.items() if count > 1}
    with TableWriter(job.draft.payload / f"{split}.parquet", schema(sources[0].format)) as out:
        for source in sources:
            counts, labels = Ledger("rows"), job.places[source.labels] if source.labels else None
            reading = Reading(source, counts, job.part.on_error, labels)
            seen = set[str]()
            for file in files[id(source)]:
                before = counts.taken, counts.kept
                if file.digest in seen:  # the very bytes of another file of this source: they are the same rows
                    _drop_copy(source, file, counts, labels)
                else:
                    seen.add(file.digest)
                    for batch in reading.batches(file.path, file.digest, file.uri, file.name):
                        if file.digest in taken:
                            _check_new(source, split, batch, taken[file.digest])
                        out.write(pa.Table.from_batches([batch]))
                _check_unchanged(file)
                rows = {"rows_read": counts.taken - before[0], "rows_kept": counts.kept - before[1]}
                described += [{**about, "split": split, **rows} for about in file.abouts]
            reading.finish()
            ledger.merge(counts)
            job.draft.facts.setdefault("collected", []).append({"uri": files[id(source)][0].uri, "time": time.time()})
    return described


def _drop_copy(source: Source, file: File, counts: Ledger, labels: Path | None) -> None:
    own = Ledger("rows")
    for _ in Reading(source, own, "drop", labels).batches(file.path, file.digest, file.uri, file.name):
        pass
    counts.take(own.taken)
    counts.drop("row of a file that is the same as another of its source", own.taken)


def _check_new(source: Source, split: str, batch: Any, taken: set[str]) -> None:
    ids = batch.column("row_id").to_pylist()
    if twice := next((row for row in ids if row in taken), None):
        raise HermitcrabError(
            f"{source.path}: row {twice} comes from two sources of data.{split}; "
            "let `where` keep them apart, or name the file once"
        )
    taken.update(ids)


def _check_unchanged(file: File) -> None:
    for path, about in zip(file.parts, file.abouts, strict=True):
        now = listing_digest(path) if path.is_dir() else digest_file(path)
        if now != about["sha256"]:
            raise HermitcrabError(f"{file.name}: changed while it was being read; run again")


def files_of(source: Source) -> dict[str, str | None]:
    """The references of a source, and the digest that each must have."""
    refuse_passwords(source)
    labels = {source.labels: source.labels_sha256} if source.labels else {}
    return {source.reference: source.sha256, **labels}


@dataclass(frozen=True)
class File:
    """A file of a source, or all of its files where rows are made of several.

    `parts` are what was digested, `abouts` what is recorded of each, `digest` what rows are named by.
    """

    name: str
    path: Path
    uri: str
    digest: str
    parts: list[Path]
    abouts: list[dict[str, Any]]


def _files(job: Job, source: Source) -> list[File]:
    """The files of a source, each digested.

    Raises:
        HermitcrabError: for a file that is not there, or is not the one that the recipe means.
    """
    kind, place = kind_of_source(source), job.places[source.reference]
    found = job.resolved.get(source.reference)
    uri = found.uri if found else source.path
    if kind in MEDIA:
        return [_whole(job, source, kind, place, uri)]
    if not place.is_dir():
        abouts = [
            _about(source, kind, reference, job.places[reference], job.resolved.get(reference), wanted)
            for reference, wanted in files_of(source).items()
        ]
        digest = source_digest([str(about["sha256"]) for about in abouts])
        parts = [job.places[reference] for reference in files_of(source)]
        return [File(source.path, place, uri, digest, parts, abouts)]
    local = found is None or found.kind == "glob"
    pattern = split_pattern(source.path)[1] if local and is_pattern(source.path) else None
    top = recorded_path(str(split_pattern(source.path)[0])) if pattern else uri
    names = files_below(place, pattern)
    if not names:
        raise HermitcrabError(f"{source.path}: has no files")
    files = []
    for name in names:
        what = kind_of(name) if kind == FOLDER else kind
        about = _about(source, what, f"{top}/{name}", place / name, None, None)
        files.append(File(f"{top}/{name}", place / name, about["uri"], about["sha256"], [place / name], [about]))
    return files


def _whole(job: Job, source: Source, kind: str, place: Path, uri: str) -> File:
    """A folder of pictures or recordings, as one: its digest is that of the list of its files."""
    if not place.is_dir():
        raise HermitcrabError(f"{source.path}: is no folder; type `{kind}` reads a folder of files")
    size = sum((place / name).stat().st_size for name in files_below(place))
    about = {
        "uri": uri, "sha256": listing_digest(place), "size": size, "license": source.license, "type": kind, "format": source.format,
    }  # fmt: skip
    parts, abouts = [place], [about]
    if source.labels is not None:
        path = job.places[source.labels]
        parts.append(path)
        abouts.append(
            _about(source, f"{kind} labels", source.labels, path, job.resolved.get(source.labels), source.labels_sha256)
        )
    return File(source.path, place, uri, source_digest([str(a["sha256"]) for a in abouts]), parts, abouts)


def listing_digest(folder: Path) -> str:
    """Of the list of a folder's files with their digests."""
    names = files_below(folder)
    with progress(f"digesting {folder.name}", len(names), "files") as bar:
        listed = []
        for name in names:
            listed.append({"path": name, "sha256": digest_file(folder / name)})
            bar.add()
    return digest_json(listed)


def _about(
    source: Source, kind: str, reference: str, path: Path, found: Resolved | None, wanted: str | None
) -> dict[str, Any]:
    """What is known of a file before its rows are read."""
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
    if found and found.kind == "file" and found.identity != digest:
        raise HermitcrabError(f"{reference}: changed while it was being read; run again")
    return {
        "uri": found.uri if found else reference, "sha256": digest, "size": size, "license": source.license,
        "type": _type(source, kind, reference), "format": source.format,
    }  # fmt: skip


def _type(source: Source, kind: str, reference: str) -> str:
    if source.query is not None:
        return "sql"
    return f"{kind} labels" if kind == "idx" and reference == source.labels else kind


STAGE = Stage(
    name="collect",
    inputs=(),
    code=(
        "stages/collect.py", "data/files.py", "data/readers.py", "data/blocks.py", "data/rows.py", "data/reading.py", "data/windows.py",
        "data/sources",
        "data/idx.py", "data/images.py", "data/tables.py",
        "data/ledger.py", "models/base.py", "models/ggml.py", "models/tokenizer.py", "models/gguf_tokenizer.py", "models/chat.py",
        "models/formats", "models/architectures",
    ),
    slice=slice_of,
    run=run,
)  # fmt: skip
