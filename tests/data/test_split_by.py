"""Rows held out by a column of numbers: the last of all, or the last of each user."""

from __future__ import annotations

import pytest
from cleaned import Cleaned, clean

from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.recipe import parse


def split(folder, *rows: tuple[str, float | None], **part) -> Cleaned:
    cells = [(user, f"i{i}", 1.0, time, "{}") for i, (user, time) in enumerate(rows)]
    return clean(folder, cells, format="interaction", **part)


def held(made: Cleaned) -> dict[str, list[float]]:
    return {name: sorted(table["time"].to_pylist()) for name, table in made.tables.items()}


def test_the_last_rows_of_all_are_held_out_test_behind_validation(tmp_path):
    made = split(tmp_path, *(("u", float(t)) for t in (5, 3, 9, 1, 7, 2, 8, 4)), by="time", test=2, validation=1)
    assert made.told == {
        "test": {"asked": 2, "got": 2},
        "validation": {"asked": 1, "got": 1},
    }
    assert held(made) == {"train": [1, 2, 3, 4, 5], "validation": [7], "test": [8, 9]}


def test_the_last_of_each_user_are_held_out_in_proportion(tmp_path):
    rows = [*(("u", float(t)) for t in range(10)), *(("v", float(t)) for t in range(100, 120)), ("w", 1000.0)]
    made = split(tmp_path, *rows, by="time", within="user", test=6, validation=3)
    told = made.told
    assert held(made)["test"] == [8, 9, 116, 117, 118, 119]
    assert held(made)["validation"] == [7, 114, 115]
    assert 1000.0 in held(made)["train"]
    assert told["test"] == {"asked": 6, "got": 6}


def test_what_cannot_be_ordered_is_refused(tmp_path):
    with pytest.raises(HermitcrabError, match="rows of this format have no column `tim`; did you mean `time`"):
        split(tmp_path, ("u", 1.0), ("u", 2.0), ("u", 3.0), by="tim", test=1)
    with pytest.raises(HermitcrabError, match="has no number in `time`"):
        split(tmp_path, ("u", 1.0), ("u", None), ("u", 3.0), by="time", test=1)
    recipe = """
name: a
task: recommendation
base: {path: scratch}
data: {train: {path: a.csv, license: MIT, format: interaction}, split: {within: user}}
"""
    with pytest.raises(UsageError, match="within needs by"):
        parse(recipe)
