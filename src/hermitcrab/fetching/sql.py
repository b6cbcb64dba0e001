"""What a database answers to a query, kept as a Parquet file: PostgreSQL and SQLite through ADBC, DuckDB through its own library.

The connection cannot write. A database has no version that could be asked for, so every run asks again and a changed answer is another
source; a `sha256` pins one answer, and then the kept file is used without a connection. An answer that should stay the same needs an
ORDER BY. Passwords come from the environment (`env:NAME`, or `PGPASSWORD` as PostgreSQL's own tools have it).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hermitcrab.digest import digest_file, digest_json
from hermitcrab.errors import HermitcrabError, UsageError, needs
from hermitcrab.progress import progress
from hermitcrab.references import Resolved, cache_folder, check_digest, without_credentials
from hermitcrab.store import Store, disk_errors, sync_folder

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = 8192  # rows in a row group of what is kept


def answer(reference: str, scheme: str, sha256: str | None) -> Resolved:
    """What the database answers now, kept; with a sha256, that answer.

    Raises:
        UsageError: an address of another form, no query.
        HermitcrabError: no connection, an error of SQL, another answer than the one whose sha256 is given.
    """
    address, _, query = reference.partition(" ")
    uri = f"{_recorded(address, scheme)}#{digest_json(query).removeprefix('sha256:')[:16]}"
    if not query.strip():
        raise UsageError(f"{without_credentials(address)}: a database needs a `query`, what it is asked in SQL")
    folder = cache_folder("sql", digest_json(uri).removeprefix("sha256:")[:32])
    if sha256 is not None and (kept := folder / f"{sha256.removeprefix('sha256:')}.parquet").is_file():
        return Resolved(reference, uri, sha256, kept, None, "sql")
    with Store(cache_folder()).lock(digest_json(uri), uri), disk_errors("cannot write to the cache"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".ask-") as beside:
            path = Path(beside) / "answer.parquet"
            _write(address, scheme, query, path)
            digest = digest_file(path)
            check_digest(f"{without_credentials(address)}: the answer", digest, sha256)
            kept = folder / f"{digest.removeprefix('sha256:')}.parquet"
            os.replace(path, kept)
            sync_folder(folder)
    return Resolved(reference, uri, digest, kept, None, "sql")


def _recorded(address: str, scheme: str) -> str:
    """An address without password, options and folders of this machine."""
    if scheme in ("postgresql", "postgres"):
        return without_credentials(address)
    return f"{scheme}:{Path(address).name}"


def _file(address: str, scheme: str) -> str:
    """The path of a database in a file: `sqlite:///relative.db`, `sqlite:////absolute.db`."""
    path = address.removeprefix(f"{scheme}://").removeprefix("/")
    if not path or "?" in path:
        raise UsageError(f"{address}: expected {scheme}:///FILE, with four slashes for a path from the root")
    if not Path(path).is_file():
        raise UsageError(f"{address}: there is no file {path}")
    return path


def _write(address: str, scheme: str, query: str, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = without_credentials(address)
    try:
        with _asked(address, scheme, query) as reader, progress(f"asking {name}", unit="rows") as bar:
            schema = pa.schema([pa.field(field.name, _storable(field.type)) for field in reader.schema])
            held, rows = list[pa.RecordBatch](), 0
            with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as out:
                for batch in reader:
                    columns = [
                        _stored(array).cast(field.type) for array, field in zip(batch.columns, schema, strict=True)
                    ]
                    held.append(pa.RecordBatch.from_arrays(columns, schema=schema))
                    rows += batch.num_rows
                    bar.add(batch.num_rows)
                    while rows >= GROUP:  # whole groups, so that how the driver cuts its batches is not in the bytes
                        table = pa.Table.from_batches(held, schema)
                        out.write_table(table.slice(0, GROUP), GROUP)
                        held, rows = table.slice(GROUP).to_batches(), rows - GROUP
                out.write_table(pa.Table.from_batches(held, schema), GROUP)
    except (HermitcrabError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        secret = urlsplit(address).password if "://" in address else None
        told = " ".join(str(error).split())[:300]
        told = told.replace(secret, "…") if secret else told
        raise HermitcrabError(f"{name}: the database does not answer: {told}") from error


def _storable(type: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if isinstance(type, pa.BaseExtensionType):
        return _storable(type.storage_type)
    if pa.types.is_null(type) or pa.types.is_interval(type) or pa.types.is_union(type):
        return pa.string()
    return type


def _stored(array: pa.Array) -> pa.Array:
    import pyarrow as pa

    return array.storage if isinstance(array, pa.ExtensionArray) else array


@contextmanager
def _asked(address: str, scheme: str, query: str) -> Iterator[pa.RecordBatchReader]:
    """The answer, a batch at a time. Writing is refused by the database itself."""
    if scheme == "duckdb":
        with needs("duckdb", "remote").connect(_file(address, scheme), read_only=True) as link:
            link.execute("SET enable_external_access = false")  # a query reads this database, and no other file
            yield link.sql(query).to_arrow_reader(GROUP)
        return
    if scheme == "sqlite":
        path = Path(_file(address, scheme)).resolve()
        link = needs("adbc_driver_sqlite.dbapi", "remote").connect(f"{path.as_uri()}?mode=ro")
        begin = "PRAGMA query_only = 1"
    else:
        address = re.sub(r"^postgres:", "postgresql:", address)
        link = needs("adbc_driver_postgresql.dbapi", "remote").connect(address)
        begin = "SET TRANSACTION READ ONLY"
    with link, link.cursor() as cursor:
        cursor.execute(begin)
        cursor.execute(query)
        yield cursor.fetch_record_batch()
