"""prepare: rows are cleaned, split and drawn; what does not come out is in `dropped.parquet` with a reason.

Filters run in the recipe's order. Held-out rows leave the training source just before the first filter that compares
the splits (`decontaminate`), or after the last filter. At the end it is proved that no held-out text stands in training
data. Rows are written sorted by id, so the bytes depend on the rows alone: not on files, engine or machine.

    train.parquet, validation.parquet, test.parquet   the rows
    dropped.parquet         row_id, split, reason
    clusters.parquet        near-dedup: row_id, split, filter, kept (the row that stays for it), kept_split, similarity
    contamination.parquet   decontaminate by n-grams: where, see `data.contamination`
    tokens/                 data.tokens: NAME.bin and NAME.idx of each split (document i is row i), tokenizer.json, tokens.json
    filters.json            what each filter changed and found, in texts
    ledger.json             rows, by reason
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hermitcrab.data import tokens
from hermitcrab.data.census import Census
from hermitcrab.data.cleaning import Cleaning, bytes_of
from hermitcrab.data.engine import Engine
from hermitcrab.data.ledger import Ledger
from hermitcrab.data.scratch import RANKS, Scratch, id_text, ids, own_columns
from hermitcrab.data.tables import SPLITS, TableWriter, schema, write_table
from hermitcrab.digest import digest_file
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.progress import progress
from hermitcrab.recipe import Format, Part, Recipe, Split
from hermitcrab.recipe.clean import Clean, NearDedup, named, steps
from hermitcrab.recipe.data import Tokens
from hermitcrab.references import check_digest
from hermitcrab.stages import Job, Stage

if TYPE_CHECKING:
    import pyarrow as pa

PLAIN = ("normalize", "exact-dedup", "decontaminate")  # the ledger says all that these do


class Prepare(Part):
    clean: Clean
    normalize: Literal["NFC", "NFKC"]
    split: Split
    take: int | None
    format: Format
    tokens: Tokens | None = None


def slice_of(recipe: Recipe) -> Prepare:
    data = recipe.data
    if data.tokens is not None and data.train[0].format != "text":
        raise UsageError(f"data.tokens needs rows of format `text`. Received: {data.train[0].format}")
    return Prepare(
        clean=data.clean,
        normalize=data.normalize,
        split=data.split,
        take=data.take,
        format=data.train[0].format,
        tokens=data.tokens,
    )


def run(job: Job) -> None:
    part: Prepare = job.part
    folder = job.inputs["collect"].payload
    files = {name: path for name in SPLITS if (path := folder / f"{name}.parquet").exists()}
    listed = steps(part.clean, part.normalize)
    engine = Engine(job.cluster, bytes_of(files))
    cleaning = Cleaning(part.format, listed, part.normalize, part.split, part.take, job.draft.work.absolute(), engine)
    census, scratch = cleaning.run({name: path.absolute() for name, path in files.items()})
    collected = _collected(files)
    job.draft.facts |= {"split": cleaning.told, **cleaning.facts}
    for name in ("train", "test"):
        if census.count(RANKS.index(name)) == 0:
            raise HermitcrabError(f"no {name} row is left of {collected:,} collected rows: {_why(census)}")
    changed = write_rows(job.draft.payload, part.format, census, scratch, cleaning.names)
    write_table(job.draft.payload / "dropped.parquet", _dropped(census))
    if any(isinstance(options, NearDedup) for _, options in listed):
        write_table(job.draft.payload / "clusters.parquet", clusters(census))
    if cleaning.evidence is not None:
        write_table(job.draft.payload / "contamination.parquet", cleaning.evidence)
    if any(name not in PLAIN for name, _ in named(part.clean)):
        job.draft.write("filters.json", cleaning.filters)
    job.draft.write("ledger.json", ledgers(census, changed, collected))
    if part.tokens is not None:
        base = base_tokenizer(job) if part.tokens.tokenizer == "base" else None
        job.draft.facts["tokens"] = tokens.tokenize(job.draft.payload, part.tokens, base)


def base_tokenizer(job: Job) -> tuple[Any, int, int | None]:
    """The tokenizer of the base, its end token, and the one that it puts before a text if it does.

    Raises:
        HermitcrabError: the files are not those that `collect` described, or the tokenizer names no eos_token.
    """
    from hermitcrab.models.tokenizer import read_tokenizer

    base, path = job.inputs["collect"].read("base.json"), job.base_path
    root = path if path.is_dir() else path.parent
    for file in base["files"]:
        if Path(file["path"]).suffix in (".json", ".jinja", ".gguf"):
            check_digest(str(root / file["path"]), digest_file(root / file["path"]), file["sha256"])
    text = read_tokenizer(path)
    eos = text.id("eos_token")
    if eos is None:
        raise HermitcrabError(f"{base['name']}: its tokenizer names no eos_token, so no document could end")
    return text.backend, eos, text.id("bos_token") if text.adds_bos else None


def _collected(files: Mapping[str, Path]) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in files.values())


def write_rows(
    folder: Path, format: str, census: Census, scratch: Scratch, names: list[str]
) -> dict[str, dict[str, int]]:
    """The rows that stay, each split sorted by id. Returns of each split how many were changed, by filter."""
    import pyarrow as pa

    changed: dict[str, dict[str, int]] = {name: dict.fromkeys(names, 0) for name in RANKS}
    with ExitStack() as stack, progress("writing rows", len(census), "rows") as bar:
        writers = [stack.enter_context(TableWriter(folder / f"{name}.parquet", schema(format))) for name in RANKS]
        for bucket in range(len(scratch.places)):
            table = scratch.read(bucket)
            at = census.find(ids(table.column("row_id")), table.column("_split").to_numpy())
            for rank, name in enumerate(RANKS):
                mine = np.flatnonzero(census.alive_N[at] & (census.home_N[at] == rank))
                rows = table.take(pa.array(mine[np.argsort(census.id_N[at[mine]], kind="stable")]))
                bits = rows.column("_changed").to_numpy()
                for bit, filter in enumerate(names):
                    changed[name][filter] += int(np.count_nonzero(bits >> np.uint32(bit) & np.uint32(1)))
                writers[rank].write(rows.select(own_columns(format)))
            bar.add(table.num_rows)
    return changed


def ledgers(census: Census, changed: Mapping[str, Mapping[str, int]], collected: int) -> list[dict[str, Any]]:
    """Of all rows, and of each split; a row that moved to held-out data is counted where it ended.

    Raises:
        HermitcrabError: when a row is neither kept nor dropped with a reason.
    """
    whole, each = Ledger("rows"), {name: Ledger("rows") for name in SPLITS}
    for name, ledger in each.items():
        ledger.keep(census.count(RANKS.index(name)))
        for filter, count in changed[name].items():
            ledger.change("normalized" if filter == "normalize" else f"changed by {filter}", count)
    for (name, reason), count in census.why().items():
        each[name].drop(reason, count)
    for ledger in each.values():
        ledger.take(ledger.kept + sum(ledger.dropped.values()))
        whole.merge(ledger)
    whole.taken = collected
    return [{"name": "all rows", **whole.as_json()}, *({"name": f"{n} rows", **each[n].as_json()} for n in SPLITS)]


def _why(census: Census) -> str:
    counts = Ledger("rows")
    for (name, reason), count in census.why().items():
        counts.drop(f"{name} row, {reason}", count)
    left = {name: census.count(RANKS.index(name)) for name in SPLITS}
    kept = [f"{count:,} {name} rows kept" for name, count in left.items() if count]
    return ", ".join([*(f"{count:,} dropped ({reason})" for reason, count in sorted(counts.dropped.items())), *kept])


def _dropped(census: Census) -> pa.Table:
    import pyarrow as pa

    kind = pa.schema([pa.field(column, pa.string(), nullable=False) for column in ("row_id", "split", "reason")])
    columns = list(zip(*census.dropped(), strict=True)) or [(), (), ()]
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=kind)


def clusters(census: Census) -> pa.Table:
    """For which row each duplicate went, sorted by the row that stays. A row that stays for others is its own cluster."""
    import pyarrow as pa

    splits, found = np.array(RANKS), []
    for name, places, kept, similarity in census.pairs:
        found.append(pa.table({
            "kept": pa.array([id_text(number) for number in census.id_N[kept]], pa.string()),
            "kept_split": pa.array(splits[census.home_N[kept]].tolist(), pa.string()),
            "row_id": pa.array([id_text(number) for number in census.id_N[places]], pa.string()),
            "split": pa.array(splits[census.home_N[places]].tolist(), pa.string()),
            "filter": pa.array([name] * len(places), pa.string()),
            "similarity": pa.array(similarity, pa.float64(), from_pandas=True),
        }))  # fmt: skip
    return pa.concat_tables(found).sort_by([(name, "ascending") for name in ("kept", "kept_split", "row_id", "split")])


STAGE = Stage(
    name="prepare",
    inputs=("collect",),
    code=(
        "stages/prepare.py", "data/census.py", "data/cleaning.py", "data/contamination.py", "data/engine.py", "data/filters",
        "data/fold.py", "data/phash.py", "data/kernel.py", "data/ledger.py", "data/lines.py", "data/near.py", "data/parts.py",
        "data/scratch.py", "data/segment.py", "data/split.py", "data/tables.py", "data/tokens.py", "data/megatron.py",
        "models/tokenizer.py", "models/gguf_tokenizer.py", "models/chat.py", "models/formats",
    ),
    slice=slice_of,
    run=run,
)  # fmt: skip
