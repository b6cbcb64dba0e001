"""Size, loss and speed of smaller forms as one SVG file: the drawing of the report, for a page that is not ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from hermitcrab.report import words
from hermitcrab.report.charts import sizes

WIDE, HIGH, LEFT, TOP, BELOW = 720, 420, 70, 40, 60
INK, SOFT, ACCENT, OPEN = "#1f2328", "#57606a", "#0b6e4f", "#8c959f"


def picture(entries: Sequence[Mapping[str, Any]]) -> str | None:
    """An SVG document with its own text alternative; None where there is nothing to draw."""
    found = sizes([{**words.plain(entry)} for entry in entries])
    if found is None:
        return None

    def x(share: float) -> float:
        return round(LEFT + share / 100 * (WIDE - LEFT - 30), 1)

    def y(share: float) -> float:
        return round(TOP + share / 100 * (HIGH - TOP - BELOW), 1)

    metric = escape(found["metric"])
    told = escape("; ".join(point["told"] for point in found["points"]))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" role="img" font-family="sans-serif" font-size="13">',
        f"<title>{metric} lost by size of the files</title><desc>{told}</desc>",
        f'<rect width="{WIDE}" height="{HIGH}" fill="#ffffff"/>',
        _text(
            LEFT,
            22,
            f"{metric} lost (bars: intervals; dashed: the margin of {found['stated']}; bigger: faster)",
            INK,
            "start",
        ),
    ]
    for at, label in found["up"]:
        parts.append(_line(LEFT, y(at), WIDE - 30, y(at), "#d0d7de", 1))
        parts.append(_text(LEFT - 8, y(at) + 4, label, SOFT, "end"))
    for at, label in found["across"]:
        parts.append(_text(x(at), HIGH - BELOW + 22, label, SOFT, "middle"))
    parts.append(_line(LEFT, y(found["zero"]), WIDE - 30, y(found["zero"]), SOFT, 1))
    parts.append(_line(LEFT, y(found["margin"]), WIDE - 30, y(found["margin"]), SOFT, 1, ' stroke-dasharray="5 4"'))
    for point in found["points"]:
        color, side = ACCENT if point["within"] else OPEN, -1 if point["x"] < 50 else 1
        parts.append(_line(x(point["x"]), y(point["line"][0]), x(point["x"]), y(point["line"][1]), color, 2))
        parts.append(f'<circle cx="{x(point["x"])}" cy="{y(point["y"])}" r="{point["wide"] / 2}" fill="{color}"/>')
        place = x(point["x"]) + side * (point["wide"] / 2 + 4)
        parts.append(_text(place, y(point["y"]) + 4, point["name"], INK, "end" if side < 0 else "start"))
    parts.append(_text(LEFT, HIGH - 12, "green: shown to lie within the margin; grey: not shown to", SOFT, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float, more: str = "") -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}" stroke-width="{width}"{more}/>'


def _text(x: float, y: float, text: str, color: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" fill="{color}" text-anchor="{anchor}">{escape(text)}</text>'
