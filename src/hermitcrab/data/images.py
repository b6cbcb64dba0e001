"""Images as rows hold them: the bytes of a PNG. Written here so that equal pixels give equal bytes, read by Pillow within bounds.

Shapes: H height, W width, C channels (1 grey, 3 RGB); uint8.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import TYPE_CHECKING

from hermitcrab.errors import HermitcrabError, needs

if TYPE_CHECKING:
    import numpy as np

PNG = b"\x89PNG\r\n\x1a\n"
LARGEST = 1 << 26  # pixels of an image: beyond that a small file may ask for gigabytes
STORED = 65_535  # bytes in a stored block of deflate


def encode_png(pixels: bytes, height: int, width: int, channels: int = 1) -> bytes:
    """Pixels (uint8, row by row) as a PNG (ISO/IEC 15948), stored and not deflated: Parquet compresses it, and a deflate library of
    another version would give other bytes for the same image.
    """
    line = width * channels
    raw = b"".join(b"\0" + pixels[at : at + line] for at in range(0, height * line, line))  # filter 0 on every line
    blocks = [raw[at : at + STORED] for at in range(0, len(raw), STORED)] or [b""]
    body = b"".join(
        struct.pack("<BHH", i == len(blocks) - 1, len(block), len(block) ^ 0xFFFF) + block
        for i, block in enumerate(blocks)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    packed = b"\x78\x01" + body + struct.pack(">I", zlib.adler32(raw))
    return PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def decode(data: bytes, where: str, channels: int | None = None) -> tuple[np.ndarray, list[str]]:
    """The pixels of an image file, uint8 [H, W, C], and in words what was changed of it; `channels`: 1 or 3 of them, else as the
    file has them.

    Raises:
        HermitcrabError: no image, a damaged one, one that is too large, or of more than eight bits a channel.
    """
    import numpy as np

    image_library = needs("PIL.Image", "train")
    try:
        with image_library.open(BytesIO(data)) as image:
            if image.width * image.height > LARGEST:
                raise HermitcrabError(
                    f"{where}: has {image.width:,} x {image.height:,} pixels; expected at most {LARGEST:,} of them"
                )
            if image.mode.startswith(("I", "F")):
                raise HermitcrabError(f"{where}: has more than 8 bits a channel ({image.mode}); expected 8")
            grey = image.mode in ("1", "L", "LA")
            told = ["transparency dropped"] if "A" in image.mode or "transparency" in image.info else []
            if channels is not None and grey != (channels == 1):
                told.append("grey to color" if grey else "color to grey")
                grey = channels == 1
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except HermitcrabError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise HermitcrabError(f"{where}: is no image that can be read: {why}") from error
    return pixels.reshape(*pixels.shape[:2], -1), told


def resized(pixels_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image at another size (bilinear), uint8 [height, width, C]; the same array where it has that size."""
    if pixels_HWC.shape[:2] == (height, width):
        return pixels_HWC
    import numpy as np

    image_library = needs("PIL.Image", "train")
    grey = pixels_HWC.shape[2] == 1
    image = image_library.fromarray(pixels_HWC[:, :, 0] if grey else pixels_HWC)
    return np.asarray(image.resize((width, height), image_library.Resampling.BILINEAR)).reshape(height, width, -1)


def stack(
    images: Iterable[bytes],
    names: Iterable[str],
    shape: tuple[int, int, int] | None = None,
    told: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Images of one size in one array, uint8 [N, H, W, C]. `told` is called at each.

    Args:
        shape: what every image must have; None: what the first one has.

    Raises:
        HermitcrabError: an image of another size, by the name of its row.
    """
    import numpy as np

    found = []
    for data, name in zip(images, names, strict=True):
        pixels, _ = decode(data, name)
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise HermitcrabError(
                f"{name}: the image has height, width and channels {pixels.shape}, expected {shape} as the others have"
            )
        found.append(pixels)
        told()
    return np.stack(found) if found else np.zeros((0, *(shape or (0, 0, 1))), np.uint8)
