"""Tool calls: their form is read off templates as models have them; answers part into text and calls however they are cut."""

# ruff: noqa: E501 - templates as their models have them
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import TOOLS_TEMPLATE
from tiny import TEMPLATE

from hermitcrab.models.tokenizer import TextTokenizer
from hermitcrab.serve.requests import ChatRequest, Refusal
from hermitcrab.serve.tools import Calls, Form, Plan, form_of, plan

# The part of Qwen2.5's template that has tools, as its tokenizer_config.json has it; Llama 3's way of writing one call.
QWEN = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}{{- "# Tools\\n\\n<tools>" }}{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{{- "\\n</tools>\\n\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call><|im_end|>\\n" }}{%- endif %}
{%- for message in messages %}
{%- if (message.role == "user") or (message.role == "system") or (message.role == "assistant" and not message.tool_calls) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- elif message.role == "assistant" %}{{- '<|im_start|>' + message.role }}{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
{%- for tool_call in message.tool_calls %}{%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif message.role == "tool" %}{{- '<|im_start|>user\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response><|im_end|>\\n' }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
LLAMA = """\
{%- for message in messages %}{%- if message.tool_calls %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{{- '{"name": "' + message.tool_calls[0].function.name + '", ' }}
{{- '"parameters": ' }}{{- message.tool_calls[0].function.arguments | tojson }}{{- "}" }}{{- "<|eot_id|>" }}
{%- else %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{%- if tools %}{{- tools | tojson }}{%- endif %}{{- message['content'] + '<|eot_id|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""


def tokenizer(template: str | None) -> TextTokenizer:
    return TextTokenizer(None, {"eos_token": "<|im_end|>"}, template)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (QWEN, Form("<tool_call>", "</tool_call>", "<tool_call>\n", "name", "arguments")),
        (TOOLS_TEMPLATE, Form("<tool_call>", "</tool_call>", "<tool_call>\n", "name", "arguments")),
        (LLAMA, Form("", "", "", "name", "parameters")),
        (TEMPLATE, None),
        (None, None),
        ("{{ tools }}{{ raise_exception('no') }}", None),
        # Calls that are no JSON cannot be read back.
        (QWEN.replace('{{- \'\\n<tool_call>\\n{"name": "\' }}', "{{- '\\ncall ' }}"), None),
    ],
)
def test_the_form_of_calls_is_read_off_the_template(template, form):
    assert form_of(tokenizer(template)) == form


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
SHOWN = [WEATHER, CLOCK]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Röm </tool_call>"}}\n</tool_call>'
FORMS = {"qwen": form_of(tokenizer(QWEN)), "llama": form_of(tokenizer(LLAMA))}


def part(form: str, text: str, sizes: list[int], several: bool = True) -> tuple[str, list[tuple[str, dict]]]:
    calls = Calls(Plan(FORMS[form], SHOWN, several=several))
    told, at = "", 0
    for size in [*sizes, len(text)]:
        told += calls.push(text[at : at + size])[0]
        at += size
    told += calls.push("", last=True)[0]
    return told, [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls.calls]


ROME = ("weather", {"city": "Röm </tool_call>"})
NOON = ("clock", {})


@pytest.mark.parametrize(
    ("form", "text", "told", "found"),
    [
        ("qwen", CALL, "", [ROME]),
        ("qwen", f"Let me see.\n{CALL}", "Let me see.", [ROME]),
        ("qwen", f"\n{CALL}\n and  \n", " and  \n".lstrip(), [ROME]),
        ("qwen", "\n text \n\n", "\n text \n\n", []),
        ("qwen", f'{CALL}\n<tool_call>\n{{"name": "clock", "arguments": {{}}}}\n</tool_call>', "", [ROME, NOON]),
        ("qwen", "no call, and < or <tool is text", "no call, and < or <tool is text", []),
        ("qwen", "<tool_call>\n{broken", "<tool_call>\n{broken", []),
        (
            "qwen",
            '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>',
            [],
        ),
        ("llama", '{"name": "weather", "parameters": {"city": "Röm </tool_call>"}}', "", [ROME]),
        ("llama", 'It is {"name": "weather"}', 'It is {"name": "weather"}', []),
        ("llama", '{"a": 1}', '{"a": 1}', []),
    ],
)
@given(data=st.data())
def test_an_answer_parts_into_text_and_calls_however_it_is_cut(form, text, told, found, data):
    sizes = data.draw(st.lists(st.integers(1, 9), max_size=len(text)))
    assert part(form, text, sizes) == (told, found)


def asked(**more) -> ChatRequest:
    return ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "a"}], "tools": SHOWN, **more}
    )


def test_a_forced_call_begins_as_the_template_begins_it_and_has_a_schema():
    form = FORMS["qwen"]
    made = plan(asked(tool_choice={"type": "function", "function": {"name": "weather"}}), form)
    assert made.opening == "<tool_call>\n"
    assert made.schema["properties"]["name"] == {"const": "weather"}
    assert made.schema["properties"]["arguments"] == WEATHER["function"]["parameters"]
    assert made.named
    made = plan(asked(tool_choice="required"), form)
    assert [call["properties"]["name"]["const"] for call in made.schema["anyOf"]] == ["weather", "clock"]
    assert plan(asked(tool_choice="none"), form) is None
    assert plan(asked(), form).schema is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"tool_choice": {"type": "function", "function": {"name": "rain"}}},
            "there is no tool `rain`; expected one of: weather, clock",
        ),
        ({"response_format": {"type": "json_object"}}, "not both"),
        ({"tools": [CLOCK, CLOCK]}, "two functions have the same name"),
        ({"tools": [], "tool_choice": "required"}, "there are no `tools`"),
    ],
)
def test_choices_that_cannot_be_are_refused(more, said):
    with pytest.raises(Refusal, match=said):
        plan(asked(**more), FORMS["qwen"])
