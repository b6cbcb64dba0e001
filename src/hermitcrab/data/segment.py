"""One pass over the rows: filters of one text in the recipe's order, then of each row that is left the keys by which rows are compared.

`Segment.run` is the batch function of the engine: the same on this machine, in Daft's threads and on a Ray worker. It reads one row group
or bucket and writes files; no text goes through the engine.

N rows, M texts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.data import kernel, lines
from hermitcrab.data.filters import Filter, Texts, make_filter
from hermitcrab.data.fold import KEY, Form, fold_texts, keys, normalize_texts
from hermitcrab.data.parts import answers, large, normal_cells, of_images, questions, texts_of, with_texts
from hermitcrab.data.scratch import Scratch, ids, own_columns, put, rows_schema, slices, write_arrow
from hermitcrab.recipe import Part
from hermitcrab.recipe.clean import LineDedup, NearDedup, Normalize

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 8 << 20  # bytes of text that filters are given at once: with all that is made of it, still in tens of megabytes


@dataclass(frozen=True)
class Piece:
    """What a task reads: a row group of a Parquet file of a split (by rank), or a bucket of an earlier pass."""

    number: int
    path: str = ""
    split: int = 0


@dataclass
class Told:
    """What a task counted: of each filter, in texts; `lines` that went."""

    filters: list[dict[str, Any]] = field(default_factory=list)
    lines: int = 0

    @classmethod
    def of(cls, names: Sequence[str]) -> Told:
        return cls([{"name": name, "changed": Counter[str](), "found": Counter[str]()} for name in names])


@dataclass(frozen=True)
class Segment:
    """What a pass does. Pickled to wherever it runs, so it holds names and options, and paths of what was decided before.

    Attributes:
        steps: filters of one text, as `FILTERS` names them, with their options.
        bit: of `_changed`, that of the first of them (of `line_dedup`, where there is one).
        wants: the keys that are asked for: `exact`, `fold`, `plain`, `group`, `take`, `bands`, `lines`.
        form: normal form in which `exact` compares.
        before: the pass whose buckets are read; None: Parquet. Its census says which rows are still there.
        by, within: columns whose numbers and values a split needs.
        line_dedup: lines go that `before` decided on, ahead of all filters.
        compare_lines: how lines are told apart, for `lines`.
    """

    format: str
    out: str
    buckets: int
    steps: tuple[tuple[str, Part], ...] = ()
    bit: int = 0
    wants: frozenset[str] = frozenset()
    form: Form = "NFC"
    seed: int = 0
    by: str | None = None
    within: str | None = None
    near: NearDedup | None = None
    before: Scratch | None = None
    line_dedup: LineDedup | None = None
    compare_lines: LineDedup | None = None

    @cached_property
    def filters(self) -> list[Filter]:
        return [make_filter(name, options) for name, options in self.steps]

    def run(self, task: int, piece: Piece) -> None:
        """Do one task, unless it is done."""
        folder = Path(self.out)
        if (done := folder / f"told-{task:06d}.json").exists():
            return
        told, found = Told.of([name for name, _ in self.steps]), list[tuple[Any, Any, Any]]()
        for part in slices(self._read(piece), own_columns(self.format), BATCH):
            found.append(self._batch(part, told))
        if not found:
            found.append(self._batch(rows_schema(self.format).empty_table(), told))
        rows, key, gone = (_joined(tables) for tables in zip(*found, strict=True))
        id_N = ids(rows.column("row_id"))
        order = np.argsort(id_N, kind="stable")
        edges = np.searchsorted(id_N[order] >> np.uint64(48), np.arange(self.buckets + 1) * (1 << 16) / self.buckets)
        rows = rows.take(order)
        write_arrow(folder / f"rows-{task:06d}.arrow", [rows.slice(a, b - a) for a, b in pairwise(edges.tolist())])
        write_arrow(folder / f"keys-{task:06d}.arrow", [key])
        write_arrow(folder / f"gone-{task:06d}.arrow", [gone])
        text = json.dumps({"filters": told.filters, "lines": told.lines})
        put(done, lambda beside: _write(beside, text))

    def _read(self, piece: Piece) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.before is not None:
            return self.before.living(piece.number)
        with pq.ParquetFile(piece.path) as file:
            table = file.read_row_group(piece.number, columns=own_columns(self.format))
        kind = rows_schema(self.format)
        table = table.append_column("_split", pa.array(np.full(table.num_rows, piece.split, np.uint8)))
        return (
            table.append_column("_changed", pa.array(np.zeros(table.num_rows, np.uint32))).select(kind.names).cast(kind)
        )

    def _batch(self, table: pa.Table, told: Told) -> tuple[pa.Table, pa.Table, pa.Table]:
        """The rows that stay, their keys, and those that go with their reason."""
        import pyarrow as pa

        text, row_M = texts_of(self.format, table)
        texts = Texts(table.column("row_id").combine_chunks().take(pa.array(row_M)), text)
        reasons, changed_N = dict[int, str](), table.column("_changed").to_numpy().copy()
        for bit, (_, options) in enumerate(self.steps, self.bit + (self.line_dedup is not None)):
            if isinstance(options, Normalize):
                table, cells_N = normal_cells(self.format, table, options.form or self.form)
                changed_N[cells_N] |= np.uint32(1 << bit)
        for bit, step in enumerate(self._steps(table, row_M, told), self.bit):
            if not len(texts):
                break
            new, gone = step(texts, row_M)
            if new is not None:
                changed_N[row_M[_differ(texts.text, new)]] |= np.uint32(1 << bit)
                texts = Texts(texts.row_id, new)
            if any(gone):
                here = dict[int, str]()
                for row, reason in zip(row_M.tolist(), gone, strict=True):
                    if reason is not None:
                        here.setdefault(row, reason)
                reasons |= here
                keep_M = ~np.isin(row_M, list(here))
                texts, row_M = texts.kept(keep_M), row_M[keep_M]
        keep_N = np.ones(table.num_rows, bool)
        keep_N[list(reasons)] = False
        lost = table.filter(pa.array(~keep_N))
        table = table.set_column(table.num_columns - 1, "_changed", pa.array(changed_N)).filter(pa.array(keep_N))
        if (changed_N[keep_N] >> np.uint32(self.bit)).any():
            table = with_texts(self.format, table, texts.text)
        return (
            table.cast(rows_schema(self.format)),
            self._keys(table, texts),
            _gone(lost, [reasons[i] for i in sorted(reasons)]),
        )

    def _steps(self, table: pa.Table, row_M: np.ndarray, told: Told) -> Any:
        """Each step as a function of (texts, the row of each) → new texts or None, reasons or none."""
        if self.line_dedup is not None and self.before is not None:
            repeated, options = lines.Repeated.load(self.before.folder), self.line_dedup
            id_N, split_N = ids(table.column("row_id")), table.column("_split").to_numpy()

            def cut(texts: Texts, row_M: np.ndarray) -> tuple[pa.Array | None, Sequence[str | None]]:
                new, count = lines.without(texts.text, id_N[row_M], split_N[row_M], repeated, options)
                told.lines += count
                if not count:
                    return None, ()
                return new, [lines.REASON if not length else None for length in np.diff(kernel.utf8(new)[1])]

            yield cut
        for counts, run in zip(told.filters, self.filters, strict=True):

            def step(texts: Texts, _: np.ndarray, run: Filter = run, counts: dict[str, Any] = counts) -> Any:
                outcome = run(texts)
                counts["changed"].update(outcome.changed)
                counts["found"].update(outcome.found)
                return outcome.text, outcome.reasons

            yield step

    @property
    def _settled(self) -> bool:
        """Whether the texts that are asked about are in normal form as they are: the last filter brought them there."""
        name, options = self.steps[-1] if self.steps else ("", None)
        return (
            self.format == "text"
            and isinstance(options, Normalize)
            and name == "normalize"
            and options.form == self.form
        )

    def _keys(self, table: pa.Table, texts: Texts) -> pa.Table:
        """What rows are compared by, of those that stay."""
        import pyarrow as pa

        wants, columns = (
            self.wants,
            {"id": pa.array(ids(table.column("row_id"))), "split": table.column("_split").combine_chunks()},
        )
        asked = texts.text if self.format == "text" else questions(self.format, table)
        folded = fold_texts(asked) if wants & {"fold", "group"} else None
        if "exact" in wants:
            said = answers(self.format, table)
            columns["exact"] = _fixed(keys(asked if self._settled else normalize_texts(asked, self.form)))
            same = np.zeros(table.num_rows, f"V{KEY}") if said is None else keys(normalize_texts(said, self.form))
            columns["answer"] = _fixed(same)
        if "fold" in wants:
            columns["fold"] = _fixed(keys(folded))
        if "plain" in wants:
            columns["plain"] = _fixed(keys(asked))
        if "group" in wants:
            columns["group"] = _fixed(_groups(self.seed, table.column("document"), folded))
        if "take" in wants:
            columns["take"] = _fixed(_drawn(f"{self.seed}\0take\0", asked))
        if self.by is not None:
            columns["by"] = _numbers(table.column(self.by))
        if self.within is not None:
            columns["within"] = _fixed(keys(large(table.column(self.within))))
        if self.near is not None and of_images(self.format):
            from hermitcrab.data.phash import phashes

            columns["bands"] = _fixed(phashes(table.column("image").to_pylist()).view("V8"))
        elif self.near is not None:
            words = texts.words if self.format == "text" else kernel.split(asked)
            _, rows = kernel.banding(self.near.threshold, self.near.permutations)
            least_NP = kernel.minhash(*kernel.shingles(words, self.near.ngram), self.near.permutations)
            band_NB = kernel.bands(least_NP, rows)
            columns["bands"] = _fixed(np.ascontiguousarray(band_NB).view(f"V{8 * band_NB.shape[1]}").reshape(-1))
        if self.compare_lines is not None:
            columns["lines"] = _lines(texts_of(self.format, table), table.num_rows, self.compare_lines)
        return pa.table(columns)


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables(tables).combine_chunks()


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _differ(old: pa.Array, new: pa.Array) -> np.ndarray:
    import pyarrow.compute as pc

    return pc.not_equal(old, new).to_numpy(zero_copy_only=False)


def _gone(lost: pa.Table, reasons: list[str]) -> pa.Table:
    import pyarrow as pa

    columns = {"id": pa.array(ids(lost.column("row_id"))), "split": lost.column("_split").combine_chunks()}
    return pa.table({**columns, "reason": pa.array(reasons, pa.string())})


def _fixed(key_N: np.ndarray) -> pa.Array:
    import pyarrow as pa

    kind = pa.binary(key_N.dtype.itemsize)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(key_N), [None, pa.py_buffer(np.ascontiguousarray(key_N))])


def _drawn(before: str, text: pa.Array) -> np.ndarray:
    """The beginning of SHA-256 of `before` and each text: V16 [N]. Where it comes in an order that is the same everywhere."""
    data_B, start_N1 = kernel.utf8(text)
    view, begun = memoryview(data_B.data), hashlib.sha256(before.encode())
    found = bytearray()
    for first, last in pairwise(start_N1.tolist()):
        made = begun.copy()
        made.update(view[first:last])
        found += made.digest()[:KEY]
    return np.frombuffer(bytes(found), f"V{KEY}")


def _groups(seed: int, documents: pa.ChunkedArray, folded: pa.Array) -> np.ndarray:
    """The draw of the group that must not be parted: rows of one document, or with one folded text. V16 [N]."""
    before = f"{seed}\0split\0"
    if documents.null_count == len(documents):
        return _drawn(f"{before}text ", folded)
    named = _drawn(f"{before}document ", large(documents.fill_null("")))
    null = documents.is_null().to_numpy()
    return np.where(null, _drawn(f"{before}text ", folded), named) if null.any() else named


def _numbers(column: pa.ChunkedArray) -> pa.Array:
    """A column of numbers, NaN where there is none: float64 [N]."""
    import pyarrow as pa

    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return pa.array(np.full(len(column), np.nan))
    return column.cast(pa.float64()).fill_null(float("nan")).combine_chunks()


def _lines(texts: tuple[pa.Array, np.ndarray], count: int, options: LineDedup) -> pa.Array:
    """The hashes of a row's lines, whatever text of it they are in: large_list<uint64> [N]."""
    import pyarrow as pa

    text, row_M = texts
    start_M1, hash_L = lines.hashes(text, options)
    row_L = np.repeat(row_M, np.diff(start_M1))
    order = np.argsort(row_L, kind="stable")
    start_N1 = np.searchsorted(row_L[order], np.arange(count + 1))
    return pa.LargeListArray.from_arrays(pa.array(start_N1, pa.int64()), pa.array(hash_L[order]))
