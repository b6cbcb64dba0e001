"""Images that look alike: a hash of 64 bits that survives scaling, compression and small changes, and pairs of near hashes.

The hash is that of the discrete cosine transform (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions",
section 3.2): gray, 32 x 32, the 64 lowest frequencies against their median. Two photographs of different things differ in some 32 bits.

N images, R of them by rank, P pairs.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from hermitcrab.errors import HermitcrabError, needs

SIDE, LOW = 32, 8
LARGEST = 64_000_000  # pixels: more is taken for a bomb


def phash(data: bytes, largest: int = LARGEST) -> int:
    """The hash of an encoded image, an unsigned integer of 64 bits.

    Raises:
        HermitcrabError: for bytes that are no image, and for an image of more than `largest` pixels, which is not decoded.
    """
    from scipy.fft import dctn

    image_module = needs("PIL.Image", "data")
    try:
        with image_module.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > largest:
                raise HermitcrabError(f"the image has {width:,} x {height:,} pixels; at most {largest:,} are decoded")
            gray = image.convert("L").resize((SIDE, SIDE), image_module.Resampling.LANCZOS)
    except HermitcrabError:
        raise
    except Exception as error:
        raise HermitcrabError(f"this is no image that can be read ({type(error).__name__})") from error
    low = dctn(np.asarray(gray, np.float64), norm="ortho")[:LOW, :LOW].ravel()
    # The first is the mean brightness: it says nothing of the shapes. Noise of rounding is no sign either.
    low[0] = 0.0
    bits = np.round(low - np.median(low), 6) > 0
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def alike(hash_N: np.ndarray, distance: int = 6) -> np.ndarray:
    """Pairs of hashes that differ in at most so many bits, `i < j`, in order: int64 [P, 2].

    With d bits in d + 1 bands, two such hashes are equal in one band at least: only those are compared.

    Args:
        hash_N: uint64.
    """
    order, found = np.arange(len(hash_N)), list[np.ndarray]()
    edges = np.linspace(0, 64, distance + 2).astype(int)
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        band_N = (hash_N >> np.uint64(first)) & np.uint64((1 << (last - first)) - 1)
        order = np.argsort(band_N, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(band_N[order]) > 0, True])
        for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            for k in range(begin, end - 1):
                rest = order[k + 1 : end]
                near = np.bitwise_count(hash_N[order[k]] ^ hash_N[rest]) <= distance
                if near.any():
                    found.append(np.stack([np.full(near.sum(), order[k]), rest[near]], axis=1))
    if not found:
        return np.empty((0, 2), np.int64)
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def phashes(images: Sequence[bytes]) -> np.ndarray:
    """The hash of each: uint64 [N]."""
    return np.array([phash(data) for data in images], np.uint64)


def duplicates(hash_R: np.ndarray, distance: int) -> np.ndarray:
    """For each image, by rank, the first one before it that stays and is alike; -1 for one that stays: int64 [R].

    An image goes only for one that stays: a chain of neighbors drops none that is like none that is kept.
    """
    partner_R = np.full(len(hash_R), -1, np.int64)
    pairs = alike(hash_R, distance)
    for first, later in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist():
        if partner_R[first] < 0 and partner_R[later] < 0:
            partner_R[later] = first
    return partner_R
