"""ONNX files written field by field, so that no library decides what is in them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import open_weights

KINDS = {
    np.dtype("f4"): 1,
    np.dtype("u1"): 2,
    np.dtype("i1"): 3,
    np.dtype("i8"): 7,
    np.dtype("f2"): 10,
    np.dtype("f8"): 11,
}


def number(value: int) -> bytes:
    out = b""
    while True:
        out += bytes([value & 127 | (128 if value > 127 else 0)])
        value >>= 7
        if not value:
            return out


def field(place: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return number(place << 3) + number(value)
    data = value.encode() if isinstance(value, str) else value
    return number(place << 3 | 2) + number(len(data)) + data


def tensor(name: str, x: np.ndarray, raw: bool = True) -> bytes:
    out = b"".join(field(1, d) for d in x.shape) + field(2, KINDS[x.dtype]) + field(8, name)
    return out + field(9 if raw else 4, x.tobytes())


def node(op: str, inputs: list[str], outputs: list[str], name: str = "", **attributes: int) -> bytes:
    out = b"".join(field(1, i) for i in inputs) + b"".join(field(2, o) for o in outputs) + field(3, name) + field(4, op)
    for key, value in attributes.items():
        out += field(5, field(1, key) + field(3, value % (1 << 64)) + field(20, 2))
    return out


def model(tensors: list[bytes], nodes: list[bytes] = []) -> bytes:  # noqa: B006
    return field(1, 8) + field(
        7, b"".join(field(1, n) for n in nodes) + field(2, "g") + b"".join(field(5, t) for t in tensors)
    )


W = np.arange(12, dtype=np.float32).reshape(3, 4) - 5


def opened(folder: Path, data: bytes):
    (folder / "m.onnx").write_bytes(data)
    return open_weights(folder / "m.onnx")


@pytest.mark.parametrize("raw", [True, False])
def test_plain_initializers(tmp_path: Path, raw: bool) -> None:
    weights = opened(
        tmp_path, model([tensor("w", W, raw), tensor("h", W.astype(np.float16)), tensor("i", np.arange(3))])
    )
    assert weights.format == "onnx"
    assert np.array_equal(weights.read("w"), W)
    assert np.array_equal(weights.read("h"), W)
    assert np.array_equal(weights.read("i"), [0, 1, 2])


def test_weights_between_quantize_and_dequantize_come_out_as_numbers(tmp_path: Path) -> None:
    q, scale, zero = (
        np.arange(-6, 6, dtype=np.int8).reshape(3, 4),
        np.array([0.5, 1, 2], np.float32),
        np.array([1, 0, -1], np.int8),
    )
    nodes = [
        node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0),
        node("MatMul", ["x", "w"], ["y"], "layer.0/MatMul"),
    ]
    weights = opened(tmp_path, model([tensor("q", q), tensor("s", scale), tensor("z", zero)], nodes))
    assert list(weights.tensors) == ["q"]
    assert np.allclose(weights.read("q"), (q.astype(np.float32) - zero[:, None]) * scale[:, None])
    assert weights.metadata["uses"]["q"].turned


def test_integer_products_find_the_scale_behind_them(tmp_path: Path) -> None:
    q = np.arange(12, dtype=np.uint8).reshape(3, 4)
    nodes = [node("MatMulInteger", ["x", "onnx::MatMul_7_quantized", "xz", "z"], ["p"], "/block/query/MatMul_quant"),
             node("Cast", ["p"], ["c"]), node("Mul", ["xs", "s"], ["m"]), node("Mul", ["c", "m"], ["y"])]  # fmt: skip
    tensors = [
        tensor("onnx::MatMul_7_quantized", q),
        tensor("s", np.array(0.25, np.float32)),
        tensor("z", np.array(6, np.uint8)),
    ]
    weights = opened(tmp_path, model(tensors, nodes))
    name = "block.query.MatMul_quant"  # its own name says nothing, so it has that of the node that takes it
    assert np.allclose(weights.read(name), (q.astype(np.float32) - 6) * 0.25)


def test_a_cast_and_a_product_unpack_too_and_a_transpose_turns(tmp_path: Path) -> None:
    q, s = np.arange(-6, 6, dtype=np.int8).reshape(3, 4), np.array([[1], [2], [3]], np.float32)
    nodes = [node("Cast", ["q"], ["f"]), node("Mul", ["f", "s"], ["w"]), node("Transpose", ["w"], ["t"]), node("MatMul", ["x", "t"], ["y"]),
             node("Gemm", ["y", "g"], ["o"], transB=1)]  # fmt: skip
    weights = opened(tmp_path, model([tensor("q", q), tensor("s", s), tensor("g", W)], nodes))
    assert np.allclose(weights.read("q"), q * s)
    assert not weights.metadata["uses"]["q"].turned
    assert not weights.metadata["uses"]["g"].turned
    assert list(weights.tensors) == ["q", "g"]


def outside(place: str, offset: int = 0, length: int = 48) -> bytes:
    pairs = {"location": place, "offset": str(offset), "length": str(length)}
    told = b"".join(field(13, field(1, k) + field(2, v)) for k, v in pairs.items())
    return field(1, 3) + field(1, 4) + field(2, 1) + field(8, "w") + told + field(14, 1)


def test_data_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.data").write_bytes(b"\0" * 8 + W.tobytes())
    assert np.array_equal(opened(tmp_path, model([outside("m.data", 8)])).read("w"), W)
    for place, offset, length, says in (("../m.data", 0, 48, "refused"), ("/etc/passwd", 0, 48, "refused"), ("m.data", 16, 48, "cut off"),
                                        ("none.data", 0, 48, "cannot be opened"), ("m.data", 0, 40, "no such number")):  # fmt: skip
        with pytest.raises(HermitcrabError, match=says):
            opened(tmp_path, model([outside(place, offset, length)]))
    (tmp_path / "link.data").symlink_to(tmp_path / "m.data")
    with pytest.raises(HermitcrabError, match="symbolic link"):
        opened(tmp_path, model([outside("link.data")]))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "holds no ONNX graph"),
        (b"\xff" * 40, "damaged"),
        (field(7, b"\x2a\xff\xff\xff\xff\x0f"), "damaged"),
        (model([tensor("w", W)])[:-5], "damaged"),
        (model([tensor("w", W), tensor("w", W)]), "stands twice"),
        (model([field(1, 1 << 50) + field(2, 1) + field(8, "w") + field(9, b"\0" * 8)]), "no size"),
        (model([field(1, 1 << 40) + field(2, 1) + field(8, "w") + field(9, b"\0" * 8)]), "needs"),
        (model([field(1, 1) * 65 + field(2, 1) + field(8, "w")]), "64 dimensions"),
    ],
)
def test_lies_are_named(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(HermitcrabError, match=says) as caught:
        opened(tmp_path, data)
    assert "m.onnx" in str(caught.value)


@settings(max_examples=120, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 600) | st.none(),
)
def test_damage_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int | None
) -> None:
    nodes = [node("DequantizeLinear", ["q", "s"], ["w"], "n", axis=0), node("MatMul", ["x", "w"], ["y"], "m")]
    data = bytearray(
        model([tensor("q", np.ones((3, 4), np.int8)), tensor("s", np.ones(3, np.float32)), tensor("v", W)], nodes)
    )
    for at, byte in changes:
        data[at % len(data)] = byte
    try:
        weights = opened(tmp_path_factory.mktemp("fuzz"), bytes(data if cut is None else data[:cut]))
        for name in weights.tensors:
            weights.read(name)
    except HermitcrabError as error:
        str(error).encode()
