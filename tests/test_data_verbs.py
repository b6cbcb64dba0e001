import json
from pathlib import Path

import pytest
from tiny import crab


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ("one", "two", "two", "天气很好" * 30)))
    Path("b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ("three", "two", "one")))


def test_inspect_counts_rows_lengths_scripts_and_repeats(capsys):
    status, out, _ = crab("data", "inspect", "a.jsonl", "--json", capsys=capsys)
    told = json.loads(out)
    assert (status, told["rows"], told["repeated_rows"]) == (0, 4, 1)
    assert told["scripts"] == {"Latin": 3, "Han": 1}
    assert told["lengths"] == {"under 50": 3, "under 200": 1}
    assert sum(told["lengths"].values()) == told["ledger"]["kept"]
    status, out, _ = crab("data", "inspect", "a.jsonl", capsys=capsys)
    assert "天气" not in out


def test_inspect_reads_all_files_of_a_pattern(capsys):
    told = json.loads(crab("data", "inspect", "*.jsonl", "--json", capsys=capsys)[1])
    assert (told["rows"], told["repeated_rows"]) == (7, 3)


def test_diff_tells_added_and_removed_rows_by_what_they_say(capsys):
    told = json.loads(crab("data", "diff", "a.jsonl", "b.jsonl", "--json", capsys=capsys)[1])
    assert (told["same"], told["added"], told["removed"], told["changed"]) == (2, 1, 1, 0)
    same = json.loads(crab("data", "diff", "a.jsonl", "a.jsonl", "--json", capsys=capsys)[1])
    assert (same["same"], same["added"], same["removed"], same["changed"]) == (4, 0, 0, 0)


def test_what_is_missing_is_said(capsys):
    assert crab("data", "diff", "a.jsonl", capsys=capsys)[0] == 2
    assert "compares two sources" in crab("data", "diff", "a.jsonl", capsys=capsys)[2]
    assert crab("data", "inspect", "none.jsonl", capsys=capsys)[0] == 2
