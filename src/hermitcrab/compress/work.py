"""Every form that is asked for, made and measured, one after the other; what a stage and `crab compress` do alike.

Files, distances and answers are kept below `work`, so a killed compression goes on with the next form. What is measured of a
machine (speed, memory, CPU-seconds) is a fact, and in no digest.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.compress import TENSORS, Made, Source, asked
from hermitcrab.compress.parity import Parity, Reference
from hermitcrab.compress.speed import measure
from hermitcrab.data.ledger import Ledger
from hermitcrab.digest import describe_files
from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import progress
from hermitcrab.store import read_json, write_json

if TYPE_CHECKING:
    import pyarrow as pa


class Compression:
    """Makes what `source.compress` asks for.

    Args:
        work: what a killed compression continues from. `payload`: where the finished files go.
        stated: the margin, where it is not the recipe's target (which stops what is not within it; this is told).
    """

    def __init__(self, source: Source, reference: Reference, work: Path, payload: Path, stated: float | None = None):
        self.source, self.work, self.payload = source, work, payload
        self.parity = Parity(source, reference, work, stated)
        self.entries: list[dict[str, Any]] = []
        self.ledgers: list[dict[str, Any]] = []
        self.tensors: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}

    def run(self, after_each: Callable[[], None] = lambda: None) -> None:
        """All of it; `after_each` is called when a form is done."""
        for form, kind in asked(self.source.compress):
            self.compress(form, kind)
            after_each()
        if self.facts:
            self.facts["uncompressed"] = measure(self.source, self.source.start, None, self.work / "speed")
        if self.tensors:
            write_json(self.payload / TENSORS, self.tensors)

    def compress(self, form: Any, kind: str) -> None:
        """One kind of one form: its entry, its ledger, its files and answers in the payload."""
        import pyarrow.parquet as pq

        label = f"{form.format} {kind}"
        folder, made, start = self.opened(form, kind)
        self.parity.check_inputs(label, start)
        parity = self.parity.measure(label, start)
        files = self._ship(form.format, folder, made)
        table = self.parity.answers(label, start)
        (self.payload / "predictions").mkdir(exist_ok=True)
        name = f"{form.format}-{kind}.parquet"
        pq.write_table(table.replace_schema_metadata(None), self.payload / "predictions" / name)
        self.facts[label] = {
            **made.facts, "cpu_seconds_per_answer": seconds_an_answer(table),
            **measure(self.source, start, form.format, self.work / "speed"),
        }  # fmt: skip
        weights = [file for file in self.source.model.iterdir() if file.suffix == ".safetensors"]
        shapes = [math.prod(tensor.shape) for tensor in made.tensors]
        bits = sum(tensor.bits * size for tensor, size in zip(made.tensors, shapes, strict=True))
        self.entries.append({
            "format": form.format, "type": kind, "file": files[0]["path"], "files": files,
            "size": sum(file["size"] for file in files), "size_of_model": sum(file.stat().st_size for file in weights),
            "bits_per_weight": round(bits / sum(shapes), 3),
            "tensors": dict(sorted(Counter(tensor.dtype for tensor in made.tensors).items())),
            "method": made.told, "parity": parity,
        })  # fmt: skip
        self.tensors[label] = [t | {"shape": list(t["shape"])} for t in made.as_json()["tensors"]]
        self.ledgers.append(ledger(label, made))

    def opened(self, form: Any, kind: str) -> tuple[Path, Made, Any]:
        """The files of one kind, made where they were not yet, and the model that they are."""
        folder = self.work / form.format / kind
        folder.mkdir(parents=True, exist_ok=True)
        record, maker = folder / "made.json", form(self.source)
        if not record.exists():
            with progress(f"making {form.format} {kind}"):
                write_json(record, maker.make(kind, folder).as_json())
        made = Made.from_json(read_json(record))
        return folder, made, maker.start(kind, folder, made)

    def _ship(self, format: str, folder: Path, made: Made) -> list[dict[str, Any]]:
        """Into the payload; `{path, sha256, size}` of each, the one to open first."""
        names = [f"{format}/{name}" for name in made.files]
        for name, place in zip(made.files, names, strict=True):
            target = self.payload / place
            if target.exists():
                raise HermitcrabError(f"compress.{format}: two kinds leave a file named {name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(folder / name, target)
            except OSError:  # a file system without links
                shutil.copyfile(folder / name, target)
        return describe_files(self.payload, names)


def seconds_an_answer(table: pa.Table) -> float:
    return float(table.schema.metadata[b"cpu_seconds"]) / max(1, table.num_rows)


def ledger(label: str, made: Made) -> dict[str, Any]:
    """Tensors that have another type than was asked, by reason."""
    counts = Ledger("tensors")
    for tensor in made.tensors:
        counts.take(1)
        counts.keep()
        if tensor.reason:
            counts.change(tensor.reason)
    return {"name": f"tensors of {label}", **counts.as_json()}
