"""The chat template: one function renders it, in training, in evaluation and in serving.

Templates come with a model, from strangers, and run in Jinja's sandbox, in the environment of transformers'
`apply_chat_template` but for two things. `strftime_now` is not defined, for a prompt must not depend on today's date
(templates that want one have a date of their own for that case). And work is bounded: steps of all loops together,
length of the text and of every text on the way, and what filters, methods and operators are given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.environment import Template
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from hermitcrab.errors import HermitcrabError

LONGEST_TEMPLATE = 1 << 20
LONGEST_TEXT = 1 << 26
MOST_STEPS = 1 << 20
LARGEST_NUMBER = 1 << 16  # a width, an indent, a repetition
_steps: ContextVar[list[int]] = ContextVar("steps")


class _Bounded(TemplateError):
    pass


class _Generation(Extension):
    """`{% generation %}` marks what the assistant said; here it only passes its body through."""

    tags = {"generation"}  # noqa: RUF012 - jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "**" and not (numbers and abs(left) < LARGEST_NUMBER and abs(right) < 64):
            raise _Bounded("a power in it is too large")
        if operator == "*" and not numbers:
            size = [len(x) if isinstance(x, (str, list, tuple)) else abs(x) for x in (left, right)]
            if size[0] * size[1] > LARGEST_NUMBER:
                raise _Bounded("a repetition in it is too long")
        if operator == "%" and isinstance(left, str):
            _check_given("format", left, right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, (str, list, dict)):
            _check_given(getattr(method, "__name__", ""), owner, (*args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)


def _check_given(name: str, subject: Any, given: Sequence[Any]) -> None:
    """What a filter or a method is given must not let it make more than a long text."""
    if any(type(x) is int and abs(x) > LARGEST_NUMBER for x in given):
        raise _Bounded("a number in it is too large")
    sizes = [len(x) + 1 for x in given if isinstance(x, str)]
    if len(subject) * max(sizes, default=1) > LONGEST_TEXT if isinstance(subject, (str, list, tuple)) else False:
        raise _Bounded("a text in it grows too long")
    if name in ("format", "format_map") and any(
        re.search(r"\d{5}|\*", x) for x in (subject, *given) if isinstance(x, str)
    ):
        raise _Bounded("a width in it is too large")


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def bounded(*given: Any, **named: Any) -> Any:
        _check_given(name, given[passed] if len(given) > passed else None, (*given[passed + 1 :], *named.values()))
        return function(*given, **named)

    return bounded


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    """Every loop runs over this, so that loops within loops have one budget."""
    left = _steps.get()
    for value in values:
        left[0] -= 1
        if left[0] < 0:
            raise _Bounded(f"it loops more than {MOST_STEPS:,} times")
        yield value


def _not_longer(value: Any) -> Any:
    """Every sum and concatenation passes here, so that doubling ends early."""
    if isinstance(value, (str, list, tuple)) and len(value) > LONGEST_TEXT:
        raise _Bounded("a text in it grows too long")
    return value


class _SafeNamespace(Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        Namespace.__init__(self, *args, **kwargs)
        for name in dict(*args, **kwargs):
            _SafeNamespace._check(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _SafeNamespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=32)
def _compiled(source: str) -> Template:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    filters = {**environment.filters, "tojson": _tojson}
    # Names with a space: no template can write or replace them.
    environment.filters = {name: _bounded_filter(name, function) for name, function in filters.items()}
    environment.filters |= {" counted": _counted, " not longer": _not_longer}
    environment.globals |= {"raise_exception": _raise, "namespace": _SafeNamespace}
    tree = environment.parse(source)
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = _filtered(loop.iter, " counted", environment)
    _guard_sums(tree, environment)
    return environment.from_string(tree)


def _filtered(node: nodes.Node, name: str, environment: _Environment) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=environment)


def _guard_sums(node: nodes.Node, environment: _Environment) -> None:
    """Wrap each `+` and `~` below `node`."""
    for field, value in node.iter_fields():
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, nodes.Node):
                _guard_sums(child, environment)
        if isinstance(value, list):
            value[:] = [_guarded(child, environment) for child in value]
        else:
            setattr(node, field, _guarded(value, environment))


def _guarded(value: Any, environment: _Environment) -> Any:
    return _filtered(value, " not longer", environment) if isinstance(value, (nodes.Concat, nodes.Add)) else value


def render_chat(
    template: str,
    messages: Sequence[dict[str, Any]],
    *,
    bos: str | None,
    eos: str | None,
    add_generation_prompt: bool,
) -> str:
    """The text of a conversation, as the model was taught to see it.

    Raises:
        HermitcrabError: the template is no Jinja, refuses the messages, or does more than a template should.
    """
    if len(template) > LONGEST_TEMPLATE:
        raise HermitcrabError(f"the chat template has {len(template):,} characters, more than {LONGEST_TEMPLATE:,}")
    special = {name: text for name, text in (("bos_token", bos), ("eos_token", eos)) if text is not None}
    token = _steps.set([MOST_STEPS])
    try:
        parts, length = [], 0
        for part in _compiled(template).generate(
            messages=list(messages), tools=None, documents=None, add_generation_prompt=add_generation_prompt, **special
        ):
            parts.append(part)
            length += len(part)
            if length > LONGEST_TEXT:
                raise _Bounded("its text grows too long")
        return "".join(parts)
    except Exception as error:  # a template is a program: it may fail in any way a program can
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise HermitcrabError(f"the chat template cannot be rendered: {why}") from error
    finally:
        _steps.reset(token)
