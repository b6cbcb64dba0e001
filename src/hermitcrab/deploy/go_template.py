"""A chat template of Jinja as one of Go's `text/template`, as Ollama runs it; or the reason why it cannot be one.

A template is a program and is not translated. It is asked: rendered for many conversations, it is described by what stands
before, between and behind the messages. Where that description gives every one of those renderings to the letter it is written
down in Go, where one differs the reason is given. Ollama gives a template `.Messages`, each with `.Role` and `.Content`
(template/template.go in ollama/ollama), after it has joined neighbors of one role.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass

from hermitcrab.errors import HermitcrabError

Message = dict[str, str]
Render = Callable[[list[Message], bool], str]

ROLES = ("system", "user", "assistant")
MARKS = [f"Qx{i}zJ{i}w" for i in range(8)]  # contents that no template has in itself
LONGEST = 7  # messages in a conversation that is tried
ODD = (
    " spaces around ", "\nlines\n\naround\n", "", "word", "{{ .Role }} {% if x %}", '"quotes" \\ and \'more\'', "<think>\na\n</think>\n\nb",
    "寄居蟹🦀", "a\tb\r\nc", "<|im_start|>user\n</s>[INST]",
)  # fmt: skip


class NoTemplate(HermitcrabError):
    """There is no template of Go that renders the same; the message is the reason."""


class _Refused(NoTemplate):
    """The template itself refuses the conversation."""


@dataclass(frozen=True)
class Linear:
    """head (by the role of the first message), then before[role] + content + behind[role] for each, then the generation prompt."""

    head: dict[str, str]
    before: dict[str, str]
    behind: dict[str, str]
    prompt: str

    def render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        text = self.head[messages[0]["role"]]
        for message in messages:
            text += self.before[message["role"]] + message["content"] + self.behind[message["role"]]
        return text + (self.prompt if add_generation_prompt else "")

    def as_go(self) -> str:
        """One line of printable ASCII without three quotes in a row: what is literal stands in Go's quotes."""
        cases = []
        for role in self.before:
            head, before = self.head.get(role, ""), self.before[role]
            first = f"{{{{ if not $i }}}}{_literal(head)}{{{{ end }}}}" if head else ""
            body = f"{first}{_literal(before)}{{{{ $m.Content }}}}{_literal(self.behind[role])}"
            cases.append(f'if eq $m.Role "{role}" }}}}{body}')
        chosen = "{{ " + "{{ else ".join(cases) + "{{ end }}"
        return "{{ range $i, $m := .Messages }}" + chosen + "{{ end }}" + _literal(self.prompt)


def _literal(text: str) -> str:
    """An action that prints `text`: JSON's spelling of ASCII is Go's too, but for characters beyond 16 bits."""
    if not text:
        return ""
    quoted = "".join(json.dumps(c)[1:-1] if ord(c) < 1 << 16 else f"\\U{ord(c):08x}" for c in text)
    return '{{ "' + quoted.replace("\x7f", "\\u007f") + '" }}'


def plain_go() -> str:
    """What a model is given that was trained without a template: the contents, a line each."""
    return '{{ range $i, $m := .Messages }}{{ if $i }}{{ "\\n" }}{{ end }}{{ $m.Content }}{{ end }}'


def derive(render: Render) -> Linear:
    """The description of a chat template.

    Raises:
        NoTemplate: it renders some conversation otherwise than any such description would.
    """
    found = _describe(render)
    for messages in _conversations():
        if any(message["role"] not in found.before for message in messages):
            continue
        for generating in (False, True):
            if _ask(render, messages, generating) != found.render(messages, generating):
                shown = ", ".join(f"{m['role']} {m['content'][:24]!r}" for m in messages[:3])
                raise NoTemplate(
                    f"the chat template does more than put text around messages: it renders ({shown}) otherwise"
                )
    return found


def _describe(render: Render) -> Linear:
    """Parts by subtraction, from conversations of marks."""
    user = _cut(render, ["user"])
    turns = _cut(render, ["user", "assistant", "user", "assistant"])
    behind = {"user": user[-1], "assistant": turns[-1]}
    before = {"assistant": _without(turns[1], behind["user"], ""), "user": _without(turns[2], behind["assistant"], "")}
    head = {"user": _without(user[0], "", before["user"])}
    # The head of a conversation that an assistant opens is only known where the template allows one.
    opened = _perhaps(render, ["assistant"])
    if opened is not None and opened[0].endswith(before["assistant"]):
        head["assistant"] = _without(opened[0], "", before["assistant"])
    if (led := _perhaps(render, ["system", "user"])) is not None:
        behind["system"] = _without(led[1], "", before["user"])
        later = _perhaps(render, ["user", "assistant", "system", "user"])
        before["system"] = _without(later[2], behind["assistant"], "") if later is not None else ""
        head["system"] = _without(led[0], "", before["system"])
    messages = [{"role": "user", "content": MARKS[0]}]
    prompt = _without(_ask(render, messages, True), _ask(render, messages, False), "")
    return Linear(head, {role: before[role] for role in ROLES if role in before}, behind, prompt)


def _cut(render: Render, roles: list[str]) -> list[str]:
    """What stands before, between and behind the contents of a conversation of these roles."""
    marks = MARKS[: len(roles)]
    text = _ask(render, [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)], False)
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            raise NoTemplate(f"the chat template shows a message {text.count(mark)} times in ({', '.join(roles)})")
        part, _, text = text.partition(mark)
        parts.append(part)
    return [*parts, text]


def _perhaps(render: Render, roles: list[str]) -> list[str] | None:
    """As `_cut`, or None where the template refuses such a conversation."""
    try:
        return _cut(render, roles)
    except _Refused:
        return None


def _without(text: str, start: str, end: str) -> str:
    if not (text.startswith(start) and text.endswith(end) and len(text) >= len(start) + len(end)):
        raise NoTemplate("the chat template puts other text around a message by where it stands")
    return text[len(start) : len(text) - len(end)]


def _ask(render: Render, messages: list[Message], generating: bool) -> str:
    try:
        text = render(messages, generating)
        text.encode()
    except HermitcrabError as error:
        raise _Refused(f"{error}") from error
    except UnicodeEncodeError as error:
        raise NoTemplate("the chat template renders half a character, which Go cannot write") from error
    return text


def _conversations() -> list[list[Message]]:
    """Turns of every length with and without a system message, of ordinary and of odd contents."""
    found = []
    contents = itertools.cycle(ODD)
    for system, length in itertools.product((False, True), range(1, LONGEST)):
        roles = ["system"] * system + [("user", "assistant")[i % 2] for i in range(length)]
        found += [
            [{"role": role, "content": f"{next(contents)}" if odd else MARKS[i % 8]} for i, role in enumerate(roles)]
            for odd in (False, True, True)
        ]
    for odd in ODD:  # each odd content in each role, also as the last
        found += [
            [{"role": "user", "content": odd}],
            [{"role": "system", "content": odd}, {"role": "user", "content": "b"}],
        ]
        found.append(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": odd}, {"role": "user", "content": "b"}]
        )
        found.append([{"role": "user", "content": "a"}, {"role": "assistant", "content": odd}])
    return found
