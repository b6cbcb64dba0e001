"""The exact tests: valid whatever the weights, powerful where something is shared, blind where symmetry says they must be."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_models import CONFIG, changed, cnn, gpt2, llama, write

from hermitcrab.trace import exact
from hermitcrab.trace.model import open_model


def measured(a: Path, b: Path, **more: object) -> exact.Exact:
    with open_model(a) as left, open_model(b) as right:
        layers = {i: i for i in range(min(left.structure.layers, right.structure.layers))}
        return exact.examine(left, right, layers, **more)


def z(found: exact.Exact) -> dict[str, float]:
    return {g.name: g.z for g in found.groups}


def test_independent_draws_of_one_recipe_keep_the_stated_level(tmp_path: Path) -> None:
    folders = [write(tmp_path / f"{i}", llama(i, layers=2, width=32, neurons=48), CONFIG) for i in range(16)]
    found = [measured(a, b) for a, b in itertools.combinations(folders, 2)]
    for name in ("UD", "VO", "QK", "RES"):
        values = np.array([z(f)[name] for f in found])
        assert abs(values.mean()) < 0.35
        assert 0.8 < values.std() < 1.2
        assert (2 * np.exp(-(values**2) / 2) < 0.01).mean() <= 0.01
    assert min(f.log10_p() for f in found) > -3


@pytest.mark.parametrize(("size", "least"), [(0.0, 15.0), (0.5, 13.0), (2.0, 5.5)])
def test_what_was_trained_on_is_found(tmp_path: Path, base: Path, size: float, least: float) -> None:
    child = write(tmp_path / "child", changed(llama(0), size), CONFIG)
    found = measured(child, base)
    assert z(found)["UD"] > least
    assert found.log10_p() < -6


def test_the_bound_is_that_of_hoeffding() -> None:
    assert exact.bound(0) == 0
    assert exact.bound(10) == pytest.approx(math.log10(2) - 50 * math.log10(math.e))


def test_gpt2_is_tested_by_swaps_and_attention_signs(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path / n, t) for n, t in (("a", gpt2(0)), ("b", changed(gpt2(0), 0.5)), ("c", gpt2(1))))
    assert {"neurons", "coordinates", "VO", "QK"} <= set(z(measured(b, a)))
    assert measured(b, a).log10_p() < -20
    assert measured(c, a).log10_p() > -3


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_flipping_signs_of_independent_units_only_turns_the_sign_of_what_they_add(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """The statistic is odd: with all gated neurons flipped, UD is its own opposite and every other group is unmoved."""
    folder = tmp_path_factory.mktemp("odd")
    tensors = llama(seed, layers=2, width=32, neurons=48)
    flipped = {k: -v if "up_proj" in k or "down_proj" in k else v for k, v in tensors.items()}
    base = write(folder / "base", llama(seed + 1, layers=2, width=32, neurons=48), CONFIG)
    before, after = (z(measured(write(folder / n, t, CONFIG), base)) for n, t in (("a", tensors), ("b", flipped)))
    assert after["UD"] == pytest.approx(-before["UD"], abs=1e-4)
    assert after["VO"] == pytest.approx(before["VO"], abs=1e-6)


def test_no_p_value_is_smaller_than_the_signs_allow(tmp_path: Path, base: Path) -> None:
    for group in measured(write(tmp_path / "copy", llama(0), CONFIG), base).groups:
        assert abs(group.z) <= math.sqrt(group.units) + 1e-6


def test_a_sample_of_rows_is_exact_too_and_still_finds(tmp_path: Path, base: Path, twin: Path) -> None:
    child = write(tmp_path / "child", changed(llama(0), 0.3), CONFIG)
    assert measured(child, base, rows=32).log10_p() < -6
    assert measured(twin, base, rows=32).log10_p() > -3


def test_experts_lie_on_the_dense_model_that_they_came_from(tmp_path: Path, base: Path, twin: Path) -> None:
    sparse = {}
    for k, v in changed(llama(0), 0.1).items():
        if ".mlp." in k:
            for e in range(4):
                sparse[k.replace(".mlp.", f".mlp.experts.{e}.")] = v
        else:
            sparse[k] = v
    child = write(tmp_path / "moe", sparse, CONFIG)
    assert z(measured(child, base))["UD"] > 15
    assert measured(child, twin).log10_p() > -3


def test_types_and_layouts_do_not_matter(tmp_path: Path, base: Path) -> None:
    """The streamed kernels for bfloat16 and half precision give what float32 gives."""
    import torch
    from safetensors.torch import save_file

    tensors = {k: torch.tensor(v) for k, v in changed(llama(0), 1.0).items()}
    found = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for side, source in (("a", tensors), ("b", {k: torch.tensor(v) for k, v in llama(0).items()})):
            folder = tmp_path / f"{dtype}-{side}"
            folder.mkdir()
            save_file({k: v.to(dtype) for k, v in source.items()}, folder / "model.safetensors")
        found[dtype] = z(measured(tmp_path / f"{dtype}-a", tmp_path / f"{dtype}-b"))
    for name, value in found[torch.float32].items():
        assert found[torch.float16][name] == pytest.approx(value, rel=0.01)
        assert found[torch.bfloat16][name] == pytest.approx(value, rel=0.05)


def test_a_convolutional_net_is_tested_by_its_channels(tmp_path: Path) -> None:
    from hermitcrab.trace import generic

    a, b, c = (write(tmp_path / n, t) for n, t in (("a", cnn(0)), ("b", changed(cnn(0), 0.3)), ("c", cnn(1))))
    with open_model(a) as base, open_model(b) as child, open_model(c) as other:
        assert min(g.log10_p for g in generic.examine(child, base)[0]) < -10
        assert min(g.log10_p for g in generic.examine(other, base)[0]) > -3


def test_an_axis_with_an_identity_is_never_swapped(tmp_path: Path) -> None:
    """Two autoencoders see the same inputs, so their first and last axes agree without any kinship: nothing may be said."""
    from hermitcrab.trace import generic

    shared = np.linspace(1, 3, 64, dtype=np.float32)  # the scale of each input, the same for both

    def net(seed: int) -> dict[str, np.ndarray]:
        r = np.random.default_rng(seed)
        return {"decoder.weight": (np.abs(r.standard_normal((64, 32))) * shared[:, None] ** 3).astype(np.float32),
                "encoder.weight": (np.abs(r.standard_normal((32, 64))) * shared**3).astype(np.float32)}  # fmt: skip

    with open_model(write(tmp_path / "a", net(0))) as a, open_model(write(tmp_path / "b", net(1))) as b:
        groups, why, _ = generic.examine(a, b)
    assert not any(g.log10_p < -2 for g in groups)
    assert why or groups
