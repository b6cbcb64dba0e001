"""Rows through the cleaning of `prepare`, with everything else left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from hermitcrab.data.cleaning import Cleaning, bytes_of
from hermitcrab.data.engine import Engine
from hermitcrab.data.scratch import RANKS
from hermitcrab.data.tables import FORMATS, row_id, schema, write_rows
from hermitcrab.recipe import Split
from hermitcrab.recipe.clean import Clean, steps
from hermitcrab.stages.prepare import clusters, ledgers
from hermitcrab.stages.prepare import write_rows as write_kept


@dataclass
class Cleaned:
    tables: dict[str, pa.Table]
    told: Any
    census: Any
    cleaning: Cleaning
    folder: Path
    ledger: list[dict[str, Any]] = field(default_factory=list)

    @property
    def clusters(self) -> list[dict[str, Any]]:
        return clusters(self.census).to_pylist()


def clean(
    folder, train, *, given=None, documents=None, format="text", clean=(), form="NFC", validation=0, test=0, seed=0, by=None, within=None,
    take=None, engine=None, files=1,
) -> Cleaned:  # fmt: skip
    """`train` and `given` splits are texts, or tuples of a format's cells."""
    folder = Path(folder)
    paths = {}
    for name, cells in {"train": train, **(given or {})}.items():
        rows = [
            {"row_id": row_id(f"sha256:{name}", i), "source": "s",
             "document": documents[i] if documents and name == "train" else None,
             **dict(zip(FORMATS[format], (cell,) if isinstance(cell, str) else cell, strict=True))}
            for i, cell in enumerate(cells)
        ]  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        paths[name] = folder / f"{name}.parquet"
        write_rows(paths[name], rows, schema(format))
    part = Split(validation=validation, test=test, seed=seed, by=by, within=within)
    return clean_files(folder, paths, format=format, clean=clean, form=form, split=part,
                       take=take, engine=engine)  # fmt: skip


def clean_files(folder, paths, *, format="text", clean=(), form="NFC", split=None, take=None, engine=None) -> Cleaned:
    listed = steps(TypeAdapter(Clean).validate_python(list(clean)), form)
    work = Path(folder) / "work"
    work.mkdir(parents=True, exist_ok=True)
    paths = {name: paths[name] for name in ("train", "validation", "test") if name in paths}
    run = Cleaning(
        format, listed, form, split or Split(validation=0, test=0), take, work, engine or Engine(size=bytes_of(paths))
    )
    census, scratch = run.run(paths)
    out = Path(folder) / "out"
    out.mkdir(exist_ok=True)
    changed = write_kept(out, format, census, scratch, run.names)
    collected = sum(pq.read_metadata(path).num_rows for path in paths.values())
    tables = {name: pq.read_table(out / f"{name}.parquet") for name in RANKS}
    return Cleaned(tables, run.told, census, run, out, ledgers(census, changed, collected))


def texts_in(found: Cleaned, split: str = "train", column: str | None = None) -> list[str]:
    return found.tables[split].column(column or found.tables[split].column_names[3]).to_pylist()


def dropped(found: Cleaned) -> list[tuple[str, str, str]]:
    return found.census.dropped()


def reasons(found: Cleaned) -> list[tuple[str, str]]:
    return sorted((split, reason) for _, split, reason in dropped(found))
