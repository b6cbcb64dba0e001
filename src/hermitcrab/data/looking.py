"""Sources looked at: schema, counts, languages, lengths and duplicates of one; rows added, removed and changed between two.

Rows are taken as `collect` takes them, a batch at a time. What is kept of each is a digest, so memory grows by some tens of bytes a row.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.data.ledger import Ledger
from hermitcrab.data.reading import FOLDER, Reading, check_sources, kind_of_source
from hermitcrab.data.tables import SPLITS, column_kind
from hermitcrab.digest import digest_file
from hermitcrab.errors import HermitcrabError
from hermitcrab.recipe import Source
from hermitcrab.references import Resolved, fetch, files_below, is_pattern, resolve, split_pattern
from hermitcrab.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

EDGES = (50, 200, 1000, 5000, 20_000, 100_000)  # characters
SHOWN = 10  # ids of rows in a difference


def inspect(source: Source, store: Store) -> dict[str, Any]:
    """What a source holds, at a glance; never a text of it."""
    ledger, seen, lengths, scripts = Ledger("rows"), set[bytes](), Counter[str](), Counter[str]()
    characters = repeated = 0
    columns: list[str] = []
    found: Resolved | None = None
    for place, batch in _batches(source, store, ledger):
        found = place
        columns = batch.schema.names
        for text, key in zip(_texts(batch), _keys(batch), strict=True):
            repeated += key in seen
            seen.add(key)
            characters += len(text)
            lengths[_bin(len(text))] += 1
            scripts[_script(text)] += 1
    if found is None:
        raise HermitcrabError(f"{source.path}: no row of it is kept: {dict(ledger.dropped) or 'it has none'}")
    return {
        "uri": found.uri, "identity": found.identity, "columns": columns, "rows": ledger.kept, "ledger": ledger.as_json(),
        "characters": characters, "lengths": {name: lengths[name] for name in _bins() if lengths[name]},
        "scripts": dict(scripts.most_common()), "repeated_rows": repeated, "license": _license(found),
    }  # fmt: skip


def differ(first: Source, second: Source, store: Store) -> dict[str, Any]:
    """Rows of the second that the first has not, the other way round, and rows of one id with another content.

    Rows are compared by content; a row that is in both under different ids is the same row.
    """
    a, b = _contents(first, store), _contents(second, store)
    content_a, content_b = Counter(a.values()), Counter(b.values())
    changed = sorted(row for row in a.keys() & b.keys() if a[row] != b[row])
    added = sorted(row for row, key in b.items() if key not in content_a and row not in a)
    removed = sorted(row for row, key in a.items() if key not in content_b and row not in b)
    same = sum((content_a & content_b).values())
    told = {"first": first.path, "second": second.path, "rows": [len(a), len(b)], "same": same}
    for name, ids in (("added", added), ("removed", removed), ("changed", changed)):
        told |= {name: len(ids), f"{name}_ids": ids[:SHOWN]}
    return told


def _contents(source: Source, store: Store) -> dict[str, bytes]:
    """Row id → digest of what the row says."""
    found: dict[str, bytes] = {}
    for _, batch in _batches(source, store, Ledger("rows")):
        found.update(zip(batch.column("row_id").to_pylist(), _keys(batch), strict=True))
    return found


def _batches(source: Source, store: Store, ledger: Ledger) -> Iterator[tuple[Resolved, pa.RecordBatch]]:
    if source.path.startswith("run:"):
        yield from _made(source, store, ledger)
        return
    check_sources([source])
    found = resolve(source.reference, source.sha256, store)
    place = fetch(found, store)
    labels = fetch(resolve(source.labels, None, store), store) if source.labels else None
    reading = Reading(source, ledger, "drop", labels)
    pattern = split_pattern(source.path)[1] if found.kind == "glob" and is_pattern(source.path) else None
    whole = not place.is_dir() or (kind_of_source(source) != FOLDER and pattern is None)
    for name in [None] if whole else files_below(place, pattern):
        path = place if name is None else place / name
        digest = found.identity if path.is_dir() else digest_file(path)
        for batch in reading.batches(path, digest, found.uri, name):
            yield found, batch
    reading.finish()


def _made(source: Source, store: Store, ledger: Ledger) -> Iterator[tuple[Resolved, pa.RecordBatch]]:
    """The rows of an artifact, of all its splits."""
    import pyarrow.parquet as pq

    found = resolve(source.path, None, store)
    folder = fetch(found, store)
    paths = [folder / f"{split}.parquet" for split in SPLITS if (folder / f"{split}.parquet").is_file()]
    if not paths:
        raise HermitcrabError(f"{source.path}: that stage made no rows; expected run:NAME/collect or run:NAME/prepare")
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                ledger.take(batch.num_rows)
                ledger.keep(batch.num_rows)
                yield found, batch


def _said(batch: pa.RecordBatch) -> list[str]:
    return [name for name in batch.schema.names if name not in ("row_id", "source", "document")]


def _keys(batch: pa.RecordBatch) -> list[bytes]:
    columns = [batch.column(name).to_pylist() for name in _said(batch)]
    return [
        hashlib.blake2b(repr(row).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for row in zip(*columns, strict=True)
    ]


def _texts(batch: pa.RecordBatch) -> list[str]:
    columns = [batch.column(name).to_pylist() for name in _said(batch) if column_kind(name) == "text"]
    return [" ".join(map(str, row)) for row in zip(*columns, strict=True)] if columns else [""] * batch.num_rows


def _bins() -> list[str]:
    return [f"under {edge:,}" for edge in EDGES] + [f"{EDGES[-1]:,} and more"]


def _bin(length: int) -> str:
    return next((f"under {edge:,}" for edge in EDGES if length < edge), _bins()[-1])


def _script(text: str) -> str:
    """By the share of Han characters, of the first thousand: a fifth makes a text Chinese (or Japanese), as words of Latin count less."""
    head = text[:1000]
    letters = sum(map(str.isalpha, head))
    if not letters:
        return "no letters"
    han = sum("\u4e00" <= c <= "\u9fff" or "\u3400" <= c <= "\u4dbf" for c in head)
    if han * 5 >= letters:
        return "Han"
    return "Latin" if sum(c.isascii() and c.isalpha() for c in head) * 2 >= letters else "other"


def _license(found: Resolved) -> str | None:
    """What a file beside the data says that it is under, if there is one."""
    root = found.path if found.path and found.path.is_dir() else found.path.parent if found.path else Path()
    names = sorted(p.name for p in root.glob("LICEN[SC]E*") if p.is_file())
    return names[0] if names else None


def render_inspection(told: dict[str, Any]) -> str:
    wide = max([1, *told["lengths"].values()])
    lines = [
        f"{told['uri']}: {told['rows']:,} rows, {told['characters']:,} characters, columns {', '.join(told['columns'])}",
        f"  digest        {told['identity']}",
        f"  license file  {told['license'] or 'none beside the data'}",
        f"  repeated rows {told['repeated_rows']:,}",
        "  scripts       " + ", ".join(f"{name} {count:,}" for name, count in told["scripts"].items()),
        *(f"  dropped       {count:,}: {reason}" for reason, count in told["ledger"]["dropped"].items()),
        *(f"  changed       {count:,}: {reason}" for reason, count in told["ledger"]["changed"].items()),
        "  characters in a row",
        *(
            f"    {name:>17} {count:>9,} {'#' * max(1, round(40 * count / wide))}"
            for name, count in told["lengths"].items()
        ),
    ]
    return "\n".join(lines)


def render_diff(told: dict[str, Any]) -> str:
    lines = [
        f"{told['first']} ({told['rows'][0]:,} rows) → {told['second']} ({told['rows'][1]:,} rows): {told['same']:,} the same"
    ]
    for name in ("added", "removed", "changed"):
        ids = ", ".join(told[f"{name}_ids"])
        lines.append(f"  {name:<8} {told[name]:>9,}" + (f"  {ids}{', …' if told[name] > SHOWN else ''}" if ids else ""))
    return "\n".join(lines)
