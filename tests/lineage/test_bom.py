import json
import uuid

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from lineage_artifacts import base_record, chain, packaged, source

from hermitcrab.lineage import bom
from hermitcrab.store import Store


def bill_of(folder, **other):
    store = Store(folder / "store")
    package = packaged(store, chain(store, folder, **other), **other.get("part", {}))["package"]
    return (package.payload / "ml-bom.cdx.json").read_text(), package.read("hermitcrab.json")


SCRATCH = {"uri": "scratch", "kind": "scratch", "files": [], "license": {"found": None, "declared": None, "used": None}}


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"base": {"uri": "hf:org/model@abc", "revision": "abc", "kind": "safetensors"}},
        {"base": SCRATCH, "part": {"license": "MIT"}},
        {"sources": [source("train", "LicenseRef-house-terms"), source("train", "MIT", "data/a b|c.csv")]},
    ],
)
def test_the_bill_holds_against_the_official_schema(tmp_path, other):
    text, _ = bill_of(tmp_path, **other)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_the_validator_would_notice(tmp_path):
    bill = json.loads(bill_of(tmp_path)[0])
    bill["metadata"]["component"]["modelCard"]["modelParameters"]["approach"]["type"] = "guessing"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is not None


def test_model_card_pedigree_and_data_are_in_it(tmp_path):
    bill = json.loads(bill_of(tmp_path)[0])
    model = bill["metadata"]["component"]
    assert model["pedigree"]["ancestors"][0]["name"] == "Tiny-Instruct"
    assert model["pedigree"]["ancestors"][0]["licenses"] == [{"expression": "Apache-2.0"}]
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": "data-0"}, {"ref": "data-1"}]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metrics[0] == {
        "type": "accuracy", "value": "0.8", "slice": "test",
        "confidenceInterval": {"lowerBound": "0.71", "upperBound": "0.87"},
    }  # fmt: skip
    assert [c["type"] for c in bill["components"]] == ["data", "data"]
    assert "model.safetensors" in [c["name"] for c in model["components"]]


def test_a_model_from_scratch_has_no_ancestor(tmp_path):
    bill = json.loads(bill_of(tmp_path, base=SCRATCH, part={"license": "MIT"})[0])
    assert "ancestors" not in bill["metadata"]["component"]["pedigree"]


def test_the_bill_is_deterministic_and_its_serial_number_follows_from_its_content(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    first, again = (json.loads(bill_of(tmp_path / name)[0]) for name in "ab")
    other = json.loads(bill_of(tmp_path / "c", part={"license": "MIT"})[0])
    assert first == again
    assert first["serialNumber"] != other["serialNumber"]
    assert uuid.UUID(first["serialNumber"].removeprefix("urn:uuid:")).version == 5
    assert "timestamp" not in first["metadata"]


def test_what_a_bill_says_is_read_back(tmp_path):
    text, record = bill_of(tmp_path)
    assert bom.identity_of(json.loads(text)) == bom.identity(record)
    assert bom.identity(record)["base"] == [("Tiny-Instruct", base_record(tmp_path)["digest"])]
