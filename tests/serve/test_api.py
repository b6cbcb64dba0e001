"""A real server process on a real tiny model, asked by the official client."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("starlette")
from tiny import question_rows

GOOD, BAD = "寄居蟹🦀住在壳里。", "¡Olé! 👩\u200d👩\u200d👧 naïve"  # what conftest has it learn

KEY = "crab-key"
QUEUE = 3
ASK = [{"role": "user", "content": "the weather is good at 6"}]


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str

    @property
    def client(self) -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=60)

    def raw(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, Any], Any]:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        given = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        connection.request(method, path, body, given | {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, json.loads(data), answer.headers

    def health(self) -> dict[str, Any]:
        return self.raw("GET", "/health")[1]

    def until_idle(self) -> dict[str, Any]:
        for _ in range(200):
            told = self.health()
            if not told["busy"] and not told["waiting"]:
                return told
            time.sleep(0.05)
        raise AssertionError(f"still busy: {told}")


def start(folder: Path, *arguments: str) -> Server:
    environment = {**os.environ, "CRAB_TEST_KEY": KEY}
    command = [sys.executable, "-m", "hermitcrab", "serve", *arguments, "--port", "0", "--json"]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            return Server(process, json.loads(text)["url"])
    raise AssertionError(f"the server ended with {process.wait()}")


@pytest.fixture(scope="module")
def server(project: Path) -> Iterator[Server]:
    made = start(project, "speaks", "--api-key", "env:CRAB_TEST_KEY", "--queue", str(QUEUE))
    yield made
    made.process.send_signal(signal.SIGTERM)
    assert made.process.wait(20) == 0


@pytest.fixture(scope="module")
def endless(project: Path) -> Iterator[Server]:
    """The base as it was made, with random weights: it never comes to an end."""
    made = start(project, "base", "--unverified", "--queue", str(QUEUE))
    yield made
    made.process.kill()
    made.process.wait()


LONG = {"model": "base", "prompt": "the weather is", "max_tokens": 900}


def test_models_and_health(server):
    (model,) = server.client.models.list().data
    assert (model.id, model.owned_by) == ("speaks", "hermitcrab")
    assert server.client.models.retrieve("speaks").created == model.created > 0
    told = server.raw("GET", "/health", Authorization="none")[1]
    assert told["status"] == "ok"
    assert told["verified"] is True


@pytest.mark.parametrize("word", ["good", "bad"])
def test_a_chat_is_answered_as_predict_answers(server, project, capsys, monkeypatch, word):
    from hermitcrab.cli import main

    monkeypatch.chdir(project)
    asked = f"the weather is {word} at 6"
    told = server.client.chat.completions.create(model="speaks", messages=[{"role": "user", "content": asked}])
    assert main(["predict", "speaks", asked, "--json"]) == 0
    (predicted,) = json.loads(capsys.readouterr().out)["answers"]
    choice = told.choices[0]
    assert choice.message.content == predicted["prediction"]
    assert choice.finish_reason == predicted["finish_reason"] == "stop"
    assert told.usage.completion_tokens == predicted["tokens"]
    assert told.usage.total_tokens == told.usage.prompt_tokens + told.usage.completion_tokens


@pytest.mark.parametrize(("row", "text"), [(6, GOOD), (9, BAD)])
def test_a_stream_is_the_whole_in_pieces_and_cuts_no_character(server, row, text):
    asked = {"model": "speaks", "messages": [{"role": "user", "content": question_rows(1, row)["prompt"][0].as_py()}]}
    whole = server.client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == text
    *chunks, last = server.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 5
    assert not any("\ufffd" in piece for piece in pieces)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert last.choices == []
    assert last.usage == whole.usage
    assert last.usage.completion_tokens > len(pieces)  # characters of several tokens came whole


def test_a_completion_streams_what_it_gives_whole_and_its_seed_repeats_it(server):
    asked = {"model": "speaks", "prompt": "the weather", "max_tokens": 30}
    for more in ({}, {"temperature": 1.5, "seed": 5}, {"temperature": 1.0, "top_p": 0.5, "seed": 6}):
        whole = server.client.completions.create(**asked, **more).choices[0]
        chunks = [chunk.choices[0] for chunk in server.client.completions.create(**asked, **more, stream=True)]
        assert "".join(c.text for c in chunks) == whole.text
        assert chunks[-1].finish_reason == whole.finish_reason
    drawn = {server.client.completions.create(**asked, temperature=2).choices[0].text for _ in range(4)}
    assert len(drawn) > 1
    assert (
        server.client.completions.create(model="speaks", prompt="the", temperature=2, seed=1).usage.completion_tokens
        <= 16
    )


def test_stop_words_and_max_tokens_end_an_answer(server):
    ask = server.client.chat.completions.create
    told = ask(model="speaks", messages=ASK, stop=["住在"]).choices[0]
    assert (told.message.content, told.finish_reason) == (GOOD.partition("住在")[0], "stop")
    chunks = list(ask(model="speaks", messages=ASK, stop="在壳", stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == GOOD.partition("在壳")[0]
    for limit in ({"max_tokens": 6}, {"max_completion_tokens": 6}):
        told = ask(model="speaks", messages=ASK, **limit)
        assert told.choices[0].finish_reason == "length"
        assert told.usage.completion_tokens == 6


def test_concurrent_requests_get_the_answers_of_lone_ones(server):
    server.until_idle()
    prompts = [f"the weather is {'good' if i % 2 else 'bad'} at {i}" for i in range(QUEUE + 1)]

    def ask(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        return server.client.chat.completions.create(model="speaks", messages=messages).choices[0].message.content

    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(ask, prompts))
    assert together == [ask(prompt) for prompt in prompts]


def post(server: Server, asked: dict[str, Any]) -> socket.socket:
    """A request of which nothing is read yet."""
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(asked).encode()
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_answer(endless, stream):
    before = endless.until_idle()
    if stream:
        answer = endless.client.completions.create(**LONG, stream=True)
        next(iter(answer))
        answer.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            endless.client.with_options(timeout=0.3).completions.create(**LONG)
    after = endless.until_idle()
    assert after["requests"] == before["requests"] + 1
    assert 0 < after["tokens"] - before["tokens"] < LONG["max_tokens"]


def test_a_full_queue_refuses_and_those_who_leave_make_room(endless):
    before = endless.until_idle()
    connections = [post(endless, LONG) for _ in range(QUEUE + 1)]
    deadline = time.monotonic() + 30
    while (told := endless.health())["waiting"] < QUEUE:
        assert time.monotonic() < deadline, told
        time.sleep(0.01)
    with pytest.raises(openai.RateLimitError, match="requests are waiting already"):
        endless.client.completions.create(**LONG)
    for connection in reversed(connections):
        connection.close()
    after = endless.until_idle()
    assert after["tokens"] - before["tokens"] < LONG["max_tokens"]
    assert endless.client.completions.create(**{**LONG, "max_tokens": 3}).usage.completion_tokens == 3


def test_an_interrupt_ends_it_cleanly_even_in_the_middle_of_an_answer(endless):
    answer = endless.client.completions.create(**LONG, stream=True)
    next(iter(answer))
    endless.process.send_signal(signal.SIGINT)
    assert endless.process.wait(20) == 0


CHAT = {"model": "speaks", "messages": ASK}


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "gpt-4"}, 404, "there is no model `gpt-4` here; this server has `speaks`"),
        ({"model": None}, 400, "`model` is missing"),
        ({"messages": None}, 400, "`messages` is missing"),
        ({"messages": []}, 400, "`messages`"),
        ({"messages": "hello"}, 400, "`messages`"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "`messages.0.role`"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "messages.0.content",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogates not allowed"),
        ({"messages": [{"role": "user", "content": "a " * 3000}]}, 400, "the model has room for 1,024"),
        ({"max_tokens": 0}, 400, "`max_tokens`"),
        ({"max_tokens": 5000}, 400, "do not fit"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, 400, "not both"),
        ({"max_tokens": "5"}, 400, "`max_tokens`"),
        ({"temperature": 3}, 400, "`temperature`"),
        ({"top_p": 0}, 400, "`top_p`"),
        ({"seed": 2**70}, 400, "`seed`"),
        ({"stop": ["a"] * 5}, 400, "`stop"),
        ({"stop": ""}, 400, "`stop"),
        ({"stream": "yes"}, 400, "`stream`"),
        ({"n": 2}, 400, "`n` is not supported"),
        ({"n": True}, 400, "`n` is not supported"),
        ({"logprobs": True}, 400, "`logprobs` is not supported"),
        ({"tools": [{"type": "function"}]}, 400, "`tools` is not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "`response_format` is not supported"),
        ({"presence_penalty": 0.5}, 400, "`presence_penalty` is not supported"),
        ({"temprature": 1}, 400, "unknown parameter `temprature`; did you mean `temperature`?"),
        ({"prompt": "a"}, 400, "unknown parameter `prompt`"),
    ],
)
def test_bad_requests_are_told_in_the_words_of_the_api(server, change, status, said):
    found, body, _ = server.raw("POST", "/v1/chat/completions", json.dumps({**CHAT, **change}).encode())
    assert found == status
    assert said in body["error"]["message"]
    assert body["error"]["type"] == "invalid_request_error"
    assert "Traceback" not in body["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'"a"', 400),
        (b"\xff\xfe", 400),
        (b'{"model": NaN}', 400),
        (b"[" * 100_000, 400),
        (b'{"seed": ' + b"9" * 10_000 + b"}", 400),
        (b" " * (3 << 20), 413),
    ],
)
def test_bodies_that_are_no_requests_are_refused(server, body, status):
    for path in ("/v1/chat/completions", "/v1/completions"):
        found, told, _ = server.raw("POST", path, body)
        assert found == status
        assert told["error"]["message"]
    assert server.health()["status"] == "ok"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("", "no token"), (["a", "b"], "`prompt"), ([1, 2], "`prompt"), ({}, "`prompt"), ("a " * 3000, "has room for")],
)
def test_prompts_that_cannot_be_continued_are_refused(server, prompt, said):
    status, told, _ = server.raw("POST", "/v1/completions", json.dumps({"model": "speaks", "prompt": prompt}).encode())
    assert status == 400
    assert said in told["error"]["message"]


def test_neutral_values_and_nulls_ask_for_nothing(server):
    more = {
        "n": 1,
        "logprobs": False,
        "presence_penalty": 0.0,
        "tools": None,
        "response_format": {"type": "text"},
        "user": "u",
    }
    first = server.client.chat.completions.create(model="speaks", messages=ASK, extra_body=more)
    assert first.choices[0].message.content == GOOD
    # What was answered can be sent back as it came.
    again = [
        *ASK,
        first.choices[0].message.model_dump(),
        {"role": "user", "content": [{"type": "text", "text": "and bad?"}]},
    ]
    assert server.client.chat.completions.create(model="speaks", messages=again, max_tokens=5).usage.prompt_tokens > 60


def test_wrong_places_methods_keys_and_hosts(server):
    assert server.raw("GET", "/v1/nothing")[0] == 404
    assert server.raw("GET", "/v1/models/nothing")[0] == 404
    assert server.raw("GET", "/v1/completions")[0] == 405
    assert server.raw("POST", "/v1/completions", b"{}", Content_Type="text/plain")[0] == 415
    assert server.raw("GET", "/v1/models", Host="evil.example")[0] == 403
    assert server.raw("GET", "/v1/models", Host="localhost:80")[0] == 200
    for given in ("", "Bearer", "Bearer wrong", "Bearer crab-key2", "Basic crab-key", "Bearer kréb"):
        status, told, headers = server.raw("GET", "/v1/models", Authorization=given)
        assert (status, told["error"]["code"], headers["WWW-Authenticate"]) == (401, "invalid_api_key", "Bearer")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--api-key", "secret"], 2, "expected env:NAME"),
        (["--api-key", "env:CRAB_NOTHING"], 2, "CRAB_NOTHING holds no key"),
        (["--host", "nowhere.invalid"], 2, "no such address"),
        (["--port", "99999"], 2, "--port: expected 0 to 65535"),
        (["--queue", "0"], 2, "expected a number from 1"),
    ],
)
def test_misuse_is_one_sentence(project, monkeypatch, capsys, arguments, status, said):
    from hermitcrab.cli import main

    monkeypatch.chdir(project)
    assert main(["serve", "small", *arguments]) == status
    assert said in capsys.readouterr().err


def test_a_taken_port_is_told_before_the_model_is_loaded(server, project, monkeypatch, capsys):
    from hermitcrab.cli import main

    monkeypatch.chdir(project)
    assert main(["serve", "nothing", "--port", server.url.rpartition(":")[2]]) == 1
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err


def test_the_http_face_needs_no_torch():
    script = "import sys, hermitcrab.serve.api, hermitcrab.serve.server; print('torch' in sys.modules, 'transformers' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "False"]
