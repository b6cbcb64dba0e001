"""A tiny language model in every text form, each read back by its own runtime and held against the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import question_rows, write_model

from hermitcrab.compress import Source, about, load_form
from hermitcrab.compress.parity import Parity, Reference
from hermitcrab.digest import describe_files
from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import open_weights
from hermitcrab.recipe import Compress, Evaluate, Target, Train
from hermitcrab.tasks import Start, make_task

torch = pytest.importorskip("torch")
pytest.importorskip("xllamacpp")
pytest.importorskip("openvino_genai")

TRAIN = Train(sequence_length=64, final_dtype="float32")
EVALUATE = Evaluate(choices=["yes", "no"], resamples=100, noise_rows=0)


def start_of(folder: Path, base: dict[str, Any]) -> Start:
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    return Start({**base, "kind": "safetensors", "files": describe_files(folder, names)}, folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, hidden_size=64, intermediate_size=128)
    base = {"kind": "safetensors", "name": "Tiny", "uri": "file:base", "revision": None, "digest": "sha256:" + "0" * 64}
    rows = question_rows(40)
    return Source(
        model=folder, name="tiny", task="text-generation", start=start_of(folder, base), base_start=None, train=TRAIN,
        evaluate=EVALUATE, compress=Compress(gguf=["F32"], calibration_rows=8), base=base,
        about=about("tiny", "Apache-2.0", base), calibration=rows.slice(0, 8), validation=rows.slice(8, 12), metric="accuracy",
    )  # fmt: skip


@pytest.fixture(scope="module")
def parity(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Parity:
    rows = question_rows(40).slice(20)
    task: Any = make_task(source.task, source.start, TRAIN)
    answers = task.predict(task.model(torch.float32), rows, EVALUATE)
    return Parity(source, Reference(rows, answers, ("accuracy",), None), tmp_path_factory.mktemp("work"))


def made(source: Source, format: str, kind: str, folder: Path) -> tuple[Any, Start]:
    form = load_form(format)(source)
    folder.mkdir(parents=True, exist_ok=True)
    found = form.make(kind, folder)
    return found, form.start(kind, folder, found)


@pytest.mark.parametrize(
    "kind", ["Q8_0-calibrated", "Q4_0", "Q4_0-calibrated", "Q5_1-calibrated", "IQ4_NL-calibrated", "Q4_K"]
)
def test_llama_cpp_opens_what_is_written(source: Source, parity: Parity, tmp_path: Path, kind: str) -> None:
    found, start = made(source, "gguf", kind, tmp_path)
    parity.check_inputs(kind, start)
    assert parity.distance(kind, start)["mean_kl"] < 0.5
    work = load_form("gguf").pace(start)
    assert work() == (48, "tokens")
    sizes = {t.name: open_weights(start.path).info(t.name) for t in found.tensors}
    assert {name: info.dtype for name, info in sizes.items()} == {t.name: t.dtype for t in found.tensors}
    if kind.endswith("-calibrated"):
        assert sum(found.told["matrices"].values()) == 14
        assert found.told["calibration_rows"] == 8


def test_columns_that_no_k_quant_divides_get_the_next_type_and_are_counted(source: Source, tmp_path: Path) -> None:
    found, _ = made(source, "gguf", "Q4_K", tmp_path)
    fell = [t for t in found.tensors if t.reason == "row no whole number of Q4_K blocks, in Q5_0"]
    assert len(fell) == 15  # seven matrices of two layers, and the table of tokens
    assert {t.bits for t in fell} == {5.5}


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_what_training_rows_say_brings_a_file_nearer(source: Source, parity: Parity, tmp_path: Path, kind: str) -> None:
    nearest = parity.distance(kind, made(source, "gguf", kind, tmp_path / "a")[1])
    calibrated = parity.distance(f"{kind} c", made(source, "gguf", f"{kind}-calibrated", tmp_path / "b")[1])
    assert calibrated["mean_kl"] < nearest["mean_kl"]


@pytest.mark.parametrize("kind", ["f16", "int8", "int4", "int4-calibrated"])
def test_openvino_opens_what_is_written(source: Source, parity: Parity, tmp_path: Path, kind: str) -> None:
    found, start = made(source, "openvino", kind, tmp_path / kind)
    assert found.files[0] == f"tiny-{kind}/openvino_model.xml"
    parity.check_inputs(kind, start)
    distance = parity.distance(kind, start)
    limit = {"f16": 1e-5, "int8": 1e-2}.get(kind, 1.0)
    assert 0 <= distance["mean_kl"] < limit
    table = parity.answers(kind, start)
    if kind == "f16":
        paired = parity.paired(kind, table)
        assert (paired["flips"], paired["difference"]) == (0, 0.0)
        before = parity.reference.answers
        assert table["nll"].to_pylist() == pytest.approx(before["nll"].to_pylist(), abs=5e-3)
        assert abs(paired["perplexity"]["difference"]) < 1e-2 * np.exp(np.mean(before["nll"].to_numpy()))
    bits = {t.name: t.bits for t in found.tensors if "q_proj" in t.name}
    assert set(bits.values()) == {{"f16": 16.0, "int8": 8.375}.get(kind, 4.25)}
    assert load_form("openvino").said(start.path / "openvino_model.xml")["license"] == "Apache-2.0"
    assert load_form("openvino").pace(start)() == (48, "tokens")


def test_openvino_generates_as_the_model_does(source: Source, tmp_path: Path) -> None:
    """Through the cache: a prompt, then one token after the other, in a batch with padding."""
    _, start = made(source, "openvino", "f16", tmp_path / "f16")
    rows, part = question_rows(6), Evaluate(max_new_tokens=6)
    said = []
    for where in (source.start, start):
        task: Any = make_task(source.task, where, TRAIN)
        table = task.predict(task.model(torch.float32), rows, part)
        said.append((table["prediction"].to_pylist(), table["nll"].to_pylist()))
    assert said[0][0] == said[1][0]
    assert said[0][1] == pytest.approx(said[1][1], rel=1e-3)  # weights in half precision


def test_the_same_graph_has_the_same_bytes(source: Source, tmp_path: Path) -> None:
    digests = []
    for folder in ("a/int4", "b/int4"):
        _, start = made(source, "openvino", "int4", tmp_path / folder)
        digests.append(start.base["files"])
    assert digests[0] == digests[1]


def test_as_few_tensors_as_meet_a_budget_stay_wide(source: Source, tmp_path: Path) -> None:
    plain, _ = made(source, "gguf", "Q4_0", tmp_path / "plain")
    asked = replace(source, compress=Compress(gguf=["Q4_0"], target=Target(max_loss=0.5, max_kl=1e9)))
    loose, _ = made(asked, "gguf", "Q4_0", tmp_path / "loose")
    assert loose.told["mixed"]["widened"] == []
    assert loose.tensors == plain.tensors
    costs = loose.told["mixed"]["kl_alone"]
    assert len(costs) == 4
    assert min(costs.values()) > 0
    whole = loose.told["mixed"]["calibration_kl"]
    asked = replace(source, compress=Compress(gguf=["Q4_0"], target=Target(max_loss=0.5, max_kl=whole * 0.6)))
    mixed, start = made(asked, "gguf", "Q4_0", tmp_path / "mixed")
    told = mixed.told["mixed"]
    assert 0 < len(told["widened"]) < 4
    assert told["calibration_kl"] <= whole * 0.6
    wide = {t.name for t in mixed.tensors if t.reason == "hurts most, in Q8_0"}
    assert wide == {
        t.name for t in mixed.tensors if any(t.name.startswith(g + "_") for g in told["widened"]) and len(t.shape) > 1
    }
    assert {open_weights(start.path).info(name).dtype for name in wide} == {"Q8_0"}


@pytest.mark.parametrize(("margin", "kept"), [(0.9, 0), (1e-6, 4)])
def test_without_a_bound_on_kl_the_loss_on_validation_rows_decides(
    source: Source, tmp_path: Path, margin: float, kept: int
) -> None:
    """Twelve rows show a loss of nine tenths at most of anything, and of a millionth not even for the model itself."""
    asked = replace(source, compress=Compress(gguf=["Q4_0"], target=Target(max_loss=margin)))
    told = made(asked, "gguf", "Q4_0", tmp_path)[0].told["mixed"]
    assert len(told["widened"]) == kept
    assert (told["max_loss"], told["validation_rows"]) == (margin, 12)
    assert "max_kl" not in told


def test_types_that_openvino_text_is_not_made_in_are_refused(source: Source) -> None:
    with pytest.raises(
        HermitcrabError, match=r"a language model is made in f16, int8, int4, int4-calibrated.*Received: bf16"
    ):
        load_form("openvino").check(Compress(openvino=["bf16"]), source.start.base, source.model)


def test_what_stands_beside_a_graph_may_be_a_strangers(source: Source, tmp_path: Path) -> None:
    said = load_form("openvino").said
    with pytest.raises(HermitcrabError, match="says nothing of license and base"):
        said(tmp_path / "openvino_model.xml")
    for text in ('["a"]', '{"license": 1}', "no json"):
        (tmp_path / "origin.json").write_text(text)
        with pytest.raises(HermitcrabError):
            said(tmp_path / "openvino_model.xml")
