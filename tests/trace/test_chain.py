"""Models without blocks: the order of their layers, and units that were moved."""

from pathlib import Path

import numpy as np
import pytest
from trace_models import changed, cnn, write

import hermitcrab
from hermitcrab.trace.chain import chain, closed
from hermitcrab.trace.parts import Seen

Tensors = dict[str, np.ndarray]


def lstm(seed: int, words: int = 150, width: int = 24, units: int = 40) -> Tensors:
    r = np.random.default_rng(seed)
    out = {"embedding.weight": r.standard_normal((words, width)), "head.weight": r.standard_normal((words, units)) / 6}
    for i, inner in enumerate((width, units)):
        out[f"lstm.weight_ih_l{i}"] = r.standard_normal((4 * units, inner)) / 6
        out[f"lstm.weight_hh_l{i}"] = r.standard_normal((4 * units, units)) / 6
    return {k: v.astype(np.float32) for k, v in out.items()}


def generator(seed: int) -> Tensors:
    r = np.random.default_rng(seed)
    return {"project.weight": r.standard_normal((64 * 49, 40)).astype(np.float32) / 6,
            "up.0.weight": r.standard_normal((64, 32, 4, 4)).astype(np.float32) / 30,
            "up.1.weight": r.standard_normal((32, 1, 4, 4)).astype(np.float32) / 20}  # fmt: skip


def moved_cnn(t: Tensors, seed: int) -> Tensors:
    r, out, before = np.random.default_rng(seed), dict(t), np.arange(1)
    for i in range(3):
        order = r.permutation(len(t[f"features.{i}.weight"]))
        out[f"features.{i}.weight"] = t[f"features.{i}.weight"][order][:, before]
        out[f"features.{i}.bias"], before = t[f"features.{i}.bias"][order], order
    order = r.permutation(128)
    out["classifier.0.weight"] = t["classifier.0.weight"].reshape(128, 96, 9)[order][:, before].reshape(128, -1)
    out["classifier.0.bias"], out["classifier.1.weight"] = (
        t["classifier.0.bias"][order],
        t["classifier.1.weight"][:, order],
    )
    return out


def moved_lstm(t: Tensors, seed: int) -> Tensors:
    r, out = np.random.default_rng(seed), dict(t)
    before = r.permutation(24)
    out["embedding.weight"] = t["embedding.weight"][:, before]
    for i in range(2):
        order = r.permutation(40)
        rows = np.concatenate([order + 40 * g for g in range(4)])
        out[f"lstm.weight_ih_l{i}"] = t[f"lstm.weight_ih_l{i}"][rows][:, before]
        out[f"lstm.weight_hh_l{i}"], before = t[f"lstm.weight_hh_l{i}"][rows][:, order], order
    out["head.weight"] = t["head.weight"][:, before]
    return out


def moved_generator(t: Tensors, seed: int) -> Tensors:
    r = np.random.default_rng(seed)
    first, second = r.permutation(64), r.permutation(32)
    return {"project.weight": t["project.weight"].reshape(64, 49, 40)[first].reshape(-1, 40),
            "up.0.weight": t["up.0.weight"][first][:, second], "up.1.weight": t["up.1.weight"][second]}  # fmt: skip


NETS = {"cnn": (cnn, moved_cnn), "lstm": (lstm, moved_lstm), "generator": (generator, moved_generator)}


def test_the_order_of_layers_is_told_from_sizes() -> None:
    """Alphabetical order puts classifiers before features; a plain layer takes channels times places."""
    found = chain([Seen(k, v.shape) for k, v in cnn(0).items() if v.ndim > 1])
    assert [(x.name, x.out, x.inner, x.cut_in) for x in found] == [
        ("features.0.weight", 24, 1, 1), ("features.1.weight", 48, 24, 1), ("features.2.weight", 96, 48, 1),
        ("classifier.0.weight", 128, 96, 9), ("classifier.1.weight", 10, 128, 1)]  # fmt: skip
    found = chain([Seen(k, v.shape) for k, v in generator(0).items()])
    assert [(x.out, x.inner, x.cut_out, x.turned) for x in found] == [
        (64, 40, 49, False),
        (32, 64, 1, True),
        (1, 32, 1, True),
    ]
    found = chain([Seen(k, v.shape) for k, v in lstm(0).items()])
    assert [(x.out, x.inner, x.gates, x.loop) for x in found] == [
        (24, 150, 1, ""), (40, 24, 4, "lstm.weight_hh_l0"), (40, 40, 4, "lstm.weight_hh_l1"), (150, 40, 1, "")]  # fmt: skip
    assert closed(found)


@pytest.mark.parametrize("name", NETS)
def test_moved_units_are_found_and_a_stranger_is_not(name: str, tmp_path: Path) -> None:
    make, move = NETS[name]
    base = write(tmp_path / "base", make(0))
    child = write(tmp_path / "child", move(changed(make(0), 0.2), 3))
    found = hermitcrab.trace(child, base).results[0]
    assert (found.verdict, found.decision.p_status) == ("related", "conformal")
    assert found.aligned is not None
    assert found.aligned["mode"] == "channels"
    assert "fine-tuned" in found.relations
    assert "relabeled" in found.details
    assert hermitcrab.trace(write(tmp_path / "other", move(make(1), 3)), base).results[0].verdict != "related"


def test_one_percent_of_a_second_parent_is_found_behind_the_first(tmp_path: Path) -> None:
    """Channels moved: the large parent's order is found first, and the small one tested in it."""
    small, large, third = (write(tmp_path / n, cnn(seed)) for seed, n in enumerate(("small", "large", "third")))
    mixed = {k: (0.01 * v + 0.99 * cnn(1)[k]).astype(np.float32) for k, v in cnn(0).items()}
    suspect = write(tmp_path / "mixed", moved_cnn(mixed, 5))
    found = hermitcrab.trace(suspect, [small, large, third]).results
    assert [r.verdict for r in found] == ["related", "related", "no-evidence"]
    assert found[0].relation == "merged"
    assert found[0].details["merge"]["weights"][str(small)] == pytest.approx(0.01, abs=0.002)
