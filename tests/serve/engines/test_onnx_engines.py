"""Vectors and predictions from ONNX files, beside the same model on torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from engine_specs import running
from tiny import stripes, write_tokenizer

from hermitcrab.data.images import encode_png
from hermitcrab.digest import describe_files
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.recipe import Train
from hermitcrab.serve.choosing import choose_encoder, choose_predictor
from hermitcrab.serve.engine import Spec
from hermitcrab.serve.engines.embedding import OnnxEncoder, Pooling, TorchEncoder
from hermitcrab.serve.engines.onnx import SMALL, OnnxPredictor, Session, pick, quantizes
from hermitcrab.serve.opening import Opened
from hermitcrab.tasks import Asking, Start, make_task

ROWS = [[1, 20, 30, 2], [1, 40, 2], [1, *range(50, 90), 2], [1, 5, 6, 7, 2]]


class Hidden(torch.nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT, as sentence-transformers keeps one, with the same in ONNX."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(1)
    model = BertModel(BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                                 max_position_embeddings=64), add_pooling_layer=False).eval()  # fmt: skip
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder, ["a text"], 300)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    )
    kinds = ["models.Transformer", "models.Pooling", "models.Normalize"]
    (folder / "modules.json").write_text(
        json.dumps([{"idx": i, "type": f"sentence_transformers.{k}"} for i, k in enumerate(kinds)])
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48}))
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    given = (torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long))
    torch.onnx.export(Hidden(model), given, folder / "model.onnx", dynamo=True, external_data=False, verbose=False,
                      input_names=["input_ids", "attention_mask"], dynamic_shapes=(sizes, sizes))  # fmt: skip
    return folder


def spec(folder: Path, engine: str, **settings: Any) -> Spec:
    path = folder / "model.onnx" if engine == "onnx" else folder
    names = ["model.onnx"] if engine == "onnx" else ["config.json", "model.safetensors"]
    return Spec(
        engine, str(path), "x", describe_files(folder, names), precision="float32", threads=1, settings=settings
    )


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_vectors_are_those_of_torch(encoder: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    expected = TorchEncoder(spec(encoder, "torch")).embed(ROWS)
    found = OnnxEncoder(spec(encoder, "onnx", runtime=runtime, exact=True)).embed(ROWS)
    assert found.dtype == np.float32
    assert found.shape == (4, 32)
    assert np.allclose(found, expected, atol=1e-5)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_a_text_alone_has_the_vector_that_it_has_among_others(encoder: Path) -> None:
    made = TorchEncoder(spec(encoder, "torch"))
    assert np.allclose(np.concatenate([made.embed([row]) for row in ROWS]), made.embed(ROWS), atol=1e-5)


def test_the_worker_makes_vectors_in_a_process_of_its_own(encoder: Path) -> None:
    with running(spec(encoder, "onnx", exact=True)) as asked:
        assert asked.worker.embeds
        found = asked.do(asked.worker.embed(ROWS))
        with pytest.raises(HermitcrabError, match="49 tokens; expected 1 to 48"):
            asked.do(asked.worker.embed([[1] * 49]))
        assert asked.do(asked.worker.alive(10))
    assert np.allclose(found, TorchEncoder(spec(encoder, "torch")).embed(ROWS), atol=1e-5)


def test_an_onnx_file_is_preferred_and_torch_is_the_reference(encoder: Path, tmp_path: Path) -> None:
    spec, why = choose_encoder(encoder, threads=1)
    assert (spec.engine, spec.threads) == ("onnx", 1)
    assert "no torch" in why
    with running(spec) as asked:
        assert len(asked.do(asked.worker.embed(ROWS[:1]))[0]) == 32
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((encoder / name).read_bytes())
    assert choose_encoder(tmp_path)[0].engine == "torch"
    with pytest.raises(HermitcrabError, match=r"expected model\.onnx"):
        choose_encoder(tmp_path / "nowhere")


def test_pooling_is_what_the_files_say(encoder: Path, tmp_path: Path) -> None:
    states_BSD = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    mask_BS = np.array([[1, 1, 0]])
    assert Pooling("mean", False)(states_BSD, mask_BS).tolist() == [[2, 3, 4, 5]]
    assert Pooling("max", False)(states_BSD, mask_BS).tolist() == [[4, 5, 6, 7]]
    assert Pooling("cls", False)(states_BSD, mask_BS).tolist() == [[0, 1, 2, 3]]
    assert Pooling.read(encoder) == Pooling("mean", True, 48)
    assert Pooling.read(tmp_path) == Pooling()
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(HermitcrabError, match="Dense"):
        Pooling.read(tmp_path)


class Classes(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
        )

    def forward(self, pixel_values: Any) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.layers(pixel_values))


@pytest.mark.parametrize("exact", [True, False])
def test_predictions_are_those_of_the_task_on_torch(tmp_path: Path, exact: bool) -> None:
    torch.manual_seed(0)
    model = Classes().eval()
    fitted = {"labels": ["flat", "upright", "diagonal"], "image": [8, 8, 1], "mean": [0.4], "std": [0.2]}
    torch.onnx.export(model.layers, (torch.zeros(2, 1, 8, 8),), tmp_path / "m.onnx", dynamo=True, external_data=False, verbose=False,
                      input_names=["pixel_values"], dynamic_shapes=({0: torch.export.Dim("batch")},))  # fmt: skip
    inputs = [(f"{n}.png", encode_png(image.tobytes(), 8, 8)) for n, image in enumerate(stripes(70, 3)[0][..., None])]
    task = make_task("image-classification", Start({}, tmp_path, None, fitted), Train())
    expected = task.answer(model, inputs, Asking([], False, 1))
    made = OnnxPredictor("image-classification", fitted, tmp_path / "m.onnx", 1, exact=exact)
    found = made.predict(inputs)
    narrow = "bf16" in made.name
    assert [a["input"] for a in found] == [a["input"] for a in expected]
    same = [a["prediction"] == b["prediction"] for a, b in zip(found, expected, strict=True)]
    assert sum(same) >= (67 if narrow else 70)
    for a, b in zip(found, expected, strict=True):
        assert a["scores"] == pytest.approx(b["scores"], abs=0.1 if narrow else 1e-4)
        assert a.keys() == b.keys()
    assert made.predict([]) == []
    with pytest.raises(UsageError, match="not served from an ONNX file"):
        OnnxPredictor("text-generation", {}, tmp_path / "m.onnx", 1)


def test_a_package_with_an_onnx_file_predicts_by_it(tmp_path: Path) -> None:
    fitted = {"labels": ["flat", "upright", "diagonal"], "image": [8, 8, 1], "mean": [0.4], "std": [0.2]}
    (tmp_path / "onnx").mkdir()
    torch.onnx.export(Classes().layers, (torch.zeros(2, 1, 8, 8),), tmp_path / "onnx" / "m.onnx", dynamo=True, external_data=False,
                      verbose=False, input_names=["pixel_values"], dynamic_shapes=({0: torch.export.Dim("batch")},))  # fmt: skip
    files = describe_files(tmp_path, ["onnx/m.onnx"])
    entry = {
        "format": "onnx",
        "type": "float32",
        "file": "onnx/m.onnx",
        "files": files,
        "parity": {"low": 0.0, "high": 0.0},
    }
    base = {"dtypes": {"F32": 1}, "files": []}
    start = Start(base, tmp_path, None, fitted)
    opened = Opened("small", "image-classification", start, Train(), None, [], False, 0, None)
    (tmp_path / "hermitcrab.json").write_text(json.dumps({"compressed": []}))
    assert choose_predictor(opened)[0] is None
    (tmp_path / "hermitcrab.json").write_text(json.dumps({"compressed": [entry]}))
    made, why = choose_predictor(opened, threads=1)
    assert made.digest == files[0]["sha256"]
    assert "no torch" in why
    image = encode_png(stripes(1, 3)[0][0].tobytes(), 8, 8)
    assert made.predict([("a.png", image)])[0]["prediction"] in fitted["labels"]
    (tmp_path / "onnx" / "m.onnx").write_bytes(b"another")
    with pytest.raises(HermitcrabError, match="is not the file that was recorded"):
        choose_predictor(opened)


def test_files_that_quantize_as_they_run_go_to_onnx_runtime(encoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(encoder / "model.onnx", tmp_path / "int8.onnx", weight_type=QuantType.QInt8)
    assert (quantizes(encoder / "model.onnx"), quantizes(tmp_path / "int8.onnx")) == (False, True)
    assert pick(tmp_path / "int8.onnx") == "onnxruntime"
    expected = TorchEncoder(spec(encoder, "torch")).embed(ROWS)
    small = replace(spec(encoder, "onnx"), path=str(tmp_path / "int8.onnx"), files=[], tokenizer=str(encoder))
    cosine = (OnnxEncoder(small).embed(ROWS) * expected).sum(1)
    assert cosine.min() > 0.98


def test_a_file_that_is_no_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\x08\x07 nothing")
    for runtime in ("openvino", "onnxruntime"):
        pytest.importorskip(runtime)
        with pytest.raises(HermitcrabError, match="cannot read it"):
            Session(tmp_path / "x.onnx", 1, runtime)


def test_a_small_net_is_not_openvinos(tmp_path):
    """Each call of it takes longer than the net; a large one goes to it where the processor computes in bfloat16."""
    ov = pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    narrow = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    file = tmp_path / "m.onnx"
    for size, runtime in ((SMALL - 1, "onnxruntime"), (SMALL, "openvino" if narrow else "onnxruntime")):
        file.write_bytes(bytes(size))
        assert pick(file) == runtime
