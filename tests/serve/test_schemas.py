"""Answers that satisfy a schema, and tool calls that are asked for: on each engine with grammars, with a template that has tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("torch")
from serving import TOOLS_TEMPLATE, Server, serve
from tiny import write_model

from hermitcrab.models.to_gguf import Export

LIBRARIES = {"openvino-genai": "openvino_genai", "llama.cpp": "xllamacpp", "transformers": "llguidance"}
ARGUMENTS = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "hot": {"type": "boolean"}},
    "required": ["city", "hot"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": ARGUMENTS}},
    {
        "type": "function",
        "function": {
            "name": "clock",
            "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
        },
    },
]
# The weights are random, so that nothing but the grammar leads to an answer; drawn, for greedy ones may never leave white space.
ASKED = {"messages": [{"role": "user", "content": "the weather"}], "temperature": 1.0, "seed": 7, "max_tokens": 6000}
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    folder = write_model(
        tmp_path_factory.mktemp("schemas") / "p" / "model", hidden_size=128, head_dim=32, max_position_embeddings=8192
    )
    (folder / "chat_template.jinja").write_text(TOOLS_TEMPLATE, encoding="utf-8")
    Export(folder, {"general.name": "tooled"}).write("F16", folder.parent / "tooled.gguf")
    return folder.parent / "tooled.gguf"


@pytest.fixture(scope="module", params=list(LIBRARIES))
def server(request, gguf: Path):
    pytest.importorskip(LIBRARIES[request.param])
    model = "model" if request.param == "transformers" else gguf.name
    made = serve(gguf.parent, model, "--unverified", "--engine", request.param, "--slots", "2", "--threads", "1")
    assert made.models[0]["engine"] == request.param
    yield made
    assert made.stop() == 0


def ask(server: Server, **more):
    return server.client.chat.completions.create(model=server.models[0]["name"], **{**ASKED, **more})


def checked(arguments: str) -> None:
    told = json.loads(arguments)
    assert set(told) == {"city", "hot"}
    assert told["city"] in ("Rome", "Oslo")
    assert isinstance(told["hot"], bool)


def test_an_answer_satisfies_the_schema_that_was_asked_for(server):
    form = {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": ARGUMENTS}}
    choice = ask(server, response_format=form).choices[0]
    assert choice.finish_reason == "stop"
    checked(choice.message.content)
    chunks = list(ask(server, response_format=form, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    with pytest.raises(openai.BadRequestError, match="is not held to by every engine"):
        ask(
            server,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"type": "string", "pattern": "a+"}},
            },
        )


@pytest.mark.parametrize(("choice", "reason"), [(NAMED, "stop"), ("required", "tool_calls")])
def test_a_call_that_is_asked_for_is_made(server, choice, reason):
    tools = TOOLS if choice != "required" else TOOLS[:1]
    told = ask(server, tools=tools, tool_choice=choice)
    (call,) = told.choices[0].message.tool_calls
    assert (told.choices[0].finish_reason, told.choices[0].message.content) == (reason, None)
    assert (call.type, call.function.name) == ("function", "weather")
    checked(call.function.arguments)
    chunks = list(ask(server, tools=tools, tool_choice=choice, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [part for chunk in chunks if chunk.choices for part in chunk.choices[0].delta.tool_calls or []]
    assert [(part.index, part.function.name, part.function.arguments) for part in deltas] == [
        (0, "weather", call.function.arguments)
    ]
    assert deltas[0].id.startswith("call_")
    assert chunks[-1].usage == told.usage
    assert chunks[-2].choices[0].finish_reason == reason
    # What was called can be sent back, with its result.
    history = [
        *ASKED["messages"],
        told.choices[0].message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    again = ask(server, messages=history, tools=tools, tool_choice=choice)
    assert again.usage.prompt_tokens > told.usage.prompt_tokens
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": ARGUMENTS}}
    plain = ask(server, response_format=form)
    assert plain.usage.prompt_tokens < told.usage.prompt_tokens  # without tools they are not in the prompt


def test_required_calls_one_of_them(server):
    called = {
        ask(server, tools=TOOLS, tool_choice="required", seed=seed).choices[0].message.tool_calls[0].function.name
        for seed in range(6)
    }
    assert called <= {"weather", "clock"}
    assert called
