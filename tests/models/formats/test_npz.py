import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import open_weights

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.array([1.5, -2], np.float16),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "whole": np.array([[7]], np.int64),
    "empty": np.zeros((0, 5), np.float32),
    "scalar": np.float64(2.5),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_wrote(tmp_path: Path, save: object) -> None:
    save(tmp_path / "m.npz", **ARRAYS)  # type: ignore[operator]
    weights = open_weights(tmp_path)
    assert weights.format == "numpy"
    for name, array in ARRAYS.items():
        read = weights.read(name)
        assert read.shape == np.shape(array)
        assert np.array_equal(read, array)


def test_a_single_array(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", ARRAYS["a"])
    assert np.array_equal(open_weights(tmp_path / "m.npy").read("array"), ARRAYS["a"])


def zipped(path: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def array(head: str, data: bytes = b"") -> bytes:
    text = head.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"a.npy": b""}, "no NumPy header"),
        ({"a.npy": array(GOOD)}, "does not fill"),
        ({"a.npy": array(GOOD, b"\0" * 9)}, "does not fill"),
        ({"a.npy": array(GOOD.replace("<f4", "|O"), b"\0" * 8)}, "no plain number"),
        ({"a.npy": array(GOOD.replace("(2,)", "(2**40,)"), b"\0" * 8)}, "damaged"),
        ({"a.npy": array(GOOD.replace("(2,)", "(1000000000000000,)"), b"\0" * 8)}, "no size|does not fill"),
        ({"a.npy": array("__import__('os').system('touch ran')", b"\0" * 8)}, "damaged"),
        ({"a.npy": b"\x93NUMPY\x01\x00\xff\xff{}"}, "cut off"),
        ({"../../etc/evil": b"x"}, "which is no array"),
    ],
)
def test_lies_are_named(tmp_path: Path, members: dict[str, bytes], says: str) -> None:
    path = zipped(tmp_path / "m.npz", members)
    with pytest.raises(HermitcrabError, match=says) as caught:
        open_weights(path)
    assert "m.npz" in str(caught.value)
    assert not Path("ran").exists()


def test_a_bomb_is_refused_unopened(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.npz", {f"{i}.npy": bytes(60 << 20) for i in range(6)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(HermitcrabError, match="zip bomb"):
        open_weights(path)


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("a.npy", array(GOOD, b"\0" * 8))
        archive.writestr("b.npy", array(GOOD, b"\0" * 8))
    data = bytearray(whole.getvalue())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    data[second + 42 : second + 46] = bytes(4)  # both entries point at the first member
    (tmp_path / "m.npz").write_bytes(data)
    with pytest.raises(HermitcrabError, match="overlaps"):
        open_weights(tmp_path / "m.npz")


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 2000), byte=st.integers(0, 255), cut=st.integers(0, 2000) | st.none())
def test_damage_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: int | None
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    np.savez_compressed(folder / "good.npz", **ARRAYS)
    data = bytearray((folder / "good.npz").read_bytes())
    data[at % len(data)] = byte
    (folder / "m.npz").write_bytes(data if cut is None else data[:cut])
    try:
        weights = open_weights(folder / "m.npz")
        for name in weights.tensors:
            weights.read(name)
    except HermitcrabError as error:
        str(error).encode()
