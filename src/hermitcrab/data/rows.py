"""A source's records into rows of its format: `where` selects, `values` renames, `columns` maps; each row is checked.

Where `columns` does not name a wanted column, the file's column of that name is taken. A value of `columns` is a column
of the file, or a text with `{column}` in it (`{{` and `}}` are braces). Names are looked up, never evaluated.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from hermitcrab.data.readers import MISSING, NUMBER, BadRow, Record, flaw, shown
from hermitcrab.data.tables import FORMATS, column_kind, dump_json, dump_messages
from hermitcrab.errors import UsageError, did_you_mean, nearest
from hermitcrab.recipe import Source

_WHOLE = re.compile(r"[+-]?\d{1,15}")
ROLES = ("system", "user", "assistant", "tool")
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Cell:
    """How a wanted column is made of a record: `parts` are literal texts and columns in turn (text first)."""

    parts: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return self.parts[1::2]

    @property
    def alone(self) -> str | None:
        """The column whose cell is taken as it is, if that is all."""
        return self.parts[1] if len(self.parts) == 3 and not self.parts[0] and not self.parts[2] else None


def parse_template(text: str, where: str) -> Cell:
    """`{column}` in a text, with `{{` and `}}` for braces."""
    parts, at = [""], 0
    for found in _BRACES.finditer(text):
        parts[-1] += text[at : found.start()]
        at = found.end()
        if found[0] in ("{{", "}}"):
            parts[-1] += found[0][0]
        elif found[1]:
            parts += [found[1], ""]
        else:
            raise UsageError(f"{where}: `{found[0]}` in {shown(text)} names no column; write {{{{ and }}}} for braces")
    parts[-1] += text[at:]
    return Cell(tuple(parts))


class Shape:
    """A source's mapping, checked against the columns of the file (None: every row names its own)."""

    def __init__(self, source: Source, columns: list[str] | None):
        self.source, self.columns = source, columns
        self.gathered = gathers(source)
        self.cells = {wanted: self._cell(wanted) for wanted in FORMATS[source.format] if wanted != self.gathered}
        for column in source.features:
            self._known(column, "features")
        for part in ("where", "values"):
            for column in getattr(source, part):
                self._known(column, part)
        if source.document is not None:
            self._known(source.document, "document")
        self.needed = {*source.where, *source.values, *(c for cell in self.cells.values() for c in cell.columns)}
        self.needed |= {source.document} if source.document is not None else set()
        if self.gathered:
            self.needed |= {*(source.features or columns or ())}

    def _cell(self, wanted: str) -> Cell:
        text, where = self.source.columns.get(wanted, wanted), f"{self.source.path}: columns: {wanted}"
        if (self.columns and text in self.columns) or not ("{" in text or "}" in text):
            cell = Cell(("", text, ""))
        else:
            cell = parse_template(text, where)
        if (wanted == "messages" or column_kind(wanted) != "text") and cell.alone is None:
            what = {"bytes": "files", "json": "JSON", "number": "numbers"}.get(column_kind(wanted), "lists of messages")
            raise UsageError(f"{where}: expected a column that holds {what}. Received: {shown(text)}")
        for column in cell.columns:
            self._known(column, f"columns: {wanted}")
        return cell

    def _gathered_from(self, record: Record) -> list[str]:
        """The columns that make up the record: those that `features` names, else all that mean nothing else."""
        if self.source.features:
            return self.source.features
        if self.source.format != "tabular":
            return []
        taken = {column for cell in self.cells.values() for column in cell.columns}
        return [c for c in record.cells if c not in {*taken, *self.source.where, self.source.document}]

    def _plain_value(self, record: Record, column: str) -> Any:
        """A number where the cell is one, null where it is missing, else text."""
        text = self._text(record, column).strip()
        if text in MISSING:
            return None
        if NUMBER.fullmatch(text):
            value = float(text)
            return int(text) if _WHOLE.fullmatch(text) else value if math.isfinite(value) else text
        return text

    def _known(self, column: str, part: str) -> None:
        if self.columns is not None and column not in self.columns:
            near = f" (did you mean `{close}`?)" if (close := nearest(column, self.columns)) else ""
            header = ", ".join(shown(c) for c in self.columns)
            raise UsageError(
                f"{self.source.path}: {part}: no column `{column}`{near}; the file's columns are: {header}"
            )

    def refused(self, record: Record) -> str | None:
        """Why `where` does not select this record."""
        for column, value in self.source.where.items():
            if _plain(record, column) != value:
                return f"not selected: {column} is not {value}"
        return None

    def row(self, record: Record) -> dict[str, Any]:
        """The document and the columns of the format.

        Raises:
            BadRow: file, row, column, value, expected shape.
        """
        document = self.source.document
        row: dict[str, Any] = {"document": (self._text(record, document) or None) if document else None}
        if self.gathered:
            row[self.gathered] = dump_json({c: self._plain_value(record, c) for c in self._gathered_from(record)})
        for wanted, cell in self.cells.items():
            if wanted == "messages":
                row[wanted] = dump_messages(_messages(record, cell.parts[1]))
                continue
            if (kind := column_kind(wanted)) != "text":
                column = cell.parts[1]
                row[wanted] = _number(record, column) if kind == "number" else _cell_of(record, column)
                if kind == "json":
                    row[wanted] = _json(record, column)
                continue
            texts = [self._text(record, part) if i % 2 else part for i, part in enumerate(cell.parts)]
            row[wanted] = text = "".join(texts)
            if not text.strip():
                told = f"column `{wanted}`: received {shown(text)}, expected text that is not empty"
                raise BadRow(record.where, f"empty {wanted}", told)
        return row

    def _text(self, record: Record, column: str) -> str:
        text = _plain(record, column)
        renamed = self.source.values.get(column)
        if renamed is None:
            return text
        if text not in renamed:
            told = f"column `{column}`: received {shown(text)}, expected one of: {', '.join(renamed)}"
            raise BadRow(record.where, f"column `{column}`: a value that `values` does not list", told)
        return renamed[text]


def gathers(source: Source) -> str | None:
    """The column of the format that is gathered from others: the record of a table, unless the file has it as JSON already."""
    column = {"tabular": "record", "interaction": "features"}.get(source.format)
    return column if column not in source.columns else None


def _number(record: Record, column: str) -> float | None:
    """A finite number; None where the cell is empty."""
    text = _plain(record, column).strip()
    if text in MISSING:
        return None
    if not NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        told = f"column `{column}`: received {shown(text)}, expected a number"
        raise BadRow(record.where, f"column `{column}`: no number", told)
    return float(text)


def _json(record: Record, column: str) -> str:
    """The JSON text of a list or an object: the cell itself, or its text."""
    value = _cell_of(record, column)
    try:
        found = json.loads(value) if isinstance(value, str) else value
        if not isinstance(found, list | dict):
            raise ValueError("neither a list nor an object")
        return dump_json(found)
    except (ValueError, TypeError, RecursionError) as error:
        told = f"column `{column}`: received {shown(value)}, expected a JSON list or object: {error}"
        raise BadRow(record.where, f"column `{column}`: not JSON", told) from error


def _cell_of(record: Record, column: str) -> Any:
    if column not in record.cells:
        told = f"has no column `{column}`{did_you_mean(column, record.cells)}"
        raise BadRow(record.where, f"no column `{column}`", told)
    return record.cells[column]


def _plain(record: Record, column: str) -> str:
    """A cell as text; null is the empty text, numbers are as JSON writes them."""
    value = _cell_of(record, column)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    told = f"column `{column}`: received {shown(value)}, expected a text or a number"
    raise BadRow(record.where, f"column `{column}`: neither text nor number", told)


def _messages(record: Record, column: str) -> list[dict[str, str]]:
    """The messages of a cell: a list of {role, content}, or its JSON text."""
    value = _cell_of(record, column)

    def bad(reason: str, received: Any, expected: str) -> BadRow:
        told = f"column `{column}`: received {shown(received)}, expected {expected}"
        return BadRow(record.where, f"messages: {reason}", told)

    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise bad("not JSON", value, "a JSON list of {role, content}") from error
    if not isinstance(value, list) or not value:
        raise bad("not a list", value, "a list of {role, content}")
    for n, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise bad("not a mapping", message, f"message {n} to be {{role, content}}")
        given = {key for key, part in message.items() if part is not None}
        if given != {"role", "content"}:
            raise bad("keys other than role, content", ", ".join(sorted(given)), f"message {n} to have role, content")
        if message["role"] not in ROLES:
            raise bad("unknown role", message["role"], f"the role of message {n} to be one of: {', '.join(ROLES)}")
        content = message["content"]
        if not isinstance(content, str) or not content.strip() or flaw(content):
            raise bad("content is no text", content, f"the content of message {n} to be text that is not empty")
    roles = [message["role"] for message in value]
    if roles[-1] != "assistant":
        raise bad("last turn is not the assistant's", roles[-1], "the last turn to be the assistant's")
    if "user" not in roles:
        raise bad("no turn of the user", ", ".join(roles), "a turn of the user before the answer")
    return value
