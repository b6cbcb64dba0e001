"""Text out of a web page: what a reader would read, block by block; what was left out is counted by what it was.

lxml's parser (libxml2) mends what is broken and stops at its own depth; a page is bounded before it is parsed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from hermitcrab.data.readers import BadRow, Record, Rows, Table, check_cell, where_of
from hermitcrab.errors import needs

LARGEST = 1 << 25  # bytes of a page
DEEPEST = 2000  # elements within each other
NODES = 2_000_000  # elements of a page
DROPPED = {
    "script": "scripts", "style": "styles", "template": "templates", "noscript": "templates", "svg": "drawings", "math": "formulas",
    "iframe": "frames", "object": "embedded objects", "embed": "embedded objects", "nav": "navigation", "form": "forms", "button": "forms",
    "select": "forms",
}  # fmt: skip
INLINE = {
    "a", "abbr", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd", "label", "mark", "q",
    "ruby", "rb", "rp", "rt", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr",
}  # fmt: skip
KEPT_SPACE = {"pre", "textarea", "listing"}


def open_html(stream: BinaryIO, name: str) -> Table:
    """A page as one record of `text` and `title`."""

    def read(only: object) -> Rows:
        yield page(stream.read(LARGEST + 1), name, 0, {})

    return Table(["text", "title"], read)


def page(raw: bytes, name: str, position: int, more: dict[str, Any], charset: str | None = None) -> Record | BadRow:
    """A page's bytes as a record of `text`, `title` and `more`."""
    where = where_of(name, position, 1) if more else name
    if len(raw) > LARGEST:
        return BadRow(where, "page too large", f"has over {LARGEST:,} bytes; a page of text has not")
    if not raw.strip():
        return BadRow(where, "empty page", "is empty; expected a page")
    try:
        root = _parsed(raw, charset)
        text, title, cut = extract(root)
    except (ValueError, RecursionError, LookupError, MemoryError) as error:
        return BadRow(where, "page that cannot be parsed", f"cannot be parsed: {' '.join(str(error).split())[:160]}")
    if not text:
        return BadRow(where, "page without text", "has no text")
    reasons = tuple(f"cut of a page: {what}" for what in sorted(cut))
    wrong = check_cell(where, "text", text) or check_cell(where, "title", title)
    return wrong or Record(position, where, {"text": text, "title": title, **more}, reasons)


def _parsed(raw: bytes, charset: str | None) -> Any:
    html, etree = needs("lxml.html", "data"), needs("lxml.etree", "data")
    try:
        raw.decode(charset := charset or "utf-8")
    except (UnicodeDecodeError, LookupError):
        charset = None  # as the page itself says
    parser = html.HTMLParser(encoding=charset, huge_tree=False, no_network=True, remove_comments=True, remove_pis=True)
    try:
        root = html.document_fromstring(raw, parser=parser)
    except etree.LxmlError as error:
        raise ValueError(str(error)) from error
    return root


def extract(root: Any) -> tuple[str, str, Counter[str]]:
    """Text, title and what was cut. The tree is walked without recursion, so that its depth costs nothing.

    Raises:
        ValueError: a tree deeper or larger than a page has.
    """
    cut, parts, title = Counter[str](), list[str](), ""
    nodes = depth = 0
    skipped: Any = None
    for event, node in _walk(root):
        tag = node.tag if isinstance(node.tag, str) else ""
        if event == "start":
            nodes, depth = nodes + 1, depth + 1
            if nodes > NODES or depth > DEEPEST:
                raise ValueError(f"has over {NODES:,} elements" if nodes > NODES else f"nests over {DEEPEST:,} deep")
            if skipped is None and tag == "title" and not title:
                title = " ".join((node.text or "").split())
            if skipped is None and (tag in DROPPED or tag == "head"):
                cut.update([DROPPED[tag]] if tag in DROPPED else [])
                skipped = node
            if skipped is None:
                parts.append(_text(node, tag, node.text))
            continue
        depth -= 1
        if skipped is node:
            skipped = None
        if skipped is None and node is not root:
            parent = node.getparent()
            parts.append(("" if tag in INLINE else "\n") + _text(parent, "", node.tail))
        if tag == "title" and not title:
            title = " ".join((node.text or "").split())
    lines = (" ".join(line.split()) if "\t" not in line[:1] else line.rstrip() for line in "".join(parts).split("\n"))
    return "\n".join(line.replace(_SPACE, " ") for line in lines if line), title, cut


_SPACE = "\ue000"  # a space that is kept, between here and there


def _text(node: Any, tag: str, text: str | None) -> str:
    """A piece of text in its element: space is one space, but where it is written as it is meant."""
    begin = "" if not tag or tag in INLINE else "\n"
    if not text:
        return begin
    if node is not None and node.tag in KEPT_SPACE:
        return begin + text.replace(" ", _SPACE)
    return begin + " ".join(text.split("\n"))


def _walk(root: Any) -> Iterator[tuple[str, Any]]:
    return needs("lxml.etree", "data").iterwalk(root, events=("start", "end"))
