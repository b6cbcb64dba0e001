import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hermitcrab.data.phash import alike, duplicates, phash
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


def test_an_image_goes_only_for_one_that_stays():
    # 0 and 3 are alike, 3 and 15 too, 0 and 15 are not: 15 stays, as 3 is gone
    assert duplicates(np.array([0, 2**40 - 1, 3, 15, 2**40 - 2], np.uint64), 2).tolist() == [-1, -1, 0, -1, 1]


@given(hash_N=arrays(np.uint64, st.integers(0, 30), elements=st.integers(0, 255)), most=st.integers(0, 4))
def test_what_stays_is_unlike_and_what_goes_is_like_one_that_stays(hash_N, most):
    partner_N = duplicates(hash_N, most)
    stays = np.flatnonzero(partner_N < 0)
    assert len(alike(hash_N[stays], most)) == 0
    for later, first in enumerate(partner_N.tolist()):
        assert first < 0 or (first < later and partner_N[first] < 0)
        assert first < 0 or int(hash_N[first] ^ hash_N[later]).bit_count() <= most


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
