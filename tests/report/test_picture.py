"""The drawing as a file: well-formed, told in words, nothing of a name believed."""

from __future__ import annotations

from xml.etree import ElementTree

from hermitcrab.report.picture import picture


def form(kind: str, size: float, low: float, high: float) -> dict:
    parity = {
        "metric": "accuracy",
        "difference": (low + high) / 2,
        "low": low,
        "high": high,
        "margin": 0.01,
        "within_margin": low > -0.01,
    }
    return {"format": "gguf", "type": kind, "size": size, "size_of_model": 2e8, "parity": parity, "speed": None}


def test_every_form_is_drawn_and_told() -> None:
    assert picture([]) is None
    root = ElementTree.fromstring(picture([form("Q8_0", 1e8, -0.005, 0.005), form("<b>&", 5e7, -0.06, 0.0)]))
    texts = ["".join(element.itertext()) for element in root.iter()]
    assert "gguf Q8_0" in texts
    assert "gguf <b>&" in texts
    assert sum(element.tag.endswith("circle") for element in root.iter()) == 2
    assert any("loses +0.0300 (+0.0000 to +0.0600)" in text for text in texts)
