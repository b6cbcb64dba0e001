"""`tune` is strict: what may be searched over is every key of `train` that changes a result, and a mistake has its line."""

from __future__ import annotations

import itertools
import json
import random
import sys
import tracemalloc

import pytest

from hermitcrab import recipe
from hermitcrab.errors import UsageError
from hermitcrab.searching import UNSEARCHED, searchable

HEAD = "name: s\ntask: text-generation\nbase: {path: b}\ndata: {train: {path: a.csv, license: MIT}}\ntune:\n"


@pytest.mark.parametrize(
    ("lines", "line", "said"),
    [
        (["metriq: loss"], 6, "tune has no key `metriq`; did you mean `metric`?"),
        (["metric: loss", "train.learning_rat: [1e-3, 2e-3]"], 7, "did you mean `train.learning_rate`?"),
        (["train.lora: [4, 8]"], 6, "expected one of: train.lora.rank, train.lora.alpha"),
        (["learning_rate: [1e-3, 2e-3]"], 6, "did you mean `train.learning_rate`?"),
        (["data.split.seed: [1, 2]"], 6, "only keys of train are searched over"),
        (["train.profile: [true, false]"], 6, "changes nothing of the result"),
        (["train.epochs: [1, 2]", "train.learning_rate: []"], 7, "expected a list of values to try. Received: []"),
        (["train.learning_rate: 1e-3"], 6, "expected a list of values to try. Received: 0.001"),
        (["train.epochs: [1, 2]", "train.learning_rate: [1e-3, 0.001]"], 7, "0.001 is given twice"),
        (["train.learning_rate: [1, 1.0]"], 6, "1.0 is given twice"),
        (["train.lora.rank: [4, x]"], 6, "tune.train.lora.rank: Input should be a valid integer. Received: 'x'"),
        (["train.learning_rate: [-1, 2]"], 6, "should be greater than 0. Received: -1"),
        (["train.patience: [1, 2]"], 6, "train.patience=1: patience needs validate_every"),
        (["train.truncate: [left, right]"], 6, "losses cannot be compared; set tune.metric"),
        (["train.epochs: [1]", "train.lora.rank: [4]"], 5, "tune has one setting"),
        (["metric: accuracy"], 5, "tune names no key to search over"),
        (["train.epochs: [1, 2]", "trials: 3"], 7, "asks for 3 settings; there are 2"),
        ([f"train.seed: {list(range(300))}"], 5, "tune has 300 settings; set tune.trials"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_told_with_its_line(lines, line, said):
    with pytest.raises(UsageError) as stop:
        recipe.parse(HEAD + "".join(f"  {text}\n" for text in lines), "r.yaml")
    told = str(stop.value)
    assert said in told
    assert "\n" not in told
    assert told.startswith(f"r.yaml:{line}:")


def test_a_search_reads_back_as_it_was_shown_and_can_be_set_from_the_command_line():
    made = recipe.parse(HEAD + "  train.lora.targets: [all-linear, [q_proj, v_proj]]\n  train.steps: [null, 4]\n")
    assert recipe.parse(recipe.to_yaml(made)) == made
    assert len(made.tune.settings()) == 4
    plain = HEAD.replace("tune:\n", "")
    set_on_top = recipe.parse(plain, overrides=["tune.train.epochs=[1, 2]", "tune.metric=f1"])
    assert set_on_top.tune.values == {"train.epochs": [1, 2]}
    for override, said in (("tune.train.epochz=[1]", "did you mean `train.epochs`"), ("tune.metriq=f1", "did you mean `metric`"),
                           ("tune.data.take=[1, 2]", "only keys of train")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            recipe.parse(plain, overrides=[override])


def test_values_that_go_together_only_are_checked_together():
    made = recipe.parse(HEAD + "  train.patience: [1, 2]\n  train.validate_every: [5, 10]\n")
    assert len(made.tune.settings()) == 4
    assert made.with_settings(made.tune.settings()[3]).train.patience == 2


def test_a_few_of_very_many_settings_are_drawn_without_making_all():
    keys = ("epochs", "steps", "learning_rate", "batch_size", "accumulate", "seed")
    many = "".join(f"  train.{key}: {list(range(1, 9))}\n" for key in keys)
    made = recipe.parse(HEAD + many + "  trials: 5\n").tune
    tracemalloc.start()
    drawn = made.settings()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20  # of 262,144 settings
    assert len({tuple(settings.values()) for settings in drawn}) == 5
    longer = "".join(f"  train.{key}: {list(range(1, 201))}\n" for key in (*keys, "lora.rank", "lora.alpha"))
    made = recipe.parse(HEAD + longer + "  train.weight_decay: [0, 1, 2, 3]\n  trials: 3\n").tune
    assert made.size > sys.maxsize
    drawn = made.settings()
    assert len(drawn) == 3
    assert drawn == made.settings()
    assert all(value in made.values[path] for settings in drawn for path, value in settings.items())


@pytest.mark.parametrize("seed", range(4))
def test_settings_are_the_product_in_its_order_and_a_draw_a_sample_of_it(seed):
    text = HEAD + "  train.lora.rank: [2, 4, 8]\n  train.learning_rate: [1e-4, 1e-3]\n  train.seed: [0, 1, 2, 3, 4]\n"
    values = recipe.parse(text).tune.values
    every = [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]
    assert recipe.parse(text).tune.settings() == every
    numbers = sorted(random.Random(seed).sample(range(30), 7))
    assert recipe.parse(text + f"  trials: 7\n  seed: {seed}\n").tune.settings() == [every[i] for i in numbers]


def test_every_key_of_train_is_searchable_but_those_that_change_no_result():
    leaves = set(searchable())
    assert {"train.learning_rate", "train.lora.rank", "train.method"} <= leaves
    assert not leaves & set(UNSEARCHED)
    names = set(recipe.Train.model_fields)
    assert {path.split(".")[1] for path in (*leaves, *UNSEARCHED)} == names
    shown = json.loads(recipe.json_schema())["$defs"]["Tune"]
    assert leaves <= set(shown["properties"])
    assert shown["additionalProperties"] is False
    assert shown["properties"]["train.learning_rate"]["items"] == {"exclusiveMinimum": 0, "type": "number"}
