"""An S3 server on this machine, spoken to over HTTP by boto3 as any other."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

from hermitcrab.digest import digest_bytes
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.references import fetch, resolve
from hermitcrab.store import Store

DATA = b"text\nhello\n" * 100_000


@pytest.fixture(scope="module")
def endpoint():
    pytest.importorskip("moto.server", reason="needs moto[server]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(endpoint, tmp_path, monkeypatch):
    import boto3

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hunter2",
                        "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="rows")
    client.put_object(Bucket="rows", Key="a/b.csv", Body=DATA)
    return client


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_object_is_fetched_once_and_a_changed_one_noticed(bucket, store, capsys):
    first = resolve("s3://rows/a/b.csv", None, store)
    assert fetch(first, store).read_bytes() == DATA
    again = resolve("s3://rows/a/b.csv", None, store)
    assert (again.identity, again.path is not None) == (first.identity, True)
    bucket.put_object(Bucket="rows", Key="a/b.csv", Body=b"text\nother\n")
    other = resolve("s3://rows/a/b.csv", None, store)
    assert other.identity != first.identity
    assert fetch(other, store).read_bytes() == b"text\nother\n"
    assert "is not what it was" in capsys.readouterr().err


def test_download_that_broke_goes_on(bucket, store, monkeypatch):
    from hermitcrab.fetching import Broken, s3

    whole, asked = s3.Bucket._chunks, []

    def breaking(self, body):
        asked.append(body)
        for n, chunk in enumerate(whole(self, body)):
            if len(asked) == 1 and n == 1:
                raise Broken("cut")
            yield chunk

    monkeypatch.setattr(s3.Bucket, "_chunks", breaking)
    found = resolve("s3://rows/a/b.csv", digest_bytes(DATA), store)
    assert fetch(found, store).read_bytes() == DATA
    assert len(asked) == 2


def test_what_is_not_there_is_said(bucket, store):
    with pytest.raises(HermitcrabError, match="there is no such object"):
        resolve("s3://rows/none.csv", None, store)
    with pytest.raises(UsageError, match="expected s3://BUCKET/KEY"):
        resolve("s3://rows", None, store)
    with pytest.raises(HermitcrabError, match="expected sha256:00"):
        fetch(resolve("s3://rows/a/b.csv", "sha256:" + "0" * 64, store), store)
