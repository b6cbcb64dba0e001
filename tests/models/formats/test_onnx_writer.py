"""Real, tiny models written as ONNX and read back."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.architectures.mlp import MLPConfig, MLPForImageClassification
from hermitcrab.models.formats import onnx_writer, open_weights
from hermitcrab.models.formats.onnx_check import check_file
from hermitcrab.models.onnx_graphs import graph_of

SAID = {"license": "MIT", "hermitcrab.base.digest": "sha256:00"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MLPForImageClassification(MLPConfig(image_size=[8, 8], hidden_sizes=[48, 32], num_labels=3)).eval()


@pytest.fixture(scope="module")
def written(model, tmp_path_factory) -> Path:
    return onnx_writer.write(tmp_path_factory.mktemp("onnx") / "m.onnx", graph_of(model, "IMAGE_CLASSIFICATION"), SAID)[
        0
    ]


def asked(path: Path, pixels: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(path)).run(None, {"pixel_values": pixels})[0]


PIXELS = np.random.default_rng(1).normal(size=(7, 1, 8, 8)).astype(np.float32)


def test_the_file_gives_the_model_s_logits_for_any_number_of_rows(model, written):
    for count in (1, 2, 7):
        with torch.no_grad():
            wanted = model(torch.from_numpy(PIXELS[:count])).logits.numpy()
        assert np.abs(asked(written, PIXELS[:count]) - wanted).max() < 1e-5


def test_the_same_model_gives_the_same_bytes_and_nothing_of_the_machine(model, written, tmp_path):
    again = onnx_writer.write(tmp_path / "m.onnx", graph_of(model, "IMAGE_CLASSIFICATION"), SAID)[0]
    assert again.read_bytes() == written.read_bytes()
    assert b".py" not in written.read_bytes()
    assert list(tmp_path.iterdir()) == [again]
    told = check_file(written)
    assert told.metadata == SAID
    assert (told.opset, told.inputs, told.outputs) == (onnx_writer.OPSET, ["pixel_values"], ["logits"])


def test_tensors_go_by_their_names_in_the_model(model, written):
    weights, wanted = open_weights(written), dict(model.named_parameters())
    for name, tensor in wanted.items():
        assert np.array_equal(weights.read(name), tensor.detach().numpy())
    assert {t.name: t.dtype for t in onnx_writer.stored(written)} == {name: "F32" for name in wanted}
    assert len(onnx_writer.narrowed(written)) == 3


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_eight_bits_are_near_by_and_a_layer_may_stay_wide(written, tmp_path, kind):
    def make(name: str, wide: tuple[str, ...] = ()) -> Path:
        if kind == "dynamic":
            return onnx_writer.quantize_dynamic(written, tmp_path / name, SAID, wide)[0]
        return onnx_writer.quantize_static(written, tmp_path / name, SAID, iter([{"pixel_values": PIXELS}]), wide=wide)[
            0
        ]

    path = make("q.onnx")
    wanted, found = asked(written, PIXELS), asked(path, PIXELS)
    assert 0 < np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    assert path.read_bytes() == make("again.onnx").read_bytes()
    stored = {t.name: t for t in onnx_writer.stored(path)}
    assert stored["layers.0.weight"].dtype == "I8"
    assert 8 < stored["layers.0.weight"].bits < 10
    assert check_file(path).metadata == SAID
    weights = open_weights(path)
    numbers, true = weights.read("layers.0.weight"), open_weights(written).read("layers.0.weight")
    assert np.abs(numbers - (true if numbers.shape == true.shape else true.T)).max() < 0.01 * np.abs(true).max() + 1e-3
    wide = {t.name: t.dtype for t in onnx_writer.stored(make("w.onnx", (onnx_writer.narrowed(written)[0],)))}
    assert wide["layers.0.weight"] == "F32"
    assert wide["layers.2.weight"] == "I8"


def test_numbers_beyond_one_message_lie_beside(model, written, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_writer, "LARGEST_MESSAGE", 1000)
    files = onnx_writer.write(tmp_path / "m.onnx", graph_of(model, "IMAGE_CLASSIFICATION"), SAID)
    assert [file.name for file in files] == ["m.onnx", "m.onnx.data"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert np.array_equal(asked(files[0], PIXELS), asked(written, PIXELS))
    assert np.array_equal(open_weights(files[0]).read("layers.0.weight"), open_weights(written).read("layers.0.weight"))


def test_what_cannot_be_written_is_said_and_leaves_nothing(model, written, tmp_path, monkeypatch):
    class Branching(torch.nn.Module):
        def forward(self, *values):
            return values[0] if values[0].sum() > 0 else -values[0]

    graph = onnx_writer.Graph(Branching(), {"x": torch.ones(2, 3)}, ("y",), {"x": {0: "batch"}})
    with pytest.raises(HermitcrabError, match="as one graph"):
        onnx_writer.write(tmp_path / "b.onnx", graph, {})
    with pytest.raises(HermitcrabError, match="no graph is known"):
        graph_of(model, "AUDIO")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(HermitcrabError, match="cannot quantize"):
        onnx_writer.quantize_dynamic(tmp_path / "bad.onnx", tmp_path / "q.onnx", {})
    assert [p.name for p in tmp_path.iterdir()] == ["bad.onnx"]


@pytest.fixture(scope="module")
def attends(tmp_path_factory) -> Path:
    """A ViT with outliers: a few numbers of its stream are ten times the others, as in trained transformers."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    vit = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, hidden_size=32, num_hidden_layers=2,
                                              num_attention_heads=2, intermediate_size=64, num_labels=3)).eval()  # fmt: skip
    with torch.no_grad():
        for layer in vit.vit.layers:
            for norm in (layer.layernorm_before, layer.layernorm_after):
                norm.weight[::8] *= 10
    return onnx_writer.write(tmp_path_factory.mktemp("vit") / "m.onnx", graph_of(vit, "IMAGE_CLASSIFICATION"), SAID)[0]


def test_fixed_ranges_of_a_transformer_survive_outliers(attends, tmp_path):
    pytest.importorskip("nncf")

    def make(name: str, wide: tuple[str, ...] = ()) -> Path:
        rows = ({"pixel_values": PIXELS[i : i + 1]} for i in range(len(PIXELS)))
        return onnx_writer.quantize_static(attends, tmp_path / name, SAID, rows, wide=wide)[0]

    path = make("q.onnx")
    wanted, found = asked(attends, PIXELS), asked(path, PIXELS)
    cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    assert 0.98 < cosines.min() < 1
    assert path.read_bytes() == make("again.onnx").read_bytes()
    assert check_file(path).metadata == SAID
    kinds = {t.name: t.dtype for t in onnx_writer.stored(path)}
    name = "vit.layers.1.mlp.fc1"
    assert kinds[f"{name}.weight"] == "I8"
    node = next(n for n in onnx_writer.narrowed(attends) if n.startswith(f"{name}/"))
    assert {t.name: t.dtype for t in onnx_writer.stored(make("w.onnx", (node,)))}[f"{name}.weight"] == "F32"
