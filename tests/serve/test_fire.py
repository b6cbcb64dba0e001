"""What strangers, broken clients and accidents do to a server: nothing of it crashes it, holds it or reaches another's answer."""

from __future__ import annotations

import contextlib
import json
import random
import select
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("torch")
import psutil
from serving import PATIENCE, Server, read_events, serve

SHORT = {"model": "plain", "prompt": "the weather is", "max_tokens": 5}
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(project: Path):
    made = serve(project, "plain", "--unverified", "--slots", "4", "--queue", "8", "--max-body", "4")
    yield made
    assert made.process.poll() is None, "it did not survive"
    assert made.stop() == 0


@pytest.fixture
def answer(server: Server):
    """What the server answers when nobody disturbs it; asked again when the test is over."""
    server.until_idle()
    status, told, _ = server.post("/v1/completions", SHORT)
    assert status == 200
    yield told["choices"]
    server.until_idle()
    status, again, _ = server.post("/v1/completions", SHORT)
    assert (status, again["choices"]) == (200, told["choices"])


def until_closed(connection: socket.socket) -> bytes:
    found = b""
    try:
        while more := connection.recv(1 << 16):
            found += more
    except ConnectionError:
        pass
    return found


def test_a_hundred_clients_hang_up_in_the_middle(server, answer):
    asked = {**SHORT, "max_tokens": 200, "stream": True}
    draw = random.Random(5)

    def hang_up(_: int) -> None:
        connection = server.send("/v1/completions", asked)
        connection.settimeout(draw.uniform(0.01, 0.5))
        with contextlib.suppress(TimeoutError):
            connection.recv(draw.choice([1, 300, 3000]))
        connection.close()

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(hang_up, range(100)))


def test_a_head_that_comes_a_byte_a_second_is_cut_off(server, answer):
    """So many such clients do not keep others out, and each is told and closed in time."""
    slow = [server.connect() for _ in range(50)]
    for byte in b"GET /":
        for connection in slow:
            if not select.select([connection], [], [], 0)[
                0
            ]:  # cut off already: a byte more would be answered by a reset
                connection.sendall(bytes([byte]))
        time.sleep(1)
        assert server.post("/v1/completions", SHORT)[1]["choices"] == answer
    told = [until_closed(connection) for connection in slow]  # every one comes to its end
    assert any(b"408 Request Timeout" in end for end in told)
    for connection in slow:
        connection.close()


def test_a_body_that_does_not_come_is_cut_off(server, answer, monkeypatch):
    connection = server.connect()
    connection.sendall(f"{HEAD}Content-Length: 100\r\n\r\n{{".encode())
    told = until_closed(connection)
    assert b" 408 " in told.split(b"\r\n")[0]
    assert b"body_too_slow" in told


@pytest.mark.parametrize("told", [True, False])
def test_a_hundred_megabytes_are_refused_and_not_kept(server, answer, told):
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    connection = server.connect()
    size = 100 << 20
    connection.sendall(f"{HEAD}{f'Content-Length: {size}' if told else 'Transfer-Encoding: chunked'}\r\n\r\n".encode())
    part = b" " * (1 << 16)
    try:
        for _ in range(size >> 16):
            connection.sendall(part if told else b"10000\r\n" + part + b"\r\n")
    except ConnectionError:
        pass  # it does not listen to the end
    found = until_closed(connection)
    assert not found or b" 413 " in found.split(b"\r\n")[0]
    assert process.memory_info().rss - before < 50 << 20


@pytest.mark.parametrize("head", [b"X-A: " + b"a" * (1 << 20), b"\r\n".join(b"X-%d: a" % i for i in range(50_000))])
def test_endless_headers_are_refused(server, answer, head):
    connection = server.connect()
    with contextlib.suppress(ConnectionError):  # it does not listen to the end
        connection.sendall(HEAD.encode() + head)
    found = until_closed(connection)
    assert not found or b" 431 " in found.split(b"\r\n")[0]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"model": "plain", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "plain", "prompt": "\xff\xfe"}',
        b'{"model": "plain", "prompt": "\\ud800"}',
        b'\xef\xbb\xbf{"model": "plain"}',
        "{}".encode("utf-16"),
        b'{"model": "plain", "prompt": "a", "seed": 1e999}',
        b'{"model": "plain", "prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}",
        b'{"model": "plain", "prompt": "a", "temperature": NaN}',
        b"\0" * 1000,
        b'{"model": "plain", "prompt": "' + b"a" * (3 << 20) + b'"}',
    ],
)
def test_bodies_that_are_meant_to_hurt_are_refused(server, answer, body):
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v2/models/plain/infer"):
        status, told, _ = server.raw("POST", path, body)
        assert status == 400
        assert told["error"] if path.startswith("/v2") else told["error"]["message"]
        assert len(json.dumps(told)) < 2000


@pytest.mark.parametrize(
    "line",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1/models HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /v1/models/..%2f..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /lineage/../../x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: a\r\n"
        b"Sec-WebSocket-Version: 13\r\n\r\n",
        b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ],
)
def test_what_is_no_request_of_ours_opens_nothing(server, answer, line):
    connection = server.connect()
    connection.sendall(line)
    connection.settimeout(15)
    try:
        found = connection.recv(1 << 16)
    except TimeoutError:
        found = b""
    assert b"root:" not in found
    assert b" 50" not in found.split(b"\r\n")[0]
    connection.close()


def test_a_reader_who_does_not_read_does_not_hold_up_the_others(server, answer):
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    slow.connect(server.address)
    server.send("/v1/completions", {**SHORT, "max_tokens": 900, "stream": True}, slow)
    for _ in range(3):
        assert server.post("/v1/completions", SHORT)[1]["choices"] == answer
    slow.settimeout(PATIENCE)
    assert b"[DONE]" in read_events(slow)  # slow, and still whole
    slow.close()


def test_pipelined_requests_are_answered_in_order(server, answer):
    body = json.dumps(SHORT).encode()
    one = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body
    connection = server.connect()
    connection.sendall(one * 3)
    found = b""
    while found.count(b'"text_completion"') < 3:
        found += connection.recv(1 << 16)
    assert found.count(b" 200 OK") == 3
    connection.close()


def test_an_engine_that_is_killed_again_and_again_comes_back(server, answer):
    for _ in range(2):
        (engine,) = psutil.Process(server.process.pid).children()
        engine.kill()
        engine.wait()
        assert server.post("/v1/completions", SHORT)[1]["choices"] == answer
