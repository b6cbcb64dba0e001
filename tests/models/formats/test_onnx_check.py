"""What a stranger's ONNX file may not have its runtime do."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_onnx import W, field, model, node, outside, tensor

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats.onnx_check import check_file


def checked(folder: Path, data: bytes):
    (folder / "m.onnx").write_bytes(data)
    return check_file(folder / "m.onnx")


def subgraph(inner: bytes) -> bytes:
    """A node with a graph as its attribute, as `If` has."""
    return field(2, "y") + field(4, "If") + field(5, field(1, "then_branch") + field(6, inner) + field(20, 5))


def test_what_a_file_says_of_itself_is_read(tmp_path):
    data = model([tensor("w", W)], [node("MatMul", ["x", "w"], ["y"])])
    data += field(8, field(1, "") + field(2, 20)) + field(14, field(1, "license") + field(2, "MIT"))
    told = checked(tmp_path, data)
    assert (told.metadata, told.opset, told.operators) == ({"license": "MIT"}, 20, {"MatMul": 1})
    assert told.files == [tmp_path / "m.onnx"]


def test_data_beside_the_file_is_found_and_data_elsewhere_refused(tmp_path):
    (tmp_path / "m.data").write_bytes(b"\0" * 48)
    told = checked(tmp_path, model([outside("m.data")], [node("MatMul", ["x", "w"], ["y"])]))
    assert told.files[1:] == [tmp_path / "m.data"]
    for place in ("../secret", "/etc/passwd", ".hidden", "a\\b", ""):
        with pytest.raises(HermitcrabError, match="does not lie beside"):
            checked(tmp_path, model([outside(place)], [node("MatMul", ["x", "w"], ["y"])]))


def test_data_elsewhere_is_refused_in_a_graph_within_the_graph_and_in_a_constant(tmp_path):
    inside = field(5, outside("../secret"))
    constant = field(2, "c") + field(4, "Constant") + field(5, field(1, "value") + field(5, outside("/etc/passwd")))
    for hidden in (subgraph(inside), constant):
        with pytest.raises(HermitcrabError, match="does not lie beside"):
            checked(tmp_path, model([], [hidden]))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (model([], [node("Evil", ["x"], ["y"], "n") + field(7, "my.ops")]), "`my.ops`"),
        (model([], [node("Relu", ["x"], ["y"])]) + field(8, field(1, "other") + field(2, 1)), "`other`"),
        (model([], [node("Relu", ["x"], ["y"])]) + field(25, field(1, "f")), "functions of its own"),
        (model([], [node("Relu", ["x"], ["y"])]) + field(20, b""), "training steps"),
        (model([tensor("s", np.array([1 << 20, 1 << 20]))], [node("ConstantOfShape", ["s"], ["y"])]), "1,099,511,627,776 numbers"),
        (model([tensor("s", np.array([1 << 40]))], [node("Expand", ["x", "s"], ["y"], "big")]), "`big`"),
        (model([], []), "no ONNX graph"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(tmp_path, data, says):
    with pytest.raises(HermitcrabError, match=says):
        checked(tmp_path, data)


def test_graphs_within_graphs_end_somewhere(tmp_path):
    inner = field(1, node("Relu", ["x"], ["y"]))
    for _ in range(12):
        inner = field(1, subgraph(inner))
    with pytest.raises(HermitcrabError, match="deep"):
        checked(tmp_path, field(7, inner))


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=4), st.integers(0, 600) | st.none())
def test_damage_is_an_error_or_harmless(tmp_path_factory, changes, cut):
    data = bytearray(model([tensor("w", W)], [subgraph(field(5, tensor("v", W))), node("MatMul", ["x", "w"], ["y"])]))
    for at, byte in changes:
        data[at % len(data)] = byte
    try:
        checked(tmp_path_factory.mktemp("fuzz"), bytes(data if cut is None else data[:cut]))
    except HermitcrabError as error:
        str(error).encode()
