"""prepare: rows are cleaned, split and drawn; what does not come out is in `dropped.parquet` with a reason.

Filters run in the recipe's order. Held-out rows leave the training source just before the first filter that compares
the splits (`decontaminate`), or after the last filter. At the end it is proved that no held-out text stands in training
data.
"""

from __future__ import annotations

from typing import Any, Literal

from hermitcrab.data import clean, split
from hermitcrab.data.ledger import Ledger
from hermitcrab.data.tables import SPLITS, Splits, read_table, write_rows, write_table
from hermitcrab.errors import HermitcrabError
from hermitcrab.recipe import Format, Part, Recipe, Split
from hermitcrab.stages import Job, Stage


class Prepare(Part):
    clean: list[Literal["normalize", "exact-dedup", "decontaminate"]]
    normalize: Literal["NFC", "NFKC"]
    split: Split
    take: int | None
    format: Format


def slice_of(recipe: Recipe) -> Prepare:
    data = recipe.data
    return Prepare(
        clean=data.clean, normalize=data.normalize, split=data.split, take=data.take, format=data.train[0].format
    )


def run(job: Job) -> None:
    part: Prepare = job.part
    folder = job.inputs["collect"].payload
    given = [name for name in SPLITS if (folder / f"{name}.parquet").exists()]
    splits = Splits(part.format, {name: read_table(folder / f"{name}.parquet", part.format) for name in SPLITS})
    collected = sum(table.num_rows for table in splits.tables.values())
    job.draft.facts["split"] = prepare(splits, part, given)
    for name in ("train", "test"):
        if splits.tables[name].num_rows == 0:
            raise HermitcrabError(f"no {name} row is left of {collected:,} collected rows: {_why(splits)}")
    for name, table in splits.tables.items():
        write_table(job.draft.payload / f"{name}.parquet", table)
    _write_dropped(job, splits)
    job.draft.write("ledger.json", ledgers(splits, collected))


def prepare(splits: Splits, part: Prepare, given: list[str]) -> dict[str, Any]:
    """Clean, split, draw and prove, in place. Returns what the split was asked for and got."""
    told: dict[str, Any] | None = None
    for step in part.clean:
        if step == "normalize":
            clean.normalize(splits, part.normalize)
        elif step == "exact-dedup":
            clean.exact_dedup(splits, part.normalize)
        else:
            told = split.hold_out(splits, part.split, given) if told is None else told
            clean.decontaminate(splits)
    if told is None:
        told = split.hold_out(splits, part.split, given)
    if part.take is not None:
        split.take(splits, part.take, part.split.seed)
    split.prove_apart(splits, clean.fold_keys if "decontaminate" in part.clean else clean.exact_keys)
    return told


def ledgers(splits: Splits, collected: int) -> list[dict[str, Any]]:
    """Of all rows, and of each split; a row that moved to held-out data is counted where it ended.

    Raises:
        HermitcrabError: when a row is neither kept nor dropped with a reason.
    """
    whole, each = Ledger("rows"), {name: Ledger("rows") for name in SPLITS}
    for name, table in splits.tables.items():
        each[name].keep(table.num_rows)
        each[name].change("normalized", len(splits.changed.intersection(table.column("row_id").to_pylist())))
    for _, name, reason in splits.dropped:
        each[name].drop(reason)
    for ledger in each.values():
        ledger.take(ledger.kept + sum(ledger.dropped.values()))
        whole.merge(ledger)
    whole.taken = collected
    return [{"name": "all rows", **whole.as_json()}, *({"name": f"{n} rows", **each[n].as_json()} for n in SPLITS)]


def _why(splits: Splits) -> str:
    counts = Ledger("rows")
    for _, name, reason in splits.dropped:
        counts.drop(f"{name} row, {reason}")
    kept = [f"{table.num_rows:,} {name} rows kept" for name, table in splits.tables.items() if table.num_rows]
    return ", ".join([*(f"{count:,} dropped ({reason})" for reason, count in sorted(counts.dropped.items())), *kept])


def _write_dropped(job: Job, splits: Splits) -> None:
    import pyarrow as pa

    rows = [{"row_id": row, "split": name, "reason": reason} for row, name, reason in sorted(splits.dropped)]
    schema = pa.schema([pa.field(column, pa.string(), nullable=False) for column in ("row_id", "split", "reason")])
    write_rows(job.draft.payload / "dropped.parquet", rows, schema)


STAGE = Stage(
    name="prepare",
    inputs=("collect",),
    code=("stages/prepare.py", "data/clean.py", "data/split.py", "data/tables.py", "data/ledger.py"),
    slice=slice_of,
    run=run,
)
