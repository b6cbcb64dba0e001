from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.references import fetch, resolve
from hermitcrab.store import Store

ROWS = "CREATE TABLE r (id INTEGER, prompt TEXT, score DOUBLE PRECISION)"
VALUES = "INSERT INTO r VALUES (1, 'good 天气', 0.5), (2, 'bad', 1.5), (3, NULL, NULL)"
ASK = "SELECT id, prompt, score FROM r ORDER BY id"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """A server of its own: a free port, a temporary folder, and no root (it refuses to run as root)."""
    programs = _programs()
    if programs is None:
        pytest.skip("needs PostgreSQL (Debian: postgresql)")
    folder = tmp_path_factory.mktemp("pg")
    as_user: list[str] = []
    if os.getuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("needs setpriv, to run PostgreSQL as another user than root")
        as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        folder = Path(subprocess.check_output([*as_user, "mktemp", "-d"], text=True, cwd="/").strip())
    (secret := folder / "secret").touch()
    secret.write_text("hunter2")
    secret.chmod(0o644)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    more = {
        "cwd": "/",
        "check": True,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": {**os.environ, "HOME": str(folder)},
    }
    subprocess.run(
        [
            *as_user,
            str(programs / "initdb"),
            "-D",
            str(data),
            "-U",
            "crab",
            "-A",
            "scram-sha-256",
            f"--pwfile={secret}",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        ],
        **more,
    )
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    control = [*as_user, str(programs / "pg_ctl"), "-D", str(data), "-w"]
    subprocess.run([*control, "-l", str(folder / "log"), "-o", options, "start"], **more)
    try:
        yield f"postgresql://crab:hunter2@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **more)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def filled(postgres):
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(postgres, autocommit=True) as link, link.cursor() as cursor:
        cursor.execute(ROWS)
        cursor.execute(VALUES)
    return postgres


@pytest.fixture
def sqlite():
    with sqlite3.connect("a.db") as link:
        link.execute(ROWS)
        link.execute(VALUES)
    link.close()
    return "sqlite:///a.db"


@pytest.fixture
def duck():
    with duckdb.connect("a.duckdb") as link:
        link.execute(ROWS)
        link.execute(VALUES)
    return "duckdb:///a.duckdb"


@pytest.fixture(params=["filled", "sqlite", "duck"])
def database(request):
    return request.getfixturevalue(request.param)


def test_answer_is_kept_as_rows(database, store):
    found = resolve(f"{database} {ASK}", None, store)
    table = pq.read_table(fetch(found, store)).to_pydict()
    assert table == {"id": [1, 2, 3], "prompt": ["good 天气", "bad", None], "score": [0.5, 1.5, None]}
    assert resolve(f"{database} {ASK}", None, store).identity == found.identity
    assert "hunter2" not in found.uri


def test_nothing_can_be_written(database, store):
    for query in ("INSERT INTO r VALUES (9, 'x', 1)", "DELETE FROM r", "DROP TABLE r", "CREATE TABLE s (a INT)"):
        with pytest.raises(HermitcrabError):
            resolve(f"{database} {query}", None, store)
    assert pq.read_table(resolve(f"{database} {ASK}", None, store).path).num_rows == 3


def test_error_of_sql_is_one_sentence_without_the_password(database, store):
    with pytest.raises(HermitcrabError, match=r"does not answer: .*no_such") as told:
        resolve(f"{database} SELECT no_such FROM r", None, store)
    assert "hunter2" not in str(told.value)
    assert "\n" not in str(told.value)


def test_changed_answer_is_noticed_and_a_digest_pins_one(sqlite, store):
    first = resolve(f"{sqlite} {ASK}", None, store)
    with sqlite3.connect("a.db") as link:
        link.execute("UPDATE r SET prompt = 'other' WHERE id = 2")
    link.close()
    assert resolve(f"{sqlite} {ASK}", None, store).identity != first.identity
    Path("a.db").unlink()
    assert resolve(f"{sqlite} {ASK}", first.identity, store).path == first.path  # without the database


def test_other_answer_than_the_pinned_one_is_refused(sqlite, store):
    with pytest.raises(HermitcrabError, match="expected sha256:00"):
        resolve(f"{sqlite} {ASK}", "sha256:" + "0" * 64, store)


def test_query_of_a_database_reads_no_other_file(duck, store):
    Path("secret.csv").write_text("a\n1\n")
    with pytest.raises(HermitcrabError, match="does not answer"):
        resolve(f"{duck} SELECT * FROM 'secret.csv'", None, store)


def test_wrong_password_and_a_server_that_is_not_there(filled, store):
    with pytest.raises(HermitcrabError, match="does not answer") as told:
        resolve(f"{filled.replace('hunter2', 'wrongpw')} SELECT 1", None, store)
    assert "wrongpw" not in str(told.value)
    with pytest.raises(HermitcrabError, match="does not answer"):
        resolve("postgresql://127.0.0.1:1/x SELECT 1", None, store)


def test_what_is_missing_is_said(sqlite, store):
    with pytest.raises(UsageError, match="needs a `query`"):
        resolve(sqlite, None, store)
    with pytest.raises(UsageError, match=r"there is no file b\.db"):
        resolve("sqlite:///b.db SELECT 1", None, store)


def test_types_without_a_parquet_of_their_own_come_as_text(filled, store):
    found = resolve(
        f"{filled} SELECT 12.50::numeric AS n, '2026-01-02'::date AS d, true AS b, ARRAY[1,2] AS a, NULL AS e",
        None,
        store,
    )
    row = pq.read_table(found.path).to_pylist()[0]
    assert row["n"] == "12.50"
    assert (str(row["d"]), row["b"], row["a"], row["e"]) == ("2026-01-02", True, [1, 2], None)
