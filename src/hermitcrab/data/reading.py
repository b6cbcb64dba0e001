"""A source read into batches of rows, each row counted as kept or as dropped by reason; memory holds a batch.

A piece of a file that comes as columns stays columns (`_columnwise`), as long as nothing in it is to be told; everything else goes
row by row through `rows.Shape`, which is the one place that says what a bad row is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.data.files import MEDIA, kind_of
from hermitcrab.data.ledger import Ledger
from hermitcrab.data.readers import BadRow, Block, Skipped, Table, open_table
from hermitcrab.data.rows import Shape, gathers
from hermitcrab.data.tables import FORMATS, column_kind, row_id, schema
from hermitcrab.data.windows import read_windows
from hermitcrab.errors import HermitcrabError, UsageError, did_you_mean
from hermitcrab.progress import progress, warn
from hermitcrab.recipe import Source
from hermitcrab.references import without_credentials

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1024  # rows that were read one by one, in a batch
HEAVY = 16 << 20  # bytes after which such a batch is full
FOLDER = "files"  # a folder whose files say by their endings what they are
# Which formats of rows come from which kinds of pictures and recordings; all other kinds give any other format.
GIVES = {
    "idx": ("image-label", "image"), "images": ("image-label", "image"), "coco": ("image-objects", "image"),
    "voc": ("image-objects", "image"), "audio": ("audio-label", "audio-text"),
}  # fmt: skip
LABELED = {"idx": True, "coco": True, "images": False, "audio": False, "voc": False}  # whether `labels` must be there


def kind_of_source(source: Source) -> str:
    """What the files of a source are: a kind of `files.KINDS`, or `files` where each file of a folder says it itself."""
    if source.query is not None:
        return "parquet"  # what a database answered is kept so
    path = re.split(r"[?#]", source.path)[0] if "://" in source.path else source.path
    if source.type == "auto" and not Path(path).suffix and not path.startswith("env:"):
        return {"image-label": "images", "image": "images", "audio-label": "audio", "audio-text": "audio"}.get(
            source.format, FOLDER
        )
    return kind_of(path, source.type)


def check_sources(sources: Iterable[Source]) -> None:
    """What can be wrong with sources before any file is opened.

    Raises:
        UsageError: for several formats, a mapping for a column that the format does not have, a type that is not told.
    """
    sources = list(sources)
    formats = sorted({source.format for source in sources})
    if len(formats) > 1:
        raise UsageError(f"data: all sources of a recipe share one format. Received: {', '.join(formats)}")
    for source in sources:
        refuse_passwords(source)
        _check_labels(source, kind := kind_of_source(source))
        if source.windows is not None and source.format != "series":
            raise UsageError(f"{source.path}: `windows` are for rows of format `series`. Received: {source.format}")
        if source.features and gathers(source) is None and source.windows is None:
            raise UsageError(
                f"{source.path}: `features` are for rows that are gathered from columns, as of format `tabular`"
            )
        gives = GIVES.get(kind)
        if (gives is not None or source.format in {form for forms in GIVES.values() for form in forms}) and (
            gives is None or source.format not in gives
        ):
            fit = gives or sorted(kind for kind, forms in GIVES.items() if source.format in forms)
            raise UsageError(
                f"{source.path}: type `{kind}` and format `{source.format}` do not go together; expected a "
                f"{'format' if gives else 'type'} of: {', '.join(fit)}"
            )
        for wanted in source.columns:
            if wanted not in FORMATS[source.format]:
                near = did_you_mean(wanted, FORMATS[source.format])
                raise UsageError(f"{source.path}: columns: format `{source.format}` has no column `{wanted}`{near}")


def refuse_passwords(source: Source) -> None:
    """What a recipe says is recorded. Raises UsageError, without the password."""
    for address in (source.path, source.labels or ""):
        if re.match(r"[a-z0-9+]+://[^/@]*:[^/@]+@", address):
            raise UsageError(
                f"{without_credentials(address)}: a password stands in this address, and what a recipe says is recorded; "
                "put the address into an environment variable and write `path: env:NAME`"
            )


def _check_labels(source: Source, kind: str) -> None:
    if source.labels is None and LABELED.get(kind):
        raise UsageError(f"{source.path}: type `{kind}` needs `labels`, the file of its labels")
    if source.labels is not None and kind not in LABELED:
        raise UsageError(
            f"{source.path}: `labels` is for sources of type {', '.join(LABELED)}. Received: type `{kind}`"
        )
    if source.labels_sha256 is not None and source.labels is None:
        raise UsageError(f"{source.path}: `labels_sha256` is for a source with `labels`")
    if source.pattern is not None:
        if kind not in ("images", "audio"):
            raise UsageError(f"{source.path}: `pattern` is for folders of images or audio. Received: type `{kind}`")
        try:
            if not re.compile(source.pattern).groupindex:
                raise UsageError(
                    f"{source.path}: pattern: names no part, such as (?P<label>[0-9]). Received: {source.pattern}"
                )
        except re.error as error:
            raise UsageError(f"{source.path}: pattern: is no regular expression: {error}") from error


def open_source(
    source: Source, path: Path, labels: Path | None, name: str | None = None
) -> AbstractContextManager[Table]:
    """The records of one file of a source (of pictures and recordings: of all of it). `name` is what messages call it."""
    kind, name = kind_of_source(source), name or source.path
    if kind == FOLDER:
        kind = kind_of(name)
    if kind == "idx" and labels is not None and source.labels is not None:
        from hermitcrab.data.idx import open_idx

        return open_idx(path, labels, name, source.labels)
    if kind in MEDIA:
        from hermitcrab.data.sources.media import open_media

        return open_media(source, kind, path, labels)
    return open_table(path, name, kind)


class Reading:
    """A source on its way into rows: what was kept of all its files, and the first bad row.

    Args:
        uri: what the rows' `source` says.
        on_error: whether a bad row stops (`stop`) or is dropped and counted (`drop`).
        labels: where `source.labels` lies.
    """

    def __init__(self, source: Source, ledger: Ledger, on_error: str = "stop", labels: Path | None = None):
        self.source, self.ledger, self.on_error, self.labels = source, ledger, on_error, labels
        self.first: BadRow | None = None
        self.bad = 0

    def batches(self, path: Path, digest: str, uri: str, name: str | None = None) -> Iterator[pa.RecordBatch]:
        """Rows of one file, in the schema of the source's format.

        Raises:
            BadRow: at the first bad row, where `on_error` is `stop`.
            UsageError: for a column that the file does not have.
            HermitcrabError: for a file that cannot be read.
        """
        name = name or self.source.path
        if self.source.windows is not None:
            yield from _windows(self.source, path, digest, uri, self.ledger)
            return
        with (
            open_source(self.source, path, self.labels, name) as table,
            progress(f"reading {name}", unit="rows") as bar,
        ):
            shape = Shape(self.source, table.columns)
            blocks = table.blocks(shape.needed) if table.blocks else [Block(0, None, lambda: table.read(shape.needed))]
            for block in blocks:
                found = _columnwise(shape, block, digest, uri)
                if found is None:
                    yield from self._rowwise(shape, block, digest, uri, bar.add)
                    continue
                batch, count, refused = found
                self.ledger.take(count)
                self.ledger.keep(batch.num_rows)
                for reason, dropped in refused.items():
                    self.ledger.drop(reason, dropped)
                bar.add(count)
                if batch.num_rows:
                    yield batch

    def _rowwise(
        self, shape: Shape, block: Block, digest: str, uri: str, told: Callable[[], None]
    ) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        held, size, ours = list[dict[str, Any]](), 0, schema(self.source.format)
        for record in block.rows():
            self.ledger.take(1)
            told()
            try:
                if isinstance(record, BadRow):
                    raise record
                reason = record.reason if isinstance(record, Skipped) else shape.refused(record)
                if isinstance(record, Skipped) or reason:
                    self.ledger.drop(reason or "")
                    continue
                row = shape.row(record)
            except BadRow as error:
                if self.on_error == "stop":
                    raise
                self.ledger.drop(error.reason)
                self.first, self.bad = self.first or error, self.bad + 1
                continue
            self.ledger.keep()
            for what in record.cut:
                self.ledger.change(what)
            held.append({"row_id": row_id(record.digest or digest, record.position), "source": uri, **row})
            size += sum(len(cell) for cell in row.values() if isinstance(cell, str | bytes))
            if len(held) == BATCH or size >= HEAVY:
                yield pa.RecordBatch.from_pylist(held, ours)
                held, size = [], 0
        if held:
            yield pa.RecordBatch.from_pylist(held, ours)

    def finish(self) -> None:
        """Tell of bad rows. Raises HermitcrabError where no row of the source was kept."""
        name = self.source.path
        if self.first:
            warn(f"{name}: {self.bad:,} bad rows are dropped; the first: {self.first}")
        if not self.ledger.kept:
            reasons = ", ".join(f"{reason} ({count:,})" for reason, count in sorted(self.ledger.dropped.items()))
            raise HermitcrabError(f"{name}: no row of it is kept: {reasons or 'it has none'}")


def _windows(source: Source, path: Path, digest: str, uri: str, ledger: Ledger) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    rows = read_windows(source, path, digest, uri, ledger)
    while held := list(islice(rows, BATCH)):
        yield pa.RecordBatch.from_pylist(held, schema(source.format))


def read_rows(
    source: Source,
    path: Path,
    digest: str,
    uri: str,
    ledger: Ledger,
    on_error: str = "stop",
    labels: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of a source that is one file, one at a time. `labels` is where `source.labels` lies.

    Raises:
        As `Reading.batches` and `Reading.finish`.
    """
    reading = Reading(source, own := Ledger("rows"), on_error, labels)
    for batch in reading.batches(path, digest, uri):
        yield from batch.to_pylist()
    ledger.merge(own)
    reading.finish()


# A piece as columns


def _columnwise(shape: Shape, block: Block, digest: str, uri: str) -> tuple[pa.RecordBatch, int, dict[str, int]] | None:
    """Rows, how many records they were taken of, and how many were not selected, by reason; None: something is to be told."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = block.columns
    if cells is None or shape.gathered or not all(map(_is_text, shape.cells)) or not shape.needed <= cells.keys():
        return None
    if any(_has_nul(cells[column]) for column in shape.needed):
        return None
    cells = {column: cells[column].fill_null("") for column in shape.needed}
    count = len(next(iter(cells.values())))
    keep, refused = pa.array([True] * count), dict[str, int]()
    for column, value in shape.source.where.items():
        kept = pc.and_(keep, pc.equal(cells[column], value))
        if lost := pc.sum(keep).as_py() - pc.sum(kept).as_py():
            refused[f"not selected: {column} is not {value}"] = lost
        keep = kept
    if refused:
        cells = {column: array.filter(keep) for column, array in cells.items()}
    for column, renamed in shape.source.values.items():
        places = pc.index_in(cells[column], pa.array(list(renamed), pa.large_string()))
        if places.null_count:
            return None
        cells[column] = pa.array(list(renamed.values()), pa.large_string()).take(places)
    made = {wanted: _joined(cell.parts, cells) for wanted, cell in shape.cells.items()}
    if any(_has_empty(array) for array in made.values()):
        return None
    document = shape.source.document
    made["document"] = pa.nulls(pc.sum(keep).as_py(), pa.large_string())
    if document is not None:
        made["document"] = pc.if_else(pc.equal(cells[document], ""), None, cells[document])
    positions = pc.indices_nonzero(keep).to_pylist()
    made["row_id"] = pa.array([row_id(digest, block.position + i) for i in positions])
    made["source"] = pa.repeat(uri, len(positions))
    ours = schema(shape.source.format)
    return pa.RecordBatch.from_arrays([made[f.name].cast(f.type) for f in ours], schema=ours), count, refused


def _is_text(wanted: str) -> bool:
    return wanted != "messages" and column_kind(wanted) == "text"


def _joined(parts: tuple[str, ...], cells: dict[str, pa.Array]) -> pa.Array:
    """Literal texts and columns in turn, as one column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(parts) == 3 and not parts[0] and not parts[2]:
        return cells[parts[1]]
    texts = [cells[part] if i % 2 else pa.scalar(part, pa.large_string()) for i, part in enumerate(parts)]
    return pc.binary_join_element_wise(*texts, pa.scalar("", pa.large_string()))


def _bytes_of(array: pa.Array) -> tuple[Any, Any]:
    """Of a column of text: its bytes, and where each cell begins in them (one more than cells)."""
    import numpy as np

    _, offsets, data = array.buffers()
    start = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data if data is not None else b"", np.uint8), start


def _has_nul(array: pa.Array) -> bool:
    if not len(array):
        return False
    data, start = _bytes_of(array)
    return bool((data[start[0] : start[-1]] == 0).any())


def _has_empty(array: pa.Array) -> bool:
    """Whether a cell may be nothing but space: sure where its first byte is a visible ASCII character, else looked at."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if not len(array):
        return False
    data, start = _bytes_of(array)
    if (start[1:] == start[:-1]).any():
        return True
    first = data[start[:-1]]
    doubtful = np.flatnonzero((first <= 0x20) | (first >= 0x7F))
    heads = pc.utf8_slice_codeunits(array.take(pa.array(doubtful)), 0, 16).to_pylist()
    return any(not head.strip() for head in heads)
