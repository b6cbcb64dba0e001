"""`crab data card` and `crab data row`, of a real run."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")

from tiny import crab, write_image_project

from hermitcrab.pipeline import find_run
from hermitcrab.store import Store


@pytest.fixture
def artifacts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    write_image_project(tmp_path)
    status, _, err = crab("run", "shapes.yaml", "train.steps=2", "data.take=90", capsys=capsys)
    assert status == 0, err
    return find_run("shapes", Store(".crab/store"))[1]


def test_the_data_of_a_run_are_told_as_a_page_and_as_croissant(artifacts, tmp_path, capsys):
    status, out, err = crab("data", "card", "shapes", "--json", capsys=capsys)
    assert status == 0, err
    told = json.loads(out)
    assert told["facts"]["splits"]["test"]["rows"] == 60
    page = (tmp_path / told["page"]).read_text()
    assert "not drawn: take is 90" in page
    assert "<script" not in page
    assert json.loads((tmp_path / told["croissant"]).read_text())["name"] == "shapes"


def test_one_row_is_followed_from_its_source_to_where_it_ended(artifacts, capsys):
    kept = pq.read_table(artifacts["prepare"].payload / "train.parquet")["row_id"][3].as_py()
    status, out, err = crab("data", "row", "shapes", kept, "--json", capsys=capsys)
    assert status == 0, err
    told = json.loads(out)
    assert told["collected"][0]["source"] == "train-images"
    assert told["kept"][0]["split"] == "train"
    gone = pq.read_table(artifacts["prepare"].payload / "dropped.parquet")["row_id"][0].as_py()
    status, out, _ = crab("data", "row", "run:shapes", gone, "--json", capsys=capsys)
    assert json.loads(out)["dropped"][0]["reason"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["card", "shaped"], 2, "did you mean `shapes`"),
        (["card", "shapes", "shapes"], 2, "takes the name of one run"),
        (["row", "shapes"], 2, "a run and a row id"),
        (["row", "shapes", "0" * 16], 1, "has no row"),
    ],
)
def test_misuse_is_one_sentence(artifacts, capsys, words, status, said):
    found, out, err = crab("data", *words, capsys=capsys)
    assert (found, out) == (status, "")
    assert said in err.splitlines()[-1]
