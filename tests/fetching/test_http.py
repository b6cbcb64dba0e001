"""A real server on this machine that behaves as servers do: breaks off, lies, hangs, redirects, changes."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hermitcrab.digest import digest_bytes
from hermitcrab.errors import HermitcrabError
from hermitcrab.fetching import http
from hermitcrab.references import fetch, resolve
from hermitcrab.store import Store

DATA = bytes(range(256)) * 8192  # 2 MiB


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, start = self.server, 0
        server.asked.append((self.path, dict(self.headers)))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", server.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/hang":
            server.over.wait(20)
            return
        given = self.headers.get("Range")
        if given and self.headers.get("If-Range") in (None, server.tag):
            start = int(given.removeprefix("bytes=").rstrip("-"))
        body = server.data[start:]
        self.send_response(206 if start else 200)
        if server.tag:
            self.send_header("ETag", server.tag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
        self.send_header("Content-Length", str(len(body) + server.lie))
        self.end_headers()
        if server.breaks and len(server.asked) > 2:  # not the looks before
            server.breaks -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        with contextlib.suppress(OSError):
            self.wfile.write(body)
        self.close_connection = server.lie != 0


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.asked, found.tag, found.data, found.breaks, found.lie, found.location = [], '"one"', DATA, 0, 0, ""
        found.over = threading.Event()
        found.url = f"http://127.0.0.1:{found.server_port}"
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.over.set()
        found.shutdown()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def got(reference, store, sha256=None):
    return fetch(resolve(reference, sha256, store), store).read_bytes()


def test_file_is_fetched_once_and_known_by_its_tag(server, store):
    assert got(f"{server.url}/a.csv", store) == DATA
    asked = len(server.asked)
    again = resolve(f"{server.url}/a.csv", None, store)
    assert again.path is not None
    assert len(server.asked) == asked + 1  # its headers alone
    assert again.uri == f"{server.url}/a.csv"


def test_broken_download_goes_on_where_it_broke_off(server, store):
    server.breaks = 3
    assert got(f"{server.url}/a.csv", store) == DATA
    ranges = [headers["Range"] for _, headers in server.asked if "Range" in headers]
    assert ranges == [f"bytes={len(DATA) - len(DATA) // 2**n}-" for n in (1, 2, 3)]


def test_download_that_broke_in_an_earlier_run_goes_on(server, store, monkeypatch):
    server.breaks = 1
    monkeypatch.setattr("hermitcrab.fetching.ATTEMPTS", 0)
    with pytest.raises(HermitcrabError, match="run again to go on from there"):
        got(f"{server.url}/a.csv", store)
    assert got(f"{server.url}/a.csv", store) == DATA
    assert [h["Range"] for _, h in server.asked if "Range" in h] == [f"bytes={len(DATA) // 2}-"]


def test_changed_file_is_another_source_and_said(server, store, capsys):
    first = resolve(f"{server.url}/a.csv", None, store)
    fetch(first, store)
    server.tag, server.data = '"two"', DATA[::-1]
    second = resolve(f"{server.url}/a.csv", None, store)
    assert second.identity != first.identity
    assert fetch(second, store).read_bytes() == DATA[::-1]
    assert "is not what it was when it was last fetched" in capsys.readouterr().err


def test_digest_of_the_recipe_decides(server, store):
    assert got(f"{server.url}/a.csv", store, digest_bytes(DATA)) == DATA
    asked = len(server.asked)
    assert got(f"{server.url}/a.csv", store, digest_bytes(DATA)) == DATA
    assert len(server.asked) == asked  # what is pinned and cached needs no network
    with pytest.raises(HermitcrabError, match="expected sha256:0000"):
        got(f"{server.url}/b.csv", store, "sha256:" + "0" * 64)


def test_server_without_any_mark_needs_a_digest(server, store):
    server.tag = None
    with pytest.raises(HermitcrabError, match="give its sha256"):
        resolve(f"{server.url}/a.csv", None, store)
    assert got(f"{server.url}/a.csv", store, digest_bytes(DATA)) == DATA


def test_lying_length_is_one_sentence(server, store):
    server.lie = 1000
    with pytest.raises(HermitcrabError, match=r"broke off 5 times at byte 2,097,152"):
        got(f"{server.url}/a.csv", store)


def test_hanging_server_is_one_sentence(server, store, monkeypatch):
    monkeypatch.setattr(http, "READ", 0.2)
    with pytest.raises(HermitcrabError, match=r"does not answer within 0\.2 seconds"):
        resolve(f"{server.url}/hang", None, store)


def test_redirect_into_the_own_network_is_refused_unless_the_recipe_allows_it(server, store):
    server.location = f"http://localhost:{server.server_port}/a.csv"
    with pytest.raises(HermitcrabError, match=r"redirects to localhost, which is .* no public address; refused"):
        resolve(f"{server.url}/to/a.csv", None, store)
    assert got(f"{server.url}/to/a.csv redirects:any", store) == DATA
    server.location = "file:///etc/passwd"
    with pytest.raises(HermitcrabError, match="which is no web address"):
        resolve(f"{server.url}/to/a.csv", None, store)


def test_redirects_without_end_are_refused(server, store):
    server.location = f"{server.url}/to/again"
    with pytest.raises(HermitcrabError, match="redirects over 8 times"):
        resolve(f"{server.url}/to/a.csv redirects:any", None, store)


def test_file_larger_than_what_is_allowed_is_refused_before_a_byte(server, store, monkeypatch):
    monkeypatch.setattr("hermitcrab.fetching.LARGEST", 1000)
    with pytest.raises(HermitcrabError, match="has 2,097,152 bytes; at most 1,000"):
        got(f"{server.url}/a.csv", store)


def test_address_without_a_path_is_refused(server, store):
    with pytest.raises(HermitcrabError, match="expected https://HOST/PATH"):
        resolve(server.url, None, store)
