import json
import subprocess
import sys
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
    "qwen-like": (
        "{%- if tools %}{{- tools | map('tojson') | join('\\n') }}{%- endif %}"
        "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}"
        "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
        "{%- if ns.multi_step_tool and message.role == 'user' and message.content is string and not("
        "message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}"
        "{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}"
        "{%- for message in messages %}{%- set content = message.content if message.content is string else '' %}"
        "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) %}"
        "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}"
        "{%- elif message.role == 'assistant' %}{%- set reasoning_content = '' %}"
        "{%- if message.reasoning_content is string %}{%- set reasoning_content = message.reasoning_content %}"
        "{%- elif '</think>' in content %}"
        "{%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}"
        "{{- '<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
        "{%- else %}{{- content }}{%- endif %}"
        "{%- if message.tool_calls %}{%- for tool_call in message.tool_calls %}"
        "{%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}"
        "{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}"
        "{{- '<tool_call>{\"name\": \"' ~ tool_call.name ~ '\", \"arguments\": ' ~ tool_call.arguments | tojson }}"
        "{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
        "{%- if enable_thinking is defined and enable_thinking is false %}{{- 'no' }}{%- endif %}"
    ),
    "gemma- and mistral-like": (
        "{{ bos_token }}{% set loop_messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
        "{%- set users = messages | selectattr('role', 'equalto', 'user') | list | length %}{{ users }}"
        "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% set role = message['role'] | title %}"
        "{{ '<start_of_turn>' + role + '\\n' + (message['content'] | trim | replace('a', 'b')) }}"
        "{% set q %}{{ message.content | indent(2) }}{% endset %}{{ q }}{% macro w() %}[{{ caller() }}]{% endmacro %}"
        "{% call w() %}{{ role | upper }}{% endcall %}{{ [1, 2, 3] | sum }}{{ [[1], [2]] | sum(start=[]) }}"
        "{{ {'a': (1, 'b'), 'c': none} }}{{ '{} {:>5}'.format(role, 7) }}{{ '%5d **' % 12345 }}{{ 2 ** 10 - 1 }}"
        "{{ ['b', 'a'] | sort | join('-') }}{{ [1, 1] | unique | list }}{{ message.items() | list }}{{ 'b' in 'abc' }}"
        "{{ ', '.join(message.keys()) }}{{ message | dictsort | tojson }}"
        "{% endfor %}{{ messages | groupby('role') | length }}"
        "{% for x in [[1, []], [2, [[3, []]]]] if x recursive %}{{ x[0] }}{{ loop(x[1]) }}{% endfor %}"
        "{% filter upper %}a{{ 1.5 ~ none }}{% endfilter %}{{ missing }}{{ messages[0] | attr('x') }}{{ loop_messages }}"
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
            "too much",
        ),
        (
            "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
            "too much",
        ),
        ("{% set s = 'x' * 60000 %}{{ s.replace('x', s) }}", "too much"),
        ("{% set s = 'x' * 60000 %}{{ s | replace('x', s) }}", "too much"),
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


# Each of these once took all memory or hours. They run in a process of their own, for they cannot be stopped otherwise.
DOUBLE = "{% set ns = namespace(x=START) %}{% for i in range(40) %}{% set ns.x = STEP %}{% endfor %}"
HOSTILE = {
    "product": DOUBLE.replace("START", "3").replace("STEP", "ns.x * ns.x"),
    "sum": DOUBLE.replace("START", "3").replace("STEP", "ns.x ** 60"),
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "recursive loop": "{% for x in [[]] recursive %}{{ loop([1, 2]) }}{{ loop([1, 2]) }}{% endfor %}",
    "block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "sum of lists": "{{ ([[1] * 60000] * 400) | sum(start=[]) | length }}",
    "sum of attributes": "{% set n = namespace(x=[1] * 60000) %}{{ ([n] * 400) | sum('x', []) | length }}",
    "sum of a generator": "{{ ([[1] * 60000] * 400) | map('list') | sum(start=[]) | length }}",
    "nested, as JSON": DOUBLE.replace("START", "1").replace("STEP", "[ns.x, ns.x]") + "{{ ns.x | tojson }}",
    "nested, indented": DOUBLE.replace("START", "1").replace("STEP", "[ns.x]") + "{{ ns.x | tojson(indent=9999) }}",
    "nested, printed": DOUBLE.replace("START", "1").replace("STEP", "[ns.x, ns.x]") + "{{ ns.x }}",
    "nested, concatenated": DOUBLE.replace("START", "1").replace("STEP", "[ns.x, ns.x]") + "{{ 'x' ~ ns.x }}",
    "nested, as a string": DOUBLE.replace("START", "1").replace("STEP", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x|string }}",
    "nested, formatted": DOUBLE.replace("START", "1").replace("STEP", "[ns.x, ns.x]") + "{{ '%s' % [ns.x] }}",
    "nested, raised": DOUBLE.replace("START", "1").replace("STEP", "[ns.x, ns.x]") + "{{ raise_exception(ns.x) }}",
    "nested, hashed": DOUBLE.replace("START", "1").replace("STEP", "(ns.x, ns.x)") + "{{ {}[ns.x] }}",
    "nested, compared": (
        "{% set ns = namespace(x=1, y=1) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}"
        "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}"
    ),
    "nested namespaces": (
        DOUBLE.replace("START", "1").replace("STEP", "namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}{{ [ns.x] | join }}"
    ),
    "joined": DOUBLE.replace("START", "'xx'").replace("STEP", "[ns.x, ns.x] | join"),
    "joined by a method": DOUBLE.replace("START", "'xx'").replace("STEP", "''.join([ns.x, ns.x])"),
    "joined attributes": (
        "{% set n = namespace(x='x' * 60000) %}{{ ([n] * 60000) | join(attribute='x') | length }}"
    ),
    "joined by a long text": "{{ range(90000) | map('string') | join('x' * 60000) | length }}",
    "joined by a long text, method": "{{ ('x' * 60000).join(range(90000) | map('string')) | length }}",
    "joined, many times one": "{% set s = 'x' * 60000 %}{{ ''.join([s] * 60000) | length }}",
    "sorted": "{% set s = 'X' * 60000 %}{{ ([s] * 60000) | sort | length }}",
    "block set": (
        "{% set ns = namespace(x='xx') %}{% for i in range(40) %}{% set q %}{{ ns.x }}{{ ns.x }}{% endset %}"
        "{% set ns.x = q %}{% endfor %}"
    ),
    "macro output": (
        "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}" + DOUBLE.replace("START", "'xx'").replace("STEP", "m(ns.x)")
    ),
    "caller": (
        "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}{% set ns = namespace(x='xx') %}"
        "{% for i in range(40) %}{% set q %}{% call m() %}{{ ns.x }}{% endcall %}{% endset %}{% set ns.x = q %}{% endfor %}"
    ),
    "one long concatenation": "{% set s = 'x' * 60000 %}{% set t = " + "~".join(["s"] * 20000) + " %}",
    "formatted": "{{ ('{0:9999}' * 8000).format(1) | length }}{{ ('%9999d' * 9000) % ((1,) * 9000) | length }}",
    "formatted, nested": "{{ '{0:{1[0]}}'.format(1, [9999999999]) | length }}",
    "bytes": "{{ (1).to_bytes(9999999999) }}",
    "translated": "{% set s = 'x' * 60000 %}{{ s.translate({120: s}) | length }}",
    "tabs": "{{ ('\t' * 60000).expandtabs(60000) | length }}",
    "indented": "{{ ('a\n' * 30000) | indent(60000) | length }}",
    "paragraphs": "{{ lipsum(60000) | length }}",
    "a large body": "{% for a in range(90000) %}" + "{% if a %}{% endif %}" * 9000 + "{% endfor %}",
    "search": (
        "{% set ns = namespace(x='x') %}{% for i in range(20) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
        "{% for i in range(90000) %}{% if 'xxxy' in ns.x or ns.x.find('xxy') > 0 %}{% endif %}{% endfor %}"
    ),
    "own filters": "{{ ['nan', -9] | map(' step') | list }}{% for i in range(90000) %}{% for j in range(90000) %}"
    "{% endfor %}{% endfor %}",
}  # fmt: skip
GUARDED = """
import json, resource, sys, time
from hermitcrab.errors import HermitcrabError
from hermitcrab.models.chat import render_chat
name, template = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before, began = peak(), time.process_time()
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
try:
    said = f"rendered {len(render_chat(template, [], bos=None, eos=None, add_generation_prompt=False)):,} characters"
except HermitcrabError as error:
    said = str(error)
grown = (peak() - before) >> 10
print(json.dumps([said, time.process_time() - began, grown]))
"""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_soon_and_takes_little_memory(name: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", GUARDED],
        input=json.dumps([name, HOSTILE[name]]),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-500:]
    said, seconds, megabytes = json.loads(ran.stdout)
    print(f"{name}: {seconds:.2f} s, {megabytes} MB: {said}")
    assert said.startswith("the chat template cannot be rendered")
    assert "MemoryError" not in said
    assert seconds < 5
    assert megabytes < 500


def test_a_long_conversation_is_rendered() -> None:
    talk = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 4000} for i in range(400)]
    for template in TEMPLATES.values():
        assert len(render(template, talk)) > 0


def test_text_of_messages_is_never_a_template() -> None:
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "{{ 7*7 }}{% x"}]) == "{{ 7*7 }}{% x"
