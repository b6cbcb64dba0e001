"""The .xml of an OpenVINO model as a graph of layers, read with expat and without OpenVINO.

A document type is refused (it could define entities that grow without end), depth and number of elements are bounded.
https://docs.openvino.ai/2026/documentation/openvino-ir-format.html
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats.weights import Handle, shown

LARGEST_XML = 1 << 28  # bytes
DEEPEST, MOST_ELEMENTS, LONGEST_NAME = 64, 1 << 23, 4096
CHUNK = 1 << 20


@dataclass
class Layer:
    """`data`: its attributes; `dims`: of its first output, -1 where not known; `inputs`: port → layer that fills it."""

    id: str
    name: str
    type: str
    data: dict[str, str] = field(default_factory=dict)
    dims: list[int] = field(default_factory=list)
    inputs: dict[int, Layer] = field(default_factory=dict)
    takers: list[Layer] = field(default_factory=list)
    place: int = 0


@dataclass
class Document:
    """`layers` of the graph and of those inside it, in the file's order; `said`: the values of its `rt_info` by path."""

    layers: list[Layer] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)


def read_document(path: Path, handle: Handle) -> Document:
    """Raises:
    HermitcrabError: no XML, another document, or one with parts that have no place in it.
    """
    if handle.size > LARGEST_XML:
        raise HermitcrabError(f"{path}: {handle.size:,} bytes are too many for the graph of a model")
    reader = _Reader(path)
    try:
        for start in range(0, handle.size, CHUNK):
            reader.parser.Parse(handle.read(start, min(CHUNK, handle.size - start), "the graph").tobytes(), False)
        reader.parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise HermitcrabError(f"{path}: is no XML that can be read ({error}); it is damaged") from error
    if not reader.document.layers:
        raise HermitcrabError(f"{path}: holds no OpenVINO model (no `net` with `layers`)")
    return reader.document


class _Reader:
    def __init__(self, path: Path):
        self.path, self.document = path, Document()
        self.stack: list[str] = []
        self.graphs: list[dict[str, Layer]] = []  # the innermost last: loops and branches hold graphs of their own
        self.owners: list[Layer] = []
        self.elements, self.port, self.text, self.edges = 0, 0, "", 0
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler, self.parser.EndElementHandler = self.start, self.end
        self.parser.CharacterDataHandler = self.characters
        self.parser.StartDoctypeDeclHandler = self.refuse

    def refuse(self, *_: object) -> None:
        raise HermitcrabError(f"{self.path}: has a document type, which could define entities; refused")

    def fail(self, what: str) -> HermitcrabError:
        return HermitcrabError(f"{self.path}: {what} (line {self.parser.CurrentLineNumber:,}); it is damaged")

    def start(self, tag: str, given: dict[str, str]) -> None:
        self.elements += 1
        if self.elements > MOST_ELEMENTS or len(self.stack) >= DEEPEST:
            raise self.fail("has too many elements, or too deep ones, to be a model")
        if not self.stack and tag != "net":
            raise HermitcrabError(f"{self.path}: is no OpenVINO model: expected `net`. Received: `{shown(tag)}`")
        if "rt_info" in self.stack:
            if self.stack[1] == "rt_info" and "value" in given:
                self.document.said["/".join([*self.stack[2:], tag])] = given["value"]
        elif tag == "layers":
            self.graphs.append({})
        elif tag == "layer":
            self.layer(given)
        elif tag == "data" and self.stack[-1] == "layer" and self.owners:
            self.owners[-1].data = given
        elif tag == "port" and self.stack[-1] == "output":
            self.port += 1
        elif tag == "dim":
            self.text = ""
        elif tag == "edge":
            self.edge(given)
        self.stack.append(tag)

    def layer(self, given: dict[str, str]) -> None:
        key, name = given.get("id", ""), given.get("name", "")
        if not self.graphs or self.stack[-1] != "layers" or not key or key in self.graphs[-1]:
            raise self.fail(f"the layer `{shown(name)}` has no place or no id of its own")
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise self.fail(f"the layer name `{shown(name)}` is no printable text")
        made = Layer(key, name, given.get("type", ""), place=len(self.document.layers))
        self.graphs[-1][key] = made
        self.owners.append(made)
        self.document.layers.append(made)
        self.port = 0

    def edge(self, given: dict[str, str]) -> None:
        graph = self.graphs[-1] if self.graphs else {}
        source, target = (graph.get(given.get(key, "")) for key in ("from-layer", "to-layer"))
        port = given.get("to-port", "")
        if source is None or target is None or not port.isascii() or not port.isdigit() or len(port) > 6:
            raise self.fail("an edge joins layers that are not there")
        target.inputs[int(port)] = source
        source.takers.append(target)

    def characters(self, text: str) -> None:
        if self.stack and self.stack[-1] == "dim":
            self.text += text

    def end(self, tag: str) -> None:
        self.stack.pop()
        if tag == "dim" and self.owners and "output" in self.stack and self.port == 1 and "rt_info" not in self.stack:
            text = self.text.strip()
            known = text.isascii() and text.isdigit() and len(text) <= 15
            self.owners[-1].dims.append(int(text) if known else -1)
        elif tag == "layer" and self.owners and "rt_info" not in self.stack:
            self.owners.pop()
        elif tag in ("net", "body", "then_body", "else_body") and self.graphs and "rt_info" not in self.stack:
            self.graphs.pop()
