"""The recipe is strict: whatever is misspelt, doubled or of another type stops with file, line and nearest name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hermitcrab import recipe
from hermitcrab.cli import main
from hermitcrab.errors import UsageError
from hermitcrab.recipe import Part, Recipe

SMALL: dict[str, Any] = {
    "name": "small",
    "task": "text-generation",
    "base": {"path": "base.gguf"},
    "data": {"train": {"path": "a.csv", "license": "MIT"}},
}


def every_key(part: type[Part] = Recipe, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in part.model_fields.items():
        yield (*path, name)
        for inner in recipe.parts_in(field.annotation):
            yield from every_key(inner, (*path, name))


def put(value: dict[str, Any], path: tuple[str, ...], key: str) -> dict[str, Any]:
    """A copy of `value` in which the part at `path` has one more key."""
    value = copy.deepcopy(value)
    here = value
    for step in path:
        here = here.setdefault(step, {})
    here[key] = 1
    return value


def misspell(name: str) -> str:
    return name[:-1] + "q" if len(name) > 2 else name + "q"


@pytest.mark.parametrize("path", sorted(set(every_key())), ids=".".join)
def test_every_misspelt_key_stops_and_the_nearest_is_named(path, tmp_path, capsys):
    wrong = misspell(path[-1])
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(put(SMALL, path[:-1], wrong), sort_keys=False))
    assert main(["show", str(file)]) == 2
    said = capsys.readouterr().err
    line = next(i for i, text in enumerate(file.read_text().splitlines(), 1) if text.strip().startswith(f"{wrong}:"))
    assert f"r.yaml:{line}:" in said
    assert f"`{wrong}`" in said
    assert f"did you mean `{path[-1]}`" in said or "expected one of" in said


@pytest.mark.parametrize("path", sorted(set(every_key())), ids=".".join)
def test_every_misspelt_override_stops(path):
    with pytest.raises(UsageError, match=r"has no key|cannot be set by key"):
        recipe.parse(yaml.safe_dump(SMALL), overrides=[".".join([*path[:-1], misspell(path[-1])]) + "=1"])


def test_overrides_are_read_as_yaml_and_typed():
    found = recipe.parse(
        yaml.safe_dump(SMALL), overrides=["train.epochs=2", "train.learning_rate=5e-4", "evaluate.choices=[a, b]"]
    )
    assert (found.train.epochs, found.train.learning_rate, found.evaluate.choices) == (2, 5e-4, ["a", "b"])
    with pytest.raises(UsageError, match=r"train\.steps.*Received: 'many'"):
        recipe.parse(yaml.safe_dump(SMALL), overrides=["train.steps=many"])
    with pytest.raises(UsageError, match="key=value"):
        recipe.parse(yaml.safe_dump(SMALL), overrides=["train.steps"])


def test_a_key_given_twice_stops_with_its_line():
    with pytest.raises(UsageError, match=r"recipe:3: the key `name` is given twice"):
        recipe.parse("name: a\ntask: text-generation\nname: b\n")


def test_numbers_and_words_are_those_of_yaml_1_2():
    found = recipe.parse(
        yaml.safe_dump(SMALL).replace("license: MIT", "license: no") + "train: {learning_rate: 1e-3}\n"
    )
    assert found.train.learning_rate == 1e-3
    assert found.data.train[0].license == "no"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a recipe is a mapping"),
        ("- a", "a recipe is a mapping"),
        ("name: [", "not YAML"),
        ("name: a b\ntask: x\nbase: {path: x}\ndata: {train: {path: a, license: MIT}}", "name: String should match"),
        ("a: " * 3 + "1", "not YAML"),
        ("[" * 5000, "nested too deeply|not YAML"),
        ("name: !!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_what_is_no_recipe_is_told_in_a_sentence(text, said):
    with pytest.raises(UsageError, match=said):
        recipe.parse(text)


def test_patience_without_validation_is_refused():
    with pytest.raises(UsageError, match="patience needs validate_every"):
        recipe.parse(yaml.safe_dump(SMALL), overrides=["train.patience=2"])


def test_show_prints_the_whole_recipe_which_reads_back_the_same(tmp_path, capsys):
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    assert main(["show", str(file)]) == 0
    whole = capsys.readouterr().out
    assert "learning_rate" in whole
    assert recipe.parse(whole) == recipe.load(file)


def test_the_shipped_schema_is_the_schema():
    import hermitcrab

    shipped = (Path(hermitcrab.__file__).parent / "recipe.schema.json").read_text()
    assert shipped == recipe.json_schema(), "run: crab schema > src/hermitcrab/recipe.schema.json"


def test_a_missing_recipe_names_the_nearest_file(tmp_path):
    (tmp_path / "demo.yaml").write_text("")
    with pytest.raises(UsageError, match=r"did you mean `demo.yaml`"):
        recipe.load(tmp_path / "dmeo.yaml")


CLEAN = """
name: a
task: text-generation
base: {path: model}
data:
  train: {path: a.jsonl, license: MIT, format: text}
  clean: %s
"""


@pytest.mark.parametrize(
    ("clean", "message"),
    [
        ("[normalise]", "there is no filter `normalise`; did you mean `normalize`?"),
        ("[{near-dedup: {treshold: 0.7}}]", "near-dedup has no key `treshold`; did you mean `threshold`?"),
        (
            "[{near-dedup: {threshold: 2}}]",
            "near-dedup.threshold: Input should be less than or equal to 1. Received: 2",
        ),
        ("[{near-dedup: {}, normalize: {}}]", "expected a name, or one name with its options"),
        ("[3]", "expected a name, or one name with its options. Received: 3"),
        ("[normalize, {normalize: {form: NFKC}}]", "`normalize` stands there twice"),
        ("[{decontaminate: {policy: maybe}}]", "decontaminate.policy: Input should be 'drop', 'mark' or 'stop'"),
    ],
)
def test_a_filter_that_cannot_be_is_named(clean, message):
    with pytest.raises(UsageError) as told:
        recipe.parse(CLEAN % clean)
    assert message in str(told.value)
    assert "recipe:7" in str(told.value) or "recipe:6" in str(told.value)


def test_filters_have_their_options_spelled_out_and_survive_a_round_trip():
    found = recipe.parse(CLEAN % "[normalize, {near-dedup: {threshold: 0.7}}, {unicode: }, {quality: {rules: [c4]}}]")
    assert found.data.clean[0] == "normalize"
    assert found.data.clean[1] == {
        "near-dedup": {"threshold": 0.7, "ngram": 5, "permutations": 128, "verify": True, "distance": 6}
    }
    assert recipe.parse(recipe.to_yaml(found)) == found
