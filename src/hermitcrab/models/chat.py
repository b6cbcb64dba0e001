"""The chat template: one function renders it, in training, in evaluation and in serving.

Templates come with a model, from strangers, and run in Jinja's sandbox, in the environment of transformers'
`apply_chat_template` but for two things. `strftime_now` is not defined, for a prompt must not depend on today's date
(templates that want one have a date of their own for that case). And work is bounded: one budget for a rendering pays
for every round of a loop, every call, filter and test, and every text and list made on the way, before it is made
where it could be much larger than what it is made from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, Set, Sized, ValuesView
from contextvars import ContextVar
from functools import lru_cache, wraps
from string import Formatter
from types import BuiltinMethodType, MethodDescriptorType
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.environment import Template
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

from hermitcrab.errors import HermitcrabError

LONGEST_TEMPLATE = 1 << 20
LARGEST_NUMBER = 1 << 16  # a width, an indent, a repetition
MOST_BITS = 1 << 12  # of an integer
# The budget, in characters: so many, and so many more for each character of the messages.
MOST_WORK = 1 << 24
WORK_PER_CHARACTER = 32
STEP, ITEM, NODE = 64, 16, 4  # a call or a round of a loop; an item of a list; a node of the template's tree
LAZY = frozenset(["attr", "count", "d", "default", "first", "items", "last", "length"])
LAZY |= {"map", "reject", "rejectattr", "select", "selectattr"}
LISTING = frozenset(["batch", "list", "slice", "title", "wordcount"])
GATHERING = frozenset(["groupby", "join", "max", "min", "sort", "sum", "unique"])
REFUSED = frozenset(["expandtabs", "encode", "lipsum", "maketrans", "pprint", "striptags", "translate", "unescape"])
REFUSED |= {"urlize", "wordwrap", "xmlattr"}
WIDTH = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\d+|\*)?(?:\.(\d+|\*))?")
_budget: ContextVar[list[int]] = ContextVar("budget")


class _Bounded(TemplateError):
    pass


def _spend(work: int) -> None:
    left = _budget.get()
    left[0] -= work
    if left[0] < 0:
        raise _Bounded("it loops too often or makes too much text")


def _pay(value: Any, shift: int = 0) -> None:
    """Pay for a value with all that is in it, as often as it is in it; `shift` makes text cheap that is only read."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            _spend(ITEM + (len(value) >> shift))
        elif isinstance(value, (list, tuple, Set, KeysView, ValuesView, ItemsView, range)):
            _spend(ITEM + ITEM * len(value))
            waiting.extend(() if isinstance(value, range) else value)
        elif isinstance(value, Mapping):
            _spend(ITEM + ITEM * len(value))
            waiting.extend(value.keys())
            waiting.extend(value.values())
        elif isinstance(value, Namespace):
            waiting.append(value._Namespace__attrs)
        elif isinstance(value, (LoopContext, Cycler, Joiner)):
            raise _Bounded(f"it takes a {type(value).__name__} for a value")
        else:
            _spend(ITEM)


def _made(value: Any) -> Any:
    """Pay for the result of an operator, a filter, a call or a slice: what is new in it."""
    if isinstance(value, str):
        _spend(len(value))
    elif isinstance(value, (list, tuple, dict, Set)):
        _spend(ITEM * len(value))
    elif isinstance(value, int):
        _check_bits(value.bit_length())
    elif isinstance(value, Iterator):
        return _counted(value)
    return value


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _spend(STEP)
        yield value


def _listed(values: Iterable[Any]) -> list[Any]:
    if isinstance(values, Sized):
        _spend(ITEM * len(values))
        return list(values)
    return list(_counted(values))


@pass_context
def _step(context: Any, work: Any) -> bool:
    _spend(max(int(work), STEP))
    return True


@pass_context
def _shown(context: Any, value: Any) -> str:
    """A value as it is printed or concatenated."""
    if isinstance(value, str):
        _spend(ITEM + len(value))
        return value
    _pay(value)
    return _made(str(value))


def _compared(value: Any) -> Any:
    _pay(value, 4)
    return value


def _searched(value: Any) -> Any:
    return value if isinstance(value, dict) else _compared(value)


def _check_bits(bits: int) -> None:
    if bits > MOST_BITS:
        raise _Bounded("a number in it is too large")


def _check_format(text: str, given: Any) -> None:
    """Pay for `format` and `%`: each field may show all that is given, at the largest width."""
    widths = [width for found in WIDTH.findall(text) for width in found]
    fields = len(widths) // 2
    if "{" in text:
        _spend(ITEM * text.count("{"))
        for _, field, spec, _ in Formatter().parse(text):
            fields += field is not None
            widths += ["*"] if "{" in (spec or "") else re.findall(r"\d+", spec or "")
    if any(width == "*" or len(width) > 4 for width in widths):
        raise _Bounded("a width in it is too large")
    before = _budget.get()[0]
    _pay(given)
    _spend(fields * (before - _budget.get()[0] + 2 * max((int(width) for width in widths if width), default=0)))


def _check_given(name: str, subject: Any, given: Sequence[Any], deep: bool = True) -> None:
    """Pay for what a filter or a method reads, and for what it may make of it."""
    _spend(STEP)
    if name in REFUSED:
        raise _Bounded(f"it uses {name}")
    for number in given:
        if type(number) is int:
            if abs(number) > LARGEST_NUMBER:
                raise _Bounded("a number in it is too large")
            _spend(abs(number))
    if name in ("format", "format_map"):
        _check_format(str(subject), given)
    length = len(subject) if isinstance(subject, (str, list, tuple, range)) else 0
    if name in LISTING or (name in ("split", "rsplit") and not any(isinstance(x, str) for x in given)):
        _spend(ITEM * length)
    elif name in ("split", "rsplit") and isinstance(subject, str):
        _spend(length + ITEM * sum(subject.count(x) for x in given if isinstance(x, str) and x))
    elif name in ("indent", "splitlines") and isinstance(subject, str):
        lines = sum(subject.count(end) for end in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
        widths = [len(x) if isinstance(x, str) else int(x) for x in given if isinstance(x, (str, int))]
        _spend(length + lines * max([ITEM, *widths]))
    if deep or name == "replace":
        _pay(subject, 4 if isinstance(subject, str) else 0)
        _pay(given, 4)
    if name == "replace" and len(given) > 1:
        _spend(str(subject).count(str(given[0])) * len(str(given[1])))


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "**" and not (numbers and abs(left) < LARGEST_NUMBER and abs(right) < 64):
            raise _Bounded("a power in it is too large")
        if operator == "*" and not numbers:
            size = [len(x) if isinstance(x, (str, list, tuple)) else abs(x) for x in (left, right)]
            if size[0] * size[1] > LARGEST_NUMBER:
                raise _Bounded("a repetition in it is too long")
        if operator == "-" and not numbers:  # of keys and items of dictionaries
            _pay((left, right))
        if operator == "%" and isinstance(left, str):
            _check_format(left, right)
        return _made(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, (str, int)):
            _pay(argument)
        return super().getitem(obj, argument)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _spend(STEP + ITEM * (len(args) + len(kwargs)))
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, (str, list, tuple, dict)):
            if name == "join" and isinstance(owner, str):
                args = tuple(_listed(x) for x in args)
                _pay(args)
                _spend(len(owner) * sum(len(x) for x in args))
            _check_given(name, owner, (*args, *kwargs.values()), deep=isinstance(owner, (list, tuple)))
            _pay(args, 4)
            _spend(len(owner) >> 4 if isinstance(owner, str) else 0)
        elif isinstance(method, (BuiltinMethodType, MethodDescriptorType)):
            raise _Bounded(f"it calls {name}")
        elif __obj is dict or isinstance(owner, LoopContext):
            _pay(args, 4)
        made = _made(super().call(__context, __obj, *args, **kwargs))
        if isinstance(owner, str) and isinstance(made, (list, tuple)):
            _spend(len(owner))
        return made


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def bounded(*given: Any, **named: Any) -> Any:
        if name in GATHERING and len(given) > passed:
            given = (*given[:passed], _listed(given[passed]), *given[passed + 1 :])
        subject = given[passed] if len(given) > passed else None
        rest = (*given[passed + 1 :], *(named[key] for key in sorted(named, reverse=True)))  # `old` before `new`
        before = _budget.get()[0]
        _check_given(name, subject, rest, deep=name not in LAZY and name not in LISTING)
        if name == "sort":  # by several attributes
            commas = sum(x.count(",") for x in rest if isinstance(x, str))
            _spend(commas * (before - _budget.get()[0]))
        elif name == "join" and subject:
            _spend(len(subject) * sum(len(x) for x in rest if isinstance(x, str)))
            _pay([x for x in rest if not isinstance(x, str)] * len(subject))
        return _made(function(*given, **named))

    return bounded


def _bounded_sum(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def bounded(environment: Any, values: Any, attribute: Any = None, start: Any = 0) -> Any:
        if attribute is not None:
            values = [make_attrgetter(environment, attribute)(value) for value in values]
        total = sum(len(x) for x in (start, *values) if isinstance(x, (list, tuple)))
        _spend(ITEM * total * len(values))  # each sum is a new list
        return function(environment, values, None, start)

    return bounded


def _bounded_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    reads = re.fullmatch(r"\W+|eq|equalto|ne|[gl][te]|greaterthan|lessthan|in|upper|lower", name)

    @wraps(function)
    def bounded(*given: Any) -> Any:
        _spend(STEP)
        if reads:
            _pay(given[:1] if name == "in" and isinstance(given[-1], dict) else given, 4)
        return function(*given)

    return bounded


class _Generation(Extension):
    """`{% generation %}` marks what the assistant said; here it only passes its body through."""

    tags = {"generation"}  # noqa: RUF012 - jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _SafeNamespace(Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        Namespace.__init__(self, *args, **kwargs)
        for name in dict(*args, **kwargs):
            _SafeNamespace._check(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _SafeNamespace._check(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        _spend(STEP)
        return str(_made(super().__repr__()))

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")


def _raise(message: Any) -> None:
    raise TemplateError(_shown(None, message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if (len(indent) if isinstance(indent, str) else indent or 0) > 64:
        raise _Bounded("an indent in it is too large")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts = []
    for part in encoder.iterencode(value):
        _spend(2 * ITEM + len(part))
        parts.append(part)
    return "".join(parts)


@lru_cache(maxsize=32)
def _compiled(source: str) -> Template:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    filters = {**environment.filters, "tojson": _tojson, "sum": _bounded_sum(environment.filters["sum"])}
    environment.filters = {name: _bounded_filter(name, function) for name, function in filters.items()}
    tests: dict[str, Any] = environment.tests
    environment.tests = {name: _bounded_test(name, function) for name, function in tests.items()}
    # Names with a space: no template can replace them, and it gains nothing by `map` with one.
    own = (_compared, _counted, _listed, _made, _searched, _shown, _step)
    environment.filters |= {function.__name__.replace("_", " "): function for function in own}
    environment.globals |= {"raise_exception": _raise, "namespace": _SafeNamespace}
    del environment.globals["lipsum"]
    tree = environment.parse(source)
    _guard(tree, environment)
    return environment.from_string(tree)


def _filtered(node: nodes.Node, name: str, environment: _Environment) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=environment)


def _guard(node: nodes.Node, environment: _Environment) -> int:
    """Make what is below `node` pay as it runs. Returns what running it once costs, but for bodies that pay."""
    cost, body = NODE, 0
    for field, value in node.iter_fields():
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, nodes.Node):
                once = _guard(child, environment)
                cost += once
                body += once if field == "body" else 0
        if isinstance(value, list):
            value[:] = [_guarded(node, field, child, environment) for child in value]
        else:
            setattr(node, field, _guarded(node, field, value, environment))
    if isinstance(node, (nodes.TemplateData, nodes.Const)):
        text = node.data if isinstance(node, nodes.TemplateData) else node.value
        return cost + (len(text) if isinstance(text, str) else 0)
    if not isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)):
        return cost
    pay = _filtered(nodes.Const(STEP + cost, lineno=node.lineno, environment=environment), " step", environment)
    node.body.insert(0, nodes.ExprStmt(pay, lineno=node.lineno, environment=environment))
    if isinstance(node, nodes.For) and node.test is not None:
        node.test = nodes.And(pay, node.test, lineno=node.lineno, environment=environment)
    return cost - body


def _guarded(parent: nodes.Node, field: str, value: Any, environment: _Environment) -> Any:
    if not isinstance(value, nodes.Expr):
        return value
    if isinstance(value, nodes.Getitem) and isinstance(value.arg, nodes.Slice):
        value = _filtered(value, " made", environment)
    elif isinstance(value, nodes.Dict) or (isinstance(value, nodes.Tuple) and value.ctx == "load"):
        value = _filtered(value, " compared", environment)
    if isinstance(value, (nodes.Const, nodes.TemplateData)) and not isinstance(parent, nodes.Concat):
        return value
    if isinstance(parent, (nodes.Output, nodes.Concat)):
        return _filtered(value, " shown", environment)
    if isinstance(parent, nodes.Operand) and parent.op in ("in", "notin"):
        return _filtered(value, " searched", environment)
    if (isinstance(parent, nodes.Compare) and field == "expr") or isinstance(parent, nodes.Operand):
        return _filtered(value, " compared", environment)
    if field == "dyn_args":
        return _filtered(value, " listed", environment)
    if isinstance(parent, nodes.For) and field == "iter":
        return _filtered(value, " counted", environment)
    return value


def render_chat(
    template: str,
    messages: Sequence[dict[str, Any]],
    *,
    bos: str | None,
    eos: str | None,
    add_generation_prompt: bool,
    tools: Sequence[dict[str, Any]] | None = None,
) -> str:
    """The text of a conversation, as the model was taught to see it; `tools`: functions that it may call, as JSON Schema.

    Raises:
        HermitcrabError: the template is no Jinja, refuses the messages, or does more than a template should.
    """
    if len(template) > LONGEST_TEMPLATE:
        raise HermitcrabError(f"the chat template has {len(template):,} characters, more than {LONGEST_TEMPLATE:,}")
    special = {name: text for name, text in (("bos_token", bos), ("eos_token", eos)) if text is not None}
    budget = [1 << 62]
    token = _budget.set(budget)
    try:
        _pay(list(messages))
        _pay(list(tools or ()))
        budget[0] = MOST_WORK + WORK_PER_CHARACTER * ((1 << 62) - budget[0])
        return _compiled(template).render(
            messages=list(messages),
            tools=list(tools) if tools else None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **special,
        )
    except Exception as error:  # a template is a program: it may fail in any way a program can
        why = " ".join(str(error)[:1000].split())[:200] or type(error).__name__
        raise HermitcrabError(f"the chat template cannot be rendered: {why}") from error
    finally:
        _budget.reset(token)
