"""Cuts of real small models: what goes is what matters least, what stays computes the same, and what is zero stays zero."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny import write_model

from hermitcrab.compress import anatomy, depth, learning, magnitude, width
from hermitcrab.compress.lessons import Lessons
from hermitcrab.compress.prune import Prune
from hermitcrab.data.ledger import Ledger
from hermitcrab.errors import HermitcrabError
from hermitcrab.evaluate.asking import load
from hermitcrab.recipe import Compress
from hermitcrab.train.loop import Fit


def opened(source: Any) -> tuple[Any, Any]:
    return load(source.task, source.start, source.train, "float32")


def loss(source: Any, task: Any, model: Any) -> float:
    """Mean over the calibration rows."""
    examples, _ = task.examples(source.calibration, Ledger(task.counts))
    with torch.inference_mode():
        found = task.loss(model.eval(), task.batch(examples, np.arange(len(examples))))
    return float(found.sum) / found.count


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# Width


@pytest.mark.parametrize(
    ("name", "parts"),
    [("text", ["neurons"]), ("text", ["heads"]), ("text", ["neurons", "heads"]), ("image", ["neurons"])],
)
def test_a_cut_model_computes_what_the_whole_one_does_with_the_other_units_silenced(
    name: str, parts: list[str], tmp_path: Path, request: Any
) -> None:
    source = request.getfixturevalue(name)
    task, model = opened(source)
    before = sum(p.numel() for p in model.parameters())
    found = width.find(model, parts)
    kept = {part: width.best(width.importance(task, model, b, source.calibration), 0.5) for part, b in found.items()}
    width.silence(found, kept)
    silent = task.probe_logits(model, task.probes())
    width.cut(model, found, kept)
    learning.saved(task, model, tmp_path / "cut")
    cut, again = load(source.task, learning.start_of(source, tmp_path / "cut"), source.train, "float32")
    assert sum(p.numel() for p in again.parameters()) < before
    assert width.prove(silent, cut.probe_logits(again, cut.probes()), "model") < 1e-5
    whole = opened(source)[1]
    with pytest.raises(HermitcrabError, match="does not compute what it does with them silenced"):
        width.prove(task.probe_logits(whole, task.probes()), silent, "model")
    config = again.config
    if "heads" in parts:
        assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim) == (2, 4, 8)
    if name == "image":
        assert config.hidden_sizes == [24, 16]
    elif "neurons" in parts:
        assert config.intermediate_size == 32


@pytest.mark.parametrize(
    ("name", "part", "keep"), [("text", "neurons", 0.25), ("text", "heads", 0.34), ("image", "neurons", 0.25)]
)
def test_units_chosen_by_importance_hurt_less_than_units_drawn(name: str, part: str, keep: float, request: Any) -> None:
    source = request.getfixturevalue(name)
    task, model = opened(source)
    scores = width.importance(task, model, getattr(anatomy, part)(model), source.calibration)

    def after(kept: list[Any]) -> float:
        other = copy.deepcopy(model)
        width.silence({part: getattr(anatomy, part)(other)}, {part: kept})
        return loss(source, task, other)

    draw = torch.Generator().manual_seed(0)
    drawn = [after([torch.randperm(len(s), generator=draw)[: width.kept_of(len(s), keep)].sort().values for s in scores])
             for _ in range(8)]  # fmt: skip
    assert after(width.best(scores, keep)) < sorted(drawn)[2]  # of eight


def test_importance_is_the_mean_squared_length_of_what_a_unit_adds(image: Any) -> None:
    task, model = opened(image)
    bundles = anatomy.neurons(model)
    examples, _ = task.examples(image.calibration, Ledger("rows"))
    pixels = task.batch(examples, np.arange(len(examples))).pixels_BCHW
    with torch.no_grad():
        a_BU = model.layers[:2](pixels.flatten(1))
        added_BDU = a_BU[:, None, :] * model.layers[2].weight
    wanted = added_BDU.square().sum(1).mean(0).double()
    assert torch.allclose(width.importance(task, model, bundles, image.calibration)[0], wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("units", "keep", "kept"), [(1536, 0.75, 1152), (1536, 0.7, 1088), (48, 0.5, 24), (3, 0.5, 2), (3, 0.1, 1), (10, 0.99, 10)]
)  # fmt: skip
def test_wide_layers_keep_whole_blocks(units: int, keep: float, kept: int) -> None:
    assert width.kept_of(units, keep) == kept


# Depth


def test_the_layers_that_turn_the_stream_least_are_the_ones_to_drop(text: Any, tmp_path: Path) -> None:
    task, model = opened(text)
    angles = depth.distances(task, model, text.calibration, 2)
    assert len(angles) == 5
    losses = []
    for first in range(5):
        other = copy.deepcopy(model)
        depth.cut(other, [i for i in range(6) if not first <= i < first + 2])
        losses.append(loss(text, task, other))
    chosen = losses.pop(angles.index(min(angles)))
    assert chosen < sum(losses) / len(losses)


def test_the_angle_is_that_of_the_stream_before_and_after(text: Any) -> None:
    task, model = opened(text)
    examples, _ = task.examples(text.calibration, Ledger("tokens"))
    batch = task.batch(examples, np.arange(len(examples)))
    with torch.inference_mode():
        streams = model(
            input_ids=batch.ids_BL, position_ids=batch.positions_BL, use_cache=False, output_hidden_states=True
        ).hidden_states
    cosine = torch.nn.functional.cosine_similarity(streams[1].double(), streams[3].double(), dim=-1)
    assert depth.distances(task, model, text.calibration, 2)[1] == pytest.approx(
        float((torch.acos(cosine.clamp(-1, 1)) / torch.pi).mean()), rel=1e-4
    )


def test_a_cut_in_depth_loads_and_generates(text: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    task, model = opened(text)
    depth.cut(model, [0, 1, 4, 5])
    learning.saved(task, model, tmp_path / "cut")
    cut, again = load(text.task, learning.start_of(text, tmp_path / "cut"), text.train, "float32")
    assert torch.equal(cut.probe_logits(again, cut.probes()), task.probe_logits(model, task.probes()))
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    for one in (peer, model):  # the cut model's own layers know their new places in the cache
        assert one.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 6)
    assert len(peer.model.layers) == 4


def test_what_a_configuration_says_of_each_layer_goes_with_its_layer() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"], sliding_window=8,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    depth.cut(model, [0, 3])
    assert (model.config.layer_types, model.config.num_hidden_layers) == (["full_attention", "sliding_attention"], 2)
    model.config.use_sliding_window, model.config.max_window_layers = True, 1
    with pytest.raises(HermitcrabError, match="counts its layers with a sliding window from max_window_layers=1"):
        depth.cut(model, [0])


@pytest.mark.parametrize(("layers", "kept", "stays"), [(6, 3, [0, 2, 5]), (30, 2, [0, 29]), (6, 1, [0]), (4, 3, [0, 2, 3])])  # fmt: skip
def test_evenly_chosen_layers(layers: int, kept: int, stays: list[int]) -> None:
    assert depth.even(layers, kept) == stays


# Magnitude


@pytest.mark.parametrize("over", ["tensor", "model"])
def test_the_smallest_numbers_go_and_as_many_as_was_said(text: Any, over: str) -> None:
    model = opened(text)[1]
    before = {name: w.detach().clone() for name, w in magnitude.matrices(model).items()}
    assert not any("embed" in name or "lm_head" in name for name in before)
    zeros = magnitude.prune(magnitude.matrices(model), 0.3, over)
    numbers = sum(w.numel() for w in before.values())
    if over == "tensor":
        assert zeros == {name: round(0.3 * w.numel()) for name, w in before.items()}
    assert sum(zeros.values()) == pytest.approx(0.3 * numbers, abs=len(before))
    largest_gone, smallest_kept = [], []
    for name, weight in magnitude.matrices(model).items():
        gone = weight == 0
        assert torch.equal(weight[~gone], before[name][~gone])
        largest_gone.append(float(before[name][gone].abs().max()))
        smallest_kept.append(float(before[name][~gone].abs().min()))
    if over == "model":
        assert max(largest_gone) <= min(smallest_kept)
    assert all(a <= b for a, b in zip(largest_gone, smallest_kept, strict=True))


def test_two_of_four(image: Any) -> None:
    model = opened(image)[1]
    model.layers[0].weight = torch.nn.Parameter(model.layers[0].weight[:, :63])
    weights = magnitude.matrices(model)
    zeros, dense = magnitude.prune_2_of_4(weights)
    assert dense == ["layers.0.weight"]
    assert zeros == {name: weights[name].numel() // 2 for name in ("layers.2.weight", "classifier.weight")}
    fours = weights["layers.2.weight"].reshape(-1, 4)
    assert bool(((fours != 0).sum(1) == 2).all())


def test_by_activations_the_input_that_rows_use_least_goes_first(image: Any) -> None:
    task, model = opened(image)
    examples, _ = task.examples(image.calibration, Ledger("rows"))
    pixels = task.batch(examples, np.arange(len(examples))).pixels_BCHW.flatten(1)
    norms = magnitude.input_norms(task, model, image.calibration)
    assert torch.allclose(norms["layers.0.weight"], pixels.square().mean(0).sqrt(), rtol=1e-4)
    before = model.layers[0].weight.detach().clone()
    zeros = magnitude.prune(magnitude.matrices(model), 0.25, "tensor", norms)
    assert zeros["layers.0.weight"] == 48 * 16
    score_UI = before.abs() * norms["layers.0.weight"]
    gone_UI = model.layers[0].weight == 0
    assert bool((gone_UI.sum(1) == 16).all())
    assert bool((score_UI.masked_fill(~gone_UI, -1).amax(1) <= score_UI.masked_fill(gone_UI, torch.inf).amin(1)).all())


def test_by_activations_hurts_less_than_by_weights(text: Any) -> None:
    task, model = opened(text)
    norms, found = magnitude.input_norms(task, model, text.calibration), {}
    for name, given in (("weights", None), ("activations", norms)):
        other = copy.deepcopy(model)
        magnitude.prune(magnitude.matrices(other), 0.6, "tensor", given)
        found[name] = loss(text, task, other)
    assert found["activations"] < found["weights"]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_zeros_survive_healing(image: Any, tmp_path: Path, optimizer: str) -> None:
    task, model = opened(image)
    names = list(magnitude.prune(magnitude.matrices(model), 0.8, "tensor"))
    before, whole = loss(image, task, model), loss(image, task, opened(image)[1])
    learning.saved(task, model, tmp_path / "cut")
    source = copy.copy(image)
    source.train = image.train.model_copy(
        update={"optimizer": optimizer, "weight_decay": 0.1, "momentum": 0.9 if optimizer == "sgd" else None}
    )
    lessons = Lessons(60, 3e-3, 16, zeros=tuple(names))
    start = learning.start_of(image, tmp_path / "cut")
    told = learning.learn(source, start, lessons, tmp_path / "work", tmp_path / "healed", "here")["told"]
    cut, healed = tensors(tmp_path / "cut"), tensors(tmp_path / "healed")
    assert told["zeros_kept"] == sum(int((cut[name] == 0).sum()) for name in names)
    for name in names:
        assert bool((healed[name][cut[name] == 0] == 0).all())
        assert not torch.equal(healed[name], cut[name])
    after = loss(
        image, task, load(image.task, learning.start_of(image, tmp_path / "healed"), image.train, "float32")[1]
    )
    assert whole < before
    assert after < before


def test_a_number_that_was_pruned_and_moved_is_found(image: Any) -> None:
    model = opened(image)[1]
    names = list(magnitude.prune(magnitude.matrices(model), 0.5, "tensor"))
    masks = magnitude.Masks(model, names)
    with torch.no_grad():
        model.classifier.weight += 1e-3
    with pytest.raises(HermitcrabError, match=r"healing moved pruned numbers of classifier\.weight"):
        masks.check()


def test_zeros_save_nothing_in_a_dense_file(image: Any, tmp_path: Path) -> None:
    sizes = []
    for share in (0.0, 0.9):
        task, model = opened(image)
        magnitude.prune(magnitude.matrices(model), share, "tensor")
        learning.saved(task, model, tmp_path / f"{share}")
        sizes.append(magnitude.sizes(tmp_path / f"{share}" / "model.safetensors"))
    assert sizes[0]["file"] == sizes[1]["file"]
    assert sizes[1]["deflated"] < 0.3 * sizes[0]["deflated"]


# Healing


@pytest.mark.parametrize("taught", [False, True])
def test_a_killed_healing_goes_on_and_gives_the_same_bytes(
    text: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taught: bool
) -> None:
    task, model = opened(text)
    depth.cut(model, [0, 1, 4, 5])
    learning.saved(task, model, tmp_path / "cut")
    source = copy.copy(text)
    source.train = text.train.model_copy(update={"checkpoint_every": 3})
    lessons = Lessons(10, 1e-3, 2, temperature=2.0 if taught else None)
    start = learning.start_of(text, tmp_path / "cut")

    def heal(name: str) -> dict[str, Any]:
        return learning.learn(source, start, lessons, tmp_path / f"{name}-work", tmp_path / name, "here")

    straight = heal("straight")
    step = Fit._step

    def die(self: Fit, number: int, tell: bool) -> Any:
        if number == 7:
            raise KeyboardInterrupt
        return step(self, number, tell)

    monkeypatch.setattr(Fit, "_step", die)
    with pytest.raises(KeyboardInterrupt):
        heal("killed")
    assert not (tmp_path / "killed").exists()
    monkeypatch.setattr(Fit, "_step", step)
    asked: list[int] = []
    monkeypatch.setattr(Fit, "_step", lambda self, number, tell: asked.append(number) or step(self, number, tell))
    assert heal("killed")["told"] == straight["told"]
    assert asked == [6, 7, 8, 9]
    assert (tmp_path / "killed/model.safetensors").read_bytes() == (
        tmp_path / "straight/model.safetensors"
    ).read_bytes()
    assert ("teacher" in straight["told"]) is taught
    shutil.rmtree(tmp_path / "killed-work")
    assert heal("killed")["told"] == straight["told"]  # what is finished is not made again


def test_healing_brings_a_cut_model_nearer_to_its_parent(text: Any, tmp_path: Path) -> None:
    task, model = opened(text)
    depth.cut(model, [0, 1, 5])
    learning.saved(task, model, tmp_path / "cut")
    before = loss(text, task, model)
    learning.learn(
        text,
        learning.start_of(text, tmp_path / "cut"),
        Lessons(30, 3e-3, 8),
        tmp_path / "w",
        tmp_path / "h",
        "here",
    )
    assert loss(text, task, load(text.task, learning.start_of(text, tmp_path / "h"), text.train, "float32")[1]) < before


def test_without_training_rows_nothing_heals(image: Any, tmp_path: Path) -> None:
    alone = copy.copy(image)
    alone.rows = None
    with pytest.raises(
        HermitcrabError, match=r"compress\.prune\.heal: needs the training rows, and there is a model alone"
    ):
        learning.learn(alone, image.start, Lessons(1, 1e-3, 2), tmp_path / "w", tmp_path / "h", "compress.prune.heal")


# What an architecture cannot do


def test_what_an_architecture_cannot_do_is_refused_by_name(image: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification, ViTConfig

    mlp = opened(image)[1]
    with pytest.raises(HermitcrabError, match="mlp has no one list of layers that are alike"):
        anatomy.layers(mlp)
    with pytest.raises(HermitcrabError, match="heads of mlp cannot be taken out"):
        anatomy.heads(mlp)
    gpt2 = AutoModelForCausalLM.from_pretrained(write_model(tmp_path / "gpt2", "gpt2", n_embd=32, n_layer=2, n_head=4))
    with pytest.raises(HermitcrabError, match="layer 0 of gpt2 has 0 MLPs of the kinds that are known"):
        anatomy.neurons(gpt2)
    assert len(anatomy.layers(gpt2)) == 2
    vit = AutoModelForImageClassification.from_config(
        ViTConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
        )
    )
    assert [bundle.units for bundle in anatomy.neurons(vit)] == [32] * 3
    with pytest.raises(HermitcrabError, match="heads of vit cannot be taken out: its configuration has no head_dim"):
        anatomy.heads(vit)


def test_a_share_that_drops_everything_or_nothing(text: Any) -> None:
    task, model = opened(text)
    assert (depth.kept_of(6, 0.01), depth.kept_of(6, 0.99)) == (1, 5)
    with pytest.raises(HermitcrabError, match="expected to drop 1 to 5 layers of 6"):
        depth.distances(task, model, text.calibration, 6)


def test_the_form_says_what_the_base_rules_out_before_any_training(image: Any, text: Any) -> None:
    for method in ("width", "magnitude"):
        Prune.check(Compress.model_validate({"prune": {"method": method}}), image.base, Path())
    with pytest.raises(HermitcrabError, match="mlp has no one list of layers"):
        Prune.check(Compress.model_validate({"prune": {"method": "depth"}}), image.base, Path())
    Prune.check(Compress.model_validate({"prune": {"method": "depth"}}), text.start.base, text.model)


# The form


def made(source: Any, folder: Path, **prune: Any) -> tuple[Prune, dict[str, Any]]:
    source = copy.copy(source)
    source.compress = Compress.model_validate({"prune": {"heal": {"steps": 0}, **prune}})
    form, found = Prune(source), {}
    for kind in Prune.kinds(source.compress):
        (folder / kind).mkdir(parents=True)
        found[kind] = form.make(kind, folder / kind)
        assert form.make(kind, folder / kind) == found[kind]  # killed before it was written down: the same again
    return form, found


def test_kinds_are_named_by_method_and_share(text: Any, tmp_path: Path) -> None:
    form, found = made(text, tmp_path, method="depth", keep=[0.5, 0.84])
    assert list(found) == ["depth-0.5", "depth-0.84"]
    assert [m.told["layers"] for m in found.values()] == [{"kept": 3, "of": 6}, {"kept": 5, "of": 6}]
    for kind, one in found.items():
        assert one.files[0] == f"{kind}/model.safetensors"
        assert f"{kind}/tokenizer.json" in one.files
        start = form.start(kind, tmp_path / kind, one)
        task, model = load(text.task, start, text.train, "float32")
        assert task.inputs(text.calibration) == opened(text)[0].inputs(text.calibration)
        assert one.told["parameters"] == sum(p.numel() for p in model.parameters()) < one.told["parameters_before"]
        assert sum(np.prod(t.shape) for t in one.tensors) == one.told["parameters"]
        said = form.said(tmp_path / kind / one.files[0])
        assert (said["name"], said["form"], said["parent"]) == ("small", f"prune {kind}", one.told["parent"])


def test_magnitude_tells_what_its_zeros_are_worth(image: Any, tmp_path: Path) -> None:
    _, found = made(image, tmp_path, keep=0.2, heal={"steps": 5, "learning_rate": 1e-3, "batch_size": 16})
    told = found["magnitude-0.2"].told
    assert told["zero_share"] == pytest.approx(0.8, abs=1e-3)
    assert told["healed"]["zeros_kept"] == told["zeros"]
    assert told["bytes"]["bitmap"] < 0.4 * told["bytes"]["file"]
    assert told["bytes"]["deflated"] < told["bytes"]["file"]
    weights = tensors(tmp_path / "magnitude-0.2/magnitude-0.2")
    assert sum(int((w == 0).sum()) for name, w in weights.items() if name.endswith("weight")) == told["zeros"]


def test_two_of_four_says_which_matrices_stay_dense(image: Any, tmp_path: Path) -> None:
    _, found = made(image, tmp_path, pattern="2:4")
    assert {t.reason for t in found["magnitude-2of4"].tensors} == {None}
    assert found["magnitude-2of4"].told["zero_share"] == 0.5


def test_a_cut_with_a_teacher_is_healed_and_told(text: Any, tmp_path: Path) -> None:
    heal = {"steps": 12, "learning_rate": 1e-3, "batch_size": 4, "distill": True}
    _, found = made(text, tmp_path, method="width", keep=0.5, parts=["neurons", "heads"], heal=heal)
    told = found["width-0.5"].told
    assert told["heads"]["kept"] == 12
    assert told["proof"] < 1e-5
    assert (told["healed"]["steps"], told["healed"]["temperature"]) == (12, 2.0)
    assert "plan" in found["width-0.5"].facts


def test_a_share_of_all_units_is_refused(text: Any, tmp_path: Path) -> None:
    with pytest.raises(HermitcrabError, match=r"0\.95 of 3 heads a layer is all of them"):
        made(text, tmp_path, method="width", keep=0.95, parts=["heads"])


def test_a_shape_that_transformers_does_not_allow_is_told(text: Any, tmp_path: Path) -> None:
    model = opened(text)[1]
    model.config.hidden_size = 49  # of which four heads have no whole share
    found = width.find(model, ["heads"])
    with pytest.raises(HermitcrabError, match="transformers allows no llama of this shape; choose another share"):
        width.cut(model, found, {"heads": [torch.tensor([0, 1])] * 6})


@pytest.mark.parametrize(
    ("part", "says"),
    [({"method": "depth", "over": "model"}, "over is for method: magnitude"), ({"parts": ["heads"]}, "parts is for method: width"),
     ({"pattern": "2:4", "keep": 0.25}, "pattern 2:4 keeps two of four"), ({"keep": [0.5, 0.5]}, "each share is given once"),
     ({"keep": 1.0}, "less than 1")],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_the_recipe(part: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Compress.model_validate({"prune": part})


# What trace says of it


@pytest.mark.parametrize(
    ("prune", "word"),
    [
        ({"method": "magnitude", "keep": 0.5}, "pruned"),
        ({"method": "width", "keep": 0.5}, "narrowed"),
        ({"method": "depth", "keep": 0.67}, "layers dropped"),
        (
            {"method": "depth", "keep": 0.67, "heal": {"steps": 20, "learning_rate": 1e-3, "batch_size": 8}},
            "layers dropped",
        ),
    ],
    ids=["magnitude", "width", "depth", "depth, healed"],
)
def test_trace_finds_the_parent_and_the_right_word(text: Any, tmp_path: Path, prune: dict[str, Any], word: str) -> None:
    import hermitcrab

    _, found = made(text, tmp_path, **prune)
    (kind,) = found
    (result,) = hermitcrab.trace(tmp_path / kind / kind, text.model).results
    assert result.verdict == "related"
    assert word in result.relations
    assert result.direction == "suspect from base"
