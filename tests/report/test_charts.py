import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.report.charts import curve, forest, sparkline, ticks

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def test_a_long_curve_is_averaged_and_stays_in_its_box():
    drawn = curve({"train": [[i, 3 - i / 5000] for i in range(1, 5001)], "validation": [[5000, 2.5]]})
    points = drawn["train"] + drawn["validation"]
    assert len(points) <= 241
    assert drawn["every"] == 21
    assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in points)
    assert points[0][1] < points[-2][1]  # a falling loss goes down


def test_one_step_draws_no_curve():
    assert curve({"train": [[1, 2.0]], "validation": []}) is None
    assert curve({"train": [], "validation": []}) is None


def test_a_flat_curve_is_drawn_too():
    drawn = curve({"train": [[1, 2.0], [2, 2.0]], "validation": []})
    assert len({y for _, y in drawn["train"]}) == 1
    assert [label for _, label in drawn["up"]] == ["2"]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.398, 2.3, ["0.5", "1.0", "1.5", "2.0"]),
        (1, 300, ["100", "200", "300"]),
        (-0.013, 0.021, ["-0.01", "0.00", "0.01", "0.02"]),
        (0, 12_000, ["0", "5,000", "10,000"]),
    ],
)
def test_ticks_are_round(low, high, labels):
    assert [label for _, label in ticks(low, high)] == labels


@given(FINITE, st.floats(1e-6, 1e6))
def test_ticks_are_few_apart_and_within(low, width):
    high = low + width
    found = ticks(low, high)
    assert len(found) <= 5
    assert all(low - width * 1e-3 <= at <= high + width * 1e-3 for at, _ in found)
    assert len({label for _, label in found}) == len(found)


def test_a_forest_holds_zero_and_every_interval():
    pairs = [
        {"b": "a", "low": 0.1, "high": 0.3, "difference": 0.2},
        {"b": "b", "low": None, "high": None, "difference": 0.4},
    ]
    drawn = forest(pairs)
    low, high = drawn["rows"][0]["line"]
    assert 0 <= drawn["zero"] < low < drawn["rows"][0]["dot"] < high < drawn["rows"][1]["dot"] <= 100
    assert drawn["rows"][1]["line"] is None
    assert drawn["ticks"][0][1] == "0"
    assert drawn["ticks"][1][1].startswith("+")


def test_a_hopeless_baseline_does_not_press_the_interval_that_matters_into_a_dot():
    near, far = (
        {"b": "rival", "low": 0.006, "high": 0.017, "difference": 0.011},
        {"b": "majority", "low": 0.74, "high": 0.76, "difference": 0.75},
    )
    rival, majority = forest([near, far], "rival")["rows"]
    assert rival["line"][1] - rival["line"][0] > 50
    assert majority == {"line": None, "dot": None, "off": 1}
    assert forest([near, far])["rows"][1]["off"] == 0  # where no pair decides, all are drawn


def test_a_sparkline_falls_with_its_values():
    assert sparkline([3, 2, 1]) == "█▅▁"
    assert len(sparkline(list(range(1000)))) == 32
    assert sparkline([1.0]) == ""


def test_smaller_forms_are_drawn_by_size_and_loss_and_told_in_words():
    from hermitcrab.report.charts import sizes

    def form(kind, size, difference, low, high, speed=None):
        parity = {
            "metric": "accuracy",
            "difference": difference,
            "low": low,
            "high": high,
            "margin": 0.01,
            "within_margin": (low or 0) >= -0.01,
        }
        return {"format": "gguf", "type": kind, "size": size, "size_of_model": 200e6, "parity": parity, "speed": speed}

    assert sizes([]) is None
    assert sizes([form("Q8_0", 100e6, 0.0, None, None)]) is None
    fast, slow = ({"per_cpu_second": s, "unit": "tokens"} for s in (100, 50))
    found = sizes([form("Q8_0", 100e6, 0.0, -0.005, 0.005, slow), form("Q4_0", 50e6, -0.03, -0.06, 0.0, fast)])
    one, two = found["points"]
    assert one["x"] > two["x"]  # larger
    assert one["y"] > two["y"]  # up is worse
    assert two["line"][0] < two["y"] < two["line"][1]
    assert (one["within"], two["within"]) == (True, False)
    assert two["wide"] > one["wide"]
    assert two["told"] == "gguf Q4_0 50 MB loses +0.0300 (+0.0000 to +0.0600)"
    assert found["margin"] < found["zero"]
