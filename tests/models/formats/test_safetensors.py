import json
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import open_weights

ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.bias": np.array([1.5, -2], np.float16),
    "c": np.array([[7]], np.int64),
    "empty": np.zeros((0, 5), np.float32),
}


def build(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(ARRAYS, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path / "model.safetensors"


def test_reads_what_the_library_wrote(file: Path) -> None:
    weights = open_weights(file)
    assert weights.metadata == {"format": "pt"}
    assert weights.parameters == 15
    assert weights.dtypes == {"F16": 1, "F32": 2, "I64": 1}
    for name, array in ARRAYS.items():
        read = weights.read(name)
        assert read.shape == array.shape
        assert np.array_equal(read, array)


def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    values = np.array([1, -0.15625, 3.0e38, 0], np.float32)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    path = tmp_path / "m.safetensors"
    path.write_bytes(build({"x": entry("BF16", [2, 2])}, upper.tobytes()))
    expected = (upper.astype(np.uint32) << 16).view(np.float32).reshape(2, 2)
    assert np.array_equal(open_weights(path).read("x"), expected)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "too few"),
        (b"\0" * 7, "too few"),
        (build({}, length=2**63), "header has"),
        (build(b"{" * 100_000), "not valid JSON"),
        (build(b'{"x": 1, "x": 2}'), "twice"),
        (build([]), "no JSON object"),
        (build({"__metadata__": {"a": 1}}), "__metadata__"),
        (build({"x": 5}), "must have dtype"),
        (build({"x": entry("F33")}, b"\0" * 8), "unknown dtype"),
        (build({"x": entry(shape=[-1])}, b"\0" * 8), "no size"),
        (build({"x": entry(shape=[True])}, b"\0" * 8), "no size"),
        (build({"x": entry(shape=[2**48] * 32)}, b"\0" * 8), "needs"),
        (build({"x": entry(shape=[1] * 100)}, b"\0" * 8), "no list of sizes"),
        (build({"x": entry(offsets=[8, 0])}, b"\0" * 8), "offsets span"),
        (build({"x": entry(offsets=[0, 8.0])}, b"\0" * 8), "no pair"),
        (build({"x": entry()}, b"\0" * 7), "cut off"),
        (build({"x": entry()}, b"\0" * 9), "belong to no tensor"),
        (build({"x": entry(), "y": entry(offsets=[4, 12])}, b"\0" * 12), "overlaps"),
        (build({"x": entry(), "y": entry(offsets=[12, 20])}, b"\0" * 20), "leaves a hole"),
        (build({"\ud800": entry()}, b"\0" * 8), "printable"),
    ],
)
def test_lies_are_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(HermitcrabError, match=says) as caught:
        open_weights(path)
    assert "m.safetensors" in str(caught.value)
    str(caught.value).encode()


def all_or_error(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"m{suffix}"
        path.write_bytes(content)
        try:
            weights = open_weights(path)
            for name in weights.tensors:
                weights.read(name)
        except HermitcrabError as error:
            str(error).encode()


SMALL = build(
    {"a": entry("BF16", [2, 2], [0, 8]), "b": entry("F32", [1], [8, 12]), "__metadata__": {"k": "v"}}, bytes(range(12))
)


@settings(deadline=None, max_examples=300)
@given(at=st.integers(0, len(SMALL) - 1), byte=st.integers(0, 255))
def test_any_changed_byte_reads_or_is_refused(at: int, byte: int) -> None:
    all_or_error(SMALL[:at] + bytes([byte]) + SMALL[at + 1 :], ".safetensors")


def test_any_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for length in range(len(SMALL)):
        path.write_bytes(SMALL[:length])
        with pytest.raises(HermitcrabError):
            open_weights(path)


def test_a_link_is_refused(file: Path) -> None:
    link = file.with_name("link.safetensors")
    link.symlink_to(file)
    with pytest.raises(HermitcrabError, match="symbolic link"):
        open_weights(link)


def test_a_file_that_changes_after_its_header_was_read_is_refused(file: Path) -> None:
    weights = open_weights(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(HermitcrabError, match="changed"):
        weights.read("a.weight")


def test_a_wrong_tensor_name_names_the_nearest(file: Path) -> None:
    with pytest.raises(HermitcrabError, match=r"did you mean `a\.weight`"):
        open_weights(file).read("a.weigth")


def write_shards(folder: Path, **changes: str) -> Path:
    save_file({"x": ARRAYS["a.weight"]}, folder / "model-1.safetensors")
    save_file({"y": ARRAYS["b.bias"]}, folder / "model-2.safetensors")
    listed = {"x": "model-1.safetensors", "y": "model-2.safetensors", **changes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return folder


def test_shards_read_as_one(tmp_path: Path) -> None:
    weights = open_weights(write_shards(tmp_path))
    assert sorted(weights.tensors) == ["x", "y"]
    assert np.array_equal(weights.read("y"), ARRAYS["b.bias"].astype(np.float32))
    assert {f.name for f in weights.files} == {
        "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y": "../model-2.safetensors"}, "beside the index"),
        ({"y": "/etc/model-2.safetensors"}, "beside the index"),
        ({"y": "sub\\model-2.safetensors"}, "beside the index"),
        ({"y": "model-2.bin"}, "no safetensors shard"),
        ({"y": "model-3.safetensors"}, "missing; there is model-2"),
        ({"z": "model-2.safetensors"}, "does not hold it"),
        ({"x": "model-2.safetensors", "y": "model-1.safetensors"}, "the index puts it in"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    with pytest.raises(HermitcrabError, match=says):
        open_weights(write_shards(tmp_path, **changes))


def test_a_shard_behind_a_link_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "model-2.safetensors").rename(tmp_path / "elsewhere")
    (tmp_path / "model-2.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HermitcrabError, match="symbolic link"):
        open_weights(tmp_path)


def test_a_tensor_that_the_index_hides_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path)
    save_file({"y": ARRAYS["b.bias"], "hidden": ARRAYS["c"]}, tmp_path / "model-2.safetensors")
    with pytest.raises(HermitcrabError, match="does not list it"):
        open_weights(tmp_path)


def test_folders_without_one_model_say_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(HermitcrabError, match="found nothing"):
        open_weights(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(SMALL)
    with pytest.raises(HermitcrabError, match="is an adapter"):
        open_weights(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(HermitcrabError, match="several models"):
        open_weights(tmp_path)
    with pytest.raises(HermitcrabError, match="no such file"):
        open_weights(tmp_path / "absent")
