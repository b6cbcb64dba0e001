"""Rows between two passes: Arrow files in the draft's `work/`, in buckets by row id, so that a bucket of all files fits in memory.

A task leaves `rows-N.arrow` (its rows, sorted by id, a batch a bucket), `keys-N.arrow` (of each row what decides its fate, no text),
`gone-N.arrow` (what it dropped) and, last, `told-N.json` (what its filters counted). A task that told is done: a killed pass goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.data.tables import FORMATS, schema
from hermitcrab.errors import HermitcrabError

if TYPE_CHECKING:
    import pyarrow as pa

RANKS = ("test", "validation", "train")
"""The splits by precedence: what stands in an earlier one displaces what stands in a later one."""


def rows_schema(format: str) -> pa.Schema:
    """A row table with the split that it came in (its rank) and which filters changed it (a bit each)."""
    import pyarrow as pa

    return pa.schema([*schema(format), pa.field("_split", pa.uint8()), pa.field("_changed", pa.uint32())])


def own_columns(format: str) -> list[str]:
    return ["row_id", "source", "document", *FORMATS[format]]


def ids(column: Any) -> np.ndarray:
    """Row ids as numbers in the same order: uint64 [N].

    Raises:
        HermitcrabError: one is not 16 hex digits.
    """
    told = column.to_pylist()
    try:
        if any(len(row) != 16 for row in told):
            raise ValueError
        return np.frombuffer(bytes.fromhex("".join(told)), ">u8").astype(np.uint64)
    except ValueError:
        bad = next(row for row in told if len(row) != 16 or not set(row) <= set("0123456789abcdef"))
        raise HermitcrabError(f"row id: expected 16 hex digits. Received: {bad!r}") from None


def id_text(number: int | np.integer[Any]) -> str:
    return f"{int(number):016x}"


def put(path: Path, write: Callable[[Path], None]) -> None:
    """A file under its name only when it is whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    write(beside)
    with open(beside, "rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)


def put_array(path: Path, array: np.ndarray) -> None:
    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            np.save(file, array)

    put(path, write)


def write_arrow(path: Path, batches: list[pa.Table]) -> None:
    """Tables of one schema, each as one batch."""
    import pyarrow as pa

    def write(beside: Path) -> None:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, batches[0].schema, options=options) as out:
            for table in batches:
                made = table.combine_chunks().to_batches()
                out.write_batch(made[0] if made else pa.RecordBatch.from_pylist([], table.schema))

    put(path, write)


@dataclass(frozen=True)
class Scratch:
    """What a pass left. `places[b]` lists (file, batch) of bucket b; `tasks`: how many there were."""

    folder: Path
    places: list[list[tuple[Path, int]]]
    tasks: int

    def read(self, bucket: int, columns: list[str] | None = None) -> pa.Table:
        """The rows of a bucket, in no order."""
        import pyarrow as pa

        found = []
        for path, batch in self.places[bucket]:
            with pa.memory_map(str(path)) as file:
                table = pa.Table.from_batches([pa.ipc.open_file(file).get_batch(batch)])
                found.append(table.select(columns) if columns else table)
        return pa.concat_tables(found)

    def living(self, bucket: int, columns: list[str] | None = None) -> pa.Table:
        """Those of them that the census of the pass (`Census.save`) still has."""
        import pyarrow as pa

        from hermitcrab.data.census import Census

        table = self.read(bucket, columns)
        census = Census.load(self.folder)
        at = census.find(ids(table.column("row_id")), table.column("_split").to_numpy())
        return table.filter(pa.array(np.asarray(census.alive_N)[at]))

    def all(self, kind: str, tasks: int | None = None) -> pa.Table:
        """What all tasks (of the pass, or so many) left of a kind (`keys`, `gone`, …), in their order."""
        return _concat([self.folder / f"{kind}-{task:06d}.arrow" for task in range(tasks or self.tasks)])

    def told(self) -> list[dict[str, Any]]:
        return [json.loads((self.folder / f"told-{task:06d}.json").read_bytes()) for task in range(self.tasks)]


def _concat(paths: list[Path]) -> pa.Table:
    import pyarrow as pa

    found = []
    for path in paths:
        with pa.OSFile(str(path), "rb") as file:
            found.append(pa.ipc.open_file(file).read_all())
    return pa.concat_tables(found).combine_chunks()


def slices(table: pa.Table, columns: list[str], most: int) -> Iterator[pa.Table]:
    """Runs of rows with about `most` bytes in these columns, at least a row each."""
    size = 0
    for name in columns:
        kind = table.column(name)
        size += kind.nbytes
    count = max(1, -(-size // most))
    step = max(1, -(-table.num_rows // count))
    for at in range(0, table.num_rows, step):
        yield table.slice(at, step)
