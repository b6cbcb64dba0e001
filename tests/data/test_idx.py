"""IDX files: what they say they hold is what is read, or one sentence."""

from __future__ import annotations

import contextlib
import gzip
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import stripes, write_idx

from hermitcrab.data.idx import open_idx, read_images
from hermitcrab.data.images import decode
from hermitcrab.data.readers import Record
from hermitcrab.errors import HermitcrabError


@pytest.fixture
def pair(tmp_path):
    pixels, labels = stripes(9, 0)
    write_idx(tmp_path, "t", pixels, labels)
    return tmp_path / "t-images", tmp_path / "t-labels", pixels, labels


def read(images, labels) -> list[Record]:
    with open_idx(images, labels, "images", "labels") as table:
        return list(table.read(()))


def test_images_and_labels_go_in_step(pair):
    images, labels, pixels, wanted = pair
    records = read(images, labels)
    assert [r.cells["label"] for r in records] == [str(label) for label in wanted]
    assert all(
        np.array_equal(decode(r.cells["image"], r.where)[0][:, :, 0], p) for r, p in zip(records, pixels, strict=True)
    )
    assert [name for name, _ in read_images(images, "x")] == [f"x: image {n}" for n in range(1, 10)]


def test_gzip_is_seen_by_its_bytes(pair):
    images, labels, *_ = pair
    plain = read(images, labels)
    images.write_bytes(gzip.compress(images.read_bytes()))
    assert read(images, labels) == plain


@pytest.mark.parametrize(
    ("which", "change", "told"),
    [
        (0, lambda b: b[:-1], "images: row 9: the file ends here"),
        (1, lambda b: b[:-1], "labels: row 9: the file ends here"),
        (0, lambda b: b + b"x", "images: goes on behind the 9 items"),
        (1, lambda b: b + b"x", "labels: goes on behind the 9 items"),
        (0, lambda b: b[:9], "images: ends within its header"),
        (0, lambda b: b"", "images: is no IDX file of this kind"),
        (
            1,
            lambda b: b"PK\x03\x04" + b[4:],
            "labels: is no IDX file of this kind; it begins with 50 4b 03 04, expected 00 00 08 01",
        ),
        (1, lambda b: b[:4] + struct.pack(">I", 8) + b[8:-1], "images has 9 images, and labels has 8 labels"),
        (
            0,
            lambda b: b[:8] + struct.pack(">II", 1 << 20, 1 << 20) + b[16:],
            "its images have 1,048,576 x 1,048,576 pixels",
        ),
        (0, lambda b: b[:8] + struct.pack(">II", 0, 8) + b[16:], "its images have 0 x 8 pixels"),
        (0, lambda b: bytes([0, 0, 8, 4]) + b[4:16] + struct.pack(">I", 7) + b[16:], "its images have 7 channels"),
    ],
)
def test_a_file_that_lies_is_one_sentence(pair, which, change, told):
    file = pair[which]
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(HermitcrabError, match=told):
        read(*pair[:2])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_flipped_and_cut_bytes_never_crash(pair, tmp_path, data):
    images, labels, *_ = pair
    which = data.draw(st.sampled_from([images, labels]))
    raw = bytearray(which.read_bytes())
    raw[data.draw(st.integers(0, min(19, len(raw) - 1)))] ^= 1 << data.draw(st.integers(0, 7))
    other = tmp_path / "other"
    other.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    with contextlib.suppress(HermitcrabError):
        read(*((other, labels) if which == images else (images, other)))


@pytest.mark.data
def test_fashion_mnist_is_read_whole(shared_data):
    folder = shared_data / "fashion-mnist"
    records = read(folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz")
    labels = [r.cells["label"] for r in records]
    assert {label: labels.count(label) for label in set(labels)} == {str(n): 1000 for n in range(10)}
    assert decode(records[0].cells["image"], "first")[0].shape == (28, 28, 1)
