from hermitcrab.report.classes import LARGEST, classes, confusions


def test_rows_are_references_and_the_diagonal_is_right(count_classes):
    found = classes(count_classes(unparsed=3), "derived")
    first = found["matrix"][0]
    assert [c["hit"] for c in first["cells"]] == [True] + [False] * 9
    assert first["unparsed"]["count"] == 3
    assert found["unparsed"]
    assert 0.9 < first["cells"][0]["shade"] <= 1
    assert found["table"][0][2][0][1] == ""  # an interval that is not known is left out
    assert "–" in found["table"][1][2][0][1]


def test_a_class_without_rows_divides_by_nothing():
    figure = {"value": None, "low": None, "high": None}
    per_class = [{"label": name, "support": 0, "precision": figure, "recall": figure, "f1": figure} for name in "ab"]
    one = {"confusion": [[0, 0], [0, 0]], "unparsed": [0, 0], "per_class": per_class}
    found = classes({"labels": ["a", "b"], "split": "test", "models": {"derived": one}}, "derived")
    assert found["matrix"][0]["cells"][0] == {"count": 0, "shade": 0.0, "hit": True}
    assert found["table"][0][2][0] == ("–", "")


def test_many_labels_are_told_by_their_largest_confusions(count_classes):
    labels = [f"label {i}" for i in range(LARGEST + 1)]
    found = classes(count_classes(labels), "derived")
    assert found["matrix"] is None
    assert len(found["confusions"]) == 12
    assert found["confusions"][0][2] >= found["confusions"][1][2]


def test_confusions_name_reference_answer_and_count():
    assert confusions(["a", "b"], [[5, 1], [2, 6]]) == [("b", "a", 2), ("a", "b", 1)]


def test_nothing_counted_shows_nothing(count_classes):
    assert classes(None, "derived") is None
    assert classes(count_classes(models=["base"]), "derived") is None
