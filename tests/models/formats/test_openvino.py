"""OpenVINO's .xml and .bin written by hand, so that no library decides what is in them; then against the library itself."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import open_weights
from hermitcrab.models.formats.openvino import said

KINDS = {"f4": "f32", "f2": "f16", "u1": "u8", "i1": "i8", "i8": "i64"}


class Ir:
    """Layers and edges by hand."""

    def __init__(self) -> None:
        self.layers, self.edges, self.data = [], [], b""

    def layer(self, kind: str, name: str, inputs: list[int] = [], dims: tuple[int, ...] = (), data: str = "") -> int:  # noqa: B006
        at = len(self.layers)
        ports = "".join(f"<dim>{d}</dim>" for d in dims)
        self.layers.append(
            f'<layer id="{at}" name="{name}" type="{kind}" version="opset1">{data}<output><port id="0">{ports}</port></output></layer>'
        )
        self.edges += [
            f'<edge from-layer="{i}" from-port="0" to-layer="{at}" to-port="{port}"/>' for port, i in enumerate(inputs)
        ]
        return at

    def constant(self, name: str, x: np.ndarray, kind: str = "", size: int | None = None) -> int:
        raw = x.tobytes()
        shape = ", ".join(map(str, x.shape if size is None else (*x.shape[:-1], x.shape[-1] * 2)))
        kind = kind or KINDS[x.dtype.str[1:]]
        at = self.layer(
            "Const",
            name,
            data=f'<data element_type="{kind}" shape="{shape}" offset="{len(self.data)}" size="{len(raw)}"/>',
        )
        self.data += raw
        return at

    def write(self, folder: Path, more: str = "") -> Path:
        layers, edges = "".join(self.layers), "".join(self.edges)
        head = '<?xml version="1.0"?><net name="m" version="11">'
        text = f"{head}<layers>{layers}</layers><edges>{edges}</edges>{more}</net>"
        (folder / "openvino_model.xml").write_text(text)
        (folder / "openvino_model.bin").write_bytes(self.data)
        return folder / "openvino_model.xml"


W = np.arange(12, dtype=np.float32).reshape(3, 4) - 5
Q = np.arange(12, dtype=np.uint8).reshape(3, 4)
SCALE, ZERO = np.array([[0.5], [1], [2]], np.float16), np.array([[1], [2], [3]], np.uint8)


def unpacked(ir: Ir, q: int, zero: int | None, scale: int) -> int:
    at = ir.layer("Convert", "c", [q])
    if zero is not None:
        at = ir.layer("Subtract", "s", [at, ir.layer("Convert", "zc", [zero])])
    return ir.layer("Multiply", "w/fq_weights_1", [at, scale])


def test_plain_and_short_floats(tmp_path):
    ir, x = Ir(), None
    x = ir.layer("Parameter", "x")
    ir.layer("MatMul", "m", [x, ir.constant("a.weight", W)], data='<data transpose_b="true"/>')
    ir.layer("MatMul", "n", [x, ir.layer("Convert", "b.weight", [ir.constant("b.weight_compressed", W.astype("f2"))])])
    weights = open_weights(ir.write(tmp_path).parent)
    assert (weights.format, list(weights.tensors)) == ("openvino", ["a.weight", "b.weight"])
    assert np.array_equal(weights.read("a.weight"), W)
    assert np.array_equal(weights.read("b.weight"), W)
    assert not weights.metadata["uses"]["a.weight"].turned
    assert weights.metadata["uses"]["b.weight"].turned


def test_eight_bits_come_out_as_the_numbers_that_the_graph_computes_with(tmp_path):
    ir = Ir()
    x = ir.layer("Parameter", "x")
    w = unpacked(ir, ir.constant("w", Q), ir.constant("w/zero_point", ZERO), ir.constant("w/scale", SCALE))
    ir.layer(
        "MatMul",
        "layers.0.q_proj/MatMul",
        [x, ir.layer("Convert", "w/convert", [w])],
        data='<data transpose_b="true"/>',
    )
    weights = open_weights(ir.write(tmp_path))
    assert list(weights.tensors) == ["w"]
    assert np.allclose(weights.read("w"), (Q.astype(np.float32) - ZERO) * SCALE.astype(np.float32))


def test_four_bits_in_groups_are_joined_and_named_after_the_layer_that_takes_them(tmp_path):
    ir = Ir()
    x = ir.layer("Parameter", "x")
    packed = (np.arange(12) * 37 % 256).astype(np.uint8).reshape(3, 2, 2)  # 3 x 2 groups of 4
    scale = np.arange(1, 7, dtype=np.float16).reshape(3, 2, 1)
    w = unpacked(ir, ir.constant("Transpose_12", packed, "i4", 4), None, ir.constant("t/scale", scale))
    w = ir.layer("Reshape", "r", [w, ir.constant("rs", np.array([3, 8]))], (3, 8))
    ir.layer("MatMul", "__module.layers.0.q_proj/aten/MatMul", [x, w], data='<data transpose_b="true"/>')
    weights = open_weights(ir.write(tmp_path))
    low, high = (packed & 15).astype(int), (packed >> 4).astype(int)
    q = np.stack([low, high], -1).reshape(3, 2, 4)
    wanted = (np.where(q > 7, q - 16, q) * scale.astype(np.float32)).reshape(3, 8)
    assert "layers.0.q_proj.weight" in weights.tensors
    assert np.allclose(weights.read("layers.0.q_proj.weight"), wanted)


def test_what_the_file_says_of_itself(tmp_path):
    ir = Ir()
    ir.constant("w", W)
    path = ir.write(tmp_path, '<rt_info><hermitcrab><license value="MIT"/></hermitcrab></rt_info>')
    assert said(path) == {"hermitcrab/license": "MIT"}


def test_graphs_of_loops_have_ids_of_their_own(tmp_path):
    inner = Ir()
    inner.constant("inside", W)
    ir = Ir()
    ir.constant("outside", W)
    text = inner.layers[0]
    ir.layer("If", "branch", data=f"<then_body><layers>{text}</layers><edges></edges></then_body>")
    assert set(open_weights(ir.write(tmp_path)).tensors) == {"inside", "outside"}


BOMB = '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'


def edited(folder: Path, old: str, new: str) -> Path:
    ir = Ir()
    ir.layer("MatMul", "m", [ir.layer("Parameter", "x"), ir.constant("w", W)])
    path = ir.write(folder)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('<net name="m"', BOMB + '<net name="&b;"', "document type"),
        ('offset="0"', 'offset="40"', "beyond the file"),
        ('offset="0"', 'offset="-8"', "no number"),
        ('size="48"', 'size="47"', "needs 48 bytes"),
        ('shape="3, 4"', 'shape="3, 1099511627776"', "needs"),
        ('shape="3, 4"', 'shape="3, x"', "no number"),
        ('element_type="f32"', 'element_type="nf4"', "nf4"),
        ('to-layer="2"', 'to-layer="9"', "not there"),
        ('id="1"', 'id="0"', "no id of its own"),
        ("</layers>", "", "XML"),
        ("<net", "<html><net", "expected `net`"),
    ],
)  # fmt: skip
def test_lies_are_named(tmp_path, old, new, says):
    with pytest.raises(HermitcrabError, match=says) as caught:
        open_weights(edited(tmp_path, old, new))
    assert "openvino_model" in str(caught.value)


def test_the_numbers_alone_are_no_pickle(tmp_path):
    path = edited(tmp_path, "w", "w")
    with pytest.raises(HermitcrabError, match=r"give its graph, openvino_model\.xml"):
        open_weights(path.with_suffix(".bin"))
    path.with_suffix(".bin").unlink()
    path.with_suffix(".bin").symlink_to("/etc/passwd")
    with pytest.raises(HermitcrabError, match="symbolic link"):
        open_weights(path)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4), st.integers(0, 2000) | st.none())
def test_damage_is_an_error_or_harmless(tmp_path_factory, changes, cut):
    folder, ir = tmp_path_factory.mktemp("fuzz"), Ir()
    w = unpacked(ir, ir.constant("w", Q), ir.constant("z", ZERO), ir.constant("s", SCALE))
    ir.layer("MatMul", "m", [ir.layer("Parameter", "x"), w])
    path = ir.write(folder)
    data = bytearray(path.read_bytes())
    for at, byte in changes:
        data[at % len(data)] = byte
    path.write_bytes(bytes(data if cut is None else data[:cut]))
    try:
        weights = open_weights(path)
        for name in weights.tensors:
            weights.read(name)
    except HermitcrabError as error:
        str(error).encode()


MAKE = """
import sys, pathlib, numpy as np, openvino as ov, nncf, logging
from openvino import opset13 as op
logging.getLogger("nncf").setLevel(logging.ERROR)
x = op.parameter([-1, 64], np.float32, name="x")
w = np.random.default_rng(0).normal(size=(96, 64)).astype(np.float32)
np.save(sys.argv[1] + "/w.npy", w)
for kind in ("f32", "f16", "int8", "int4"):
    folder = pathlib.Path(sys.argv[1]) / kind
    folder.mkdir()
    model = ov.Model([op.result(op.matmul(x, op.constant(w, name="layers.0.up.weight"), False, True))], [x], "m")
    if kind == "int8":
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    if kind == "int4":
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=32, ratio=1.0, all_layers=True)
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=kind == "f16")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    made = ov.Core().compile_model(ov.Core().read_model(folder / "openvino_model.xml"), "CPU", settings)
    np.save(folder / "out.npy", made(np.eye(64, dtype=np.float32))[0])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Files by OpenVINO itself, and what it computes with them; in a process of its own, for it is large."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    folder = tmp_path_factory.mktemp("openvino")
    subprocess.run([sys.executable, "-c", MAKE, str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(("kind", "near"), [("f32", 1e-7), ("f16", 3e-3), ("int8", 2e-2), ("int4", 0.4)])
def test_openvino_computes_with_the_numbers_that_are_read_here(made, kind, near):
    weights = open_weights(made / kind / "openvino_model.xml")
    (name,) = [n for n, i in weights.tensors.items() if i.shape == (96, 64)]
    found, computed, w = weights.read(name), np.load(made / kind / "out.npy").T, np.load(made / "w.npy")
    assert np.abs(found - computed).max() < 1e-2 * np.abs(w).max()  # its own arithmetic may be in float16
    assert np.abs(found - w).max() < near
