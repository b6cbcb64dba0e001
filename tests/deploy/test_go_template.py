"""A chat template becomes one of Go only where Go renders the same; checked by Go itself where there is one."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEMPLATE

from hermitcrab.deploy.go_template import NoTemplate, derive, plain_go
from hermitcrab.models.chat import render_chat

DEFAULT_SYSTEM = (  # as SmolLM2 and Qwen2.5 have it
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a \"helpful\" assistant<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (  # as Mistral and Gemma: roles must alternate, and a system message is refused
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
CHINESE = (
    "{% for m in messages %}{{ '《' + m.role + '🦀\\x7f》' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '《答\t' }}{% endif %}"
)
FAITHFUL = {"chatml": TEMPLATE, "default system": DEFAULT_SYSTEM, "no system": NO_SYSTEM, "chinese": CHINESE}

TRIMS = TEMPLATE.replace("message['content']", "message['content'] | trim")
FORGETS = (  # thinking is taken out of earlier turns
    "{% for m in messages %}{{ m.role + ': ' }}{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}"
    "{{ '\n' }}{% endfor %}"
)
FOLDS = (  # the system message goes behind the last one
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ m.role + ': ' + m.content }}{% if loop.last %}{{ s }}{% endif %}{% endfor %}"
)
COUNTS = "{% for m in messages %}{{ loop.index }}. {{ m.content }}\n{% endfor %}"
UNFAITHFUL = {"trims": TRIMS, "forgets": FORGETS, "folds": FOLDS, "counts": COUNTS, "no jinja": "{% for %}"}


def rendering(template):
    return lambda messages, generating: render_chat(
        template, messages, bos="<s>", eos="</s>", add_generation_prompt=generating
    )


def conversation(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return [*([{"role": "system", "content": system}] if system is not None else []), *turns]


@pytest.mark.parametrize("name", FAITHFUL)
def test_a_template_that_puts_text_around_messages_is_described_to_the_letter(name):
    render = rendering(FAITHFUL[name])
    found = derive(render)
    asked = [conversation("a"), conversation("a", "b", " c\n"), conversation("寄居蟹", "b", "c", "d", "e")]
    if name != "no system":
        asked += [conversation("a", system="s"), conversation("a", "b", "c", system="")]
    for messages in asked:
        assert found.render(messages, True) == render(messages, True)
        assert found.render(messages, False) == render(messages, False)


@pytest.mark.parametrize("name", UNFAITHFUL)
def test_a_template_that_does_more_is_refused_with_the_reason(name):
    with pytest.raises(NoTemplate) as refused:
        derive(rendering(UNFAITHFUL[name]))
    assert "template" in str(refused.value)


def literals(go: str) -> str:
    """All that the template has in quotes, as Go reads it, in order."""
    return "".join(ast.literal_eval(quoted) for quoted in re.findall(r'\{\{ ("(?:[^"\\]|\\.)*") \}\}', go))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_no_text_of_a_template_becomes_structure(prefix, suffix, prompt):
    template = (
        "{% for m in messages %}{{ "
        + json.dumps(prefix, ensure_ascii=False)
        + " + m.role + ':' + m.content + "
        + json.dumps(suffix, ensure_ascii=False)
        + " }}"
        "{% endfor %}{% if add_generation_prompt %}{{ " + json.dumps(prompt, ensure_ascii=False) + " }}{% endif %}"
    )
    try:
        found = derive(rendering(template))
    except NoTemplate:  # such as half a surrogate pair
        return
    go = found.as_go()
    assert go.isascii()
    assert go.isprintable()
    assert '"""' not in go
    bare = re.sub(r'\{\{ "(?:[^"\\]|\\.)*" \}\}', "", go)
    assert set(re.findall(r"\{\{.*?\}\}", bare)) <= {
        "{{ range $i, $m := .Messages }}", '{{ if eq $m.Role "system" }}', '{{ else if eq $m.Role "user" }}',
        '{{ else if eq $m.Role "assistant" }}', "{{ if not $i }}", "{{ $m.Content }}", "{{ end }}",
    }  # fmt: skip
    assert re.sub(r"\{\{.*?\}\}", "", bare) == ""
    assert found.behind["user"] in literals(go)


MAIN = """
package main
import ("encoding/json"; "os"; "text/template")
type Message struct { Role, Content string }
func main() {
    var asked struct { Template string; Conversations [][]*Message }
    if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil { panic(err) }
    parsed := template.Must(template.New("").Option("missingkey=zero").Parse(asked.Template))
    var told []string
    for _, messages := range asked.Conversations {
        f, _ := os.CreateTemp("", "go")
        if err := parsed.Execute(f, map[string]any{"Messages": messages, "System": "", "Response": ""}); err != nil { panic(err) }
        f.Close()
        text, _ := os.ReadFile(f.Name())
        os.Remove(f.Name())
        told = append(told, string(text))
    }
    json.NewEncoder(os.Stdout).Encode(told)
}
"""


@pytest.fixture(scope="module")
def go_renders(tmp_path_factory):
    """Go's own text/template, where the language is installed."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed here")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(MAIN)
    env = {**os.environ, "GOCACHE": str(folder / "cache"), "GO111MODULE": "off", "GOFLAGS": ""}
    subprocess.run(["go", "build", "-o", "render", "main.go"], cwd=folder, env=env, check=True)

    def renders(template, conversations):
        asked = json.dumps({"Template": template, "Conversations": conversations})
        told = subprocess.run([Path(folder, "render")], input=asked, capture_output=True, text=True, check=True).stdout
        return json.loads(told)

    return renders


@pytest.mark.parametrize("name", [*FAITHFUL, "none"])
def test_go_renders_what_jinja_renders(name, go_renders):
    asked = [conversation("a"), conversation(" a\n", "b {{ x }}", '"c"'), conversation("寄居蟹🦀", "b", "c", "d", "e")]
    if name != "no system":
        asked += [conversation("a", system="s s"), conversation("a", "b", "c", system="")]
    if name == "none":
        wanted = ["\n".join(m["content"] for m in messages) for messages in asked]
        assert go_renders(plain_go(), asked) == wanted
    else:
        render = rendering(FAITHFUL[name])
        assert go_renders(derive(render).as_go(), asked) == [render(messages, True) for messages in asked]
