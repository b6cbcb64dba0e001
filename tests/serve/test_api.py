"""A real server process on a real tiny model, asked by the official client."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
from serving import KEY, Server, serve
from tiny import question_rows

GOOD, BAD = "寄居蟹🦀住在壳里。", "¡Olé! 👩\u200d👩\u200d👧 naïve"  # what conftest has it learn

QUEUE = 3
ASK = [{"role": "user", "content": "the weather is good at 6"}]


@pytest.fixture(scope="module")
def server(project: Path) -> Iterator[Server]:
    made = serve(project, "speaks", "plain", "--unverified", "--queue", str(QUEUE), "--slots", "2", key=KEY)
    yield made
    assert made.stop() == 0


@pytest.fixture(scope="module")
def endless(project: Path) -> Iterator[Server]:
    """The base as it was made, with random weights: it never comes to an end."""
    made = serve(project, "base", "--unverified", "--queue", str(QUEUE), "--slots", "1", "--drain", "1")
    yield made
    made.process.kill()
    made.process.wait()


LONG = {"model": "base", "prompt": "the weather is", "max_tokens": 900}


def test_models_are_told_with_their_digests(server):
    speaks, plain = server.client.models.list().data
    assert (speaks.id, speaks.owned_by, speaks.verified) == ("speaks", "hermitcrab", True)
    assert (plain.id, plain.verified) == ("plain", False)
    assert server.client.models.retrieve("speaks").created == speaks.created > 0
    assert speaks.digest != plain.digest
    assert {speaks.digest, plain.digest} == {model["digest"] for model in server.models}
    headers = server.raw("GET", "/v1/models/speaks")[2]
    assert headers["X-Model-Digest"] == speaks.digest


def test_every_answer_carries_the_digest_of_its_model(server):
    for model in server.models:
        asked = {"model": model["name"], "prompt": "a", "max_tokens": 2}
        status, told, headers = server.post("/v1/completions", asked)
        assert (status, told["system_fingerprint"], headers["X-Model-Digest"]) == (
            200,
            model["digest"],
            model["digest"],
        )
        chunks = list(server.client.completions.create(**asked, stream=True))
        assert {chunk.system_fingerprint for chunk in chunks} == {model["digest"]}


def test_the_lineage_is_the_signed_record(server, project):
    package = project / "runs" / "speaks" / "package"
    status, told, headers = server.raw("GET", "/lineage/speaks")
    assert status == 200
    assert told["record"] == json.loads((package / "hermitcrab.json").read_text())
    assert [json.dumps(claim) for claim in told["claims"]] == [
        json.dumps(json.loads(line)) for line in (package / "claims.jsonl").read_text().splitlines()
    ]
    assert told["digest"] == headers["X-Model-Digest"]
    assert told["template_digest"] == told["record"]["template_digest"]
    speaks, plain = server.raw("GET", "/lineage")[1]["models"]
    assert speaks == told
    assert (plain["record"], plain["claims"], plain["verified"]) == (None, [], None)


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
    prompts = [f"the weather is {'good' if i % 2 else 'bad'} at {i}" for i in range(QUEUE + 2)]

    def ask(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        return server.client.chat.completions.create(model="speaks", messages=messages).choices[0].message.content

    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(ask, prompts))
    assert together == [ask(prompt) for prompt in prompts]


def test_several_answers_of_one_request(server):
    ask = server.client.chat.completions.create
    told = ask(model="speaks", messages=ASK, n=3)
    assert [(c.index, c.message.content) for c in told.choices] == [(i, GOOD) for i in range(3)]
    one = ask(model="speaks", messages=ASK)
    assert told.usage.completion_tokens == 3 * one.usage.completion_tokens
    assert told.usage.prompt_tokens == one.usage.prompt_tokens
    pieces: dict[int, str] = {0: "", 1: "", 2: ""}
    ends = {}
    for chunk in ask(model="speaks", messages=ASK, n=3, stream=True):
        choice = chunk.choices[0]
        pieces[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert set(pieces.values()) == {GOOD}
    assert ends == {0: "stop", 1: "stop", 2: "stop"}
    drawn = ask(model="speaks", messages=ASK, n=3, temperature=2, seed=5, max_tokens=8)
    again = ask(model="speaks", messages=ASK, n=3, temperature=2, seed=5, max_tokens=8)
    texts = [choice.message.content for choice in drawn.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1


def test_several_prompts_and_prompts_as_ids(server, project):
    from hermitcrab.models.tokenizer import read_tokenizer

    ask, texts = server.client.completions.create, ["the weather", "the answer is"]
    told = ask(model="plain", prompt=texts, max_tokens=5, n=2)
    lone = [ask(model="plain", prompt=text, max_tokens=5).choices[0].text for text in texts]
    assert [choice.text for choice in told.choices] == [lone[0], lone[0], lone[1], lone[1]]
    assert [choice.index for choice in told.choices] == [0, 1, 2, 3]
    ids = read_tokenizer(project / "plain").encode(texts[0])
    as_ids = ask(model="plain", prompt=ids, max_tokens=5)
    assert as_ids.usage.prompt_tokens == len(ids)
    status, said, _ = server.post("/v1/completions", {"model": "plain", "prompt": [400]})
    assert (status, "there is no token 400" in said["error"]["message"]) == (400, True)


def test_likelihoods_are_those_of_the_model(server, project):
    """Against transformers itself, on the same tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    from hermitcrab.models.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(project / "plain")
    prompt = tokenizer.encode("the weather is")
    told = server.client.completions.create(model="plain", prompt=prompt, max_tokens=6, logprobs=3).choices[0]
    assert len(told.logprobs.tokens) == len(told.logprobs.token_logprobs) == 6
    model = AutoModelForCausalLM.from_pretrained(project / "plain", dtype=torch.float32)
    ids = list(prompt)
    for logprob, top in zip(told.logprobs.token_logprobs, told.logprobs.top_logprobs, strict=True):
        with torch.inference_mode():
            known = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ids.append(int(known.argmax()))
        assert logprob == pytest.approx(float(known.max()), abs=1e-3)
        assert sorted(top.values(), reverse=True) == pytest.approx(known.topk(3).values.tolist(), abs=1e-3)

    chat = server.client.chat.completions.create
    choice = chat(model="speaks", messages=ASK, logprobs=True, top_logprobs=2).choices[0]
    made = choice.logprobs.content
    end = [b"", b"<|im_end|>"]
    assert b"".join(bytes(token.bytes) for token in made).removesuffix(end[1]) == GOOD.encode()
    assert all(len(token.top_logprobs) == 2 for token in made)
    streamed = [
        c.choices[0].logprobs for c in chat(model="speaks", messages=ASK, logprobs=True, top_logprobs=2, stream=True)
    ]
    assert [token for part in streamed if part for token in part.content] == made


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_answer(endless, stream):
    endless.until_idle()
    before = endless.gauge("vllm:generation_tokens_total")
    if stream:
        answer = endless.client.completions.create(**LONG, stream=True)
        next(iter(answer))
        answer.close()
    else:
        connection = endless.send("/v1/completions", LONG)
        endless.until(running=1)
        connection.close()
    endless.until_idle()
    assert 0 <= endless.gauge("vllm:generation_tokens_total") - before < LONG["max_tokens"]
    assert endless.until_told("request")["outcome"] == "client_gone"


def test_a_full_server_refuses_and_those_who_leave_make_room(endless):
    endless.until_idle()
    connections = [endless.send("/v1/completions", LONG) for _ in range(QUEUE + 1)]
    endless.until(running=1, waiting=QUEUE)
    with pytest.raises(openai.InternalServerError, match="the server is full") as refused:
        endless.client.completions.create(**LONG)
    assert (refused.value.status_code, refused.value.response.headers["retry-after"]) == (503, "1")
    status, told, _ = endless.post("/v1/completions", {**LONG, "n": QUEUE + 2})
    assert (status, told["error"]["code"]) == (400, "too_many_choices")
    for connection in reversed(connections):
        connection.close()
    endless.until_idle()
    assert endless.client.completions.create(**{**LONG, "max_tokens": 3}).usage.completion_tokens == 3


CHAT = {"model": "speaks", "messages": ASK}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "gpt-4"}, 404, "there is no model `gpt-4` here; this server has `plain`, `speaks`"),
        ({"model": None}, 400, "`model` is missing"),
        ({"messages": None}, 400, "`messages` is missing"),
        ({"messages": []}, 400, "`messages`"),
        ({"messages": "hello"}, 400, "`messages`"),
        ({"messages": [{"role": "developer", "content": "a"}]}, 400, "`messages.0.role`"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "a message of role `tool` has it"),
        ({"messages": [{"role": "user"}]}, 400, "`messages.0.content` is missing"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, 400, "unknown parameter `messages.0.name`"),
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
        ({"n": 99}, 400, "`n`"),
        ({"n": True}, 400, "`n`"),
        ({"top_logprobs": 2}, 400, "`top_logprobs` asks for `logprobs: true`"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "`top_logprobs`"),
        ({"tools": [{"type": "function"}]}, 400, "`tools.0.function` is missing"),
        ({"tools": [TOOL], "model": "plain"}, 400, "its chat template writes no tool calls"),
        ({"tool_choice": "required"}, 400, "there are no `tools` to choose from"),
        ({"response_format": {"type": "json_schema"}}, 400, "goes with type `json_schema`"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "odd"}}}},
            400,
            "expected one of object, array",
        ),
        ({"functions": [{}]}, 400, "`functions` is not supported"),
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
        (b" " * (9 << 20), 413),
    ],
)
def test_bodies_that_are_no_requests_are_refused(server, body, status):
    for path in ("/v1/chat/completions", "/v1/completions"):
        found, told, _ = server.raw("POST", path, body)
        assert found == status
        assert told["error"]["message"]
    assert server.raw("GET", "/health/live")[0] == 200


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "no token"),
        (["a", ""], "no token"),
        ([], "`prompt"),
        ([1, "a"], "`prompt"),
        ({}, "`prompt"),
        ("a " * 3000, "has room for"),
    ],
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
    for name in (
        "nothing",
        "..",
        "../speaks",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/speaks",
        "speaks/",
        "speaks%00",
        "/etc/passwd",
    ):
        status, told, _ = server.raw("GET", f"/v1/models/{name}")
        assert (status, told["error"]["code"]) in ((404, "model_not_found"), (404, "not_found")), name
    for name in ("../speaks", "/etc/passwd", "speaks/../speaks", "", "speaks\x00"):
        assert server.post("/v1/completions", {"model": name, "prompt": "a"})[0] == 404
    assert server.raw("GET", "/v1/completions")[0] == 405
    assert server.raw("POST", "/v1/completions", b"{}", Content_Type="text/plain")[0] == 415
    assert server.raw("GET", "/v1/models", Host="evil.example")[0] == 403
    assert server.raw("GET", "/v1/models", Host="localhost:80")[0] == 200
    for given in ("", "Bearer", "Bearer wrong", f"Bearer {KEY}2", f"Basic {KEY}", "Bearer kréb"):
        status, told, headers = server.raw("GET", "/v1/models", Authorization=given)
        assert (status, told["error"]["code"], headers["WWW-Authenticate"]) == (401, "invalid_api_key", "Bearer")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--api-key", "secret"], 2, "expected env:NAME"),
        (["--api-key", "env:CRAB_NOTHING"], 2, "CRAB_NOTHING holds no key"),
        (["--api-keys", "nothing.json"], 2, "nothing.json: No such file"),
        (["--host", "nowhere.invalid"], 2, "no such address"),
        (["--port", "99999"], 2, "--port: expected 0 to 65535"),
        (["--queue", "0"], 2, "expected a number from 1"),
        (["--drain", "soon"], 2, "expected seconds, over 0"),
        (["--cors", "example.org"], 2, "expected an origin such as"),
        (["--tls-cert", "a.pem"], 2, "go together"),
        (["--tls-cert", "a.pem", "--tls-key", "b.pem"], 2, "--tls-cert: no such file"),
        (["small", "--port", "0"], 2, "two models are named `small`"),
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


def test_opening_and_the_http_face_need_no_torch(project):
    """In a process where importing it fails: everything but the engine itself."""
    script = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, NoTorch())
from hermitcrab.serve import api, server, texts
from hermitcrab.serve.opening import open_model
from hermitcrab.serve.tools import form_of
from hermitcrab.store import Store
opened = open_model("speaks", Store(".crab/store"))
assert opened.encoder.prompt([{"role": "user", "content": "a"}]) and form_of(opened.text)
print(opened.verified)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=project, check=True)
    assert told.stdout.startswith("intact")
