"""Images in rows: equal pixels are equal bytes, any reader reads them, and a file that is none is told in a sentence."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hermitcrab.data.images import PNG, decode, encode_png, resized, stack
from hermitcrab.errors import HermitcrabError

Image = pytest.importorskip("PIL.Image")
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))


@given(SHAPES.flatmap(lambda shape: arrays(np.uint8, shape)))
def test_any_pixels_come_back_from_a_png_by_another_reader(pixels):
    data = encode_png(pixels.tobytes(), *pixels.shape)
    assert np.array_equal(decode(data, "row")[0], pixels)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.size == pixels.shape[1::-1]


def test_an_image_of_several_stored_blocks_comes_back():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    assert np.array_equal(decode(encode_png(pixels.tobytes(), 300, 400, 3), "row")[0], pixels)


def test_other_formats_are_read_and_brought_to_the_channels_asked_for():
    pixels = np.full((4, 5, 3), (200, 10, 10), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    plain, told = decode(out.getvalue(), "row")
    assert (plain.shape, told) == ((4, 5, 3), [])
    grey, told = decode(out.getvalue(), "row", 1)
    assert told == ["color to grey"]
    assert grey.shape == (4, 5, 1)
    assert 60 < grey[0, 0, 0] < 70  # ITU-R 601: .299 R + .587 G + .114 B


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: PNG + tail))
def test_bytes_that_are_no_image_are_one_sentence(data):
    with pytest.raises(HermitcrabError, match="row 3: is no image that can be read"):
        decode(data, "row 3")


def test_an_image_that_asks_for_gigabytes_is_refused_before_it_is_unpacked():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    bomb = PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    with pytest.raises(HermitcrabError, match=r"row 3: (has 100,000 x 100,000 pixels|is no image)"):
        decode(bomb, "row 3")


def test_images_of_two_sizes_name_the_row_that_differs():
    one, two = encode_png(bytes(4), 2, 2), encode_png(bytes(6), 2, 3)
    with pytest.raises(
        HermitcrabError, match=r"row b: the image has height, width and channels \(2, 3, 1\), expected \(2, 2, 1\)"
    ):
        stack([one, two], ["row a", "row b"])
    assert stack([], []).shape[0] == 0


def test_another_size_is_interpolated():
    ramp = np.tile(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], (16, 1, 1))
    small = resized(ramp, 8, 8)
    assert small.shape == (8, 8, 1)
    assert np.all(np.diff(small[0, :, 0].astype(int)) > 0)
    assert resized(ramp, 16, 16) is ramp


def test_transparency_is_told_and_sixteen_bits_are_refused():
    clear, deep = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.zeros((2, 2, 4), np.uint8)).save(clear, "PNG")
    Image.fromarray(np.full((2, 2), 40_000, np.uint16)).save(deep, "PNG")
    assert decode(clear.getvalue(), "row", 1)[1] == ["transparency dropped", "color to grey"]
    with pytest.raises(HermitcrabError, match=r"row: has more than 8 bits a channel"):
        decode(deep.getvalue(), "row")


@pytest.mark.parametrize("order", [[1, 3], [3, 1]])
def test_grey_among_colored_images_is_refused_whichever_comes_first(order):
    images = [encode_png(bytes(4 * n), 2, 2, n) for n in order]
    with pytest.raises(HermitcrabError, match=rf"row b: the image has height, width and channels \(2, 2, {order[1]}\)"):
        stack(images, ["row a", "row b"])
