"""Architectures of our own: configurations are checked, and transformers loads what it saved."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hermitcrab.errors import HermitcrabError
from hermitcrab.models import architectures


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_size": 9}, "an mlp has no key `hidden_size`; did you mean `hidden_sizes`?"),
        ({"hidden_sizes": [0]}, "hidden_sizes: expected a list of widths from 1"),
        ({"hidden_sizes": 9}, "hidden_sizes: expected a list"),
        ({"hidden_sizes": [True]}, "hidden_sizes: expected a list"),
        ({"hidden_sizes": [1 << 30]}, "hidden_sizes: expected a list"),
        ({"activation": "rellu"}, "activation: no `rellu`; did you mean `relu`?"),
    ],
)
def test_a_configuration_that_cannot_be_right_is_refused(change, told):
    with pytest.raises(HermitcrabError) as error:
        architectures.complete({"model_type": "mlp", **change}, "base.architecture")
    assert told in str(error.value)


def test_defaults_are_written_out_and_other_models_are_left_alone():
    assert architectures.complete({"model_type": "mlp"}, "x") == {
        "model_type": "mlp", "hidden_sizes": [128, 64], "activation": "relu",
    }  # fmt: skip
    assert architectures.complete({"model_type": "llama", "a": 1}, "x") == {"model_type": "llama", "a": 1}


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "gelu"])
@pytest.mark.parametrize("sizes", [[], [5], [7, 3]])
def test_transformers_loads_what_it_saved(tmp_path, activation, sizes):
    from transformers import AutoConfig, AutoModelForImageClassification

    architectures.register("mlp")
    architectures.register("mlp")
    config = AutoConfig.for_model(
        "mlp", image_size=[3, 4], num_channels=3, hidden_sizes=sizes, activation=activation, id2label={0: "a", 1: "b"}
    )
    model = AutoModelForImageClassification.from_config(config).eval()
    assert sum(isinstance(m, torch.nn.Linear) for m in model.modules()) == len(sizes) + 1
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    x = torch.rand(2, 3, 3, 4)
    assert torch.equal(model(x).logits, again(x).logits)
    assert model(x).logits.shape == (2, 2)
