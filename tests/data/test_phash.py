import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hermitcrab.data.phash import alike, groups, phash
from hermitcrab.errors import HermitcrabError

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
pytest.importorskip("scipy")


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@given(
    hash_N=arrays(np.uint64, st.integers(0, 30), elements=st.integers(0, 2**64 - 1) | st.integers(0, 255)),
    most=st.integers(0, 10),
)
def test_pairs_are_those_of_comparing_all(hash_N, most):
    wanted = [
        [i, j]
        for i in range(len(hash_N))
        for j in range(i + 1, len(hash_N))
        if int(hash_N[i] ^ hash_N[j]).bit_count() <= most
    ]
    assert alike(hash_N, most).tolist() == wanted


def test_groups_are_named_by_their_first():
    assert groups(np.array([0, 2**40 - 1, 1, 3, 2**40 - 2], np.uint64), 1).tolist() == [0, 1, 0, 0, 1]


def test_broken_files_and_bombs_are_refused():
    with pytest.raises(HermitcrabError, match="no image"):
        phash(b"\x89PNG\r\n\x1a\n not really")
    whole = encoded(Image.effect_noise((64, 64), 50))
    with pytest.raises(HermitcrabError, match="no image"):
        phash(whole[: len(whole) // 2])
    with pytest.raises(HermitcrabError, match="64 x 64 pixels; at most 1,000"):
        phash(whole, largest=1000)


@pytest.mark.data
def test_photographs_are_found_again_after_scaling_and_compression(shared_data):
    """Blood cells, 640 x 480: the hardest kind, as all of them are red rings on a pale ground."""
    with tarfile.open(shared_data / "detection-bccd" / "bccd.tar") as tar:
        names = sorted(name for name in tar.getnames() if name.endswith((".jpg", ".jpeg")))[:60]
        photos = [Image.open(io.BytesIO(tar.extractfile(name).read())).convert("RGB") for name in names]
    plain = np.array([phash(encoded(photo)) for photo in photos], np.uint64)
    for changed in (
        lambda p: encoded(p.resize((320, 240))),
        lambda p: encoded(p, "JPEG", quality=40),
        lambda p: encoded(p.convert("L")),
        lambda p: encoded(p.point(lambda v: min(255, v + 12))),
    ):
        other = np.array([phash(changed(photo)) for photo in photos], np.uint64)
        distance = np.bitwise_count(plain ^ other)
        assert (distance <= 6).mean() >= 0.95
    apart = np.bitwise_count(plain[:, None] ^ plain[None, :])[np.triu_indices(len(plain), 1)]
    assert np.median(apart) > 20
