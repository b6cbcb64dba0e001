"""From files to verdicts: what is said of copies, changes, launderings, mixtures, strangers, and of bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from trace_models import CONFIG, changed, cnn, gpt2, llama, write

import hermitcrab
from hermitcrab.cli import main
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.trace.relation import numerical_rank
from hermitcrab.trace.verdict import Result

KEYS = {"base", "verdict", "relation", "alpha", "log10_p", "p_status", "groups", "layer_map", "assumptions", "not_tested", "seconds",
        "bytes_read"}  # fmt: skip


def trace(suspect: Path, *bases: Path) -> list[Result]:
    return hermitcrab.trace(suspect, list(bases)).results


def test_a_twin_is_not_accused(base: Path, twin: Path) -> None:
    found = trace(twin, base)[0]
    assert found.verdict == "no-evidence"
    assert "does not prove" in found.sentence
    assert found.relations == []


def test_a_copy_is_identical_and_a_copy_in_another_type_is_re_packaged(tmp_path: Path, base: Path) -> None:
    copy = trace(write(tmp_path / "copy", llama(0), CONFIG), base)[0]
    assert (copy.verdict, copy.relation, copy.direction) == ("related", "identical", "unknown")
    half = {k: v.astype(np.float16) for k, v in llama(0).items()}
    assert trace(write(tmp_path / "half", half, CONFIG), base)[0].relation == "re-packaged"


def test_names_say_nothing(tmp_path: Path, base: Path, twin: Path) -> None:
    """Renamed and shuffled, without a configuration: found if changed, and a twin is still not accused."""
    r = np.random.default_rng(0)
    for seed, other, related in ((0, base, True), (3, twin, False)):
        tensors = changed(llama(seed), 0.2) if related else llama(seed)
        names = r.permutation(len(tensors))
        renamed = {f"x{n:03d}": v for n, v in zip(names, tensors.values(), strict=True)}
        found = trace(write(tmp_path / f"renamed{seed}", renamed), other)[0]
        assert found.verdict == ("related" if related else found.verdict)
        assert related or found.verdict != "related"


def quantized(tensors: dict[str, np.ndarray], bits: int) -> dict[str, np.ndarray]:
    out = {}
    for k, v in tensors.items():
        step = np.abs(v).max(-1, keepdims=True) / (2 ** (bits - 1) - 1)
        out[k] = (np.round(v / step) * step).astype(np.float32) if v.ndim == 2 else v
    return out


def test_lossy_steps_are_named_and_tell_the_direction(tmp_path: Path, base: Path) -> None:
    pruned = {
        k: np.where(np.abs(v) < np.quantile(np.abs(v), 0.5), 0, v) if v.ndim == 2 else v for k, v in llama(0).items()
    }
    for name, tensors, relation in (("int4", quantized(llama(0), 4), "quantized"), ("zeros", pruned, "pruned")):
        child = write(tmp_path / name, tensors, CONFIG)
        found = trace(child, base)[0]
        assert found.relation == relation
        assert found.direction == "suspect from base"
        assert trace(base, child)[0].direction == "base from suspect"


def test_an_adapter_is_told_from_fine_tuning(tmp_path: Path, base: Path) -> None:
    r = np.random.default_rng(5)
    adapted = {
        k: v + 0.1 * (r.standard_normal((v.shape[0], 2)) @ r.standard_normal((2, v.shape[1]))) / 7
        if "self_attn" in k
        else v
        for k, v in llama(0).items()
    }
    assert (
        trace(write(tmp_path / "lora", {k: v.astype(np.float32) for k, v in adapted.items()}, CONFIG), base)[0].relation
        == "LoRA-like"
    )
    assert trace(write(tmp_path / "tuned", changed(llama(0), 0.1), CONFIG), base)[0].relation == "fine-tuned"
    assert trace(write(tmp_path / "onward", changed(llama(0), 1.0), CONFIG), base)[0].relation == "continued training"


@pytest.mark.parametrize("rank", [1, 16])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_the_rank_of_an_adapter_ends_in_a_cliff(rank: int, noise: float) -> None:
    """Rounding lies behind it; a difference of full rank has no cliff, however its singular values fall."""
    r = np.random.default_rng(1)
    low = r.standard_normal((48, rank)) @ r.standard_normal((rank, 32)) / rank**0.5 + noise * r.standard_normal(
        (48, 32)
    )
    assert numerical_rank(np.linalg.svd(low, compute_uv=False)) == (rank, True)
    for power in (0.0, 0.5, 1.0):
        falling = np.linalg.qr(r.standard_normal((48, 32)))[0] * (1 + np.arange(32.0)) ** -power
        assert not numerical_rank(np.linalg.svd(falling, compute_uv=False))[1]


def test_packed_four_bit_models_are_read(tmp_path: Path, base: Path, twin: Path) -> None:
    """GPTQ's layout for every matrix of attention and MLP: found, named, and a packed twin is not accused."""
    for seed, verdict in ((0, "related"), (1, "no-evidence")):
        tensors = {}
        for k, v in llama(seed).items():
            tensors |= packed(k, v) if "proj" in k else {k: v}
        found = trace(write(tmp_path / f"packed-{seed}", tensors, CONFIG), base)[0]
        assert found.verdict == verdict
        if verdict == "related":
            assert found.relations == ["quantized"]
            assert found.direction == "suspect from base"


def packed(name: str, v: np.ndarray, group: int = 16) -> dict[str, np.ndarray]:
    """(out, in) in four bits: eight inputs in an int32, zero points in the middle, stored less one."""
    stem, x = name.removesuffix(".weight"), v.T.reshape(-1, group, len(v))
    scales = np.abs(x).max(1) / 7
    q = np.clip(np.round(x / scales[:, None]) + 8, 0, 15).reshape(-1, len(v)).astype(np.uint32)
    words = np.bitwise_or.reduce(
        q.reshape(-1, 8, len(v)) << np.arange(0, 32, 4, dtype=np.uint32)[None, :, None], axis=1
    )
    return {f"{stem}.qweight": words.view(np.int32), f"{stem}.qzeros": np.full((len(x), len(v) // 8), 0x77777777, np.int32),
            f"{stem}.scales": scales.astype(np.float16)}  # fmt: skip


def test_one_percent_of_a_second_parent_is_found_behind_the_first(tmp_path: Path, base: Path, twin: Path) -> None:
    a, b = llama(0), llama(1)
    mixed = write(tmp_path / "mixed", {k: (0.01 * a[k] + 0.99 * b[k]).astype(np.float32) for k in a}, CONFIG)
    small, large = trace(mixed, base, twin)
    assert (small.verdict, large.verdict) == ("related", "related")
    assert small.relation == "merged"
    weights = small.details["merge"]["weights"]
    assert weights[str(base)] == pytest.approx(0.01, abs=0.002)
    assert weights[str(twin)] == pytest.approx(0.99, abs=0.002)


def test_a_stranger_is_not_found_behind_a_parent(tmp_path: Path, base: Path, twin: Path) -> None:
    """Deflation takes the first parent out; what is left must not look like anybody."""
    child = write(tmp_path / "child", changed(llama(1), 0.3), CONFIG)
    stranger, parent = trace(child, base, twin)
    assert stranger.verdict == "no-evidence"
    assert parent.verdict == "related"


def laundered(tensors: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Residual stream rotated, gains folded, neurons permuted, scaled and flipped, vocabulary in another order."""
    r = np.random.default_rng(seed)
    d = tensors["model.norm.weight"].shape[0]
    turn = np.linalg.qr(r.standard_normal((d, d)))[0]
    words = r.permutation(len(tensors["lm_head.weight"]))
    out = {"model.embed_tokens.weight": (tensors["model.embed_tokens.weight"] @ turn)[words], "model.norm.weight": np.ones(d),
           "lm_head.weight": ((tensors["lm_head.weight"] * tensors["model.norm.weight"]) @ turn)[words]}  # fmt: skip
    for i in range(3):
        at = f"model.layers.{i}."
        n1, n2 = tensors[at + "input_layernorm.weight"], tensors[at + "post_attention_layernorm.weight"]
        for name in "qkv":
            out[f"{at}self_attn.{name}_proj.weight"] = (tensors[f"{at}self_attn.{name}_proj.weight"] * n1) @ turn
        out[at + "self_attn.o_proj.weight"] = turn.T @ tensors[at + "self_attn.o_proj.weight"]
        count = len(tensors[at + "mlp.up_proj.weight"])
        order, scale = r.permutation(count), r.choice([-1, 1], count) * np.exp(0.2 * r.standard_normal(count))
        out[at + "mlp.gate_proj.weight"] = ((tensors[at + "mlp.gate_proj.weight"] * n2) @ turn)[order]
        out[at + "mlp.up_proj.weight"] = ((tensors[at + "mlp.up_proj.weight"] * n2) @ turn)[order] * scale[:, None]
        out[at + "mlp.down_proj.weight"] = (turn.T @ tensors[at + "mlp.down_proj.weight"])[:, order] / scale
        out[at + "input_layernorm.weight"] = out[at + "post_attention_layernorm.weight"] = np.ones(d)
    return {k: v.astype(np.float32) for k, v in out.items()}


def test_laundering_is_seen_through_and_a_laundered_twin_is_not_accused(tmp_path: Path, base: Path, twin: Path) -> None:
    washed = write(tmp_path / "washed", laundered(changed(llama(0), 0.2), 4), CONFIG)
    found = trace(washed, base)[0]
    assert found.verdict == "related"
    assert [r["base_layer"] for r in found.layer_map] == [0, 1, 2]
    assert found.aligned is not None
    assert found.aligned["mode"] == "blind"
    assert trace(washed, twin)[0].verdict == "no-evidence"


def test_a_map_without_vocabulary_is_found_although_no_neuron_stayed_where_it_was(tmp_path: Path, base: Path) -> None:
    """Every number moved by its own spread and a layer gone: descriptors of single neurons say nothing any more."""
    child = {k: v for k, v in laundered(changed(llama(0), 0.7), 4).items() if "layers.1." not in k}
    found = trace(
        write(tmp_path / "washed", {k.replace("layers.2.", "layers.1."): v for k, v in child.items()}, CONFIG), base
    )[0]
    assert found.verdict == "related"
    assert found.aligned is not None
    assert found.aligned["mode"] == "blind"
    assert [r["base_layer"] for r in found.layer_map] == [0, 2]


def test_layers_are_followed_where_they_went(tmp_path: Path, base: Path) -> None:
    order = [0, 2, 1, 2]
    tensors = {k: v for k, v in llama(0).items() if "layers" not in k}
    for to, at in enumerate(order):
        tensors |= {
            k.replace(f"layers.{at}.", f"layers.{to}."): v
            for k, v in changed(llama(0), 0.1).items()
            if f"layers.{at}." in k
        }
    found = trace(write(tmp_path / "moved", tensors, CONFIG), base)[0]
    assert [r["base_layer"] for r in found.layer_map] == order
    assert "layers duplicated" in found.relations
    assert found.direction == "suspect from base"


def test_gpt2_and_convolutional_nets(tmp_path: Path) -> None:
    for make in (gpt2, cnn):
        base = write(tmp_path / f"{make.__name__}-base", make(0))
        assert trace(write(tmp_path / f"{make.__name__}-child", changed(make(0), 0.2)), base)[0].verdict == "related"
        assert trace(write(tmp_path / f"{make.__name__}-twin", make(1)), base)[0].verdict != "related"


def test_a_shared_table_is_said_to_be_shared_in_part(tmp_path: Path) -> None:
    """Two models of one frozen embedding: not independent, and the page names what is shared."""
    shared = llama(5)["model.embed_tokens.weight"]
    a, b = (
        write(tmp_path / n, {**llama(s), "model.embed_tokens.weight": shared}, CONFIG) for n, s in (("a", 6), ("b", 7))
    )
    found = trace(a, b)[0]
    assert found.verdict == "related"
    assert found.relation == "body shared in part"
    assert ["model.embed_tokens.weight", "model.embed_tokens.weight"] in [
        list(x) for x in found.as_json()["copies"]["same"]
    ]


def test_constants_are_no_evidence(tmp_path: Path) -> None:
    """Sinusoids, masks, Fourier bases and identities are in every model of their kind."""
    t, f = np.arange(256)[:, None], np.arange(48)[None]
    window = np.hanning(48)
    buffers = {
        "pe": np.sin(t / 10_000 ** (f / 48)),
        "mask": np.tril(np.ones((128, 128))),
        "stft": np.cos(2 * np.pi * (t % 97) * f / 48) * window,
        "eye": np.eye(96),
        "zeros": np.zeros((64, 64)),
        "ramp": np.outer(np.ones(64), np.arange(64.0)),
    }
    a, b = (
        write(tmp_path / n, {**{k: v.astype(np.float32) for k, v in buffers.items()}, **llama(s)}, CONFIG)
        for n, s in (("a", 1), ("b", 2))
    )
    assert trace(a, b)[0].verdict == "no-evidence"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinities_are_named_and_are_no_evidence(tmp_path: Path, base: Path, value: float) -> None:
    tensors = llama(1)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = value
    found = trace(write(tmp_path / "broken", tensors, CONFIG), base)[0]
    assert found.verdict == "no-evidence"
    assert any("NaN or infinite" in x for x in found.not_tested)
    everywhere = {k: np.full_like(v, value) for k, v in llama(1).items()}
    with pytest.raises(HermitcrabError, match="nothing in common"):
        trace(write(tmp_path / "all", everywhere, CONFIG), base)


def test_what_cannot_be_tested_is_one_clear_sentence(tmp_path: Path, base: Path) -> None:
    (tmp_path / "empty").mkdir()
    table = write(tmp_path / "table", {"t": np.random.default_rng(0).standard_normal((30, 40)).astype(np.float32)})
    tiny = write(tmp_path / "tiny", {"t": np.ones((2, 2), np.float32)})
    zeros = write(tmp_path / "zeros", {k: np.zeros_like(v) for k, v in llama(0).items()}, CONFIG)
    for suspect, says in ((tmp_path / "empty", "no weights"), (tmp_path / "nowhere", "no such file"), (table, "nothing in common"),
                          (tiny, "no matrix of floating-point"), (zeros, "nothing in common")):  # fmt: skip
        with pytest.raises(HermitcrabError, match=says):
            trace(suspect, base)
    (tmp_path / "link").symlink_to(base)
    for bases, says in (([], "one model only"), ([base, base], "given twice"), ([tmp_path / "link"], "given twice")):
        with pytest.raises(UsageError, match=says):
            hermitcrab.trace(base if says != "one model only" else table, bases)


def test_the_command_line(tmp_path: Path, base: Path, twin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = write(tmp_path / "child", changed(llama(0), 0.1), CONFIG)
    assert (
        main(["trace", str(child), str(base), str(twin), "--json", "--quiet", "--report", str(tmp_path / "r.html")])
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["suspect"] == str(child)
    assert [r["verdict"] for r in told["results"]] == ["related", "no-evidence"]
    assert all(set(r) >= KEYS for r in told["results"])
    page = (tmp_path / "r.html").read_text()
    assert "Not independent" in page
    assert "<script" not in page
    assert main(["trace", str(child), str(base), "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "Not independent" in text
    assert "stolen" not in text
    assert main(["trace", str(child), str(base), "--sample", "--quiet"]) == 0
    assert "sample" in capsys.readouterr().out
    assert main(["trace", str(child), "--quiet"]) == 2
    assert main(["trace", str(child), str(child), "--quiet"]) == 2
    assert main(["trace", str(child), str(tmp_path / "none"), "--quiet"]) == 1
    assert main(["trace", str(child), str(base), "--alpha", "2"]) == 2


def test_a_name_that_moves_the_cursor_is_shown_as_its_code(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = tmp_path / "a\x1b[2Jb"
    save_file(llama(1), str(write(evil, llama(1)) / "model.safetensors"))
    assert main(["trace", str(evil), str(base), "--quiet"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_the_level_is_shared_among_the_bases(base: Path, twin: Path, tmp_path: Path) -> None:
    child = write(tmp_path / "child", changed(llama(0), 0.1), CONFIG)
    alone, shared = trace(child, base)[0].log10_p, trace(child, base, twin)[0].log10_p
    assert alone is not None
    assert shared is not None
    assert shared == pytest.approx(alone + np.log10(2), abs=0.01)
