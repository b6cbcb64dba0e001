import time
from datetime import datetime

import pytest
from tiny import TEMPLATE

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.tokenizer import render_chat

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "¿Qué tal? <b>&amp;</b> \n {{ 7*7 }}"},
    {"role": "assistant", "content": "Bien."},
]
# The idioms of templates in the field: trimming, namespaces, loop variables, macros, tojson, slices, filters, defaults.
TEMPLATES = {
    "chatml": TEMPLATE,
    "llama-like": (
        "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n  {%- set system = messages[0]['content']|trim %}\n"
        "  {%- set messages = messages[1:] %}\n{%- else %}{%- set system = '' %}{%- endif %}\n"
        "{{- '<|start|>system\n\n' + system + '<|eot|>' }}{%- for m in messages %}\n"
        "{{- '<|start|>' ~ m.role ~ '\n\n' ~ (m.content | trim) ~ '<|eot|>' }}{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '<|start|>assistant\n\n' }}{%- endif %}"
    ),
    "namespace-loop": (
        "{%- set ns = namespace(last=0, n=1) %}{%- for m in messages %}{%- if m.role == 'user' %}"
        "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{{ ns.last }}/{{ messages|length }}"
        "{% for m in messages %}[{{ loop.index }}{{ ',' if not loop.last }}{{ loop.first }}{{ loop.length }}]"
        "{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}{% for i in range(3) %}{{ i * 2 % 3 }}{% endfor %}"
    ),
    "macro-json": (
        "{%- macro show(m, deep=true) %}{{ m | tojson(indent=2) }}{{ '-' * 5 }}{% endmacro %}{% for m in messages %}"
        "{{ show(m) }}{% generation %}{{ m.content.split('?')[-1].replace('&', 'and').upper() }}{% endgeneration %}\n"
        "{% endfor %}{{ messages | map(attribute='role') | join(', ') }}{{ tools is none }}{{ 'x' is string }}"
        "{% for k, v in messages[0].items() %}{{ '%s=%s' % (k, v) }}{% else %}none{% endfor %}{{ missing }}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(name: str, prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    expected = render_jinja_template(
        [TALK], chat_template=TEMPLATES[name], add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
    )[0]
    rendered = render_chat(TEMPLATES[name], TALK, bos="<s>", eos="</s>", add_generation_prompt=prompt)
    assert [rendered] == (expected if isinstance(expected, list) else [expected])


def render(template: str, messages: list | None = None) -> str:
    return render_chat(
        template, TALK if messages is None else messages, bos=None, eos=None, add_generation_prompt=False
    )


def test_a_prompt_does_not_depend_on_todays_date() -> None:
    text = render("{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}26 Jul 2024{% endif %}")
    assert text == "26 Jul 2024"
    with pytest.raises(HermitcrabError, match="strftime_now"):
        render("{{ strftime_now('%Y') }}")
    assert str(datetime.now().year) not in text


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "Expected"),
        ("{{ messages[0].content.nothing.more }}", "no attribute"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely"),
        ("{% set ns = namespace(__init__=1) %}", "cannot hold"),
        ("{% for i in range(999999999) %}{% endfor %}", "Range too big"),
        ("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}", "too much"),
        ("{% for a in 'x' * 60000 %}{% for b in 'x' * 60000 %}{% endfor %}{% endfor %}", "too much"),
        ("{{ 'x' * 9999999999 }}", "repetition"),
        ("{{ 9 ** 9 ** 9 }}", "power"),
        ("{{ 'x' | center(9999999999) }}", "number in it"),
        ("{{ 'x'.ljust(9999999999) }}", "number in it"),
        ("{{ '%99999999999d' % 1 }}", "width"),
        ("{{ '%99999999999d' | format(1) }}", "width"),
        ("{{ '{:99999999999}'.format(1) }}", "width"),
        (
            "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "too long",
        ),
        (
            "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
            "too long",
        ),
        ("{% set s = 'x' * 60000 %}{{ s.replace('x', s) }}", "too long"),
        ("{% set s = 'x' * 60000 %}{{ s | replace('x', s) }}", "too long"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("x" * (1 << 20) + "y", "characters"),
    ],
)
def test_what_a_template_should_not_do_ends_in_one_sentence(template: str, says: str) -> None:
    began = time.monotonic()
    with pytest.raises(HermitcrabError, match=says) as caught:
        render(template)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 5


def test_text_of_messages_is_never_a_template() -> None:
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "{{ 7*7 }}{% x"}]) == "{{ 7*7 }}{% x"
