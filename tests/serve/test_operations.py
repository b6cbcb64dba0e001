"""Running a server: health, figures, keys and their limits, logs, an ending that loses nothing, models exchanged under load."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("torch")
import psutil
from serving import KEY, PATIENCE, Server, read_events, serve, until_data

from hermitcrab.serve.keys import make_key

LONG = {"model": "plain", "prompt": "the weather is", "max_tokens": 900}
SHORT = {**LONG, "max_tokens": 5}


@pytest.fixture
def folder(project: Path, tmp_path: Path) -> Path:
    """A model of its own, which a test may edit."""
    shutil.copytree(project / "plain", tmp_path / "p" / "plain")
    return tmp_path / "p"


@pytest.fixture
def server(folder: Path):
    made = serve(folder, "plain", "--unverified", "--slots", "2", "--drain", "60", key=KEY)
    yield made
    made.process.kill()
    made.process.wait()


def engine_of(server: Server) -> psutil.Process:
    """The process of the engine."""
    found = [
        p
        for p in psutil.Process(server.process.pid).children()
        if "hermitcrab.serve.engines.process" in " ".join(p.cmdline())
    ]
    assert len(found) == 1
    return found[0]


def test_health_tests_the_engine_and_a_killed_one_comes_back(server):
    assert server.raw("GET", "/health/live", Authorization="")[:2] == (200, {"status": "ok", "why": []})
    assert server.raw("GET", "/health/ready", Authorization="")[0] == 200
    expected = server.post("/v1/completions", SHORT)[1]["choices"][0]["text"]
    engine = engine_of(server)
    engine.suspend()  # it is there, and does not answer
    status, told, _ = server.raw("GET", "/health/live", Authorization="")
    assert (status, told["status"]) == (503, "dead")
    assert "did not answer" in told["why"][0]
    engine.resume()
    stream = server.send("/v1/completions", {**LONG, "stream": True})
    until_data(stream)
    engine.kill()
    told = read_events(stream)
    assert b"[DONE]" not in told
    assert json.loads(told.rpartition(b"data: ")[2].split(b"\n")[0])["error"]["code"] == "engine_lost"
    # What had not begun is answered by the next engine.
    assert server.post("/v1/completions", SHORT)[1]["choices"][0]["text"] == expected
    assert server.raw("GET", "/health/live")[0] == 200
    assert server.gauge("crab:engine_restarts") == 1
    assert any("it is started again" in told["message"] for told in server.events("said"))


def test_a_model_edited_on_disk_is_noticed_and_no_longer_served(server, folder):
    (folder / "plain" / "config.json").write_text((folder / "plain" / "config.json").read_text() + "\n")
    status, told, _ = server.raw("GET", "/health/ready")
    assert (status, told["status"]) == (503, "not_ready")
    assert told["why"] == ["config.json of plain was changed on disk after it was loaded"]
    status, told, headers = server.post("/v1/completions", SHORT)
    assert (status, told["error"]["code"], headers["Retry-After"]) == (503, "model_changed", "30")
    assert server.until_told("model_changed")["why"] == "config.json of plain was changed on disk after it was loaded"
    assert server.raw("GET", "/health/live")[0] == 200
    status, told, _ = server.raw("POST", "/admin/reload")
    assert (status, told) == (200, {"models": ["plain"]})
    assert server.raw("GET", "/health/ready")[0] == 200
    status, told, _ = server.post("/v1/completions", SHORT)
    assert status == 200
    assert told["system_fingerprint"] != server.models[0]["digest"]


def test_an_edit_is_noticed_without_being_asked(server, folder):
    os.utime(folder / "plain" / "model.safetensors", ns=(1, 1))
    assert server.until_told("model_changed")["why"].startswith("model.safetensors of plain")


def test_a_reload_under_load_drops_no_request(server):
    expected = server.post("/v1/completions", {**LONG, "max_tokens": 40})[1]["choices"][0]["text"]
    until = time.monotonic() + 8

    def ask(_: int) -> list[str]:
        found = []
        while time.monotonic() < until:
            found.append(server.client.completions.create(**{**LONG, "max_tokens": 40}).choices[0].text)
        return found

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, i) for i in range(4)]
        first = engine_of(server).pid
        assert server.raw("POST", "/admin/reload")[0] == 200
        server.process.send_signal(signal.SIGHUP)
        texts = [text for done in asking for text in done.result()]
    assert set(texts) == {expected}
    assert len(texts) >= 4
    ends = time.monotonic() + PATIENCE
    while len(server.events("reloaded")) < 2 or len(psutil.Process(server.process.pid).children()) > 1:
        assert time.monotonic() < ends
        time.sleep(0.1)
    assert engine_of(server).pid != first
    assert server.post("/v1/completions", SHORT)[0] == 200


def test_a_reload_that_cannot_be_leaves_everything_as_it_was(server, folder):
    (folder / "plain" / "tokenizer.json").rename(folder / "tokenizer.json")
    status, told, _ = server.raw("POST", "/admin/reload")
    assert (status, told["error"]["code"]) == (500, "reload_failed")
    assert "everything stays as it was" in told["error"]["message"]
    assert server.raw("GET", "/v1/models")[1]["data"][0]["id"] == "plain"


def test_told_to_end_it_finishes_what_runs_and_takes_nothing_new(server):
    stream = server.send(
        "/v1/completions", {**LONG, "max_tokens": 400, "stream": True, "stream_options": {"include_usage": True}}
    )
    first = until_data(stream)
    server.process.send_signal(signal.SIGTERM)
    server.until_told("draining")
    assert server.raw("GET", "/health/ready")[:2] == (
        503,
        {"status": "draining", "why": ["the server is about to end"]},
    )
    status, told, headers = server.post("/v1/completions", SHORT)
    assert (status, told["error"]["code"], headers["Retry-After"]) == (503, "draining", "5")
    told = (first + read_events(stream)).decode()
    assert '"completion_tokens":400' in told
    assert "data: [DONE]" in told
    assert server.process.wait(PATIENCE) == 0


def test_told_twice_it_ends_at_once(server):
    stream = server.send("/v1/completions", {**LONG, "stream": True})
    until_data(stream)
    engine = engine_of(server)
    server.process.send_signal(signal.SIGTERM)
    server.until_told("draining")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(PATIENCE) == 0
    assert b"[DONE]" not in read_events(stream)
    assert not engine.is_running()
    assert server.events("ending_now")


def test_figures_are_under_the_names_that_dashboards_know(server):
    prompt = server.post("/v1/completions", SHORT)[1]["usage"]["prompt_tokens"]
    server.post(
        "/v1/chat/completions",
        {"model": "plain", "messages": [{"role": "user", "content": "a"}], "max_tokens": 7, "stream": True},
    )
    assert server.gauge("vllm:generation_tokens_total", model_name="plain") == 12
    assert server.gauge("vllm:prompt_tokens_total") > prompt
    assert server.gauge("vllm:request_success_total", finished_reason="length") == 2
    assert server.gauge("vllm:time_to_first_token_seconds_count") == 2
    assert server.gauge("vllm:inter_token_latency_seconds_count") == 4 + 6
    assert server.gauge("vllm:e2e_request_latency_seconds_count") == 2
    genai = {"gen_ai_request_model": "plain", "gen_ai_system": "transformers"}
    assert server.gauge("gen_ai_server_request_duration_seconds_count", gen_ai_operation_name="chat", **genai) == 1
    assert server.gauge("gen_ai_client_token_usage_sum", gen_ai_token_type="output", **genai) == 12
    assert server.gauge("http_requests_total", route="/v1/completions", method="POST", status="200") == 1
    assert server.raw("GET", "/metrics", Authorization="")[0] == 401


def test_the_log_has_no_text_of_anybody(folder):
    secret, more = "the weather is secret", {"temperature": 0.0}
    for arguments, shown in (([], False), (["--log-texts"], True)):
        server = serve(folder, "plain", "--unverified", *arguments)
        told = server.post("/v1/completions", {**SHORT, "prompt": secret, **more})[1]
        server.raw(
            "POST",
            "/v1/completions",
            json.dumps({**SHORT, "prompt": secret, "temprature": secret}).encode(),
            X_Request_Id="mine-1",
        )
        assert server.raw("GET", "/health/ready")[2]["X-Request-Id"]
        assert server.stop() == 0
        first, second = server.events("request")[:2]
        assert (first["status"], first["model"], first["completion_tokens"], first["finish_reasons"]) == (
            200,
            "plain",
            5,
            ["length"],
        )
        assert (second["status"], second["request"], second["outcome"]) == (400, "mine-1", "unknown_parameter")
        assert (secret in server.log.read_text()) == shown
        assert (first.get("answered") == [told["choices"][0]["text"]]) == shown


def test_each_key_has_limits_of_its_own(folder):
    keys = folder.parent / "keys.json"
    few, one, free = (
        make_key(name, keys, *limits)
        for name, limits in (("few", (2, None)), ("one", (None, 1)), ("free", (None, None)))
    )
    server = serve(folder, "plain", "--unverified", "--api-keys", str(keys), "--open-metrics")
    try:
        asked = json.dumps(SHORT).encode()
        statuses = [server.raw("POST", "/v1/completions", asked, Authorization=f"Bearer {few}")[0] for _ in range(3)]
        assert statuses == [200, 200, 429]
        status, told, headers = server.raw("POST", "/v1/completions", asked, Authorization=f"Bearer {few}")
        assert (status, told["error"]["type"], told["error"]["code"]) == (
            429,
            "rate_limit_error",
            "rate_limit_exceeded",
        )
        assert 1 <= int(headers["Retry-After"]) <= 30
        server.key = one
        running = server.send("/v1/completions", LONG)
        server.until(running=1)
        assert server.raw("POST", "/v1/completions", asked)[1]["error"]["code"] == "concurrency_limit"
        assert server.raw("POST", "/v1/completions", asked, Authorization=f"Bearer {free}")[0] == 200
        assert server.gauge("vllm:admission_rejections_total", reason="rate_limit_exceeded") == 2
        assert server.gauge("vllm:admission_rejections_total", reason="concurrency_limit") == 1
        running.close()
        server.until_idle()
        assert server.raw("POST", "/v1/completions", asked)[0] == 200
        assert server.raw("GET", "/metrics", Authorization="")[0] == 200
        assert {told.get("key") for told in server.events("request")} >= {"few", "one", "free"}
        assert not any(key in server.log.read_text() for key in (few, one, free))
    finally:
        server.stop()


def test_without_keys_nobody_reloads_over_http_and_other_pages_may_not_ask(folder):
    server = serve(folder, "plain", "--unverified", "--cors", "https://good.example")
    try:
        assert server.raw("POST", "/admin/reload")[1]["error"]["code"] == "no_keys"
        for origin, allowed in (("https://good.example", "https://good.example"), ("https://evil.example", None)):
            headers = server.raw("GET", "/v1/models", Origin=origin)[2]
            assert headers["Access-Control-Allow-Origin"] == allowed
            headers = server.raw("OPTIONS", "/v1/completions", Origin=origin, Access_Control_Request_Method="POST")[2]
            assert headers["Access-Control-Allow-Origin"] == allowed
            # Without a preflight too: a page may send what it cannot read the answer of.
            status = server.raw("POST", "/v1/completions", json.dumps(SHORT).encode(), Origin=origin)[0]
            assert status == (200 if allowed else 403)
        own = f"http://127.0.0.1:{server.address[1]}"
        assert server.raw("POST", "/v1/completions", json.dumps(SHORT).encode(), Origin=own)[0] == 200
        assert server.raw("POST", "/v1/completions", json.dumps(SHORT).encode(), Origin="null")[0] == 403
    finally:
        server.stop()


def test_it_listens_where_it_was_told_to_and_nowhere_else(server):
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    listening = {c.laddr for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {server.address}
    others = {a.address for found in psutil.net_if_addrs().values() for a in found if a.family == socket.AF_INET} - {
        "127.0.0.1"
    }
    for address in others:
        with pytest.raises(OSError), socket.create_connection((address, server.address[1]), timeout=1):
            pass


def test_a_request_has_a_deadline_and_a_limit_of_tokens(folder):
    server = serve(folder, "plain", "--unverified", "--deadline", "0.3", "--max-tokens", "900")
    try:
        status, told, _ = server.post("/v1/completions", {**LONG, "max_tokens": 901})
        assert (status, "this server makes at most 900" in told["error"]["message"]) == (400, True)
        endless = {**LONG, "n": 16}
        status, told, _ = server.post("/v1/completions", endless)
        assert (status, told["error"]["code"]) == (504, "deadline_exceeded")
        told = read_events(server.send("/v1/completions", {**endless, "stream": True}))
        assert b"[DONE]" not in told
        assert b'"deadline_exceeded"' in told
        server.until_idle()
    finally:
        server.stop()


def test_tls(folder):
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]  # fmt: skip
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, which makes the certificate")
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    server = serve(folder, "plain", "--unverified", "--tls-cert", "cert.pem", "--tls-key", "key.pem")
    try:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
        url = f"https://localhost:{server.address[1]}/v1/models"
        with urllib.request.urlopen(url, context=context, timeout=PATIENCE) as answer:
            assert json.load(answer)["data"][0]["id"] == "plain"
        with pytest.raises(OSError), urllib.request.urlopen(url, timeout=PATIENCE):
            pass
    finally:
        server.stop()


def test_a_package_with_another_template_refuses_to_start(here, capsys):
    from tiny import crab

    package = here / "runs" / "speaks" / "package"
    (package / "chat_template.jinja").write_text("{{ messages[0].content }}")
    status, _, err = crab("serve", "speaks", "--port", "0", "--unverified", capsys=capsys)
    assert status == 1
    assert "its chat template is not the one that it was trained with" in err
