"""Tool calls as a chat template writes them: how they look is read off the template itself, never off a model's name.

A conversation with one marked call is rendered; what stands around its JSON is how this model was taught to write calls:

    <tool_call>\n{"name": "f", "arguments": {…}}\n</tool_call>        Qwen, Hermes
    {"name": "f", "parameters": {…}}                                  Llama 3

A template that does not show tools to the model, or writes calls in another form than JSON, has none that can be served.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.tokenizer import TextTokenizer
from hermitcrab.serve.requests import ChatRequest, Refusal, Tool, ToolChoice

NAME, KEY, CONTENT = "crab_marked_name", "crab_marked_key", "crab marked question"
ANYTHING: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class Form:
    """How a call is written.

    Attributes:
        before, after: what stands around its JSON, white space at the ends left out.
        opening: from the beginning of an answer to the JSON, as it stands.
        arguments: the key of the arguments; `name` is the key of the name.
    """

    before: str
    after: str
    opening: str
    name: str
    arguments: str


def form_of(text: TextTokenizer | None) -> Form | None:
    """The form in which a template writes calls; None where it has none that can be read."""
    if text is None or text.chat_template is None or "tool" not in text.chat_template:
        return None
    tool = {"type": "function", "function": {"name": NAME, "description": "d", "parameters": ANYTHING}}
    call = {"id": "call00001", "type": "function", "function": {"name": NAME, "arguments": {KEY: 1}}}
    question = {"role": "user", "content": CONTENT}
    try:
        asked = text.render([question], True, tools=[tool])
        plain = text.render([question], True)
        called = text.render(
            [question, {"role": "assistant", "content": "", "tool_calls": [call]}], False, tools=[tool]
        )
    except HermitcrabError:
        return None
    if NAME in plain or NAME not in asked or not called.startswith(asked):
        return None
    answer = called[len(asked) :]
    for at in (i for i, character in enumerate(answer) if character == "{"):
        try:
            value, end = json.JSONDecoder().raw_decode(answer, at)
        except ValueError:
            continue
        keys = {key: part for key, part in value.items() if part in (NAME, {KEY: 1})}
        name = next((key for key, part in keys.items() if part == NAME), None)
        arguments = next((key for key, part in keys.items() if part == {KEY: 1}), None)
        if name is None or arguments is None or answer[:at].strip().endswith("["):
            return None  # a list of calls, or more than a name and its arguments
        tail = answer[end:]
        after = tail[: tail.find("<|")].strip() if "<|" in tail else tail.strip()
        return Form(answer[:at].strip(), after, answer[:at], name, arguments)
    return None


@dataclass(frozen=True)
class Plan:
    """What a request makes of tools: those shown to the model, what its answer must begin with, the schema of the rest."""

    form: Form
    tools: list[dict[str, Any]]
    opening: str = ""
    schema: dict[str, Any] | None = None
    named: bool = False
    several: bool = True


def plan(asked: ChatRequest, form: Form | None) -> Plan | None:
    """How tools take part in an answer; None where the request has none or wants none used.

    Raises:
        Refusal: the template has no tools, a choice that names no tool, tools beside another form of the answer.
    """
    choice = asked.tool_choice
    if not asked.tools:
        if choice not in (None, "none"):
            raise Refusal(400, "`tool_choice`: there are no `tools` to choose from", "tool_choice", "invalid_value")
        return None
    if form is None:
        raise Refusal(400, "`tools` is not supported by this model: its chat template writes no tool calls that can be read back",
                      "tools", "unsupported_parameter")  # fmt: skip
    if asked.response_format.type != "text":
        raise Refusal(400, "give `tools` or `response_format`, not both", "response_format", "invalid_value")
    names = [tool.function.name for tool in asked.tools]
    if len(set(names)) < len(names):
        raise Refusal(400, "`tools`: two functions have the same name", "tools", "invalid_value")
    if choice == "none":
        return None
    shown = [tool.model_dump(exclude_none=True) for tool in asked.tools]
    if choice in (None, "auto"):
        return Plan(form, shown, several=asked.parallel_tool_calls)
    allowed = asked.tools
    if isinstance(choice, ToolChoice):
        allowed = [tool for tool in asked.tools if tool.function.name == choice.function.name]
        if not allowed:
            raise Refusal(400, f"`tool_choice`: there is no tool `{choice.function.name[:60]}`; expected one of: {', '.join(names)}",
                          "tool_choice", "invalid_value")  # fmt: skip
    calls = [_call_schema(form, tool) for tool in allowed]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return Plan(form, shown, form.opening, schema, named=isinstance(choice, ToolChoice), several=False)


def _call_schema(form: Form, tool: Tool) -> dict[str, Any]:
    properties = {form.name: {"const": tool.function.name}, form.arguments: tool.function.parameters or ANYTHING}
    return {
        "type": "object",
        "properties": properties,
        "required": [form.name, form.arguments],
        "additionalProperties": False,
    }


class Calls:
    """Parts an answer into text and calls as it is made. A call is told when it is whole; what is no call after all is text."""

    def __init__(self, plan: Plan):
        self.plan, self.form = plan, plan.form
        self.held = plan.opening
        self.calls: list[dict[str, Any]] = []
        self.began = self.after_call = False

    def push(self, text: str, last: bool = False) -> tuple[str, list[dict[str, Any]]]:
        """What is text now, and the calls that became whole."""
        self.held += text
        if self.after_call:  # what comes next may begin with white space that was not here yet
            self.held = self.held.lstrip()
            self.after_call = not self.held
        told, found = "", []
        while True:
            place = self._begins()
            if place < 0:
                keep = 0 if last else self._tail()
                told, self.held = told + self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
                break
            call, size = self._call(place, last)
            if size == 0:  # not whole yet
                told, self.held = told + self.held[:place].rstrip(), self.held[place:]
                break
            if call is None:
                told, self.held = told + self.held[: place + size], self.held[place + size :]
            else:  # white space around a call is the template's
                told, self.held = told + self.held[:place].rstrip(), self.held[place + size :].lstrip()
                found.append(call)
                self.calls.append(call)
                self.after_call = not self.held
        self.began |= bool(told)
        return told, found

    def _begins(self) -> int:
        """Where a call may begin; where nothing stands before its JSON, only at the beginning of an answer."""
        if not self.plan.several and self.calls:
            return -1
        if self.form.before:
            return self.held.find(self.form.before)
        stripped = self.held.lstrip()
        return len(self.held) - len(stripped) if stripped.startswith("{") and not self.began else -1

    def _tail(self) -> int:
        """How much of the end may yet belong to a call: the beginning of one, and white space before it."""
        before = self.form.before
        if not before and (self.began or self.held.strip()):
            return 0
        part = next(
            (n for n in range(min(len(before) - 1, len(self.held)), 0, -1) if before.startswith(self.held[-n:])), 0
        )
        rest = self.held[: len(self.held) - part]
        return part + len(rest) - len(rest.rstrip())

    def _call(self, place: int, last: bool) -> tuple[dict[str, Any] | None, int]:
        """The call at `place` and how long it is; (None, n) so much from there is no call, (None, 0) it may become one."""
        start = place + len(self.form.before)
        start += len(self.held[start:]) - len(self.held[start:].lstrip())
        try:
            value, end = json.JSONDecoder().raw_decode(self.held, start)
        except (ValueError, RecursionError):
            return None, len(self.held) - place if last else 0
        rest = self.held[end:].lstrip()
        after = self.form.after
        if after and not rest.startswith(after) and after.startswith(rest) and not last:
            return None, 0
        if after and rest.startswith(after):
            end = len(self.held) - len(rest) + len(after)
        name = value.get(self.form.name) if isinstance(value, dict) else None
        arguments = value.get(self.form.arguments, {}) if isinstance(value, dict) else None
        known = {tool["function"]["name"] for tool in self.plan.tools}
        if name not in known or not isinstance(arguments, dict):
            return None, end - place
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}, end - place
