"""Explanations as a page and in the terminal: tokens colored by what they contribute, heat maps over pictures, bars of a row's columns.

Blue speaks for the answer, orange against it; the strongest part has the full color.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.report import words
from hermitcrab.report.page import fill
from hermitcrab.report.terminal import near
from hermitcrab.store import write_atomic

FOR, AGAINST = (38, 110, 190), (200, 105, 20)
SHOWN = 12  # parts in the terminal
SIDE = 280  # pixels of a picture on the page


def write_explanations(model: str, found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The page; nobody ever sees half of it."""
    shown = {"title": f"{model}: why", "explanations": [words.plain(_view(one)) for one in found]}
    write_atomic(path, fill("explanation.html", shown).encode())


def _view(one: Mapping[str, Any]) -> dict[str, Any]:
    largest = max((abs(part["contribution"]) for part in one["parts"]), default=0.0) or 1.0
    parts = [
        {
            "text": part["part"],
            "contribution": words.signed(part["contribution"]),
            "strength": round(abs(part["contribution"]) / largest, 3),
            "side": "for" if part["contribution"] >= 0 else "against",
        }
        for part in one["parts"]
    ]
    pictures = []
    if "picture" in one:
        picture, heat = np.array(one["picture"], np.uint8), np.array(one["heat"])
        pictures = [_uri(picture), _uri(_over(picture, heat))]
    return {
        "kind": one["kind"], "input": one["input"], "prediction": one["prediction"], "facts": facts(one), "parts": parts,
        "ranked": sorted(parts, key=lambda part: -part["strength"])[:SHOWN], "pictures": pictures,
    }  # fmt: skip


def facts(one: Mapping[str, Any]) -> list[list[str]]:
    told = [
        ["explains", one["explains"]],
        ["method", one["method"]],
        ["of what was given, of nothing", f"{words.number(one['score'])}, {words.number(one['plain_score'])}"],
    ]
    if one["left_over"] is not None:
        rough = " (rough: contributions do not add up to the difference)" if one["rough"] else ""
        told.append(["left over", f"{one['left_over']:.4f}{rough}"])
    if "randomized_correlation" in one:
        known = one["randomized_correlation"]
        told.append(["rank correlation with randomized weights", words.DASH if known is None else words.number(known)])
    return told


def _over(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture in gray under its heat map: uint8 [H, W, 3]."""
    gray = picture.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.6 + 90
    strength = np.abs(heat) / (np.quantile(np.abs(heat), 0.99) or 1.0)
    color = np.where(heat[..., None] >= 0, np.array(FOR), np.array(AGAINST))
    share = np.clip(strength, 0, 1)[..., None]
    return np.clip(gray * (1 - share) + color * share, 0, 255).astype(np.uint8)


def _uri(picture: np.ndarray) -> str:
    """A PNG inside the page, enlarged without smoothing."""
    from PIL import Image

    image = Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture)
    scale = max(1, SIDE // max(image.size))
    out = io.BytesIO()
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def render_explanations(found: Sequence[Mapping[str, Any]], page: Path | None) -> str:
    """For each input its answer and the strongest parts, each with its contribution."""
    lines = []
    for one in found:
        lines += [f"{words.plain(words.excerpt(str(one['input'])))} → {words.plain(str(one['prediction']))}"]
        lines += [f"  {name}: {text}" for name, text in facts(one)]
        ranked = sorted(one["parts"], key=lambda part: -abs(part["contribution"]))
        lines += [f"  {part['contribution']:+.4f}  {words.plain(repr(part['part']))}" for part in ranked[:SHOWN]]
        if len(ranked) > SHOWN:
            rest = sum(part["contribution"] for part in ranked[SHOWN:])
            lines.append(f"  {rest:+.4f}  {len(ranked) - SHOWN:,} other parts together")
    return "\n".join([*lines, *([f"page: {near(page)}"] if page else [])])
