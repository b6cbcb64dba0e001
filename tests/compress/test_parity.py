"""The gate: a paired interval against a margin that was stated."""

from __future__ import annotations

import pytest

from hermitcrab.compress.parity import check_target, margin_of
from hermitcrab.errors import HermitcrabError
from hermitcrab.evaluate.metrics import within


@pytest.mark.parametrize(
    ("metric", "low", "high", "said"),
    [
        ("accuracy", -0.009, 0.02, True),
        ("accuracy", -0.011, 0.02, False),  # not shown, though the difference itself may be none
        ("accuracy", 0.02, 0.05, True),
        ("perplexity", -0.5, 0.009, True),
        ("perplexity", -0.001, 0.011, False),
        ("accuracy", None, None, False),
    ],
)
def test_the_whole_interval_has_to_lie_within_the_margin(metric: str, low: float, high: float, said: bool) -> None:
    assert within(metric, low, high, 0.01) is said


def test_a_margin_is_as_stated_or_a_hundredth() -> None:
    assert margin_of(0.005, "accuracy", 0.8) == 0.005
    assert margin_of(None, "accuracy", 0.8) == 0.01
    assert margin_of(None, "perplexity", 12.0) == 0.12


def test_with_a_target_what_is_not_shown_is_refused() -> None:
    found = {
        "within_margin": False,
        "margin": 0.005,
        "metric": "accuracy",
        "difference": 0.0,
        "low": -0.02,
        "high": 0.02,
        "n": 50,
    }
    with pytest.raises(
        HermitcrabError, match=r"gguf Q4_0 is not shown to lose at most 0\.005 of accuracy: \+0\.0000 .* on 50 rows"
    ):
        check_target("gguf Q4_0", found)
    check_target("gguf Q4_0", {**found, "within_margin": True})
