import struct
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Q
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import open_weights


def write(path: Path, tensors: dict[str, tuple[np.ndarray, Q]], **metadata: object) -> Path:
    """A GGUF file by the `gguf` package's own writer; values are quantized to the given type."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool,
         list: writer.add_array}[type(value)](key.replace("__", "."), value)  # fmt: skip
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def small() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
        tensors = {"w": (values, Q.Q4_0), "b": (values[0], Q.F32)}
        path = write(Path(folder) / "m.gguf", tensors, a__text="x", a__list=["u", "v"], a__on=True, a__n=[1, 2])
        return path.read_bytes()


@pytest.mark.parametrize("kind", [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.TQ1_0])
def test_tensors_equal_the_packages_own_dequantization(tmp_path: Path, kind: Q) -> None:
    values = np.random.default_rng(0).normal(size=(300, 512)).astype(np.float32)
    weights = open_weights(write(tmp_path / "m.gguf", {"w": (values, kind), "v": (values[:1], kind)}))
    assert weights.tensors["w"].shape == (300, 512)
    assert weights.tensors["w"].dtype == kind.name
    assert np.array_equal(weights.read("w"), gguf.dequantize(gguf.quantize(values, kind), kind))
    assert np.array_equal(weights.read("v"), gguf.dequantize(gguf.quantize(values[:1], kind), kind))


@pytest.mark.parametrize("kind", [Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.IQ4_XS])
def test_k_quants_equal_the_packages_own_dequantization(tmp_path: Path, kind: Q) -> None:
    block, width = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(1).integers(0, 60, (3, 2 * width), dtype=np.uint8)
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = open_weights(path).read("w")
    assert read.shape == (3, 2 * block)
    assert np.array_equal(read, gguf.dequantize(raw, kind), equal_nan=True)


def test_metadata_of_every_type(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {}, a__s="ü", a__i=7, a__f=0.5, a__b=True, a__l=["p", "q"], a__n=[3, 4])
    meta = open_weights(path).metadata
    expected = {"a.s": "ü", "a.i": 7, "a.f": 0.5, "a.b": True, "a.l": ["p", "q"], "a.n": [3, 4]}
    assert {k: v for k, v in meta.items() if k.startswith("a.")} == expected


def test_a_list_of_texts_longer_than_one_read_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts end before, at and behind the places where the next part of the file is read."""
    texts = ["寄居蟹" * (i % 23) + str(i) for i in range(600)]
    write(tmp_path / "m.gguf", {}, some__texts=texts, then__after="that")
    for first in (24, 100, 131, 4096):
        monkeypatch.setattr("hermitcrab.models.formats.gguf.FIRST_READ", first)
        found = open_weights(tmp_path / "m.gguf").metadata
        assert found["some.texts"] == texts
        assert found["then.after"] == "that"


def test_the_real_file_reads_as_the_package_reads_it(smollm2: Path) -> None:
    weights, peer = open_weights(smollm2), gguf.GGUFReader(smollm2)
    assert weights.parameters == 134_515_008
    assert weights.dtypes == {"F32": 61, "Q4_1": 210, "Q8_0": 1}
    assert list(weights.tensors) == [t.name for t in peer.tensors]
    for tensor in peer.tensors[:12]:
        assert np.array_equal(weights.read(tensor.name), gguf.dequantize(np.array(tensor.data), tensor.tensor_type))


def header(tensors: int = 0, metadata: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, metadata) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes = b"t", shape: tuple[int, ...] = (1,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"GGU", "does not begin"),
        (b"GGUX" + bytes(40), "does not begin"),
        (header(version=1), "version 1"),
        (header(version=3 << 24), "big-endian"),
        (header(tensors=2**63), "more than the file can hold"),
        (header(metadata=2**62), "more than the file can hold"),
        (header(metadata=1, rest=struct.pack("<Q", 2**60) + bytes(20)), "would have"),
        (header(metadata=1, rest=text(b"k") + struct.pack("<IQ", 8, 2**62)), "would have"),
        (header(metadata=1, rest=text(b"k") + struct.pack("<IIQ", 9, 4, 2**61)), "more than the file can hold"),
        (header(metadata=1, rest=text(b"k") + struct.pack("<I", 99) + bytes(8)), "unknown type 99"),
        (header(metadata=1, rest=text(b"k") + struct.pack("<I", 7) + b"\x05" + bytes(8)), "truth value"),
        (header(metadata=1, rest=text(b"\xff") + bytes(20)), "not UTF-8"),
        (header(metadata=1, rest=text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 3), "nested"),
        (header(metadata=2, rest=(text(b"k") + struct.pack("<II", 4, 1)) * 2), "stands twice"),
        (header(metadata=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 0)), "power of two"),
        (header(1, rest=tensor(shape=(1,) * 5)), "5 dimensions"),
        (header(1, rest=tensor(shape=(2**50,))), "no size"),
        (header(1, rest=tensor(kind=1000)), "unknown type 1000"),
        (header(1, rest=tensor(kind=2, shape=(31,))), "whole number of Q4_0"),
        (header(1, rest=tensor(offset=32) + bytes(64)), "said to lie"),
        (header(1, rest=tensor(shape=(2**40,)) + bytes(64)), "cut off"),
        (header(2, rest=tensor(offset=0) + tensor(name=b"u", offset=0) + bytes(99)), "said to lie"),
        (header(2, rest=tensor() + tensor(offset=32) + bytes(99)), "stands twice"),
    ],
)
def test_lies_are_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(HermitcrabError, match=says) as caught:
        open_weights(path)
    assert "m.gguf" in str(caught.value)


def all_or_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(content)
        try:
            weights = open_weights(path)
            for name in weights.tensors:
                weights.read(name)
        except HermitcrabError as error:
            str(error).encode()


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_any_changed_byte_reads_or_is_refused(small: bytes, data: st.DataObject) -> None:
    at, byte = data.draw(st.integers(0, len(small) - 1)), data.draw(st.integers(0, 255))
    all_or_error(small[:at] + bytes([byte]) + small[at + 1 :])


def test_any_truncation_of_header_or_tensors_is_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small)
    whole = max(info.offset + info.nbytes for info in open_weights(path).tensors.values())
    for length in range(whole):
        path.write_bytes(small[:length])
        with pytest.raises(HermitcrabError):
            open_weights(path)


def test_an_empty_tensor_with_absurd_sizes_is_refused_when_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header(1, rest=tensor(shape=(2**48, 2**48, 0))) + bytes(64))
    with pytest.raises(HermitcrabError, match="cannot be read"):
        open_weights(path).read("t")
